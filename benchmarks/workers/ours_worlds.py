"""Steps of a grid or of points: rows of a world, as polopt's sources step them, or as a vector environment.

A step is that of one row. Actions are random and drawn before. Rows that have ended begin anew: in the same call of
`run` for the world itself, in the next step for the vector environment, which is Gymnasium's default. The part
"processor" is in seconds of the processor, which other processes on the machine hardly change.
"""

import os
import time
from collections.abc import Callable
from typing import Any

import torch
from protocol import Job, Run

Actions = Callable[[int], torch.Tensor]


def world(job: Job) -> Run:
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    return stepped(job, "grid/four-rooms", lambda rows: torch.randint(4, (100, rows), generator=seeded()))


def points(job: Job) -> Run:
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    return stepped(job, "point/lava", lambda rows: 2 * torch.rand(100, rows, 2, generator=seeded()) - 1)


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def stepped(job: Job, task: str, actions: Actions) -> Run:
    through: dict[str, Any] = {"tensors": tensors, "gymnasium": through_gymnasium}
    run: Run = through[job["through"]](task, job["rows"], actions(job["rows"]))
    return run


def timed(run: Run) -> Run:
    """The same, which says how many seconds of the processor it took."""

    def clocked(units: int) -> dict[str, float]:
        begin = time.process_time()
        run(units)
        return {"processor": time.process_time() - begin}

    return clocked


def tensors(name: str, rows: int, actions: torch.Tensor) -> Run:
    from polopt.tasks import make_task

    task = make_task(name, rows)
    task.reset()

    def run(units: int) -> None:
        for step in range(-(-units // rows)):
            _, _, terminated, truncated = task.step({"action": actions[step % 100]})
            over = terminated | truncated
            if over.any():
                task.reset(over)

    run(5 * rows)
    return timed(run)


def through_gymnasium(name: str, rows: int, actions: torch.Tensor) -> Run:
    """Random actions in a vector environment."""
    from polopt.tasks.as_gymnasium import WorldVectorEnv

    env = WorldVectorEnv(name, rows)
    env.reset(seed=0)
    arrays = actions.numpy()

    def run(units: int) -> None:
        for step in range(-(-units // rows)):
            env.step(arrays[step % 100])

    run(5 * rows)
    return timed(run)


CASES = {"world": world, "points": points}
