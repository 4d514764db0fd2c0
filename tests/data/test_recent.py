"""A window that slides."""

from __future__ import annotations

import pytest
import torch

from polopt.core.errors import UsageError
from polopt.core.state import gather, restore
from polopt.data.recent import Recent
from polopt.data.rollouts import Rollouts
from polopt.policies.tabular import TabularMixture
from polopt.tasks import make_task


def source(steps: int, size: int, seed: int = 0) -> tuple[Recent, TabularMixture]:
    task = make_task("chain", num=3, seed=seed)
    return Recent(Rollouts(task, steps), size), TabularMixture(task.spec)


def test_the_latest_steps_stand_in_order() -> None:
    torch.manual_seed(0)
    recent, actor = source(2, 6)
    torch.manual_seed(1)
    windows = [recent.next(actor) for _ in range(5)]
    assert [window.shape[1] for window in windows] == [2, 4, 6, 6, 6]
    torch.manual_seed(1)
    whole = Rollouts(make_task("chain", num=3, seed=0), 10).next(actor)
    for end, window in zip((2, 4, 6, 8, 10), windows):
        for name in ("action", "reward", "first", "terminated"):
            assert window[name].equal(whole[name][:, max(end - 6, 0) : end])


def test_what_stays_after_the_next_call() -> None:
    recent, actor = source(2, 6)
    assert recent.without_oldest() is None
    for kept in (2, 4, 4, 4):
        window = recent.next(actor)
        stays = recent.without_oldest()
        assert stays is not None
        assert stays["action"].equal(window["action"][:, -kept:])
    alone, actor = source(2, 2)
    alone.next(actor)
    assert alone.without_oldest() is None


def test_a_resumed_window_goes_on() -> None:
    recent, actor = source(2, 4)
    for _ in range(3):
        recent.next(actor)
    other, _ = source(2, 4, seed=1)
    restore(other, gather(recent))
    assert other.window is not None
    assert recent.window is not None
    assert set(other.window.keys(True, True)) == set(recent.window.keys(True, True))
    torch.manual_seed(0)
    first = recent.next(actor)
    torch.manual_seed(0)
    again = other.next(actor)
    for name in ("action", "reward", "first", ("obs", "state")):
        assert first[name].equal(again[name])
    fresh, _ = source(2, 4)
    restore(other, gather(fresh))
    assert other.window is None


def test_an_episode_that_was_broken_off_between_calls_is_truncated() -> None:
    """Row 0 begins anew between two calls: what comes after is not the successor of what came before."""
    task = make_task("chain", num=2, seed=0)
    recent, actor = Recent(Rollouts(task, 2), 6), TabularMixture(task.spec)
    before = recent.next(actor)
    ended = (before["terminated"] | before["truncated"])[:, -1]
    assert not ended.any()
    task.reset(torch.tensor([True, False]))
    window = recent.next(actor)
    assert window["first"][:, 2].tolist() == [True, False]
    assert window["truncated"][:, 1].tolist() == [True, False]
    assert not before["truncated"].any()  # what was handed out stays as it was
    assert not window["truncated"][:, [0, 2, 3]].any()


def test_steps_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UsageError, match="7 steps are no multiple of 2"):
        source(2, 7)
