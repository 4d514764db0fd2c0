"""What is known of a body that moves: its equation of motion, but for the forces that nobody has measured.

    M(q) qdd + C(q, qd) = torque(action, q, qd) + force        Featherstone 2008, "Rigid Body Dynamics Algorithms"

M is the mass matrix, C what gravity, rotation and known friction ask of the joints, and `force` whatever else acts on
them, such as contacts, wear or a load.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

Obs = Any


class Mechanics(ABC):
    """A body of `joints` generalized coordinates q, seen through the observations of a task.

    All functions take any leading dimensions, draw nothing, and let gradients through. Actions are as the task gets
    them, [..., *space.shape].

    Attributes:
        joints: n.
        dt: seconds of one step of integration; `substeps` of them are one decision.
    """

    joints: int
    dt: float
    substeps: int = 1

    @abstractmethod
    def coordinates(self, obs: Obs) -> tuple[Tensor, Tensor]:
        """q and qd, each [..., n], of an observation."""

    @abstractmethod
    def inertia(self, q: Tensor) -> Tensor:
        """M [..., n, n]."""

    @abstractmethod
    def bias(self, q: Tensor, qd: Tensor) -> Tensor:
        """C [..., n]."""

    @abstractmethod
    def torque(self, action: Tensor, q: Tensor, qd: Tensor) -> Tensor:
        """What the motors do for an action, [..., n]; a controller of positions looks at q and qd in every substep."""

    @abstractmethod
    def observed(self, q: Tensor, qd: Tensor, before: Obs, action: Tensor) -> Obs:
        """The observation of q and qd, one decision after the observation `before`, with whatever else is in it
        (commands, phases of a gait) carried on."""

    @abstractmethod
    def reward(self, before: Obs, action: Tensor, after: Obs) -> Tensor:
        """The task's reward [...] of a decision."""

    def ended(self, before: Obs, action: Tensor, after: Obs) -> Tensor:
        """bool [...]: whether an episode terminates there. By default it never does."""
        return torch.zeros_like(self.reward(before, action, after), dtype=torch.bool)

    def limited(self, qd: Tensor) -> Tensor:
        """Speeds within what the body allows."""
        return qd

    def advance(self, obs: Obs, action: Tensor, force: Tensor) -> Obs:
        """The observation after one decision under a `force` [..., n] that is held: semi-implicit Euler, in which the
        motors answer in every substep, while M and C are those of the beginning."""
        q, qd = self.coordinates(obs)
        inertia, free = self.inertia(q), force - self.bias(q, qd)
        for _ in range(self.substeps):
            push = self.torque(action, q, qd) + free
            qdd = (
                torch.linalg.solve(inertia, push.unsqueeze(-1)).squeeze(-1)
                if self.joints > 1
                else push / inertia[..., 0]
            )
            qd = self.limited(qd + self.dt * qdd)
            q = q + self.dt * qd
        return self.observed(q, qd, obs, action)
