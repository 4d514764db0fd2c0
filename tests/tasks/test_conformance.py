"""Every kind of environment through every reader of it, against numbers that are known beforehand (`truth`).

Training, replay, evaluation, `predict`, recorded data, learning from them and videos must see the same: what the
environment's own formulas say it showed, and what it wrote down itself that it was given.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import safetensors.numpy
import torch
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env
from gymnasium.utils.seeding import np_random

import polopt
from polopt import registry
from polopt.core.errors import UsageError
from polopt.data import Replay, ReplaySource, Rollouts
from polopt.data.demonstrations import load_demonstrations
from polopt.data.storing import write_dataset
from polopt.policies.wrappers import Uniform
from polopt.report.compare import record as film
from polopt.tasks import make_task
from polopt.tasks.making import Maker
from polopt.tasks.named import NAMED, own_class
from polopt.tasks.restorable import Row
from polopt.training.folder import Run
from tests.guards.spaces import Pair

from .truth import LONG, MASK, Cell, Layout, known, reward_of, step_of

minari = pytest.importorskip("minari")

VECTOR = spaces.Box(-1.0, 2.0, (3,), np.float32)
TWO = spaces.Discrete(2)

OBSERVATIONS: dict[str, spaces.Space] = {
    "float32": VECTOR,
    "float64": spaces.Box(np.array([-1.0, 0.0, 5.0]), np.array([1.0, 0.5, 90.0]), dtype=np.float64),
    "float16": spaces.Box(-1.0, 1.0, (2, 3), np.float16),
    "unbounded": spaces.Box(np.array([-np.inf, 0.0, -np.inf]), np.array([np.inf, np.inf, 3.0]), dtype=np.float32),
    "int64": spaces.Box(-1000, 5, (2,), np.int64),
    "int8": spaces.Box(-128, 127, (2,), np.int8),
    "uint16": spaces.Box(0, 65535, (2,), np.uint16),
    "bool": spaces.Box(0, 1, (3,), np.bool_),
    "bytes": spaces.Box(0, 255, (5,), np.uint8),
    "picture": spaces.Box(0, 255, (12, 12, 3), np.uint8),
    "scalar": spaces.Box(-1.0, 1.0, (), np.float32),
    "discrete": spaces.Discrete(7),
    "discrete from -3": spaces.Discrete(5, start=-3),
    "multi-discrete": spaces.MultiDiscrete([3, 4]),
    "table from 1": spaces.MultiDiscrete([[3, 4], [2, 5]], start=[[1, 1], [-2, 10]]),
    "bits": spaces.MultiBinary(4),
    "table of bits": spaces.MultiBinary([2, 3]),
    "nested": spaces.Dict(
        {
            "b": spaces.Dict({"x": VECTOR, "place": spaces.Discrete(4, start=2)}),
            "a": spaces.MultiBinary(2),
            "picture": spaces.Box(0, 255, (8, 8), np.uint8),
            "whole": spaces.Box(-9, 9, (2,), np.int32),
        }
    ),
    "pair": spaces.Tuple([VECTOR, spaces.Tuple([spaces.Discrete(4, start=2), spaces.MultiBinary(2)])]),
    "odd names": spaces.Dict({"a/b": VECTOR, "x.y": spaces.Discrete(3), "type": VECTOR, "keys": VECTOR}),
}

ACTIONS: dict[str, spaces.Space] = {
    "discrete": spaces.Discrete(3),
    "discrete from -1": spaces.Discrete(3, start=-1),
    "multi-discrete": spaces.MultiDiscrete([2, 3]),
    "table from 1": spaces.MultiDiscrete([[2, 3], [4, 2]], start=[[1, 0], [-1, 5]]),
    "asymmetric": spaces.Box(np.array([-2.0, 0.5]), np.array([1.0, 0.75]), dtype=np.float32),
    "float64": spaces.Box(-3.0, 1.0, (1,), np.float64),
    "float16": spaces.Box(-3.0, 1.0, (2,), np.float16),
    "scalar": spaces.Box(-3.0, 1.0, (), np.float32),
    "table": spaces.Box(-0.1, 10.0, (2, 2), np.float32),
    "unbounded": spaces.Box(-np.inf, np.inf, (2,), np.float32),
    "half": spaces.Box(np.array([0.0, -np.inf]), np.array([np.inf, 1.0]), dtype=np.float32),
    "int64": spaces.Box(-2, 2, (2,), np.int64),
    "bytes": spaces.Box(0, 255, (3,), np.uint8),
}

PROBES = {int(np_random(seed)[0].integers(1, 4096)) for seed in range(3)}
"""The keys of throw-away copies, which find out what an info holds and whether an episode can be restored."""

LAYOUTS = ["lists", "wide", "negative strides", "every second", "fortran", "read-only", "one buffer"]


def masked(action: spaces.Space, kind: type, dtype: Any = np.int8) -> spaces.Dict:
    size = int(action.n if isinstance(action, spaces.Discrete) else action.nvec.sum())
    mask = spaces.MultiBinary(size) if kind is spaces.MultiBinary else spaces.Box(0, 1, (size,), dtype)
    return spaces.Dict({"x": VECTOR, MASK: mask})


TABLE: dict[str, Cell] = {f"observes {name}": Cell(space, TWO) for name, space in OBSERVATIONS.items()}
TABLE |= {f"does {name}": Cell(VECTOR, space) for name, space in ACTIONS.items()}
TABLE |= {f"shows {layout}": Cell(OBSERVATIONS["float16"], ACTIONS["table"], layout=layout) for layout in LAYOUTS}
TABLE |= {
    f"shows nested {layout}": Cell(OBSERVATIONS["nested"], TWO, layout=layout) for layout in ("lists", "one buffer")
}
TABLE |= {
    "masks bits": Cell(masked(ACTIONS["discrete from -1"], spaces.MultiBinary), ACTIONS["discrete from -1"]),
    "masks int8": Cell(masked(ACTIONS["multi-discrete"], spaces.Box), ACTIONS["multi-discrete"]),
    "masks bool": Cell(masked(ACTIONS["discrete"], spaces.Box, np.bool_), ACTIONS["discrete"]),
    "ends at once": Cell(VECTOR, TWO, length=1),
    "ends at once, cut": Cell(VECTOR, ACTIONS["asymmetric"], length=1, end="truncated"),
    "ends both ways": Cell(VECTOR, TWO, length=3, end="both"),
    "ends never": Cell(VECTOR, ACTIONS["asymmetric"], length=10**9),
}
FILMED = ("observes picture", "observes discrete from -3", "does discrete from -1", "does asymmetric", "does int64")
OFF_POLICY = ("does asymmetric", "does int64")
IN_WORKERS = ("observes nested", "shows one buffer", "masks bits", "ends at once")


@pytest.mark.filterwarnings("ignore:.* had not ended after 6 decisions")  # of "ends never"
@pytest.mark.parametrize(("name", "workers"), [*((n, 0) for n in TABLE), *((n, 2) for n in IN_WORKERS)])
def test_all_readers_see_the_same_numbers(name, workers, tmp_path, monkeypatch):
    (tmp_path / "log").mkdir()
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "data"))
    check = Check(replace(TABLE[name], log=str(tmp_path / "log")), tmp_path, monkeypatch)
    run = check.rollouts(workers)
    check.evaluation(run)
    if workers:
        return
    check.replay()
    check.recorded(run)
    if name in OFF_POLICY:
        check.off_policy()
    if name in FILMED:
        check.video(run)


class Check:
    """The pipeline for one place of the table."""

    def __init__(self, cell: Cell, folder: Path, monkeypatch: Any) -> None:
        self.cell, self.folder, self.monkeypatch = cell, folder, monkeypatch
        self.given: dict[tuple[int, int], list[np.ndarray]] = {}  # what the environments wrote down
        self.read: dict[Path, int] = {}
        self.length = min(cell.length, 6)  # of episodes that are played whole

    def log(self) -> list[tuple[int, int, np.ndarray]]:
        """What the environments were given since the last call: in the space, legal, and of its type and shape."""
        found = []
        for path in sorted(Path(self.cell.log).glob("*.jsonl")):
            lines = path.read_text().splitlines()
            for line in lines[self.read.get(path, 0) :]:
                key, time, action, dtype, shape, fits = json.loads(line)
                if key in PROBES:
                    continue
                assert fits, f"{action} was given"
                assert np.dtype(dtype) == self.cell.action.dtype
                assert tuple(shape) == (self.cell.action.shape or ())
                found.append((key, time, np.array(action, dtype=dtype)))
                self.given.setdefault((key, time), []).append(found[-1][2])
            self.read[path] = len(lines)
        return found

    def shown(self, key: int, time: int) -> Any:
        return known(self.cell.obs, key, time, self.cell.action)

    # What a learner sees

    def batches(self, batches: list[Any], actor: Any) -> None:
        """Every decision of the batches [...], whose actions are those of `actor`."""
        self.log()
        assert batches
        for batch in batches:
            batch = batch.reshape(-1)
            env_action = actor.env_action(batch["action"])
            self.by_hand(batch["action"], env_action, actor.unit)
            after = "next_obs" if "next_obs" in batch.keys() else "final_obs"
            for row, reward in enumerate(batch["reward"].tolist()):
                key, time = step_of(reward)
                assert (key, time) in self.given, "an invented step"
                same_as_served(self.cell.obs, self.shown(key, time), batch["obs"][row])
                same_as_served(self.cell.obs, self.shown(key, time + 1), batch[after][row])
                assert self.was_given(key, time, env_action[row].numpy())
                assert batch["where"][row].tolist() == [key, time + 1]
                over = time + 1 == self.cell.length
                assert bool(batch["terminated"][row]) == (over and self.cell.end != "truncated")
                assert bool(batch["truncated"][row]) == (over and self.cell.end != "terminated")
                if "first" in batch.keys():
                    assert bool(batch["first"][row]) == (time == 0)
                if MASK in batch.keys():
                    assert batch[MASK][row].tolist() == self.shown(key, time)[MASK].astype(bool).tolist()

    def was_given(self, key: int, time: int, action: np.ndarray) -> bool:
        """Whether the environment was given this action at this step; whole numbers are rounded on their way."""
        space = self.cell.action
        if np.issubdtype(space.dtype, np.integer):
            action = np.rint(action)
        return any(np.array_equal(action.astype(space.dtype), each) for each in self.given[key, time])

    def by_hand(self, stored: torch.Tensor, given: torch.Tensor, unit: bool) -> None:
        """The actions of the environment for the stored ones, in other words than the policies'."""
        space: Any = self.cell.action
        raw = stored.numpy().reshape(len(stored), -1).astype(np.float64)
        if isinstance(space, (spaces.Discrete, spaces.MultiDiscrete)):
            wanted = raw + np.ravel(space.start)
        elif unit:
            low, high = space.low.reshape(-1).astype(np.float64), space.high.reshape(-1).astype(np.float64)
            wanted = low + (high - low) * (np.clip(raw, -1, 1) + 1) / 2
        else:
            wanted = np.clip(raw, space.low.reshape(-1), space.high.reshape(-1))
        np.testing.assert_allclose(given.numpy().reshape(len(stored), -1), wanted, rtol=1e-3, atol=1e-6)

    # The stages

    def train(self, method: str, out: str = "", **settings: Any) -> tuple[Run, list[Any], Any]:
        """A short run, and what it learned from."""
        seen: list[Any] = []
        cls = registry.load(method)
        update = cls.update

        def spy(self: Any, batch: Any) -> Any:
            seen.append(batch.clone())
            spy.behavior = self.behavior
            return update(self, batch)

        self.monkeypatch.setattr(cls, "update", spy)
        few = {"eval_every": 10**6, "eval_episodes": 2, "eval_length": 6}
        settings = {"loggers": (), "network.sizes": (4,)} | few | settings
        run = polopt.train(method, self.cell, out=self.folder / (out or method), facts=("where",), **settings)
        return run, seen, spy.behavior

    def rollouts(self, workers: int) -> Run:
        small = {"steps": 56, "envs": 2, "window": 14, "epochs": 1, "minibatches": 1, "normalize_obs": True}
        run, seen, actor = self.train("ppo", workers=workers, **small)
        self.batches(seen, actor)
        assert sum(batch.numel() for batch in seen) == 56
        return run

    def replay(self) -> None:
        task = make_task(self.cell, num=2, facts=("where",))
        policy: Any = polopt.load(self.folder / "ppo", task=self.cell)
        source = ReplaySource(Rollouts(task, 3), Replay(30), 16, 12, 0.5, lambda actor: Uniform(task.spec, like=actor))
        self.batches([source.next(policy) for _ in range(6)], policy)
        task.close()

    def off_policy(self) -> None:
        """Methods that learn from a replay, and from a dataset first and from what they play after it."""
        _, seen, actor = self.train("sac", steps=24, warmup=12, batch_size=8, replay_size=20)
        self.batches(seen, actor)
        before = set(self.given)
        online = {"offline_updates": 2, "online_steps": 5, "replay_size": 40, "batch_size": 16, "steps": 8}
        online |= {"seed": 1}  # for starts that nobody has seen
        _, seen, actor = self.train("iql", out="online", dataset="truth-v0", **online)
        self.log()
        known_before = [{step_of(reward) for reward in batch["reward"].tolist()} <= before for batch in seen]
        assert known_before == [True] * 2 + [False] * 6
        self.learned(seen, actor)

    def evaluation(self, run: Run) -> None:
        """The scores are those of what was played, and `predict` does what was done, for the same observation."""
        self.log()
        scores = polopt.evaluate(run.folder, task=self.cell, episodes=3)
        played = self.log()
        assert {time for _, time, _ in played} == set(range(self.length))
        keys = {key for key, _, _ in played}
        returns = [sum(reward_of(key, time) for time in range(self.length)) for key in keys]
        assert len(keys) == 3 == len(played) / self.length
        assert scores["return"] == pytest.approx(np.mean(returns), rel=1e-6)
        assert scores["length"] == self.length
        assert scores.get("cut", 0) == (3 if self.cell.length > self.length else 0)
        policy, layout = polopt.load(run.folder, task=self.cell), Layout(self.cell.layout)
        for key, time, action in played:
            predicted = policy.predict(layout(self.shown(key, time)))
            assert np.asarray(predicted).dtype == self.cell.action.dtype
            assert self.cell.action.contains(predicted)
            np.testing.assert_allclose(np.asarray(predicted), action, rtol=1e-3, atol=1e-5)

    def recorded(self, run: Run) -> None:
        """Demonstrations, a dataset made of them as others read it, and what is learned from it."""
        if self.cell.length > self.length:
            return
        file = polopt.demonstrate(run.folder, self.folder / "demonstrations", task=self.cell, episodes=3)
        self.log()
        raw = safetensors.numpy.load_file(file)
        assert len(raw["reward"]) == 3 * self.length
        for row, reward in enumerate(raw["reward"].tolist()):
            key, time = step_of(reward)
            for start, step in (("obs", time), ("next_obs", time + 1)):
                for path in paths(self.cell.obs):
                    name = path.replace("/", "~1").replace("~1~1", "/")
                    value = torch.as_tensor(raw[f"{start}{name}"][row])
                    same_as_served(at(self.cell.obs, path), at(self.shown(key, step), path), value, mask=MASK in path)
            assert self.was_given(key, time, raw["action"][row])
        task = make_task(self.cell, facts=("where",))
        learned = load_demonstrations(file, task.spec)
        source = "truth-v0"
        if any("a/b" in path for path in paths(self.cell.obs)):
            source = str(file)
            with pytest.raises(UsageError, match="truth observes something under 'a/b', a key that Minari cannot"):
                write_dataset("truth-v0", learned, task.spec)
        else:
            write_dataset("truth-v0", learned, task.spec)
            self.minari()
        bounded = isinstance(self.cell.action, spaces.Box) and self.cell.action.is_bounded()
        method = "iql" if bounded else "bc"
        names = {"iql": "dataset", "bc": "demonstrations"}
        _, seen, actor = self.train(method, **{names[method]: source, "steps": 4, "batch_size": 16})
        self.learned(seen, actor)
        task.close()

    def learned(self, batches: list[Any], actor: Any) -> None:
        """Every decision of minibatches of recorded data, whose actions are those of `actor` up to rounding."""
        for batch in batches:
            for row, reward in enumerate(batch["reward"].tolist()):
                key, time = step_of(reward)
                same_as_served(self.cell.obs, self.shown(key, time), batch["obs"][row])
                assert self.nearly_given(key, time, actor.env_action(batch["action"][row : row + 1])[0].numpy())

    def nearly_given(self, key: int, time: int, action: np.ndarray) -> bool:
        """Whether it was, up to the rounding of a policy that acts in other units."""
        if np.issubdtype(self.cell.action.dtype, np.integer):
            action = np.rint(action)
        return any(np.allclose(action, each, rtol=1e-3, atol=1e-5) for each in self.given[key, time])

    def minari(self) -> None:
        """Another library reads the dataset: the environment's own observations and actions, in its own spaces."""
        dataset = minari.load_dataset("truth-v0")
        assert dataset.observation_space == self.cell.obs
        assert dataset.action_space == self.cell.action
        for episode in dataset.iterate_episodes():
            key, _ = step_of(episode.rewards[0])
            assert episode.rewards.tolist() == [reward_of(key, time) for time in range(self.length)]
            assert episode.terminations.tolist() == [False] * (self.length - 1) + [self.cell.end != "truncated"]
            assert episode.truncations.tolist() == [False] * (self.length - 1) + [self.cell.end != "terminated"]
            assert episode.infos["where"].tolist() == [[0, 0], *([key, time + 1] for time in range(self.length))]
            for path in paths(self.cell.obs):
                stored = at(episode.observations, path)
                wanted = [at(self.shown(key, time), path) for time in range(self.length + 1)]
                assert stored.dtype == wanted[0].dtype
                np.testing.assert_allclose(stored, np.stack(wanted), rtol=1e-6)  # it was read as float32
            for time, action in enumerate(episode.actions):
                assert any(np.array_equal(action, each) for each in self.given[key, time])

    def video(self, run: Run) -> None:
        self.log()
        film_of = film(run.folder, task=self.cell, seconds=1)
        assert isinstance(film_of, Path), film_of
        facts, played = json.loads(film_of.with_suffix(".json").read_text()), self.log()
        key = played[0][0]
        assert [(key, time) for time in range(self.length)] == [step[:2] for step in played]
        assert (facts["length"], facts["return"]) == (self.length, sum(reward_of(key, t) for t in range(self.length)))
        policy = polopt.load(run.folder, task=self.cell)
        for key, time, action in played:
            np.testing.assert_array_equal(policy.predict(self.shown(key, time)), action)


