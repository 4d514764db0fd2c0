"""Programs as tasks: rewards are log densities, and the evidence is what quadrature says."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch.distributions import Normal

from polopt.core.errors import RunError
from polopt.losses.expectations import Sampling
from polopt.tasks import make_task
from polopt.tasks.programs import Choices, Cone, Mixture, normal

from .worlds import check_world


@pytest.mark.parametrize("cls", [Cone, Mixture])
def test_a_world_keeps_every_promise(cls: Any) -> None:
    check_world(lambda num, seed, evaluation: cls(num, seed, evaluation), steps=3)


def log_normal(x: float, mean: float, std: float) -> float:
    return -0.5 * ((x - mean) / std) ** 2 - math.log(std) - 0.5 * math.log(2 * math.pi)


def test_the_reward_is_the_log_density_by_hand(float64: None) -> None:
    task = make_task("cone", 2)
    assert task.reset().tolist() == [[5.0], [5.0]]
    _, reward, terminated, truncated = task.step({"action": torch.tensor([[1.0, -2.0], [0.5, 0.0]])})
    expected = [
        log_normal(x, 0, 10) + log_normal(y, 0, 10) + log_normal(5, r, 0.1 + r / 100)
        for x, y, r in ((1, -2, 5), (0.5, 0, 0.25))
    ]
    assert reward.tolist() == pytest.approx(expected)
    assert terminated.all()
    assert not truncated.any()
    task = make_task("mixture", 2)
    task.reset()
    _, reward, _, _ = task.step({"action": torch.tensor([[0.6, 1.0], [-3.0, 1.0]])})  # a coin is what it is nearer to
    expected = [
        math.log(share) + log_normal(1, mean, 1) + log_normal(0.5, 1, 1) for share, mean in ((0.3, 2), (0.7, -2))
    ]
    assert reward.tolist() == pytest.approx(expected)


def test_the_evidence_is_the_integral_of_the_joint_density(float64: None) -> None:
    grid = torch.linspace(-6, 6, 1201)
    area = float(grid[1] - grid[0])
    for cls, axes in ((Cone, 2), (Mixture, 1)):
        program = cls().program
        obs = torch.tensor(cls.datum)
        if axes == 2:
            x, y = torch.meshgrid(grid, grid, indexing="ij")
            found = program.score({"x": x, "y": y}, obs).flatten().logsumexp(0) + 2 * math.log(area)
        else:
            sides = [program.score({"side": torch.full_like(grid, side), "x": grid}, obs) for side in (0.0, 1.0)]
            found = torch.stack(sides).flatten().logsumexp(0) + math.log(area)
        assert found.item() == pytest.approx(program.evidence(obs).item(), abs=2e-5)


def test_choices_are_scored_where_given_and_drawn_where_not() -> None:
    at = Choices(Sampling(4), {"a": torch.tensor(2.0)})
    assert at("a", normal(0.0, 1.0)).item() == 2
    drawn = at("b", normal(1.0, 2.0))
    assert drawn.shape == (4,)
    torch.testing.assert_close(at.density("b"), Normal(1.0, 2.0).log_prob(drawn))
    torch.testing.assert_close(at.density(), Normal(1.0, 2.0).log_prob(drawn) + log_normal(2, 0, 1))
    with pytest.raises(RunError, match="the program makes the choice 'b' twice"):
        at("b", normal(0.0, 1.0))
    with pytest.raises(RunError, match="the program makes a choice 'c' of which nothing is given"):
        Choices(given={"a": drawn})("c", normal(0.0, 1.0))


def test_strategies_and_baselines_of_a_run_stand_before_those_of_the_program() -> None:
    class Note:
        said: list[Any] = []

        def sample(self, distribution: Any, strategy: str, baseline: Any) -> Any:
            self.said.append((strategy, baseline))
            return torch.zeros(())

    at = Choices(Note(), strategies={"b": "reinforce"}, baseline=3.0)
    at("a", normal(0.0, 1.0))
    at("b", normal(0.0, 1.0))
    at("c", normal(0.0, 1.0), "reinforce", 1.0)
    at("d", normal(0.0, 1.0), "enumerated")
    assert Note.said == [("reparameterized", None), ("reinforce", 3.0), ("reinforce", 1.0), ("enumerated", None)]


def test_the_guides_reach_the_data() -> None:
    """The ring's points lie around the circle with the radius sqrt(5)."""
    torch.manual_seed(0)
    guide = Cone().program.guides["ring"]()
    with torch.no_grad():
        guide.log_std.fill_(-5)
        at = Choices(Sampling(2000))
        guide(at, torch.full((2000, 1), 5.0))
    radius = torch.stack((at.values["x"], at.values["y"])).norm(dim=0)
    assert radius.sub(math.sqrt(5)).abs().max() < 0.05
    assert abs(at.values["x"].mean()) < 0.15
    assert np.all(np.histogram(at.values["u"], 4, (0, 1))[0] > 400)
