"""A Gaussian over latents, and a flow that makes actions of them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from polopt.core.batch import Batch
from polopt.core.spec import Spec
from polopt.networks.encoders import Obs
from polopt.optim.copies import duplicate
from polopt.policies.base import Record, Scores
from polopt.policies.boxes import BoxActor
from polopt.policies.flow import FlowPolicy
from polopt.policies.gaussian import HALF_LOG_TWO_PI, gaussian_log_prob
from polopt.policies.wrappers import Wrapper


class DecodedPolicy(BoxActor, Scores):
    """tanh(decode(latent; obs)) with latent ~ N(mean(obs), std(obs)), in units of [-1, 1] (arXiv 2512.02581).

    What is scored is the latent: `log_prob` and `entropy` are those of its Gaussian, exact, and no gradient reaches the
    decoder. Records `action`, `latent` and `pre_action`, the action before the tanh, [N, A], and `log_prob` [N];
    `log_prob` reads `obs` and `latent`. Greedy acting decodes the mean.

    `decoder` is a copy of what `set_decoder` was given, frozen; without one a latent is the action before the tanh.
    """

    family = "decoded policy"
    unit = True
    decoder: FlowPolicy | None

    def __init__(
        self, spec: Spec, net: nn.Module, *, log_std_init: float, log_std_low: float, log_std_high: float
    ) -> None:
        super().__init__(spec, net)
        self.log_std_init = log_std_init
        self.log_std_low = log_std_low
        self.log_std_high = log_std_high
        self.decoder = None

    def set_decoder(self, decoder: FlowPolicy) -> None:
        self.decoder = duplicate(decoder).requires_grad_(False)

    def moments(self, obs: Obs) -> tuple[Tensor, Tensor]:
        """Mean and log standard deviation, each [..., A], of the latent."""
        mean, log_std = self.net(obs).chunk(2, -1)
        return mean, (log_std + self.log_std_init).clamp(self.log_std_low, self.log_std_high)

    def decode(self, obs: Obs, latent: Tensor) -> Tensor:
        """The action before the tanh [..., A] that a latent [..., A] becomes: the flow from there, nowhere clamped."""
        if self.decoder is None:
            return latent
        features, x = self.decoder.net.features(obs), latent
        for step in range(self.decoder.steps):
            x = self.decoder.next_mean(features, x, step)
        return x

    @torch.no_grad()
    def act(self, obs: Obs, carry: Record | None = None, *, greedy: bool = False) -> tuple[Record, Record]:
        mean, log_std = self.moments(obs)
        latent = mean.clone() if greedy else torch.addcmul(mean, log_std.exp(), torch.randn_like(mean))
        decoded = self.decode(obs, latent)
        log_prob = gaussian_log_prob(latent, mean, log_std).sum(-1)
        return {"action": decoded.tanh(), "latent": latent, "pre_action": decoded, "log_prob": log_prob}, {}

    def log_prob(self, batch: Batch, noise: Batch | None = None) -> Tensor:
        return gaussian_log_prob(batch["latent"], *self.moments(batch["obs"])).sum(-1)

    def entropy(self, batch: Batch) -> Tensor:
        return (self.moments(batch["obs"])[1] + (0.5 + HALF_LOG_TWO_PI)).sum(-1)

    def score(self, batch: Batch) -> tuple[Tensor, Tensor]:
        mean, log_std = self.moments(batch["obs"])
        log_prob = gaussian_log_prob(batch["latent"], mean, log_std).sum(-1)
        return log_prob, (log_std + (0.5 + HALF_LOG_TWO_PI)).sum(-1)


class FromPrior(Wrapper):
    """Decodes standard normal latents in place of the policy's own: what the decoder alone has learned."""

    actor: DecodedPolicy

    @torch.no_grad()
    def act(self, obs: Obs, carry: Record | None = None, *, greedy: bool = False) -> tuple[Record, Record]:
        latent = torch.randn_like(self.actor.moments(obs)[0])
        decoded = self.actor.decode(obs, latent)
        return {"action": decoded.tanh(), "latent": latent, "pre_action": decoded}, {}
