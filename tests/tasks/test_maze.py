from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

from polopt.core.errors import UsageError
from polopt.tasks import make_task
from polopt.tasks.maze import Maze, PointMaze, UMaze, behavior_episodes, transitions

UP, RIGHT, DOWN, LEFT = range(4)


@pytest.mark.filterwarnings("ignore:.*")
@pytest.mark.parametrize(
    "env",
    [UMaze(), UMaze(obs="cell", starts="any"), UMaze(layout="cross"), PointMaze(), PointMaze(dims=6, starts="any")],
    ids=["u", "cells", "cross", "point", "six"],
)
def test_it_follows_gymnasium(env: Maze) -> None:
    check_env(env, skip_render_check=True)


def test_the_u_is_walked_by_hand() -> None:
    env = UMaze(obs="cell")
    assert env.reset(seed=0)[0] == 9 * 11 + 1
    assert env.step(LEFT)[:4] == (9 * 11 + 1, 0.0, False, False)  # a wall
    way = [RIGHT] * 6 + [UP] * 8 + [LEFT] * 6
    ends = [env.step(action)[1:4] for action in way]
    assert ends == [(0.0, False, False)] * 19 + [(1.0, True, False)]


def test_coordinates_are_the_scaled_cell() -> None:
    obs, _ = UMaze().reset()
    assert obs.tolist() == pytest.approx([0.8, -0.8])
    obs, _ = UMaze().reset(options={"start": (1, 9)})
    assert obs.tolist() == pytest.approx([-0.8, 0.8])
    with pytest.raises(UsageError, match=r"the cell \(0, 0\) is a wall"):
        UMaze().reset(options={"start": (0, 0)})


def test_distances_are_those_of_shortest_paths() -> None:
    env = UMaze()
    distance = env.distances()
    assert distance[env.goal] == 0
    assert distance[env.start] == 20
    assert (distance >= 0).sum() == len(env.free) == 9 * 6 + 3 * 3
    for cell in env.free:
        after = [distance[env.moved(cell, action)] for action in range(4)]
        assert cell == env.goal or min(after) == distance[cell] - 1


def test_rewards_and_the_time_limit() -> None:
    env = UMaze(horizon=2, goal_reward=0.0, step_reward=-1.0)
    env.reset(seed=0, options={"start": (1, 3)})
    assert env.step(LEFT)[1:4] == (-1.0, False, False)
    assert env.step(LEFT)[1:4] == (0.0, True, False)  # the goal at the limit is no truncation
    env.reset(seed=0)
    env.step(UP)
    assert env.step(UP)[1:4] == (-1.0, False, True)


def test_starts_are_anywhere_if_asked() -> None:
    obs: Any = make_task("u-maze", num=400, starts="any", obs="cell").reset()
    cells = set(obs.tolist())
    assert len(cells) > 50
    assert 1 * 11 + 1 not in cells


def test_crossing_episodes_never_lead_from_the_start_to_the_goal() -> None:
    episodes = behavior_episodes("u-maze/crossing", 100, 0, layout="cross", obs="cell")
    env = UMaze(layout="cross", obs="cell")
    goal, start = env.observe(env.goal), env.observe(env.start)
    for index, episode in enumerate(episodes):
        assert len(episode["action"]) == 8
        assert episode["terminated"][-1] == (index % 2 == 1)
        assert episode["truncated"][-1] == (index % 2 == 0)
        assert not (episode["obs"][0] == start and episode["obs"][-1] == goal)
        assert episode["obs"][4] == 5 * 11 + 5  # all of them meet in the middle
    with pytest.raises(UsageError, match="the layout 'u' has no X"):
        UMaze().behavior_episodes("crossing", 100, 0)


def test_the_mixture_begins_with_one_shortest_path() -> None:
    episodes = behavior_episodes("u-maze/mixture", 1000, 0)
    assert len(episodes[0]["action"]) == 20
    assert episodes[0]["reward"].sum() == 1.0
    assert np.bincount(episodes[1]["action"]).min() > 10


