"""RPO: Regularized Preference Optimization, DPO with an imitation term that guards against over-optimization.

Liu et al., "Provably Mitigating Overoptimization in RLHF: Your SFT Loss is Implicitly an Adversarial Regularizer",
2024, arXiv 2405.16436.

Where the preferences do not cover, an implicit reward may be anything. The policy that is best against the worst reward
which still explains the preferences, relative to a baseline policy, is found by one loss:

    loss   L_DPO  +  eta beta E_(x, y0 ~ pi_base) [ - log pi(y0|x) ]               `--imitation sum` over tokens
    loss   L_DPO  +  coefficient E_(x, y0 ~ pi_base) [ - log pi(y0|x) / |y0| ]     `--imitation average`, no beta

The two are on different scales: for equal weight, eta beta |y0| = coefficient. y0 is the chosen answer, or the column
`baseline` of a file of pairs. The chosen answers are scored once for both terms.

Differs from its base, DPO, in the second term, which keeps the likelihood of the chosen answers from falling.

Departs from the paper in: nothing known. TRL's `rpo_alpha` is a third term, a mean over all tokens of the batch.
"""

from dataclasses import dataclass

from torch import Tensor

from polopt.bases.method import Limit, Smoke
from polopt.config import Config, param
from polopt.core.batch import Batch
from polopt.methods.language.dpo import DPO
from polopt.regularizers.anchors import cloning


@dataclass(frozen=True)
class Sum(Config):
    """eta beta times -log pi(y0|x)."""

    eta: float = param(0.005, "recipe zephyr-7b-beta", low=0, help="of the imitation term, times beta; 0 is DPO")

    def factor(self, beta: float, tokens: Tensor) -> float | Tensor:
        """What multiplies -log pi(y0|x) of an answer with so many tokens [B]."""
        return self.eta * beta


@dataclass(frozen=True)
class Average(Config):
    """coefficient times -log pi(y0|x) / |y0|."""

    coefficient: float = param(0.2, "official code", low=0, help="of the imitation term averaged over tokens")

    def factor(self, beta: float, tokens: Tensor) -> float | Tensor:
        return self.coefficient / tokens


class RPO(DPO):
    @dataclass(frozen=True)
    class Config(DPO.Config):
        beta: float = param(0.01, "recipe zephyr-7b-beta", above=0, help="of the implicit reward")
        imitation: Sum | Average = param(Sum(), "equation 4.1", help="over the tokens of an answer")
        batch_size: int = param(128, "recipe zephyr-7b-beta", low=1, unit="pairs", help="per optimizer step")
        lr: float = param(5e-7, "recipe zephyr-7b-beta", above=0)

    slug = "rpo"
    extra = "baseline"
    presets = {
        "zephyr-beta": {"lr_schedule": "cosine", "lr_schedule.warmup": 0.1},
        "zephyr-gemma": {"beta": 0.05, "lr_schedule": "cosine", "lr_schedule.warmup": 0.1},
        "average": {"imitation": "average", "beta": 0.5},
        "small": {"beta": 0.1, "imitation.eta": 0.2, "lr": 1e-4, "batch_size": 32},
    }
    limits = (
        Limit(
            base="dpo",
            at={"imitation.eta": 0.0, "beta": 0.1},
            apart={"imitation.eta": 0.2},
            because="without the imitation term it is DPO",
        ),
    )
    smoke = Smoke("addition", 8, DPO.smoke.config | {"imitation.eta": 1.0})

    def anchor(self, chosen_log_prob: Tensor, batch: Batch) -> Tensor:
        config, chosen = self.config, batch["chosen"]
        baseline = batch.get("baseline", None)
        log_prob = chosen_log_prob if baseline is None else self.policy.log_prob(baseline)
        tokens = (chosen if baseline is None else baseline)["mask"].sum(1).clamp_min(1)
        return cloning(config.imitation.factor(config.beta, tokens) * log_prob.sum(1), batch["weight"])
