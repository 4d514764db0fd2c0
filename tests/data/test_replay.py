from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tensordict import TensorDict

from polopt.core.errors import RunError, UsageError
from polopt.core.scoring import SCORES, scored
from polopt.core.state import Blob, gather, restore
from polopt.data import Priority, Replay, ReplaySource, Rollouts
from polopt.data.base import add_action_mask
from polopt.data.priority import SumTree
from polopt.policies.wrappers import Uniform
from polopt.tasks import make_task

from .actors import Counting, Lengths, Random
from .test_rollouts import equal


def transitions(numbers: Any, ends: Any = (), truncations: Any = (), **extra: Any) -> Any:
    """Transition i: obs i, next_obs i + 0.5, reward i."""
    number = torch.as_tensor(numbers)
    return TensorDict(
        {
            "obs": number.float().unsqueeze(-1),
            "next_obs": number.float().unsqueeze(-1) + 0.5,
            "action": number,
            "reward": number.float(),
            "terminated": torch.isin(number, torch.tensor(ends, dtype=torch.int64)),
            "truncated": torch.isin(number, torch.tensor(truncations, dtype=torch.int64)),
            **extra,
        },
        batch_size=number.shape,
    )


def contents(replay: Replay) -> set[int]:
    return set(replay.sample(2000)["action"].tolist())


# Storage


@given(st.integers(1, 9), st.lists(st.integers(1, 12), min_size=1, max_size=6))
def test_the_ring_holds_the_newest(capacity: int, sizes: list[int]) -> None:
    replay = Replay(capacity)
    added = 0
    for size in sizes:
        replay.add(transitions(range(added, added + size)))
        added += size
        assert len(replay) == min(added, capacity)
        batch = replay.sample(60)
        assert torch.equal(batch["index"], batch["action"])  # the number of a transition is stable
        assert torch.equal(batch["next_obs"], batch["obs"] + 0.5)
    assert contents(replay) == set(range(max(0, added - capacity), added))


def test_sampling_is_uniform_and_its_own_generator_draws() -> None:
    replay = Replay(10, seed=3)
    replay.add(transitions(range(10)))
    state = torch.get_rng_state()
    counts = torch.bincount(replay.sample(10_000)["action"], minlength=10)
    assert torch.equal(torch.get_rng_state(), state)
    assert (counts - 1000).abs().max() < 4 * 30
    other = Replay(10, seed=3)
    other.add(transitions(range(10)))
    assert torch.equal(other.sample(10_000)["action"].bincount(), counts)
    other = Replay(10, seed=4)
    other.add(transitions(range(10)))
    assert not torch.equal(other.sample(10_000)["action"].bincount(), counts)


def test_windows_are_stored_with_their_true_successors() -> None:
    task = make_task(Lengths, num=3)
    replay = Replay(100)
    rollouts = Rollouts(task, steps=6)
    windows = [rollouts.next(Counting()) for _ in range(2)]
    for window in windows:
        replay.add(window)
    batch = replay.sample(500)
    assert torch.equal(batch["next_obs"][:, 1], batch["obs"][:, 1] + 1)
    assert torch.equal(batch["next_obs"][:, 0], batch["obs"][:, 0])
    assert torch.equal(batch["hidden"].squeeze(-1), batch["obs"][:, 1])  # the actor's record is kept
    ends = batch["obs"][:, 1] == batch["obs"][:, 0] % 4
    assert torch.equal(batch["terminated"] | batch["truncated"], ends)
    assert torch.equal(batch["truncated"], ends & (batch["obs"][:, 0] % 2 == 1))  # never stored as terminal
    assert not {"final_obs", "first"} & set(batch.keys())


