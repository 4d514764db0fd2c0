"""Networks in which each group of rows has layers of its own: hard routing by an entry of the observation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import gymnasium
import torch
from gymnasium import spaces
from torch import Tensor, nn

from polopt.core.errors import UsageError
from polopt.networks.encoders import Obs, make_encoder
from polopt.networks.layers import MLP, Chain, initialize

if TYPE_CHECKING:
    from polopt.networks import Network


class Hidden(MLP):
    """An `MLP` without its head: [..., inputs] -> [..., sizes[-1]], with members [E, ..., sizes[-1]]."""

    def __init__(self, inputs: int, sizes: Sequence[int], config: Network, members: int | None = None) -> None:
        nn.Module.__init__(self)
        self.members, self.outputs = members, sizes[-1]
        self.layers = Chain(
            *self.hidden(inputs, sizes, config.activation, config.normalization, config.init, config.dropout)
        )


class Routed(nn.Module):
    """Observations [...] -> [..., outputs], by layers that all rows share and layers of the row's own group:

        h = shared(obs),   z = [h, own_g(h)],   outputs = head(z)

    Each group's layers see the rows of that group only, and have gradients of these only.

    Args:
        config: of the shared layers; the groups' have its activation, normalization and so on.
        sizes: widths of a group's layers.
        group: the entry of a Dict observation, Discrete, that names the group; "": all rows are one group.

    Raises UsageError where the observation has no such entry, and for networks that are not of plain layers.
    """

    recurrent = False
    normalizer = None

    def __init__(
        self,
        config: Network,
        space: gymnasium.Space,
        outputs: int,
        *,
        sizes: Sequence[int],
        group: str = "",
        head_gain: float = 1.0,
    ) -> None:
        super().__init__()
        if config.recurrent != "none" or config.blocks != "plain" or config.make is not None:
            raise UsageError("a network with layers for each group is plain: without recurrent, blocks and make")
        self.group = group
        self.groups, self.start = groups_of(space, group)
        self.encoder = make_encoder(space, config.encoder, config.init)
        self.shared = Hidden(self.encoder.size, config.sizes, config)
        self.own = Hidden(config.sizes[-1], sizes, config, members=self.groups)
        self.head = nn.Linear(config.sizes[-1] + sizes[-1], outputs)
        initialize(self.head, config.init, head_gain)

    def forward(self, obs: Obs) -> Tensor:
        shared = self.shared(self.encoder(obs))
        own = self.own(shared)  # of all groups, [groups, ..., size]
        place = obs[self.group] - self.start if self.group else shared.new_zeros(shared.shape[:-1], dtype=torch.int64)
        own = own.gather(0, place[None, ..., None].expand(1, *own.shape[1:])).squeeze(0)
        return self.head(torch.cat([shared, own], -1))


def groups_of(space: gymnasium.Space, group: str) -> tuple[int, int]:
    """How many groups an entry of the observation names, and the number of the first. Raises UsageError."""
    if not group:
        return 1, 0
    entry = space.spaces.get(group) if isinstance(space, spaces.Dict) else None
    if not isinstance(entry, spaces.Discrete):
        raise UsageError(
            f"rows are told apart by the entry '{group}' of the observation, a Discrete space, which {space} lacks"
        )
    return int(entry.n), int(entry.start)
