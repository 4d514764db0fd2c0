"""A world on a line, with scripts that are good and bad in it."""

from __future__ import annotations

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from polopt.core.spec import Spec
from polopt.tasks.simulated import Simulated, State


class Line(Simulated):
    """A step of up to 1 along a line; the reward is minus the distance from 0. Beyond 10 it ends."""

    behaviors = ("home", "away", "still")

    def __init__(self, *args, horizon: int = 12, **rest) -> None:
        super().__init__(*args, horizon=horizon, **rest)
        box = spaces.Box(-2.0, 2.0, (1,), np.float32)
        self.spec = Spec(spaces.Box(-np.inf, np.inf, (1,)), box, "line", {"horizon": horizon})

    def draw(self, generator: torch.Generator, index: int) -> State:
        return {"place": 6 * torch.rand((), generator=generator) - 3}

    def begin(self, draws: State) -> State:
        return {"place": draws["place"]}

    def advance(self, state: State, time: Tensor, action: Tensor) -> tuple[State, Tensor, Tensor, State]:
        place = state["place"] + action.squeeze(-1).clamp(-1.0, 1.0)
        return {"place": place}, -place.abs(), place.abs() > 10.0, {}

    def observe(self, state: State, time: Tensor) -> Tensor:
        return state["place"].unsqueeze(-1)

    def behave(self, behavior: str, state: State, time: Tensor) -> Tensor:
        place = state["place"].unsqueeze(-1)
        return {"home": -place.clamp(-1.0, 1.0), "away": place.sign(), "still": torch.zeros_like(place)}[behavior]
