"""Diagonal Gaussian policies, plain and squashed by tanh.

The formulas are written out rather than taken from `torch.distributions`: they run thousands of times per second and
compile without graph breaks.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from polopt.core.batch import Batch
from polopt.core.scoring import scored
from polopt.core.spec import Spec
from polopt.networks.encoders import Obs
from polopt.policies.base import Density, Imitates, Record, Reparameterized, same_family
from polopt.policies.boxes import BoxActor

HALF_LOG_TWO_PI = 0.5 * math.log(2.0 * math.pi)
LOG_TWO = math.log(2.0)


def gaussian_log_prob(value: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """log N(value; mean, std) of each coordinate."""
    return -0.5 * ((value - mean) * (-log_std).exp()).square() - log_std - HALF_LOG_TWO_PI


def gaussian_kl(mean: Tensor, log_std: Tensor, other_mean: Tensor, other_log_std: Tensor) -> Tensor:
    """KL(N(mean, std) || N(other_mean, other_std)) of each coordinate."""
    gap = other_log_std - log_std
    return gap + 0.5 * ((-2.0 * gap).exp() + ((mean - other_mean) * (-other_log_std).exp()).square() - 1.0)


def tanh_log_slope(value: Tensor) -> Tensor:
    """log(1 - tanh(u)^2) = 2 (log 2 - u - softplus(-2u)), exact also where tanh rounds to 1."""
    return 2.0 * (LOG_TWO - value - functional.softplus(-2.0 * value))


def safe_atanh(action: Tensor) -> Tensor:
    """atanh, with actions at or beyond +-1 moved inside by eight units of rounding (and no gradient there)."""
    edge = 1.0 - 8.0 * torch.finfo(action.dtype).eps
    return action.clamp(-edge, edge).atanh()


class DiagonalGaussian(BoxActor, Density, Reparameterized, Imitates):
    """What the plain and the squashed policy share: mean and log standard deviation from a network.

    With a state-independent std the network has A outputs and `log_std` [A] is a parameter; otherwise it has 2A, and
    `log_std_init` is added to the second half. Both are clamped to [low, high], with no gradient outside.
    """

    def __init__(
        self,
        spec: Spec,
        net: nn.Module,
        *,
        state_dependent: bool,
        log_std_init: float = 0.0,
        log_std_low: float = -20.0,
        log_std_high: float = 2.0,
    ) -> None:
        super().__init__(spec, net)
        self.log_std_init = log_std_init
        self.log_std_low = log_std_low
        self.log_std_high = log_std_high
        self.log_std = None if state_dependent else nn.Parameter(torch.full((spec.action_dim,), log_std_init))

    def split(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """Network outputs -> mean and log_std, each [..., A]."""
        low, high = self.log_std_low, self.log_std_high
        if self.log_std is not None:
            return outputs, self.log_std.clamp(low, high).expand_as(outputs)
        mean, log_std = torch.split_with_sizes(outputs, (self.size, self.size), -1)
        if self.log_std_init:
            log_std = log_std + self.log_std_init
        return mean, log_std.clamp(low, high)

    def moments(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Mean and log standard deviation, each [..., A], of the Gaussian (of the one before the tanh, if squashed)."""
        return self.split(self.outputs(batch))

    @abstractmethod
    def log_prob_at(self, batch: Batch, mean: Tensor, log_std: Tensor) -> Tensor:
        """`log_prob` given the moments [..., A]."""

    @abstractmethod
    def entropy_at(self, mean: Tensor, log_std: Tensor) -> Tensor:
        """`entropy` given the moments [..., A]."""

    def log_prob(self, batch: Batch, noise: Batch | None = None) -> Tensor:
        return self.log_prob_at(batch, *self.moments(batch))

    def entropy(self, batch: Batch) -> Tensor:
        return self.entropy_at(*self.moments(batch))

    def score(self, batch: Batch) -> tuple[Tensor, Tensor]:
        moments = self.moments(batch)
        return self.log_prob_at(batch, *moments), self.entropy_at(*moments)

    def kl(self, batch: Batch, other: Any) -> Tensor:
        """KL(self || other) [...], exact; a bijection leaves it unchanged, so squashed policies use their Gaussians."""
        same_family(self, other)
        return gaussian_kl(*self.moments(batch), *other.moments(batch)).sum(-1)

    def imitation_loss(self, batch: Batch, noise: Batch | None = None) -> Tensor:
        """-log_prob [...] of `batch["action"]`."""
        return -self.log_prob(batch)


