"""What a dataset offers to offline learning: how good its episodes are, and how much of the world they show.

Schweighofer et al., "A Dataset Perspective on Offline Reinforcement Learning", 2021, arXiv 2111.04714.

    g(D)     = mean undiscounted return of the complete episodes of D
    TQ(D)    = (g(D) - g(random)) / (g(online) - g(random))       trajectory quality: 0 is random, 1 the online policy
    u(D)     = number of distinct pairs (state, action) in D
    SACo(D)  = u(D) / u(reference)                                state-action coverage
    lSACo(D) = log u(D) / log u(reference)

All of it belongs to one training run: `random` are data of uniform actions, `online` is the best policy of the run, the
reference is its replay, everything that it collected. SACo compares sets of one size, and may exceed 1. A continuous
coordinate, of states and of actions, is cut by 100 equally spaced edges from its smallest to its largest value in the
reference, the same for all data; whole numbers are compared as they are. Pairs are counted exactly, in a set.

What follows for learners, according to the paper: Q-learning without a constraint needs a high SACo; methods that stay
near the data need a high TQ or a high SACo; cloning is as good as any where TQ is high. `polopt dataset measure DATA
--reference REPLAY` prints the three numbers, `polopt dataset make TASK --kinds replay random noisy mixed expert` makes
the five kinds of datasets.

Departs from the paper in: no estimate of the count (HyperLogLog, to 1%), as sets that memory holds need none.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tensordict import TensorDictBase
from torch import Tensor

from polopt.core.batch import Batch
from polopt.core.errors import RunError, UsageError
from polopt.data.datasets import Dataset

EDGES = 100  # of a continuous coordinate: 99 bins between them, and one on either side
Recorded = Dataset | Batch


def mean_return(data: Recorded) -> float:
    """g(D), of complete episodes alone: what one would have returned that was cut off, nobody knows.

    Rows [B] in the order of time, with `reward`, `terminated`, `truncated` and, if any, `first`; of a dataset also the
    episodes do not count that it says were `broken` off.

    Raises UsageError where no episode is complete.
    """
    rows = _rows(data)
    ends = rows["terminated"] | rows["truncated"]
    begins = rows["first"].clone() if "first" in rows.keys() else ends.roll(1)
    begins[0] = True
    episode = begins.cumsum(0) - 1
    count = int(episode[-1]) + 1
    returns = torch.zeros(count, dtype=torch.float64).index_add_(0, episode, rows["reward"].double())
    complete = torch.zeros(count, dtype=torch.bool)
    complete[episode[ends]] = True
    if isinstance(data, Dataset) and data.broken is not None:
        complete &= ~data.broken
    if not complete.any():
        raise UsageError("a mean return needs an episode that ended, and there is none in the data")
    return float(returns[complete].mean())


def tq(data: Recorded, *, random: Recorded | float, online: Recorded | float) -> float:
    """TQ of data; the two ends of the scale are data or mean returns.

    Raises RunError where the online policy is no better than random actions, UsageError as `mean_return` does.
    """
    low, high = (float(end) if isinstance(end, int | float) else mean_return(end) for end in (random, online))
    if not high > low:  # or one is not a number
        raise RunError(
            f"the online policy has a return of {high:.6g}, and random actions have {low:.6g}: TQ needs more"
        )
    return (mean_return(data) - low) / (high - low)


def unique_pairs(data: Recorded, reference: Recorded) -> int:
    """u(D): distinct pairs of `obs` [B, ...], nested or not, and `action` [B, ...]; limits are the reference's."""
    return len(_pairs(data, reference))


def saco(data: Recorded, reference: Recorded) -> float:
    """SACo of data. What is recorded twice, or in another order, does not raise it."""
    return unique_pairs(data, reference) / unique_pairs(reference, reference)


def lsaco(data: Recorded, reference: Recorded) -> float:
    """lSACo of data. Raises UsageError where the reference has one pair only, whose logarithm is 0."""
    most = unique_pairs(reference, reference)
    if most == 1:
        raise UsageError("the reference has one pair of state and action: lSACo needs two")
    return math.log(unique_pairs(data, reference)) / math.log(most)


def _rows(data: Recorded) -> Batch:
    rows: Batch = data.data if isinstance(data, Dataset) else data
    if not len(rows):
        raise UsageError("the data are empty: there is nothing to measure")
    return rows


def _pairs(data: Recorded, reference: Recorded) -> NDArray[Any]:
    """The distinct rows, state and action joined, as bytes."""
    mine, its = (dict(_columns(_rows(each).select("obs", "action"))) for each in (data, reference))
    shapes = [{name: part.shape[1:] for name, part in each.items()} for each in (mine, its)]
    if shapes[0] != shapes[1]:
        raise UsageError(f"data with columns {shapes[0]} have no coverage of a reference with {shapes[1]}")
    cells = [_cells(part, its[name]) for name, part in mine.items()]
    joined = np.concatenate([np.ascontiguousarray(part).view(np.uint8).reshape(len(part), -1) for part in cells], 1)
    return np.unique(np.ascontiguousarray(joined).view(np.dtype((np.void, joined.shape[1]))))


def _columns(value: Any, name: str = "") -> Iterator[tuple[str, NDArray[Any]]]:
    """Every leaf by its path, [B, coordinates]."""
    if isinstance(value, Tensor):
        yield name, value.reshape(len(value), -1).cpu().numpy()
    elif isinstance(value, TensorDictBase | Mapping):
        for key in sorted(value.keys()):
            yield from _columns(value[key], f"{name}/{key}")


def _cells(values: NDArray[Any], reference: NDArray[Any]) -> NDArray[Any]:
    """Which cell each of the values [B, C] is in; of whole numbers that is the value itself."""
    if values.dtype.kind != "f":
        return values.astype(np.int64) if values.dtype.itemsize > 1 else values.astype(np.uint8)
    if not (np.isfinite(values).all() and np.isfinite(reference).all()):
        raise UsageError("the data hold numbers that are not finite, which are in no cell")
    cells = np.empty(values.shape, dtype=np.uint8)
    for column, (low, high) in enumerate(zip(reference.min(0), reference.max(0), strict=True)):
        edges = np.linspace(float(low), float(high), EDGES)
        cells[:, column] = np.searchsorted(edges, values[:, column].astype(np.float64), side="right")
    return cells
