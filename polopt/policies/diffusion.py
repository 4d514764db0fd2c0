"""A diffusion policy: a chain of denoising steps from noise to an action (DDPM, arXiv 2006.11239; DDIM, 2010.02502)."""

from __future__ import annotations

import torch
from torch import Tensor

from polopt.core.batch import Batch
from polopt.core.spec import Spec
from polopt.losses.denoising import denoising
from polopt.networks.encoders import Obs
from polopt.networks.flat import Denoiser
from polopt.policies.chains import ScoredChain
from polopt.policies.fields import Cosine, Path, VariancePreserving
from polopt.policies.generative import GenerativePolicy

SCHEDULES: dict[str, Path] = {
    "vp": VariancePreserving(0.1, 10.0),
    "linear": VariancePreserving(0.1, 20.0),
    "cosine": Cosine(),
}


class DiffusionPolicy(GenerativePolicy):
    """`steps` denoising steps from noise at time 1 to an action at time 0; the network predicts the noise.

    Every step denoises x to x0, clips it to [-1, 1] if `clip`, and moves to the next time: with sampler "ddpm" by the
    posterior, with "ddim" without noise. Reads `obs` and `action` [..., A]; the actions of its samples are clamped.
    """

    family = "diffusion policy whose last step has no noise"

    def __init__(
        self,
        spec: Spec,
        net: Denoiser,
        *,
        steps: int = 5,
        schedule: str = "vp",
        sampler: str = "ddpm",
        clip: bool = True,
        greedy: str = "sample",
    ) -> None:
        super().__init__(spec, net, steps=steps, greedy=greedy)
        self.path = SCHEDULES[schedule]
        self.stochastic = sampler == "ddpm"
        self.draws = steps if self.stochastic else 1  # the last step adds none
        self.clip = clip
        grid = torch.linspace(1.0, 0.0, steps + 1)
        self.grid: Tensor
        self.coefficients: Tensor  # [K, 4], see `step_coefficients`
        self.register_buffer("grid", grid, persistent=False)
        self.register_buffer("stds", self.path.posterior_std(grid[:-1], grid[1:]), persistent=False)
        self.register_buffer("coefficients", self.step_coefficients(grid[:-1], grid[1:]), persistent=False)

    def field(self, obs: Obs, x: Tensor, time: Tensor) -> Tensor:
        x0 = self.path.from_noise(x, self.net.predict(self.net.features(obs), x, time), time)
        return x0.clamp(-1.0, 1.0) if self.clip else x0

    def step_coefficients(self, time: Tensor, to: Tensor) -> Tensor:
        """[K, 4]: x0 = c_0 x - c_1 noise, and the mean of the next x is c_2 x0 + c_3 x. All steps are linear."""
        step = self.path.posterior if self.stochastic else self.path.step
        zero, one = torch.zeros_like(time), torch.ones_like(time)
        pairs = (self.path.from_noise(one, zero, time), -self.path.from_noise(zero, one, time))
        return torch.stack([*pairs, step(zero, one, time, to), step(one, zero, time, to)], -1)

    def next_mean(self, features: Tensor, x: Tensor, step: int | Tensor) -> Tensor:
        signal, noise, of_x0, of_x = self.coefficients[step].unsqueeze(-2).unbind(-1)
        x0 = signal * x - noise * self.net.predict(features, x, self.grid[step].unsqueeze(-1))
        return of_x0 * (x0.clamp(-1.0, 1.0) if self.clip else x0) + of_x * x

    def draw_noise(self, batch: Batch, times: Tensor | None = None) -> Batch:
        """`noise` [..., A] and `time` [..., 1]; by default one of the chain's times, each as often."""
        if times is None:
            index = torch.randint(self.steps, (*batch.batch_size, 1), device=self.grid.device)
            times = self.grid[index]
        return self.noise_for(batch, times)

    def imitation_loss(self, batch: Batch, noise: Batch | None = None) -> Tensor:
        """Squared error [...] of the predicted noise, averaged over the coordinates of the action (DDPM, eq. 14)."""
        noise = self.draw_noise(batch) if noise is None else noise
        x = self.path.noised(batch["action"], noise["noise"], noise["time"])
        predicted = self.net.predict(self.net.features(batch["obs"]), x, noise["time"])
        return denoising(predicted, noise["noise"])


class ScoredDiffusionPolicy(ScoredChain, DiffusionPolicy):
    """A DDPM chain of which every step is scored."""

    family = "diffusion policy"

    def __init__(
        self, spec: Spec, net: Denoiser, *, min_std: float, max_std: float | None = None, **options: object
    ) -> None:
        super().__init__(spec, net, **options)  # type: ignore[arg-type]
        self.min_std = min_std
        self.max_std = max_std
