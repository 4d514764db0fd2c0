"""INPO: Iterative Nash Policy Optimization, self-play towards the policy that no other is preferred to.

Zhang et al., "Iterative Nash Policy Optimization: Aligning LLMs with General Preferences via No-Regret Learning", 2024,
arXiv 2407.00617.

Preferences P(y beats y'|x) need not follow from any reward: they may go in a circle. Then what is wanted is the Nash
policy of the game in which two policies play y and y', each held to the model at the start, pi_ref, by tau KL. Online
mirror descent against oneself finds it, with an inverse step size eta of at least tau:

    pi_{t+1} = argmax_pi  E_(y ~ pi) P(y beats pi_t) - tau KL(pi || pi_ref) - (eta - tau) KL(pi || pi_t)
             ~ exp(P(y beats pi_t) / eta) pi_ref(y)^(tau / eta) pi_t(y)^(1 - tau / eta)

Nobody knows P(y beats pi_t), and nobody has to. Over pairs of independent answers of pi_t, with labels drawn from P,
the squared distance from a constant has the gradient of that from the win rates, and is least at pi_{t+1}:

    h(y)   log pi(y|x) - (tau / eta) log pi_ref(y|x) - (1 - tau / eta) log pi_t(y|x)        summed over tokens
    loss   E (h(chosen) - h(rejected) - 1 / (2 eta))^2

pi_ref stays for ever, pi_t is renewed in every round. tau = eta is IPO with fresh pairs; tau = 0 forgets pi_ref.

Steps must be small: near the Nash policy, 1 - tau / eta + lambda / eta has to be inside the unit circle for every
eigenvalue lambda of the Jacobian of the win rates. A circle of three with preferences of 0.9 needs eta above 0.31 at
tau = eta / 3. The default target of 67 nats is for long answers. `--judge module:function` is a preference of your own;
without it that of Bradley and Terry in the task's reward is taken, for which iterative DPO is simpler: this is for
preferences that are no order.

Differs from its base, iterative DPO, in the loss, which is IPO's, in the two anchors, and in drawn labels.

Departs from the paper in: with K > 2 (`paper` has 8) best and worst answer are those that win most and least against
all others, not in a tournament of fewer comparisons; that, like any K but 2, is biased. AdamW begins anew every round.
The paper's rates, sizes, eta and tau are those of others' code; three rounds of `paper` are `--steps 471`.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from polopt.bases.method import Limit, Smoke
from polopt.config import param
from polopt.core.batch import Batch
from polopt.core.errors import UsageError
from polopt.losses.pairwise import pairwise
from polopt.methods.language.iterative_dpo import IterativeDPO, RoundsConfig


def mirror_step(start: Tensor, now: Tensor, win: Tensor, eta: float, tau: float) -> Tensor:
    """log pi_{t+1} [..., Y] over all answers, from log pi_ref, log pi_t and P(y beats pi_t), all [..., Y]."""
    return (win / eta + (tau / eta) * start + (1 - tau / eta) * now).log_softmax(-1)


def inpo(chosen: Tensor, rejected: Tensor, eta: float, weight: Tensor) -> Tensor:
    """Sum over pairs of weight (h(chosen) - h(rejected) - 1 / (2 eta))^2; all tensors [B]."""
    return pairwise(chosen, rejected, eta, weight, kind="ipo")


class INPO(IterativeDPO):
    @dataclass(frozen=True)
    class Config(RoundsConfig):
        eta: float = param(0.0075, "other code", above=0, help="inverse step size; the target is 1 / (2 eta) nats")
        tau: float = param(0.0025, "other code", low=0, help="of the KL to the model at the start; at most eta")
        label_temperature: float | None = param(
            1.0, "assumed", above=0, unit="reward", help="labels are drawn at it; none: the higher reward is chosen"
        )

        loss: ClassVar[str] = "ipo-sum"

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.tau > self.eta:
                raise UsageError(f"tau must be at most eta, and {self.tau:g} is above {self.eta:g}")

        @property
        def beta(self) -> float:
            """Of the implicit reward, eta h, whose margin tends to 1/2 for sure preferences."""
            return self.eta

    slug = "inpo"
    presets = {
        "paper": {
            "model": "RLHFlow/LLaMA3-SFT",
            "pairs": 20_000,
            "samples_per_prompt": 8,
            "label_temperature": None,
            "batch_size": 128,
            "lr": 5e-7,
            "lr_schedule": "cosine",
            "policy.max_tokens": 1024,
        },
        "small": {"eta": 0.5, "tau": 1 / 6, "lr": 1e-4, "batch_size": 32, "pairs": 128, "policy.max_tokens": 32},
    }
    limits = (
        Limit(
            base="dpo",
            task="addition",
            at={"eta": 0.5, "tau": 0.5, "fresh_optimizer": False, "pairs": 4, "batch_size": 4, "lr": 1e-3},
            apart={"tau": 0.25},
            base_at={"loss": "ipo-sum", "beta": 0.5, "lr": 1e-3},
            because="with all weight on the model at the start it is IPO on the same pairs, whatever round they are of",
            collects="method",
        ),
        Limit(
            base="iterative-dpo",
            at={"eta": 0.5, "tau": 0.125, "epochs": 1},
            apart={"tau": 0.25},
            base_at={"loss": "ipo-sum", "beta": 0.5, "start_weight": 0.25, "label_temperature": 1.0, "epochs": 1},
            because="it is IPO in rounds, with tau / eta of the reference at the start",
            collects="each",
        ),
    )
    smoke = Smoke(
        "vowels",
        6,
        {
            "model": "tiny",
            "batch_size": 4,
            "pairs": 8,
            "samples_per_prompt": 3,
            "epochs": 2,
            "eta": 0.5,
            "tau": 0.125,
            "lr": 1e-2,
            "policy.max_tokens": 4,
        },
        {"pool": 64, "score_truncated": True},
    )

    @property
    def start_weight(self) -> float:
        return self.config.tau / self.config.eta

    def loss_of_pairs(self, chosen: Tensor, rejected: Tensor, batch: Batch) -> Tensor:
        return inpo(chosen, rejected, self.config.eta, batch["weight"])
