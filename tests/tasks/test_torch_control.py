"""The pendulum beside Gymnasium's own, its mechanics from first principles, and its box of models."""

from __future__ import annotations

import math
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from polopt.core.errors import UsageError
from polopt.tasks import make_task
from polopt.tasks.described import describe
from polopt.tasks.parameters import Parameters
from polopt.tasks.torch_control import DT, GRAVITY, bias, inertia, moved

from .worlds import check_world


@pytest.mark.parametrize("options", [{}, {"randomize": True, "friction": 0.1, "friction_spread": 1.0}])
def test_it_keeps_the_promises_of_worlds(options: Any) -> None:
    check_world(lambda num, seed, evaluation: make_task("pendulum", num, seed, evaluation=evaluation, **options))


@pytest.mark.parametrize(("mass", "length"), [(1.0, 1.0), (0.7, 1.2)])
def test_an_episode_is_gymnasiums_step_by_step(mass: float, length: float, float64: None) -> None:
    """From the same state, with torques beyond the bounds too."""
    env: Any = gymnasium.make("Pendulum-v1").unwrapped
    env.m, env.l = mass, length
    world: Any = make_task("pendulum", 3, mass=mass, length=length)
    world.reset()
    torques = np.random.default_rng(3).uniform(-3.0, 3.0, (200, 3))
    for row in range(3):
        world.reset(index=torch.arange(3))
        env.reset(seed=0)
        env.state = np.array([world.state["angle"][row].item(), world.state["speed"][row].item()])
        assert -math.pi <= env.state[0] < math.pi
        assert -1.0 <= env.state[1] < 1.0
        for time in range(200):
            seen, reward, terminated, truncated = world.step({"action": torch.tensor(torques[time]).unsqueeze(-1)})
            theirs, their_reward, *_ = env.step(torques[time, row : row + 1])
            np.testing.assert_allclose(seen[row].numpy(), theirs, rtol=0, atol=1e-6)
            assert reward[row].item() == pytest.approx(their_reward, abs=1e-6)
            assert not terminated.any()
            assert truncated.tolist() == [time == 199] * 3


def test_inertia_and_bias_are_those_of_a_rod(float64: None) -> None:
    """The sum of r^2 dm along it, and the slope of its potential energy."""
    mass, length = torch.tensor(1.4), torch.tensor(0.9)
    middle = (torch.arange(10_000) + 0.5) / 10_000 * length
    torch.testing.assert_close(inertia(mass, length), (middle.square() * mass / 10_000).sum(), rtol=1e-6, atol=0)
    angle = torch.linspace(-4, 4, 9, requires_grad=True)
    energy = (GRAVITY * middle.mean() * mass * torch.cos(angle)).sum()
    torch.testing.assert_close(bias(angle, mass, length), torch.autograd.grad(energy, angle)[0])


def test_other_forces_act_on_the_joint(float64: None) -> None:
    angle, speed, torque = torch.tensor([0.3, -2.0]), torch.tensor([1.0, -0.5]), torch.tensor([0.5, 0.1])
    mass, length, force = torch.tensor(1.2), torch.tensor(0.8), torch.tensor([0.7, -0.2])
    for one, other in zip(
        moved(angle, speed, torque, mass, length, force), moved(angle, speed, torque + force, mass, length)
    ):
        torch.testing.assert_close(one, other)
    free, rough = (make_task("pendulum", 1, friction=friction) for friction in (0.0, 0.4))
    for world in (free, rough):
        world.levels = {"angle": torch.tensor([0.0]), "speed": torch.tensor([2.0])}  # type: ignore[attr-defined]
        world.reset()
    still = {"action": torch.zeros(1, 1)}
    difference = free.step(still)[0][0, 2] - rough.step(still)[0][0, 2]
    assert difference.item() == pytest.approx(0.4 * 2.0 / (1 / 3) * DT)


