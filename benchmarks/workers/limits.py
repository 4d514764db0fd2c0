"""What this machine can do at most, measured like the libraries are, between their slices.

`matrix` (unit: a product of two 256 x 256 matrices in float32, by torch) and `simulator` (unit: an environment step of
Gymnasium alone, random actions): `job["envs"]` copies stepped by `job["processes"]` processes, which share them out.
"""

import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from protocol import Job, Run

SIZE = 256  # the width of the networks, and the batch, that SAC is measured with; 2 SIZE^3 FLOP a product


def matrix(job: Job) -> Run:
    import torch

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    a, b, out = torch.randn(SIZE, SIZE), torch.randn(SIZE, SIZE), torch.empty(SIZE, SIZE)

    def run(units: int) -> None:
        for _ in range(units):
            torch.mm(a, b, out=out)

    run(50)
    return run


def simulator(job: Job) -> Run:
    """A slice is as long as its slowest process; importing and making environments is done before."""
    processes = job["processes"]
    pool = ProcessPoolExecutor(
        processes,
        multiprocessing.get_context("spawn"),
        initializer=make,
        initargs=(job["task"], job["envs"] // processes),
    )

    def run(units: int) -> dict[str, float]:
        each = -(-units // processes)
        return {"slowest process": max(pool.map(step, [each] * processes))}

    run(job["envs"] * 100 * processes)
    return run


vector: Any
actions: list[Any]


def make(task: str, envs: int) -> None:
    """The environments of this process, with actions to take in turn."""
    global vector, actions
    import gymnasium
    import numpy as np

    vector = gymnasium.make_vec(
        task, envs, vectorization_mode="sync", disable_env_checker=True, vector_kwargs={"copy": False}
    )
    vector.reset(seed=0)
    vector.action_space.seed(0)
    actions = [np.asarray(vector.action_space.sample()) for _ in range(100)]


def step(units: int) -> float:
    """Seconds of so many environment steps."""
    begin = time.perf_counter()
    for count in range(-(-units // vector.num_envs)):
        vector.step(actions[count % len(actions)])
    return time.perf_counter() - begin


CASES = {"matrix": matrix, "simulator": simulator}
