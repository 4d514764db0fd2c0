"""Supply networks as plain data: who delivers to whom, how long it takes, and what it costs. Imports no torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

OUTSIDE = -1  # the supplier that always delivers


@dataclass(frozen=True)
class Supply:
    """V places, those that deliver before those that are delivered to, and K links between them.

    Attributes:
        source, target: of each link [K]: the place that delivers, or `OUTSIDE`, and the one that orders.
        lead: periods of each link [K]: what is ordered in period t can be used in period t + lead.
        holding: of each place [V], cost of a unit that is left over at the end of a period.
        underage: of each place [V], cost of a unit that was asked for and not there; 0 where nobody buys.
        mean, deviation: of the demand of a period at each place [V]; 0 where nobody buys.
        backlog: whether customers wait; otherwise they go.
    """

    source: tuple[int, ...]
    target: tuple[int, ...]
    lead: tuple[int, ...]
    holding: tuple[float, ...]
    underage: tuple[float, ...]
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    backlog: bool = False

    @property
    def places(self) -> int:
        return len(self.holding)

    @property
    def stores(self) -> tuple[int, ...]:
        """The places where customers buy."""
        return tuple(place for place, cost in enumerate(self.underage) if cost > 0)

    @property
    def suppliers(self) -> tuple[int, ...]:
        """The places that deliver to others."""
        return tuple(sorted({place for place in self.source if place != OUTSIDE}))

    @property
    def inner(self) -> tuple[int, ...]:
        """The links between places."""
        return tuple(link for link, place in enumerate(self.source) if place != OUTSIDE)

    @property
    def depth(self) -> int:
        """Links between places on the longest way of a unit."""
        below = [0] * self.places
        for place in reversed(range(self.places)):
            ways = [below[end] + 1 for start, end in zip(self.source, self.target, strict=True) if start == place]
            below[place] = max(ways, default=0)
        return max(below)

    def downstream(self, values: tuple[float, ...]) -> list[float]:
        """Sums of `values` [V] over each place and all that are delivered from it."""
        total = list(values)
        for place in reversed(range(self.places)):
            links = zip(self.source, self.target, strict=True)
            total[place] += sum(total[end] for start, end in links if start == place)
        return total

    def described(self) -> dict[str, Any]:
        """JSON values that `supply_of` reads."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


def supply_of(described: dict[str, Any]) -> Supply:
    values: dict[str, Any] = {name: tuple(each) if isinstance(each, list) else each for name, each in described.items()}
    return Supply(**values)


def one_store(mean: float, lead: int, holding: float, underage: float) -> Supply:
    """A store that orders from outside and whose customers go, with Poisson demand: the benchmark of Zipkin, "Old and
    new methods for lost-sales inventory systems", 2008."""
    return Supply((OUTSIDE,), (0,), (lead,), (holding,), (underage,), (mean,), (mean**0.5,))


def serial() -> Supply:
    """Four places in a row, of which the last one sells, and customers wait."""
    costs, bought = (0.1, 0.2, 0.5, 1.0), (0.0, 0.0, 0.0)
    links = (OUTSIDE, 0, 1, 2), (0, 1, 2, 3), (2, 4, 3, 4)
    return Supply(*links, costs, (*bought, 9.0), (*bought, 5.0), (*bought, 2.0), backlog=True)


def warehouse(stores: int, instance: int) -> Supply:
    """A warehouse and its stores, each with a demand, costs and a lead time of its own, drawn from `instance`."""
    luck = np.random.default_rng(instance)
    mean = luck.uniform(2.5, 7.5, stores).round(3)
    deviation = (mean * luck.uniform(0.25, 0.5, stores)).round(3)
    holding, underage = luck.uniform(0.7, 1.3, stores), luck.uniform(6.3, 11.7, stores)
    lead = luck.integers(2, 4, stores)
    places = range(1, stores + 1)
    return Supply(
        (OUTSIDE, *(0 for _ in places)),
        (0, *places),
        (3, *lead.tolist()),
        (0.3, *holding.tolist()),
        (0.0, *underage.tolist()),
        (0.0, *mean.tolist()),
        (0.0, *deviation.tolist()),
    )