def test_models_are_set_drawn_and_reached_by_gradients() -> None:
    world: Any = make_task("pendulum", 4, mass=2.0, mass_spread=0.5)
    box = Parameters.of(world.spec)
    assert (box.names, box.low) == (("mass", "length"), (1.0, 0.8))
    assert box.high == pytest.approx((3.0, 1.2))
    record: Any = describe(world)
    assert record["spec"]["info"]["parameters"] == {"mass": [1.0, 3.0], "length": [0.8, 1.2]}
    with pytest.raises(UsageError, match="point/risky has no parameters that differ between models"):
        Parameters.of(make_task("point/risky").spec)
    assert box.grid(3).tolist() == [[a, b] for a in (-1, 0, 1) for b in (-1, 0, 1)]
    assert box.grid(1).tolist() == [[0, 0]]
    values = box.values(torch.tensor([[-1.0, 1.0], [0.0, 0.5]]))
    torch.testing.assert_close(values["mass"], torch.tensor([1.0, 2.0]))
    torch.testing.assert_close(values["length"], torch.tensor([1.2, 1.1]))
    plain = world.reset(index=torch.arange(4)).clone()
    assert world.state["mass"].tolist() == [2.0] * 4
    world.levels = values
    assert torch.equal(world.reset(index=torch.arange(4)), plain)  # the starts are the same in all models
    torch.testing.assert_close(world.state["mass"], torch.tensor([1.0, 2.0, 1.0, 2.0]))
    torch.testing.assert_close(world.state["length"], torch.tensor([1.2, 1.1, 1.2, 1.1]))
    drawn: Any = make_task("pendulum", 500, randomize=True)
    drawn.reset()
    for name, low, high in (("mass", 0.7, 1.3), ("length", 0.8, 1.2)):
        value = drawn.state[name]
        assert low <= value.min() < low + 0.02
        assert high - 0.02 < value.max() <= high
        assert value.mean().item() == pytest.approx((low + high) / 2, abs=0.02)
    before = drawn.state["mass"].clone()
    rough: Any = make_task("pendulum", 500, randomize=True, mass_spread=0.0, friction=0.2, friction_spread=1.0)
    assert Parameters.of(rough.spec).names == ("length", "friction")
    rough.reset()
    assert (rough.state["mass"] == 1).all()
    assert 0.0 <= rough.state["friction"].min() < 0.01 < 0.39 < rough.state["friction"].max() <= 0.4
    with pytest.raises(UsageError, match="pendulum has no parameters that differ between models"):
        Parameters.of(make_task("pendulum", mass_spread=0.0, length_spread=0.0).spec)
    drawn.reset()
    assert not (drawn.state["mass"] == before).any()
    action = torch.zeros(4, 1, requires_grad=True)
    state, _, _, _ = world.advance(world.state, world.time, action)
    _, reward, _, _ = world.advance(state, world.time + 1, torch.zeros(4, 1))
    assert torch.autograd.grad(reward.sum(), action)[0].abs().min() > 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"mass": 0.0}, "mass and length of a pendulum are above 0"),
        ({"friction": -1.0}, "friction is at least 0"),
        ({"length_spread": 1.0}, "length_spread is a share, at least 0 and below 1, not 1.0"),
        ({"mass_spread": "much"}, "mass_spread must be a number, not 'much'"),
        ({"randomize": 1}, "randomize must be true or false, not 1"),
        ({"mass_spread": 1.0}, "mass_spread is a share, at least 0 and below 1, not 1.0"),
        ({"friction_spread": 0.5}, "friction_spread is a share of the friction, and there is none"),
        (
            {"randomize": True, "mass_spread": 0.0, "length_spread": 0.0},
            "there are no models to draw from: every spread is 0",
        ),
        ({"masses": 1}, "the task pendulum has no option 'masses'; did you mean 'mass'"),
    ],
)
def test_wrong_options_are_one_sentence(options: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        make_task("pendulum", 1, **options)
