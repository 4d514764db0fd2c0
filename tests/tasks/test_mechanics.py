"""Known mechanics: the rod's beside the pendulum itself, and a body of two joints by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from polopt.core.errors import UsageError
from polopt.tasks import make_task
from polopt.tasks.mechanics import Mechanics
from polopt.tasks.torch_control import DT


class Coupled(Mechanics):
    """Two joints whose masses hang together, pulled back by springs, moved by a controller of positions."""

    joints, dt, substeps = 2, 0.1, 3

    def coordinates(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        return obs[..., :2], obs[..., 2:]

    def inertia(self, q: Tensor) -> Tensor:
        near = 1.0 + 0.1 * torch.cos(q[..., 0] - q[..., 1])
        each = torch.stack([torch.full_like(near, 2.0), near, near, torch.full_like(near, 3.0)], -1)
        return each.reshape(*near.shape, 2, 2)

    def bias(self, q: Tensor, qd: Tensor) -> Tensor:
        return 0.5 * q + 0.2 * qd

    def torque(self, action: Tensor, q: Tensor, qd: Tensor) -> Tensor:
        return 4.0 * (action - q) - 0.3 * qd

    def observed(self, q: Tensor, qd: Tensor, before: Tensor, action: Tensor) -> Tensor:
        return torch.cat([q, qd], -1)

    def reward(self, before: Tensor, action: Tensor, after: Tensor) -> Tensor:
        return -after.square().sum(-1)


def test_two_joints_by_hand(float64: None) -> None:
    """The motors answer in every substep; masses, springs and the force are those of the beginning."""
    generator = np.random.default_rng(2)
    obs, action, force = (generator.normal(size=(5, size)) for size in (4, 2, 2))
    found = Coupled().advance(*(torch.tensor(part) for part in (obs, action, force)))
    for row in range(5):
        q, qd = obs[row, :2], obs[row, 2:]
        near = 1.0 + 0.1 * np.cos(q[0] - q[1])
        inverse = np.linalg.inv([[2.0, near], [near, 3.0]])
        held = force[row] - 0.5 * q - 0.2 * qd
        for _ in range(3):
            qd = qd + 0.1 * inverse @ (4.0 * (action[row] - q) - 0.3 * qd + held)
            q = q + 0.1 * qd
        np.testing.assert_allclose(found[row].numpy(), [*q, *qd], rtol=1e-12)
    assert not Coupled().ended(*(torch.zeros(3, 4), torch.zeros(3, 2), torch.zeros(3, 4))).any()


def test_a_rod_is_the_pendulum(float64: None) -> None:
    """Its step and its reward, at the mass, length and friction that it is told."""
    world: Any = make_task("pendulum", 400, mass=1.3, length=0.9, friction=0.2)
    rod = world.mechanics()
    torch.manual_seed(1)
    state = {"angle": 3 * torch.randn(400), "speed": 4 * torch.randn(400).clamp(-1.9, 1.9)}
    state |= {name: torch.full((400,), value) for name, value in world.middle.items()}
    time, action = torch.zeros(400, dtype=torch.int64), 2 * torch.randn(400, 1)
    before = world.observe(state, time)
    then, reward, _, _ = world.advance(state, time, action)
    after = rod.advance(before, action, torch.zeros(400, 1))
    torch.testing.assert_close(after, world.observe(then, time))
    torch.testing.assert_close(rod.reward(before, action, after), reward)
    assert (then["speed"].abs() == 8).any()  # where the speed is clipped too


def test_what_is_not_known_is_a_force(float64: None) -> None:
    """What a rod of mass 1 without friction lacks of one of mass 1.4 that rubs: f = C - C' + (M - M') qdd'."""
    heavy: Any = make_task("pendulum", 1, mass=1.4, friction=0.1)
    obs = torch.tensor([[np.cos(0.8), np.sin(0.8), -1.5]])
    action = torch.tensor([[0.7]])
    after = heavy.mechanics().advance(obs, action, torch.zeros(1, 1))
    acceleration = (after[0, 2] + 1.5) / DT
    gravity = 5.0 * np.sin(0.8)
    force = -gravity + 1.4 * gravity + 0.1 * 1.5 + (1 - 1.4) / 3 * acceleration
    light = heavy.mechanics(mass=1.0, friction=0.0)
    torch.testing.assert_close(light.advance(obs, action, force.reshape(1, 1)), after)
    assert (light.advance(obs, action, torch.zeros(1, 1)) - after).abs().max() > 0.01


def test_worlds_without_say_so() -> None:
    world: Any = make_task("point/risky")
    with pytest.raises(
        UsageError, match="the mechanics of point/risky are not known, as those of the task pendulum are"
    ):
        world.mechanics()
