"""Files and data sets of prompts, row by row: JSONL, Parquet, and the Hugging Face library."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from polopt.core.errors import UsageError, nearest
from polopt.tasks.layouts import Layout, arranged
from polopt.tasks.problem import Problem
from polopt.tasks.prompt_rows import read_row

PREFIX = "datasets/"
PARQUET = ".parquet"
Row = tuple[dict[str, Any], str]
"""Columns, and where they stand, for messages."""


def read_prompts(name: str, layout: Layout) -> list[Problem]:
    """One problem per row of "datasets/ID", a Parquet file or a JSONL file. Raises UsageError, one sentence."""
    if name.startswith(PREFIX):
        rows = of_dataset(name, layout.split, layout.subset)
    else:
        rows = of_parquet(name) if name.endswith(PARQUET) else of_jsonl(name)
    problems, seen = [], set()
    for row, where in rows:
        problem = read_row(arranged(row, layout, where), where, worked=layout.worked)
        if layout.unique and problem.key in seen:
            continue
        seen.add(problem.key)
        problems.append(problem)
    if not problems:
        raise UsageError(f"{name} is empty: it needs one row with a 'prompt' or 'messages' for each prompt")
    return problems


def of_jsonl(path: str | Path) -> Iterator[Row]:
    """The lines of a file of JSON objects; blank lines are skipped. Raises UsageError naming the line."""
    file = Path(path)
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not a text file in UTF-8") from None
    except OSError as error:
        raise _unread(file, error) from None
    for count, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"line {count} of {path}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{where} is not JSON: {error}") from None
        if not isinstance(row, dict):
            raise UsageError(f"{where} is not a JSON object with columns")
        yield row, where


def of_parquet(path: str | Path) -> Iterator[Row]:
    """The rows of a Parquet file. Raises UsageError."""
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise UsageError(f'{path} needs the package pyarrow: pip install "polopt[language]"') from None
    count = 0
    try:
        with ParquetFile(path) as file:
            for batch in file.iter_batches():
                for row in batch.to_pylist():
                    count += 1
                    yield row, f"row {count} of {path}"
    except ArrowException as error:
        said = " ".join(str(error).split()).rstrip(".")
        raise UsageError(f"{path} is no whole Parquet file: {said}") from None
    except OSError as error:
        raise _unread(Path(path), error) from None


def _unread(file: Path, error: OSError) -> UsageError:
    """Why a file could not be read; with the file that may have been meant."""
    if isinstance(error, FileNotFoundError):
        folder = file.parent
        others = [str(folder / other.name) for other in folder.glob(f"*{file.suffix}")] if folder.is_dir() else []
        return UsageError(f"there is no file {file}{nearest(str(file), others)}")
    return UsageError(f"{file} cannot be read: {error.strerror or error}")


def of_dataset(name: str, split: str | None = None, subset: str | None = None) -> Iterator[Row]:
    """The rows of "datasets/ID": a hub id, a folder of data files or one written by `save_to_disk`.

    Without `split`, "train" or the only one; several subsets, with commas, one after another. Raises UsageError, one
    sentence.
    """
    for part in [None] if subset is None else subset.split(","):
        data = _table(name, split, part)
        label = name if subset is None or subset == part else f"{name}, {part}"
        yield from ((dict(row), f"row {count} of {label}") for count, row in enumerate(data))


def _table(name: str, split: str | None, subset: str | None) -> Any:
    try:
        import datasets
    except ImportError as error:
        advice = 'pip install "polopt[language]"'
        raise UsageError(f"{name} needs the package '{error.name}': {advice}") from None
    source = name.removeprefix(PREFIX)
    folder = Path(source)
    saved = any((folder / file).exists() for file in ("dataset_info.json", "dataset_dict.json"))
    try:
        data = datasets.load_from_disk(source) if saved else datasets.load_dataset(source, subset)
    except Exception as error:
        said = " ".join(str(error).split()).rstrip(".")
        raise UsageError(f"{name} cannot be loaded: {type(error).__name__}{said and ': ' + said}") from None
    if isinstance(data, dict):
        chosen = split or ("train" if "train" in data else next(iter(data)))
        if chosen not in data or (split is None and "train" not in data and len(data) > 1):
            asked = f"has no split '{chosen}'" if split else "has several splits, so --task.split must name one"
            raise UsageError(f"{name} {asked}{nearest(chosen, data)}")
        return data[chosen]
    if split not in (None, str(data.split)):
        raise UsageError(f"{name} has no split '{split}': it is a single table")
    return data
