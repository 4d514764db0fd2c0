from __future__ import annotations

from typing import Any

import gymnasium
import pytest
import torch

from polopt.core.errors import RunError
from polopt.core.ledger import Ledger
from polopt.core.state import gather, restore
from polopt.data import Episodes, Rollouts, successors
from polopt.data.base import DONE_BEFORE
from polopt.tasks import make_task
from polopt.tasks.base import start_seed

from .actors import Counting, Lengths, Random


def equal(a: Any, b: Any) -> bool:
    a, b = a.flatten_keys(), b.flatten_keys()
    return set(a.keys()) == set(b.keys()) and all(torch.equal(a[key], b[key]) for key in a.keys())


def test_windows_equal_an_environment_stepped_by_hand() -> None:
    """No dummy rows, no lost steps: observation by observation, over two windows and several episodes."""
    task = make_task("CartPole-v1", num=2, seed=11)
    rollouts = Rollouts(task, steps=60)
    actor = Random(task.spec)
    batch = torch.cat([rollouts.next(actor), rollouts.next(actor)], dim=1)
    ends = 0
    for row in range(2):
        env = gymnasium.make("CartPole-v1")
        obs, _ = env.reset(seed=start_seed(11, (0, row, 0)))
        first, episode = True, 0
        for time in range(120):
            step = batch[row, time]
            assert torch.equal(step["obs"], torch.from_numpy(obs))
            assert step["first"].item() == first
            obs, reward, terminated, truncated, _ = env.step(step["action"].item())
            assert torch.equal(step["final_obs"], torch.from_numpy(obs))
            assert step["reward"].item() == reward
            assert (step["terminated"].item(), step["truncated"].item()) == (terminated, truncated)
            first = terminated or truncated
            if first:
                episode += 1
                obs, _ = env.reset(seed=start_seed(11, (0, row, episode)))
        ends += episode
    assert ends >= 4
    assert len(rollouts.episodes()) == rollouts.ledger.episodes == ends
    assert rollouts.ledger.env_steps == 240
    assert rollouts.episodes() == []


def test_truncation_is_stored_as_truncation() -> None:
    task = make_task("Pendulum-v1", max_episode_steps=5)
    batch = Rollouts(task, steps=12).next(Random(task.spec, scale=2.0))
    assert batch["truncated"][0].nonzero().flatten().tolist() == [4, 9]
    assert not batch["terminated"].any()
    assert batch["first"][0].nonzero().flatten().tolist() == [0, 5, 10]


def test_returns_lengths_and_carry_by_hand() -> None:
    task = make_task(Lengths, num=3, seed=2)
    ledger = Ledger()
    rollouts = Rollouts(task, steps=7, ledger=ledger)
    windows = [rollouts.next(Counting()) for _ in range(3)]
    batch = torch.cat(windows, dim=1)
    # the carry counts from 0 in every episode, also across windows; integer carries stay integers
    assert torch.equal(batch["hidden"].squeeze(-1), batch["obs"][..., 1])
    assert torch.equal(batch["alive"], (~batch["first"]).long())
    assert batch["first"].equal(batch["obs"][..., 1] == 0)
    done = batch["terminated"] | batch["truncated"]
    starts, lengths = batch["obs"][..., 0][done], batch["obs"][..., 1][done] + 1
    assert torch.equal(lengths, 1 + starts % 4)
    expected = starts * lengths + lengths * (lengths + 1) / 2
    assert sorted(rollouts.episodes()) == sorted(zip(expected.tolist(), lengths.int().tolist()))
    assert (ledger.env_steps, ledger.episodes) == (63, int(done.sum()))
    assert torch.equal(batch["terminated"][done], starts % 2 == 0)


def test_successors_never_show_the_next_episode() -> None:
    task = make_task(Lengths, num=4)
    batch = Rollouts(task, steps=9).next(Counting())
    expected = batch["obs"].clone()
    expected[..., 1] += 1  # the same episode, one step on: also at ends and in the last column
    assert torch.equal(successors(batch), expected)
    hidden = batch.clone()
    done = batch["terminated"] | batch["truncated"]
    done[:, -1] = True
    hidden["final_obs"][~done] = float("nan")  # only ends and the last column may be read
    assert torch.equal(successors(hidden), expected)


def test_dict_observations_and_their_mask() -> None:
    task = make_task("masked", num=2, horizon=3)
    batch = Rollouts(task, steps=5).next(Random(task.spec))
    assert batch["obs", "worth"].shape == (2, 5, 5)
    assert torch.equal(batch["action_mask"], batch["obs", "action_mask"])
    assert batch["action_mask"].gather(-1, batch["action"].unsqueeze(-1)).all()
    assert successors(batch)["worth"].shape == (2, 5, 5)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("name", ["CartPole-v1", "Pendulum-v1", "masked"])
