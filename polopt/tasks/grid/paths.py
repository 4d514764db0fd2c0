"""Ways through a grid: what can be reached, how far it is, and scripted behavior that walks there."""

from __future__ import annotations

import torch
from torch import Tensor

from polopt.core.errors import UsageError
from polopt.tasks.grid.board import Board
from polopt.tasks.grid.layout import MOVES, Use
from polopt.tasks.luck import uniform
from polopt.tasks.simulated import State

FAR = 1 << 20


def steps(rows: int, columns: int) -> Tensor:
    """int64 [P, 5]: the cell above, right, below, left of each, itself where the edge is, and itself."""
    row, column = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).unbind(1)
    after = []
    for down, right in MOVES:
        inside = (row + down >= 0) & (row + down < rows) & (column + right >= 0) & (column + right < columns)
        after.append(torch.where(inside, (row + down) * columns + column + right, row * columns + column))
    return torch.stack(after, 1)


def one_hot(cells: Tensor, size: int) -> Tensor:
    """bool [..., P]: where the cells [..., K] are; those of -1 are nowhere."""
    found = torch.zeros(*cells.shape[:-1], size + 1, dtype=torch.bool, device=cells.device)
    return found.scatter(-1, torch.where(cells < 0, size, cells), True)[..., :size]


def distances(step: Tensor, blocked: Tensor, goals: Tensor) -> Tensor:
    """Steps of the shortest way from every cell to one of the `goals` bool [..., P], not through `blocked` bool
    [..., P]: int64 [..., P], FAR where there is none."""
    result = torch.where(goals, 0, FAR)
    while True:
        closer = torch.minimum(result, result[..., step[:, :4]].amin(-1) + 1)
        closer = torch.where(blocked & ~goals, FAR, closer).clamp(max=FAR)
        if torch.equal(closer, result):
            return result
        result = closer


def unreachable(world: Board, walls: Tensor, agents: Tensor, places: Tensor) -> Tensor:
    """bool [N, M]: the things with a reward that one of the agents has no way to. Doors count as open."""
    missing = [~reached(world.next, walls, cell).gather(1, places.clamp(min=0)) for cell in agents.split(1, 1)]
    return torch.stack(missing).any(0) & (places >= 0) & (world.reward != 0).any(-1).any(-1)


def reached(step: Tensor, walls: Tensor, start: Tensor) -> Tensor:
    """bool [N, P]: the cells that a way leads to from the cells int64 [N, 1]."""
    found = one_hot(start, walls.shape[1])
    while True:
        more = (found[:, step].any(-1) & ~walls) | found
        if torch.equal(more, found):
            return found
        found = more


def behave(world: Board, behavior: str, state: State, time: Tensor) -> Tensor:
    """The actions [N] or [N, V] of a scripted behavior, see `Grid`."""
    key, agents = state["key"], state["agents"]
    rows, count = agents.shape
    chance = uniform(key, time, count * world.actions, Use.STRAYED).view(rows, count, world.actions)
    action = chance.argmax(-1)
    if behavior != "random":
        score = -gain_there(world, state) if behavior == "greedy" else way_there(world, state, behavior == "any")
        planned = chosen(world, state, score, chance)
        strays = uniform(key, time, count, Use.STRAY) < world.stray
        action = torch.where(strays, action, planned)
    return action.squeeze(1) if count == 1 else action


def ahead(world: Board, state: State) -> Tensor:
    """The cells [N, V, 5] where each way, and staying, leads the agents now: where they are, if it is closed."""
    agents = state["agents"]
    target = world.next[agents]
    closed = torch.stack([world.blocked(state, target[..., way]) for way in range(5)], -1)
    return torch.where(closed, agents.unsqueeze(-1), target)


def way_there(world: Board, state: State, by_luck: bool) -> Tensor:
    """How far [N, V, 5] it is to where the agents go, after each way; nothing is nearer where there is no way."""
    places, walls = world.drifted(state)["places"], state["walls"]  # where they will be when the agents move
    value = world.worth * state["pay"] * (places >= 0)  # [N, M]
    goals = value > 0
    if by_luck:
        luck = torch.where(goals, uniform(state["key"], 0, len(world.letters), Use.AIM), -1.0)
        goals = goals & (luck == luck.amax(-1, keepdim=True)) if len(world.letters) else goals
    target = one_hot(torch.where(goals, places, -1), world.size)
    aim = state["aim"].unsqueeze(1)
    target = torch.where(aim >= 0, one_hot(aim, world.size), target)
    harm = one_hot(torch.where(value < 0, places, -1), world.size)
    leads = ahead(world, state)
    result = []
    for agent in range(world.agents):
        held = world.holds(state)[:, agent]  # [N, K]
        missing = (world.key >= 0) & ~held[:, world.key.clamp(min=0)] & (places >= 0)  # [N, M], doors that are closed
        doors = one_hot(torch.where(missing, places, -1), world.size)
        closed = walls | doors | harm
        way = distances(world.next, closed, target & ~doors).gather(1, leads[:, agent])
        if world.doors:
            wanted = one_hot(torch.where(missing, world.key, -1), world.kinds)[:, world.kind]  # the keys of those
            keys = one_hot(torch.where(wanted, places, -1), world.size)
            other = distances(world.next, closed, keys).gather(1, leads[:, agent])
            way = torch.where(way.amin(-1, keepdim=True) < FAR, way, other)
        result.append(way)
    return torch.stack(result, 1)


def gain_there(world: Board, state: State) -> Tensor:
    """What each way [N, V, 5] would cover that is not covered. Raises UsageError for a grid without coverage."""
    if world.near is None:
        raise UsageError(f"{world.spec.name} has nothing to cover, which the behavior 'greedy' goes for")
    fresh = world.near[ahead(world, state)] & ~state["seen"][:, None, None]
    return (fresh * state["weights"][:, None, None]).sum(-1)


def chosen(world: Board, state: State, score: Tensor, chance: Tensor) -> Tensor:
    """The action [N, V] that leads where `score` [N, V, 5] is least; the luck of `chance` [N, V, A] decides ties."""
    if world.moves != "turn":
        return (score[..., : world.actions] + 1e-4 * chance).argmin(-1)
    heading = state["heading"].unsqueeze(-1)
    turns = (torch.arange(4, device=heading.device) - heading) % 4  # to the right
    least = (score[..., :4] + 1e-2 * torch.where(turns == 3, 1, turns)).argmin(-1)
    right = turns.gather(-1, least.unsqueeze(-1)).squeeze(-1)
    return torch.where(right == 0, 2, torch.where(right == 3, 0, 1))
