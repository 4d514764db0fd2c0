"""Two sources on one task: neither goes on in the episodes of the other."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from polopt.core.ledger import Ledger
from polopt.core.state import Stateful, gather, restore
from polopt.data import Episodes, Rollouts
from polopt.tasks import make_task
from polopt.tasks.weighted import Weighted
from tests.guards.spaces import several

from .actors import Counting, Lengths, Random


def first_columns(batch: Any) -> list[bool]:
    return batch["first"][:, 0].tolist()


def test_a_window_begins_anew_when_another_source_has_played() -> None:
    task = make_task("CartPole-v1", num=2, seed=3)
    actor = Random(task.spec)
    one, other = Rollouts(task, 5), Rollouts(task, 5)
    assert first_columns(one.next(actor)) == [True, True]
    assert first_columns(one.next(actor)) == [False, False]
    assert first_columns(other.next(actor)) == [True, True]
    assert first_columns(one.next(actor)) == [True, True]
    assert first_columns(one.next(actor)) == [False, False]
    Episodes(task, 1).next(actor)
    batch = one.next(actor)
    assert first_columns(batch) == [True, True]
    assert (batch["obs"][:, 0].abs() <= 0.05).all()  # where CartPole begins


def test_returns_and_carry_are_those_of_whole_episodes() -> None:
    """Rewards start + time, 1 + start % 4 steps: what ended is worked out from the starts alone."""
    task = make_task(Lengths, num=3, seed=2)
    sources = [Rollouts(task, 3, Ledger()), Rollouts(task, 3, Ledger())]
    for _ in range(6):
        for source in sources:
            batch = source.next(Counting())
            assert torch.equal(batch["hidden"].squeeze(-1), batch["obs"][..., 1])
            done = batch["terminated"] | batch["truncated"]
            starts, lengths = batch["obs"][..., 0][done], batch["obs"][..., 1][done] + 1
            returns = starts * lengths + lengths * (lengths + 1) / 2
            assert sorted(source.episodes()) == sorted(zip(returns.tolist(), lengths.int().tolist()))


def test_rows_that_were_only_reset_are_taken_as_they_are() -> None:
    task = make_task("CartPole-v1", num=2, seed=3)
    rollouts = Rollouts(task, 5)
    rollouts.next(Random(task.spec))
    start = task.reset()
    assert torch.equal(rollouts.next(Random(task.spec))["obs"][:, 0], start)


def test_a_task_made_of_the_rows_of_another_hands_its_player_on() -> None:
    task = make_task(several, num=2, seed=3)
    one, other = (Rollouts(Weighted(task, weights), 2) for weights in ((1.0, 0.0), (0.0, 1.0)))
    actor = Random(task.spec)
    actor.env_action = torch.abs  # which ends no episode
    assert first_columns(one.next(actor)) == [True, True]
    assert first_columns(other.next(actor)) == [True, True]
    assert first_columns(other.next(actor)) == [False, False]
    assert first_columns(one.next(actor)) == [True, True]


class Run(Stateful):
    def __init__(self) -> None:
        self.task = make_task("CartPole-v1", num=2, seed=3)
        self.sources = [Rollouts(self.task, 3), Rollouts(self.task, 3)]


@pytest.mark.parametrize("turns", [[], [0], [0, 0], [0, 1], [0, 1, 1, 0]])
@pytest.mark.parametrize("following", [0, 1])
def test_whose_turn_it_was_is_saved(turns: list[int], following: int) -> None:
    whole, again = Run(), Run()
    actor = Random(whole.task.spec)
    for turn in turns:
        whole.sources[turn].next(actor)
    restore(again, gather(whole))
    windows = []
    for run in (whole, again):
        torch.manual_seed(0)
        windows.append(run.sources[following].next(actor))
    for name, value in windows[0].items():
        assert torch.equal(value, windows[1][name]), name
