"""RMSprop: both forms by hand, the one of torch beside torch's, what is saved, compiled steps."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from polopt.config import Linear
from polopt.core.state import gather, restore
from polopt.optim import RMSprop
from tests.optim.test_optimizer import batch, net, squared


def steps(optimizer, module, count=4):
    return [optimizer.minimize(squared(module), batch()) and module.weight.detach().clone() for _ in range(count)]


def test_it_is_torchs(float64):
    ours, theirs = net(), net()
    optimizer = RMSprop(ours, lr=0.1, schedule=Linear(), eps=0.02, decay=0.9)
    optimizer.progress = 0.5
    other = torch.optim.RMSprop(theirs.parameters(), lr=0.05, eps=0.02, alpha=0.9)
    for moved in steps(optimizer, ours):
        other.zero_grad()
        squared(theirs)(batch())[0].backward()
        other.step()
        torch.testing.assert_close(moved, theirs.weight.detach())


def test_in_tensorflows_form_eps_is_under_the_root_and_squares_begin_at_1(float64):
    module = net()
    optimizer = RMSprop(module, lr=0.05, eps=0.02, decay=0.9, inside=True)
    weight, square = module.weight.detach().clone(), 1.0
    for moved in steps(optimizer, module):
        x, y = batch()["x"], batch()["y"]
        grad = 2 * ((x @ weight[0] - y)[:, None] * x).mean(0, keepdim=True)
        square = 0.9 * square + 0.1 * grad**2
        weight = weight - 0.05 * grad / (square + 0.02).sqrt()
        torch.testing.assert_close(moved, weight)


@pytest.mark.parametrize("inside", [False, True])
def test_what_it_remembers_is_saved(float64, inside):
    module = net()
    optimizer = RMSprop(module, lr=0.05, inside=inside)
    steps(optimizer, module)
    holder = copy.deepcopy(module)
    again = RMSprop(holder, lr=0.05, inside=inside)
    restore(again, gather(optimizer))
    assert torch.equal(steps(again, holder)[-1], steps(optimizer, module)[-1])
    optimizer.forget()
    assert set(gather(optimizer)) == {"#lr"}


@pytest.mark.parametrize("inside", [False, True])
def test_a_compiled_step_is_the_same(float64, inside):
    """Also beside parameters that the loss does not reach, and once it goes on from what was saved."""
    plain, other, idle = nn.Linear(2, 1, bias=False), nn.Linear(2, 1, bias=False), nn.Linear(3, 3)
    other.load_state_dict(plain.state_dict())
    options = {"lr": 0.1, "schedule": Linear(), "max_grad_norm": 0.4, "inside": inside}
    optimizer, compiled = RMSprop(idle, plain, **options), RMSprop(idle, other, **options)
    optimizer.progress = compiled.progress = 0.5
    compiled.compile(backend="eager", fullgraph=True)
    for one, two in zip(steps(optimizer, plain), steps(compiled, other)):
        torch.testing.assert_close(one, two)
    again = RMSprop(idle, other, **options)
    again.progress = 0.5
    restore(again, gather(compiled))
    torch.testing.assert_close(steps(optimizer, plain), steps(again, other))


def test_what_it_would_ignore_is_no_argument():
    for option in ({"weight_decay": 0.1}, {"betas": (0.5, 0.9)}, {"bias_correction": False}):
        with pytest.raises(TypeError, match="unexpected keyword"):
            RMSprop(net(), lr=0.05, **option)


def test_a_parameter_that_the_loss_does_not_reach_stays():
    module, idle = net(), net()
    optimizer = RMSprop(module, idle, lr=0.05)
    before = idle.weight.clone()
    steps(optimizer, module, 2)
    assert torch.equal(idle.weight, before)
