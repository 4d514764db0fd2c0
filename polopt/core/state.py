"""State is attributes: what a checkpoint holds is found by walking an object, so no method writes checkpoint code.

`gather(root)` walks every attribute that is a module, a generator or a `Stateful` (also inside lists, tuples and dicts)
and returns one flat dict "path -> leaf". Leaves are tensors, JSON values, or a `Blob`. Each object, and each tensor, is
saved once by identity: a normalizer shared by policy and critic appears under its first path only.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from polopt.core import shards
from polopt.core.errors import CheckpointError

Leaf = Any  # Tensor | JSON value | Blob


@dataclass(frozen=True)
class Blob:
    """An immutable block of tensors, written to disk once under `key` and shared by later checkpoints.

    Replay shards are blobs: a checkpoint of a large buffer costs only what is new. `tensors` is a function, so that a
    block that is on disk already is neither copied nor read again. The key says what is inside: equal keys, equal
    blocks.
    """

    key: str
    tensors: Callable[[], dict[str, Tensor]] = field(compare=False)


def content_key(name: str, tensors: Mapping[str, Tensor]) -> str:
    """The key of a block, named by content: the same tensors have the same key, others never do."""
    digest = hashlib.blake2b(digest_size=12)
    for path, value in sorted(tensors.items()):
        digest.update(f"{path} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return f"{name}-{digest.hexdigest()}"


class Stateful:
    """An object with state to save. Subclasses list plain attributes in `saved`, or override the two hooks."""

    saved: ClassVar[tuple[str, ...]] = ()
    learned: ClassVar[bool] = True
    """False for what says where a run stands and not what it has learned: tasks, sources and what they draw from,
    ledgers. It is neither in a snapshot nor loaded for an evaluation, and nothing below it is."""

    def extra_state(self) -> dict[str, Leaf]:
        """What is neither an attribute listed in `saved` nor a module, generator or Stateful attribute."""
        return {}

    def load_extra_state(self, state: dict[str, Leaf]) -> None:
        """Takes back what `extra_state` gave, also when that was nothing.

        What it is given stays as it is: tensors that are written into later, and lists, are copied.
        """

    def rebuilt(self) -> None:
        """Called when `saved` has been loaded and before children are: build here what depends on saved scalars."""


def held(root: object, *kinds: type) -> Iterator[tuple[str, Any]]:
    """The attributes of `root` that are of these kinds, also inside lists, tuples and dicts: (path, item), each item
    once. As in a checkpoint, names that begin with an underscore are left out; nothing looks inside an item."""
    seen: set[int] = set()
    reached = (*kinds, dict, list, tuple)

    def walk(value: Any, path: str) -> Iterator[tuple[str, Any]]:
        if isinstance(value, kinds):
            if id(value) not in seen:
                seen.add(id(value))
                yield path, value
        elif isinstance(value, dict):
            for key, item in value.items():
                yield from walk(item, f"{path}.{key}")
        elif isinstance(value, (list, tuple)):
            for index, item in enumerate(value):
                yield from walk(item, f"{path}.{index}")

    for name, value in list(vars(root).items()):
        if isinstance(value, reached) and not name.startswith("_"):
            yield from walk(value, name)


def unlearned(item: object) -> bool:
    """Whether this says where a run stands and not what it has learned: generators, and whatever says so."""
    return isinstance(item, torch.Generator) or (isinstance(item, Stateful) and not item.learned)


def _names(item: Stateful) -> tuple[str, ...]:
    names: dict[str, None] = {}
    for cls in reversed(type(item).__mro__):
        names.update(dict.fromkeys(cls.__dict__.get("saved", ())))
    return tuple(names)


def _is_state(value: Any) -> bool:
    if isinstance(value, dict):
        return any(_is_state(item) for item in value.values())
    if isinstance(value, (list, tuple)):
        return any(_is_state(item) for item in value)
    return isinstance(value, (nn.Module, torch.Generator, Stateful))


def _children(item: Any) -> Iterator[tuple[str, Any]]:
    """Attributes, submodules or items of `item` that hold state, in order."""
    pairs: list[tuple[str, Any]] = []
    if isinstance(item, nn.Module):
        pairs += [(name, child) for name, child in item.named_children()]
    if isinstance(item, (nn.Module, Stateful)):
        names = _names(item) if isinstance(item, Stateful) else ()
        pairs += [(name, value) for name, value in vars(item).items() if not name.startswith("_") and name not in names]
    elif isinstance(item, dict):
        pairs += [(str(name), value) for name, value in item.items()]
    elif isinstance(item, (list, tuple)):
        pairs += [(str(index), value) for index, value in enumerate(item)]
    # Where a run stands comes last: what it shares with what is learned has its path there.
    yield from sorted(((name, value) for name, value in pairs if _is_state(value)), key=lambda pair: unlearned(pair[1]))


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The parameters and persistent buffers of this very module, not of its children."""
    yield from ((name, value) for name, value in module._parameters.items() if value is not None)
    hidden = module._non_persistent_buffers_set
    yield from ((name, value) for name, value in module._buffers.items() if value is not None and name not in hidden)


