from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

from polopt.core.errors import RunError
from polopt.tasks import make_task
from polopt.tasks.masked import Masked
from polopt.tasks.memory import Recall


@pytest.mark.filterwarnings("ignore:.*")
@pytest.mark.parametrize("env", [Recall(), Recall(delay=0, cues=3)], ids=["default", "no delay"])
def test_it_follows_gymnasium(env: Recall) -> None:
    check_env(env, skip_render_check=True)


def test_the_cue_is_shown_first_and_judged_last() -> None:
    env = Recall(delay=2, cues=3)
    for seed in range(6):
        obs, _ = env.reset(seed=seed)
        cue = int(obs[:3].argmax())
        assert obs.tolist() == [*np.eye(3)[cue], 0.0]
        for time in range(3):
            obs, reward, terminated, truncated, _ = env.step((cue + 1) % 3)
            assert obs.tolist() == [0.0, 0.0, 0.0, float(time == 2)]
            assert (reward, terminated, truncated) == (0.0, False, False)
        right = seed % 2 == 0
        _, reward, terminated, truncated, _ = env.step(cue if right else (cue + 1) % 3)
        assert (reward, terminated, truncated) == (float(right), True, False)


def test_all_cues_appear() -> None:
    obs: Any = make_task("recall", num=60, cues=3).reset()
    counts = obs[:, :3].sum(0)
    assert counts.min() >= 10


def test_without_delay_the_signal_follows_the_cue() -> None:
    env = Recall(delay=0)
    first, _ = env.reset(seed=0)
    second, *_ = env.step(0)
    assert first[-1] == 0.0
    assert second.tolist() == [0.0, 0.0, 1.0]
    assert env.step(env.cue)[1:3] == (1.0, True)


def test_the_masked_task_refuses_illegal_actions() -> None:
    task = make_task("masked", num=4, actions=4, horizon=3)
    obs: Any = task.reset()
    mask = obs["action_mask"]
    assert mask.dtype == torch.bool
    assert mask.any(-1).all()
    action = mask.int().argmax(-1)
    worth = obs["worth"].gather(1, action.unsqueeze(1)).squeeze(1)
    assert torch.equal(task.step({"action": action})[1], worth)
    env = Masked(actions=6)
    env.reset(seed=0)
    with pytest.raises(ValueError, match="is illegal here"):
        env.step(int(np.flatnonzero(env.mask == 0)[0]))
    task = make_task("masked", num=1, actions=6)
    obs = task.reset()
    while obs["action_mask"][0, 0]:
        obs = task.reset()
    with pytest.raises(RunError, match="masked failed: its step raised ValueError: the action 0 is illegal here"):
        task.step({"action": torch.tensor([0])})
