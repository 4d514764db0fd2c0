"""Gymnasium's pendulum for many rows at once, whose mass, length and friction may be others in every episode.

Brockman et al. 2016, "OpenAI Gym", arXiv 1606.01540: Pendulum-v1, a rod that hangs from one end and is turned there.

    inertia(mass, length) acceleration + bias(angle, mass, length) = torque + force

The angle is 0 where the rod stands upright.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from polopt.core.errors import UsageError
from polopt.core.spec import Spec
from polopt.tasks.luck import even
from polopt.tasks.mechanics import Mechanics
from polopt.tasks.options import flag, number
from polopt.tasks.parameters import Parameters
from polopt.tasks.simulated import Simulated, State

GRAVITY, TORQUE, SPEED, DT = 10.0, 2.0, 8.0, 0.05
"""m/s^2; the largest torque, Nm, and speed, rad/s; seconds between decisions."""

START, MODEL = range(2)
"""What luck is for."""


def inertia(mass: Tensor, length: Tensor) -> Tensor:
    """The mass matrix M [...] of a uniform rod that turns around its end, kg m^2: one joint, so a number."""
    return mass * length.square() / 3


def bias(angle: Tensor, mass: Tensor, length: Tensor) -> Tensor:
    """What gravity asks of the joint, C [...] in Nm: the derivative of the rod's potential energy."""
    return -0.5 * GRAVITY * mass * length * torch.sin(angle)


def moved(
    angle: Tensor, speed: Tensor, torque: Tensor, mass: Tensor, length: Tensor, force: Tensor | float = 0.0
) -> tuple[Tensor, Tensor]:
    """Angle and speed [...] after one decision: semi-implicit Euler, with the speed clipped. `force` is what else acts
    on the joint, in Nm."""
    acceleration = (torque - bias(angle, mass, length) + force) / inertia(mass, length)
    speed = (speed + acceleration * DT).clamp(-SPEED, SPEED)
    return angle + speed * DT, speed


def cost(angle: Tensor, speed: Tensor, torque: Tensor) -> Tensor:
    """What a decision costs [...], from the state before it; the angle counts between -pi and pi."""
    upright = torch.remainder(angle + math.pi, 2 * math.pi) - math.pi
    return upright.square() + 0.1 * speed.square() + 0.001 * torque.square()


