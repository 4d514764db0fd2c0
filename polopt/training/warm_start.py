"""Small language models that can already do a little: made from a config, taught by SFT, kept in a cache.

Learning from rewards needs a model that is sometimes right. Where no checkpoint can be downloaded, or experiments must
be small, `warm_start` makes one: random weights of a given size, then supervised fine-tuning on the task's own worked
solutions until the wanted accuracy is reached, or for a number of steps.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polopt
from polopt.core import files
from polopt.core.errors import RunError
from polopt.core.files import cache_folder
from polopt.policies.small_lm import make_language_model
from polopt.training import api

PACKAGE = Path(polopt.__file__).parent


def warm_start(
    task: str,
    *,
    accuracy: float | None,
    size: str | Mapping[str, Any] = "1m",
    updates: int = 3_000,
    check_every: int = 10,
    check_prompts: int = 128,
    seed: int = 0,
    task_options: dict[str, Any] | None = None,
    folder: Path | None = None,
    **settings: Any,
) -> Path:
    """The folder of a model that answers at least `accuracy` of the evaluation prompts of `task`, greedily, or, where
    that is None, has simply been taught for `updates` steps.

    The same arguments and the same version of polopt give the same weights; a model that is there is not made again.

    Args:
        size: "tiny", "0.5m", "1m", "3m" or "10m" parameters, or any model that `--model` takes, or the fields of a
            shape as `make_language_model` takes them.
        updates: at most so many steps of SFT; every `check_every` the accuracy on `check_prompts` is measured.
        folder: where to keep it; by default in `cache_folder()`.
        settings: of `sft`, such as `batch_size`, `lr` and `policy.max_tokens`.

    Raises RunError when the accuracy is not reached.
    """
    shape = dict(size) if isinstance(size, Mapping) else size
    wanted: dict[str, Any] = {"task": task, "accuracy": accuracy, "size": shape, "updates": updates, "seed": seed}
    wanted |= {"task_options": task_options or {}, "check": [check_every, check_prompts], "settings": settings}
    key = hashlib.sha256((json.dumps(wanted, sort_keys=True, default=str) + _code()).encode()).hexdigest()[:16]
    name = re.sub(r"[^\w.-]+", "_", task if isinstance(shape, dict) else f"{task}-{shape}")
    place = folder or cache_folder() / "models" / f"{name}-{key}"
    if _complete(place):
        return place
    with files.temporary_folder("polopt-warm-") as scratch:
        new = make_language_model(scratch / "new", shape) if isinstance(shape, dict) else shape
        run = api.train(
            "sft",
            task,
            steps=updates,
            seed=seed,
            out=scratch / "run",
            task_options=task_options,
            model=str(new),
            until=None if accuracy is None else f"accuracy>={accuracy}",
            eval_every=updates if accuracy is None else check_every,
            eval_episodes=check_prompts,
            checkpoint_every=updates,
            loggers=(),
            **settings,
        )
        if accuracy is not None and (reached := run.final["eval/accuracy"]) < accuracy:
            raise RunError(
                f"the model reached an accuracy of {reached:.2f} on {task} after {updates} updates, not "
                f"{accuracy:.2f}: allow more updates, or make the task easier"
            )
        files.make_folder(place.parent)
        policy: Any = api.load(run.folder)
        try:
            policy.export(place)
        except RunError:
            if not _complete(place):  # another process has been faster, and its weights are the same
                raise
    return place


def _complete(place: Path) -> bool:
    return (place / "config.json").is_file()


@functools.cache
def _code() -> str:
    """A digest of polopt's own source: another version may make another model."""
    digest = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
