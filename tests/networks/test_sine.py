"""Rectified sines against formulas in NumPy, ensembles of them, and gradients that are dropped in silence."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from polopt.networks.sine import ReSine, SilentDropout, SineMLP, sine_network

pytestmark = pytest.mark.usefixtures("float64")


def by_hand(x: np.ndarray, parameters: list[np.ndarray]) -> np.ndarray:
    """Weights are [inputs, outputs]."""
    w1, b1, scale, shift, w2, b2, raw, w3, b3 = parameters
    x = x @ w1 + b1
    x = scale * (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) + shift
    x = x @ w2 + b2
    width = 1 / (1 + np.exp(-raw))
    x = width * np.sin(x / width)
    return x / (1 + np.exp(-1.5 * x / width)) @ w3 + b3


def numbers(net: SineMLP, member: int | None = None) -> list[np.ndarray]:
    found = [parameter.detach().numpy() for parameter in net.parameters()]
    if member is None:
        return [each.T for each in found]
    return [each[member] for each in found]


def moved(net: Any) -> Any:
    """Also what begins at 0 and 1 is elsewhere."""
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return net


def test_the_network_is_that_of_the_formula():
    net, x = moved(SineMLP(4, 2, 8)), torch.randn(5, 3, 4)
    np.testing.assert_allclose(net(x).detach(), by_hand(x.numpy(), numbers(net)), rtol=1e-10)


def test_each_of_several_networks_is_that_of_the_formula():
    net, x = moved(SineMLP(4, 2, 8, members=3)), torch.randn(5, 4)
    outputs = net(x)
    assert outputs.shape == (3, 5, 2)
    for member in range(3):
        np.testing.assert_allclose(outputs[member].detach(), by_hand(x.numpy(), numbers(net, member)), rtol=1e-10)
    assert torch.equal(net(x, members=2), outputs[:2])


def test_widths_begin_near_a_half_and_bound_what_comes_out():
    unit = ReSine(400)
    assert unit.raw.abs().max() <= 1 / 20
    assert float(unit.raw.detach().std()) == pytest.approx(1 / 20 / math.sqrt(3), rel=0.1)
    with torch.no_grad():
        unit.raw.copy_(torch.linspace(-3, 3, 400))
    width, y = unit.raw.detach().sigmoid(), unit(10 * torch.randn(2_000, 400)).detach()
    assert (y <= 0.8176 * width).all()
    assert (y >= -0.186 * width).all()
    assert ((y / width).amax(0) > 0.81).all()
    assert ((y / width).amin(0) < -0.185).all()


def test_silent_dropout_changes_no_number_and_stops_the_gradients_of_some():
    x = torch.randn(4_000, requires_grad=True)
    y = SilentDropout(0.25)(x)
    assert torch.equal(y, x)
    (grad,) = torch.autograd.grad(3.0 * y.sum(), x)
    assert set(grad.tolist()) == {0.0, 3.0}
    assert float((grad == 0).double().mean()) == pytest.approx(0.25, abs=0.03)
    state = torch.get_rng_state()
    with torch.no_grad():
        assert SilentDropout(0.5)(x) is x
    assert SilentDropout(0.0)(x) is x
    assert torch.equal(torch.get_rng_state(), state)


def test_a_network_reads_observations_and_actions_and_drops_at_its_end():
    net = sine_network(spaces.Box(-1, 1, (3,)), 6, 8, inputs_extra=2, silent=0.5, members=3)
    obs, action = torch.randn(50, 3), torch.randn(50, 2)
    out = net(obs, action)
    assert out.shape == (3, 50, 6)
    bias: Any = list(net.parameters())[-1]
    (grad,) = torch.autograd.grad(out.sum(), bias)
    assert (grad < 45).all()  # of 50 rows about half
    assert (grad > 5).all()