@pytest.mark.parametrize("name", ["Pendulum-v1", "masked"])
@pytest.mark.parametrize("n_step", [1, 3])
def test_steps_are_stored_as_windows_of_them_are(name: str, n_step: int) -> None:
    one, other = (Replay(40, seed=0, n_step=n_step, discount=0.9) for _ in range(2))
    task, twin = make_task(name, num=2), make_task(name, num=2)
    windows, steps = Rollouts(task, steps=7), Rollouts(twin, steps=7)
    for seed in range(4):  # the ring goes round
        torch.manual_seed(seed)
        one.add(windows.next(Random(task.spec)))
        torch.manual_seed(seed)
        for step in steps.each(Random(twin.spec)):
            add_action_mask(step)
            other.append(step)
        assert equal(one.sample(60), other.sample(60))
    assert windows.episodes() == steps.episodes()


def test_what_nothing_reads_is_not_stored_nor_taken_from_what_was_saved() -> None:
    whole, lean = (Replay(10, seed=0, shard=4, unread=unread) for unread in ((), ("log_prob", "pre_action")))
    batch = transitions(range(7), log_prob=torch.zeros(7), pre_action=torch.zeros(7))
    whole.add(batch)
    lean.add(batch)
    assert whole.sample(3).keys() - lean.sample(3).keys() == {"log_prob", "pre_action"}
    restore(lean, saved_and_loaded(gather(whole)))
    lean.add(transitions(range(7, 9)))
    assert torch.equal(lean.whole()["reward"], torch.arange(9.0))
    assert "log_prob" not in lean.whole().keys()


def test_columns_of_one_type_are_taken_together_and_come_as_they_were_given() -> None:
    replay = Replay(10)
    given = transitions(range(6), matrix=torch.randn(6, 2, 3), wide=torch.randn(6, 4), double=torch.randn(6).double())
    replay.add(given)
    batch = replay.sample(20)
    for name, value in given.items():
        assert batch[name].dtype == value.dtype
        assert torch.equal(batch[name], value[batch["index"]]), name
    assert batch["matrix"].is_contiguous()
    replay.add(transitions(range(2), matrix=torch.zeros(2, 2, 3), wide=torch.zeros(2, 4), double=torch.zeros(2)))
    assert replay.whole()["double"].dtype == torch.float64
    with pytest.raises(RunError, match=r"the replay stores 'wide' of shape \[4\], and this batch has \[2\]"):
        replay.add(transitions(range(2), wide=torch.zeros(2, 2), double=torch.zeros(2), matrix=torch.zeros(2, 2, 3)))


def test_dict_observations_and_masks() -> None:
    task = make_task("masked", num=2, horizon=4)
    replay = Replay(50)
    replay.add(Rollouts(task, steps=10).next(Random(task.spec)))
    batch = replay.sample(30)
    assert batch["next_obs", "worth"].shape == (30, 5)
    assert torch.equal(batch["action_mask"], batch["obs", "action_mask"])


def test_images_stay_bytes_and_padding_stays_out() -> None:
    replay = Replay(10)
    image = torch.randint(256, (2, 3, 4, 4), dtype=torch.uint8)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    replay.add(transitions(torch.arange(6).reshape(2, 3), image=image, mask=mask))
    assert contents(replay) == {0, 1, 3}
    assert replay.sample(2)["image"].dtype == torch.uint8


def test_what_is_stored_has_no_gradient() -> None:
    replay = Replay(4)
    given = torch.ones(3, requires_grad=True)
    for _ in range(2):
        replay.add(transitions(range(3), value=given * 2, picture=(given * 2).reshape(3, 1, 1).expand(3, 2, 2)))
    assert not any(value.requires_grad for value in replay.whole().values())


def test_a_step_may_have_rows_that_do_not_count() -> None:
    replay = Replay(10)
    replay.append(dict(transitions(range(3)).items()) | {"mask": torch.tensor([True, False, True])})
    assert replay.whole()["action"].tolist() == [0, 2]


