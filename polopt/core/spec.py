"""What a policy or critic must know of a task: its spaces."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from polopt.core.errors import UsageError

# Keys that sources write themselves: no fact may have such a name.
STORED = {"obs", "action", "reward", "terminated", "truncated", "first", "final_obs", "next_obs", "action_mask"}
STORED |= {"index", "group", "origin", "weight"}


@dataclass(frozen=True)
class Spec:
    """The spaces of one row of a task.

    `obs` and `action` are Gymnasium spaces without a batch dimension; `name` is the task's name in messages;
    `info` holds what only some tasks have (the exact model of a tabular MDP, a reward threshold); `facts` are the names
    of what the task says of every step besides the reward, with the shape of one row of each (() for a number).

    `objectives` are the names of the parts of a vector reward, which is then the fact `rewards` (m,). Where `scalar` is
    False the reward itself is only their plain sum, which nobody chose: a method that learns from one reward refuses
    such a task.

    With `agents` = V > 1 a row is a team: its observation, action and facts have an axis [V] of agents in front, all
    but the keys and facts named in `shared`, which the whole team has in common. `state` is the space of the fact
    "state", if there is one. `env_obs` is the space of the environment's own observations where the task serves others
    (from 0 on, where a space starts elsewhere): `raw_obs` is what `predict` is given.

    Raises UsageError for a fact with the name of a key that batches have anyway, and for objectives without `rewards`.
    """

    obs: gymnasium.Space
    action: gymnasium.Space
    name: str = "this task"
    info: dict[str, Any] = field(default_factory=dict, compare=False)
    facts: Mapping[str, tuple[int, ...]] = field(default_factory=dict, hash=False)
    objectives: tuple[str, ...] = ()
    scalar: bool = True
    agents: int = 1
    shared: tuple[str, ...] = ()
    state: gymnasium.Space | None = None
    env_obs: gymnasium.Space | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        for name in self.facts:
            if name == "action_mask":
                raise UsageError(
                    f"{self.name} may say which actions are legal in its observation only, a Dict with {name}"
                )
            if name in STORED:
                raise UsageError(f"{self.name} cannot have a fact '{name}': batches have a key of that name anyway")
        if self.objectives and self.facts.get("rewards") != (len(self.objectives),):
            raise UsageError(f"{self.name} names {len(self.objectives)} objectives: its fact 'rewards' has one of each")
        if not self.scalar and not self.objectives:
            raise UsageError(f"{self.name} has neither one reward nor objectives")

    @property
    def agent(self) -> Spec:
        """The spaces of one agent of a team, as a task of its own; of a task without a team, its own.

        Raises UsageError when the agents have different spaces.
        """
        if self.agents == 1:
            return self
        obs = _one(self.obs, self.shared, f"the observations of {self.name}")
        action = _one(self.action, (), f"the actions of {self.name}")
        raw = None if self.env_obs is None else _one(self.env_obs, self.shared, f"the observations of {self.name}")
        return replace(self, obs=obs, action=action, agents=1, shared=(), env_obs=raw)

    @property
    def raw_obs(self) -> gymnasium.Space:
        """The space of the environment's own observations."""
        return self.obs if self.env_obs is None else self.env_obs

    @property
    def discrete(self) -> bool:
        return isinstance(self.action, (spaces.Discrete, spaces.MultiDiscrete))

    @property
    def action_dim(self) -> int:
        """Number of action coordinates: of a Box its flattened size, of MultiDiscrete its factors, of Discrete 1."""
        if isinstance(self.action, spaces.Discrete):
            return 1
        return int(np.prod(self.action.shape or (1,)))

    @property
    def num_actions(self) -> int:
        """Number of actions of a Discrete space. Raises UsageError for other spaces."""
        if not isinstance(self.action, spaces.Discrete):
            raise UsageError(f"{self.name} has the action space {self.action}, not a finite set of actions")
        return int(self.action.n)

    @property
    def bounded(self) -> bool:
        """True for a Box whose bounds are all finite."""
        return isinstance(self.action, spaces.Box) and bool(self.action.is_bounded())


def _one(space: gymnasium.Space, shared: tuple[str, ...], what: str) -> gymnasium.Space:
    """The space of one agent, out of one with an axis of agents in front."""
    if isinstance(space, spaces.Dict):
        parts = {k: v if k in shared else _one(v, (), f"'{k}' of {what}") for k, v in space.spaces.items()}
        return spaces.Dict(parts)
    if isinstance(space, spaces.Box):
        if (space.low != space.low[:1]).any() or (space.high != space.high[:1]).any():
            raise UsageError(f"{what} have different bounds for different agents, which cannot share a policy")
        return spaces.Box(space.low[0], space.high[0], dtype=space.dtype)
    if isinstance(space, spaces.MultiBinary):
        return spaces.MultiBinary(space.shape[1:])
    if isinstance(space, spaces.MultiDiscrete):
        if (space.nvec != space.nvec[:1]).any() or (space.start != space.start[:1]).any():
            raise UsageError(f"{what} are different for different agents, which cannot share a policy")
        if space.nvec.ndim == 1:
            return spaces.Discrete(int(space.nvec[0]), start=int(space.start[0]))
        return spaces.MultiDiscrete(space.nvec[0], start=space.start[0])
    raise UsageError(f"{what} have no axis of agents in the space {space}")
