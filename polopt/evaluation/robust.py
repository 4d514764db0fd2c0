"""How good a policy is in many models of a world at once: worlds with a box of `Parameters`."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from polopt.core import signals
from polopt.core.errors import UsageError
from polopt.core.modules import device_of
from polopt.core.random import paired
from polopt.data.base import Acts, keep_rows, put
from polopt.evaluation.figures import Curves, Figure, Heatmap
from polopt.tasks.base import Task
from polopt.tasks.parameters import Parameters
from polopt.tasks.simulated import Simulated, State


def world_of(task: Task) -> tuple[Simulated, Parameters]:
    """The world, and its box of models. Raises UsageError, one sentence, for a task that has none."""
    box = Parameters.of(task.spec)
    if not isinstance(task, Simulated):
        raise UsageError(f"models are compared in worlds of torch, and {task.spec.name} is none")
    return task, box


@torch.no_grad()
def returns_from(world: Simulated, actor: Acts, state: State, *, greedy: bool = True) -> tuple[Tensor, int]:
    """Undiscounted returns [n] of episodes from the states [n, ...], float64, and how many decisions were taken in all.

    The rows of the world are left as they are. Episodes are as long as the world's `horizon`, and at most `longest`.
    """
    device, carry = device_of(actor), None
    time = torch.zeros(len(next(iter(state.values()))), dtype=torch.int64, device=world.device)
    alive, total, taken = torch.ones_like(time, dtype=torch.bool), torch.zeros_like(time, dtype=torch.float64), 0
    for _ in range(min(world.horizon, world.longest)):
        signals.check()
        record, after = actor.act(put(world.observe(state, time), device), carry, greedy=greedy)
        state, reward, over, _ = world.advance(state, time, put(actor.env_action(record["action"]), world.device))
        total += torch.where(alive, reward.double(), 0.0)
        taken += int(alive.sum())
        alive, time = alive & ~over, time + 1
        if not alive.any():
            break
        carry = keep_rows(after, put(alive, device))
    return total, taken


def in_models(state: State, box: Parameters, psi: Tensor) -> State:
    """States [E, ...] in each of the models psi [M, P]: [M E, ...], the states of the first model first."""
    models, starts = len(psi), len(next(iter(state.values())))
    each = {name: value.repeat(models, *[1] * (value.dim() - 1)) for name, value in state.items()}
    values = {name: value.repeat_interleave(starts) for name, value in box.values(psi).items()}
    return each | {name: value.to(each[name]) for name, value in values.items()}


def returns_in(
    world: Simulated, box: Parameters, actor: Acts, psi: Tensor, state: State, *, greedy: bool = True
) -> tuple[Tensor, int]:
    """Returns [M, E] in each of the models psi [M, P] from the same states [E, ...], with the same luck, and how many
    decisions were taken in all."""
    returns, taken = returns_from(world, actor, in_models(state, box, psi), greedy=greedy)
    return returns.reshape(len(psi), -1), taken


def grid_returns(actor: Acts, task: Task, points: int, episodes: int, *, greedy: bool = True) -> Tensor:
    """Mean returns [points, ..., points] of a grid of models, one dimension for each parameter, of the same `episodes`
    starts in all of them. The global random state is put back afterwards."""
    world, box = world_of(task)
    psi = box.grid(points).to(world.device)
    with paired():
        returns, _ = returns_in(world, box, actor, psi, world.start_of(*range(episodes)), greedy=greedy)
    return returns.mean(1).cpu().reshape([points] * len(box.names))


def robust_scores(returns: Tensor) -> dict[str, float]:
    """Of the returns of a grid: `worst`, the least, and `grid_mean`."""
    return {"worst": returns.min().item(), "grid_mean": returns.mean().item()}


def robust_figures(returns: Mapping[str, Tensor], box: Parameters) -> dict[str, Figure]:
    """Returns of grids, by who acts: curves over each parameter, where the others are at their worst, and of two
    parameters a map of the first one's returns."""
    figures: dict[str, Figure] = {}
    points = next(iter(returns.values())).shape[0]
    for place, name in enumerate(box.names):
        x = torch.linspace(box.low[place], box.high[place], points).tolist()
        worst = {who: value.movedim(place, 0).reshape(points, -1).amin(1).tolist() for who, value in returns.items()}
        figures[f"worst return by {name}"] = Curves(x, worst, x_label=name, y_label="return")
    if len(box.names) == 2:
        who, value = next(iter(returns.items()))
        figures[f"return of {who}"] = Heatmap(value.tolist(), x_label=box.names[1], y_label=box.names[0])
    return figures