def paths(space: spaces.Space, path: str = "") -> Iterator[str]:
    """The leaves of a space: "//b//place"."""
    if isinstance(space, (spaces.Dict, spaces.Tuple)):
        entries = space.spaces.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces)
        for name, part in entries:
            yield from paths(part, f"{path}//{name}")
    else:
        yield path


def at(value: Any, path: str) -> Any:
    """The leaf of a space or observation."""
    for name in path.split("//")[1:]:
        value = value[int(name) if isinstance(value, (tuple, spaces.Tuple)) else name]
    return value


def same_as_served(space: spaces.Space, raw: Any, tensor: Any, mask: bool = False) -> None:
    """What a policy is promised to see: integers from 0, bytes as bytes, masks as flags, all else as floats."""
    if isinstance(space, spaces.Tuple):
        assert set(tensor.keys()) == {str(number) for number in range(len(raw))}
        for number, part in enumerate(space.spaces):
            same_as_served(part, raw[number], tensor[str(number)])
        return
    if isinstance(space, spaces.Dict):
        assert set(tensor.keys()) == set(space.spaces)
        for name, part in space.spaces.items():
            same_as_served(part, raw[name], tensor[name], name == MASK)
        return
    if isinstance(space, (spaces.Discrete, spaces.MultiDiscrete)):
        wanted = torch.as_tensor(raw - space.start, dtype=torch.int64)
    elif mask:
        wanted = torch.as_tensor(raw.astype(bool))
    elif space.dtype == np.uint8:
        wanted = torch.as_tensor(raw)
    else:
        wanted = torch.as_tensor(np.asarray(raw, dtype=np.float32))
    assert tensor.dtype == wanted.dtype
    assert torch.equal(tensor, wanted.reshape(tensor.shape))
    assert tensor.shape == (space.shape or ())


