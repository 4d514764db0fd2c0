"""Episodes without end: what is kept of them is bounded, and evaluations that cut them say so."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

import polopt
from polopt.cli import main
from polopt.cli.main import _one_line
from polopt.core.errors import Notice, UsageError
from polopt.core.state import gather, restore
from polopt.evaluation.returns import evaluate_returns
from polopt.policies.wrappers import Uniform
from polopt.report import compare_table
from polopt.tasks import make_task, plans
from polopt.tasks.plans import Plans
from polopt.training.folder import Run

from .envs import Counter, endless


def nothing(rows: int) -> dict[str, torch.Tensor]:
    return {"action": torch.zeros(rows, dtype=torch.int64)}


def test_plans_hold_the_present_episodes_and_stay_small():
    """Against lists of everything, with episodes that end at random and one that never does."""
    kept = Plans(3, spaces.Box(-1, 1, (2,), np.float32))
    kept.longest = 20
    rng = np.random.default_rng(0)
    steps, truth = np.zeros(3, dtype=np.int64), [[], [], []]
    for time in range(2000):
        action = np.full((3, 2), time, np.float32) + np.arange(3)[:, None]
        kept.add(action, steps)
        steps += 1
        action_then = action.copy()
        action[:] = -1.0  # environments may write into what they are given
        for row in range(3):
            truth[row].append(action_then[row])
            if row and rng.random() < 0.1:
                steps[row], truth[row] = 0, []
        for row, plan in enumerate(kept.of(steps)):
            assert plan.tolist() == ([] if steps[row] > 20 else np.array(truth[row]).tolist())
        assert len(kept._kept) <= 2 * 20 + 64
    assert kept.whole(steps).tolist()[0] is False


def test_the_limit_follows_from_the_size_of_the_actions():
    assert Plans(1, spaces.Discrete(2)).longest == plans.LONGEST
    large = Plans(64, spaces.Box(-1, 1, (17,), np.float32))
    assert large.longest * 64 * 17 * 4 <= plans.BYTES < (large.longest + 1) * 64 * 17 * 4


@pytest.mark.parametrize("workers", [0, 2])
def test_a_row_beyond_the_limit_starts_anew_and_says_so(monkeypatch, workers):
    monkeypatch.setattr(plans, "LONGEST", 10)
    task = make_task(endless, num=2, workers=workers)
    start = task.reset()
    for _ in range(8):
        task.step(nothing(2))
    task.reset(torch.tensor([False, True]))
    for _ in range(6):
        last = task.step(nothing(2))[0]
    with pytest.raises(UsageError, match="endless cannot take a row back to where it was: its episode is longer than"):
        task.snapshot()
    state = gather(task)
    assert state["@actions"].tolist() == [0] * 6  # of the second row only
    other = make_task(endless, num=2, workers=workers)
    with pytest.warns(
        UserWarning, match="1 of the 2 episodes of endless were longer than the 10 steps that are kept, so they start"
    ):
        restore(other, state)
    assert torch.equal(other.obs[1], last[1])
    assert other.obs[0, 0] == other.obs[0, 1] != start[0, 1]  # the next start, not the one that was under way
    assert other.first.tolist() == [True, False]
    assert torch.equal(other.step(nothing(2))[0][1], task.step(nothing(2))[0][1])
    again = make_task(endless, num=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        restore(again, gather(other))  # both are short now
    assert torch.equal(again.obs, other.obs)
    for each in (task, other):
        each.close()


def train(folder: Path, **settings: Any) -> Run:
    return polopt.train(
        "ppo", endless, out=folder, steps=32, window=16, loggers=(), eval_episodes=3, eval_length=5, **settings
    )


def test_an_evaluation_that_was_cut_says_so(tmp_path, capsys, monkeypatch):
    said = r"3 of 3 episodes of endless had not ended after 5 decisions \(--eval-length\): they were cut"
    with pytest.warns(UserWarning, match=said):
        run = train(tmp_path / "run", progress=True)
    assert "3 episodes cut" in capsys.readouterr().err
    assert run.final["eval/cut"] == 3
    assert run.final["eval/length"] == 5
    assert run.final["eval/return"] == 15  # 1 + ... + 5
    with pytest.warns(Notice, match="2 of 2 episodes of endless had not ended"):
        scores = polopt.evaluate(run.folder, task=endless, episodes=2)
    assert (scores["cut"], scores["length"]) == (2, 5)
    monkeypatch.chdir(Path(__file__).parents[2])
    words = ["eval", str(run.folder), "--episodes", "2", "--task", "tests.tasks.envs:endless"]
    with pytest.warns(Notice, match="2 of 2 episodes of tests.tasks.envs:endless had not ended"):
        assert main(words) == 0
    assert "(2 greedy episodes, 2 of them cut before their end)" in capsys.readouterr().out
    with pytest.warns(Notice, match="had not ended"):
        assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["cut"] == 2
    page = polopt.report([run.folder], video=False).read_text()
    count = len(run.evaluations)
    assert f"In {count} evaluations episodes had not ended and were cut after 5 decisions (at most 3 at once)" in page
    table = compare_table([run.folder])
    assert "episodes had not ended" in " ".join(table.split())


@pytest.mark.filterwarnings("ignore:3 of 3 episodes of endless had not ended")
def test_a_run_goes_on_after_a_resume_that_began_an_episode_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(plans, "LONGEST", 10)
    run = train(tmp_path / "run")
    with pytest.warns(UserWarning, match="4 of the 4 episodes of endless were longer than the 10 steps that are kept"):
        polopt.resume(run.folder, task=endless, extend=128)
    assert run.final["env_steps"] == 128
    assert "train/length" not in run.final  # the episode that was left is not one that ended


def test_an_evaluation_of_whole_episodes_says_nothing():
    for end in ("terminated", "truncated"):  # at the limit itself
        task = make_task(Counter, length=5, end=end)
        task.longest = 5
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            scores = evaluate_returns(Uniform(task.spec), task, 3)
        assert scores == {"return": 15.0, "return_std": 0.0, "length": 5.0}


def test_warnings_of_a_command_are_one_line():
    assert _one_line(UserWarning("so it is"), UserWarning, polopt.__file__, 3) == "polopt: so it is\n"
    assert "UserWarning" in _one_line(UserWarning("so it is"), UserWarning, "/elsewhere/file.py", 3)
    painted = "\x1b[33mWARN: the latest `CartPole-v1`.\x1b[0m"
    assert _one_line(painted, UserWarning, "/elsewhere/file.py", 3) == "gymnasium: the latest `CartPole-v1`.\n"
    assert _one_line(Notice("so it is"), Notice, "/elsewhere/file.py", 3) == "polopt: so it is\n"
