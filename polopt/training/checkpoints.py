"""Checkpoints: safetensors and JSON only, each folder whole or absent, each file with its digest.

    checkpoints/step-000012000/{state.json, tensors.safetensors}     the latest, and the one before it
    checkpoints/best-000010000/{...}                                 what was learned at the best evaluation
    checkpoints/blobs/KEY.safetensors                                immutable blocks shared by checkpoints (replay)

`state.json` is written last inside a folder that is renamed into place: a save that is killed at any point leaves the
checkpoint before it as the latest. A checkpoint is removed by renaming it first, for the same reason. Nothing that is
loaded can execute code.
"""

from __future__ import annotations

import hashlib
import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from polopt.core import files, ranks
from polopt.core.errors import DamagedError
from polopt.core.state import Blob, Leaf, unlearned
from polopt.optim import Optimizer

FORMAT = 1


class Checkpoints:
    """Reads and writes the checkpoints of one run folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "checkpoints"

    def steps(self, kind: str = "step") -> list[int]:
        """Counts of the checkpoints that are there, oldest first."""
        if not self.folder.is_dir():
            return []
        names = (re.fullmatch(rf"{kind}-(\d+)", path.name) for path in self.folder.iterdir())
        return sorted(int(match[1]) for match in names if match)

    def path(self, step: int, kind: str = "step") -> Path:
        return self.folder / f"{kind}-{step:09d}"

    def save(self, step: int, state: dict[str, Leaf], *, kind: str = "step", keep: int = 2) -> Path:
        """Writes a checkpoint, and only then removes all but the newest `keep`. Raises RunError if the disk refuses."""
        files.make_folder(self.folder / "blobs")
        tensors = {name: leaf for name, leaf in state.items() if isinstance(leaf, Tensor)}
        blobs = {name: leaf.key for name, leaf in state.items() if isinstance(leaf, Blob)}
        digests = {leaf.key: self._save_blob(leaf) for leaf in state.values() if isinstance(leaf, Blob)}
        values = {name: leaf for name, leaf in state.items() if not isinstance(leaf, (Tensor, Blob))}
        data = _encode(tensors)
        manifest = {
            "format": FORMAT,
            "step": step,
            "tensors": _digest(data),
            "blobs": blobs,
            "blob_digests": digests,
            "values": values,
        }
        text = json.dumps(manifest, indent=1, sort_keys=True)
        manifest_data = json.dumps({"digest": _digest(text.encode()), "state": text}).encode()

        target = self.path(step, kind)
        beside = target.with_name(f".new-{target.name}")
        for leftover in self.folder.glob(".*-*"):  # of a save that was killed
            files.remove(leftover)
        files.make_folder(beside)
        with files.whole(beside):
            files.write(beside / "tensors.safetensors", data)
            files.write(beside / "state.json", manifest_data)
        if target.exists():  # the same step again, after a resume
            self._discard(target)
        files.rename(beside, target)
        for old in self.steps(kind)[:-keep]:
            self._discard(self.path(old, kind))
        self._remove_unused_blobs()
        return target

    def load(self, step: int, kind: str = "step", *, blobs: bool = True) -> dict[str, Leaf]:
        """Reads a checkpoint, checking every digest; without `blobs`, blocks are read when somebody asks for them.

        Raises:
            DamagedError: it is damaged; the sentence names the file and the good checkpoint before it. Of a block that
                is read later, it is raised then.
        """
        path = self.path(step, kind)
        try:
            manifest = _read_manifest(path / "state.json")
            tensors = load(_read(path / "tensors.safetensors", manifest["tensors"]))
            state: dict[str, Leaf] = {**manifest["values"], **tensors}
            for name, key in manifest["blobs"].items():
                read = partial(self._read_blob, step, kind, key, manifest["blob_digests"][key])
                state[name] = Blob(key, partial(_itself, read()) if blobs else read)
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise self._damaged(step, kind, error) from error
        return state

    def _read_blob(self, step: int, kind: str, key: str, digest: str) -> dict[str, Tensor]:
        try:
            return load(_read(self.folder / "blobs" / f"{key}.safetensors", digest))
        except (OSError, ValueError, SafetensorError) as error:
            raise self._damaged(step, kind, error) from error

    def _damaged(self, step: int, kind: str, error: Exception) -> DamagedError:
        others = [other for other in self.steps() if not (kind == "step" and other == step)]
        offer = f"; resume from the one before with --checkpoint {others[-1]}" if others else ""
        return DamagedError(f"checkpoint {self.path(step, kind)} is damaged ({error}){offer}")

    def drop_after(self, step: int) -> None:
        """Forgets a future that will be lived again: newer checkpoints, and blobs that no kept one refers to."""
        for kind in ("step", "best"):
            for newer in self.steps(kind):
                if newer > step:
                    self._discard(self.path(newer, kind))
        self._remove_unused_blobs()

    def _discard(self, path: Path) -> None:
        """Removes a checkpoint at once: half a folder must never be taken for one."""
        hidden = path.with_name(f".old-{path.name}")
        files.remove(hidden)
        files.rename(path, hidden)
        files.remove(hidden)

    def _save_blob(self, blob: Blob) -> str:
        path = self.folder / "blobs" / f"{blob.key}.safetensors"
        digest = path.with_suffix(".sha256")
        if path.exists() and digest.exists():
            return digest.read_text()
        data = _encode(blob.tensors())
        files.replace(digest, _digest(data).encode())
        files.replace(path, data)
        return _digest(data)

    def _remove_unused_blobs(self) -> None:
        used: set[str] = set()
        for kind in ("step", "best"):
            for step in self.steps(kind):
                try:
                    used.update(_read_manifest(self.path(step, kind) / "state.json")["blob_digests"])
                except (OSError, ValueError, KeyError, TypeError):
                    return  # a damaged checkpoint: remove nothing
        for path in (self.folder / "blobs").glob("*.safetensors"):
            if path.stem not in used:
                files.remove(path)
                files.remove(path.with_suffix(".sha256"))


def _itself(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return tensors


def unneeded(item: object) -> bool:
    """What an evaluation does without: where the run stands, and optimizers."""
    return unlearned(item) or isinstance(item, Optimizer)


def _encode(tensors: dict[str, Tensor]) -> bytes:
    """The tensors as safetensors, which refuses tensors that share memory: all but the first of these are copied."""
    seen: set[int] = set()
    apart: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        tensor = tensor.cpu().contiguous()
        memory = tensor.untyped_storage().data_ptr()
        apart[name] = tensor.clone() if memory in seen else tensor
        seen.add(memory)
    return save(apart)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _read(path: Path, digest: str) -> bytes:
    data = path.read_bytes()
    if _digest(data) != digest:
        raise ValueError(f"{path.name} does not match its digest")
    return data


def _read_manifest(path: Path) -> dict[str, Any]:
    outer = json.loads(path.read_bytes())
    if _digest(outer["state"].encode()) != outer["digest"]:
        raise ValueError(f"{path.name} does not match its digest")
    manifest = json.loads(outer["state"])
    if manifest["format"] != FORMAT:
        raise ValueError(f"{path.name} has format {manifest['format']}, this polopt reads {FORMAT}")
    return manifest


def random_state() -> dict[str, Leaf]:
    """The global generators: torch's on CPU and accelerators, and those of NumPy and Python for users' own code."""
    import random

    import numpy as np

    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)  # noqa: NPY002
    version, internal, gauss_next = random.getstate()
    state: dict[str, Leaf] = {
        "torch": torch.get_rng_state(),
        "numpy": [str(name), [int(key) for key in keys], int(position), int(has_gauss), float(gauss)],
        "python": [version, list(internal), gauss_next],
    }
    if torch.cuda.is_available():
        state |= {f"cuda{index}": value for index, value in enumerate(torch.cuda.get_rng_state_all())}
    return {f"random/{key}": value for key, value in state.items()}


def restore_random_state(state: dict[str, Leaf]) -> None:
    import random

    import numpy as np

    torch.set_rng_state(state["random/torch"])
    name, keys, position, has_gauss, gauss = state["random/numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), position, has_gauss, gauss))  # noqa: NPY002
    version, internal, gauss_next = state["random/python"]
    random.setstate((version, tuple(internal), gauss_next))
    cuda = [state[key] for key in sorted(state) if key.startswith("random/cuda")]
    if cuda and torch.cuda.is_available():
        if ranks.count() > 1:
            torch.cuda.set_rng_state(cuda[0])  # of the first process's device, which all of them draw alike from
        else:
            torch.cuda.set_rng_state_all(cuda)
