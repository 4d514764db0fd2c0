"""A mixture of Gaussians whose components can be sampled, scored and trained each by itself."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from polopt.core.batch import Batch
from polopt.core.spec import Spec
from polopt.networks.encoders import Obs
from polopt.policies.base import Imitates, Record, Scores
from polopt.policies.boxes import BoxActor
from polopt.policies.categorical import draw
from polopt.policies.gaussian import (
    HALF_LOG_TWO_PI,
    gaussian_log_prob,
    squashed_log_prob,
    tanh_log_slope,
    unsquash,
)


class MixturePolicy(BoxActor, Scores, Imitates):
    """pi(a|s) = sum_i w_i(s) N(a; mu_i(s), sigma_i(s)), or its image under tanh; w is the softmax of the router.

    Acting draws a component by its weight, then from it; greedy acting too draws the component, and takes its mean, as
    the co-author's code of PMOE does. Reads `obs` and `action` [..., A], and `pre_action` if squashed and present;
    records `action`, `log_prob` of the mixture, and `pre_action` if squashed.
    """

    family = "mixture of Gaussians"

    def __init__(
        self,
        spec: Spec,
        net: nn.Module,
        router: nn.Module | None,
        *,
        components: int,
        squash: bool,
        state_dependent: bool,
        log_std_init: float,
        log_std_low: float,
        log_std_high: float,
    ) -> None:
        super().__init__(spec, net)
        self.router = router
        self.components = components
        self.unit = squash
        self.log_std_init = log_std_init
        self.log_std_low = log_std_low
        self.log_std_high = log_std_high
        size = (components, spec.action_dim)
        self.log_std = None if state_dependent else nn.Parameter(torch.full(size, log_std_init))

    def log_weights(self, obs: Obs, like: Tensor) -> Tensor:
        """log w [..., K] at `obs`; with one component 0, shaped like `like` [..., K, A] but for its last dimension."""
        if self.router is None:
            return like.new_zeros(like.shape[:-1])
        return self.router(obs).log_softmax(-1)

    def moments(self, obs: Obs) -> tuple[Tensor, Tensor]:
        """Mean and log standard deviation of every component, each [..., K, A] (before the tanh, if squashed)."""
        outputs = self.net(obs).unflatten(-1, (self.components, -1))
        if self.log_std is not None:
            return outputs, self.log_std.expand_as(outputs).clamp(self.log_std_low, self.log_std_high)
        mean, log_std = outputs.chunk(2, -1)
        return mean, (log_std + self.log_std_init).clamp(self.log_std_low, self.log_std_high)

    def rsample_each(self, obs: Obs) -> tuple[Tensor, Tensor]:
        """One action of every component [..., K, A] and its log-density under that component [..., K]: gradients flow
        to the components, and not to the router."""
        mean, log_std = self.moments(obs)
        return self._sampled(mean, log_std, torch.randn_like(mean))

    def propose(self, obs: Obs) -> tuple[Tensor, Tensor]:
        """An action [..., A] of a component drawn by its weight, and its log-density [...] under that component."""
        mean, log_std = self.moments(obs)
        draws = mean.new_empty(*mean.shape[:-2], mean.shape[-1] + (self.router is not None)).normal_()
        noise = draws[..., : mean.shape[-1]]
        if self.router is None:
            return self._sampled(mean.squeeze(-2), log_std.squeeze(-2), noise)
        below = self.log_weights(obs, mean).exp().cumsum(-1)
        index = (below <= uniform_of(draws[..., -1:])).sum(-1).clamp_max(self.components - 1)
        return self._sampled(picked(mean, index), picked(log_std, index), noise)

    def _sampled(self, mean: Tensor, log_std: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Actions [..., A] of Gaussians, and their log-densities [...]."""
        value = mean + log_std.exp() * noise
        log_prob = -0.5 * noise.square() - log_std - HALF_LOG_TWO_PI
        if self.unit:
            return value.tanh(), (log_prob - tanh_log_slope(value)).sum(-1)
        return value, log_prob.sum(-1)

    def route(self, obs: Obs, like: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        """A straight-through sample of the Gumbel-softmax of the weights, [..., K] one-hot with the gradient of the
        relaxed one, and log w [..., K]."""
        log_weights = self.log_weights(obs, like)
        gumbel = -(-uniform_of(torch.randn_like(log_weights)).log()).log()
        soft = ((log_weights + gumbel) / temperature).softmax(-1)
        hard = functional.one_hot(soft.argmax(-1), self.components).to(soft.dtype)
        return hard + soft - soft.detach(), log_weights

    @torch.no_grad()
    def act(self, obs: Obs, carry: Record | None = None, *, greedy: bool = False) -> tuple[Record, Record]:
        mean, log_std = self.moments(obs)
        log_weights = self.log_weights(obs, mean)
        index = torch.zeros_like(log_weights[..., 0], dtype=torch.int64) if self.router is None else draw(log_weights)
        value = picked(mean, index)
        if not greedy:
            value = torch.addcmul(value, picked(log_std, index).exp(), torch.randn_like(value))
        log_prob = (log_weights + self.components_log_prob(value, mean, log_std)).logsumexp(-1)
        if not self.unit:
            return {"action": value, "log_prob": log_prob}, {}
        return {"action": value.tanh(), "log_prob": log_prob, "pre_action": value}, {}

    def components_log_prob(self, value: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
        """Log-densities [..., K] of `value` [..., A], before the tanh if squashed, under every component."""
        each = value.unsqueeze(-2)
        if self.unit:
            return squashed_log_prob(each, mean, log_std)
        return gaussian_log_prob(each, mean, log_std).sum(-1)

    def score(self, batch: Batch) -> tuple[Tensor, Tensor]:
        mean, log_std = self.moments(batch["obs"])
        log_weights = self.log_weights(batch["obs"], mean)
        value = unsquash(batch["action"], batch.get("pre_action", None)) if self.unit else batch["action"]
        log_prob = (log_weights + self.components_log_prob(value, mean, log_std)).logsumexp(-1)
        if self.unit:
            own = -self._sampled(mean, log_std, torch.randn_like(mean))[1]
        else:
            own = (log_std + (0.5 + HALF_LOG_TWO_PI)).sum(-1)
        return log_prob, (log_weights.exp() * (own - log_weights)).sum(-1)

    def log_prob(self, batch: Batch, noise: Batch | None = None) -> Tensor:
        """Log-density [...] of the mixture."""
        return self.score(batch)[0]

    def entropy(self, batch: Batch) -> Tensor:
        """An upper bound [...] of the mixture's: that of the weights plus the components' on average, which is reached
        where they do not overlap (of squashed ones an estimate from a sample of each)."""
        return self.score(batch)[1]

    def imitation_loss(self, batch: Batch, noise: Batch | None = None) -> Tensor:
        """-log_prob [...] of `batch["action"]`."""
        return -self.log_prob(batch)


def picked(each: Tensor, index: Tensor) -> Tensor:
    """The entries of `each` [..., K, A] at `index` int64 [...]: one component per row."""
    return each.take_along_dim(index[..., None, None], -2).squeeze(-2)


def uniform_of(normal: Tensor) -> Tensor:
    """Uniform numbers inside of (0, 1) from standard normal ones, so that a row's draws are one block of the stream."""
    eps = torch.finfo(normal.dtype).eps
    return torch.special.ndtr(normal).clamp(eps, 1.0 - eps)
