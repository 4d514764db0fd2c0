"""What an agent of a grid sees: named parts, each a function of the state, side by side in one vector."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor
from torch.nn.functional import one_hot

from polopt.core.errors import UsageError, nearest
from polopt.tasks.grid.board import Board
from polopt.tasks.grid.layout import Use
from polopt.tasks.luck import uniform
from polopt.tasks.simulated import State


def cell(world: Board, state: State, time: Tensor) -> Tensor:
    """One-hot [P]: where the agent is."""
    return one_hot(state["agents"], world.size)


def place(world: Board, state: State, time: Tensor) -> Tensor:
    """[2]: row and column, from -1 to 1."""
    return 2.0 * world.spots[state["agents"]] - 1.0


def heading(world: Board, state: State, time: Tensor) -> Tensor:
    """One-hot [4]: up, right, down, left; where agents turn."""
    return one_hot(state["heading"], 4)


def clock(world: Board, state: State, time: Tensor) -> Tensor:
    """[1]: the share of the horizon that is over; of the attempt, where there are attempts."""
    passed = state["clock"] / world.inner if world.inner else time / world.horizon
    return passed[:, None, None].expand(-1, world.agents, 1)


def whole_time(world: Board, state: State, time: Tensor) -> Tensor:
    """[1]: the share of the horizon that is over."""
    return (time / world.horizon)[:, None, None].expand(-1, world.agents, 1)


def planes(world: Board, state: State) -> Tensor:
    """bool [N, 1 + K, P]: walls, and where things of each kind are."""
    rows = len(state["places"])
    there = torch.where(state["places"] < 0, world.kinds * world.size, world.kind * world.size + state["places"])
    things = torch.zeros(rows, world.kinds * world.size + 1, dtype=torch.bool, device=there.device)
    things = things.scatter(1, there, True)[:, :-1].view(rows, world.kinds, world.size)
    return torch.cat([state["walls"].unsqueeze(1), things], 1)


def others(world: Board, state: State) -> Tensor:
    """bool [N, V, P]: where the other agents are."""
    at = one_hot(state["agents"], world.size)
    return at.sum(1, keepdim=True) > at


def full_map(world: Board, state: State, time: Tensor) -> Tensor:
    """Planes [P] of the agent, of the others (where there are any), of the walls and of each kind of things."""
    shared = planes(world, state).flatten(1).unsqueeze(1).expand(-1, world.agents, -1)
    parts = [cell(world, state, time).bool(), *([others(world, state)] if world.agents > 1 else []), shared]
    return torch.cat(parts, -1)


def window(world: Board, state: State, time: Tensor) -> Tensor:
    """Walls (the edge is one), the other agents and each kind of things within `sight` cells, planes [(2 sight + 1)^2]
    around the agent."""
    seen = planes(world, state).unsqueeze(1).expand(-1, world.agents, -1, -1)
    if world.agents > 1:
        seen = torch.cat([seen, others(world, state).unsqueeze(2)], 2)
    outside = torch.zeros(*seen.shape[:3], 1, dtype=torch.bool, device=seen.device)
    outside[:, :, 0] = True
    around = world.around[state["agents"]].unsqueeze(2).expand(-1, -1, seen.shape[2], -1)  # [N, V, planes, W]
    return torch.cat([seen, outside], -1).gather(-1, around).flatten(2)


def goal(world: Board, state: State, time: Tensor) -> Tensor:
    """[2]: how far down and to the right the nearest thing that pays lies, in parts of the map; 0 if there is none."""
    pays = (world.worth * state["pay"] > 0) & (state["places"] >= 0)
    offset = _offset(world, state["agents"].unsqueeze(2), state["places"].unsqueeze(1))  # [N, V, M, 2]
    if not world.letters:
        return offset.new_zeros(*state["agents"].shape, 2)
    found = offset.squeeze(2)
    if len(world.letters) > 1:
        far = torch.where(pays.unsqueeze(1), offset.abs().sum(-1), torch.inf)
        found = offset.gather(2, far.argmin(-1)[..., None, None].expand(-1, -1, 1, 2)).squeeze(2)
    return torch.where(pays.any(-1)[:, None, None], found, 0.0)


def held(world: Board, state: State, time: Tensor) -> Tensor:
    """[K]: 1 for each kind of which the agent holds one."""
    return world.holds(state)


def last(world: Board, state: State, time: Tensor) -> Tensor:
    """The action before, one-hot [A], and its reward [1]; zeros at a start, of an attempt too."""
    return torch.cat([one_hot(state["did"], world.actions + 1)[..., 1:], state["got"].unsqueeze(-1)], -1)


def colors(world: Board, state: State, time: Tensor) -> Tensor:
    """One-hot [colors]: of the floor where the agent is; another one at random with probability `blur`."""
    color = world.color[state["agents"]]
    if world.blur:
        wrong = uniform(state["key"], time, world.agents, Use.BLUR) < world.blur
        other = uniform(state["key"], time, world.agents, Use.BLURRED) * (world.colors - 1)
        color = torch.where(wrong, (color + 1 + other.long()) % world.colors, color)
    return one_hot(color, world.colors)


def noise(world: Board, state: State, time: Tensor) -> Tensor:
    """[noise]: numbers in [0, 1) that mean nothing and never repeat."""
    drawn = uniform(state["key"], time, world.agents * world.noise, Use.NOISE)
    return drawn.view(-1, world.agents, world.noise)


def agent(world: Board, state: State, time: Tensor) -> Tensor:
    """One-hot [V]: which agent it is."""
    return one_hot(torch.arange(world.agents, device=time.device), world.agents).expand(len(time), -1, -1)


def entities(world: Board, state: State, time: Tensor) -> Tensor:
    """Rows [2 + 1 + 1 + K + 4] of the other agents, then of each thing: how far down and to the right, whether it is
    there, whether it is an agent, its kind, its way; zeros where it is not there. `spec.info["entities"]` is their
    number and width."""
    agents, rows = state["agents"], len(time)
    number = torch.arange(world.agents, device=agents.device)
    mates = agents[:, (number[:, None] + number[1:]) % world.agents]  # [N, V, V - 1], from the next one on
    things = state["places"].unsqueeze(1).expand(-1, world.agents, -1)
    cells = torch.cat([mates, things], -1)
    count = world.agents - 1
    kind = torch.cat([world.kind.new_zeros(count), world.kind + 1])
    way = state["way"] if "way" in state else world.way.expand(rows, -1)
    way = torch.cat([way.new_full((rows, count), -1), way], -1) + 1
    parts = [
        _offset(world, agents.unsqueeze(2), cells),
        torch.ones_like(cells).unsqueeze(-1),
        one_hot(kind, world.kinds + 1).expand(*cells.shape, -1),
        one_hot(way, 5)[..., 1:].unsqueeze(1).expand(-1, world.agents, -1, -1),
    ]
    there = (cells >= 0).unsqueeze(-1)
    return torch.cat([there * part.to(torch.get_default_dtype()) for part in parts], -1).flatten(2)


def _offset(world: Board, here: Tensor, there: Tensor) -> Tensor:
    """Rows and columns from one cell to the other, each in parts of the map, [..., 2]."""
    return world.spots[there] - world.spots[here]


Part = Callable[[Board, State, Tensor], Tensor]

PARTS: dict[str, Part] = {
    "cell": cell,
    "place": place,
    "heading": heading,
    "time": whole_time,
    "clock": clock,
    "map": full_map,
    "window": window,
    "goal": goal,
    "held": held,
    "last": last,
    "colors": colors,
    "noise": noise,
    "agent": agent,
    "entities": entities,
}


def read_parts(obs: str, turns: bool) -> tuple[str, ...]:
    """The names of the parts. Raises UsageError, one sentence, for one that is not there."""
    if not isinstance(obs, str):
        raise UsageError(f"obs names parts with commas between them, not {obs!r}")
    names = tuple(name.strip() for name in obs.split(","))
    for name in names:
        if name not in PARTS and obs != "table":
            raise UsageError(f"a grid shows no '{name}'{nearest(name, [*PARTS, 'table'])}")
    if "heading" in names and not turns:
        raise UsageError("only agents that turn have a heading: the moves must be 'turn' where obs has it")
    return names


def spots(rows: int, columns: int) -> Tensor:
    """[P, 2]: the row and the column of each cell, in parts of the map, from 0 to 1."""
    down, right = (torch.linspace(0, 1, side) for side in (rows, columns))
    return torch.cartesian_prod(down, right)


def around(rows: int, columns: int, reach: int) -> Tensor:
    """int64 [P, (2 reach + 1)^2]: the cells around each, P for those outside."""
    row, column = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).unbind(1)
    down, right = torch.cartesian_prod(*[torch.arange(-reach, reach + 1)] * 2).unbind(1)
    row, column = row.unsqueeze(1) + down, column.unsqueeze(1) + right
    inside = (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
    return torch.where(inside, row * columns + column, rows * columns)


def space(world: Board) -> spaces.Space:
    """The space of what is seen: [F], or [V, F] of several agents."""
    if world.parts == ("table",):
        if world.agents > 1:
            raise UsageError("the obs 'table' is for one agent")
        return spaces.Dict({"state": spaces.Discrete(world.size), "step": spaces.Discrete(world.horizon + 1)})
    if world.parts == ("cell",):
        return spaces.Discrete(world.size) if world.agents == 1 else spaces.MultiDiscrete([world.size] * world.agents)
    none = torch.zeros(1, dtype=torch.int64, device=world.device)
    seen = see(world, world.begin({"index": none, "key": none}), none)
    assert isinstance(seen, Tensor)
    bound = np.inf if "last" in world.parts else 1.0
    return spaces.Box(-bound, bound, tuple(seen.shape[1:]), np.float32)


def see(world: Board, state: State, time: Tensor) -> Tensor | State:
    """The observations of all agents: [N, ...] in the space of `space`."""
    if world.parts == ("table",):
        return {"state": state["agents"].squeeze(1), "step": time}
    if world.parts == ("cell",):
        return state["agents"].squeeze(1) if world.agents == 1 else state["agents"]
    found = [PARTS[name](world, state, time).to(torch.get_default_dtype()) for name in world.parts]
    seen = torch.cat(found, -1) if len(found) > 1 else found[0]
    return seen.squeeze(1) if world.agents == 1 else seen
