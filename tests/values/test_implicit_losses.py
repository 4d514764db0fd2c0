"""Implicit losses beside closed forms and minimizers that scipy and numpy find."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import optimize
from torch import Tensor

from polopt.values.implicit_losses import (
    conjugate,
    density_ratio,
    gumbel,
    gumbel_peak,
    implicit_maximum,
    logit_expectile,
    logit_quantile,
    quantile,
)


def minimizer(loss, low: float = -6.0, high: float = 6.0) -> float:
    """Of the mean of a loss of residuals `found - value`."""
    grid = torch.linspace(low, high, 1201)
    start = float(grid[int(torch.stack([loss(value).mean() for value in grid]).argmin())])
    bounds = (start - 0.02, start + 0.02)
    options = {"xatol": 1e-9}
    return float(
        optimize.minimize_scalar(
            lambda value: float(loss(torch.tensor(value)).mean()), bounds=bounds, method="bounded", options=options
        ).x
    )


@pytest.mark.parametrize(
    ("divergence", "f"), [("chi2", lambda w: (w - 1) ** 2), ("reverse-kl", lambda w: w * np.log(w))]
)
def test_the_conjugate_is_a_maximum_over_ratios(divergence, f, float64):
    ratio = np.linspace(1e-9, 40, 400_001)
    for x in (-5.0, -2.0, -1.0, 0.0, 0.7, 3.0):
        values = ratio * x - f(ratio)
        residual = torch.tensor(x, requires_grad=True)
        found = conjugate(residual, divergence)
        assert float(found) == pytest.approx(values.max(), abs=1e-6)
        (slope,) = torch.autograd.grad(found, residual)
        weight = density_ratio(residual.detach(), divergence)
        assert float(slope) == pytest.approx(float(weight))
        assert float(weight) == pytest.approx(ratio[values.argmax()], abs=2e-4)
    assert torch.isfinite(conjugate(torch.tensor([-1e4, 1e4]), divergence)).all()
    with pytest.raises(ValueError, match="chi2, reverse-kl, not 'tv'"):
        conjugate(torch.zeros(1), "tv")


def test_pearsons_conjugate_is_flat_where_the_ratio_is_0(float64):
    x = torch.tensor([-9.0, -2.0, -1.0, 2.0])
    assert conjugate(x).tolist() == [-1.0, -1.0, -0.75, 3.0]
    assert density_ratio(x).tolist() == [0.0, 0.0, 0.5, 2.0]


def test_implicit_maxima_by_hand(float64):
    x = torch.tensor([-8.0, -4.0, -1.0, 0.0, 2.0])
    expected = {  # 0.8 G(x) - 0.2 x
        "chi2": [0.8 * 8 + 1.6, 0.8, 0.2, 0.0, 0.8 * 3 - 0.4],
        "chi2-exact": [-0.8 + 1.6, -0.8 + 0.8, -0.6 + 0.2, 0.0, 0.8 * 3 - 0.4],
        "tv": [1.6, 0.8, 0.2, 0.0, 1.6 - 0.4],
    }
    for kind, values in expected.items():
        assert implicit_maximum(x, kind, 0.8).tolist() == pytest.approx(values, abs=1e-12)


@pytest.mark.parametrize("strength", [0.6, 0.8, 0.95])
def test_minimizers_of_implicit_maxima(strength, float64):
    q = torch.from_numpy(np.random.default_rng(0).normal(size=301))
    tail = (2 * strength - 1) / strength
    found = minimizer(lambda value: implicit_maximum(q - value, "tv", strength))
    assert found == pytest.approx(float(np.quantile(q, tail)), abs=0.05)
    constant = torch.full((3,), 1.5)
    for kind, excess in (("chi2", 0.0), ("tv", 0.0), ("chi2-exact", 2 * (1 - (1 - strength) / strength))):
        found = minimizer(lambda value, kind=kind: implicit_maximum(constant - value, kind, strength))
        assert found == pytest.approx(1.5 + excess, abs=1e-4)


def test_a_strength_without_a_minimum_is_refused():
    for strength in (0.5, 0.2, 1.1):
        with pytest.raises(ValueError, match=r"in \(1/2, 1\]"):
            implicit_maximum(torch.zeros(2), "tv", strength)
    with pytest.raises(ValueError, match="chi2, chi2-exact, tv, not 'rkl'"):
        implicit_maximum(torch.zeros(2), "rkl", 0.8)


def test_a_value_above_everything_is_not_pushed_at_strength_1():
    value = torch.tensor([0.0, 3.0], requires_grad=True)
    implicit_maximum(torch.tensor([1.0, 1.0]) - value, "chi2", 1.0).sum().backward()
    assert value.grad is not None
    assert value.grad.tolist() == [-1.5, 0.0]


def scaled_gumbel(residual: Tensor, temperature: float, clip: float | None = None) -> Tensor:
    return gumbel(residual, temperature, gumbel_peak(residual, temperature, clip), clip)


def test_gumbel_by_hand(float64):
    x = torch.tensor([2.0, 8.0, -2.0])
    assert float(gumbel_peak(x, 2.0)) == 4.0
    assert float(gumbel_peak(x, 2.0, clip=3.0)) == 3.0
    assert float(gumbel_peak(torch.tensor([-7.0, -5.0]), 1.0)) == -1.0
    expected = [(math.exp(z) - z - 1) * math.exp(-3.0) for z in (1.0, 3.0, -1.0)]
    assert scaled_gumbel(x, 2.0, 3.0).tolist() == pytest.approx(expected)
    value = torch.zeros(3, requires_grad=True)
    scaled_gumbel(x - value, 2.0, 3.0).sum().backward()
    slopes = [-(math.exp(z) - 1) / 2 * math.exp(-3.0) for z in (1.0, -1.0)]
    assert value.grad is not None
    assert value.grad.tolist() == pytest.approx([slopes[0], 0.0, slopes[1]])  # none beyond the clip, none of the peak
    assert torch.isfinite(scaled_gumbel(torch.tensor([1e4, 0.0]), 1.0)).all()


def test_the_minimizer_of_gumbel_is_a_soft_maximum(float64):
    q = torch.from_numpy(np.random.default_rng(1).normal(size=100))
    for temperature in (0.5, 2.0):
        peak = gumbel_peak(q, temperature)
        found = minimizer(lambda value, t=temperature, peak=peak: gumbel(q - value, t, peak))
        assert found == pytest.approx(temperature * math.log(float((q / temperature).exp().mean())), abs=1e-4)


def test_quantiles(float64):
    assert quantile(torch.tensor([-2.0, 0.0, 2.0]), 0.9).tolist() == pytest.approx([0.2, 0.0, 1.8])
    q = torch.from_numpy(np.random.default_rng(2).normal(size=301))
    for tau in (0.1, 0.5, 0.93):
        found = minimizer(lambda value, tau=tau: quantile(q - value, tau))
        assert found == pytest.approx(float(np.quantile(q, tau)), abs=0.05)


def logistic(x: Tensor) -> Tensor:
    return 1 / (1 + (-x).exp())


def test_logits_of_probabilities_by_hand(float64):
    logit, target = torch.tensor([0.0, 0.0, 2.0]), torch.tensor([0.75, 0.25, 1.0])
    p = logistic(logit)
    entropy = -(target * p.log() + (1 - target) * (1 - p).log())
    factor = torch.tensor([0.8, 0.2, 0.8])
    torch.testing.assert_close(logit_expectile(logit, target, 0.8), factor * entropy)
    torch.testing.assert_close(logit_expectile(logit, target, 0.5), 0.5 * entropy)
    gaps = torch.tensor([math.log(3), math.log(3), math.log((1 - 1e-5) / 1e-5) - 2])
    torch.testing.assert_close(logit_quantile(logit, target, 0.8), factor * gaps)
    assert float(logit_expectile(torch.zeros(1), torch.full((1,), 0.5), 0.9)) == pytest.approx(0.9 * math.log(2))
    with pytest.raises(ValueError, match="shapes must be equal"):
        logit_quantile(logit, target[:, None], 0.8)


def test_logits_lead_to_expectile_and_quantile(float64):
    """The expectile: tau sum(above - p) = (1 - tau) sum(p - below)."""
    target = torch.from_numpy(np.random.default_rng(3).uniform(0.05, 0.95, size=301))

    def slope(value: float) -> float:
        logit = torch.full((301,), value, requires_grad=True)
        (grad,) = torch.autograd.grad(logit_expectile(logit, target, 0.8).mean(), logit)
        return float(grad.sum())

    p = float(logistic(torch.tensor(optimize.brentq(slope, -6.0, 6.0, xtol=1e-10))))
    above, below = target[target >= p], target[target < p]
    assert 0.8 * float((above - p).sum()) == pytest.approx(0.2 * float((p - below).sum()), abs=1e-6)
    found = minimizer(lambda logit: logit_quantile(logit.expand_as(target), target, 0.9))
    assert float(logistic(torch.tensor(found))) == pytest.approx(float(np.quantile(target, 0.9)), abs=0.01)


def test_no_gradient_goes_into_targets():
    for loss in (logit_expectile, logit_quantile):
        logit, target = torch.zeros(3, requires_grad=True), torch.full((3,), 0.7, requires_grad=True)
        loss(logit, target, 0.8).sum().backward()
        assert target.grad is None
        assert logit.grad is not None
        assert (logit.grad < 0).all()
