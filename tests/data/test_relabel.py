"""Rewards computed at sampling, draws that depend on age, and decisions that are stored one step late."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor

from polopt.core.batch import Batch
from polopt.core.errors import UsageError
from polopt.core.ledger import Ledger
from polopt.core.state import gather, restore
from polopt.data.priority import Priority
from polopt.data.relabel import Blocks, Delayed, Fading, Weights, relabeled, shares
from polopt.data.replay import Replay
from polopt.data.replay_source import ReplaySource
from polopt.data.rollouts import Rollouts
from polopt.policies.tabular import TabularMixture
from polopt.tasks import make_task


def transitions(start: int, end: int, *, ends: tuple[int, ...] = ()) -> Batch:
    """Transitions whose observation and action are their number; those in `ends` terminate."""
    number = torch.arange(float(start), float(end))
    over = torch.tensor([i in ends for i in range(start, end)])
    first = torch.tensor([i == 0 or i - 1 in ends for i in range(start, end)])
    columns = {
        "obs": number.unsqueeze(1),
        "action": number,
        "reward": 100 + number,
        "next_obs": number.unsqueeze(1) + 1,
    }
    flags = {"terminated": over, "truncated": torch.zeros_like(over), "first": first}
    return TensorDict({**columns, **flags}, batch_size=[end - start])


def counted(weights: Weights | None, replay_size: int, added: int, draws: int = 20_000) -> Tensor:
    """How often each transition that is held is drawn, oldest first, as a share."""
    replay = Replay(replay_size, seed=0, weights=weights)
    replay.add(transitions(0, added))
    index = replay.sample(draws)["index"] - (added - len(replay))
    return torch.bincount(index, minlength=len(replay)).double() / draws


def test_shares_are_those_of_a_mixture_that_newcomers_join():
    share = torch.ones(1, dtype=torch.float64)
    for count in range(1, 8):
        torch.testing.assert_close(shares(0.3, count), share)
        share = torch.cat([0.7 * share, torch.tensor([0.3], dtype=torch.float64)])
    assert shares(1.0, 4).tolist() == [0, 0, 0, 1]
    assert shares(1.0, 1).tolist() == [1]


def test_blocks_are_drawn_by_the_share_of_their_newcomer():
    found = counted(Blocks(10, 0.3), 100, 40).view(4, 10).sum(1)
    expected = [0.7**3, 0.3 * 0.7**2, 0.3 * 0.7, 0.3]
    assert found.tolist() == pytest.approx(expected, abs=0.012)
    assert counted(Blocks(10, 1.0), 100, 40)[:30].sum() == 0


def test_blocks_that_the_ring_has_overwritten_leave_the_proportions_of_the_others():
    weights = Blocks(10, 0.5)(20, 30)  # blocks 2, 3 and 4 of five
    assert (weights / weights[0]).tolist() == pytest.approx([1.0] * 10 + [2.0] * 10 + [4.0] * 10)
    found = counted(Blocks(10, 0.5), 30, 50).view(3, 10).sum(1)
    assert found.tolist() == pytest.approx([1 / 7, 2 / 7, 4 / 7], abs=0.012)
    with pytest.raises(UsageError, match="above 0 and at most 1, not 0"):
        Blocks(10, 0.0)


def test_a_fading_memory_has_its_law():
    """Of the newest decile 0.134, of the oldest 0.0015 (tanh((pi i / N)^e))."""
    weights = Fading()(0, 10_000)
    assert float(weights[5_000]) == pytest.approx(math.tanh((math.pi / 2) ** math.e))
    deciles = weights.view(10, -1).sum(1) / weights.sum()
    assert float(deciles[-1]) == pytest.approx(0.134, abs=0.001)
    assert float(deciles[0]) == pytest.approx(0.0015, abs=0.0005)
    found = counted(Fading(), 1_000, 1_000).view(10, -1).sum(1)
    assert found.tolist() == pytest.approx(deciles.tolist(), abs=0.012)
    assert counted(Fading(), 10, 1).tolist() == [1.0]


def test_what_is_kept_of_the_weights_follows_the_replay():
    replay = Replay(100, seed=0, weights=Blocks(10, 0.9))
    for end in (10, 20, 30):
        replay.add(transitions(end - 10, end))
        newest = (replay.sample(2_000)["index"] >= end - 10).double().mean()
        assert float(newest) == pytest.approx(1.0 if end == 10 else 0.9, abs=0.03)
    with pytest.raises(UsageError, match="by priority or by age"):
        Replay(10, weights=Fading(), priority=Priority())


def test_rewards_are_computed_from_what_a_sample_has():
    replay = Replay(10, seed=0)
    replay.add(transitions(0, 10))
    batch = replay.sample(8)
    again = relabeled(batch, lambda each: 2 * each["action"])
    assert again["reward"].equal(2 * batch["index"].to(again["reward"].dtype))
    assert batch["reward"].equal(100 + batch["action"])


def test_an_n_step_sum_is_computed_of_every_step():
    """Three steps at discount 1/2 by hand; the sum ends with the episode and with what was added last."""
    replay = Replay(10, seed=0, n_step=3, discount=0.5, steps=("obs", "action"))
    replay.add(transitions(0, 10, ends=(5,)))
    batch = replay.sample(200)

    def reward(each: Batch) -> Tensor:
        return each["action"] + each["obs"].squeeze(-1)

    found = relabeled(batch, reward)["reward"]
    for index, value, stored in zip(batch["index"].tolist(), found.tolist(), batch["reward"].tolist()):
        last = min(index + 2, 5 if index <= 5 else 9)
        sums = [
            sum(0.5 ** (i - index) * each(i) for i in range(index, last + 1))
            for each in (lambda i: 2 * i, lambda i: 100 + i)
        ]
        assert [value, stored] == pytest.approx(sums)


def test_the_whole_replay_is_every_sample_once():
    replay = Replay(6, seed=0, n_step=2, discount=0.5)
    replay.add(transitions(0, 8))
    whole = replay.whole()
    assert whole["index"].tolist() == [2, 3, 4, 5, 6, 7]
    assert whole["reward"].tolist() == [102 + 51.5, 103 + 52, 104 + 52.5, 105 + 53, 106 + 53.5, 107]


def test_a_replay_becomes_another_one():
    one, other = Replay(8, seed=0), Replay(6, seed=0)
    one.add(transitions(50, 55))
    other.add(transitions(0, 8))
    one.become(other)
    assert one.whole()["action"].tolist() == [2, 3, 4, 5, 6, 7]
    assert (len(one), one.added) == (6, 6)
    one.add(transitions(8, 11))
    assert one.whole()["action"].tolist() == [3, 4, 5, 6, 7, 8, 9, 10]
    assert other.whole()["action"].tolist() == [2, 3, 4, 5, 6, 7]
    with pytest.raises(Exception, match="cannot hold the 8"):
        other.become(one)


class Noting(TabularMixture):
    """Records how many decisions it has made, in every row."""

    calls = 0

    def act(self, obs: Any, carry: Any = None, *, greedy: bool = False) -> Any:
        record, carry = super().act(obs, carry, greedy=greedy)
        self.calls += 1
        return {**record, "call": torch.full((len(record["action"]),), self.calls)}, carry


def delayed(steps: int, num: int = 2, seed: int = 0) -> tuple[Delayed, Noting]:
    task = make_task("chain", num=num, seed=seed)
    return Delayed(Rollouts(task, steps, Ledger()), ("call", "first")), Noting(task.spec)


@pytest.mark.parametrize("steps", [1, 3])
def test_every_decision_comes_once_and_in_order_with_what_was_recorded_next(steps):
    source, actor = delayed(steps)
    torch.manual_seed(0)
    windows = [source.next(actor) for _ in range(24)]
    assert [window.shape[1] for window in windows] == [max(steps - 1, 1)] + [steps] * 23
    batch: Any = torch.cat(windows, 1)  # type: ignore[arg-type]
    count = batch.shape[1]
    assert batch["call"].equal(torch.arange(1, count + 1).expand(2, count))
    over = batch["terminated"] | batch["truncated"]
    assert over.any()
    assert not over.all()
    assert batch["followed"].equal(~over)
    assert batch["next_call"].equal(torch.where(over, 0, batch["call"] + 1))
    assert not batch["next_first"].any()
    torch.manual_seed(0)
    plain = Rollouts(make_task("chain", num=2, seed=0), count).next(Noting(source.task.spec))
    for name in ("action", "reward", "terminated"):
        assert batch[name].equal(plain[name])
    assert source.ledger.env_steps == 2 * (count + 1)


def test_a_broken_off_episode_is_truncated():
    source, actor = delayed(1)
    source.next(actor)
    kept = source._kept
    assert kept is not None
    assert not kept["terminated"].any()
    source.task.player = None  # both rows begin anew
    batch = source.next(actor)
    assert batch["truncated"].all()
    assert not batch["followed"].any()
    assert not batch["next_call"].any()


def test_what_is_kept_back_is_state():
    source, actor = delayed(2)
    torch.manual_seed(0)
    source.next(actor)
    other, twin = delayed(2)
    other.next(twin)
    twin.calls = actor.calls
    restore(other, gather(source))
    torch.manual_seed(1)
    one = source.next(actor)
    torch.manual_seed(1)
    two = other.next(twin)
    assert all(one[key].equal(two[key]) for key in ("action", "reward", "call", "next_call", "followed"))
    fresh, _ = delayed(2)
    restore(other, gather(fresh))
    assert other._kept is None


def test_a_replay_source_stores_what_it_is_told_to():
    source, actor = delayed(1)
    replay = Replay(100)
    keep = lambda window: window.clone(False).update({"reward": window["next_call"].float()})  # noqa: E731
    stored = ReplaySource(source, replay, batch_size=4, warmup=0, store=keep)
    for _ in range(6):
        batch = stored.next(actor)
    assert (batch["reward"] == batch["next_call"]).all()
    assert batch["reward"].max() > 1