def test_the_truth_is_a_proper_environment(tmp_path):
    """By Gymnasium's own checker."""
    for cell in TABLE.values():
        env = replace(cell, log=str(tmp_path))("rgb_array")
        if cell.length > 1 and cell.layout in ("plain", "fortran", "every second", "negative strides", "read-only"):
            check_env(env, skip_render_check=True)
        obs, _ = env.reset(seed=5)
        assert 0 < env.key < 4096
        assert step_of(reward_of(env.key, LONG - 1)) == (env.key, LONG - 1)
        assert cell.layout != "plain" or cell.obs.contains(obs)


# What is refused

TEXT, GRAPH = spaces.Text(3), spaces.Graph(VECTOR, None)
REFUSED = [TEXT, spaces.Sequence(VECTOR), GRAPH, spaces.OneOf([VECTOR, TWO])]


@pytest.mark.parametrize("space", REFUSED, ids=lambda space: type(space).__name__)
@pytest.mark.parametrize("inside", [lambda s: s, lambda s: spaces.Dict({"a": VECTOR, "b": spaces.Tuple([TWO, s])})])
@pytest.mark.parametrize("workers", [0, 1])
def test_other_observations_are_refused_in_one_sentence(space, inside, workers, tmp_path):
    with pytest.raises(UsageError) as error:
        make_task(Cell(inside(space), TWO, log=str(tmp_path)), workers=workers)
    assert str(error.value) == (
        f"truth has a {type(space).__name__} observation space; polopt serves Box, Discrete, MultiDiscrete, "
        "MultiBinary, and Dict and Tuple of these: wrap it with gymnasium.wrappers.TransformObservation"
    )


