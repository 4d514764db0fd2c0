"""Transformers over tokens [..., L, width]: masks, conditions, and one token at a time with a memory.

Blocks normalize first (Xiong et al. 2020, arXiv 2002.04745). Positions of a sequence are rotations of queries and keys
(Su et al. 2021, arXiv 2104.09864): attention sees only how far apart two tokens are, so a memory may slide for ever.
Tokens that are no sequence have no positions here; who makes them tells them apart.

A condition reaches every block by adaptive layer norm (Peebles and Xie 2022, arXiv 2212.09748): it gives the scales and
shifts of the norms, and gates on what a block adds, which begin at zero, so that the whole begins as the identity.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from polopt.core.errors import UsageError

Memory = dict[str, Tensor]
"""`keys` and `values` [N, depth, context, width] of the last tokens of each row, and how many there have been, `count`
[N]. A row of zeros has seen none, as in every carry of an actor."""


class Block(nn.Module):
    """Attention, then a feed-forward layer: tokens [..., L, width] -> the same.

    With `condition` > 0 the norms have no parameters of their own, and `condition` [..., 1 or L, C], for all tokens or
    for each, gives them.
    """

    def __init__(self, width: int, heads: int, condition: int = 0, ratio: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.LayerNorm(width, elementwise_affine=not condition) for _ in range(2))
        self.project = nn.Linear(width, 3 * width)
        self.gather = nn.Linear(width, width)
        self.feed = nn.Sequential(nn.Linear(width, ratio * width), nn.GELU(), nn.Linear(ratio * width, width))
        self.modulation = silent(condition, 6 * width) if condition else None

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        condition: Tensor | None = None,
        angle: Tensor | None = None,
        past: tuple[Tensor, Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The tokens after the block, and the keys and values [..., S, width] that they attended to.

        `mask` bool [..., L, S] is True where a token (row) sees another (column); none: all. `angle` [..., L, width /
        heads / 2] are the positions as angles. With `past` = (keys, values, slot) the one token x [N, 1, width] takes
        the place of the keys and values [N, S, width] where slot bool [N, S, 1] is True, and attends to all of them.
        """
        shift, scale, gate, shift_2, scale_2, gate_2 = self.modulated(condition)
        query, key, value = self.project(adapt(self.norms[0](x), shift, scale)).chunk(3, -1)
        if angle is not None:
            query, key = (self.rotated(part, angle) for part in (query, key))
        if past is not None:
            keys, values, slot = past
            key, value = torch.where(slot, key, keys), torch.where(slot, value, values)
        seen = self.gather(self.attend(query, key, value, mask))
        x = x + (seen if gate is None else gate * seen)
        fed = self.feed(adapt(self.norms[1](x), shift_2, scale_2))
        return x + (fed if gate_2 is None else gate_2 * fed), key, value

    def modulated(self, condition: Tensor | None) -> tuple[Tensor | None, ...]:
        if self.modulation is None:
            return (None,) * 6
        return self.modulation(condition).chunk(6, -1)

    def rotated(self, x: Tensor, angle: Tensor) -> Tensor:
        return rotate(x.unflatten(-1, (self.heads, -1)), angle.unsqueeze(-2)).flatten(-2)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        query, key, value = (x.unflatten(-1, (self.heads, -1)).transpose(-3, -2) for x in (query, key, value))
        mask = None if mask is None else mask.unsqueeze(-3)
        return functional.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(-3, -2).flatten(-2)