class Rod(Mechanics):
    """What is known of the pendulum: a rod of this mass, length and friction of the joint, turned by a motor."""

    joints, dt = 1, DT

    def __init__(self, mass: float, length: float, friction: float) -> None:
        self.mass, self.length, self.friction = (torch.tensor(value) for value in (mass, length, friction))

    def coordinates(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        return torch.atan2(obs[..., 1:2], obs[..., 0:1]), obs[..., 2:3]

    def inertia(self, q: Tensor) -> Tensor:
        return inertia(self.mass, self.length).to(q).expand_as(q).unsqueeze(-1)

    def bias(self, q: Tensor, qd: Tensor) -> Tensor:
        return bias(q, self.mass.to(q), self.length.to(q)) + self.friction.to(q) * qd

    def torque(self, action: Tensor, q: Tensor, qd: Tensor) -> Tensor:
        return action.clamp(-TORQUE, TORQUE)

    def limited(self, qd: Tensor) -> Tensor:
        return qd.clamp(-SPEED, SPEED)

    def observed(self, q: Tensor, qd: Tensor, before: Tensor, action: Tensor) -> Tensor:
        return torch.cat([torch.cos(q), torch.sin(q), qd], -1)

    def reward(self, before: Tensor, action: Tensor, after: Tensor) -> Tensor:
        angle, speed = self.coordinates(before)
        return -cost(angle, speed, self.torque(action, angle, speed)).squeeze(-1)


class Pendulum(Simulated):
    """Swing up a pendulum and hold it there, as in Gymnasium's Pendulum-v1, with its observation (cosine and sine of
    the angle, and the speed), its action (the torque, in Nm, clipped) and its reward,

        -(angle^2 + 0.1 speed^2 + 0.001 torque^2)

    of the state before the step, with the angle between -pi and pi. An episode is cut after `horizon` decisions.

    Args:
        mass, length: in kg and m. friction: of the joint, in Nm s/rad; Gymnasium's has none.
        mass_spread, length_spread, friction_spread: the box of models (`Parameters.of(spec)`) goes from 1 - spread to
            1 + spread times these, and has only those parameters that spread. (Longer and heavier rods need more swings
            than an episode has time for.)
        randomize: every start draws a model from the box, in place of its middle.

    Levels: "angle", "speed", "mass", "length", "friction", each [L].
    """

    differentiable = True

    def __init__(
        self,
        *args: Any,
        mass: float = 1.0,
        length: float = 1.0,
        friction: float = 0.0,
        mass_spread: float = 0.3,
        length_spread: float = 0.2,
        friction_spread: float = 0.0,
        randomize: bool = False,
        horizon: int = 200,
        **rest: Any,
    ) -> None:
        super().__init__(*args, horizon=horizon, **rest)
        if min(number("mass", mass), number("length", length)) <= 0 or number("friction", friction) < 0:
            raise UsageError("mass and length of a pendulum are above 0, and friction is at least 0")
        self.middle = {"mass": float(mass), "length": float(length), "friction": float(friction)}
        spreads = {"mass": mass_spread, "length": length_spread, "friction": friction_spread}
        for name, spread in spreads.items():
            if not 0 <= number(f"{name}_spread", spread) <= 1 or (spread == 1 and name != "friction"):
                raise UsageError(f"{name}_spread is a share, at least 0 and below 1, not {spread!r}")
        names = tuple(name for name, spread in spreads.items() if spread and self.middle[name])
        low, high = (tuple(self.middle[name] * (1 + sign * spreads[name]) for name in names) for sign in (-1, 1))
        self.parameters, self.randomize = Parameters(names, low, high), flag("randomize", randomize)
        if friction_spread and not friction:
            raise UsageError("friction_spread is a share of the friction, and there is none")
        if randomize and not names:
            raise UsageError("there are no models to draw from: every spread is 0")
        most = np.array([1.0, 1.0, SPEED], np.float32)
        info = {"horizon": horizon, "joints": Rod.joints} | (
            {"parameters": self.parameters.described()} if names else {}
        )
        self.spec = Spec(spaces.Box(-most, most), spaces.Box(-TORQUE, TORQUE, (1,)), self.name, info)

    def begin(self, draws: State) -> State:
        key = draws["key"]
        angle, speed = even(key, 0, 2, START).unbind(-1)
        drawn = {"angle": math.pi * angle, "speed": speed}
        drawn |= {name: torch.full_like(angle, value) for name, value in self.middle.items()}
        if self.randomize:
            drawn |= self.parameters.values(even(key, 0, len(self.parameters.names), MODEL))
        return {name: draws[name].to(value) if name in draws else value for name, value in drawn.items()}

    def advance(self, state: State, time: Tensor, action: Tensor) -> tuple[State, Tensor, Tensor, State]:
        angle, speed, mass, length = (state[name] for name in ("angle", "speed", "mass", "length"))
        drag = -state["friction"] * speed
        torque = action.squeeze(-1).clamp(-TORQUE, TORQUE).to(angle)
        reward = -cost(angle, speed, torque)
        angle, speed = moved(angle, speed, torque, mass, length, drag)
        return {**state, "angle": angle, "speed": speed}, reward, torch.zeros_like(time, dtype=torch.bool), {}

    def mechanics(self, **known: float) -> Rod:
        return Rod(**{**self.middle, **known})

    def observe(self, state: State, time: Tensor) -> Tensor:
        angle = state["angle"]
        return torch.stack([torch.cos(angle), torch.sin(angle), state["speed"]], -1)