def test_wrong_batches_are_refused() -> None:
    replay = Replay(10)
    with pytest.raises(RunError, match="the replay is empty"):
        replay.sample(1)
    replay.add(transitions(range(3), extra=torch.zeros(3)))
    with pytest.raises(RunError, match="the replay stores 'extra', which this batch does not have"):
        replay.add(transitions(range(3)))
    with pytest.raises(RunError, match=r"the replay stores 'extra' of shape \[\], and this batch has \[2\]"):
        replay.add(transitions(range(3), extra=torch.zeros(3, 2)))
    with pytest.raises(UsageError, match="n-step returns need a discount"):
        Replay(10, n_step=2)
    with pytest.raises(UsageError, match="capacity"):
        Replay(0)
    with pytest.raises(UsageError, match="samples uniformly"):
        replay.update_priorities(torch.tensor([0]), torch.tensor([1.0]))


# n-step returns


def sampled(replay: Replay) -> dict[int, tuple[float, float, float, bool, bool]]:
    """By transition: (reward, discount, next_obs, terminated, truncated)."""
    batch = replay.sample(3000)
    names = ("reward", "discount", "next_obs", "terminated", "truncated")
    return {
        int(step["action"]): tuple(step[name].item() for name in names)
        for step in batch[batch["action"].unique(return_inverse=True)[1].argsort()].unbind(0)
    }


def test_three_step_returns_by_hand() -> None:
    """Rewards 0 1 2 3 | 4 5 | 6 7: transition 3 is terminated, 5 truncated, 7 the newest; discount 0.5."""
    replay = Replay(20, n_step=3, discount=0.5)
    replay.add(transitions(range(8), ends=[3], truncations=[5]))
    assert sampled(replay) == {
        0: (0 + 0.5 * 1 + 0.25 * 2, 0.125, 2.5, False, False),
        1: (1 + 0.5 * 2 + 0.25 * 3, 0.125, 3.5, True, False),
        2: (2 + 0.5 * 3, 0.25, 3.5, True, False),
        3: (3.0, 0.5, 3.5, True, False),
        4: (4 + 0.5 * 5, 0.25, 5.5, False, True),
        5: (5.0, 0.5, 5.5, False, True),
        6: (6 + 0.5 * 7, 0.25, 7.5, False, False),
        7: (7.0, 0.5, 7.5, False, False),
    }


def test_n_step_returns_follow_their_row_across_windows_and_the_end_of_the_ring() -> None:
    """Two rows (even and odd numbers) in three windows; a ring of 7 has lost transitions 0 to 4 of 12."""
    replay = Replay(7, n_step=2, discount=0.5)
    for low in (0, 4, 8):
        replay.add(transitions(torch.tensor([[low, low + 2], [low + 1, low + 3]]), ends=[8]))
    assert sampled(replay) == {
        5: (5 + 0.5 * 7, 0.25, 7.5, False, False),
        6: (6 + 0.5 * 8, 0.25, 8.5, True, False),
        7: (7 + 0.5 * 9, 0.25, 9.5, False, False),
        8: (8.0, 0.5, 8.5, True, False),
        9: (9 + 0.5 * 11, 0.25, 11.5, False, False),
        10: (10.0, 0.5, 10.5, False, False),
        11: (11.0, 0.5, 11.5, False, False),
    }
    with pytest.raises(UsageError, match="the same number of rows each time: 2 before, 1 now"):
        replay.add(transitions(range(2)))


def test_an_episode_broken_off_by_a_resume_does_not_leak() -> None:
    replay = Replay(9, n_step=3, discount=0.5)
    replay.add(transitions(range(4), first=torch.tensor([True, False, True, False])))
    assert sampled(replay)[0] == (0 + 0.5 * 1, 0.25, 1.5, False, False)
    assert sampled(replay)[2] == (2 + 0.5 * 3, 0.25, 3.5, False, False)