def test_the_block_stops_the_point_which_slides_along_it() -> None:
    env = PointMaze()
    env.reset(options={"start": (-0.45, 0.0)})
    obs, *_ = env.step([1.0, 0.5])
    assert obs.tolist() == pytest.approx([-0.45, 0.05])
    obs, *_ = env.step([1.0, 0.0])
    assert obs.tolist() == pytest.approx([-0.45, 0.05])
    obs, *_ = env.step([-1.0, 3.0])  # actions count up to 1
    assert obs.tolist() == pytest.approx([-0.55, 0.15])
    env.reset(options={"start": (-0.98, -0.98)})
    assert env.step([-1.0, -1.0])[0].tolist() == [-1.0, -1.0]


def test_the_point_reaches_its_goal_in_all_coordinates() -> None:
    env = PointMaze(dims=3)
    env.reset(options={"start": (0.6, 0.0, 0.3)})
    assert env.step([1.0, 0.0, -1.0])[1:4] == (0.0, False, False)  # the third one is still 0.2
    assert env.step([0.0, 0.0, -1.0])[1:4] == (1.0, True, False)


def test_both_ways_are_taken_and_some_get_lost() -> None:
    episodes = behavior_episodes("point-maze/routes", 8000, 1)
    success = np.mean([episode["terminated"][-1] for episode in episodes])
    above = np.mean([np.abs(e["obs"][:, 1]).max() == e["obs"][:, 1].max() for e in episodes if e["terminated"][-1]])
    assert 0.6 < success < 0.8
    assert 0.35 < above < 0.65
    experts = behavior_episodes("point-maze/expert", 1000, 1)
    assert all(episode["terminated"][-1] for episode in experts)
    assert max(len(episode["action"]) for episode in experts) < 30


def test_the_six_dimensional_behavior_succeeds_too() -> None:
    episodes = behavior_episodes("point-maze/routes", 4000, 2, dims=6)
    assert episodes[0]["action"].shape[1:] == (6,)
    assert 0.6 < np.mean([episode["terminated"][-1] for episode in episodes]) < 0.85


def test_equal_seeds_give_equal_episodes() -> None:
    one, same, other = (transitions(behavior_episodes("point-maze/routes", 500, seed)) for seed in (3, 3, 4))
    assert torch.equal(one["action"], same["action"])
    assert not torch.equal(one["action"][:40], other["action"][:40])


def test_transitions_follow_each_other() -> None:
    episodes = behavior_episodes("point-maze/routes", 500, 0)
    batch = transitions(episodes)
    assert len(batch) == sum(len(episode["action"]) for episode in episodes) >= 500
    assert batch["obs"].dtype == batch["action"].dtype == batch["reward"].dtype == torch.get_default_dtype()
    inside = ~batch["first"][1:]
    assert torch.equal(batch["next_obs"][:-1][inside], batch["obs"][1:][inside])
    assert torch.equal((batch["terminated"] | batch["truncated"])[:-1], ~inside)
    replayed = PointMaze()
    replayed.reset(options={"start": batch["obs"][0].double().numpy()})
    moved, *_ = replayed.step(batch["action"][0].numpy())
    assert torch.allclose(torch.from_numpy(moved), batch["next_obs"][0].float(), atol=1e-6)


def test_pictures() -> None:
    for name, size in (("u-maze", 88), ("point-maze", 96)):
        task = make_task(name, num=1, render_mode="rgb_array")
        task.reset()
        (image,) = task.render()
        assert image.shape == (size, size, 3)
        assert len(np.unique(image.reshape(-1, 3), axis=0)) == 4  # walls, floor, goal, the one who walks


@pytest.mark.parametrize("name", ["u-maze", "point-maze"])
def test_they_restore_exactly(name: str) -> None:
    assert make_task(name).exact_restore


def test_wrong_names_and_values() -> None:
    for call, message in (
        (lambda: behavior_episodes("point-maze/route", 1, 0), "no behavior 'route'"),
        (lambda: behavior_episodes("pointmaze/routes", 1, 0), "no maze 'pointmaze'"),
        (lambda: UMaze(layout="v"), "no layout 'v'"),
        (lambda: UMaze(obs="pixels"), "'coordinates' or 'cell', not 'pixels'"),
        (lambda: UMaze(starts="all"), "'fixed' or 'any', not 'all'"),
        (lambda: UMaze(horizon=0), "at least 1 step, not 0"),
        (lambda: PointMaze(dims=1), "dims of at least 2"),
    ):
        with pytest.raises(UsageError, match=message):
            call()
