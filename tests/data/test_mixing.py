from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import TensorDict

from polopt.core.batch import Batch, weigh
from polopt.core.errors import UsageError
from polopt.core.state import gather, restore
from polopt.data import Epochs, Mixed, Paired, PromptGroups, cat_rows, trim
from polopt.data.base import Source
from polopt.data.demonstrations import Samples

from .actors import Counting
from .test_rollouts import equal
from .texts import Turns, Typist


def rows_of(prompts: list[str], completions: list[str]) -> TensorDict:
    rows = Typist().tokenize(prompts, completions)
    rows["log_prob"] = rows["mask"] * -0.5
    return rows


def contents(rows: Batch, row: int) -> list[list[float]]:
    """What a row holds, whatever the padding."""
    return [
        rows["prompt"][row][rows["prompt_mask"][row]].tolist(),
        rows["completion"][row][rows["attention"][row]].tolist(),
        rows["log_prob"][row][rows["mask"][row]].tolist(),
    ]


def test_prompts_are_padded_on_the_left_and_completions_on_the_right() -> None:
    a, b = rows_of(["pq"], ["x"]), rows_of(["r"], ["yz"])
    batch = cat_rows([a, b])
    p, q, r, x, y, z = map(ord, "pqrxyz")
    assert batch.batch_size == (2,)
    assert batch["prompt"].tolist() == [[p, q], [0, r]]
    assert batch["prompt_mask"].tolist() == [[True, True], [False, True]]
    assert batch["completion"].tolist() == [[x, 1, 0], [y, z, 1]]
    assert batch["mask"].tolist() == [[True, True, False], [True, True, True]]
    assert batch["mask"].dtype == torch.bool
    assert batch["completion"].dtype == torch.int64


words = st.lists(st.tuples(st.text("ab", min_size=1, max_size=5), st.text("cd", max_size=5)), min_size=1, max_size=4)


@settings(deadline=None, max_examples=40)
@given(st.lists(words, min_size=1, max_size=3), st.data())
def test_joining_and_trimming_change_no_row(batches: list[list[tuple[str, str]]], data: Any) -> None:
    parts = [rows_of(*map(list, zip(*pairs))) for pairs in batches]
    joined = cat_rows(parts)
    expected = [contents(part, row) for part in parts for row in range(len(part))]
    assert [contents(joined, row) for row in range(len(joined))] == expected
    assert not joined["completion"][~joined["attention"]].any()
    assert not joined["log_prob"][~joined["mask"]].any()
    torch.testing.assert_close(weigh(joined)["weight"].sum(), torch.tensor(1.0))
    chosen = data.draw(st.lists(st.integers(0, len(joined) - 1), min_size=1, max_size=4))
    short = trim(joined[torch.tensor(chosen)])
    assert [contents(short, row) for row in range(len(short))] == [expected[row] for row in chosen]
    assert short["prompt"].shape[1] == max(len(expected[row][0]) for row in chosen)
    assert short["completion"].shape[1] == max(len(expected[row][1]) for row in chosen)


def test_a_missing_key_names_source_and_key_unless_there_is_a_default() -> None:
    a, b = rows_of(["p"], ["xyz"]), rows_of(["p"], ["x"]).exclude("log_prob")
    a["failed"] = torch.tensor([True])
    with pytest.raises(UsageError, match="source 1 gives no 'log_prob', which source 0 does"):
        cat_rows([a, b])
    batch = cat_rows([a, b], {"log_prob": float("nan"), "failed": False})
    assert batch["failed"].tolist() == [True, False]
    assert batch["log_prob"][1].isnan().tolist() == [True, True, False, False]  # only sampled tokens
    with pytest.raises(UsageError, match="source 0 gives no 'log_prob', which source 1 does"):
        cat_rows([b, a])


def test_control_batches_are_joined_and_never_padded() -> None:
    def batch(rows: int, width: int = 3) -> TensorDict:
        obs = TensorDict({"x": torch.randn(rows, width)}, batch_size=[rows])
        return TensorDict({"obs": obs, "reward": torch.randn(rows)}, batch_size=[rows])

    a, b = batch(2), batch(3)
    assert equal(cat_rows([a, b]), torch.cat([a, b]))
    with pytest.raises(UsageError, match=r"source 1 gives 'x' of shape \(4,\) per row, and source 0 of shape \(3,\)"):
        cat_rows([a, batch(2, 4)])