def test_steps_beyond_a_sum_are_its_last_transition_and_never_what_was_not_written() -> None:
    replay = Replay(8, seed=0, n_step=3, discount=0.5, steps=("obs", "reward"))
    replay.add(transitions(range(1, 6), ends=[2]))
    for path in ("obs", "reward"):
        replay._columns[path][5:] = torch.nan  # memory as it may be
    steps = replay.whole()["steps"]
    assert steps["reward"].tolist() == [[1, 2, 2], [2, 2, 2], [3, 4, 5], [4, 5, 5], [5, 5, 5]]
    assert steps["factor"].tolist() == [[1, 0.5, 0], [1, 0, 0], [1, 0.5, 0.25], [1, 0.5, 0], [1, 0, 0]]
    assert torch.isfinite(steps["obs"]).all()


def test_the_parts_of_an_observation_after_several_steps_are_of_the_last_of_them() -> None:
    numbers = torch.arange(5)
    given = transitions(numbers, ends=[2])
    for name, shift in (("obs", 0.0), ("next_obs", 0.5)):
        parts = {"place": numbers + shift, "picture": (numbers + shift).reshape(5, 1, 1).expand(5, 2, 2)}
        given[name] = TensorDict(parts, batch_size=[5])
    replay = Replay(9, n_step=2, discount=0.5)
    replay.add(given)
    batch = replay.whole()
    for key in ("place", "picture"):
        assert batch["obs", key].reshape(5, -1)[:, 0].tolist() == [0, 1, 2, 3, 4]
        assert batch["next_obs", key].reshape(5, -1)[:, 0].tolist() == [1.5, 2.5, 2.5, 4.5, 4.5]


def test_what_becomes_another_sums_and_saves_as_that_one_does() -> None:
    """Two rows (even and odd numbers); what it held before is gone, also from its blocks."""
    one, other = (Replay(8, n_step=2, discount=0.5, shard=4) for _ in range(2))
    one.add(transitions(range(8)))
    before = {leaf.key for leaf in gather(one).values() if isinstance(leaf, Blob)}
    other.add(transitions(torch.tensor([[10, 12, 14, 16], [11, 13, 15, 17]])))
    one.become(other)
    assert sampled(one)[10] == (10 + 0.5 * 12, 0.25, 12.5, False, False)
    assert torch.equal(one.whole()["reward"], other.whole()["reward"])
    saved = gather(one)
    assert len(before) == 2
    assert not before & {leaf.key for leaf in saved.values() if isinstance(leaf, Blob)}


def test_stored_discounts_multiply() -> None:
    replay = Replay(9, n_step=2, discount=0.9)
    replay.add(transitions(range(3), discount=torch.tensor([0.5, 0.25, 1.0])))
    assert sampled(replay)[0] == (0 + 0.5 * 1, 0.125, 1.5, False, False)
    assert sampled(replay)[1] == (1 + 0.25 * 2, 0.25, 2.5, False, False)


# Priorities


def test_prioritised_frequencies_and_importance() -> None:
    replay = Replay(100, priority=Priority(exponent=0.5, correction=1.0, floor=0.0))
    replay.add(transitions(range(100)))
    errors = torch.arange(100.0)
    replay.update_priorities(torch.arange(100), errors)
    batch = replay.sample(40_000)
    probability = errors.sqrt() / errors.sqrt().sum()
    frequency = batch["action"].bincount(minlength=100) / 40_000
    torch.testing.assert_close(frequency, probability, rtol=0, atol=4 * (0.015 / 40_000) ** 0.5)
    assert frequency[0] == 0
    expected = 1 / probability[batch["action"]]
    torch.testing.assert_close(batch["importance"], expected / expected.max())
    # an unbiased mean: each transition counts the same after the correction
    assert (batch["importance"] * batch["reward"]).sum() / batch["importance"].sum() == pytest.approx(50, abs=1.0)


