"""What a source is, and the little of an actor that it needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from tensordict import TensorDictBase
from torch import Tensor

from polopt.core.batch import Batch
from polopt.core.errors import RunError
from polopt.core.state import Stateful
from polopt.data.components import Tally
from polopt.data.templates import continues
from polopt.tasks.base import Task

Carry = dict[str, Tensor]
DONE_BEFORE = "done_before"  # of a carry: the last action of the episode [N, ...], whoever took it


class Acts(Protocol):
    """The part of an actor that sources call."""

    def act(self, obs: Any, carry: Carry | None = None, *, greedy: bool = False) -> tuple[dict[str, Tensor], Any]: ...

    def env_action(self, action: Tensor) -> Any: ...


def to_env(actor: Any, obs: Any, action: Tensor) -> Any:
    """What the environment gets for the `action` that an actor took on `obs`: of a list of texts and messages, the
    actor is told which of them have begun its answer."""
    begun = [continues(prompt) for prompt in obs] if isinstance(obs, list) else []
    return actor.env_action(action, begun=begun) if any(begun) else actor.env_action(action)


class Source(Stateful):
    """Where batches come from: an object with saved state, never a generator."""

    learned = False

    def next(self, actor: Acts) -> Batch:
        """Collects with `actor` and returns one batch."""
        raise NotImplementedError  # abstract

    def episodes(self) -> list[tuple[float, int]]:
        """(return, length) of the episodes that ended since the last call."""
        return []

    def components(self) -> Tally:
        """What each reward function by itself gave what was collected since the last call, if there are several."""
        return {}


def put(value: Any, device: torch.device) -> Any:
    """`value.to(device)`; tasks give CPU tensors, for which even asking a TensorDict takes time. Texts stay."""
    return value if device.type == "cpu" or isinstance(value, list) else value.to(device)


def check_facts(task: Task, record: Mapping[str, Any]) -> None:
    """Raises RunError when a task gives other facts than it declares, or one of a name that the actor records too."""
    given, declared = task.facts.keys(), task.spec.facts.keys()
    if given != declared:
        raise RunError(f"{task.spec.name} declares the facts {sorted(declared)} and gives {sorted(given)}")
    for name in given & record.keys():
        raise RunError(f"'{name}' is a fact of {task.spec.name}, and the policy records something of that name as well")


def add_action_mask(batch: dict[str, Any]) -> None:
    """Copies the key "action_mask" of dict observations to the batch itself, where policies read it."""
    obs = batch.get("obs")
    mask = obs.get("action_mask", None) if isinstance(obs, TensorDictBase) else None
    if mask is not None:
        batch["action_mask"] = mask


def keep_rows(carry: Carry | None, keep: Tensor) -> Carry | None:
    """Multiplies the rows [N] of new episodes by zero: a zero row of a carry means "new episode"."""
    if carry is None:
        return None
    return {name: value * keep.reshape(-1, *[1] * (value.dim() - 1)) for name, value in carry.items()}
