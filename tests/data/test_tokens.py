"""Cutting batches of tokens by a budget of positions."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import TensorDict

import polopt
from polopt.core.errors import UsageError
from polopt.data.tokens import by_tokens
from polopt.training import api

LEARNED = ("loss", "grad_norm")
LENGTHS = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=12)


def rows(lengths, start=0):
    """Prompts padded on the left and completions on the right, each row with an id in every token."""
    prompt, completion = (max(each) for each in zip(*lengths))
    there = torch.tensor([[[0] * (prompt - p) + [1] * p + [1] * c + [0] * (completion - c)] for p, c in lengths]).bool()
    ids = torch.arange(start + 1, start + 1 + len(lengths)).unsqueeze(1)
    there = there.squeeze(1)
    batch = {"prompt_mask": there[:, :prompt], "attention": there[:, prompt:], "weight": ids.squeeze(1).double()}
    batch |= {"prompt": ids * batch["prompt_mask"], "completion": ids * batch["attention"]}
    return TensorDict(batch, batch_size=[len(lengths)])


def check(parts, budget, sides=1):
    """(ids of the rows, positions) of the pieces, each within the budget if it has more than a row, without padding."""
    for part in parts:
        width = part["prompt"].shape[1] + part["completion"].shape[1]
        assert len(part) == 1 or sides * len(part) * width <= budget
        assert (part["prompt"] == part["weight"].long().unsqueeze(1) * part["prompt_mask"]).all()
        assert (part["completion"] == part["weight"].long().unsqueeze(1) * part["attention"]).all()
    return sorted(row for part in parts for row in part["weight"].tolist())


@settings(max_examples=50)
@given(LENGTHS, st.integers(1, 60))
def test_every_row_is_in_one_piece_within_the_budget(lengths, budget):
    parts = by_tokens(rows(lengths), budget)
    assert check(parts, budget) == list(range(1, len(lengths) + 1))
    assert all(len(part) for part in parts)
    sizes = [[part[name].sum(1).clamp_min(1) for name in ("prompt_mask", "attention")] for part in parts]
    longest = [int((prompt + completion).max()) for prompt, completion in sizes]
    assert longest == sorted(longest)


def test_rows_of_like_lengths_go_together():
    parts = by_tokens(rows([(1, 9), (1, 1), (2, 8), (2, 1)]), 20)
    assert [part["weight"].tolist() for part in parts] == [[2.0, 4.0], [1.0], [3.0]]  # 2 x 3; two of 10 need 2 x 11
    assert parts[0]["completion"].shape == (2, 1)
    assert parts[0]["prompt"].shape == (2, 2)


@settings(max_examples=30)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=7), st.integers(1, 40))
def test_no_cut_of_the_rows_in_order_of_length_costs_less(lengths, budget):
    order = sorted(lengths)

    def cost(sizes):
        """Of pieces of these sizes, prompts being one token; infinite where one of several rows exceeds the budget."""
        total, start = 0.0, 0
        for size in sizes:
            positions = size * (order[start + size - 1] + 1)
            total += positions + budget / 16 if positions <= budget or size == 1 else float("inf")
            start += size
        return total

    def cuts(count):
        return [[size, *rest] for size in range(1, count + 1) for rest in cuts(count - size)] if count else [[]]

    found = [len(part) for part in by_tokens(rows([(1, length) for length in lengths]), budget)]
    assert cost(found) == pytest.approx(min(map(cost, cuts(len(lengths)))))


@settings(max_examples=30)
@given(LENGTHS, LENGTHS, st.integers(1, 60))
def test_pairs_stay_together_and_sides_of_their_own_do_not(one, other, budget):
    count = min(len(one), len(other))
    pairs = TensorDict({"chosen": rows(one[:count]), "rejected": rows(other[:count], 100)}, batch_size=[count])
    parts = by_tokens(pairs, budget)
    for part in parts:
        assert (part["chosen", "weight"] + 100 == part["rejected", "weight"]).all()
    assert check([part["chosen"] for part in parts], 1000) == list(range(1, count + 1))
    apart = TensorDict({"own": rows(one), "shown": rows(other, 100), "both": torch.tensor(3.0)}, batch_size=[])
    parts = by_tokens(apart, budget)
    assert check([part["own"] for part in parts if len(part["own"])], budget) == list(range(1, len(one) + 1))
    assert check([part["shown"] for part in parts if len(part["shown"])], budget) == list(range(101, 101 + len(other)))
    assert all(part["both"] == 3 for part in parts)


def test_a_run_with_a_budget_of_tokens_is_the_run_without(tmp_path):
    usual = {"model": "tiny", "batch_size": 8, "steps": 3, "policy.max_tokens": 30, "loggers": (), "lr": 1e-3}
    options = {"levels": (1, 4)}
    runs = [
        polopt.train("sft", "addition", out=tmp_path / str(budget), task_options=options, micro_tokens=budget, **usual)
        for budget in (None, 60)
    ]
    assert len(runs[0].rows) > 1
    for row, same in zip(runs[0].rows[1:], runs[1].rows[1:], strict=True):
        assert {name: row[name] for name in LEARNED} == pytest.approx({name: same[name] for name in LEARNED}, rel=1e-4)


def test_one_way_to_cut_at_a_time():
    with pytest.raises(UsageError, match="has no effect beside micro_tokens"):
        api.plan("sft", "addition", model="tiny", micro_tokens=100, micro_batch=2)
    with pytest.raises(UsageError, match="micro"):
        api.plan("sft", "addition", model="tiny", micro_tokens=0)