def test_priorities_that_are_all_zero_sample_uniformly() -> None:
    replay = Replay(10, priority=Priority(floor=0.0))
    replay.add(transitions(range(10)))
    replay.update_priorities(torch.arange(10), torch.zeros(10))
    batch = replay.sample(1000)
    assert batch["index"].unique().tolist() == list(range(10))
    assert batch["importance"].tolist() == [1.0] * 1000


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_a_priority_that_is_not_finite_is_refused(wrong: float) -> None:
    replay = Replay(10, priority=Priority())
    replay.add(transitions(range(10)))
    with pytest.raises(RunError, match=f"a priority of the replay is {wrong}"):
        replay.update_priorities(torch.arange(2), torch.tensor([1.0, wrong]))


def test_new_transitions_get_the_highest_priority_and_old_ones_are_ignored() -> None:
    replay = Replay(4, priority=Priority(exponent=1.0, floor=0.0))
    replay.add(transitions(range(4)))
    replay.update_priorities(torch.arange(4), torch.tensor([1.0, 8.0, 0.0, 0.0]))
    replay.add(transitions([4]))  # in the slot of 0
    frequency = replay.sample(8000)["action"].bincount(minlength=5) / 8000
    torch.testing.assert_close(frequency, torch.tensor([0, 0.5, 0, 0, 0.5]), rtol=0, atol=0.02)
    replay.update_priorities(torch.tensor([0]), torch.tensor([0.0]))  # gone: its slot belongs to 4 now
    assert 4 in contents(replay)
    replay.update_priorities(torch.tensor([1]), torch.tensor([0.0]))
    other = Replay(4, priority=Priority(exponent=1.0, floor=0.0))
    restore(other, saved_and_loaded(gather(replay)))
    for each in (replay, other):  # the highest ever, also where it has gone
        each.add(transitions([5]))
        assert each._tree.leaves[1] == 8.0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_priorities_come_from_where_the_batch_was_put() -> None:
    replay = Replay(4, priority=Priority(exponent=1.0, floor=0.0))
    replay.add(transitions(range(4)))
    batch = replay.whole().to("cuda")
    replay.update_priorities(batch["index"], batch["reward"])
    assert replay._tree.leaves[:4].tolist() == [0, 1, 2, 3]


