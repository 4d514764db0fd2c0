"""Bounded exponentials are the exponential where it is small, and finite everywhere else."""

from __future__ import annotations

import math

import pytest
import torch

from polopt.core.numeric import BOUND, bounded_exp, bounded_expm1, bounded_exps, flushes_denormal


@pytest.mark.parametrize(("bounded", "plain"), [(bounded_exp, torch.exp), (bounded_expm1, torch.expm1)])
def test_up_to_the_bound_they_are_the_exponential_to_the_bit(bounded, plain):
    x = torch.linspace(-50.0, BOUND, 1001).requires_grad_()
    assert torch.equal(bounded(x), plain(x))
    (slope,) = torch.autograd.grad(bounded(x[:-1]).sum(), x)
    torch.testing.assert_close(slope[:-1], x[:-1].exp().detach(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("bounded", [bounded_exp, bounded_expm1])
@pytest.mark.parametrize("far", [21.0, 100.0, 1e4])
def test_beyond_it_they_are_its_tangent(bounded, far):
    x = torch.tensor(far, requires_grad=True)
    value = bounded(x)
    (slope,) = torch.autograd.grad(value, x)
    assert value.item() == pytest.approx(math.exp(BOUND) * (1 + far - BOUND), rel=1e-5)
    assert slope.item() == pytest.approx(math.exp(BOUND), rel=1e-5)


def test_an_impossible_action_has_ratio_zero():
    assert float(bounded_exp(torch.tensor(-math.inf))) == 0.0
    assert float(bounded_expm1(torch.tensor(-math.inf))) == -1.0


def test_both_of_the_same_numbers_are_each_by_itself_to_the_bit():
    x = torch.cat([torch.linspace(-60.0, 60.0, 999), torch.tensor([0.0, 1e-9, -1e-9, 1e9, -math.inf])])
    value, excess = bounded_exps(x)
    assert torch.equal(value, bounded_exp(x))
    assert torch.equal(excess, bounded_expm1(x))


def test_whether_the_smallest_numbers_are_flushed():
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot")
    try:
        assert flushes_denormal()
    finally:
        torch.set_flush_denormal(False)
    assert not flushes_denormal()
