"""A learner on decisions that a claim makes itself. Importing this imports no torch."""

from __future__ import annotations

from typing import Any


def learner_from(data: Any, spec: Any, method: str, task: Any, **settings: Any) -> Any:
    """An offline method, ready to learn from recorded decisions [B] with the keys and units of
    `polopt.data.demonstrations`, of a task with the spaces of `spec`. Its task is closed: it plays nothing."""
    from polopt.core import files
    from polopt.data.demonstrations import save_demonstrations
    from polopt.training.api import plan

    with files.temporary_folder("polopt-claim-") as folder:
        file = folder / "decisions.safetensors"
        save_demonstrations(file, data, spec)
        learner = plan(method, task, dataset=str(file), loggers=(), **settings).build()
    learner.task.close()
    return learner
