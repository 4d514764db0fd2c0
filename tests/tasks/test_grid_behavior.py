"""Scripted behavior in grids: shortest ways, keys before doors, the luck of the start; and learning with plain PPO."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from polopt.data.demonstrations import scripted_episodes
from polopt.tasks import make_task
from polopt.tasks.agents import AgentRows
from polopt.tasks.grid import Grid, Thing, paths
from polopt.tasks.grid.exact import Exact
from polopt.training import api


def returns(world: Any, behavior: str, episodes: int, decisions: int = 100) -> list[tuple[float, int]]:
    """Return and length of the first episodes of those with so many decisions."""
    data = scripted_episodes(world, behavior, decisions)
    ends = (data["terminated"] | data["truncated"]).nonzero().flatten().tolist()[:episodes]
    starts = [0, *(end + 1 for end in ends)]
    return [(data["reward"][a : b + 1].sum().item(), b + 1 - a) for a, b in zip(starts, ends)]


def test_distances_by_hand() -> None:
    walls = torch.tensor([[0, 1, 0], [0, 1, 0], [0, 0, 0]], dtype=torch.bool).flatten()
    goals = torch.tensor([1, 0, 0, 0, 0, 0, 0, 0, 0], dtype=torch.bool)
    far = paths.distances(paths.steps(3, 3), walls, goals)
    assert far.tolist() == [0, paths.FAR, 6, 1, paths.FAR, 5, 2, 3, 4]


@pytest.mark.parametrize("moves", ["compass", "turn"])
def test_shortest_ways_are_optimal(moves: str) -> None:
    """With a cost of each step the walk of the script earns what no policy surpasses."""
    for seed in range(4):
        options = {"map": "4x4", "blocks": 4, "scatter": "G", "solvable": True, "step_reward": -0.1, "moves": moves}
        world: Any = make_task(Grid, 1, seed, horizon=30, **options)
        world.reset(index=torch.tensor([0]))
        best = Exact(world).optimal()[1][0, 0].item()
        total, over = 0.0, False
        while not over:
            _, reward, ended, cut = world.step({"action": world.behave("shortest", world.state, world.time)})
            total, over = total + reward.item(), bool(ended | cut)
        assert total == pytest.approx(best, abs=1e-4)


def test_keys_come_before_doors_and_lava_is_shunned() -> None:
    world: Any = make_task("grid/key", 4)
    assert returns(world, "shortest", 3) == [(1.0, 2 + 2 + 2)] * 3  # to the key, to the door, to the goal
    world = make_task("grid/cliff", 4)
    assert returns(world, "shortest", 3) == [(1.0, 5)] * 3
    world = make_task("grid/coins", 4, seed=1)
    assert all(total == 3.0 for total, _ in returns(world, "shortest", 4))


def test_one_goal_is_named_by_the_luck_of_the_start() -> None:
    world: Any = make_task("grid/doors", 200, seed=2)
    found = Counter(round(total, 2) for total, length in returns(world, "any", 200, 1400) if length == 7)
    assert set(found) == {1.0, 0.95, 0.9, 0.85}
    assert min(found.values()) > 25  # 50 each: four standard deviations
    stray: Any = make_task("grid/doors", 200, seed=2, stray=0.3)
    lengths = [length for _, length in returns(stray, "any", 100, 1400)]
    assert sum(length > 7 for length in lengths) > 50


def test_aims_are_those_of_the_levels() -> None:
    world: Any = make_task(Grid, 2, map="1x5", horizon=4)
    world.levels = {"agents": torch.tensor([[0], [4]]), "aim": torch.tensor([4, 2])}
    world.reset(index=torch.tensor([0, 1]))
    for _ in range(4):
        world.step({"action": world.behave("shortest", world.state, world.time)})
    assert world.state["agents"][0].item() == 4


def test_a_team_meets_at_one_target() -> None:
    world: Any = make_task("grid/capture", 64, seed=1)
    data = scripted_episodes(world, "any", 64 * 20)
    assert data["action"].shape == (64 * 20, 2)
    assert data["reward"].sum().item() / 64 > 1.5  # of 2: both targets are caught
    alone = scripted_episodes(make_task("grid/capture", 64, seed=1), "random", 64 * 20)  # type: ignore[arg-type]
    assert alone["reward"].sum().item() / 64 < 1.0


def test_ppo_learns_a_small_grid(tmp_path: Path) -> None:
    """Unmodified; a uniform policy finds the goal in a fifteenth of the episodes, the best one always."""
    exact = Exact(make_task("grid/5x5", horizon=20))  # type: ignore[arg-type]
    assert exact.value(torch.full((25, 4), 0.25))[0, 0] < 0.07
    settings = {"steps": 6000, "seed": 1, "eval_episodes": 10, "eval_every": 6000, "loggers": ()}
    learner = {"envs": 32, "window": 20, "lr": 3e-3, "minibatches": 4, "network.sizes": (32,)}
    run = api.train("ppo", "grid/5x5", out=tmp_path, task_options={"horizon": 20}, **settings, **learner)
    assert run.evaluations[-1][run.score.column] > 0.9


def test_ppo_learns_with_two_agents_through_their_rows(tmp_path: Path) -> None:
    options = {"map": "S.C.S", "agents": 2, "things": {"C": Thing(reward=1.0, taken=True)}, "obs": "map", "horizon": 4}
    task = make_task(Grid, 2, **options)
    rows = AgentRows(task)
    assert (rows.num, rows.spec.action.n, rows.spec.obs.shape) == (4, 4, (5 * 4,))
    rows.reset()
    rows.step({"action": torch.tensor([1, 0, 0, 3])})
    _, reward, _, _ = rows.step({"action": torch.tensor([1, 0, 0, 3])})
    assert reward.tolist() == [1.0, 0.0, 0.0, 1.0]  # each agent has its own
