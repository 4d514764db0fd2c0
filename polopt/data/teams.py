"""How one policy plays all agents of a team: sources step whole teams, and count them, and give batches of agents."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor, nn

from polopt.core.batch import Batch
from polopt.core.modules import default_dtype, device_of, dtype_of
from polopt.data.base import Acts, Carry, put
from polopt.networks.encoders import first_leaf
from polopt.tasks.agents import AgentRows
from polopt.tasks.base import Task
from polopt.tasks.spaces import check_followed, read_given, writer


class Together(nn.Module):
    """An actor of one agent as one of teams: it acts for all agents at once, [N, V, ...] where it has [N V, ...]."""

    def __init__(self, actor: Acts, rows: AgentRows) -> None:
        super().__init__()
        self.actor = actor
        self.rows = rows
        self._carry: Carry | None = None

    def act(self, obs: Any, carry: Carry | None = None, *, greedy: bool = False) -> tuple[dict[str, Tensor], Any]:
        flat = carry and {name: value.flatten(0, 1) for name, value in carry.items()}
        record, after = self.actor.act(self.rows.rows_of(obs), flat, greedy=greedy)
        record = {name: self.rows.teams_of(value) for name, value in record.items()}
        return record, after and {name: self.rows.teams_of(value) for name, value in after.items()}

    def env_action(self, action: Tensor) -> Any:
        return self.actor.env_action(action)

    def predict(self, obs: Any) -> np.ndarray:
        """Acts greedily on one NumPy observation of a team, or a batch of N; the actions [V, ...] or [N, V, ...] for
        its environment. Raises UsageError for an observation that is not in its space or not finite."""
        spec = self.rows.joint.spec
        with default_dtype(dtype_of(self)):
            seen, single = read_given(spec, obs)
            check_followed(self._carry, len(first_leaf(seen)), "team")
            record, carry = self.act(put(seen, device_of(self)), self._carry, greedy=True)
            action = self.env_action(record["action"])
        self._carry = carry or None
        written = writer(spec.action)(action)
        return written[0] if single else written

    def reset(self) -> None:
        """Forgets the episode that `predict` has followed."""
        self._carry = None


def playing(task: Task, actor: Acts) -> tuple[Task, Acts]:
    """The task that a source steps, and the actor that acts in it: of `AgentRows` the team task and `Together`."""
    return (task.joint, Together(actor, task)) if isinstance(task, AgentRows) else (task, actor)


def as_rows(task: Task, batch: Batch) -> Batch:
    """What was played in `playing(task, ...)`, in the rows of `task`."""
    return task.rows(batch) if isinstance(task, AgentRows) else batch