def test_a_restored_source_goes_on_bitwise(name: str, workers: int) -> None:
    def build() -> Rollouts:
        return Rollouts(make_task(name, num=2, seed=1, workers=workers), steps=25)

    source = build()
    actor = Random(source.task.spec)
    source.next(actor)
    saved, random = gather(source), torch.get_rng_state()
    expected = [source.next(actor) for _ in range(3)]
    ended = source.episodes()
    source.task.close()
    other = build()
    other.next(actor)
    restore(other, saved)
    torch.set_rng_state(random)
    assert all(equal(batch, other.next(actor)) for batch in expected)
    assert other.episodes() == ended
    other.task.close()


def test_a_carry_is_restored() -> None:
    def build() -> Rollouts:
        return Rollouts(make_task(Lengths, num=3, seed=1), steps=4)

    source, other = build(), build()
    source.next(Counting())
    restore(other, gather(source))
    assert equal(source.next(Counting()), other.next(Counting()))


def test_where_a_resume_starts_anew_the_carry_and_the_return_do_too() -> None:
    source = Rollouts(make_task(Lengths, num=3, seed=1), steps=4)
    source.next(Counting())
    source.task.__dict__["restore_note"] = "it cannot be restored"
    other = Rollouts(make_task(Lengths, num=3, seed=1), steps=4)
    other.task.__dict__["restore_note"] = "it cannot be restored"
    restore(other, gather(source))
    other.episodes()
    batch = other.next(Counting())
    assert batch["first"][:, 0].all()
    assert torch.equal(batch["hidden"].squeeze(-1), batch["obs"][..., 1])
    for value, length in other.episodes():
        start = (value - length * (length + 1) / 2) / length
        assert start == int(start)


def test_a_record_that_comes_and_goes_is_an_error() -> None:
    class Moody(Counting):
        def act(self, obs: Any, carry: Any = None, *, greedy: bool = False) -> Any:
            record, carry = super().act(obs, carry)
            if carry["count"].max() == 2:
                record.pop("hidden")
            return record, carry

    with pytest.raises(RunError, match=r"the actor recorded 'hidden' in \d of 6 steps"):
        Rollouts(make_task(Lengths, num=2), steps=6).next(Moody())


def test_earlier_windows_keep_their_numbers() -> None:
    rollouts = Rollouts(make_task(Lengths, num=2), steps=5)
    window = rollouts.next(Counting())
    copy = window.clone()
    rollouts.next(Counting())
    assert equal(window, copy)


def test_rows_begin_anew_where_another_source_has_played_in_between() -> None:
    """Also where it was saved in between."""
    task = make_task("CartPole-v1", num=2)
    source, actor = Rollouts(task, steps=1), Random(task.spec)
    for other in (Rollouts(task, steps=1), Episodes(task, episodes=1, max_steps=2)):
        assert source.next(actor)["first"].all()
        saved = saved_state(source)
        assert not source.next(actor)["first"].any()
        other.next(actor)
        assert not task.first.all()
        between = saved_state(source)
        for state, anew in ((saved, False), (between, True)):
            again = Rollouts(make_task("CartPole-v1", num=2), steps=1)
            restore(again, state)
            assert again.next(actor)["first"].all() == anew


def saved_state(source: Rollouts) -> dict[str, Any]:
    return {path: leaf.clone() if torch.is_tensor(leaf) else leaf for path, leaf in gather(source).items()}


def test_what_is_forgotten_is_the_carry_but_for_what_was_done() -> None:
    source = Rollouts(make_task("Pendulum-v1", num=2), steps=2)
    carry = {"hidden": torch.ones(2, 3), DONE_BEFORE: torch.ones(2, 1)}
    source._carry = dict(carry)
    source.forget()
    assert source._carry is not None
    assert source._carry.keys() == {DONE_BEFORE}
    source._carry = {"hidden": torch.ones(2, 3)}
    source.forget()
    assert source._carry is None


def test_staggered_rows_end_where_they_are_due_and_an_end_of_their_own_stays_one() -> None:
    source = Rollouts(make_task(Lengths, num=12, seed=3), steps=8)
    source.stagger = 4
    batch = source.next(Counting())
    terminated, truncated = batch["terminated"], batch["truncated"]
    at = torch.arange(12), torch.arange(12) * 4 // 12
    assert (terminated | truncated)[at].all()
    assert terminated[at].any()
    assert not (terminated & truncated).any()
    assert len(source.episodes()) == source.ledger.episodes == int((terminated | truncated).sum()) - 12