OTHER_ACTIONS = [*REFUSED, spaces.MultiBinary(2), spaces.Tuple([TWO]), spaces.Dict({"a": TWO})]


@pytest.mark.parametrize("space", OTHER_ACTIONS, ids=lambda space: type(space).__name__)
@pytest.mark.parametrize("facts", [(), ("where",)])
def test_other_actions_are_refused_in_one_sentence(space, facts, tmp_path):
    with pytest.raises(UsageError) as error:
        make_task(Cell(VECTOR, space, log=str(tmp_path)), facts=facts)
    bits = isinstance(space, spaces.MultiBinary)
    how = "declare MultiDiscrete([2] * 2)" if bits else "wrap it with gymnasium.wrappers.TransformAction"
    kind = type(space).__name__
    said = f"truth has a {kind} action space; polopt serves Box, Discrete and MultiDiscrete: {how}"
    assert str(error.value) == said


# polopt's own environments


class Seeded(Pair):
    """A pair that may be reset without a seed."""

    random = np.random.default_rng(0)


def legal_masked() -> gymnasium.Env:
    """The task "masked", which raises for an illegal action, as any action leads to a legal one."""
    env: Any = Maker("masked")()

    def made_legal(action: int) -> int:
        return int(np.resize(np.flatnonzero(env.unwrapped.mask), 9)[action])

    return gymnasium.wrappers.TransformAction(env, made_legal, env.action_space)


