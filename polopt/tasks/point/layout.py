"""What a world of points is made of: zones, walls, and scripts for its behaviors. Imports no torch."""

from __future__ import annotations

import enum
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from polopt.core.errors import UsageError, nearest
from polopt.tasks.options import choice, flag, number, share, whole

Place = tuple[float, ...]
AIMS = ("nearest", "any", "random")


class Use(enum.IntEnum):
    """What luck is for, at one time of one start."""

    START = 0
    GOAL = 1
    NOISE = 2
    CHANCE = 3
    REWARD = 4
    STRAY = 5
    STRAYED = 6
    JITTER = 7
    WAY = 8
    AIM = 9
    DRIFT = 10


@dataclass(frozen=True)
class Zone:
    """A ball or a box, and what happens to a point in it.

    center, radius: of a ball. low, high: corners of a box.
    chance: probability that it strikes, at each step in it. With `fade` it falls from the middle to the edge:
        chance * exp(-fade d^2 / radius^2) at the distance d (in a box, radius is half its width along each axis).
    reward, cost, ends: what a strike gives, what it costs (the fact "cost"), and whether it ends the episode.
    """

    center: Any = None
    radius: float | None = None
    low: Any = None
    high: Any = None
    chance: float = 1.0
    fade: float = 0.0
    reward: float = 0.0
    cost: float = 0.0
    ends: bool = False


@dataclass(frozen=True)
class Script:
    """How a scripted behavior goes, and what is wrong with it.

    to: "nearest" or "any" goal (one that the luck of the start names), or "random": a way that is drawn anew every
        `hold` steps, 0 for never. route: places to go along in place of that, in a straight line from one to the next,
        from whichever leg is nearest.
    pace: share of the full speed.
    miss: what is added to the place that it goes to: a number for all coordinates, or one for each. drift: standard
        deviation of what is added too, drawn once for each start.
    jitter: standard deviation of normal noise on each action. stray: probability that a step is a random one.
    """

    to: str = "nearest"
    route: Any = ()
    hold: int = 1
    pace: float = 1.0
    miss: Any = 0.0
    drift: float = 0.0
    jitter: float = 0.0
    stray: float = 0.0


SCRIPTS: dict[str, Script] = {
    "expert": Script(),
    "noisy": Script(jitter=0.5),
    "any": Script(to="any"),
    "walk": Script(to="random", hold=5),
    "random": Script(to="random"),
}

Part = TypeVar("Part", Zone, Script)


def place_of(name: str, value: Any, dims: int) -> Place:
    """A place from one number for all coordinates, a list, or a text "0.5,1". Raises UsageError."""
    if isinstance(value, str):
        value = [_float(name, part) for part in value.split(",")]
        value = value * dims if len(value) == 1 else value
    if isinstance(value, (int, float)):
        value = [value] * dims
    if not isinstance(value, Sequence) or len(value) != dims:
        raise UsageError(f"{name} is a place of {dims} numbers, not {value!r}")
    return tuple(number(name, part) for part in value)


def places_of(name: str, value: Any, dims: int) -> tuple[Place, ...]:
    """Places from a list of them, one place, or a text "0,1/1,0". Raises UsageError."""
    if isinstance(value, str):
        value = value.split("/")
    if not isinstance(value, Sequence):
        raise UsageError(f"{name} are places of {dims} numbers each, not {value!r}")
    if value and all(isinstance(part, (int, float)) for part in value):
        value = [value]
    return tuple(place_of(name, part, dims) for part in value)


