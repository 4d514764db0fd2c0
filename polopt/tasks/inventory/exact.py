"""The least average cost of one store, by value iteration over whole units."""

from __future__ import annotations

import numpy as np
import torch

from polopt.core.errors import UsageError
from polopt.tasks.inventory.supply import Supply
from polopt.tasks.luck import poisson_steps

TOLERANCE = 1e-7


def optimal_cost(supply: Supply, order: int | None = None) -> float:
    """The least cost of a period, over all ways to order up to `order` whole units (4 times the mean demand).

    Relative value iteration over what is there and what comes next. Raises UsageError for more than one place, and for
    lead times above 2, where there are too many states.
    """
    if supply.places != 1 or supply.lead[0] > 2 or supply.backlog:
        raise UsageError("exact costs are those of one store with a lead time of 1 or 2 whose customers go")
    (mean,), (holding,), (underage,), (lead,) = supply.mean, supply.holding, supply.underage, supply.lead
    order = int(4 * mean) if order is None else order
    upto = poisson_steps(mean, torch.float64, "cpu").numpy()
    chance = np.diff(upto, prepend=0.0)
    asked = np.arange(len(chance))
    have = np.arange(3 * order + 1)  # more is never held in an optimum, and is cut
    left = np.maximum(have[:, None] - asked, 0)
    cost = (holding * left + underage * np.maximum(asked - have[:, None], 0)) @ chance
    move = np.zeros((len(have), len(have)))  # probability of what is left
    np.add.at(move, (np.repeat(have, len(asked)), left.ravel()), np.tile(chance, len(have)))
    coming = np.arange(order + 1)
    after = np.minimum(have[:, None] + coming, have[-1])  # left and coming -> there
    value = np.zeros((len(have), order + 1)) if lead == 2 else np.zeros(len(have))
    while True:
        if lead == 2:  # value[have, coming], and an order is what comes then
            later = value[after]  # [left, coming, ordered]
            found = cost[:, None] + np.tensordot(move, later, 1).min(-1)
        else:
            found = cost + (move @ value[after]).min(-1)
        change = found - value
        if np.ptp(change) < TOLERANCE:
            return float(change.mean())
        value = found - found.flat[0]
