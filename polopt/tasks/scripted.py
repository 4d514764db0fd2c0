"""Actors that behave as a world says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from polopt.tasks.simulated import Simulated


class Scripted:
    """Acts as a scripted behavior of the world that it is in, for sources that play episodes."""

    def __init__(self, world: Simulated, behavior: str) -> None:
        self.world = world
        self.behavior = behavior

    def act(self, obs: Any, carry: Any = None, *, greedy: bool = False) -> tuple[dict[str, Tensor], Any]:
        world = self.world
        return {"action": world.behave(self.behavior, world.state, world.time)}, carry

    def env_action(self, action: Tensor) -> Tensor:
        return action