OWN: dict[str, Callable[[], gymnasium.Env]] = {
    "recall": Maker("recall"),
    "masked": legal_masked,
    "u-maze": Maker("u-maze"),
    "point-maze": Maker("point-maze"),
    "u-maze as a picture": Maker("u-maze", render_mode="rgb_array"),
    "an image preset": Maker("u-maze", preset="image"),
    "a team": Maker(Seeded),
    "a row": Row(Maker("point-maze"), 0, {}, "point-maze"),
}


def test_every_named_environment_is_among_them():
    assert {name for name in NAMED if issubclass(own_class(name), gymnasium.Env)} <= OWN.keys()


@pytest.mark.parametrize("name", OWN)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_gymnasium_finds_nothing_wrong_with_polopts_environments(name):
    env = OWN[name]()
    check_env(env, skip_render_check=True)
    env.close()


def test_a_tuple_of_gymnasiums_own_is_learned_from(tmp_path):
    """Blackjack observes three numbers in a Tuple."""
    run = polopt.train("ppo", "Blackjack-v1", steps=16, window=8, envs=2, loggers=(), out=tmp_path / "run")
    assert polopt.load(run.folder).predict((14, 10, 0)) in (0, 1)
    with pytest.raises(UsageError, match="predict was given an observation that is of type list, not a tuple of 3"):
        polopt.load(run.folder).predict([14, 10, 0])
    with pytest.raises(UsageError, match=r"predict was given the observation 33, .* at place 0"):
        polopt.load(run.folder).predict((33, 10, 0))
