"""A diffusion policy: a chain of denoising steps from noise to an action (DDPM, arXiv 2006.11239; DDIM, 2010.02502)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from polopt.core.batch import Batch
from polopt.core.spec import Spec
from polopt.losses.denoising import denoising
from polopt.networks.encoders import Obs
from polopt.policies.base import Record, Scores
from polopt.policies.fields import Cosine, Path, VariancePreserving
from polopt.policies.gaussian import HALF_LOG_TWO_PI, gaussian_log_prob
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
        net: nn.Module,
        *,
        steps: int = 5,
        schedule: str = "vp",
        sampler: str = "ddpm",
        clip: bool = True,
        time_size: int = 16,
        greedy: str = "sample",
    ) -> None:
        super().__init__(spec, net, times=1, time_size=time_size, highest=64.0, greedy=greedy)
        self.path = SCHEDULES[schedule]
        self.steps = steps
        self.stochastic = sampler == "ddpm"
        self.draws = steps if self.stochastic else 1  # the last step adds none
        self.clip = clip
        grid = torch.linspace(1.0, 0.0, steps + 1)
        self.grid: Tensor
        self.stds: Tensor  # [K], of each step of DDPM; that of the last is 0
        self.coefficients: Tensor  # [K, 4], see `step_coefficients`
        self.register_buffer("grid", grid, persistent=False)
        self.register_buffer("stds", self.path.posterior_std(grid[:-1], grid[1:]), persistent=False)
        self.register_buffer("coefficients", self.step_coefficients(grid[:-1], grid[1:]), persistent=False)

    def field(self, obs: Obs, x: Tensor, time: Tensor) -> Tensor:
        x0 = self.path.from_noise(x, self.predicted(self.net.features(obs), x, time), time)
        return x0.clamp(-1.0, 1.0) if self.clip else x0

    def step_coefficients(self, time: Tensor, to: Tensor) -> Tensor:
        """[K, 4]: x0 = c_0 x - c_1 noise, and the mean of the next x is c_2 x0 + c_3 x. All steps are linear."""
        step = self.path.posterior if self.stochastic else self.path.step
        zero, one = torch.zeros_like(time), torch.ones_like(time)
        pairs = (self.path.from_noise(one, zero, time), -self.path.from_noise(zero, one, time))
        return torch.stack([*pairs, step(zero, one, time, to), step(one, zero, time, to)], -1)

    def next_mean(self, features: Tensor, x: Tensor, index: int) -> Tensor:
        """Mean [..., A] of what follows x in step `index` of the chain."""
        signal, noise, of_x0, of_x = self.coefficients[index].unbind()
        x0 = signal * x - noise * self.predicted(features, x, self.grid[index : index + 1])
        return of_x0 * (x0.clamp(-1.0, 1.0) if self.clip else x0) + of_x * x

    def generate(self, features: Tensor, noise: Tensor) -> Tensor:
        x, stds = noise[..., 0, :], self.stds
        for index in range(self.steps):
            x = self.next_mean(features, x, index)
            if index + 1 < self.draws:
                x = x + stds[index] * noise[..., index + 1, :]
        return x.clamp(-1.0, 1.0)

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
        predicted = self.predicted(self.net.features(batch["obs"]), x, noise["time"])
        return denoising(predicted, noise["noise"])


class ScoredDiffusionPolicy(DiffusionPolicy, Scores):
    """A DDPM chain of which every step is scored: each denoising step is a Gaussian decision (DPPO, arXiv 2409.00588).

    When it explores (`act`, not greedy) no step has a standard deviation under `min_std`: without it the last one is
    certain and has no density. `rsample` and greedy actions have no such floor. Records `chain` [N, K + 1, A], from
    the noise to the action before it is clamped, and `log_prob` [N, K], of the steps; the first noise is not a
    decision. `log_prob` reads `obs` and `chain`.
    """

    family = "diffusion policy"

    def __init__(self, spec: Spec, net: nn.Module, *, min_std: float, **options: object) -> None:
        super().__init__(spec, net, **options)  # type: ignore[arg-type]
        self.min_std = min_std

    @torch.no_grad()
    def act(self, obs: Obs, carry: Record | None = None, *, greedy: bool = False) -> tuple[Record, Record]:
        if greedy:
            action = super().act(obs, carry, greedy=True)[0]["action"]
            return {"action": action}, {}
        features = self.net.features(obs)
        chain, scores = [self.draw(features)[..., 0, :]], []
        for index, log_std in enumerate(self.log_stds):
            mean = self.next_mean(features, chain[-1], index)
            chain.append(mean + log_std.exp() * torch.randn_like(mean))
            scores.append(gaussian_log_prob(chain[-1], mean, log_std).sum(-1))
        record = {"action": chain[-1].clamp(-1.0, 1.0), "chain": torch.stack(chain, -2)}
        return {**record, "log_prob": torch.stack(scores, -1)}, {}

    @property
    def log_stds(self) -> Tensor:
        """Log standard deviation [K] of each step when exploring."""
        return self.stds.clamp_min(self.min_std).log()

    def log_prob(self, batch: Batch, noise: Batch | None = None) -> Tensor:
        """Log-density [..., K] of each recorded denoising step, given the one before."""
        features = self.net.features(batch["obs"])
        chain = batch["chain"].unbind(-2)
        scores = [
            gaussian_log_prob(after, self.next_mean(features, before, index), log_std).sum(-1)
            for index, (before, after, log_std) in enumerate(zip(chain, chain[1:], self.log_stds))
        ]
        return torch.stack(scores, -1)

    def entropy(self, batch: Batch) -> Tensor:
        """Entropy [..., K] of each step, a Gaussian: an estimate, because that of the action alone has no closed form.
        It is a constant, without a gradient."""
        return (self.size * (self.log_stds + 0.5 + HALF_LOG_TWO_PI)).expand(*batch.batch_size, self.steps)
