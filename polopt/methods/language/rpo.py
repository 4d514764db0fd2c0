"""RPO: Regularized Preference Optimization, DPO with an imitation term that guards against over-optimization.

Liu et al., "Provably Mitigating Overoptimization in RLHF: Your SFT Loss is Implicitly an Adversarial Regularizer",
2024, arXiv 2405.16436.

Where the preferences do not cover, an implicit reward may be anything. The policy that is best against the worst reward
which still explains the preferences, relative to a baseline policy, is found by one loss:

    loss   L_DPO  +  eta beta E_(x, y0 ~ pi_base) [ - log pi(y0|x) ]               `sum` over the tokens of y0
    loss   L_DPO  +  coefficient E_(x, y0 ~ pi_base) [ - log pi(y0|x) / |y0| ]     `average` over its tokens, no beta

The two are on different scales: for equal weight, eta beta |y0| = coefficient. y0 is the chosen answer, or the column
`baseline` of a file of pairs. The chosen answers are scored once for both terms.

Differs from its base, DPO, in the second term, which keeps the likelihood of the chosen answers from falling.

Departs from the paper in: nothing known. TRL's `rpo_alpha` is a third term, a mean over all tokens of the batch.
"""

from dataclasses import dataclass

from torch import Tensor

from polopt.bases.method import Limit, Smoke
from polopt.config import param
from polopt.core.batch import Batch
from polopt.methods.language.dpo import DPO
from polopt.regularizers.anchors import cloning


class RPO(DPO):
    @dataclass(frozen=True)
    class Config(DPO.Config):
        beta: float = param(0.01, "recipe zephyr-7b-beta", above=0, help="of the implicit reward")
        eta: float = param(0.005, "recipe zephyr-7b-beta", low=0, help="of the imitation term, times beta; 0 is DPO")
        imitation: str = param("sum", "equation 4.1", choices=("sum", "average"), help="over the tokens of an answer")
        coefficient: float = param(0.2, "official code", low=0, help="of the imitation term averaged over tokens")
        batch_size: int = param(128, "recipe zephyr-7b-beta", low=1, unit="pairs", help="per optimizer step")
        lr: float = param(5e-7, "recipe zephyr-7b-beta", above=0)

    slug = "rpo"
    extra = "baseline"
    presets = {
        "zephyr-beta": {"lr_schedule": "cosine", "lr_schedule.warmup": 0.1},
        "zephyr-gemma": {"beta": 0.05, "lr_schedule": "cosine", "lr_schedule.warmup": 0.1},
        "average": {"imitation": "average", "beta": 0.5},
        "small": {"beta": 0.1, "eta": 0.2, "lr": 1e-4, "batch_size": 32},
    }
    limits = (
        Limit(
            base="dpo",
            at={"eta": 0.0, "beta": 0.1},
            apart={"eta": 0.2},
            because="without the imitation term it is DPO",
        ),
    )
    smoke = Smoke(
        "addition", 8, {"model": "tiny", "batch_size": 24, "pairs": 64, "lr": 1e-3, "eta": 1.0, "policy.max_tokens": 8}
    )

    def anchor(self, chosen_log_prob: Tensor, batch: Batch) -> Tensor:
        config, chosen = self.config, batch["chosen"]
        baseline = batch.get("baseline", None)
        log_prob = chosen_log_prob if baseline is None else self.policy.log_prob(baseline)
        if config.imitation == "sum":
            return config.eta * config.beta * cloning(log_prob.sum(1), batch["weight"])
        tokens = (chosen if baseline is None else baseline)["mask"].sum(1).clamp_min(1)
        return config.coefficient * cloning(log_prob.sum(1) / tokens, batch["weight"])