@given(st.integers(1, 5000), st.integers(0, 10**6))
def test_the_sum_tree_adds_up(size: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    tree = SumTree(size)
    for _ in range(3):
        index = torch.randint(size, (50,), generator=generator).unique()
        tree[index] = torch.rand(len(index), generator=generator, dtype=torch.float64)
    torch.testing.assert_close(tree.levels[-1].sum(), tree.leaves.sum())
    index, probability = tree.sample(64, generator)
    assert (tree.leaves[index] > 0).all()
    torch.testing.assert_close(probability, tree.leaves[index] / tree.leaves.sum())


# State


def saved_and_loaded(flat: dict[str, Any]) -> dict[str, Any]:
    """As a checkpoint would: tensors copied, also those of blobs."""
    loaded: dict[str, Any] = {}
    for key, leaf in flat.items():
        if isinstance(leaf, Blob):
            tensors = {path: value.clone() for path, value in leaf.tensors().items()}
            loaded[key] = Blob(leaf.key, lambda tensors=tensors: tensors)
        else:
            loaded[key] = leaf.clone() if isinstance(leaf, torch.Tensor) else leaf
    return loaded


@pytest.mark.parametrize("added", [3, 8, 21, 22, 24, 40, 47])
@pytest.mark.parametrize("priority", [None, Priority()], ids=["uniform", "prioritised"])
def test_a_restored_replay_samples_the_same(added: int, priority: Priority | None) -> None:
    """Blocks of 4 in a ring of 22: before and after it is full, at and between the borders of blocks."""

    def build() -> Replay:
        return Replay(22, n_step=2, discount=0.9, priority=priority, shard=4)

    replay = build()
    replay.add(transitions(range(added), ends=[7], obs2=torch.rand(added, 2)))
    if priority:
        replay.update_priorities(torch.arange(added), torch.rand(added))
    replay.sample(5)
    flat = saved_and_loaded(gather(replay))
    other = build()
    restore(other, flat)
    for step in range(3):
        assert equal(replay.sample(50), other.sample(50))
        more = transitions(range(100 + step, 103 + step), obs2=torch.rand(3, 2))
        replay.add(more)
        other.add(more)


def test_full_blocks_are_written_once_and_named_by_content() -> None:
    replay = Replay(12, shard=4)
    replay.add(transitions(range(6)))

    def blobs() -> dict[str, Blob]:
        return {key: leaf for key, leaf in gather(replay).items() if isinstance(leaf, Blob)}

    before = blobs()
    assert list(before) == ["@shard.0"]
    assert before["@shard.0"].key.startswith("replay-0-")
    replay.add(transitions(range(6, 12)))
    middle = blobs()
    assert middle["@shard.0"].key == before["@shard.0"].key
    assert len(middle) == 3
    assert len({blob.key for blob in middle.values()}) == 3
    replay.add(transitions(range(12, 14)))  # block 0 is being written again
    assert list(blobs()) == ["@shard.1", "@shard.2"]
    replay.add(transitions(range(14, 20)))  # and block 1, in one go with the end of block 0
    after = blobs()
    assert after["@shard.0"].key != before["@shard.0"].key
    assert after["@shard.1"].key != middle["@shard.1"].key
    assert after["@shard.2"].key == middle["@shard.2"].key
    again = Replay(12, shard=4)
    again.add(transitions(range(12)))
    names = {key: leaf.key for key, leaf in gather(again).items() if isinstance(leaf, Blob)}
    assert names == {key: blob.key for key, blob in middle.items()}


def test_large_transitions_have_smaller_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("polopt.data.replay.SHARD_BYTES", 4 * 100)
    replay = Replay(20)
    replay.add(TensorDict({"image": torch.zeros(9, 100, dtype=torch.uint8)}, batch_size=[9]))
    assert [key for key, leaf in gather(replay).items() if isinstance(leaf, Blob)] == ["@shard.0", "@shard.1"]


def test_an_empty_replay_is_restored_empty() -> None:
    replay = Replay(5)
    restore(replay, gather(Replay(5)))
    assert len(replay) == 0


def test_tensors_on_disk(tmp_path: Path) -> None:
    on_disk, in_memory = Replay(10, seed=0, directory=tmp_path / "replay"), Replay(10, seed=0)
    for low in (0, 6, 12):
        batch = transitions(range(low, low + 6), ends=[3], pixels=torch.full((6, 2), low, dtype=torch.uint8))
        on_disk.add(batch)
        in_memory.add(batch)
    assert equal(on_disk.sample(40), in_memory.sample(40))
    assert list((tmp_path / "replay").iterdir()) == []  # nothing is left behind, however the process ends
    other = Replay(10, seed=0, directory=tmp_path / "other")
    restore(other, saved_and_loaded(gather(on_disk)))
    assert equal(other.sample(40), on_disk.sample(40))


def test_a_directory_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    said = r"the replay needs 0.00 GB for 'obs', 'next_obs', 'reward' in .*file/here: Not a directory"
    with pytest.raises(RunError, match=said):
        Replay(10, directory=tmp_path / "file" / "here").add(transitions(range(3)))


# The source


def build(ratio: float = 1.0, num: int = 1, warmup: int = 10, **options: Any) -> ReplaySource:
    task = make_task("Pendulum-v1", num=num)
    rollouts = Rollouts(task, steps=1)
    return ReplaySource(
        rollouts, Replay(1000, **options), 32, warmup, ratio, warmup_actor=lambda like: Random(task.spec, scale=2.0)
    )


@pytest.mark.parametrize(
    ("num", "ratio", "expected"),
    [
        (1, 1.0, [11, 12, 13, 14]),
        (4, 1.0, [16, 16, 16, 16, 20]),
        (1, 0.5, [11, 13, 15]),
        (1, 2.0, [11, 11, 12, 12]),
    ],
)
def test_steps_and_samples_keep_their_ratio(num: int, ratio: float, expected: list[int]) -> None:
    source = build(ratio, num)
    actor = Random(source.rollouts.task.spec)
    steps = []
    for _ in expected:
        assert source.next(actor).batch_size == (32,)
        steps.append(source.rollouts.ledger.env_steps)
    assert steps == expected


def test_the_warm_up_uses_its_own_actor() -> None:
    source = build(warmup=20)

    class Still(Random):
        def act(self, obs: Any, carry: Any = None, *, greedy: bool = False) -> Any:
            record, carry = super().act(obs, carry)
            return {**record, "action": record["action"] * 0}, carry

    source.next(Still(source.rollouts.task.spec))
    action = source.replay._columns["action"][:21]
    assert action[:20].abs().gt(0).all()
    assert action[20] == 0


def test_what_the_warm_up_carried_is_dropped() -> None:
    """The actor begins without the memory of another one, in the middle of an episode."""

    class Told(Counting):
        def act(self, obs: Any, carry: Any = None, *, greedy: bool = False) -> Any:
            seen.append(carry)
            return super().act(obs, carry)

    seen: list[Any] = []
    source = ReplaySource(
        Rollouts(make_task("CartPole-v1"), 1), Replay(100), 8, 5, warmup_actor=lambda like: Counting()
    )
    source.next(Told())
    source.next(Told())
    assert seen[0] is None
    assert seen[1]["count"].item() == 1


@pytest.mark.parametrize("unread", [(), SCORES[:1], SCORES])
def test_how_likely_actions_were_is_not_asked_where_nothing_reads_it(unread: Any) -> None:
    class Asked(Random):
        def act(self, obs: Any, carry: Any = None, *, greedy: bool = False) -> Any:
            asked.append(scored())
            return super().act(obs, carry)

    asked: list[bool] = []
    task = make_task("masked", num=2, horizon=4)
    source = ReplaySource(Rollouts(task, 2), Replay(100, unread=unread), 8, 4)
    batch = source.next(Asked(task.spec))
    assert asked == [unread != SCORES] * 4
    assert ("log_prob" in batch.keys()) == (not unread)
    assert torch.equal(batch["action_mask"], batch["obs", "action_mask"])  # as a window has it


@pytest.mark.parametrize(("device", "copies"), [("cpu", 7), ("cuda", 1)])
def test_a_window_comes_from_an_accelerator_at_once(device: str, copies: int, monkeypatch: pytest.MonkeyPatch) -> None:
    source, plain = (ReplaySource(Rollouts(make_task("Pendulum-v1", num=2), 7), Replay(100), 8, 0) for _ in range(2))
    actor, stored = Random(source.rollouts.task.spec), []
    store = source.replay._store
    monkeypatch.setattr(source.replay, "_store", lambda *args: (stored.append(1), store(*args)))
    for each, where in ((plain, "cpu"), (source, device)):
        monkeypatch.setattr("polopt.data.replay_source.device_of", lambda actor, where=where: torch.device(where))
        torch.manual_seed(0)
        each._collect(actor)
    assert len(stored) == copies
    assert equal(source.replay.whole(), plain.replay.whole())


def test_a_restored_replay_source_goes_on_bitwise() -> None:
    source, other = build(shard=16), build(shard=16)
    actor = Random(source.rollouts.task.spec)
    for _ in range(40):
        source.next(actor)
    flat, random = saved_and_loaded(gather(source)), torch.get_rng_state()
    expected = [source.next(actor) for _ in range(20)]
    restore(other, flat)
    torch.set_rng_state(random)
    assert all(equal(batch, other.next(actor)) for batch in expected)


def test_a_warm_up_of_random_actions() -> None:
    task = make_task("Pendulum-v1")
    source = ReplaySource(Rollouts(task, 1), Replay(100), 8, 30, warmup_actor=partial(Uniform, task.spec))
    source.next(Uniform(task.spec))
    action = source.replay._columns["action"][:30]
    assert action.abs().max() > 1  # in the units of the task
    assert len(source.replay) == 31
