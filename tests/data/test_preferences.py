from __future__ import annotations

from typing import Any

import pytest
import torch

from polopt.core.errors import UsageError
from polopt.core.state import gather, restore
from polopt.data import Epochs, Preferences, minibatches, pairs
from polopt.data.preferences import pairs_of
from polopt.tasks.problem import Problem

from .test_rollouts import equal
from .texts import Turns, Typist


def some(count: int = 5) -> Any:
    prompts = ["p" * (1 + i) for i in range(count)]
    return pairs(Typist(), prompts, ["good" * (1 + i) for i in range(count)], ["bad"] * count)


def test_both_sides_stay_aligned_and_are_trimmed() -> None:
    data = some()
    assert data.batch_size == (5,)
    assert data["index"].tolist() == [0, 1, 2, 3, 4]
    assert equal(data, pairs(Typist().tokenize, *texts_of(5)))
    source = Preferences(data, 2, torch.Generator().manual_seed(0))
    seen: list[int] = []
    for _ in range(5):
        batch = source.next(Typist())
        index = batch["index"]
        seen += index.tolist()
        longest = int(index.max()) + 1
        assert batch["chosen", "prompt"].shape == batch["rejected", "prompt_mask"].shape == (2, longest)
        assert batch["chosen", "completion"].shape == batch["chosen", "mask"].shape == (2, 4 * longest + 1)
        assert batch["rejected", "attention"].shape == (2, 4)
        assert batch["chosen", "prompt_mask"].sum(1).tolist() == (index + 1).tolist()
        assert batch["chosen", "mask"].sum(1).tolist() == (4 * index + 5).tolist()
        assert batch["rejected", "completion"][:, :3].tolist() == [list(map(ord, "bad"))] * 2
    assert sorted(seen[:5]) == sorted(seen[5:]) == [0, 1, 2, 3, 4]
    assert seen[:5] != seen[5:]
    assert data["chosen", "prompt"].shape == (5, 5)  # the data itself is untouched


def texts_of(count: int) -> tuple[list[str], list[str], list[str]]:
    return ["p" * (1 + i) for i in range(count)], ["good" * (1 + i) for i in range(count)], ["bad"] * count


def test_pairs_resume_and_can_be_cut_into_minibatches() -> None:
    source, other = Preferences(some(), 3), Preferences(some(), 3)
    source.next(Typist())
    restore(other, gather(source))
    assert all(equal(source.next(Typist()), other.next(Typist())) for _ in range(3))
    parts = list(minibatches(some(), 2))
    assert [len(part) for part in parts] == [2, 2, 1]
    assert parts[0]["weight"].tolist() == [0.5, 0.5]


class Pairs(Turns):
    """Pairs whose problems 0 and 2 have an answer in the column `other`, and all of them one in `every`."""

    def preferences(self, indices: Any) -> list[tuple[Any, str, str]]:
        return [(f"q{index}", "good", "bad") for index in indices]

    def problem(self, index: int) -> Problem:
        columns = {"every": [{"role": "assistant", "content": "so"}]} | ({} if index == 1 else {"other": "so"})
        return Problem(f"q{index}", columns=columns)


def test_the_pairs_of_a_task() -> None:
    data = pairs_of(Pairs(pool=5), Typist(), range(2, 5))
    assert data["index"].tolist() == [0, 1, 2]
    assert data["chosen", "prompt"].tolist() == [[ord("q"), ord(str(index))] for index in (2, 3, 4)]
    assert data.keys() == {"chosen", "rejected", "index"}


def test_further_answers_to_the_same_prompts() -> None:
    task = Pairs(pool=5)
    data = pairs_of(task, Typist(), range(3), "every")
    assert data["every", "completion"].tolist() == [[ord("s"), ord("o"), 1]] * 3
    assert data["every", "prompt"].tolist() == data["chosen", "prompt"].tolist()
    assert "nothing" not in pairs_of(task, Typist(), range(3), "nothing").keys()
    with pytest.raises(UsageError, match="prompt 1 of turns has no text as its 'other', but others do"):
        pairs_of(task, Typist(), range(3), "other")


def test_wrong_data() -> None:
    rows = Typist().tokenize(["a", "b"], ["c", "d"])
    with pytest.raises(UsageError, match="preference pairs need 'chosen'"):
        Preferences(rows, 2)
    with pytest.raises(UsageError, match="no rows"):
        Epochs(rows[:0], 2)
    with pytest.raises(UsageError, match="there are 1 prompts, 2 chosen and 2 rejected answers"):
        pairs(Typist(), ["a"], ["b", "c"], ["d", "e"])


def test_completions_to_imitate_come_in_epochs_too() -> None:
    rows = Typist().tokenize(["a", "bb", "ccc"], ["x", "yyyy", "z"])
    rows["log_prob"] = rows["mask"] * -1.0
    rows["turn_reward"] = torch.ones(3, rows["completion"].shape[1])  # as wide as the tokens by chance
    source = Epochs(rows, 1, torch.Generator().manual_seed(0))
    widths = sorted(
        (b["prompt"].shape[1], b["completion"].shape[1], b["log_prob"].shape[1], b["turn_reward"].shape[1])
        for b in (source.next(Typist()) for _ in range(3))
    )
    assert widths == [(1, 2, 2, 5), (2, 5, 5, 5), (3, 2, 2, 5)]
    assert len(Epochs(rows, 10).next(Typist())) == 3
