"""Where a replay keeps its columns: those of one type side by side, in memory or in a file."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from polopt.core.errors import RunError


class Block:
    """Columns of one type as one matrix [capacity, width], so that rows of all of them are written and taken at once.
    A column that is alone keeps its shape, [capacity, ...].

    Args:
        capacity: rows.
        like: columns [B, ...] by path; of several each is a vector or a number.
        last: of the sum of several transitions it is the last one whose columns are taken.
        directory: a (deleted) file there holds it, mapped into memory. Raises RunError where that is refused.
        name: of the file.
    """

    def __init__(
        self, capacity: int, like: Mapping[str, Tensor], *, last: bool, directory: str | Path | None, name: str
    ) -> None:
        self.paths = tuple(like)
        self.last = last
        self.shapes = [value.shape[1:] for value in like.values()]
        self.widths = [shape.numel() for shape in self.shapes] if len(like) > 1 else []
        first = next(iter(like.values()))
        shape = (capacity, sum(self.widths)) if self.widths else (capacity, *first.shape[1:])
        if directory is None:
            self.rows = torch.empty(shape, dtype=first.dtype)
        else:
            self.rows = _mapped(shape, first.dtype, Path(directory), name, self.paths)

    def joined(self, columns: Mapping[str, Tensor]) -> Tensor:
        """Rows of columns [B, ...], as they are kept. Raises RunError for one of another shape than at first."""
        parts = [columns[path].cpu() for path in self.paths]
        for path, value, shape in zip(self.paths, parts, self.shapes):
            if value.shape[1:] != shape:
                was, now = list(shape), list(value.shape[1:])
                raise RunError(f"the replay stores '{path}' of shape {was}, and this batch has {now}")
        if self.widths:
            rows = torch.cat([value if shape else value.unsqueeze(1) for value, shape in zip(parts, self.shapes)], 1)
        else:
            rows = parts[0]
        return rows.detach() if rows.requires_grad else rows

    def columns(self, rows: Tensor) -> dict[str, Tensor]:
        """The inverse of `joined`, views of `rows`."""
        if not self.widths:
            return {self.paths[0]: rows}
        parts = zip(rows.split_with_sizes(self.widths, 1), self.shapes)
        return dict(zip(self.paths, [value if shape else value.squeeze(1) for value, shape in parts]))


def _mapped(shape: tuple[int, ...], dtype: torch.dtype, folder: Path, name: str, paths: Sequence[str]) -> Tensor:
    count = torch.Size(shape).numel()
    size = count * dtype.itemsize
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # The file has no name once it is mapped: it goes with the process, however that ends.
        with tempfile.NamedTemporaryFile(dir=folder, prefix=f"{name}-") as file:
            if hasattr(os, "posix_fallocate") and size:
                os.posix_fallocate(file.fileno(), 0, size)  # a full disk is an error now, not a crash later
            return torch.from_file(file.name, shared=True, size=count, dtype=dtype).reshape(shape)
    except OSError as error:
        names = ", ".join(f"'{path}'" for path in paths)
        what = f"the replay needs {size / 2**30:.2f} GB for {names} in {folder}"
        raise RunError(f"{what}: {error.strerror or error}") from None
