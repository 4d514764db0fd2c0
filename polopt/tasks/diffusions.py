"""Diffusions observed on a grid of times, for what is said of continuous time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from polopt.core.errors import UsageError
from polopt.core.spec import Spec
from polopt.tasks.simulated import Simulated, State


@dataclass(frozen=True)
class Diffusion:
    """What a world in continuous time says of itself: `spec.info["diffusion"]`. Functions are of observations [..., n].

    The reward of a decision is what its rate earns until the next one, rate times `dt`; that of the last decision has
    the payoff of where it ends besides. So returns are sums, as everywhere.

    Attributes:
        dt: time between decisions.
        left: the time left until the end [...].
        payoff: what ending here pays [...].
        value: the exact value of every policy [...], in the limit of small `dt`; None where there is no such formula.
    """

    dt: float
    left: Callable[[Tensor], Tensor]
    payoff: Callable[[Tensor], Tensor]
    value: Callable[[Tensor], Tensor] | None = None


class Brownian(Simulated):
    """dX = (drift + control a) dt + deviation dW until time 1, from X_0 ~ N(0, 1), with rate -X^2 and payoff X_1^2.

    Observation: the time left tau, and X. Action: a in [-1, 1]; with `control` 0, as it is by default, it does nothing,
    and every policy has the value

        J = x^2 (1 - tau) + drift x (2 tau - tau^2) + drift^2 (tau^2 - tau^3 / 3) + deviation^2 (tau - tau^2 / 2)

    Args:
        horizon: decisions of an episode, 1 / dt.
    """

    finite = True

    def __init__(
        self,
        *args: Any,
        drift: float = 0.3,
        deviation: float = 0.8,
        control: float = 0.0,
        horizon: int = 100,
        **rest: Any,
    ) -> None:
        super().__init__(*args, horizon=horizon, **rest)
        for option, value in (("drift", drift), ("deviation", deviation), ("control", control)):
            if not np.isfinite(value):
                raise UsageError(f"{self.name}: {option} must be a finite number, not {value}")
        self.drift, self.deviation, self.control, self.dt = drift, deviation, control, 1.0 / self.horizon
        exact = self.value if control == 0 else None
        diffusion = Diffusion(self.dt, lambda obs: obs[..., 0], lambda obs: obs[..., 1].square(), exact)
        low, high = np.array([0.0, -np.inf], np.float32), np.array([1.0, np.inf], np.float32)
        info = {"horizon": self.horizon, "diffusion": diffusion}
        self.spec = Spec(spaces.Box(low, high), spaces.Box(-1, 1, (1,)), self.name, info)

    def value(self, obs: Tensor) -> Tensor:
        """J at observations [..., 2], where actions do nothing."""
        tau, x = obs.unbind(-1)
        by_drift = self.drift * x * (2 * tau - tau**2) + self.drift**2 * (tau**2 - tau**3 / 3)
        return x**2 * (1 - tau) + by_drift + self.deviation**2 * (tau - tau**2 / 2)

    def draw(self, generator: torch.Generator, index: int) -> State:
        return {"x": torch.randn((), generator=generator), "noise": torch.randn(self.horizon, generator=generator)}

    def begin(self, draws: State) -> State:
        return {"x": draws["x"], "noise": draws["noise"]}

    def advance(self, state: State, time: Tensor, action: Tensor) -> tuple[State, Tensor, Tensor, State]:
        before = state["x"]
        noise = state["noise"].gather(1, time.unsqueeze(1)).squeeze(1)
        drift = self.drift + self.control * action.squeeze(-1).clamp(-1, 1)
        x = before + drift * self.dt + self.deviation * self.dt**0.5 * noise
        over = time == self.horizon - 1
        reward = torch.where(over, x.square(), 0.0) - before.square() * self.dt
        return {**state, "x": x}, reward, over, {}

    def observe(self, state: State, time: Tensor) -> Tensor:
        left = (self.horizon - time).to(state["x"].dtype) / self.horizon
        return torch.stack((left, state["x"]), -1)