def _float(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UsageError(f"{name} is made of numbers, not of '{text}'") from None


def positive(name: str, value: Any) -> float:
    """`value` as a float of at least 0. Raises UsageError."""
    if number(name, value) < 0:
        raise UsageError(f"{name} must be at least 0, not {value!r}")
    return float(value)


def bounds_of(low: Any, high: Any, dims: int) -> tuple[Place, Place] | None:
    """The corners of the box that points stay in, None for none. Raises UsageError."""
    if (low is None) != (high is None):
        raise UsageError("low and high are the corners of the box that points stay in: give both, or None for both")
    if low is None:
        return None
    return box_of("the box of low and high", low, high, dims, flat=False)


def box_of(name: str, low: Any, high: Any, dims: int, flat: bool = True) -> tuple[Place, Place]:
    """The corners of a box, which may be `flat`. Raises UsageError."""
    first, last = place_of(f"low of {name}", low, dims), place_of(f"high of {name}", high, dims)
    if any(a > b or (a == b and not flat) for a, b in zip(first, last)):
        raise UsageError(f"{name} is upside down: from {list(first)} to {list(last)}")
    return first, last


def walls_of(walls: Any, dims: int) -> tuple[tuple[Place, Place], ...]:
    """Boxes (low, high) from a list of them, or of a map: lines of letters from top to bottom, # for a wall, whose
    cell in column c, and in line r from below, is the box from (c, r) to (c + 1, r + 1). Raises UsageError."""
    if isinstance(walls, str):
        walls = [line for line in walls.replace("/", "\n").split("\n") if line]
    if not isinstance(walls, Sequence):
        raise UsageError(f"walls are pairs of corners, or a map of lines, not {walls!r}")
    if walls and all(isinstance(line, str) for line in walls):
        if dims != 2:
            raise UsageError(f"a map is of 2 dimensions, not of {dims}: give the corners of walls")
        return tuple(_runs(walls))
    if any(isinstance(wall, (str, int, float)) or len(wall) != 2 for wall in walls):
        raise UsageError(f"a wall is a pair of corners (low, high), in {walls!r}")
    return tuple(box_of("a wall", low, high, dims) for low, high in walls)


def _runs(lines: Sequence[str]) -> list[tuple[Place, Place]]:
    """A box for each run of # in a line."""
    found: list[tuple[Place, Place]] = []
    for row, line in enumerate(reversed(lines)):
        if strange := set(line) - {"#", "."}:
            raise UsageError(f"a map of walls has # and . only, not '{min(strange)}'")
        for run in re.finditer("#+", line):
            found.append(((float(run.start()), float(row)), (float(run.end()), float(row + 1))))
    return found


def parts_of(name: str, kind: type[Part], values: Any) -> Part:
    """A `Zone` or `Script` from itself or a table of its fields. Raises UsageError."""
    if isinstance(values, Mapping):
        known = [field.name for field in fields(kind)]
        for key in values:
            if key not in known:
                raise UsageError(f"{name} has no '{key}'{nearest(key, known)}")
        values = kind(**values)
    if not isinstance(values, kind):
        raise UsageError(f"{name} is a {kind.__name__} or a table of its fields, not {values!r}")
    return values


def read_zones(zones: Any, dims: int) -> tuple[tuple[Zone, Place, Place], ...]:
    """Each zone with its middle and, along each axis, its radius or half its width. Raises UsageError."""
    if isinstance(zones, (Zone, Mapping)):
        zones = (zones,)
    if not isinstance(zones, Sequence) or isinstance(zones, str):
        raise UsageError(f"zones are a list, not {zones!r}")
    found = []
    for count, values in enumerate(zones):
        name = f"zone {count}"
        zone = parts_of(name, Zone, values)
        told = [key for key in ("center", "radius", "low", "high") if getattr(zone, key) is not None]
        if told not in (["center", "radius"], ["low", "high"]):
            raise UsageError(f"{name} is a ball, with center and radius, or a box, with low and high")
        if "radius" in told:
            middle = place_of(f"the center of {name}", zone.center, dims)
            size = (number(f"the radius of {name}", zone.radius),) * dims
        else:
            low, high = box_of(name, zone.low, zone.high, dims)
            middle = tuple((a + b) / 2 for a, b in zip(low, high))
            size = tuple((b - a) / 2 for a, b in zip(low, high))
        if min(size) <= 0:
            raise UsageError(f"{name} has no width")
        share(f"'chance' of {name}", zone.chance)
        positive(f"'fade' of {name}", zone.fade)
        number(f"'reward' of {name}", zone.reward)
        number(f"'cost' of {name}", zone.cost)
        flag(f"'ends' of {name}", zone.ends)
        found.append((zone, middle, size))
    return tuple(found)


def read_scripts(scripts: Any, dims: int, goals: int) -> dict[str, tuple[Script, tuple[Place, ...], Place]]:
    """Each script with its route and its miss; without goals only those that need none. Raises UsageError."""
    if not isinstance(scripts, Mapping):
        raise UsageError(f"scripts are a table of names, not {scripts!r}")
    found = {}
    for key, values in scripts.items():
        name = f"the script {key}"
        script = parts_of(name, Script, values)
        choice(f"'to' of {name}", script.to, AIMS)
        route = places_of(f"the route of {name}", script.route, dims)
        miss = place_of(f"'miss' of {name}", script.miss, dims)
        whole(f"'hold' of {name}", script.hold, 0)
        share(f"'pace' of {name}", script.pace)
        share(f"'stray' of {name}", script.stray)
        positive(f"'drift' of {name}", script.drift)
        positive(f"'jitter' of {name}", script.jitter)
        if script.to == "random" and not route and (script.drift or any(miss)):
            raise UsageError(f"{name} goes nowhere, which it could miss")
        if any(a == b for a, b in itertools.pairwise(route)):
            raise UsageError(f"the route of {name} has the same place twice in a row")
        if goals or route or script.to == "random":
            found[str(key)] = (script, route, miss)
    return found


def each_of(name: str, value: Any, count: int) -> Place:
    """One number for each of `count` goals, from one for all or as many. Raises UsageError."""
    values = [value] * count if isinstance(value, (int, float)) else value
    if not isinstance(values, Sequence) or isinstance(values, str) or len(values) != count:
        raise UsageError(f"{name} is a number, or one for each of {count} goals, not {value!r}")
    return tuple(number(name, part) for part in values)
