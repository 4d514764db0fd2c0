"""What policies that turn noise into actions share: their steps, bounds, sampling and greedy acting."""

from __future__ import annotations

from abc import abstractmethod

import torch
from tensordict import TensorDict
from torch import Tensor

from polopt.core.batch import Batch
from polopt.core.spec import Spec
from polopt.networks.encoders import Obs
from polopt.networks.flat import Denoiser
from polopt.policies.base import Field, Imitates, Record, Reparameterized
from polopt.policies.boxes import BoxActor
from polopt.policies.gaussian import draw_normal


class GenerativePolicy(BoxActor, Reparameterized, Imitates, Field):
    """From noise to an action in [-1, 1] in `steps` steps, by a denoiser of observation, noisy action and times.

    There is no density: `rsample` returns None for it. Such a policy has no mode that can be computed either. `greedy`
    says what greedy acting does: "sample" draws an action, as the papers evaluate; "center" starts from noise 0 and
    adds none, which is deterministic, but between the modes of a symmetric policy.
    """

    unit = True
    steps: int
    draws = 1
    """How many times noise [A] enters an action: at the start, and after each of the first `draws` - 1 steps."""
    stds: Tensor  # [K], the standard deviation of what is added after each step; only where `draws` > 1
    net: Denoiser

    def __init__(self, spec: Spec, net: Denoiser, *, steps: int, greedy: str) -> None:
        super().__init__(spec, net)
        self.steps = steps
        self.greedy = greedy

    @abstractmethod
    def next_mean(self, features: Tensor, x: Tensor, step: int | Tensor) -> Tensor:
        """What x [..., A] becomes in a step, before noise is added. `step` is one for all, or int64 [...]."""

    def draw(self, features: Tensor, n: int | None = None) -> Tensor:
        """All the noise of one action, [..., draws, A] or [n, ..., draws, A], drawn at once: row after row, so that a
        batch in pieces draws the same."""
        return draw_normal(features.new_empty(()).expand(*features.shape[:-1], self.draws, self.size), n)

    def generate(self, features: Tensor, noise: Tensor) -> Tensor:
        """The action [..., A], within [-1, 1], that noise [..., draws, A] becomes; the first of it is the start."""
        x = noise[..., 0, :]
        for step in range(self.steps):
            x = self.next_mean(features, x, step)
            if step + 1 < self.draws:
                x = x + self.stds[step] * noise[..., step + 1, :]
        return x.clamp(-1.0, 1.0)

    @torch.no_grad()
    def act(self, obs: Obs, carry: Record | None = None, *, greedy: bool = False) -> tuple[Record, Record]:
        features = self.net.features(obs)
        noise = self.draw(features)
        if greedy and self.greedy == "center":
            noise = torch.zeros_like(noise)
        return {"action": self.generate(features, noise)}, {}

    def rsample(self, obs: Obs, n: int | None = None) -> tuple[Tensor, None]:
        features = self.net.features(obs)
        return self.generate(features, self.draw(features, n)), None

    def noise_for(self, batch: Batch, times: Tensor) -> Batch:
        """Noise like the actions of the batch, beside `times`: keys `noise` [..., A] and `time`."""
        noise = torch.randn_like(batch["action"])
        return TensorDict({"noise": noise, "time": times}, batch_size=batch.batch_size, device=noise.device)
