"""Inventory networks: what to order where, when customers come as they like and deliveries take time."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor
from torch.nn.functional import pad

from polopt.core.errors import UsageError
from polopt.core.spec import Spec
from polopt.tasks.base import Obs
from polopt.tasks.inventory.supply import Supply, one_store, serial, warehouse
from polopt.tasks.luck import normal, poisson, uniform
from polopt.tasks.options import choice, number, whole
from polopt.tasks.simulated import Simulated, State

DEMAND, START = range(2)
"""What luck is for."""

MOST = 4.0  # times the mean demand behind a link: the largest order, as in the released code


def deliver(order: Tensor, stock: Tensor, supply: Supply, keep: Tensor | None = None) -> Tensor:
    """What is sent on each link [..., K] of what was ordered, none of it negative: all of it, or where a place has less
    than all its links ask for, the same part of each. `stock` [..., V] is what places have, and `keep` [..., V] what
    they ask for themselves."""
    if not supply.inner:
        return order
    asked = leaving(order, stock, supply) if keep is None else leaving(order, stock, supply) + keep
    part = (stock.clamp_min(0.0) / asked.clamp_min(1e-8)).clamp_max(1.0)
    each = order.new_ones(supply.places + 1).expand(*order.shape[:-1], -1).clone()  # the outside is the last one
    each[..., : supply.places] = part
    return order * each[..., list(supply.source)]


def leaving(sent: Tensor, stock: Tensor, supply: Supply) -> Tensor:
    """Of what is sent on each link [..., K], how much leaves each place: shaped like `stock` [..., V]."""
    start = torch.tensor([supply.source[link] for link in supply.inner], dtype=torch.int64, device=sent.device)
    return torch.zeros_like(stock).index_add(-1, start, sent[..., list(supply.inner)])


class Inventory(Simulated):
    """Periods of an inventory network. In each, places see what they have and what is on its way, order from the places
    or the supplier behind them, and then customers come.

    The reward is minus the cost of the period, divided by the number of stores. What the functions of this world
    compute is differentiable in the orders almost everywhere, and no luck depends on them. Alvo et al. 2023, arXiv
    2306.11246, section 2, whose settings are

    - "inventory/store": one store, Poisson demand, customers who find nothing go elsewhere;
    - "inventory/serial": four places in a row, normal demand, customers wait;
    - "inventory/warehouse": a warehouse with `stores` stores, normal demands with correlation 0.5, customers go.

    Observation: for each place what can be used now, in a period, ..., and its last `past` demands: a Box [V (L +
    past)] with L the longest lead time. Action: the order on each link, a Box [K] from 0 to 4 times the mean demand
    behind the link. Orders that a place cannot deliver are cut, all by the same factor.

    Args:
        mean, lead, holding, underage: of the store of "inventory/store".
        stores, instance: of "inventory/warehouse"; what is drawn for its stores is drawn from `instance`.
        past: periods whose demands are seen.
        demands: a file with a NumPy array [scenarios, periods, stores] of recorded demands: the start with number i
            meets those of row i modulo the number of rows. Without it they are drawn.

    Behaviors: "order-up-to", each place up to the quantile of what it and all behind it will sell until an order
    arrives there.
    """

    behaviors = ("order-up-to",)
    differentiable = True
    named: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    def __init__(
        self,
        num: int = 1,
        seed: int = 0,
        evaluation: bool = False,
        name: str = "inventory/store",
        *,
        mean: float = 5.0,
        lead: int = 4,
        holding: float = 1.0,
        underage: float = 9.0,
        stores: int = 10,
        instance: int = 0,
        past: int = 0,
        demands: str | None = None,
        horizon: int = 100,
        device: str = "cpu",
    ) -> None:
        super().__init__(num, seed, evaluation, name, horizon=horizon, device=device)
        choice("the inventory", name, tuple(OPTIONS))
        if min(number("mean", mean), number("holding", holding), number("underage", underage)) <= 0:
            raise UsageError("mean demand, holding and underage costs of an inventory are above 0")
        if name == "inventory/store":
            self.supply = one_store(float(mean), whole("lead", lead, 1), float(holding), float(underage))
        elif name == "inventory/serial":
            self.supply = serial()
        else:
            self.supply = warehouse(whole("stores", stores, 1), whole("instance", instance, 0))
        self.poisson, self.past = name == "inventory/store", whole("past", past, 0)
        supply = self.supply
        self.length = max(supply.lead)
        below = supply.downstream(supply.mean)
        most = np.array([MOST * below[place] for place in supply.target], np.float32)
        low = -np.inf if supply.backlog else 0.0
        seen = spaces.Box(low, np.inf, (supply.places * (self.length + self.past),), np.float32)
        info = {"horizon": horizon, "supply": supply.described(), "slots": self.length}
        self.spec = Spec(seen, spaces.Box(np.zeros_like(most), most), name, info)
        if demands is not None:
            table = read_demands(demands, len(supply.stores))
            if table.shape[1] < horizon:
                raise UsageError(f"{demands} has {table.shape[1]} periods, and an episode {horizon}: set task.horizon")
            self.levels = {"demand": table}

    @classmethod
    def options(cls, name: str) -> set[str]:
        return OPTIONS[name]

    @functools.cached_property
    def arrivals(self) -> Tensor:
        """Where an order on each link is a period later [K, V L]."""
        supply, where = self.supply, torch.zeros(len(self.supply.lead), self.supply.places, self.length)
        for link, (place, lead) in enumerate(zip(supply.target, supply.lead, strict=True)):
            where[link, place, lead - 1] = 1.0
        return where.flatten(1).to(self.device)

    def per_place(self, values: tuple[float, ...]) -> Tensor:
        return torch.tensor(values, dtype=torch.get_default_dtype(), device=self.device)

    def begin(self, draws: State) -> State:
        """Stores have a part of a period's demand now and on the way for each period to come, other places nothing."""
        supply, key = self.supply, draws["key"]
        share = uniform(key, 0, supply.places * self.length, START).unflatten(-1, (supply.places, self.length))
        state = {"stock": share * self.per_place(supply.mean).unsqueeze(-1), "key": key}
        if self.past:
            state["past"] = torch.zeros(len(key), supply.places, self.past, device=self.device)
        if "demand" in draws:
            state["demand"] = draws["demand"].to(share.dtype)
        return state

    def demand(self, state: State, time: Tensor) -> Tensor:
        """What customers ask for in this period [N, V]."""
        supply, stores = self.supply, list(self.supply.stores)
        if "demand" in state:
            rows = torch.arange(len(time), device=time.device)
            asked = state["demand"][rows, time]
        elif self.poisson:
            asked = poisson(state["key"], time, supply.mean[0], DEMAND).unsqueeze(-1).to(torch.get_default_dtype())
        else:
            luck = normal(state["key"], time, len(stores) + 1, DEMAND)
            common = 0.5 if len(stores) > 1 else 0.0
            luck = math.sqrt(common) * luck[:, :1] + math.sqrt(1.0 - common) * luck[:, 1:]
            center, deviation = self.per_place(supply.mean)[stores], self.per_place(supply.deviation)[stores]
            asked = (center + deviation * luck).clamp_min(0.0)
        return asked.new_zeros(len(time), supply.places).index_copy(1, torch.tensor(stores, device=time.device), asked)

    def advance(self, state: State, time: Tensor, action: Tensor) -> tuple[State, Tensor, Tensor, State]:
        supply, stock = self.supply, state["stock"]
        sent = deliver(action.clamp_min(0.0), stock[..., 0], supply)
        demand = self.demand(state, time)
        left = stock[..., 0] - demand
        if supply.inner:
            left = left - leaving(sent, left, supply)
        cost = self.per_place(supply.holding) * left.relu() + self.per_place(supply.underage) * (-left).relu()
        kept = left if supply.backlog else left.relu()
        later = pad(stock[..., 1:], (0, 1)) + pad(kept.unsqueeze(-1), (0, self.length - 1))
        after = {**state, "stock": later + (sent @ self.arrivals.to(sent.dtype)).view_as(stock)}
        if self.past:
            after["past"] = torch.cat([state["past"][..., 1:], demand.unsqueeze(-1)], -1)
        reward = -cost.sum(-1) / len(supply.stores)
        return after, reward, torch.zeros_like(time, dtype=torch.bool), {}

    def observe(self, state: State, time: Tensor) -> Obs:
        stock = state["stock"]
        return (torch.cat([stock, state["past"]], -1) if self.past else stock).flatten(1)

    def behave(self, behavior: str, state: State, time: Tensor) -> Tensor:
        supply = self.supply
        goal = torch.tensor(order_up_to(supply), dtype=torch.get_default_dtype(), device=self.device)
        held = state["stock"].sum(-1)
        position = torch.stack([held[:, list(below)].sum(-1) for below in behind(supply)], -1)
        return (goal - position).clamp_min(0.0)[:, list(supply.target)]


