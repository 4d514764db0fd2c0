"""polopt's side of the offline cases.

Rates: `iql`, `td3-bc`, `dql` (`job["steps"]` of denoising) and `ofql` are updates on `job["transitions"]` random
transitions of HalfCheetah's sizes, `method.update(method.collect())`, with `job["compile"]` compiled; `dql-act` and
`ofql-act` are actions at one observation each. `job["candidates"]` says how many samples compete for an action; without
it each method has its own number, 50 and 1.

Curves: `iql-curve`, `td3-bc-curve`, `dql-curve` and `ofql-curve` run the library's own training loop, nothing logged or
saved in between, on a set of `offline_data` and play it greedily. IQL and TD3+BC have the settings of `offline_data`,
as their peer has, and differ from it in what peer_d3rlpy.py lists; with `job["start"]` "d3rlpy" IQL begins with the
peer's weights and standard deviation. The last two have their presets for this task, and the weight of Q that
`job["eta"]` says.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from ours_shared import begun
from protocol import Job, Run
from tensordict import TensorDict

import polopt
from polopt.bases.method import Method
from polopt.core.batch import Batch
from polopt.data.demonstrations import save_demonstrations
from polopt.tasks import make_task
from polopt.training.api import plan

sys.path.append(str(Path(__file__).resolve().parents[1]))
import offline_data


def iql_config(job: Job) -> dict[str, Any]:
    """The settings that both sides share, as polopt names them."""
    settings = offline_data.iql_settings(job)
    config = settings | {"network.sizes": settings.pop("sizes")}
    if job.get("start") == "d3rlpy":  # PyTorch's weights; half way between the bounds of the log standard deviation
        config |= {"network.init": "default", "network.head_gain": 1.0, "policy.log_std_init": -1.5}
    return config


def td3_bc_config(job: Job) -> dict[str, Any]:
    """Likewise."""
    settings = offline_data.td3_bc_settings(job)
    return settings | {"network.sizes": settings.pop("sizes")}


def generative_config(job: Job, method: str) -> dict[str, Any]:
    """What a job sets of dql and ofql; the rest are their own defaults."""
    config = {name: job[name] for name in ("batch_size", "candidates", "eta") if name in job}
    return config | ({"policy.steps": job["steps"]} if method == "dql" else {})


def recorded(data: offline_data.Data) -> Batch:
    """Arrays as `offline_data` has them -> decisions as polopt has them."""
    names = {"obs": "observations", "action": "actions", "reward": "rewards", "next_obs": "next_observations"}
    names |= {"terminated": "terminals", "truncated": "timeouts"}
    batch = {name: torch.from_numpy(data[theirs]) for name, theirs in names.items()}
    batch["first"] = (batch["terminated"] | batch["truncated"]).roll(1)
    return TensorDict(batch, batch_size=[len(batch["reward"])])


def on_random_data(method: str, job: Job, config: dict[str, Any]) -> Method:
    """The method, ready to learn."""
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    data = recorded(offline_data.random_data(job["transitions"], job["seed"]))
    with tempfile.TemporaryDirectory(prefix="polopt-bench-") as folder:
        file = Path(folder) / "random.safetensors"
        save_demonstrations(file, data, make_task(offline_data.TASK).spec)
        return begun(plan(method, offline_data.TASK, seed=job["seed"], dataset=str(file), **config))


def updates(method: Method, job: Job) -> Run:
    if job.get("compile"):
        method.compile()
        for _ in range(2):  # the first step compiles
            method.update(method.collect())
    return offline_data.timed(method.collect, method.update)


def actions(method: Method) -> Run:
    rows = method.collect()["obs"].split(1)

    def run(units: int) -> None:
        for unit in range(units):
            method.policy.act(rows[unit % len(rows)])

    run(20)  # warm-up
    return run


def iql(job: Job) -> Run:
    return updates(on_random_data("iql", job, iql_config(job)), job)


def td3_bc(job: Job) -> Run:
    return updates(on_random_data("td3-bc", job, td3_bc_config(job)), job)


def dql(job: Job) -> Run:
    return updates(on_random_data("dql", job, generative_config(job, "dql")), job)


def ofql(job: Job) -> Run:
    return updates(on_random_data("ofql", job, generative_config(job, "ofql")), job)


def dql_act(job: Job) -> Run:
    return actions(on_random_data("dql", job, generative_config(job, "dql")))


def ofql_act(job: Job) -> Run:
    return actions(on_random_data("ofql", job, generative_config(job, "ofql")))


def curve(method: str, job: Job, config: dict[str, Any]) -> Iterator[dict]:
    folder = offline_data.job_folder(job)
    with offline_data.datasets_in(folder), tempfile.TemporaryDirectory(prefix="polopt-bench-") as out:
        rows = polopt.iterate(
            method,
            f"halfcheetah/{job['dataset']}-v0",
            steps=job["updates"],
            seed=job["seed"],
            out=Path(out) / "run",
            threads=int(os.environ["OMP_NUM_THREADS"]),
            eval_every=job["updates"],
            eval_episodes=1,
            log_every=job["eval_every"],
            checkpoint_every=2**40,
            loggers=(),
            **config,
        )
        learner = next(rows)["method"]  # built, and nothing learned yet
        learner.evaluate = lambda task, episodes: {"return": 0.0}  # `offline_data.curve` evaluates, off its clock
        yield from offline_data.curve(rows, learner.policy.predict, job)


def iql_curve(job: Job) -> Iterator[dict]:
    yield from curve("iql", job, iql_config(job))


def td3_bc_curve(job: Job) -> Iterator[dict]:
    yield from curve("td3-bc", job, td3_bc_config(job))


RECORDED = {"preset": "halfcheetah", "lr_schedule": "cosine"}
"""With the schedule that was the default when the curves of dql and ofql were recorded."""


def dql_curve(job: Job) -> Iterator[dict]:
    yield from curve("dql", job, RECORDED | generative_config({"steps": 5} | job, "dql"))


def ofql_curve(job: Job) -> Iterator[dict]:
    yield from curve("ofql", job, RECORDED | generative_config(job, "ofql"))


CASES = {
    "iql": iql,
    "td3-bc": td3_bc,
    "dql": dql,
    "ofql": ofql,
    "dql-act": dql_act,
    "ofql-act": ofql_act,
    "iql-curve": iql_curve,
    "td3-bc-curve": td3_bc_curve,
    "dql-curve": dql_curve,
    "ofql-curve": ofql_curve,
}
