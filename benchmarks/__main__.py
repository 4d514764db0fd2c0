"""`make bench`: how fast the first methods are, as a fraction of what this machine can do.

For SAC the limit is the measured rate of matrix products of the update's own sizes; for PPO it is the raw simulator.
Measurements are interleaved: each round times every part once, and medians over rounds are printed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import gymnasium
import numpy as np
import torch

from polopt.training import api

ROUNDS = 7


def seconds(work: Callable[[], object], repeat: int) -> float:
    begin = time.perf_counter()
    for _ in range(repeat):
        work()
    return (time.perf_counter() - begin) / repeat


def matrix_rate(size: int = 256) -> Callable[[], float]:
    """GFLOP/s of [size, size] @ [size, size] products in float32."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    return lambda: 2 * size**3 / seconds(lambda: a @ b, 50) / 1e9


def simulator_rate(task: str, envs: int) -> Callable[[], float]:
    """Environment steps per second of Gymnasium alone, with random actions."""
    vector = gymnasium.make_vec(task, envs, vectorization_mode="sync")
    vector.reset(seed=0)
    action = np.stack([vector.single_action_space.sample() for _ in range(envs)])
    return lambda: envs / seconds(lambda: vector.step(action), 200)


def sac_update() -> tuple[Callable[[], float], float]:
    """Milliseconds of one update on HalfCheetah-v5 (batch 256, two layers of 256), and its GFLOP by counting."""
    method = api.plan("sac", "HalfCheetah-v5", warmup=1_000).build()
    batch = method.collect()
    for _ in range(5):
        method.update(batch)
    inputs, actions, width = 17, 6, 256
    q = 2 * ((inputs + actions) * width + width * width + width)
    policy = 2 * (inputs * width + width * width + 2 * actions * width)
    # targets: policy and 2 Q forward; critics: 2 Q forward and backward (x3); policy: itself x3, 2 Q forward, backward
    # through their inputs (x2)
    gflop = 256 * (policy + 2 * q + 2 * 3 * q + 3 * policy + 2 * 2 * q) / 1e9
    return lambda: 1e3 * seconds(lambda: method.update(batch), 20), gflop


def ppo_rate() -> Callable[[], float]:
    """Environment steps per second of PPO on HalfCheetah-v5 with 8 environments, collection and updates together."""
    method = api.plan("ppo", "HalfCheetah-v5", preset="mujoco", envs=8, window=256).build()
    return lambda: 8 * 256 / seconds(lambda: method.update(method.collect()), 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    update, gflop = sac_update()
    parts = {
        "matrix rate, GFLOP/s": matrix_rate(),
        "SAC update, ms": update,
        "simulator, steps/s": simulator_rate("HalfCheetah-v5", 8),
        "PPO, steps/s": ppo_rate(),
    }
    rounds = [{name: measure() for name, measure in parts.items()} for _ in range(ROUNDS)]
    result = {name: statistics.median(each[name] for each in rounds) for name in parts}
    result["SAC update, fraction of the matrix rate"] = (
        gflop / (result["SAC update, ms"] / 1e3) / result["matrix rate, GFLOP/s"]
    )
    result["PPO, fraction of the simulator's rate"] = result["PPO, steps/s"] / result["simulator, steps/s"]
    if args.json:
        print(json.dumps(result | {"threads": args.threads, "torch": torch.__version__}))
        return
    for name, value in result.items():
        print(f"{name:<42} {value:>10,.3g}")


if __name__ == "__main__":
    main()
