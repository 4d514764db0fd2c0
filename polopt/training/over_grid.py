"""What a saved policy is worth in many models of its world: `polopt eval RUN --grid G`."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

from polopt.evaluation.robust import grid_returns, robust_scores, world_of
from polopt.training import seeding
from polopt.training.api import load_method
from polopt.training.plan import OwnCode, runtime


def over_grid(
    folder: str | Path,
    grid: int = 5,
    *,
    episodes: int = 10,
    checkpoint: str | int = "latest",
    stochastic: bool = False,
    device: str | None = None,
    **own: Any,
) -> dict[str, float]:
    """Of mean returns in `grid` models along each parameter of the world: `worst`, `grid_mean`, and as `worst/NAME` the
    parameters of the worst one. Every model meets the same `episodes` starts, those of `polopt.evaluate`.

    Raises UsageError for tasks without parameters (`polopt.tasks.parameters`).
    """
    method, planned = load_method(Path(folder), checkpoint, OwnCode.of(own), device)
    with runtime(planned.options), closing(planned.make_task(seeding.TEST_TASK, 1)) as task:
        _, box = world_of(task)
        returns = grid_returns(method.policy, task, grid, episodes, greedy=not stochastic)
        worst = box.values(box.grid(grid)[returns.flatten().argmin()])
    return robust_scores(returns) | {f"worst/{name}": value.item() for name, value in worst.items()}
