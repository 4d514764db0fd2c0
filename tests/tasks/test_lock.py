"""Locks and layers: their rules in plain Python, exact values, observations, and what they refuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from polopt.core.errors import UsageError
from polopt.data.demonstrations import scripted_episodes
from polopt.tasks import make_task
from polopt.tasks.lock import Layers, Lock, hadamard
from polopt.training import api

from .worlds import actions, check_world

NAMES = ["lock", "lock/continuous", "layers"]


@pytest.mark.parametrize("name", NAMES)
def test_locks_keep_the_promises_of_worlds(name: str) -> None:
    check_world(lambda num, seed, evaluation: make_task(name, num, seed, evaluation=evaluation), steps=12)


@pytest.mark.parametrize("name", NAMES)
def test_in_float64_too(name: str, float64: None) -> None:
    check_world(lambda num, seed, evaluation: make_task(name, num, seed, evaluation=evaluation), steps=12)


@settings(max_examples=30, deadline=None)
@given(
    st.integers(2, 5),
    st.integers(1, 3),
    st.sampled_from([0.0, 0.5, 1.0]),
    st.sampled_from(["first", "last"]),
    st.integers(0, 99),
)
def test_the_rules_are_those_of_plain_python(count: int, rooms: int, switch: float, at: str, seed: int) -> None:
    """All but the luck of the switch, of which only what is possible can be said without it."""
    world: Any = make_task(
        Lock, 8, seed, actions=count, rooms=rooms, switch=switch, decoy_at=at, lock_seed=seed, horizon=4
    )
    world.reset()
    code = world.code.tolist()
    before = world.state["room"].tolist()
    assert before == [0] * 8
    for time, action in enumerate(actions(world, 4, seed)):
        _, reward, terminated, truncated = world.step({"action": action})
        after = world.state["room"].tolist()
        for row in range(8):
            opens = before[row] < rooms and action[row] == code[time][before[row]]
            paid = float(opens and time == 3)
            paid += 0.1 * (not opens and time == (0 if at == "first" else 3))
            assert reward[row].item() == pytest.approx(paid)
            if not opens:
                assert after[row] == rooms
            elif switch in (0.0, 1.0):
                assert (after[row] != before[row]) == (switch == 1.0 and rooms > 1)
            else:
                assert after[row] < rooms
        before = after
        assert terminated.all().item() == (time == 3)
        assert not truncated.any()


@pytest.mark.parametrize(
    "options",
    [{}, {"rooms": 3, "switch": 0.8}, {"rooms": 1}, {"decoy_at": "last", "decoy_chance": 0.5}, {"start": (0.25, 0.75)}],
    ids=str,
)
def test_the_model_has_the_values_that_are_played(options: dict[str, Any]) -> None:
    """Uniform actions in 40,000 episodes, and the right ones, which always open the lock."""
    world: Any = make_task(Lock, 40_000, 3, actions=2, horizon=3, **options)
    mdp = world.mdp()
    uniform = torch.full((3, world.rooms + 1, 2), 0.5)
    value = mdp.value(uniform)[0, : world.rooms] @ world.start
    data = [scripted_episodes(world, "random", 120_000)["reward"].view(-1, 3).sum(1).double()]
    error = data[0].std().item() / 200
    assert data[0].mean().item() == pytest.approx(value.item(), abs=4 * error)
    assert mdp.optimal()[1][0, : world.rooms].tolist() == [1.0] * world.rooms
    right: Any = make_task(Lock, 50, actions=7, lock_seed=5, **options)
    assert scripted_episodes(right, "right", 500)["reward"].view(50, 10).sum(1).tolist() == [1.0] * 50


def test_values_by_hand() -> None:
    """A uniform policy on 4 actions opens 10 steps with 4^-10, and has the decoy three times in four."""
    mdp = make_task("lock").mdp()  # type: ignore[attr-defined]
    uniform = torch.full((10, 3, 4), 0.25)
    assert mdp.value(uniform)[0, 0].item() == pytest.approx(0.1 * 0.75 + 4.0**-10)
    last = make_task("lock/continuous").mdp()  # type: ignore[attr-defined]
    assert last.value(torch.full((10, 3, 10), 0.1))[0, 0].item() == pytest.approx(0.05 * (1 - 1e-10) + 1e-10)


def test_a_lock_that_shows_a_table_is_a_tabular_task() -> None:
    """Unless its episodes start in several rooms, which a model with one start has not."""
    mdp = make_task("lock", lock_seed=4).spec.info["mdp"]
    assert torch.equal(mdp.transition, make_task("lock", lock_seed=4).mdp().transition)  # type: ignore[attr-defined]
    assert make_task("lock", start=(0.0, 1.0)).spec.info["mdp"].start == 1
    for options in ({"start": (0.5, 0.5)}, {"obs": "vector"}, {"continuous": True}):
        assert "mdp" not in make_task("lock", **options).spec.info


def test_strays_open_as_often_as_they_should() -> None:
    """Each step opens with 1 - stray + stray / A; the released data have stray 1 / H."""
    world: Any = make_task("lock/continuous", 2000, stray=0.1, decoy=0.0)
    data = scripted_episodes(world, "right", 20_000)
    share = data["reward"].view(2000, 10).sum(1).mean().item()
    assert share == pytest.approx(0.91**10, abs=4 * (0.39 * 0.61 / 2000) ** 0.5)
    assert data["action"].shape == (20_000, 10)
    half: Any = make_task("lock", 500, horizon=4, actions=2)
    rooms = scripted_episodes(half, "half", 2000)["obs", "state"].view(500, 4)
    assert (rooms[:, :3] < 2).all()  # two right actions
    assert 0.4 < (rooms[:, 3] < 2).double().mean() < 0.6


def test_the_action_is_drawn_from_a_softmax() -> None:
    world: Any = make_task("lock/continuous", 20_000, actions=3, horizon=1, start=(1.0, 0.0), decoy=0.0)
    world.levels = {"code": torch.tensor([[[1, 0]]])}
    world.reset()
    box = torch.tensor([0.1, 0.2, 0.05]).expand(20_000, 3)
    _, reward, _, _ = world.step({"action": box})
    share = torch.softmax(torch.tensor([1.0, 2.0, 0.5]), 0)[1].item()
    assert reward.mean().item() == pytest.approx(share, abs=4 * (share * (1 - share) / 20_000) ** 0.5)


def test_rich_observations_are_the_rotated_state() -> None:
    world: Any = make_task("lock/continuous", 400, horizon=5, noise=0.1)
    assert world.spec.obs.shape == (16,)  # 2^ceil(log2(5 + 4))
    matrix = torch.ones(1, 1)
    for _ in range(4):
        matrix = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]]), matrix)
    torch.testing.assert_close(hadamard(torch.eye(16)), matrix)
    world.reset()
    for time in range(3):
        back = world.obs @ matrix / 16  # its own inverse, but for the size
        hot = torch.zeros(400, 16)
        hot[torch.arange(400), world.state["room"]] = 1
        hot[:, 3 + time] = 1
        noise = back - hot
        assert noise[:, :9].std().item() == pytest.approx(0.1, rel=0.06)
        assert noise[:, 9:].abs().max() < 1e-5
        world.step({"action": world.behave("right", world.state, world.time)})
    plain: Any = make_task("lock/continuous", obs="vector", noise=0.0, horizon=5)
    assert plain.reset().sum() == 2


def test_starts_follow_their_probabilities_and_levels_their_tables() -> None:
    world: Any = make_task(Lock, 8000, rooms=3, start=(0.5, 0.2, 0.3))
    world.reset()
    shares = torch.bincount(world.state["room"], minlength=3) / 8000
    assert shares.tolist() == pytest.approx([0.5, 0.2, 0.3], abs=0.023)
    world = make_task(Lock, 2, horizon=2)
    world.levels = {"code": torch.tensor([[[0, 1], [2, 3]], [[3, 3], [1, 1]]]), "room": torch.tensor([0, 1])}
    world.reset(index=torch.tensor([0, 1]))
    assert world.state["room"].tolist() == [0, 1]
    assert world.right(world.state, world.time).tolist() == [0, 3]


def test_layers_come_whatever_one_does() -> None:
    world: Any = make_task("layers", 20_000, states=50)
    twin: Any = make_task("layers", 20_000, states=50)
    for each in (world, twin):
        each.reset(index=torch.arange(20_000))
    zeros = torch.zeros(20_000, dtype=torch.int64)
    total, other = torch.zeros(20_000), torch.zeros(20_000)
    for time in range(8):
        assert torch.equal(world.state["state"], twin.state["state"])
        counts = torch.bincount(world.state["state"], minlength=50) / 20_000
        if time == 3:
            assert counts[world.special].item() == pytest.approx(0.2, abs=0.012)
            counts = torch.cat([counts[: world.special], counts[world.special + 1 :]])
            assert counts.tolist() == pytest.approx([0.8 / 49] * 49, abs=0.0045)
        else:
            assert counts.tolist() == pytest.approx([0.02] * 50, abs=0.005)
        total += world.step({"action": zeros + 1})[1]
        other += twin.step({"action": zeros})[1]
    always = torch.ones(8, 50)
    assert world.value(always).item() == pytest.approx(0.5)
    assert world.value(always * 0).item() == pytest.approx(0.3)
    assert total.mean().item() == pytest.approx(0.5, abs=0.018)
    assert other.mean().item() == pytest.approx(0.3, abs=0.013)
    assert ((total - other) == (total - other).clamp(0, 1).round()).all()  # the same luck: only the special state pays


def test_layers_have_levels_and_a_map_of_their_own() -> None:
    one, two, three = (make_task(Layers, 1, seed, map_seed=m).special for seed, m in ((1, 2), (5, 2), (1, 3)))  # type: ignore[attr-defined]
    assert one == two != three
    world: Any = make_task(Layers, 200, states=4, layer=0, horizon=1, bonus=0.0)
    world.levels = {"special": torch.tensor([2])}
    states = world.reset()["state"]
    _, reward, _, _ = world.step({"action": torch.ones(200, dtype=torch.int64)})
    assert torch.equal(reward == 1, states == 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"horizon": 0}, "horizon must be a whole number of at least 1, not 0"),
        ({"start": (0.5, 0.4)}, r"start is 2 probabilities that sum to 1, not \(0.5, 0.4\)"),
        ({"start": (0.5, 0.2, 0.3)}, r"start is 2 probabilities that sum to 1, not \(0.5, 0.2, 0.3\)"),
        ({"start": (1.5, -0.5)}, "start is a probability, from 0 to 1, not 1.5"),
        ({"switch": 2}, "switch is a probability, from 0 to 1, not 2"),
        ({"decoy_at": "middle"}, "decoy_at is one of first, last, not 'middle'"),
        ({"obs": "cell"}, "obs is one of table, vector, hadamard, not 'cell'"),
        ({"sharpness": 0}, "the sharpness of a lock is above 0, and its noise at least 0"),
        ({"actions": 1}, "actions must be a whole number of at least 2, not 1"),
    ],
)
def test_what_cannot_be_is_one_sentence(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make_task("lock", **options)


def test_levels_of_another_shape_are_refused() -> None:
    world: Any = make_task("lock", 2)
    world.levels = {"code": torch.zeros(3, 4, 2)}
    with pytest.raises(UsageError, match=r"'code' of the levels of lock is \[10, 2\] each, not \[4, 2\]"):
        world.reset()
    with pytest.raises(UsageError, match="layer must be a whole number between 0 and 7, not 8"):
        make_task("layers", layer=8)


def test_ppo_learns_a_short_lock_and_not_a_long_one(tmp_path: Path) -> None:
    """Which is what a lock is for: a reward that chance finds is learned, and beside it the decoy."""
    settings = {"steps": 4000, "seed": 1, "eval_episodes": 5, "eval_every": 4000, "loggers": ()}
    learner = {"envs": 20, "window": 20, "lr": 1e-2, "minibatches": 4, "network.sizes": (32,)}
    found = []
    for horizon in (2, 10):
        run = api.train(
            "ppo", "lock", out=tmp_path / str(horizon), task_options={"horizon": horizon}, **settings, **learner
        )
        found.append(run.evaluations[-1][run.score.column])
    assert found == pytest.approx([1.0, 0.1])
