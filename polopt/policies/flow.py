"""Flow policies: noise flows to an action along a learned velocity, or in one step along a learned mean velocity."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor
from torch.func import jvp
from torch.nn.attention import SDPBackend, sdpa_kernel

from polopt.core.batch import Batch
from polopt.core.spec import Spec
from polopt.losses.denoising import flow_matching
from polopt.networks.encoders import Obs
from polopt.networks.flat import Denoiser
from polopt.policies.fields import Linear
from polopt.policies.generative import GenerativePolicy


class FlowPolicy(GenerativePolicy):
    """Rectified flow (arXiv 2209.03003): the network is the velocity noise - action on the straight path between them,
    followed by `steps` steps of Euler's method. Reads `obs` and `action` [..., A]."""

    family = "flow policy"

    def __init__(self, spec: Spec, net: Denoiser, *, steps: int = 5, greedy: str = "sample") -> None:
        super().__init__(spec, net, steps=steps, greedy=greedy)
        self.path = Linear()
        self.grid: Tensor
        self.register_buffer("grid", torch.linspace(1.0, 0.0, steps + 1), persistent=False)

    def velocity(self, features: Tensor, x: Tensor, time: Tensor) -> Tensor:
        return self.net.predict(features, x, time)

    def field(self, obs: Obs, x: Tensor, time: Tensor) -> Tensor:
        return self.path.from_velocity(x, self.velocity(self.net.features(obs), x, time), time)

    def next_mean(self, features: Tensor, x: Tensor, step: int | Tensor) -> Tensor:
        time, to = self.grid[step].unsqueeze(-1), self.grid[step + 1].unsqueeze(-1)
        return x - (time - to) * self.velocity(features, x, time)

    def draw_noise(self, batch: Batch, times: Tensor | None = None) -> Batch:
        """`noise` [..., A] and `time` [..., 1], by default uniform in [0, 1]."""
        if times is None:
            times = torch.rand(*batch.batch_size, 1, device=self.grid.device)
        return self.noise_for(batch, times)

    def imitation_loss(self, batch: Batch, noise: Batch | None = None) -> Tensor:
        """Squared error [...] of the velocity, averaged over the coordinates: flow matching (arXiv 2210.02747)."""
        noise = self.draw_noise(batch) if noise is None else noise
        x = self.path.noised(batch["action"], noise["noise"], noise["time"])
        velocity = self.velocity(self.net.features(batch["obs"]), x, noise["time"])
        return flow_matching(velocity, noise["noise"] - batch["action"])


class MeanFlowPolicy(GenerativePolicy):
    """MeanFlow (arXiv 2505.13447): the network u(x, r, t) is the mean velocity from time t back to r <= t.

    One step is exact for the right u: action = noise - u(noise, 0, 1); with more `steps` the interval is cut into equal
    parts. With v = noise - action the target is u_tgt = v - (t - r) (v . d_x u + d_t u), without gradient, and the
    derivative is one product with the Jacobian. At r = t, drawn with probability `flow_ratio`, u is the velocity.
    Reads `obs` and `action` [..., A].
    """

    family = "mean-velocity flow policy"

    def __init__(
        self,
        spec: Spec,
        net: Denoiser,
        *,
        steps: int = 1,
        flow_ratio: float = 0.5,
        time_mean: float = -0.4,
        time_std: float = 1.0,
        greedy: str = "sample",
    ) -> None:
        super().__init__(spec, net, steps=steps, greedy=greedy)
        self.path = Linear()
        self.flow_ratio = flow_ratio
        self.time_mean = time_mean
        self.time_std = time_std
        self.grid: Tensor
        self.register_buffer("grid", torch.linspace(1.0, 0.0, steps + 1), persistent=False)

    def mean_velocity(self, features: Tensor, x: Tensor, since: Tensor, time: Tensor) -> Tensor:
        """u(x, r = since, t = time) [..., A]."""
        return self.net.predict(features, x, since, time)

    def field(self, obs: Obs, x: Tensor, time: Tensor) -> Tensor:
        """By the velocity, which u is at r = t."""
        velocity = self.mean_velocity(self.net.features(obs), x, time, time)
        return self.path.from_velocity(x, velocity, time)

    def next_mean(self, features: Tensor, x: Tensor, step: int | Tensor) -> Tensor:
        time, to = self.grid[step].unsqueeze(-1), self.grid[step + 1].unsqueeze(-1)
        return x - (time - to) * self.mean_velocity(features, x, to, time)

    def draw_noise(self, batch: Batch, times: Tensor | None = None) -> Batch:
        """`noise` [..., A] and `time` [..., 2], which is (r, t): the lesser and the greater of two logit-normal
        numbers, and r = t with probability `flow_ratio`."""
        if times is None:
            device = self.grid.device
            pair = torch.randn(*batch.batch_size, 2, device=device)
            low, high = (self.time_mean + self.time_std * pair).sigmoid().sort(-1).values.split(1, -1)
            instant = torch.rand(*batch.batch_size, 1, device=device) < self.flow_ratio
            times = torch.cat([torch.where(instant, high, low), high], -1)
        return self.noise_for(batch, times)

    @torch.no_grad()
    def slope(self, features: Tensor, x: Tensor, since: Tensor, time: Tensor, velocity: Tensor) -> Tensor:
        """The total derivative of u along the path, velocity . d_x u + d_t u [..., A], detached: one product with the
        Jacobian, of tangents (velocity, 0, 1)."""

        def mean_velocity(x: Tensor, since: Tensor, time: Tensor) -> Tensor:
            return self.mean_velocity(features, x, since, time)

        tangents = (velocity, torch.zeros_like(since), torch.ones_like(time))
        with sdpa_kernel(SDPBackend.MATH):  # fused attention has no forward mode
            return cast(Tensor, jvp(mean_velocity, (x, since, time), tangents)[1])

    def imitation_loss(self, batch: Batch, noise: Batch | None = None) -> Tensor:
        """|u - u_tgt|^2 [...], averaged over the coordinates of the action."""
        noise = self.draw_noise(batch) if noise is None else noise
        since, time = noise["time"].split(1, -1)
        x = self.path.noised(batch["action"], noise["noise"], time)
        velocity = noise["noise"] - batch["action"]
        features = self.net.features(batch["obs"])
        target = velocity - (time - since) * self.slope(features, x, since, time, velocity)
        return flow_matching(self.mean_velocity(features, x, since, time), target)
