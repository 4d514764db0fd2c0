"""What policies that turn noise into actions share: time embeddings, bounds, sampling and greedy acting."""

from __future__ import annotations

from abc import abstractmethod

import torch
from gymnasium import spaces
from tensordict import TensorDict
from torch import Tensor, nn

from polopt.core.batch import Batch
from polopt.core.spec import Spec
from polopt.networks.build import FeedForward, join
from polopt.networks.encoders import Obs
from polopt.policies.base import Field, Imitates, NetworkActor, Record, Reparameterized
from polopt.policies.gaussian import draw_normal, register_bounds, rescale, to_unit


class TimeEmbedding(nn.Module):
    """Time [..., 1] in [0, 1] -> [..., size]: sines and cosines, then two linear layers with Mish between.

    The frequencies rise geometrically from 1 to `highest`. A mean velocity is differentiated with respect to time, so
    its highest frequency must be moderate.
    """

    def __init__(self, size: int = 16, highest: float = 64.0) -> None:
        super().__init__()
        self.frequencies: Tensor
        self.register_buffer("frequencies", torch.logspace(0.0, 1.0, size // 2, base=highest), persistent=False)
        self.layers = nn.Sequential(nn.Linear(2 * (size // 2), 2 * size), nn.Mish(), nn.Linear(2 * size, size))

    def forward(self, time: Tensor) -> Tensor:
        angle = time * self.frequencies
        return self.layers(torch.cat([angle.sin(), angle.cos()], -1))


class GenerativePolicy(NetworkActor, Reparameterized, Imitates, Field):
    """A map from noise to actions in [-1, 1], with a network of the observation, a noisy action and times.

    There is no density: `rsample` returns None for it. Such a policy has no mode that can be computed either. `greedy`
    says what greedy acting does: "sample" draws an action, as the papers evaluate; "center" starts from noise 0 and
    adds none, which is deterministic, but between the modes of a symmetric policy.

    `net(obs, extra)` reads extra = noisy action [..., A], then an embedding [..., time_size] for each of `times` times.
    """

    unit = True
    draws = 1
    """How many times noise [A] enters an action."""
    low: Tensor
    high: Tensor
    net: FeedForward

    def __init__(self, spec: Spec, net: nn.Module, *, times: int, time_size: int, highest: float, greedy: str) -> None:
        super().__init__(spec, net)
        assert isinstance(spec.action, spaces.Box)
        self.shape = spec.action.shape
        self.size = spec.action_dim
        self.greedy = greedy
        self.embeddings = nn.ModuleList(TimeEmbedding(time_size, highest) for _ in range(times))
        register_bounds(self, spec.action)

    def predicted(self, features: Tensor, x: Tensor, *times: Tensor) -> Tensor:
        """What the network says of x [..., A] at these times [..., 1], given encoded observations."""
        embedded = [embed(time).expand(*x.shape[:-1], -1) for embed, time in zip(self.embeddings, times)]
        return self.net.trunk(join(features, torch.cat([x, *embedded], -1)))

    def draw(self, features: Tensor, n: int | None = None) -> Tensor:
        """All the noise of one action, [..., draws, A] or [n, ..., draws, A], drawn at once: row after row, so that a
        batch in pieces draws the same."""
        return draw_normal(features.new_empty(()).expand(*features.shape[:-1], self.draws, self.size), n)

    @abstractmethod
    def generate(self, features: Tensor, noise: Tensor) -> Tensor:
        """The action [..., A], within [-1, 1], that noise [..., draws, A] becomes; the first of it is the start."""

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

    def env_action(self, action: Tensor) -> Tensor:
        return rescale(action, self.low, self.high).reshape(*action.shape[:-1], *self.shape)

    def own_action(self, action: Tensor) -> Tensor:
        return to_unit(action.flatten(-len(self.shape)) if self.shape else action.unsqueeze(-1), self.low, self.high)

    def noise_for(self, batch: Batch, times: Tensor) -> Batch:
        """Noise like the actions of the batch, beside `times`: keys `noise` [..., A] and `time`."""
        noise = torch.randn_like(batch["action"])
        return TensorDict({"noise": noise, "time": times}, batch_size=batch.batch_size, device=noise.device)
