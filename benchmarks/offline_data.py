"""The data of the offline benchmarks, their settings, and what both sides do alike: timing and evaluating.

`make` trains sac on HalfCheetah-v5 once and records `medium` (a sampling policy at a third of the way from random to
the final return) and `medium-replay` (all that was collected until then), as `polopt dataset make` does. Each is kept
as a dataset of polopt and, with the same numbers in single precision, as FOLDER/KIND.npz, which any library can read.

    python -m benchmarks.offline_data        # about 20 minutes on two cores; stopped and started again, it goes on

Workers of other libraries import this file too: at its top it needs numpy alone.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

TASK = "HalfCheetah-v5"
OBS, ACTIONS, EPISODE = 17, 6, 1000
KINDS = ("medium", "medium-replay")
STEPS, TRANSITIONS, SEED = 50_000, 100_000, 0  # of sac; in `medium`; of everything random
FIRST_EVALUATION_SEED = 10_000

IQL: dict[str, Any] = {  # the paper's for MuJoCo (arXiv 2110.06169, appendix B); a job may change each
    "batch_size": 256,
    "lr": 3e-4,  # of policy, critics and value; the policy's falls to 0 as a cosine
    "discount": 0.99,
    "tau": 0.005,
    "expectile": 0.7,
    "advantage_temperature": 3.0,
    "weight_clip": 100.0,
    "critics": 2,
    "sizes": (256, 256),  # hidden layers of all networks, with ReLU
    "rewards": "return-range",  # times 1000 / (largest - smallest return of the data), or "none"
}
TD3_BC: dict[str, Any] = {  # the paper's (arXiv 2106.06860, table 3); a job may change each
    "batch_size": 256,
    "lr": 3e-4,
    "discount": 0.99,
    "tau": 0.005,
    "alpha": 2.5,
    "critics": 2,
    "delay": 2,
    "target_noise": 0.2,
    "target_noise_clip": 0.5,
    "normalize_obs": True,
    "sizes": (256, 256),  # hidden layers of all networks, with ReLU
}
Data = dict[str, np.ndarray]


def iql_settings(job: dict[str, Any]) -> dict[str, Any]:
    """`IQL`, with what the job says otherwise."""
    return {name: job.get(name, value) for name, value in IQL.items()}


def td3_bc_settings(job: dict[str, Any]) -> dict[str, Any]:
    """`TD3_BC`, with what the job says otherwise."""
    return {name: job.get(name, value) for name, value in TD3_BC.items()}


def random_data(transitions: int, seed: int) -> Data:
    """Random transitions of HalfCheetah's sizes, in episodes of 1000 that end by the time limit."""
    rng = np.random.default_rng(seed)
    episodes = -(-transitions // EPISODE)
    obs = rng.standard_normal((episodes, EPISODE + 1, OBS), dtype=np.float32)
    ends = np.zeros((episodes, EPISODE), dtype=bool)
    ends[:, -1] = True
    data = {
        "observations": obs[:, :-1].reshape(-1, OBS)[:transitions],
        "next_observations": obs[:, 1:].reshape(-1, OBS)[:transitions],
        "actions": rng.uniform(-1.0, 1.0, (transitions, ACTIONS)).astype(np.float32),
        "rewards": rng.standard_normal(transitions, dtype=np.float32),
        "terminals": np.zeros(transitions, dtype=bool),
        "timeouts": ends.reshape(-1)[:transitions],
    }
    data["timeouts"][-1] = True
    return data


def ends(data: Data) -> np.ndarray:
    """The index after the last transition of each episode."""
    return np.flatnonzero(data["terminals"] | data["timeouts"]) + 1


def return_range(data: Data) -> tuple[float, float]:
    """The smallest and the largest return of an episode."""
    returns = [part.sum(dtype=np.float64) for part in np.split(data["rewards"], ends(data)[:-1])]
    return float(min(returns)), float(max(returns))


# What both sides do alike


def timed(sample: Callable[[], Any], update: Callable[[Any], Any]) -> Callable[[int], dict[str, float]]:
    """`run(units)` of a rate: updates on fresh minibatches, and the seconds of each half."""

    def run(units: int) -> dict[str, float]:
        sampling, begin = 0.0, time.perf_counter()
        for _ in range(units):
            before = time.perf_counter()
            batch = sample()
            sampling += time.perf_counter() - before
            update(batch)
        return {"sample": sampling, "update": time.perf_counter() - begin - sampling}

    run(20)  # warm-up
    return run


def curve(epochs: Iterator[Any], predict: Callable[[np.ndarray], np.ndarray], job: dict[str, Any]) -> Iterator[dict]:
    """Rows of a curve. `epochs` trains `job["eval_every"]` updates at each `next`; `predict` is the policy, greedy."""
    wall = cpu = 0.0
    for updates in range(job["eval_every"], job["updates"] + 1, job["eval_every"]):
        begin, cpu_begin = time.perf_counter(), time.process_time()
        next(epochs)
        wall, cpu = wall + time.perf_counter() - begin, cpu + time.process_time() - cpu_begin
        found = returns(predict, job["eval_episodes"])
        row = {"updates": updates, "seconds": wall, "cpu_seconds": cpu}
        yield row | {"return": float(np.mean(found)), "returns": found}


def returns(predict: Callable[[np.ndarray], np.ndarray], episodes: int) -> list[float]:
    """The return of each episode, from the same starts at every call and in every library."""
    import gymnasium

    found = []
    with contextlib.closing(gymnasium.make(TASK)) as env:
        for seed in range(FIRST_EVALUATION_SEED, FIRST_EVALUATION_SEED + episodes):
            (obs, _), total, over = env.reset(seed=seed), 0.0, False
            while not over:
                obs, reward, terminated, truncated, _ = env.step(predict(obs))
                total, over = total + float(reward), terminated or truncated
            found.append(total)
    return found


# Making and finding the sets


def data_folder(steps: int = STEPS, transitions: int = TRANSITIONS, seed: int = SEED) -> Path:
    """Where the sets are: in polopt's cache, $POLOPT_CACHE or ~/.cache/polopt."""
    cache = Path(os.environ.get("POLOPT_CACHE", Path.home() / ".cache" / "polopt"))
    return cache / "benchmarks" / f"halfcheetah-{steps}-{transitions}-s{seed}"


def job_folder(job: dict[str, Any]) -> Path:
    """The folder with the set that a job names, `job["dataset"]`; `job["folder"]` if it is not the usual one."""
    folder = Path(job.get("folder", data_folder()))
    if not (folder / f"{job['dataset']}.npz").is_file():
        raise FileNotFoundError(f"there is no {job['dataset']}.npz in {folder}: python -m benchmarks.offline_data")
    return folder


def load(job: dict[str, Any]) -> Data:
    """The arrays of the set that a job names."""
    with np.load(job_folder(job) / f"{job['dataset']}.npz") as file:
        return dict(file)


@contextlib.contextmanager
def datasets_in(folder: Path) -> Iterator[None]:
    """polopt finds and writes its datasets below `folder`."""
    name = "MINARI_DATASETS_PATH"
    before = os.environ.get(name)
    os.environ[name] = str(folder / "datasets")
    try:
        yield
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before


def make(
    steps: int = STEPS, transitions: int = TRANSITIONS, seed: int = SEED, *, progress: bool = False, **settings: Any
) -> dict[str, dict[str, Any]]:
    """Makes the sets that are not there yet; returns for each kind its files, what is in it, and how it was made.

    `settings` are further ones of the run of sac. Raises ValueError when the folder holds sets made with other ones.
    """
    folder = data_folder(steps, transitions, seed)
    record = folder / "made.json"
    recipe = {"task": TASK, "method": "sac", "steps": steps, "seed": seed, "transitions": transitions} | settings
    if record.is_file():
        made = json.loads(record.read_text())
        if any(entry["recipe"] != recipe for entry in made.values()):
            raise ValueError(f"the sets in {folder} were made otherwise: remove it")
        return made
    import torch

    from polopt.data.datasets import load_dataset
    from polopt.training.dataset_facts import info
    from polopt.training.datasets import make_datasets

    options: dict[str, Any] = {"threads": torch.get_num_threads(), "loggers": ()}
    made = {}
    with datasets_in(folder):
        names = make_datasets(
            TASK,
            KINDS,
            name="halfcheetah",
            method="sac",
            steps=steps,
            seed=seed,
            transitions=transitions,
            out=folder / "sac",
            progress=progress,
            **(options | settings),
        )
        for kind, name in zip(KINDS, names):
            data = load_dataset(name).data
            arrays = {
                "observations": data["obs"],
                "actions": data["action"],
                "rewards": data["reward"],
                "next_observations": data["next_obs"],
                "terminals": data["terminated"],
                "timeouts": data["truncated"] & ~data["terminated"],
            }
            file = folder / f"{kind}.npz"
            np.savez(file, **{key: value.numpy() for key, value in arrays.items()})
            made[kind] = {"dataset": kind, "name": name, "folder": str(folder), "recipe": recipe, "content": info(name)}
            made[kind] |= {"sha256": hashlib.sha256(file.read_bytes()).hexdigest(), "versions": versions()}
    new = record.with_suffix(".new")
    new.write_text(json.dumps(made, indent=1))
    os.replace(new, record)
    return made


def versions() -> dict[str, str]:
    from importlib.metadata import version

    import polopt

    return {"polopt": polopt.__version__} | {name: version(name) for name in ("torch", "gymnasium", "mujoco", "minari")}


def main() -> None:
    parser = argparse.ArgumentParser(description="Makes the data of the offline benchmarks.")
    parser.add_argument("--steps", type=int, default=STEPS, help="environment steps of sac")
    parser.add_argument("--transitions", type=int, default=TRANSITIONS, help="in the medium set")
    parser.add_argument("--seed", type=int, default=SEED)
    print(json.dumps(make(**vars(parser.parse_args()), progress=True), indent=1))


if __name__ == "__main__":
    main()
