"""Steps of the grid "grid/four-rooms": rows of a world, as polopt's sources step them, or as a vector environment.

A step is that of one row. Actions are random and drawn before. Rows that have ended begin anew: in the same call of
`run` for the world itself, in the next step for the vector environment, which is Gymnasium's default. The part
"processor" is in seconds of the processor, which other processes on the machine hardly change.
"""

import os
import time
from typing import Any

import torch
from protocol import Job, Run

TASK = "grid/four-rooms"


def world(job: Job) -> Run:
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    through: dict[str, Any] = {"tensors": tensors, "gymnasium": through_gymnasium}
    run: Run = through[job["through"]](job["rows"])
    return run


def timed(run: Run) -> Run:
    """The same, which says how many seconds of the processor it took."""

    def clocked(units: int) -> dict[str, float]:
        begin = time.process_time()
        run(units)
        return {"processor": time.process_time() - begin}

    return clocked


def tensors(rows: int) -> Run:
    from polopt.tasks import make_task

    task = make_task(TASK, rows)
    task.reset()
    actions = torch.randint(4, (100, rows), generator=torch.Generator().manual_seed(0))

    def run(units: int) -> None:
        for step in range(-(-units // rows)):
            _, _, terminated, truncated = task.step({"action": actions[step % 100]})
            over = terminated | truncated
            if over.any():
                task.reset(over)

    run(5 * rows)
    return timed(run)


def through_gymnasium(rows: int) -> Run:
    from polopt.tasks.as_gymnasium import WorldVectorEnv

    return stepping(WorldVectorEnv(TASK, rows), rows)


def stepping(env: Any, rows: int) -> Run:
    """Random actions in a vector environment."""
    env.reset(seed=0)
    actions = torch.randint(4, (100, rows), generator=torch.Generator().manual_seed(0)).numpy()

    def run(units: int) -> None:
        for step in range(-(-units // rows)):
            env.step(actions[step % 100])

    run(5 * rows)
    return timed(run)


CASES = {"world": world}
