"""Scaled PPO: more environments, minibatches and learning rate as they were, and numbers that say why PPO stagnates.

Beukman, Khetarpal, Zheng, Dabney, Foerster, Dennis and Lyle, "Preventing Learning Stagnation in PPO by Scaling to
1 Million Parallel Environments", 2026, arXiv 2603.06009. PPO-EWMA: Hilton, Cobbe and Schulman, "Batch size-invariance
for policy optimization", 2021, arXiv 2110.00641.

PPO is seen from outside: one window and all steps on it are one step from pi_k to pi_{k+1} of a stochastic search. How
long that step is, the restraint says (clip, learning rate, epochs, the age of the policy that the ratio is taken
against); how noisy, the number B of decisions that it was made of. A step too long for its noise ends in a plateau.

    B = envs window,    gradient steps of an epoch = B / `minibatch_size`,    lr, epochs, window, clip: as they were
    `outer_kl`            KL(pi_k || pi_{k+1}), estimated over the window (k3), after its last gradient step
    `data_to_divergence`  B / outer_kl: decisions for one nat that the policy moves
    `promised_gain`       E[ (pi_{k+1} / pi_k - 1) A ],  A = returns - value: what the surrogate says that was gained

So twice the environments are twice the gradient steps between two policies that collect, each of the same size: there
are more data in an outer step, and the policy that restrains it is older. Larger minibatches in their place, also with
the square root of the factor on the rate, make fewer steps of the data. Whether a plateau is of this kind, a smaller
outer step tells: go on from a checkpoint (`--init`) with a fifth of `lr`. Returns that rise at once say yes.

    `ewma_decay` b   pi_prox: the average of the policies after all gradient steps, the one t steps ago weighing b^t,
                     so b / (1 - b) steps old; the policy that began counts as the first
    ratio            pi / pi_prox in place of pi / pi_k; the surrogate is multiplied by pi_prox / pi_k, detached
    `stagger` H      the first episodes are cut, as truncations, at steps spread over 1 ... H: rows that begin together
                     go on together, and then a window much shorter than an episode sees one part of it at a time

Differs from PPO, its base, in the size of minibatches where PPO has a number of them, in `ewma_decay` and `stagger`,
and in defaults: advantages are standardized over the window, whatever the number of minibatches, and nothing is
annealed.

Departs from the paper in: nothing that is known; there is no official code, and what its text leaves open about the
last three numbers is assumed. Departs from the official code of PPO-EWMA in: the importance weight has no bound.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from polopt.config import Constant, Cosine, Linear, param
from polopt.core.batch import Batch, decision_mean, decision_sum, weighted_mean
from polopt.core.errors import UsageError
from polopt.core.numeric import bounded_exp, bounded_expm1
from polopt.data.rollouts import Rollouts
from polopt.methods.control.ppo import PPO
from polopt.methods.control.scaled_ppo_settings import ScaledPPOSettings
from polopt.optim import frozen_copy, polyak_update
from polopt.regularizers.kl import kl_estimate
from polopt.tasks.base import Task


def even_size(decisions: int, wanted: int) -> int:
    """The size of equal minibatches, as near as there is to `wanted`: a small last one would be a noisy step."""
    return -(-decisions // max(1, round(decisions / wanted)))


def outer_step(log_prob: Tensor, old_log_prob: Tensor, advantage: Tensor, weight: Tensor) -> dict[str, Tensor]:
    """The three numbers of a step from the policy that collected, `old_log_prob`, to that of `log_prob`, both [...].

    `advantage` and `weight` have the shape of decisions; a decision that is a chain has a log-probability [..., K].
    """
    kl = decision_mean(kl_estimate(old_log_prob, log_prob, "k3"), weight)
    gain = bounded_expm1(decision_sum(log_prob - old_log_prob, weight)) * advantage
    tiny = torch.finfo(kl.dtype).eps ** 2
    ratio = (weight > 0).sum() / kl.clamp_min(tiny)
    return {"outer_kl": kl, "data_to_divergence": ratio, "promised_gain": weighted_mean(gain, weight)}


class ScaledPPO(ScaledPPOSettings, PPO):
    @dataclass(frozen=True)
    class Config(PPO.Config):
        envs: int = param(64, "assumed", low=1, help="copies of the task: what to raise")
        window: int = param(16, "PureJaxRL: 10", low=1, help="steps of every copy per update")
        minibatch_size: int = param(128, "37 details: classic control", low=1, help="decisions in one gradient step")
        advantage_over: str = param(
            "batch", "official code of PPO-EWMA", choices=("minibatch", "batch", "none"), help="standardize over"
        )
        lr: float = param(3e-4, "PureJaxRL", above=0)
        lr_schedule: Constant | Linear | Cosine = param(Constant(), "PureJaxRL")
        ewma_decay: float | None = param(
            None,
            "PPO-EWMA",
            low=0,
            below=1,
            help="of a proximal policy, per gradient step; none: who collects",
        )
        stagger: int = param(0, "assumed", low=0, help="steps over which the first episodes are cut; 0: none is")

        def __post_init__(self) -> None:
            super().__post_init__()
            self.refuse("minibatches", because="here: there are as many as minibatch_size makes of a window")

    source: Rollouts
    slug = "scaled-ppo"
    saved = ("averaged",)

    @classmethod
    def derived(cls, config: Any, steps: int) -> dict[str, int]:
        batch = config.envs * config.window
        size = even_size(batch, config.minibatch_size)
        gradient_steps = config.epochs * -(-batch // size)
        return super().derived(config, steps) | {"per minibatch": size, "gradient steps per update": gradient_steps}

    def build(self, task: Task) -> None:
        super().build(task)
        if self.config.stagger and task.environments < task.num:
            raise UsageError(f"stagger cuts rows one by one, and {self.spec.name} has several in one environment")
        self.source.stagger = self.config.stagger
        self.proximal = None if self.config.ewma_decay is None else frozen_copy(self.policy)
        self.averaged = 1.0  # the weight of all policies in the average, of which the newest has 1

    def size_of_minibatches(self, decisions: int) -> int:
        return even_size(decisions, self.config.minibatch_size)

    def improve(self, batch: Batch) -> dict[str, Tensor]:
        metrics = super().improve(batch)
        with torch.no_grad():
            log_prob, advantage = self.policy.log_prob(batch), batch["returns"] - batch["value"]
            return metrics | outer_step(log_prob, batch["log_prob"], advantage, batch["weight"])

    def step(self, minibatch: Batch) -> dict[str, Tensor]:
        if self.proximal is None or self.config.ewma_decay is None:
            return super().step(minibatch)
        metrics = super().step(self.against_proximal(minibatch))
        self.averaged = 1.0 + self.config.ewma_decay * self.averaged
        polyak_update(self.proximal, self.policy, 1.0 / self.averaged)
        return metrics

    @torch.no_grad()
    def against_proximal(self, minibatch: Batch) -> Batch:
        """The minibatch as if the proximal policy had collected it, with advantages that are weighted for that."""
        assert self.proximal is not None
        log_prob, minibatch = self.proximal.log_prob(minibatch), minibatch.clone(False)
        importance = bounded_exp(decision_sum(log_prob - minibatch["log_prob"], minibatch["weight"]))
        minibatch["log_prob"], minibatch["advantage"] = log_prob, minibatch["advantage"] * importance
        return minibatch

    def kl_from_old(self, batch: Batch) -> Tensor:
        """Exact KL of the policy that restrains, the proximal one if there is one, to the current one."""
        if self.proximal is None:
            return super().kl_from_old(batch)
        return weighted_mean(self.proximal.kl(batch, self.policy), batch["weight"])
