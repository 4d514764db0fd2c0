"""Returns in many models, against episodes that the world plays one model at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import polopt
from polopt.cli import main
from polopt.core.errors import UsageError
from polopt.data.episodes import Episodes
from polopt.evaluation.robust import (
    grid_returns,
    returns_from,
    robust_figures,
    robust_scores,
    world_of,
)
from polopt.tasks import make_task
from polopt.training.over_grid import over_grid
from tests.tasks.worlds import Toll


class Brakes:
    """Against the speed, in Nm."""

    def act(self, obs: Any, carry: Any = None, *, greedy: bool = False) -> Any:
        return {"action": -obs[:, 2:]}, carry

    def env_action(self, action: Any) -> Any:
        return action


def test_a_grid_is_what_the_world_plays_in_each_model(float64: None) -> None:
    task: Any = make_task("pendulum", 4, seed=3, evaluation=True, horizon=30)
    task.reset()
    kept = task.obs.clone()
    returns = grid_returns(Brakes(), task, 3, 4)
    assert torch.equal(task.obs, kept)
    assert returns.shape == (3, 3)
    for row, mass in enumerate((0.7, 1.0, 1.3)):
        for column, length in enumerate((0.8, 1.0, 1.2)):
            task.levels = {"mass": torch.tensor([mass]), "length": torch.tensor([length])}
            batch = Episodes(task, starts=range(4), greedy=True).next(Brakes())
            assert returns[row, column].item() == pytest.approx(batch["reward"].sum(1).mean().item())
    assert robust_scores(returns) == {"worst": returns.min().item(), "grid_mean": returns.mean().item()}


def test_nothing_counts_after_an_end() -> None:
    """Two rows: one begins at the goal and ends at once, the other walks away until the time is over."""
    world: Any = make_task(Toll, 2, wind=0.0, horizon=5)
    world.levels = {"place": torch.tensor([[0.0, 0.0], [0.0, 0.0]]), "goal": torch.tensor([[0.25, 0.0], [1.0, 0.0]])}

    class Walks(Brakes):
        def act(self, obs: Any, carry: Any = None, *, greedy: bool = False) -> Any:
            return {"action": torch.tensor([[1.0, 0.0], [-1.0, 0.0]])}, carry

    returns, taken = returns_from(world, Walks(), world.start_of(0, 1))
    torch.testing.assert_close(returns, torch.tensor([-0.15, -1.1 - 1.2 - 1.3 - 1.4 - 1.5]).double())
    assert taken == 1 + 5
    world.longest = 2
    returns, taken = returns_from(world, Walks(), world.start_of(0, 1))
    torch.testing.assert_close(returns, torch.tensor([-0.15, -1.1 - 1.2]).double())
    assert taken == 1 + 2


def test_figures_show_the_worst_over_the_other_parameters() -> None:
    _, box = world_of(make_task("pendulum"))
    returns = torch.tensor([[3.0, 1.0], [2.0, 5.0]])
    figures: Any = robust_figures({"one": returns, "two": returns + 1}, box)
    assert figures["worst return by mass"].lines == {"one": [1.0, 2.0], "two": [2.0, 3.0]}
    assert figures["worst return by mass"].x == pytest.approx([0.7, 1.3])
    assert figures["worst return by length"].lines["one"] == [2.0, 1.0]
    assert figures["return of one"].values == [[3.0, 1.0], [2.0, 5.0]]


def test_other_tasks_are_refused() -> None:
    with pytest.raises(UsageError, match="point/risky has no parameters that differ between models, as the task pendu"):
        world_of(make_task("point/risky"))
    task = make_task("Pendulum-v1")
    task.spec.info["parameters"] = {"mass": [0.5, 1.0]}
    with pytest.raises(UsageError, match="models are compared in worlds of torch, and Pendulum-v1 is none"):
        world_of(task)


def test_any_policy_is_evaluated_over_a_grid(tmp_path: Any, capsys: Any) -> None:
    small: dict[str, Any] = {"steps": 8, "window": 4, "envs": 2, "loggers": (), "eval_episodes": 1}
    options = {"horizon": 10}
    run = polopt.train("ppo", "pendulum", task_options=options, out=tmp_path / "run", **small, minibatches=1)
    scores = over_grid(run.folder, 3, episodes=2)
    assert scores["worst"] < scores["grid_mean"]
    middle = over_grid(run.folder, 1, episodes=2)
    assert middle["worst"] == middle["grid_mean"]
    assert middle["worst"] == pytest.approx(polopt.evaluate(run.folder, episodes=2)["return"])
    assert (middle["worst/mass"], middle["worst/length"]) == (1.0, 1.0)
    task: Any = make_task("pendulum", 2, horizon=10)
    assert scores["worst/mass"] in task.parameters.values(task.parameters.grid(3))["mass"].tolist()
    assert main(["eval", str(run.folder), "--episodes", "2", "--grid", "3"]) == 0
    assert f"worst {scores['worst']:.1f}" in capsys.readouterr().out
    assert main(["eval", str(run.folder), "--grid", "0"]) == 2
    other = polopt.train("ppo", "point/goals", out=tmp_path / "other", **small, minibatches=1)
    with pytest.raises(UsageError, match="point/goals has no parameters that differ between models"):
        over_grid(other.folder)
