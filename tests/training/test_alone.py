"""A saved policy stands alone: the run folder is enough, where the task's code, package, data and rewards are gone."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

import polopt
from polopt.core.errors import RunError, UsageError
from polopt.core.spec import Spec
from polopt.tasks import make_task
from polopt.tasks.base import Task
from polopt.tasks.described import Described, NotHere, describe
from polopt.tasks.ladders import Cuts
from polopt.tasks.making import registered_id
from polopt.training.folder import Run
from tests.training.runs import settings, train

OWN = """
import gymnasium
from gymnasium.envs.classic_control import CartPoleEnv
gymnasium.register("OwnPole-v0", entry_point=CartPoleEnv, max_episode_steps=20)
def make(): return gymnasium.make("OwnPole-v0")
def close(prompt, completion): return -abs(len(completion) - 2.0)
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes the module `my_code` importable; called, it is gone, and with it the id that it registered."""
    file = tmp_path / "code" / "my_code.py"
    file.parent.mkdir()
    file.write_text(OWN)
    monkeypatch.syspath_prepend(str(file.parent))
    __import__("my_code")

    def gone() -> None:
        file.unlink()
        sys.modules.pop("my_code", None)
        gymnasium.registry.pop("OwnPole-v0", None)

    yield gone
    sys.modules.pop("my_code", None)
    gymnasium.registry.pop("OwnPole-v0", None)


@pytest.mark.parametrize("task", ["my_code:make", "OwnPole-v0"])
@pytest.mark.parametrize("name", ["ppo", "bc-ppo"])
def test_the_code_of_the_environment_is_not_needed(name, task, own, tmp_path):
    run = polopt.train(name, task, out=tmp_path / "run", **settings(name))
    obs = np.array([0.01, -0.02, 0.03, 0.04], np.float32)
    with_task = polopt.load(run.folder, task=task)
    own()
    actor = polopt.load(run.folder)
    assert all((a == b).all() for a, b in zip(actor.state_dict().values(), with_task.state_dict().values()))
    assert actor.predict(obs) == with_task.predict(obs)
    assert actor.spec == with_task.spec
    refused = "say it again with --task my_code:make" if ":" in task else "there is no task 'OwnPole-v0'"
    for ask in (lambda: polopt.evaluate(run.folder), lambda: polopt.resume(run.folder, extend=1000)):
        with pytest.raises(UsageError, match=refused):
            ask()


def test_the_reward_functions_are_not_needed(own, tmp_path):
    options = {"pool": 10, "score_truncated": True, "rewards": "verifier,my_code:close"}
    run = polopt.train("rec", "vowels", out=tmp_path / "run", task_options=options, **settings("rec"))
    said = polopt.load(run.folder, rewards="verifier,my_code:close").predict("bc:")
    own()
    assert polopt.load(run.folder).predict("bc:") == said
    with pytest.raises(UsageError, match="say them again with --rewards verifier,my_code:close"):
        polopt.evaluate(run.folder)


def test_a_folder_without_spaces_asks_as_before(own, tmp_path):
    run = polopt.train("ppo", "my_code:make", out=tmp_path / "run", **settings("ppo", steps=16))
    (run.folder / "spaces.json").unlink()
    with pytest.raises(UsageError, match="say it again with --task my_code:make"):
        polopt.load(run.folder)
    assert polopt.load(run.folder, task="my_code:make").predict(np.zeros(4, np.float32)) in (0, 1)


@pytest.mark.parametrize("content", ["{", "[]", '{"spec": {}}', '{"spec": {"obs": {"box": {}}}, "said": {}}'])
def test_damaged_spaces_are_said_to_be(content, tmp_path):
    run = train("ppo", tmp_path / "run", steps=16)
    (run.folder / "spaces.json").write_text(content)
    with pytest.raises(RunError, match=r"spaces\.json is damaged"):
        polopt.load(run.folder)


def test_a_task_that_is_more_than_its_spaces_is_made_again(tmp_path):
    run = polopt.train("ppo", "chain", out=tmp_path / "run", **settings("ppo", steps=16))
    assert not (run.folder / "spaces.json").exists()  # the model of the task is no JSON
    assert polopt.load(run.folder).predict({"state": 0, "step": 0}) in (0, 1)


# What is written, and what it reads back as


class Stub(Task):
    num = 3

    def __init__(self, **spec: Any) -> None:
        self.spec = Spec(**spec)


BOX = spaces.Box(np.array([-np.inf, 0.1]), np.array([np.inf, 3.0]), dtype=np.float32)
IMAGE = spaces.Box(0, 255, (4, 84, 84), np.uint8)


@pytest.mark.parametrize(
    "space",
    [
        BOX,
        IMAGE,
        spaces.Box(-np.inf, np.inf, (2, 3), np.float64),
        spaces.Box(np.array([-3, 2**62 + 1]), np.array([4, 2**62 + 3]), dtype=np.int64),
        spaces.Box(0.0, 1.0, (0,), np.float32),
        spaces.Discrete(4, start=-1),
        spaces.MultiDiscrete([2, 3], start=[1, 0]),
        spaces.MultiBinary(3),
        spaces.MultiBinary((2, 2)),
        spaces.Text(30),
        spaces.Dict({"b": BOX, "action_mask": spaces.MultiBinary(3), "a": spaces.Tuple([IMAGE, spaces.Discrete(2)])}),
    ],
    ids=lambda space: type(space).__name__,
)
def test_spaces_come_back_as_they_were(space):
    facts = {"rewards": (2,), "cost": ()}
    task = Stub(obs=space, action=BOX, env_obs=space, facts=facts, objectives=("a", "b"), info={"horizon": np.int64(5)})
    written = json.dumps(describe(task))
    assert "Infinity" not in written
    found = Described(json.loads(written))
    assert found.spec == task.spec
    assert found.spec.raw_obs == space
    assert found.spec.facts == facts
    assert found.spec.info == {"horizon": 5}
    assert len(json.dumps(describe(Stub(obs=IMAGE, action=BOX)))) < 1000  # bounds of an image are one number


def test_a_described_task_plays_nothing():
    found = Described(json.loads(json.dumps(describe(make_task("addition", num=2, pool=7)))))
    assert (found.size, found.scores, found.num) == (7, True, 2)
    assert found.twin(5).num == 5
    ladder = Cuts((0.25, 0.5))
    assert found.with_ladder(ladder).size == make_task("addition", pool=7).with_ladder(ladder).size == 21
    for ask in (found.reset, lambda: found.step({}), lambda: found.problems([0])):
        with pytest.raises(NotHere, match=r"^of addition only the spaces are here, and this needs the task itself$"):
            ask()
    assert getattr(found, "map", None) is None
    assert describe(Stub(obs=BOX, action=BOX, info={"mdp": object()})) is None


# The id of an environment


def changed(name: str, value: Any) -> gymnasium.Env:
    env = gymnasium.make("CartPole-v1")
    setattr(env.unwrapped, name, value)
    return env


@pytest.mark.parametrize(
    ("env", "name"),
    [
        (gymnasium.make("CartPole-v1"), "CartPole-v1"),
        (gymnasium.make("CartPole-v1", render_mode="rgb_array"), "CartPole-v1"),
        (gymnasium.make("CartPole-v1", disable_env_checker=True), "CartPole-v1"),
        (gymnasium.make("CartPole-v1", max_episode_steps=7), None),
        (gymnasium.make("CartPole-v1", sutton_barto_reward=True), None),
        (gymnasium.wrappers.TransformReward(gymnasium.make("CartPole-v1"), lambda reward: 2 * reward), None),
        (gymnasium.wrappers.TimeLimit(gymnasium.make("CartPole-v1"), 7), None),
        (changed("gravity", 1.0), None),
        (changed("x_threshold", 1.0), None),
        (gymnasium.make("CartPole-v1").unwrapped, None),
    ],
)
def test_an_environment_has_the_id_that_makes_one_like_it(env, name):
    before = env.unwrapped.np_random.bit_generator.state
    assert registered_id(env) == name
    assert env.unwrapped.np_random.bit_generator.state == before


def test_a_run_made_of_an_environment_is_read_by_its_id(tmp_path):
    run = polopt.train("sac", gymnasium.make("Pendulum-v1"), out=tmp_path / "run", **settings("sac"))
    assert Run(run.folder).config["task"] == "Pendulum-v1"
    assert polopt.evaluate(run.folder, episodes=1)["length"] == 200
