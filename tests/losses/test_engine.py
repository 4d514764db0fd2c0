"""The sampler's mismatch and the weights that correct for it, against numbers worked by hand."""

from __future__ import annotations

import math

import pytest
import torch

from polopt.losses.engine import engine_gap, truncated_importance

LOG2 = math.log(2.0)
# Differences, trainer minus engine: log 2, -log 2, (masked); log 4, 0, log 2.
ENGINE = torch.tensor([[-1.0, -1.0, 0.0], [-3.0, -1.0, -2.0]], dtype=torch.float64)
DIFFERENCE = torch.tensor([[LOG2, -LOG2, 50.0], [2 * LOG2, 0.0, LOG2]], dtype=torch.float64)
MASK = torch.tensor([[True, True, False], [True, True, True]])


def test_gap_by_hand():
    gap = engine_gap(ENGINE + DIFFERENCE, ENGINE, MASK)
    assert gap["engine_gap"].item() == pytest.approx((1 + 1 + 2 + 0 + 1) * LOG2 / 5)
    assert gap["engine_gap_max"].item() == pytest.approx(2 * LOG2)
    assert gap["engine_ratio"].item() == pytest.approx((2 + 0.5 + 4 + 1 + 2) / 5)


def test_no_mismatch_and_no_tokens():
    same = engine_gap(ENGINE, ENGINE, MASK)
    assert [same[name].item() for name in ("engine_gap", "engine_gap_max", "engine_ratio")] == [0, 0, 1]
    empty = engine_gap(ENGINE + DIFFERENCE, ENGINE, torch.zeros_like(MASK))
    assert all(value == 0 for value in empty.values())


def test_weights_of_tokens_by_hand():
    weight = truncated_importance(ENGINE + DIFFERENCE, ENGINE, MASK, 3.0, "token")
    torch.testing.assert_close(weight, torch.tensor([[2, 0.5, 1], [3, 1, 2]], dtype=torch.float64))


def test_weights_of_sequences_by_hand():
    weight = truncated_importance(ENGINE + DIFFERENCE, ENGINE, MASK, 3.0, "sequence")
    torch.testing.assert_close(weight, torch.tensor([[1.0] * 3, [3.0] * 3], dtype=torch.float64))  # 2 / 2 and 4 * 2 > 3
    uncapped = truncated_importance(ENGINE + DIFFERENCE, ENGINE, MASK, 100.0, "sequence")
    torch.testing.assert_close(uncapped[1], torch.full((3,), 8.0, dtype=torch.float64))


def test_weights_make_an_unbiased_estimate_of_the_trainers_policy():
    engine = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    trainer = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    value = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
    columns = [x.log().unsqueeze(1) for x in (trainer, engine)]
    weight = truncated_importance(*columns, torch.ones(3, 1, dtype=torch.bool), 10.0, "token").squeeze(1)
    assert (engine * weight * value).sum().item() == pytest.approx((trainer * value).sum().item())


def test_weights_carry_no_gradient_and_know_their_levels():
    log_prob = (ENGINE + DIFFERENCE).requires_grad_()
    assert not truncated_importance(log_prob, ENGINE, MASK, 2.0, "token").requires_grad
    assert not engine_gap(log_prob, ENGINE, MASK)["engine_gap"].requires_grad
    with pytest.raises(ValueError, match="'token' or 'sequence', not 'turn'"):
        truncated_importance(log_prob, ENGINE, MASK, 2.0, "turn")
    with pytest.raises(ValueError, match="shapes must be equal"):
        engine_gap(log_prob, ENGINE[:1], MASK)
