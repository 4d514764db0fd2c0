"""`export`: a run's policy as one file that runs without polopt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from polopt.core import files
from polopt.core.errors import UsageError
from polopt.policies.exported import FORMATS, exported
from polopt.training.api import load


def export(
    folder: str | Path,
    file: str | Path | None = None,
    *,
    format: str = "onnx",
    checkpoint: str = "latest",
    **own: Any,
) -> Path:
    """Writes the greedy policy of a run to one file that runs without polopt: see `polopt.policies.exported`.

    Args:
        file: where to; by default `policy.onnx`, `policy.pt` or `policy.pt2` in the run folder.
        format: "onnx" (for onnxruntime and others), "torchscript" (`torch.jit.load`) or "pt2" (`torch.export.load`).
        checkpoint, own: as in `load`.

    Raises UsageError for recurrent policies and language models, RunError where the file would not do what `predict`
    does.
    """
    if format not in FORMATS:
        raise UsageError(f"there is no format '{format}'; choose {', '.join(FORMATS)}")
    file = Path(folder) / f"policy{FORMATS[format]}" if file is None else Path(file)
    files.check_file(file)
    content = exported(load(folder, checkpoint=checkpoint, device="cpu", **own), format)
    files.make_folder(file.parent)
    files.replace(file, content)
    return file