OPTIONS: dict[str, set[str]] = {
    name: {"past", "demands", "horizon", "device", *own}
    for name, own in {
        "inventory/store": ("mean", "lead", "holding", "underage"),
        "inventory/serial": (),
        "inventory/warehouse": ("stores", "instance"),
    }.items()
}


def behind(supply: Supply) -> list[tuple[int, ...]]:
    """Of each place, itself and all places that are delivered from it."""
    found: list[tuple[int, ...]] = [(place,) for place in range(supply.places)]
    for place in reversed(range(supply.places)):
        for start, end in zip(supply.source, supply.target, strict=True):
            if start == place:
                found[place] += found[end]
    return found


def order_up_to(supply: Supply) -> list[float]:
    """Of each place, mean + z deviation of what is sold behind it until an order could be sold there, with z the normal
    quantile of underage / (underage + holding) of the stores there."""
    levels: list[float] = []
    for place, below in enumerate(behind(supply)):
        stores = [each for each in below if each in supply.stores]
        wait = 1 + max(lead for lead, end in zip(supply.lead, supply.target, strict=True) if end == place)
        wait += max((lead for lead, end in zip(supply.lead, supply.target, strict=True) if end in below[1:]), default=0)
        mean = sum(supply.mean[store] for store in stores)
        deviation = math.sqrt(sum(supply.deviation[store] ** 2 for store in stores))
        paid = sum(supply.underage[store] for store in stores)
        share = paid / (paid + sum(supply.holding[store] for store in stores))
        level = mean * wait + math.sqrt(wait) * deviation * float(torch.special.ndtri(torch.tensor(share)))
        levels.append(level)
    return levels


def read_demands(path: str, stores: int) -> Tensor:
    """Recorded demands [scenarios, periods, stores] of a .npy file. Raises UsageError, one sentence."""
    if not Path(path).is_file():
        raise UsageError(f"there is no file {path} with recorded demands")
    try:
        table = np.load(path, allow_pickle=False)
    except (ValueError, OSError) as error:
        raise UsageError(f"{path} is no NumPy array of recorded demands: {error}") from None
    if not isinstance(table, np.ndarray) or table.ndim != 3 or table.shape[2] != stores or not len(table):
        shape = getattr(table, "shape", None)
        raise UsageError(f"{path} must hold an array [scenarios, periods, {stores}] of demands, not {shape}")
    if not np.issubdtype(table.dtype, np.number) or not np.isfinite(table).all() or (table < 0).any():
        raise UsageError(f"the demands in {path} must be finite numbers of at least 0")
    return torch.as_tensor(table)
