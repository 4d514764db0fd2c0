"""A deterministic policy that says how strong its actions are, in noise that is always as strong."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from polopt.core.spec import Spec
from polopt.networks.encoders import Obs
from polopt.policies.base import Record
from polopt.policies.boxes import BoxActor
from polopt.policies.wrappers import Wrapper


class SwaddledPolicy(BoxActor):
    """tanh(strength direction + noise), in units of [-1, 1] (arXiv 2512.10477).

    Of the outputs x [..., 3A] of a feed-forward `net`, tanh(x / 2) is the direction in (-1, 1), the strength and
    `beta`, which says how a penalty holds the strength, the last two without their signs. The noise is always
    `noise_std` clip(N(0, 1), -noise_clip, noise_clip): a weak action drowns in it, which explores, a strong one stands
    out. Greedy actions have none, and so are within tanh(1) = 0.76. Records `action` [..., A].
    """

    family = "swaddled policy"
    unit = True

    def __init__(self, spec: Spec, net: nn.Module, *, noise_std: float, noise_clip: float) -> None:
        super().__init__(spec, net)
        self.noise_std, self.noise_clip = noise_std, noise_clip

    def heads(self, obs: Obs) -> tuple[Tensor, Tensor, Tensor]:
        """Direction, strength and beta, each [..., A]."""
        direction, strength, beta = (0.5 * self.net(obs)).tanh().chunk(3, -1)
        return direction, strength.abs(), beta.abs()

    def noise(self, like: Tensor) -> Tensor:
        """Noise shaped like the actions `like`."""
        return self.noise_std * torch.randn_like(like).clamp(-self.noise_clip, self.noise_clip)

    @torch.no_grad()
    def act(self, obs: Obs, carry: Record | None = None, *, greedy: bool = False) -> tuple[Record, Record]:
        direction, strength, _ = self.heads(obs)
        pushed = strength * direction
        return {"action": (pushed if greedy else pushed + self.noise(pushed)).tanh()}, {}


class Idling(Wrapper):
    """Acts as the policy does, and behind the first `after` decisions of an episode by its noise alone, so that what
    can fall falls: episodes that a time limit would break off end, and teach what an end is."""

    actor: SwaddledPolicy

    def __init__(self, actor: SwaddledPolicy, after: int) -> None:
        super().__init__(actor)
        self.after = after

    @torch.no_grad()
    def act(self, obs: Obs, carry: Record | None = None, *, greedy: bool = False) -> tuple[Record, Record]:
        record, _ = self.actor.act(obs, greedy=greedy)
        action = record["action"]
        before = carry["decisions"] if carry else torch.zeros(len(action), dtype=torch.int64, device=action.device)
        idle = (before >= self.after).unsqueeze(-1) & (not greedy)
        return {"action": torch.where(idle, self.actor.noise(action).tanh(), action)}, {"decisions": before + 1}
