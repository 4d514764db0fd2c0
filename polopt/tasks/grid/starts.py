"""How an episode of a grid begins: what its level says, and what is put on random free cells."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from polopt.core.errors import UsageError
from polopt.tasks.grid import paths
from polopt.tasks.grid.board import Board
from polopt.tasks.grid.layout import Use
from polopt.tasks.luck import uniform
from polopt.tasks.options import whole
from polopt.tasks.simulated import State

TRIES = 16


def fixed(world: Board, start: Any) -> Tensor | None:
    """The cells [V] where agents start, None where that is random.

    Raises UsageError, one sentence, if a start is a wall, if what is random finds no room, and if nothing is random and
    `solvable` is not so.
    """
    cells = list(world.layout.starts) if start is None else [start] if isinstance(start, int) else list(start)
    if len(cells) == 1:
        cells = cells * world.agents
    if cells and len(cells) != world.agents:
        raise UsageError(f"there are {len(cells)} starts for {world.agents} agents: one for all, or one for each")
    for cell in cells:
        if world.layout.walls[whole("start", cell, 0, world.size - 1)]:
            raise UsageError(f"the start {world.where(cell)} is a wall")
    found = torch.tensor(cells, dtype=torch.int64, device=world.device) if cells else None
    scattered, loose, blocks = int((world.cells < 0).sum()), 0 if cells else world.agents, world.blocks[1]
    room = world.size - len({*world.layout.cells, *cells}) - sum(world.layout.walls)
    if room < scattered + loose + blocks:
        raise UsageError(
            f"{world.name} has {room} free cells, which is too few for {scattered} things, {loose} agents and "
            f"{blocks} blocks"
        )
    if found is not None and not scattered and world.solvable:
        check(world, world.walls[None], found[None], world.cells[None])
    return found


def free(world: Board, walls: Tensor, places: Tensor, agents: Tensor | None) -> Tensor:
    """bool [..., P]: where there is no wall bool [..., P], thing int64 [..., M] or agent [..., V]."""
    full = places if agents is None else torch.cat([places, agents], -1)
    return ~walls & ~paths.one_hot(full, world.size)


def distinct(luck: Tensor, size: int) -> Tensor:
    """Numbers below `size`, int64 [N, K], different in each row and uniform, from numbers [N, K] in [0, 1)."""
    found = luck.new_zeros(len(luck), 0, dtype=torch.int64)
    for count, one in enumerate(luck.unbind(1)):
        rank = (one * (size - count)).long()  # among those that are left: so many more as smaller ones are gone
        for other in (found.sort(1).values if count > 1 else found).unbind(1):
            rank = rank + (rank >= other).long()
        found = torch.cat([found, rank.unsqueeze(1)], 1)
    return found


def check(world: Board, walls: Tensor, agents: Tensor, places: Tensor) -> None:
    """Raises UsageError if something with a reward cannot be reached in one of these rows."""
    missing = paths.unreachable(world, walls, agents, places)
    if missing.any():
        row, thing = missing.nonzero()[0].tolist()
        starts = ", ".join(str(world.where(cell)) for cell in agents[row].tolist())
        raise UsageError(
            f"{world.letters[thing]} at {world.where(int(places[row, thing]))} cannot be reached from the start "
            f"{starts} of {world.name}, which must be solvable"
        )


def levels(world: Board, draws: State) -> State:
    """What the level says of n rows, or else the world: tables [n, ...].

    Raises UsageError, one sentence, for a level of other names or shapes, and for probabilities that are none.
    """
    rows, things = len(draws["index"]), len(world.letters)
    usual = {
        "pay": world.pay,
        "ends": world.ends,
        "returns": world.returns,
        "limit": world.limit,
        "aim": world.aim,
        "way": world.way,
        "weights": world.weights,
    }
    shapes = {name: tuple(value.shape) for name, value in usual.items()}
    shapes |= {"walls": (world.size,), "agents": (world.agents,), "places": (things,)}
    for name in world.levels:
        if name not in shapes:
            raise UsageError(f"a level of {world.name} has no '{name}': it has {', '.join(sorted(shapes))}")
        if draws[name].shape[1:] != shapes[name]:
            raise UsageError(
                f"'{name}' of the levels of {world.name} is {list(shapes[name])} each, "
                f"not {list(draws[name].shape[1:])}"
            )
    for name in ("ends", "returns"):
        if name in draws and not ((draws[name] >= 0) & (draws[name] <= 1)).all():
            raise UsageError(f"'{name}' of the levels of {world.name} are probabilities, from 0 to 1")
    for name, low in (("agents", 0), ("places", -1), ("aim", -1)):
        if name in world.levels and not ((draws[name] >= low) & (draws[name] < world.size)).all():
            raise UsageError(f"'{name}' of the levels of {world.name} are cells, from {low} to {world.size - 1}")
    if world.near is None:
        del usual["weights"]
    expanded = {name: value.expand(rows, *value.shape) for name, value in usual.items()}
    return {name: draws[name].to(value.dtype) if name in draws else value for name, value in expanded.items()}


def laid(world: Board, draws: State) -> State:
    """ "walls" bool [n, P], "agents" int64 [n, V] and "places" int64 [n, M] of n rows, drawn where nothing says them.

    Raises UsageError, one sentence, where a level has no room, or is not `solvable` and nothing is drawn that could be.
    """
    found = _drawn(world, draws, 0)
    if world.solvable:
        left = torch.arange(len(draws["index"]), device=world.device)
        for attempt in range(1, TRIES + 1):
            bad = paths.unreachable(world, *(found[name][left] for name in ("walls", "agents", "places"))).any(1)
            left = left[bad]
            if not len(left):
                return found
            other = _drawn(world, {name: value[left] for name, value in draws.items()}, attempt)
            found = {name: value.index_copy(0, left, other[name]) for name, value in found.items()}
        check(world, found["walls"], found["agents"], found["places"])
    return found


def _drawn(world: Board, draws: State, attempt: int) -> State:
    """One draw of what is random; the last one is without blocks."""
    rows, key = len(draws["index"]), draws["key"]
    walls = draws["walls"].bool() if "walls" in draws else world.walls.expand(rows, -1)
    agents = draws["agents"] if "agents" in draws else None if world.start is None else world.start.expand(rows, -1)
    places = draws["places"] if "places" in draws else world.cells.expand(rows, -1)
    loose = 0 if agents is not None else world.agents
    scattered = 0 if "places" in draws else int((world.cells < 0).sum())
    blocks = (0, 0) if "walls" in draws or attempt == TRIES else world.blocks
    if loose or scattered or blocks[1]:
        if blocks[1] or {"walls", "agents", "places"} & draws.keys():
            open_cells = free(world, walls, places, agents)
            if (open_cells.sum(1) < loose + scattered).any():
                raise UsageError(f"a level of {world.name} has too few free cells")
            luck = uniform(key, attempt, world.size, Use.LAYOUT)
            order = torch.where(open_cells, luck, 2.0).argsort(1)  # free ones first
        else:  # the same cells are free in all rows
            luck = uniform(key, attempt, scattered + loose, Use.LAYOUT)
            order = world.free[distinct(luck, len(world.free))]
        if scattered:
            places = torch.cat([places[:, : places.shape[1] - scattered], order[:, :scattered]], 1)
        if agents is None:
            agents = order[:, scattered : scattered + loose]
        if blocks[1]:
            many = blocks[0] + (uniform(key, attempt, 1, Use.BLOCKS) * (blocks[1] - blocks[0] + 1)).long()
            rank = order.argsort(1) - (scattered + loose)
            walls = walls | (open_cells & (rank >= 0) & (rank < many))
    assert agents is not None
    return {"walls": walls, "agents": agents, "places": places}
