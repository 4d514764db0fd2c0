"""A batched world of a team."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from polopt.core.spec import Spec
from polopt.tasks.simulated import Simulated, State


class Crew(Simulated):
    """A batched world of three agents at drawn places, who go left or right by 1 and see one goal; each earns minus its
    distance from it."""

    def __init__(self, *args: Any, horizon: int = 5, **rest: Any) -> None:
        super().__init__(*args, horizon=horizon, **rest)
        real = spaces.Box(-np.inf, np.inf, (3, 1), np.float32)
        obs = spaces.Dict({"place": real, "goal": spaces.Box(-np.inf, np.inf, (1,), np.float32)})
        action = spaces.MultiDiscrete([2, 2, 2])
        facts = {"rewards": (3,), "goal": (1,)}
        self.spec = Spec(obs, action, self.name, facts=facts, agents=3, shared=("goal",))

    def draw(self, generator: torch.Generator, index: int) -> State:
        return {name: torch.randint(-9, 10, (size,), generator=generator) for name, size in (("place", 3), ("goal", 1))}

    def begin(self, draws: State) -> State:
        return draws

    def advance(self, state: State, time: Tensor, action: Tensor) -> tuple[State, Tensor, Tensor, State]:
        place = state["place"] + 2 * action - 1
        rewards = -(place - state["goal"]).abs().to(torch.get_default_dtype())
        facts = {"rewards": rewards, "goal": state["goal"].to(rewards.dtype)}
        return {**state, "place": place}, rewards.sum(1), torch.zeros(len(time), dtype=torch.bool), facts

    def observe(self, state: State, time: Tensor) -> Any:
        dtype = torch.get_default_dtype()
        return {"place": state["place"].to(dtype).unsqueeze(-1), "goal": state["goal"].to(dtype)}
