"""A flow policy with a Gaussian around its end: given the noise that it starts from, it has a density."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from polopt.core.batch import Batch
from polopt.core.spec import Spec
from polopt.networks.build import FeedForward
from polopt.networks.encoders import Obs
from polopt.networks.flat import Denoiser
from polopt.policies.base import Record, Scores
from polopt.policies.boxes import BoxActor
from polopt.policies.gaussian import HALF_LOG_TWO_PI, gaussian_log_prob


class BlindDenoiser(Denoiser):
    """A network of the observation alone, in the place of one that sees the noisy action and its time too."""

    def __init__(self, net: FeedForward) -> None:
        super().__init__()
        self.normalizer, self.encoder, self.trunk = net.normalizer, net.encoder, net.trunk

    def features(self, obs: Obs) -> Tensor:
        return self.encoder(obs if self.normalizer is None else self.normalizer(obs))

    def predict(self, features: Tensor, x: Tensor, *times: Tensor) -> Tensor:
        return self.trunk(features).expand_as(x)


class PerturbedFlowPolicy(BoxActor, Scores):
    """action = center + std noise (arXiv 2602.01156): `latent` ~ N(0, I) flows to the center, std [A] is learned.

    The network is the `drift`, the velocity towards the action. Times are those of `polopt.policies.fields`, 1 noise
    and 0 action: dx = -drift dt, followed by `steps` steps of the midpoint method. With start "zero" every latent is 0.

    Given the latent the policy is N(center, std): `log_prob` and `entropy` are of that Gaussian, exact, not of the
    mixture of them over latents. Records `action`, `latent` and `center` [N, A] and `log_prob` [N]; `log_prob` reads
    `obs`, `action` and `latent`, and its gradient goes through all steps of the flow. Acting greedily is acting as
    always, or with `greedy` "center" from latent 0 and without noise.
    """

    family = "perturbed flow"
    net: Denoiser

    def __init__(
        self,
        spec: Spec,
        net: Denoiser,
        *,
        steps: int = 10,
        start: str = "normal",
        log_std_init: float = 0.0,
        log_std_low: float = -20.0,
        log_std_high: float = 4.0,
        greedy: str = "sample",
    ) -> None:
        super().__init__(spec, net)
        self.steps = steps
        self.start = start
        self.log_std_low = log_std_low
        self.log_std_high = log_std_high
        self.greedy = greedy
        self.log_std = nn.Parameter(torch.full((self.size,), log_std_init))
        self.grid: Tensor
        self.register_buffer("grid", torch.linspace(1.0, 0.0, 2 * steps + 1), persistent=False)

    @property
    def clamped_log_std(self) -> Tensor:
        """Log standard deviation [A] around the center."""
        return self.log_std.clamp(self.log_std_low, self.log_std_high)

    def drift(self, features: Tensor, x: Tensor, time: Tensor) -> Tensor:
        """Velocity [..., A] towards the action, of x [..., A] at `time` [..., 1]."""
        return self.net.predict(features, x, time)

    def center(self, features: Tensor, latent: Tensor) -> Tensor:
        """Where the flow ends [..., A] that starts at `latent` [..., A]."""
        x, size = latent, 1.0 / self.steps
        times = self.grid.unsqueeze(-1)
        for step in range(self.steps):
            middle = x + 0.5 * size * self.drift(features, x, times[2 * step])
            x = x + size * self.drift(features, middle, times[2 * step + 1])
        return x

    def draw_times(self, batch: Batch) -> Tensor:
        """A time [..., 1] for each decision, one of the 2 `steps` + 1 at the ends and in the middle of steps."""
        return self.grid[torch.randint(len(self.grid), (*batch.batch_size, 1), device=self.grid.device)]

    @torch.no_grad()
    def act(self, obs: Obs, carry: Record | None = None, *, greedy: bool = False) -> tuple[Record, Record]:
        features = self.net.features(obs)
        latent = features.new_zeros(*features.shape[:-1], self.size)
        sure = greedy and self.greedy == "center"
        if self.start == "normal" and not sure:
            latent = torch.randn_like(latent)
        center, log_std = self.center(features, latent), self.clamped_log_std
        residual = torch.zeros_like(center) if sure else log_std.exp() * torch.randn_like(center)
        log_prob = gaussian_log_prob(residual, torch.zeros_like(residual), log_std).sum(-1)
        return {"action": center + residual, "latent": latent, "center": center, "log_prob": log_prob}, {}

    def log_prob(self, batch: Batch, noise: Batch | None = None) -> Tensor:
        center = self.center(self.net.features(batch["obs"]), batch["latent"])
        return gaussian_log_prob(batch["action"], center, self.clamped_log_std).sum(-1)

    def entropy(self, batch: Batch) -> Tensor:
        """Exact, of the Gaussian around a center; the same everywhere."""
        return (self.clamped_log_std + (0.5 + HALF_LOG_TWO_PI)).sum(-1).expand(batch.batch_size)