class GaussianPolicy(DiagonalGaussian):
    """N(mean(obs), std), in the units of the environment; reads `obs` and `action` [..., A].

    Actions outside of the bounds are legal and stored as sampled: `env_action` clamps them. Records `action` and
    `log_prob`. With mean="tanh" the mean is tanh(network) and actions are in units of [-1, 1], which `env_action`
    rescales; only the mean is squashed, so actions at the bounds have a finite density.
    """

    family = "Gaussian policy"

    def __init__(self, spec: Spec, net: nn.Module, *, mean: str = "linear", **options: Any) -> None:
        super().__init__(spec, net, **options)
        self.unit = mean == "tanh"
        if self.unit:
            self.family = "Gaussian policy with a tanh mean"

    def split(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_std = super().split(outputs)
        return (mean.tanh() if self.unit else mean), log_std

    @torch.no_grad()
    def act(self, obs: Obs, carry: Record | None = None, *, greedy: bool = False) -> tuple[Record, Record]:
        outputs, record, carry = self.step(obs, carry)
        mean, log_std = self.split(outputs)
        action = mean.clone() if greedy else torch.addcmul(mean, log_std.exp(), torch.randn_like(mean))
        if scored():
            record["log_prob"] = gaussian_log_prob(action, mean, log_std).sum(-1)
        return {"action": action, **record}, carry

    def log_prob_at(self, batch: Batch, mean: Tensor, log_std: Tensor) -> Tensor:
        return gaussian_log_prob(batch["action"], mean, log_std).sum(-1)

    def entropy_at(self, mean: Tensor, log_std: Tensor) -> Tensor:
        """Exact: the sum over coordinates of log std + (1 + log 2 pi) / 2."""
        return (log_std + (0.5 + HALF_LOG_TWO_PI)).sum(-1)

    def rsample(self, obs: Obs, n: int | None = None) -> tuple[Tensor, Tensor]:
        mean, log_std = self.split(self.memoryless(obs))
        draw = draw_normal(mean, n)
        log_prob = (-0.5 * draw.square() - log_std - HALF_LOG_TWO_PI).sum(-1)
        return mean + log_std.exp() * draw, log_prob


class SquashedGaussianPolicy(DiagonalGaussian):
    """tanh(u) with u ~ N(mean(obs), std(obs)): actions, densities and entropies in units of [-1, 1].

    log pi(a) = sum_j log N(u_j) - log(1 - tanh(u_j)^2) (Haarnoja et al. 2018, arXiv 1812.05905, appendix C).
    Reads `obs` and `action` [..., A], and `pre_action` if present: `act` records u under that key, because atanh of a
    stored action loses digits near +-1. Where tanh(pre_action) is the action, the value is exact; for any other action
    u is atanh(action), so a replaced action is never scored by a stale `pre_action`. The gradient goes through
    `pre_action` where that has one (`decide`), elsewhere through the atanh of the action, which is zero at +-1.
    """

    family = "squashed Gaussian policy"
    unit = True

    @torch.no_grad()
    def act(self, obs: Obs, carry: Record | None = None, *, greedy: bool = False) -> tuple[Record, Record]:
        outputs, record, carry = self.step(obs, carry)
        mean, log_std = self.split(outputs)
        value = mean.clone() if greedy else torch.addcmul(mean, log_std.exp(), torch.randn_like(mean))
        if scored():
            record |= {"log_prob": squashed_log_prob(value, mean, log_std), "pre_action": value}
        return {"action": value.tanh(), **record}, carry

    def log_prob_at(self, batch: Batch, mean: Tensor, log_std: Tensor) -> Tensor:
        value = unsquash(batch["action"], batch.get("pre_action", None))
        return squashed_log_prob(value, mean, log_std)

    def entropy_at(self, mean: Tensor, log_std: Tensor) -> Tensor:
        """An unbiased estimate from one reparameterized sample per row: -log pi(a), a ~ pi. It has no closed form."""
        return -squashed_sample(mean, log_std, torch.randn_like(mean))[1]

    def rsample(self, obs: Obs, n: int | None = None) -> tuple[Tensor, Tensor]:
        mean, log_std = self.split(self.memoryless(obs))
        value, log_prob = squashed_sample(mean, log_std, draw_normal(mean, n))
        return value.tanh(), log_prob

    def decide(self, batch: Batch) -> Batch:
        mean, log_std = self.split(self.memoryless(batch["obs"]))
        value, log_prob = squashed_sample(mean, log_std, torch.randn_like(mean))
        own = {"action": value.tanh(), "pre_action": value, "log_prob": log_prob}
        return batch.select("obs").update(own)


def squashed_sample(mean: Tensor, log_std: Tensor, draw: Tensor) -> tuple[Tensor, Tensor]:
    """u = mean + std * draw [..., A] and the log-density [...] of tanh(u), which is

        sum_j 2 (u_j + softplus(-2 u_j)) - log std_j - draw_j^2 / 2 - log(4 sqrt(2 pi)),

    in few operations.
    """
    value = torch.addcmul(mean, log_std.exp(), draw)
    rest = torch.add(log_std, functional.softplus(-2.0 * value), alpha=-2.0)
    rest = torch.addcmul(torch.sub(rest, value, alpha=2.0), draw, draw, value=0.5)
    return value, -(rest.sum(-1) + mean.shape[-1] * (HALF_LOG_TWO_PI + 2.0 * LOG_TWO))


def squashed_log_prob(value: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """Log-density [...] of tanh(value), value [..., A], in units of [-1, 1]."""
    return (gaussian_log_prob(value, mean, log_std) - tanh_log_slope(value)).sum(-1)


def unsquash(action: Tensor, pre_action: Tensor | None) -> Tensor:
    """u with tanh(u) = action: `pre_action` where it belongs to the action, atanh elsewhere.

    The gradient is that of `pre_action` if it has one, and otherwise that of atanh.
    """
    value = safe_atanh(action)
    if pre_action is None:
        return value
    belongs = (pre_action.tanh() - action).abs() <= 16.0 * torch.finfo(action.dtype).eps
    exact = pre_action if pre_action.requires_grad else pre_action + (value - value.detach())
    return torch.where(belongs, exact, value)


def draw_normal(like: Tensor, n: int | None) -> Tensor:
    """Standard normal numbers shaped like `like`, or [n, *like.shape]."""
    return torch.randn_like(like if n is None else like.expand(n, *like.shape))
