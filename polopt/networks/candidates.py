"""A number for each of several candidates that are seen as rows, whatever their order and however many there are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import gymnasium
import torch
from gymnasium import spaces
from torch import Tensor, nn

from polopt.core.errors import UsageError
from polopt.networks.encoders import Obs, make_encoder, observed
from polopt.networks.layers import ACTIVATIONS, MLP, EnsembleLinear
from polopt.networks.normalizer import Normalizer


class CandidateNetwork(nn.Module):
    """Observations with rows x_k [..., K, F] of K candidates, and what is common to all, c [..., C], to [..., K].

        h_k = encoder(x_k),   output_k = head(W h_k + W' (mean_j h_j, max_j h_j, c) + b)

    with a multilayer perceptron for each, whose first layer of the head is split in two, so that what all candidates
    have in common is computed once. So the outputs change places as the rows do. A row of zeros is a candidate that is
    absent: the others do not see it, its own output means nothing, and there may be more or fewer of them than when the
    network was made. With `members=E` there are E encoders and heads, and outputs [E, ..., K].
    """

    recurrent = False

    def __init__(
        self,
        space: gymnasium.Space,
        outputs: int,
        sizes: Sequence[int],
        head: Sequence[int],
        *,
        activation: str,
        head_gain: float = 1.0,
        members: int | None = None,
        normalizer: Normalizer | None = None,
    ) -> None:
        super().__init__()
        self.members, self.normalizer = members, normalizer
        self.key, features, rest = rows_in(space, outputs)
        self.common = make_encoder(rest) if rest is not None else None
        common = self.common.size if self.common is not None else 0
        count, size, first = members or 1, sizes[-1], head[0]
        self.encoder = MLP(features, size, sizes[:-1], activation=activation, members=count)
        self.own = EnsembleLinear(count, size, first)
        self.whole = EnsembleLinear(count, 2 * size + common, first)
        self.head = MLP(first, 1, head[1:], activation=activation, head_gain=head_gain, members=count)
        self.activation = ACTIVATIONS[activation]()

    def forward(self, obs: Obs) -> Tensor:
        raw = obs if self.key is None else obs[self.key]
        obs = obs if self.normalizer is None else self.normalizer(obs)
        rows = obs if self.key is None else obs[self.key]
        lead, (count, features) = rows.shape[:-2], rows.shape[-2:]
        rows = rows.reshape(-1, features)
        each = self.activation(self.encoder(rows))  # [E, B K, H]
        there = (raw != 0).any(-1).reshape(-1, count, 1)
        by_row = each.unflatten(1, (-1, count))
        seen = there.sum(-2)
        mean = (by_row * there).sum(-2) / seen.clamp_min(1)
        most = torch.where(seen > 0, torch.where(there, by_row, -math.inf).amax(-2), 0.0)
        parts = [mean, most]
        if self.common is not None:
            parts.append(self.common(obs).reshape(1, -1, self.common.size).expand(len(each), -1, -1))
        hidden = self.own(each).unflatten(1, (-1, count)) + self.whole(torch.cat(parts, -1)).unsqueeze(-2)
        outputs = self.head.layers(self.activation(hidden).flatten(1, 2)).view(len(each), *lead, count)
        return outputs if self.members is not None else outputs.squeeze(0)


def rows_in(space: gymnasium.Space, count: int) -> tuple[str | None, int, spaces.Dict | None]:
    """Where the rows of `count` candidates are: the entry of a Dict (None: the observation itself), the features of
    each, and the space of what else is seen. Raises UsageError unless there are such rows, in one place."""
    parts: dict[Any, gymnasium.Space] = dict(observed(space)) if isinstance(space, spaces.Dict) else {None: space}
    boxes = {key: part.shape for key, part in parts.items() if isinstance(part, spaces.Box)}
    found = {key: shape[-1] for key, shape in boxes.items() if shape[:-1] == (count,)}
    if len(found) != 1:
        said = "several boxes of them" if found else "none"
        raise UsageError(
            f"a network of candidates needs a Box with a row for each of the {count} actions, and {space} has {said}: "
            "take --network network"
        )
    ((key, features),) = found.items()
    rest = {name: part for name, part in parts.items() if name != key}
    return key, features, spaces.Dict(rest) if rest else None
