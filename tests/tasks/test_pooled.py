"""EnvPool's environments as a task."""

import re
import sys

import numpy as np
import pytest
import torch

import polopt
from polopt.core.errors import Notice, UsageError
from polopt.tasks import make_task
from polopt.tasks.gym import GymTask

pytest.importorskip("envpool")
NAME = "envpool/CartPole-v1"


@pytest.fixture
def task():
    task = make_task(NAME, num=3, seed=1)
    yield task
    task.close()


def test_rows_are_reset_only_when_they_are_told_to(task):
    obs = task.reset()
    assert obs.shape == (3, 4)
    assert task.first.all()
    ended, before = 0, obs
    for _ in range(100):
        obs, reward, terminated, truncated = task.step({"action": torch.tensor([1, 1, 0])})
        assert not torch.equal(obs, before)
        assert torch.equal(reward, torch.ones(3))
        done = terminated | truncated
        if done.any():
            ended += int(done.sum())
            assert (obs[done, 2].abs() > 0.2).all() or (obs[done, 0].abs() > 2.4).all()  # the true successor
            new = task.reset(done)
            assert torch.equal(new[~done], obs[~done])
            assert (new[done].abs() <= 0.05).all()  # where CartPole starts
            assert torch.equal(task.first, done)
            obs = new
        before = obs
    assert ended > 10


def test_steps_are_those_of_gymnasium():
    """The same states and actions give the same successors: EnvPool and Gymnasium hold the same physics."""
    ours, theirs = make_task(NAME, num=1, seed=3), make_task("CartPole-v1", num=1, seed=3)
    state = ours.reset()
    theirs.reset()
    env = theirs._vector.envs[0].unwrapped
    for action in (0, 1, 1, 0, 1):
        env.state = state[0].double().numpy()
        expected, *_ = env.step(action)
        state, *_ = ours.step({"action": torch.tensor([action])})
        np.testing.assert_allclose(state[0].numpy(), expected, rtol=1e-5, atol=1e-6)


def test_evaluation_is_gymnasiums(task):
    other = make_task(NAME, num=2, seed=1, evaluation=True)
    assert type(other) is GymTask
    assert other.spec.obs.shape == task.spec.obs.shape
    assert other.spec.action.n == task.spec.action.n
    assert task.spec.info["horizon"] == 500


@pytest.mark.filterwarnings("ignore:EnvPool cannot bring back an episode")
def test_equal_seeds_give_equal_runs_and_others_do_not(tmp_path):
    options = {"steps": 128, "envs": 2, "window": 32, "threads": 1, "eval_episodes": 1}
    seeds = (0, 0, 1)
    runs = [polopt.train("ppo", NAME, seed=seed, out=tmp_path / f"{i}", **options) for i, seed in enumerate(seeds)]
    weights = [next(polopt.load(run.folder).parameters()) for run in runs]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_a_resumed_run_starts_its_episodes_anew(tmp_path):
    options = {"envs": 2, "window": 32, "threads": 1, "eval_episodes": 1}
    with pytest.warns(Notice, match="EnvPool cannot bring back an episode, so episodes start anew"):
        run = polopt.train("ppo", NAME, steps=64, out=tmp_path / "run", **options)
    with pytest.warns(Notice, match="EnvPool cannot bring back an episode, so episodes start anew"):
        assert polopt.resume(run.folder, extend=128).final["env_steps"] == 128
    assert "anew" in make_task(NAME).restore_note


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "envpool", None)
    with pytest.raises(UsageError, match=re.escape('pip install "polopt[envpool]"')):
        make_task(NAME)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("envpool/Nothing-v0", {}, "EnvPool has no environment 'Nothing-v0'"),
        (NAME, {"preset": "image"}, "no presets"),
        ("envpool/CheetahRun-v1", {}, "Dict observations"),
        (NAME, {"nothing": 1}, "cannot be made"),
    ],
)
def test_refusals(name, options, message):
    with pytest.raises(UsageError, match=message):
        make_task(name, **options)
