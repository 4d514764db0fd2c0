"""Where points and their goals are at the start of an episode."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from polopt.core.errors import UsageError
from polopt.tasks.luck import normal, uniform
from polopt.tasks.point import walls as solid
from polopt.tasks.point.layout import Use, box_of, place_of, places_of
from polopt.tasks.point.zones import Zones

TRIES = 32

Box = tuple[Tensor, Tensor]


class Starts:
    """Starts in a box, at one place, or standard normal (`box` None), outside of walls and zones.

    Raises UsageError for an option that says none of these, or a start in a wall.
    """

    def __init__(self, start: Any, dims: int, bounds: Box | None, walls: Box, zones: Zones) -> None:
        self.dims, self.walls, self.zones = dims, walls, zones
        like = zones.middle.new_tensor
        self.box: Box | None = None
        if start is None:
            self.box = bounds or (like([0.0] * dims), like([0.0] * dims))
        elif start != "normal":
            places = [place_of("start", start, dims)] if isinstance(start, (int, float)) else None
            places = places or [*places_of("start", start, dims)]
            if not 1 <= len(places) <= 2:
                raise UsageError(f"start is a place, two corners of a box, 'normal' or None, not {start!r}")
            low, high = box_of("the box of starts", places[0], places[-1], dims)
            self.box = like(low), like(high)
            if bounds is not None and ((self.box[0] < bounds[0]) | (self.box[1] > bounds[1])).any():
                raise UsageError(f"starts from {list(low)} to {list(high)} are not all within low and high")
        self.fixed = self.box is not None and torch.equal(*self.box)
        if self.box is not None and self.fixed and solid.inside(self.box[0], *walls):
            raise UsageError(f"the start {self.box[0].tolist()} is in a wall")

    def draw(self, key: Tensor) -> Tensor:
        """The starts [n, D] of these keys: the first free one of some draws, or the last of them."""
        if self.box is None:
            return normal(key, 0, self.dims, Use.START)
        low, high = self.box
        if self.fixed:
            return low.expand(len(key), -1)
        if not len(self.zones) and not len(self.walls[0]):
            return low + uniform(key, 0, self.dims, Use.START) * (high - low)
        places = low + uniform(key, 0, TRIES * self.dims, Use.START).view(-1, TRIES, self.dims) * (high - low)
        free = ~(solid.inside(places, *self.walls) | self.zones.within(places)[0].any(-1))
        free[:, -1] = True
        return places[torch.arange(len(key), device=key.device), free.long().argmax(1)]


class Goals:
    """M fixed goals `places` [M, D], of which one may be drawn at each start, or goals that are drawn anywhere.

    Raises UsageError, one sentence.

    Attributes:
        count: how many count at once. drawn: whether a start draws its own.
    """

    def __init__(self, goals: Any, one: bool, dims: int, bounds: Box | None, like: Tensor) -> None:
        self.dims, self.bounds = dims, bounds
        self.where = goals if isinstance(goals, str) and goals in ("uniform", "normal") else ""
        if self.where == "uniform" and bounds is None:
            raise UsageError("goals cannot be uniform without bounds: give low and high")
        if self.where and one:
            raise UsageError(f"goals that are {self.where} are one each: leave out one")
        if isinstance(goals, (int, float)):
            goals = [place_of("goals", goals, dims)]
        self.places = like.new_tensor([] if self.where else places_of("goals", goals, dims)).view(-1, dims)
        if one and not len(self.places):
            raise UsageError("one goal is to be drawn, and there are none")
        self.drawn = one or bool(self.where)
        self.count = 1 if self.drawn else len(self.places)

    def draw(self, key: Tensor) -> Tensor:
        """The goals [n, D] of these keys."""
        if self.where == "normal":
            return normal(key, 0, self.dims, Use.GOAL)
        luck = uniform(key, 0, self.dims, Use.GOAL)
        if not self.where:
            return self.places[(luck[:, 0] * len(self.places)).long()]
        assert self.bounds is not None
        return self.bounds[0] + luck * (self.bounds[1] - self.bounds[0])
