"""Brownian motion with drift: what a world promises, and the formula of its values."""

from __future__ import annotations

import pytest
import torch

from polopt.core.errors import UsageError
from polopt.data.episodes import Episodes
from polopt.tasks import make_task
from polopt.tasks.diffusions import Brownian
from tests.data.actors import Random

from .worlds import check_world


@pytest.mark.parametrize("control", [0.0, 0.5])
def test_a_world_keeps_every_promise(control: float) -> None:
    check_world(lambda num, seed, evaluation: Brownian(num, seed, evaluation, horizon=8, control=control))


def test_steps_by_hand(float64: None) -> None:
    world = make_task("brownian", 1, horizon=4, drift=0.4, deviation=0.8, control=2.0)
    world.levels = {"x": torch.tensor([3.0]), "noise": torch.tensor([[1.0, 0.0, -1.0, 0.5]])}
    assert world.reset().tolist() == [[1.0, 3.0]]
    expected = [  # X + (0.4 + 2 a) / 4 + 0.8 noise / 2, and the reward -X^2 / 4 of where it was, at the end X^2 besides
        (1.0, 3.0 + 0.6 + 0.4, -9.0 / 4),
        (-0.2, 4.0 + 0.0 + 0.0, -16.0 / 4),
        (7.0, 4.0 + 0.6 - 0.4, -16.0 / 4),  # an action beyond the bounds is the bound
        (0.0, 4.2 + 0.1 + 0.2, -(4.2**2) / 4 + 4.5**2),
    ]
    for time, (action, x, reward) in enumerate(expected):
        obs, found, terminated, truncated = world.step({"action": torch.tensor([[action]])})
        torch.testing.assert_close(obs, torch.tensor([[(3 - time) / 4, x]]))
        assert found.item() == pytest.approx(reward)
        assert (terminated.item(), truncated.item()) == (time == 3, False)


def test_the_values_solve_the_equation_of_the_diffusion(float64: None) -> None:
    """dJ/dt + drift J_x + deviation^2 / 2 J_xx - x^2 = 0, and J = x^2 at the end."""
    world = Brownian(drift=-0.7, deviation=1.3)
    obs = torch.stack((torch.rand(50), 3 * torch.randn(50)), -1).requires_grad_()
    by_left, by_x = torch.autograd.grad(world.value(obs).sum(), obs, create_graph=True)[0].unbind(-1)
    by_xx = torch.autograd.grad(by_x.sum(), obs)[0][:, 1]
    residual = -by_left - 0.7 * by_x + 1.3**2 / 2 * by_xx - obs[:, 1].square()
    torch.testing.assert_close(residual, torch.zeros(50), atol=1e-9, rtol=0)
    ends = torch.stack((torch.zeros(50), torch.randn(50)), -1)
    torch.testing.assert_close(world.value(ends), world.spec.info["diffusion"].payoff(ends))


def test_returns_have_the_value_as_their_mean() -> None:
    """4,000 episodes: a standard error of 0.03; the grid adds 0.01."""
    world = make_task("brownian", 4000, seed=3, horizon=32)
    batch = Episodes(world, 4000).next(Random(world.spec))
    starts = world.value(batch["obs"][:, 0])
    assert (batch["reward"].sum(1) - starts).mean().item() == pytest.approx(0.0, abs=0.1)
    assert starts.mean().item() == pytest.approx(
        0.09 * 2 / 3 + 0.64 / 2, abs=0.05
    )  # x^2 and x are 0 on average at tau 1


def test_only_a_world_without_control_knows_its_values() -> None:
    assert make_task("brownian").spec.info["diffusion"].value is not None
    assert make_task("brownian", control=0.1).spec.info["diffusion"].value is None


@pytest.mark.parametrize("option", ["drift", "deviation", "control"])
def test_numbers_must_be_finite(option: str) -> None:
    with pytest.raises(UsageError, match=f"brownian: {option} must be a finite number, not inf"):
        make_task("brownian", **{option: float("inf")})
