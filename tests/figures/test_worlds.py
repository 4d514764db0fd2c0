"""The peers of the benchmark of worlds do what polopt's grid does."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.environments import WORKERS
from polopt.tasks import make_task


@pytest.fixture
def peer(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(WORKERS))
    return importlib.import_module("peer_gymnasium")


def test_the_dynamics_are_the_same(peer: Any) -> None:
    world: Any = make_task("grid/four-rooms", 200, seed=4)
    world.reset()
    rooms = peer.Rooms(200)
    rooms.reset(seed=1)
    cells, goals = (world.state[name].flatten().numpy() for name in ("agents", "places"))
    rooms.cell, rooms.goal = cells.copy(), goals.copy()
    single = [peer.Room() for _ in range(20)]
    for env, cell, goal in zip(single, cells, goals):
        env.reset(seed=0)
        (env.row, env.column), env.goal = divmod(int(cell), 13), divmod(int(goal), 13)
    assert np.allclose(world.obs.numpy(), rooms._observe(), atol=1e-6)
    rng, met = np.random.default_rng(2), np.zeros(200, bool)
    for _ in range(100):
        action = rng.integers(4, size=200)
        _, reward, terminated, truncated = world.step({"action": torch.from_numpy(action)})
        obs, reward2, terminated2, truncated2, _ = rooms.step(action)
        old = met.copy()  # rows that ended before go ways of their own
        assert np.allclose(world.obs.numpy()[~old], obs[~old], atol=1e-6)
        for one, other in ((reward, reward2), (terminated, terminated2), (truncated, truncated2)):
            assert np.array_equal(one.numpy()[~old], other[~old])
        for row, env in enumerate(single):
            if not old[row]:
                found = env.step(action[row])
                assert np.allclose(found[0], obs[row], atol=1e-6)
                assert found[1:4] == (reward2[row], terminated2[row], truncated2[row])
        over = (terminated | truncated).numpy()
        met |= over
        if over.any():
            world.reset(torch.from_numpy(over))
    assert met.all()


def test_the_peer_of_arrays_begins_anew_as_gymnasium_says(peer: Any) -> None:
    rooms = peer.Rooms(3)
    rooms.reset(seed=1)
    rooms.time[:] = 99
    *_, terminated, truncated, _ = rooms.step(np.zeros(3, np.int64))
    assert (terminated | truncated).all()
    _, reward, terminated, truncated, _ = rooms.step(np.zeros(3, np.int64))
    assert not np.stack([reward, terminated, truncated]).any()
    assert (rooms.time == 0).all()
