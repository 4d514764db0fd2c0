"""What a grid is made of: a map of letters, and what happens where an agent meets each thing. Imports no torch."""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from polopt.core.errors import UsageError, nearest
from polopt.tasks.options import flag, number, share, whole

WALL, FLOOR, START = "#", ".", "S"
RESERVED = (WALL, FLOOR, START, "/", ",")
WAYS = ("up", "right", "down", "left")
MOVES = ((-1, 0), (0, 1), (1, 0), (0, -1), (0, 0))
"""Rows and columns of the four ways, and of staying."""


class Use(enum.IntEnum):
    """What luck is for, at one time of one start."""

    SLIP = 0
    SLIPPED = 1
    ENDS = 2
    RETURNS = 3
    WHERE = 4
    LAYOUT = 5
    BLOCKS = 6
    STRAY = 7
    STRAYED = 8
    AIM = 9
    BLUR = 10
    BLURRED = 11
    NOISE = 12


@dataclass(frozen=True)
class Thing:
    """What happens at a thing of one kind when an agent comes to its cell, or stays there.

    reward: for the agent that is there; of several agents also one number for each that may come, or a table
        [V who gets it][V who came].
    ends: probability that the episode ends.
    taken: the first agent that comes takes it away, and holds it.
    returns: probability, at the step of taking and at each later one, that it lies on a random free cell again.
    needs: only who holds a thing of this kind can enter the cell: a door and its key.
    together: so many agents must be there at once, or nothing happens.
    most: the reward is paid for so many of the kind that are held; 0 for all.
    way: it moves one cell at each step, before the agents do, and turns round at walls: "up", "right", "down", "left".
    """

    reward: Any = 0.0
    ends: float = 0.0
    taken: bool = False
    returns: float = 0.0
    needs: str = ""
    together: int = 1
    most: int = 0
    way: str = ""


GOAL = Thing(reward=1.0, ends=1.0)
THINGS: dict[str, Thing] = {
    "G": GOAL,
    "K": Thing(taken=True),
    "D": Thing(needs="K"),
    "L": Thing(reward=-1.0, ends=1.0),
    "C": Thing(reward=1.0, taken=True),
}
"""Goals, keys, doors, lava and coins."""


@dataclass(frozen=True)
class Layout:
    """A map that was read: cells are numbered row by row.

    walls: of each cell. starts: cells of S, in order. letters, cells: of each thing, in order of the cells.
    """

    rows: int
    columns: int
    walls: tuple[bool, ...]
    starts: tuple[int, ...]
    letters: str
    cells: tuple[int, ...]


def read_map(map: Any, things: Mapping[str, Thing]) -> Layout:
    """A map of lines, or one text with "/" between them; "RxC" is an empty one. The edge is a wall.

    Raises UsageError, one sentence, for lines of different lengths and letters that mean nothing.
    """
    if isinstance(map, str) and (size := re.fullmatch(r"(\d+)x(\d+)", map)):
        map = [FLOOR * int(size[2])] * int(size[1])
    lines = re.split(r"[/\n]", map.strip()) if isinstance(map, str) else map
    if not isinstance(lines, (list, tuple)) or not all(isinstance(line, str) and line for line in lines) or not lines:
        raise UsageError(f"a map is lines of letters, or '5x5' for an empty one, not {map!r}")
    if len({len(line) for line in lines}) > 1:
        raise UsageError(f"the lines of a map have one length, not {', '.join(str(len(line)) for line in lines)}")
    text = "".join(lines)
    for cell, letter in enumerate(text):
        if letter not in (WALL, FLOOR, START, *things):
            row, column = divmod(cell, len(lines[0]))
            raise UsageError(
                f"the map has '{letter}' in row {row}, column {column}: a cell is a wall {WALL}, floor {FLOOR}, "
                f"a start {START} or one of the things {', '.join(things)}"
            )
    found = [cell for cell, letter in enumerate(text) if letter in things]
    return Layout(
        rows=len(lines),
        columns=len(lines[0]),
        walls=tuple(letter == WALL for letter in text),
        starts=tuple(cell for cell, letter in enumerate(text) if letter == START),
        letters="".join(text[cell] for cell in found),
        cells=tuple(found),
    )


def read_things(things: Any, agents: int) -> dict[str, Thing]:
    """The kinds of things by letter, from `Thing`s or dicts of their fields, checked for so many agents.

    Raises UsageError, one sentence.
    """
    if not isinstance(things, Mapping):
        raise UsageError(f"things are a table of letters, not {things!r}")
    found = {}
    for letter, thing in things.items():
        if not isinstance(letter, str) or len(letter) != 1 or letter in RESERVED:
            raise UsageError(f"the letter of a thing is one character, none of {' '.join(RESERVED)}, not {letter!r}")
        if isinstance(thing, Mapping):
            names = [field.name for field in fields(Thing)]
            for name in thing:
                if name not in names:
                    raise UsageError(f"the thing {letter} has no '{name}'{nearest(name, names)}")
            thing = Thing(**thing)
        if not isinstance(thing, Thing):
            raise UsageError(f"the thing {letter} is a Thing or a table of what it does, not {thing!r}")
        found[letter] = thing
    for letter, thing in found.items():
        for name in ("ends", "returns"):
            share(f"'{name}' of the thing {letter}", getattr(thing, name))
        flag(f"'taken' of the thing {letter}", thing.taken)
        whole(f"'together' of the thing {letter}", thing.together, 1, agents)
        whole(f"'most' of the thing {letter}", thing.most, 0)
        rewards_of(letter, thing, agents)
        if thing.needs and not (thing.needs in found and found[thing.needs].taken):
            raise UsageError(f"the thing {letter} needs '{thing.needs}', which is no thing that can be taken")
        if thing.way and thing.way not in WAYS:
            raise UsageError(f"the thing {letter} moves {', '.join(WAYS)}, not '{thing.way}'")
        if thing.returns and not thing.taken:
            raise UsageError(f"the thing {letter} cannot return: it is never taken")
    return found


def rewards_of(letter: str, thing: Thing, agents: int) -> list[list[float]]:
    """The rewards [V who gets it][V who came] of a thing. Raises UsageError for another number of agents."""
    name, reward = f"the reward of the thing {letter}", thing.reward
    if not isinstance(reward, Sequence):
        reward = [reward] * agents
    if len(reward) != agents:
        raise UsageError(f"{name} is for {len(reward)} agents, and there are {agents}")
    if all(not isinstance(part, Sequence) for part in reward):
        values = [number(name, part) for part in reward]
        return [[value if got == came else 0.0 for came, value in enumerate(values)] for got in range(agents)]
    if any(not isinstance(part, Sequence) or len(part) != agents for part in reward):
        raise UsageError(f"{name} is a number, {agents} numbers or {agents} rows of {agents}, not {thing.reward!r}")
    return [[number(name, part) for part in row] for row in reward]