class Transformer(nn.Module):
    """`depth` blocks and a last norm: tokens [..., L, width] -> the same, whatever the leading dimensions.

    `forward` is a pass over all tokens. `step` takes the next token of each row, with a memory of the last `context`
    ones, and gives what `forward` gives there with the mask `causal_mask(first, context)`.

    Args:
        width: of a token. depth: blocks. heads: of attention; they share the width.
        condition: size of what conditions every block, 0 for nothing.
        rotary: whether tokens are a sequence, so that attention sees how far apart they are.
        context: how many tokens `step` remembers, the present one included; 0: there is no `step`.
    """

    def __init__(
        self,
        width: int = 64,
        depth: int = 2,
        heads: int = 4,
        *,
        condition: int = 0,
        rotary: bool = False,
        context: int = 0,
    ) -> None:
        super().__init__()
        if width % heads or (rotary and width // heads % 2):
            even = " in even parts" if rotary else ""
            raise UsageError(f"{heads} heads cannot share a width of {width}{even}")
        self.width = width
        self.context = context
        self.blocks = nn.ModuleList(Block(width, heads, condition) for _ in range(depth))
        self.norm = nn.LayerNorm(width, elementwise_affine=not condition)
        self.modulation = silent(condition, 2 * width) if condition else None
        self.frequencies: Tensor | None
        size = width // heads // 2
        frequencies = 10_000.0 ** (-torch.arange(size, dtype=torch.float64) / size) if rotary else None
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(self, x: Tensor, mask: Tensor | None = None, condition: Tensor | None = None) -> Tensor:
        """`mask` bool [..., L, L] is True where a token (row) sees another (column), see `causal_mask` and
        `padding_mask`; none: all see all. `condition` [..., 1 or L, C]."""
        angle = self.angles(torch.arange(x.shape[-2], device=x.device))
        for block in self.blocks:
            x, _, _ = block(x, mask, condition, angle)
        return self.last(x, condition)

    def new_memory(self, rows: int) -> Memory:
        """The memory before the first token."""
        like = next(self.parameters())
        empty = like.new_zeros(rows, len(self.blocks), self.context, self.width)
        return {"keys": empty, "values": empty, "count": torch.zeros(rows, dtype=torch.int64, device=empty.device)}

    def step(self, x: Tensor, memory: Memory, condition: Tensor | None = None) -> tuple[Tensor, Memory]:
        """The next token [N, width] of each row, given what it remembers; `condition` [N, C]."""
        if not self.context:
            raise RuntimeError("a transformer without a context has no memory")
        count = memory["count"].unsqueeze(-1)
        place = torch.arange(self.context, device=x.device)
        slot = (place == count % self.context).unsqueeze(-1)  # the oldest is forgotten
        seen = (place <= count).unsqueeze(-2)
        angle = self.angles(count)
        x, condition = x.unsqueeze(-2), None if condition is None else condition.unsqueeze(-2)
        keys, values = [], []
        for block, key, value in zip(self.blocks, memory["keys"].unbind(1), memory["values"].unbind(1)):
            x, key, value = block(x, seen, condition, angle, (key, value, slot))
            keys.append(key)
            values.append(value)
        memory = {"keys": torch.stack(keys, 1), "values": torch.stack(values, 1), "count": memory["count"] + 1}
        return self.last(x, condition).squeeze(-2), memory

    def angles(self, position: Tensor) -> Tensor | None:
        """position [..., L] -> [..., L, size of a head / 2], in double precision: positions may be large."""
        return None if self.frequencies is None else position.unsqueeze(-1) * self.frequencies

    def last(self, x: Tensor, condition: Tensor | None) -> Tensor:
        shift, scale = (None, None) if self.modulation is None else self.modulation(condition).chunk(2, -1)
        return adapt(self.norm(x), shift, scale)


def silent(inputs: int, outputs: int) -> nn.Sequential:
    """A linear layer behind SiLU that begins by saying nothing: all zeros."""
    layer = nn.Linear(inputs, outputs)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return nn.Sequential(nn.SiLU(), layer)


def adapt(x: Tensor, shift: Tensor | None, scale: Tensor | None) -> Tensor:
    return x if shift is None or scale is None else x * (1.0 + scale) + shift


def rotate(x: Tensor, angle: Tensor) -> Tensor:
    """x [..., size] with its halves as pairs, each turned by its angle [..., size / 2]."""
    one, other = x.chunk(2, -1)
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    return torch.cat([one * cos - other * sin, one * sin + other * cos], -1)


def causal_mask(first: Tensor, context: int | None = None) -> Tensor:
    """[..., T, T] from `first` [..., T], True where an episode begins: a token sees itself and those before it in its
    episode, of them the last `context` - 1."""
    episode = first.long().cumsum(-1)
    place = torch.arange(first.shape[-1], device=first.device)
    back = place.unsqueeze(-1) - place
    near = (back >= 0) & (back < (first.shape[-1] if context is None else context))
    return near & (episode.unsqueeze(-1) == episode.unsqueeze(-2))


def padding_mask(valid: Tensor) -> Tensor:
    """[..., L, L] from `valid` [..., L]: tokens that are padding are seen by nobody but themselves."""
    return valid.unsqueeze(-2) | torch.eye(valid.shape[-1], dtype=torch.bool, device=valid.device)