def find(root: object, *kinds: type) -> Iterator[tuple[str, Any]]:
    """Everything of these kinds anywhere below `root`, each item once, by the path that it has in a checkpoint."""
    seen: set[int] = set()

    def walk(item: Any, path: str) -> Iterator[tuple[str, Any]]:
        if id(item) in seen:
            return
        seen.add(id(item))
        if isinstance(item, kinds):
            yield path, item
        for name, child in _children(item):
            yield from walk(child, _join(path, name))

    return walk(root, "")


def gather(root: object, prefix: str = "", *, skip: Callable[[object], bool] | None = None) -> dict[str, Leaf]:
    """The flat state of `root`: every path once. Tensors are detached but not copied.

    `skip` says what to leave out, with all that is below it (`unlearned`).
    """
    shards.settle()
    flat: dict[str, Leaf] = {}
    seen: set[int] = set()

    def walk(item: Any, path: str) -> None:
        if id(item) in seen or (skip is not None and skip(item)):
            return
        seen.add(id(item))
        if isinstance(item, torch.Generator):
            flat[f"{path}#generator"] = item.get_state()
        if isinstance(item, Stateful):
            flat.update({f"{path}#{name}": getattr(item, name) for name in _names(item)})
            flat.update({f"{path}@{name}": leaf for name, leaf in item.extra_state().items()})
        if isinstance(item, nn.Module):
            for name, tensor in _tensors(item):
                if id(tensor) not in seen:
                    seen.add(id(tensor))
                    flat[_join(path, name)] = tensor.detach()
        for name, child in _children(item):
            walk(child, _join(path, name))

    walk(root, prefix)
    return flat


def restore(
    root: object,
    flat: dict[str, Leaf],
    prefix: str = "",
    *,
    strict: bool = True,
    skip: Callable[[object], bool] | None = None,
) -> list[str]:
    """Puts a gathered state back into an object built in the same way; returns the paths that were used.

    Scalars of an object come first, then `rebuilt()`, then its children; random generators come last of all, because
    rebuilding may draw from them. With `strict`, a missing or left-over path raises CheckpointError naming it;
    without, only the tensors that both sides have, with equal shapes, are loaded (`--init`). What `skip` names stays as
    it is, with all that is below it, and then nothing is left over.
    """
    shards.settle()
    used: list[str] = []
    seen: set[int] = set()
    generators: list[tuple[str, torch.Generator]] = []

    def has(path: str) -> bool:
        if path in flat:
            return True
        if strict:
            raise CheckpointError(f"it has no '{path}': another method, config or version wrote it")
        return False

    def walk(item: Any, path: str) -> None:
        if id(item) in seen or (skip is not None and skip(item)):
            return
        seen.add(id(item))
        if isinstance(item, torch.Generator):
            generators.append((f"{path}#generator", item))
        if isinstance(item, Stateful) and strict:
            for name in _names(item):
                if has(f"{path}#{name}"):
                    setattr(item, name, copy.deepcopy(flat[f"{path}#{name}"]))  # a list may grow later
                    used.append(f"{path}#{name}")
            item.rebuilt()
            extra = {key[len(path) + 1 :]: leaf for key, leaf in flat.items() if key.startswith(f"{path}@")}
            item.load_extra_state(extra)
            used.extend(f"{path}@{name}" for name in extra)
        if isinstance(item, nn.Module):
            for name, tensor in _tensors(item):
                key = _join(path, name)
                if id(tensor) in seen or not has(key):
                    continue
                seen.add(id(tensor))
                if flat[key].shape == tensor.shape:
                    with torch.no_grad():
                        tensor.copy_(shards.part_of(flat[key], tensor))
                    used.append(key)
                elif strict:
                    raise CheckpointError(
                        f"'{key}' has shape {tuple(flat[key].shape)} there and {tuple(tensor.shape)} in this run"
                    )
        for name, child in _children(item):
            walk(child, _join(path, name))

    walk(root, prefix)
    if strict:
        for path, generator in generators:
            if has(path):
                generator.set_state(flat[path].to("cpu", torch.uint8))
                used.append(path)
        left = sorted(set(flat) - set(used))
        if left and skip is None:
            raise CheckpointError(f"it holds '{left[0]}', which this run does not have")
    return used


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
