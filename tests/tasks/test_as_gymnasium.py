"""Worlds as environments of Gymnasium: its checkers, its own vectors of single rows in every mode, and its wrappers."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env, data_equivalence
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers.vector import RecordEpisodeStatistics

from polopt.core.errors import UsageError
from polopt.tasks import make_task
from polopt.tasks.as_gymnasium import WorldEnv, WorldVectorEnv, env_spec

from .worlds import Errands, Toll

WORLDS = ["grid/5x5", "grid/darkroom", "grid/gems", "grid/random", "lock", "lock/continuous", "layers", Toll, Errands]
WORLDS += ["point/risky", "point/lava", "point/regulation", "point/front"]
short = {
    "point/lava": {"horizon": 3},
    "grid/5x5": {"horizon": 3},
    "lock": {"horizon": 3},
    "grid/gems": {"horizon": 4},
    Toll: {"horizon": 4},
}


@pytest.mark.filterwarnings("ignore")  # of infinite bounds
@pytest.mark.parametrize("task", WORLDS)
def test_gymnasium_finds_no_fault(task: Any) -> None:
    check_env(WorldEnv(task), skip_render_check=True)


@pytest.mark.parametrize("task", ["grid/5x5", "lock/continuous"])
def test_gymnasium_makes_them(task: str) -> None:
    env = gymnasium.make(env_spec(task, horizon=4))  # with its passive checker around
    assert env.spec is not None
    assert env.spec.id == f"polopt/{task.replace('/', '-')}"
    env.reset(seed=1)
    for _ in range(3):
        _, _, terminated, truncated, _ = env.step(env.action_space.sample())
        assert not terminated
        assert not truncated
    assert any(env.step(env.action_space.sample())[2:4])
    vector = gymnasium.make_vec(env_spec(task), num_envs=5)
    assert isinstance(vector, WorldVectorEnv)
    assert vector.num_envs == 5
    assert gymnasium.make_vec(vector.spec).num_envs == 5  # and once more from what it says of itself


@pytest.mark.parametrize("mode", ["next-step", "same-step", "disabled"])
@pytest.mark.parametrize("task", WORLDS)
def test_rows_are_those_of_gymnasiums_own_vector(task: Any, mode: str) -> None:
    options = short.get(task, {})
    ours = WorldVectorEnv(task, 4, mode, **options)
    theirs = SyncVectorEnv([lambda: WorldEnv(task, **options)] * 4, autoreset_mode=ours.metadata["autoreset_mode"])
    assert ours.observation_space == theirs.observation_space
    assert ours.action_space == theirs.action_space
    ours.action_space.seed(0)
    found, expected = ours.reset(seed=7), theirs.reset(seed=7)
    assert data_equivalence(found[0], expected[0], exact=True)
    over = np.zeros(4, bool)
    for step in range(30):
        if mode == "disabled" and over.any():
            again = [env.reset(options={"reset_mask": over.copy()})[0] for env in (ours, theirs)]
            assert data_equivalence(again[0], again[1], exact=True)
        if step == 17:
            seeds = [3, None, 5, None]
            assert data_equivalence(ours.reset(seed=seeds)[0], theirs.reset(seed=seeds)[0], exact=True)
        action = ours.action_space.sample()
        found, expected = ours.step(action), theirs.step(action)
        for one, other in zip(found[:4], expected[:4]):
            assert data_equivalence(one, other)
        assert found[0] in ours.observation_space
        assert equal_infos(found[4], expected[4], 4)
        over = found[2] | found[3]


def equal_infos(one: dict[str, Any], other: dict[str, Any], rows: int) -> bool:
    """Whether both say the same of every row; what no row has may be left out."""
    for row in range(rows):
        for info, another in ((one, other), (other, one)):
            for key, value in info.items():
                if key.startswith("_") or not info[f"_{key}"][row]:
                    continue
                if not another[f"_{key}"][row]:
                    return False
                if isinstance(value, dict):
                    if not equal_infos(value, another[key], rows):
                        return False
                elif not data_equivalence(value[row], another[key][row]):
                    return False
    return True


def test_wrappers_of_gymnasium_fit() -> None:
    env = RecordEpisodeStatistics(WorldVectorEnv("grid/5x5", 3, horizon=5))
    env.reset(seed=1)
    lengths = []
    for _ in range(12):
        *_, info = env.step(env.action_space.sample())
        lengths += info["episode"]["l"][info["_episode"]].tolist() if "episode" in info else []
    assert lengths == [5] * 6


def test_what_is_handed_out_is_the_callers() -> None:
    env = WorldVectorEnv("grid/5x5", 3)
    obs, _ = env.reset(seed=1)
    obs[:] = 24
    assert env.world.state["agents"].flatten().tolist() == [0, 0, 0]
    first, _ = WorldEnv("grid/maze").reset(seed=3)
    again, _ = WorldEnv("grid/maze").reset(seed=3)
    assert np.array_equal(first, again)
    env.world.levels = {"agents": torch.tensor([[7]])}
    assert env.reset()[0].tolist() == [7, 7, 7]


def test_what_cannot_be_is_one_sentence() -> None:
    with pytest.raises(UsageError, match="chain is no world whose rows are tensors, and only those are offered to Gym"):
        WorldEnv("chain")
    with pytest.raises(UsageError, match=r"lock is made already: \['horizon'\] cannot be set any more"):
        WorldEnv(make_task("lock"), horizon=3)
    with pytest.raises(UsageError, match="autoreset_mode is one of next-step, same-step, disabled, not 'never'"):
        WorldVectorEnv("lock", 2, "never")
    env = WorldVectorEnv("lock", 2, AutoresetMode.DISABLED)
    with pytest.raises(ValueError, match="there are 3 seeds for 2 environments"):
        env.reset(seed=[1, 2, 3])
    with pytest.raises(ValueError, match="a reset_mask is an array of 2 bools, one of them True, not"):
        env.reset(options={"reset_mask": np.zeros(2, bool)})
