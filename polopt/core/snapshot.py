"""What was learned, as a value: taken from a method, given back to one, and kept in archives.

A snapshot holds modules, optimizers and normalizers, and whatever else a method has to save; never a task, a source, a
ledger or a generator, which say where a run stands (`Stateful.learned`).
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from polopt.core.errors import CheckpointError
from polopt.core.state import Blob, Leaf, Stateful, content_key, gather, restore, unlearned


@dataclass(frozen=True)
class Snapshot:
    """What something had learned; nothing that is trained later changes it.

    Attributes:
        blobs: blocks of tensors by path: "" is the one of all tensors, others are of parts that save blocks themselves.
        values: what is no tensor, by path.
    """

    blobs: dict[str, Blob]
    values: dict[str, Any]


@dataclass(frozen=True)
class Entry:
    """A snapshot of an archive, and what is noted of it: JSON values, such as scores."""

    snapshot: Snapshot
    note: Any = None


def take(root: object) -> Snapshot:
    """What `root`, a method or any part of one, has learned by now."""
    tensors: dict[str, Tensor] = {}
    blobs: dict[str, Blob] = {}
    values: dict[str, Any] = {}
    for path, leaf in gather(root, skip=unlearned).items():
        if isinstance(leaf, Tensor):
            tensors[path] = leaf.to("cpu", copy=True)
        elif isinstance(leaf, Blob):
            blobs[path] = leaf
        else:
            values[path] = copy.deepcopy(leaf)
    return Snapshot({"": Blob(content_key("snapshot", tensors), lambda: tensors), **blobs}, values)


def give(root: object, snapshot: Snapshot) -> None:
    """Makes `root` go on from a snapshot of one that was built in the same way; the snapshot stays as it is.

    Raises CheckpointError, naming the path, when it does not fit.
    """
    blobs = {path: blob for path, blob in snapshot.blobs.items() if path}
    leaves: dict[str, Leaf] = {**snapshot.blobs[""].tensors(), **blobs, **snapshot.values}
    left = sorted(leaves.keys() - restore(root, leaves, skip=unlearned))
    if left:
        raise CheckpointError(f"the snapshot holds '{left[0]}', which this learner does not have")


class Archive(Stateful):
    """Snapshots in order, each with a note. Checkpoints share their tensors: one that is kept is written once."""

    def __init__(self) -> None:
        self._entries: list[Entry] = []

    def add(self, snapshot: Snapshot, note: Any = None) -> None:
        """Appends a snapshot; `note` is of JSON values."""
        self._entries.append(Entry(snapshot, copy.deepcopy(note)))

    def keep(self, which: Iterable[int]) -> None:
        """Keeps the entries with these positions, in this order, and drops the others."""
        self._entries = [self._entries[index] for index in which]

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: int) -> Entry:
        return self._entries[index]

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries)

    def extra_state(self) -> dict[str, Leaf]:
        blobs = {f"{n}:{path}": blob for n, entry in enumerate(self) for path, blob in entry.snapshot.blobs.items()}
        return {"entries": [[entry.snapshot.values, entry.note] for entry in self], **blobs}

    def load_extra_state(self, state: dict[str, Leaf]) -> None:
        entries: list[Entry] = []
        for number, (values, note) in enumerate(state["entries"]):
            start = f"{number}:"
            blobs = {name.removeprefix(start): _held(leaf) for name, leaf in state.items() if name.startswith(start)}
            entries.append(Entry(Snapshot(blobs, copy.deepcopy(values)), copy.deepcopy(note)))
        self._entries = entries


def _held(blob: Blob) -> Blob:
    """A block in memory: the run folder that it comes from may change."""
    tensors = blob.tensors()
    return Blob(blob.key, lambda: tensors)
