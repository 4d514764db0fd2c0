from __future__ import annotations

from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor

from polopt.config import Linear
from polopt.core.batch import weigh
from polopt.core.errors import RunError
from polopt.core.state import gather, restore
from polopt.optim import NaturalOptimizer

START = torch.tensor([1.0, -2.0], dtype=torch.float64)
FISHER = torch.tensor([[2.0, 1.0], [1.0, 3.0]], dtype=torch.float64)
SLOPE = torch.tensor([1.0, 4.0], dtype=torch.float64)


class Toy:
    """Two parameters, a loss of this slope, and a divergence with this Hessian; a batch of rows that share them."""

    def __init__(self, bend: float = 0.0, fisher: Tensor = FISHER) -> None:
        self.theta = torch.nn.Parameter(START.clone())
        self.bend, self.fisher = bend, fisher
        self.batch = weigh(TensorDict({"one": torch.ones(6, dtype=torch.float64)}, [6]))

    def loss(self, batch: Any, scale: float = 1.0) -> tuple[Tensor, dict[str, Tensor]]:
        moved = self.theta - START
        value = batch["weight"].sum() * scale * (SLOPE @ self.theta + self.bend * moved.square().sum())
        return value, {"loss": value}

    def divergence(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        moved = self.theta - START
        return batch["weight"].sum() * moved @ self.fisher @ moved / 2, {}

    def moved(self) -> Tensor:
        return (self.theta - START).detach()


def expected_step(radius: float, damping: float) -> Tensor:
    damped = FISHER + damping * torch.eye(2, dtype=torch.float64)
    direction = torch.linalg.solve(damped, SLOPE)
    return -((2 * radius / (direction @ damped @ direction)) ** 0.5) * direction


@pytest.mark.parametrize("piece", [None, 1, 4])
def test_a_step_to_the_edge_by_hand(float64, piece) -> None:
    toy = Toy()
    optimizer = NaturalOptimizer(toy.theta, divergence=toy.divergence, radius=0.08, damping=0.2, micro_batch=piece)
    metrics = optimizer.minimize(toy.loss, toy.batch)
    step = expected_step(0.08, 0.2)
    torch.testing.assert_close(toy.moved(), step)
    assert float(metrics["loss"]) == pytest.approx(float(SLOPE @ START))  # before the step
    assert float(metrics["divergence"]) == pytest.approx(float(step @ FISHER @ step / 2))
    assert float(metrics["step_scale"]) == 1


def test_compiled_it_is_a_natural_step_still(float64) -> None:
    toy = Toy()
    optimizer = NaturalOptimizer(toy.theta, divergence=toy.divergence, radius=0.08, damping=0.2)
    optimizer.compile(backend="eager")
    optimizer.minimize(toy.loss, toy.batch)
    torch.testing.assert_close(toy.moved(), expected_step(0.08, 0.2))


def test_a_larger_function_that_is_compiled_cannot_have_it(float64, monkeypatch) -> None:
    toy = Toy()
    optimizer = NaturalOptimizer(toy.theta, divergence=toy.divergence)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    with pytest.raises(TypeError, match="cannot be part of a compiled function"):
        optimizer.minimize(toy.loss, toy.batch)


def test_the_radius_follows_the_schedule(float64) -> None:
    toy = Toy()
    optimizer = NaturalOptimizer(toy.theta, divergence=toy.divergence, radius=0.08, schedule=Linear(), damping=0.2)
    optimizer.progress = 0.75
    optimizer.minimize(toy.loss, toy.batch)
    torch.testing.assert_close(toy.moved(), expected_step(0.02, 0.2))


@pytest.mark.parametrize(("accept", "rise", "scale"), [(0.1, 0.89, 1.0), (0.1, 3.0, 0.25), (0.9, 1.0, 0.0625)])
def test_it_goes_back_until_the_loss_falls_as_promised(float64, accept, rise, scale) -> None:
    """`rise` times what is promised comes back at the full step: a scale falls by scale (1 - rise scale) of it."""
    step = expected_step(0.08, 0.2)
    toy = Toy(bend=-rise * float(SLOPE @ step / (step @ step)))
    options = {"divergence": toy.divergence, "radius": 0.08, "damping": 0.2, "accept": accept}
    metrics = NaturalOptimizer(toy.theta, **options).minimize(toy.loss, toy.batch)
    assert float(metrics["step_scale"]) == scale
    torch.testing.assert_close(toy.moved(), scale * step)


def test_it_goes_back_into_the_trust_region(float64) -> None:
    """Ten times the curvature of the Hessian further out: only a scale of at most 10^(-1/2) is inside."""
    toy = Toy()

    def divergence(batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        value, _ = toy.divergence(batch)
        return value + 9 * value.detach(), {}

    optimizer = NaturalOptimizer(toy.theta, divergence=divergence, radius=0.08, damping=0.01)
    metrics = optimizer.minimize(toy.loss, toy.batch)
    assert float(metrics["step_scale"]) == 0.25
    assert float(metrics["divergence"]) <= 0.08


def test_where_no_step_is_good_it_stays(float64) -> None:
    toy = Toy(bend=1e9)
    optimizer = NaturalOptimizer(toy.theta, divergence=toy.divergence, radius=0.08, damping=0.2)
    metrics = optimizer.minimize(toy.loss, toy.batch)
    assert torch.equal(toy.theta.detach(), START)
    assert float(metrics["step_scale"]) == 0
    assert float(metrics["divergence"]) == 0


def test_the_natural_gradient_of_a_softmax_is_the_advantage(float64) -> None:
    """F = diag(p) - p p^T and g = -F r, so that F^-1 g is r minus its plain mean, whatever p."""
    logits = torch.nn.Parameter(torch.tensor([0.3, -0.2, 1.0, 0.0]))
    start, rewards = logits.detach().clone(), torch.tensor([1.0, 0.0, 3.0, 2.0])
    old = start.softmax(-1)

    def loss(batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        return -batch["weight"].sum() * (logits.softmax(-1) @ rewards), {}

    def divergence(batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        return batch["weight"].sum() * (old * (old.log() - logits.log_softmax(-1))).sum(), {}

    batch = weigh(TensorDict({"obs": torch.zeros(2)}, [2]))
    metrics = NaturalOptimizer(logits, divergence=divergence, radius=1e-6, damping=1e-9).minimize(loss, batch)
    moved = logits.detach() - start
    direction = rewards - rewards.mean()
    torch.testing.assert_close(moved / moved.norm(), direction / direction.norm(), rtol=1e-4, atol=1e-4)
    assert float(metrics["divergence"]) == pytest.approx(1e-6 * float(metrics["step_scale"]) ** 2, rel=1e-2)


def test_a_divergence_without_curvature_is_told(float64) -> None:
    toy = Toy(fisher=-FISHER)
    optimizer = NaturalOptimizer(toy.theta, divergence=toy.divergence, damping=0.2)
    with pytest.raises(RunError, match="a larger damping makes it positive"):
        optimizer.minimize(toy.loss, toy.batch)
    assert torch.equal(toy.theta.detach(), START)


def test_what_all_pieces_share_reaches_the_loss(float64) -> None:
    """Twice the loss has the same natural step, minus the loss the opposite one."""
    moves = []
    for scale in (1.0, 2.0, -1.0):
        toy = Toy()
        optimizer = NaturalOptimizer(toy.theta, divergence=toy.divergence, damping=0.2, micro_batch=2)
        optimizer.minimize(toy.loss, toy.batch, scale=scale)
        moves.append(toy.moved())
    torch.testing.assert_close(moves[1], moves[0])
    torch.testing.assert_close(moves[2], -moves[0])


def test_it_needs_the_loss_as_a_function(float64) -> None:
    toy = Toy()
    optimizer = NaturalOptimizer(toy.theta, divergence=toy.divergence)
    with pytest.raises(TypeError, match="a natural step needs the loss as a function"):
        optimizer.step(toy.loss(toy.batch)[0])


def test_its_radius_is_saved(float64) -> None:
    toy = Toy()
    one, other = (NaturalOptimizer(toy.theta, divergence=toy.divergence, radius=radius) for radius in (0.5, 0.1))
    restore(other, gather(one))
    assert other.rate == 0.5
