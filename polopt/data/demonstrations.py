"""Recorded decisions to learn from: saved as safetensors, in the environment's own units, served in minibatches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from tensordict import TensorDict
from torch import Tensor

from polopt.core import files
from polopt.core.batch import Batch, flat, nested
from polopt.core.errors import UsageError
from polopt.core.modules import device_of
from polopt.core.spec import Spec
from polopt.data.base import Acts, Source, put
from polopt.data.episodes import Episodes
from polopt.tasks.arrays import is_arrays
from polopt.tasks.base import Task
from polopt.tasks.simulated import Simulated
from polopt.tasks.spaces import rounded

KEYS = ("obs", "action", "reward", "next_obs", "terminated", "truncated", "first")


def record(actor: Acts, task: Task, episodes: int, *, greedy: bool = True) -> Batch:
    """Whole episodes of `actor`, joined: a batch [B] with `KEYS` and the facts of the task, actions as the environment
    got them."""
    return joined(Episodes(task, episodes=episodes, greedy=greedy).next(actor), actor, task.spec)


def scripted_episodes(world: Simulated, behavior: str, decisions: int) -> Batch:
    """Whole episodes of a scripted behavior of a world, joined as by `record`: as few as have `decisions` together.

    They follow from the world's seed, episode by episode in order of their starts, and take all rows of the world.
    Raises UsageError for a behavior that it does not have.
    """
    actor, source, parts, size = world.scripted(behavior), Episodes(world, world.num), list[Batch](), 0
    while size < decisions:
        parts.append(joined(source.next(actor), actor, world.spec))
        size += len(parts[-1])
    data: Any = torch.cat(parts)  # type: ignore[arg-type]
    ends = (data["terminated"] | data["truncated"]).nonzero().flatten() + 1
    return data[: int(ends[(ends < decisions).sum()])]


def joined(batch: Batch, actor: Acts, spec: Spec) -> Batch:
    """The decisions of a batch [R, T] of `Episodes`, one after the other: a batch [B] with `KEYS` and the facts."""
    batch = batch.clone(False).set("next_obs", batch["final_obs"])
    flat = batch.select(*KEYS, *spec.facts)[batch["mask"]]
    return flat.set("action", rounded(actor.env_action(flat["action"]), spec.action))


def check_file(path: Path) -> None:
    """Raises UsageError for what `save_demonstrations` could not write, or nobody could read again by its name."""
    files.check_file(path)
    if is_arrays(str(path)):
        named = path.with_suffix(".safetensors").name
        raise UsageError(f"{path} would be read as arrays, and demonstrations are safetensors: name it {named}")


def save_demonstrations(path: Path, data: Batch, spec: Spec) -> None:
    """Writes a batch of `record` to one safetensors file that says which spaces it belongs to. Raises RunError when the
    disk refuses."""
    columns = {name: value.contiguous() for name, value in flat(data).items()}
    files.replace(path, save(columns, {"spaces": json.dumps(_spaces(spec)), "task": spec.name}))


def load_demonstrations(path: str | Path, spec: Spec) -> Batch:
    """Reads a file of `save_demonstrations`. Raises UsageError if it is missing, damaged, empty or of other spaces."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            columns = {name: file.get_tensor(name) for name in file.keys()}
    except FileNotFoundError:
        raise UsageError(
            f"there are no demonstrations at {path}: 'polopt eval RUN --record FILE' writes some"
        ) from None
    except (SafetensorError, OSError, ValueError) as error:
        raise UsageError(f"the demonstrations at {path} cannot be read ({error})") from error
    if not {"action", "reward"} <= columns.keys() or len(columns["action"]) == 0:
        raise UsageError(f"{path} holds no demonstrations: it needs {', '.join(KEYS)} with at least one decision each")
    if json.loads(metadata.get("spaces", "{}")) != _spaces(spec):
        raise UsageError(
            f"the demonstrations at {path} are of {metadata.get('task', 'another task')}, whose spaces differ from "
            f"those of {spec.name}: record some on that"
        )
    for key, value in columns.items():
        wrong = (~torch.isfinite(value.reshape(len(value), -1)).all(1)).nonzero().flatten()
        if len(wrong):
            others = f", and so are {len(wrong) - 1} more" if len(wrong) > 1 else ""
            raise UsageError(f"row {int(wrong[0])} of '{key}' in the demonstrations at {path} is not finite{others}")
    dtype = torch.get_default_dtype()
    columns = {path: value.to(dtype) if value.is_floating_point() else value for path, value in columns.items()}
    return TensorDict(nested(columns), batch_size=[len(columns["action"])])


def _spaces(spec: Spec) -> dict[str, str]:
    return {"obs": str(spec.obs), "action": str(spec.action)}


class Samples(Source):
    """Uniform minibatches [batch_size] of fixed data [B], drawn with replacement by its own generator."""

    def __init__(self, data: Batch, batch_size: int, generator: torch.Generator | None = None) -> None:
        self.data = data
        self.batch_size = batch_size
        self.generator = generator or torch.Generator().manual_seed(int(torch.randint(2**31, ())))

    def next(self, actor: Acts) -> Batch:
        """The next minibatch, on the device of the actor, which does not act."""
        index: Tensor = torch.randint(len(self.data), (self.batch_size,), generator=self.generator)
        return put(self.data[index], device_of(actor))