def numbers(count: int, start: int = 0) -> TensorDict:
    return TensorDict({"reward": torch.arange(count) + start, "obs": torch.zeros(count, 2)}, batch_size=[count])


class Fixed(Source):
    """The same batch again and again."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch

    def next(self, actor: Any) -> Batch:
        return self.batch

    def episodes(self) -> list[tuple[float, int]]:
        return [(float(len(self.batch)), 1)]


def test_half_and_half_of_two_data_sets() -> None:
    generator = torch.Generator().manual_seed(0)
    source = Mixed(Samples(numbers(50), 8, generator), Samples(numbers(50, 100), 8, generator))
    batch = source.next(Counting())
    assert batch["origin"].tolist() == [0] * 8 + [1] * 8
    assert torch.equal(batch["reward"] >= 100, batch["origin"] == 1)


def test_the_ratio_holds_in_the_long_run_and_nothing_is_lost() -> None:
    source = Mixed(Fixed(numbers(3)), Epochs(numbers(7, 100), 4, torch.Generator().manual_seed(0)), ratio=0.5)
    batches = [source.next(Counting()) for _ in range(28)]
    assert [int(batch["origin"].sum()) for batch in batches[:4]] == [1, 2, 1, 2]
    second = torch.cat([batch["reward"][batch["origin"] == 1] for batch in batches])
    assert second.bincount()[100:].tolist() == [6] * 7  # 42 rows, six epochs, and no row twice in one
    assert source.episodes() == [(3.0, 1)]
    with pytest.raises(UsageError, match="above 0"):
        Mixed(Fixed(numbers(1)), Fixed(numbers(1)), ratio=0)


@pytest.mark.parametrize("calls", [0, 1, 2, 3])
def test_a_mixture_resumes(calls: int) -> None:
    def build() -> Mixed:
        return Mixed(Epochs(numbers(9), 3), Epochs(numbers(7, 100), 4), ratio=0.5)

    source = build()
    for _ in range(calls):
        source.next(Counting())
    other = build()
    restore(other, gather(source))
    assert all(equal(source.next(Counting()), other.next(Counting())) for _ in range(5))


def test_groups_of_two_sources_are_kept_apart() -> None:
    source = Mixed(
        PromptGroups(Turns(), 2, 2), PromptGroups(Turns(most=2), 2, 1, starts=[5, 1]), defaults={"turn_reward": 0.0}
    )
    batch = source.next(Typist())
    assert batch["group"].tolist() == [0, 0, 1, 1, 2, 3]
    assert batch["index"].tolist() == [0, 0, 1, 1, 5, 1]
    assert batch["origin"].tolist() == [0, 0, 0, 0, 1, 1]
    own = PromptGroups(Turns(), 2, 2).next(Typist())
    demonstrations = rows_of(["q0"], ["right"])
    defaults = dict.fromkeys(set(own.keys()) - set(demonstrations.keys()), -1.0)
    batch = Mixed(Fixed(own), Fixed(demonstrations), defaults=defaults).next(Typist())
    assert batch["group"].tolist() == [0, 0, 1, 1, -1]  # a negative one says "no group"


def test_paired_batches_are_side_by_side() -> None:
    source = Paired(expert=Fixed(numbers(2)), offline=Fixed(numbers(3)))
    batch = source.next(Counting())
    assert batch.batch_size == ()
    assert set(batch.keys()) == {"expert", "offline"}
    assert batch["expert"].batch_size == (2,)
    assert batch["offline"].batch_size == (3,)
    assert source.episodes() == [(2.0, 1), (3.0, 1)]

    def build() -> Paired:
        return Paired(expert=Epochs(numbers(5), 2), offline=Epochs(numbers(6), 2))

    source, other = build(), build()
    source.next(Counting())
    restore(other, gather(source))
    assert equal(source.next(Counting()), other.next(Counting()))
