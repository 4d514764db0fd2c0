"""APO: Accelerated Preference Optimization, iterative preference optimization with Nesterov's momentum between rounds.

He, Yuan and Gu, "Accelerated Preference Optimization for Large Language Model Alignment", 2024, arXiv 2410.06293.

A round of iterative DPO is a proximal point step: from the policy pi_t, the reference of the round, to its solution
pi^_{t+1}. These steps point the same way round after round, and so APO goes on past each solution, along the way from
the one before:

    solve        pi^_{t+1} = argmin_pi  E [ loss of pairs(pi, pi_t) ]        pairs sampled from pi_t
    extrapolate  log pi_{t+1}(y|x) = log pi^_{t+1}(y|x) + momentum (log pi^_{t+1}(y|x) - log pi^_t(y|x)) - log Z(x)
    of weights   theta_{t+1} = theta^_{t+1} + momentum (theta^_{t+1} - theta^_t)        equal where logits are linear

pi_0 = pi^_0 is the model at the start, so the first round is that of iterative DPO. Next to sample, to be the reference
and to be trained on is the extrapolated pi_{t+1}; the momentum is between the solutions, not from pi_t. Where pi^ is
exact, steps tend to 1 / (1 - momentum) of those without it, as if beta were smaller by the factor 1 - momentum; the
noise of the labels grows with them, so compare at equal data. Worth trying where a round of pairs is dear.

Differs from its base, iterative DPO, in the last line of a round; the losses are the same, SPPO's and IPO's (`ipo-sum`)
among them. The momenta of AdamW are another thing, and begin anew in every round.

Departs from the paper in: language models are extrapolated in their weights (with LoRA in its factors), tables in
their logits, which is exact; a run that ends within a round has the policy as it is there. At the end of a round
`policy` is the extrapolated pi_T, and `solution` is pi^_T. The preset `paper` is the paper's stage (three rounds are
`--steps 939`), with rate and lengths of the same authors' code of SPPO; momentum and beta are assumed.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from polopt.bases.method import Limit
from polopt.config import param
from polopt.core.batch import Batch
from polopt.methods.language.iterative_dpo import IterativeDPO
from polopt.optim import frozen_copy
from polopt.tasks.base import Task


def extrapolated(solution: Tensor, before: Tensor, momentum: float) -> Tensor:
    """log pi_{t+1} [..., Y] over all answers, from those of pi^_{t+1} and pi^_t; any constant of an x may be added."""
    return (solution + momentum * (solution - before)).log_softmax(-1)


@torch.no_grad()
def extrapolate(policy: nn.Module, solution: nn.Module, momentum: float) -> None:
    """Moves `policy`, whose weights are a solution, past it, away from the one before, and keeps it in `solution`."""
    for weight, kept in zip(policy.parameters(), solution.parameters(), strict=True):
        if weight.requires_grad:
            step = weight - kept
            kept.copy_(weight)
            weight.add_(step, alpha=momentum)


class APO(IterativeDPO):
    @dataclass(frozen=True)
    class Config(IterativeDPO.Config):
        momentum: float = param(0.3, "assumed", low=0, below=1, help="alpha, between solutions; 0 is iterative DPO")

    slug = "apo"
    presets = {
        "paper": {
            "model": "mistralai/Mistral-7B-Instruct-v0.2",
            "samples_per_prompt": 5,
            "pairs": 20_000,
            "lr": 5e-7,
            "lr_schedule": "linear",
            "lr_schedule.warmup": 0.1,
            "policy.max_tokens": 512,
        },
        "sppo": IterativeDPO.presets["sppo"],
        "small": IterativeDPO.presets["small"],
    }
    limits = (
        Limit(
            base="iterative-dpo",
            at={"momentum": 0.0, "pairs": 4, "epochs": 1},
            base_at={"pairs": 4, "epochs": 1},
            apart={"momentum": 0.3},
            because="without momentum the next round begins at the solution",
            collects="each",
        ),
    )
    smoke = IterativeDPO.smoke

    def build(self, task: Task) -> None:
        super().build(task)
        self.solution = frozen_copy(self.policy)

    def update(self, batch: Batch) -> dict[str, Tensor]:
        metrics = super().update(batch)
        if self.source.finished:
            extrapolate(self.policy, self.solution, self.config.momentum)
        return metrics
