"""What a policy or critic must know of a task: its spaces."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from polopt.core.errors import UsageError

# Keys that sources write themselves: no fact may have such a name.
STORED = ("obs", "action", "reward", "terminated", "truncated", "first", "final_obs", "next_obs", "action_mask")
STORED += ("index", "group", "origin", "weight")


@dataclass(frozen=True)
class Spec:
    """The spaces of one row of a task.

    `obs` and `action` are Gymnasium spaces without a batch dimension; `name` is the task's name in messages;
    `info` holds what only some tasks have (the exact model of a tabular MDP, a reward threshold); `facts` are the names
    of what the task says of every step besides the reward, with the shape of one row of each (() for a number).

    `objectives` are the names of the parts of a vector reward, which is then the fact `rewards` (m,). Where `scalar` is
    False the reward itself is only their plain sum, which nobody chose: a method that learns from one reward refuses
    such a task.

    Raises UsageError for a fact with the name of a key that batches have anyway, and for objectives without `rewards`.
    """

    obs: gymnasium.Space
    action: gymnasium.Space
    name: str = "this task"
    info: dict[str, Any] = field(default_factory=dict, compare=False)
    facts: Mapping[str, tuple[int, ...]] = field(default_factory=dict, hash=False)
    objectives: tuple[str, ...] = ()
    scalar: bool = True

    def __post_init__(self) -> None:
        for name in self.facts:
            if name in STORED:
                raise UsageError(f"{self.name} cannot have a fact '{name}': batches have a key of that name anyway")
        if self.objectives and self.facts.get("rewards") != (len(self.objectives),):
            raise UsageError(f"{self.name} names {len(self.objectives)} objectives: its fact 'rewards' has one of each")
        if not self.scalar and not self.objectives:
            raise UsageError(f"{self.name} has neither one reward nor objectives")

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
