"""Luck that is computed and not kept: uniform numbers as functions of a start's key, the time and their use.

The generator is SplitMix64 (Steele et al. 2014), whose n-th number is a function of n. So a world stores no
noise, all rows draw at once on any device, and a row that is taken back meets the same luck.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

MASK = (1 << 64) - 1
QUANTILES: dict[tuple[torch.dtype, torch.device], Tensor] = {}  # a dict: what is compiled looks it up
GOLDEN, FIRST, SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def scrambled(key: int) -> int:
    """64 bits that look unrelated for related keys (the finalizer of SplitMix64, Steele et al. 2014)."""
    key = (key * GOLDEN) & MASK
    key = ((key ^ (key >> 30)) * FIRST) & MASK
    key = ((key ^ (key >> 27)) * SECOND) & MASK
    return key ^ (key >> 31)


def scrambled_keys(keys: Tensor) -> Tensor:
    """The same of each key, int64 of any shape: the 64 bits of `scrambled`, read as a signed number."""
    keys = keys * _signed(GOLDEN)
    keys = (keys ^ _shifted(keys, 30)) * _signed(FIRST)
    keys = (keys ^ _shifted(keys, 27)) * _signed(SECOND)
    return keys ^ _shifted(keys, 31)


def uniform(key: Tensor, time: Tensor | int, count: int, use: int) -> Tensor:
    """Numbers in [0, 1), multiples of 2^-24 in the default dtype, [N, count]: fresh for every key int64 [N], `time`
    (int64 [N], or one number) and `use`. A use always asks for the same `count`."""
    numbers = torch.arange(count, device=key.device) + count * (time if isinstance(time, int) else time.unsqueeze(-1))
    bits = scrambled_keys(key.unsqueeze(-1) + _signed(scrambled(use)) + numbers)
    return _shifted(bits, 40).to(torch.get_default_dtype()) * 2.0**-24


def even(key: Tensor, time: Tensor | int, count: int, use: int) -> Tensor:
    """Numbers in [-1, 1), [N, count], as `uniform` gives them."""
    return 2.0 * uniform(key, time, count, use) - 1.0


def normal(key: Tensor, time: Tensor | int, count: int, use: int) -> Tensor:
    """Standard normal numbers [N, count] as `uniform` gives uniform ones: the 65,536 quantiles in the middle of equal
    shares, so none is beyond 4.2. Taken from a table, to the bit the same whatever other rows there are."""
    kind = torch.get_default_dtype(), key.device
    table = QUANTILES[kind] if kind in QUANTILES else QUANTILES.setdefault(kind, _quantiles(*kind))
    return table[(uniform(key, time, count, use) * len(table)).long()]


def exponential(key: Tensor, time: Tensor | int, count: int, use: int) -> Tensor:
    """Exponential numbers of mean 1 [N, count], as `uniform` gives uniform ones; none is above 17.4."""
    return -uniform(key, time, count, use).clamp_min(2.0**-25).log()


def poisson(key: Tensor, time: Tensor | int, mean: float, use: int) -> Tensor:
    """Poisson numbers int64 [N] of this mean, one for each key int64 [N]."""
    luck = uniform(key, time, 1, use).squeeze(-1)
    return torch.searchsorted(poisson_steps(mean, luck.dtype, str(luck.device)), luck, right=True)


@functools.lru_cache
def poisson_steps(mean: float, dtype: torch.dtype, device: str) -> Tensor:
    """P(number <= 0), P(number <= 1), ...: a uniform number is below the first, second, ... of them."""
    count = math.ceil(mean + 10.0 * math.sqrt(mean) + 10.0)
    number = torch.arange(count, dtype=torch.float64)
    chance = (number * math.log(mean) - mean - torch.lgamma(number + 1.0)).exp()
    return chance.cumsum(0).to(device, dtype)


def _quantiles(dtype: torch.dtype, device: torch.device) -> Tensor:
    middle = (torch.arange(1 << 16, dtype=torch.float64) + 0.5) / (1 << 16)
    return torch.special.ndtri(middle).to(device, dtype)


def _signed(bits: int) -> int:
    return bits - (1 << 64) if bits >> 63 else bits


def _shifted(bits: Tensor, by: int) -> Tensor:
    """To the right, with zeros from the left."""
    return (bits >> by) & ((1 << (64 - by)) - 1)
