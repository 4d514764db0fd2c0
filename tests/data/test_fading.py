"""A replay that keeps ends, and a source that begins with a full one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tensordict import TensorDict

from polopt.core.ledger import Ledger
from polopt.core.state import gather, restore
from polopt.data.fading import FilledSource, Recycling
from polopt.data.relabel import Fading
from polopt.data.rollouts import Rollouts
from polopt.policies.wrappers import Uniform
from polopt.tasks import make_task


def transitions(start: int, end: int, ends: tuple[int, ...] = ()) -> TensorDict:
    """Transitions whose action is their number; those in `ends` terminate, and a time limit breaks off all others."""
    number = torch.arange(float(start), float(end))
    over = torch.tensor([i in ends for i in range(start, end)])
    columns = {"obs": number.unsqueeze(1), "action": number, "reward": -number, "next_obs": number.unsqueeze(1) + 1}
    flags = {"terminated": over, "truncated": ~over}
    return TensorDict({**columns, **flags}, batch_size=[end - start])


def held(replay: Recycling) -> list[int]:
    """Numbers, oldest first."""
    return [int(number) for number in replay.whole()["action"]]


def test_ends_go_to_the_newest_place_and_the_one_behind_them_goes():
    replay = Recycling(4, discount=0.9)
    replay.add(transitions(0, 4, ends=(1, 2)))
    assert held(replay) == [0, 1, 2, 3]
    replay.add(transitions(4, 5))
    assert held(replay) == [1, 2, 3, 4]
    replay.add(transitions(5, 6))  # 1 ended and is kept; 2, the next oldest, goes although it ended too
    assert held(replay) == [3, 4, 5, 1]
    replay.add(transitions(6, 8))
    assert held(replay) == [5, 1, 6, 7]
    replay.add(transitions(8, 10))
    assert held(replay) == [7, 8, 9, 1]
    whole = replay.whole()
    assert whole["terminated"].tolist() == [False, False, False, True]
    assert whole["reward"].tolist() == [-7, -8, -9, -1]
    assert whole["next_obs"].flatten().tolist() == [8, 9, 10, 2]


def test_of_rows_with_a_mask_those_that_are_there_count():
    replay = Recycling(3, discount=0.9)
    replay.add(transitions(0, 3, ends=(1,)))
    batch = transitions(3, 6)
    batch["mask"] = torch.tensor([True, False, False])
    replay.add(batch)
    assert held(replay) == [1, 2, 3]


def test_more_than_it_holds_leaves_the_newest_and_the_ends():
    replay = Recycling(3, discount=0.9)
    replay.add(transitions(0, 3, ends=(2,)))
    replay.add(transitions(3, 9))
    assert held(replay) == [7, 8, 2]


def source(capacity: int = 70, fill: bool = True, rows: int = 1, warmup: int = 20) -> Any:
    torch.manual_seed(0)
    task = make_task("Pendulum-v1", num=rows, seed=3)
    replay = Recycling(capacity, discount=0.99, weights=Fading())
    made = FilledSource(Rollouts(task, 1, Ledger()), replay, 8, warmup, ratio=2.0, fill=fill)
    return made, Uniform(task.spec)


def test_the_warm_up_is_repeated_in_order_until_the_replay_is_full():
    made, actor = source()
    made.next(actor)
    reward = made.replay.whole()["reward"]
    assert len(reward) == 70
    lived = reward[19:39]  # one step has been taken since, so that the oldest is gone
    assert len(lived.unique()) == 20
    for repeated, part in ((reward[:19], lived[1:]), (reward[39:59], lived), (reward[59:69], lived[:10])):
        assert torch.equal(repeated, part)
    assert made.reward_scale == pytest.approx(float(lived.abs().mean()))
    assert made.rollouts.ledger.env_steps == 21


def test_without_filling_it_grows_and_has_the_scale_all_the_same():
    made, actor = source(fill=False)
    made.next(actor)
    assert len(made.replay) == 21
    assert made.reward_scale == pytest.approx(float(made.replay.whole()["reward"][:20].abs().mean()))


def test_rewards_of_zero_have_the_scale_one():
    made, actor = source()
    made.store = lambda window: window.clone(False).set("reward", torch.zeros(1, 1))
    made.next(actor)
    assert made.reward_scale == 1.0


def test_a_warm_up_of_more_rows_than_there_is_room_for_leaves_the_newest():
    made, actor = source(capacity=20, rows=3)
    made.next(actor)
    assert len(made.replay) == 20


def test_scale_and_what_was_filled_are_state():
    made, actor = source()
    made.next(actor)
    other, _ = source()
    restore(other, gather(made))
    assert other.reward_scale == made.reward_scale != 1.0
    assert torch.equal(other.replay.whole()["reward"], made.replay.whole()["reward"])
    first, second = (each.replay.sample(5)["index"] for each in (made, other))
    assert torch.equal(first, second)
