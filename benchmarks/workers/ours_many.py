"""PPO on very many rows of a world in torch, `polopt.iterate` as in `ours_control.py`, set up as Scaled PPO sets it up.

`many`: a unit is a step of one environment. `many-return`: a unit is a run, from its beginning to a window whose mean
reward is at least `reward`.
"""

import os
from typing import Any

import torch
from ours_control import training
from ours_shared import begun
from ours_worlds import timed
from protocol import Job, Run

from polopt.training.plan import plan


def settings(job: Job) -> dict[str, Any]:
    """As many minibatches as make them of the job's size. The value loss has a 1/2 here, as the peer's."""
    return {
        "envs": job["rows"],
        "window": job["window"],
        "minibatches": max(1, round(job["rows"] * job["window"] / job["minibatch_size"])),
        "advantage_over": "batch",
        "lr_schedule": "constant",
        "epochs": job["epochs"],
        "lr": job["lr"],
        "discount": job["discount"],
        "gae_lambda": job["gae_lambda"],
        "surrogate.clip_low": job["clip"],
        "surrogate.clip_high": job["clip"],
        "value_clip": None,
        "value_coefficient": job["value_coefficient"],
        "entropy_coefficient": 0.0,
        "max_grad_norm": job["max_grad_norm"],
        "network.sizes": tuple(job["sizes"]),
        "device": job.get("device", "cpu"),
        "task_options": {"device": job.get("device", "cpu")},
    }


def many(job: Job) -> Run:
    update = job["rows"] * job["window"]
    run = training("ppo", job, update, update, **settings(job))
    return timed(lambda units: run(-(-units // update) * update))


def many_return(job: Job) -> Run:
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    seed = job["seed"]

    learner: Any = None

    def reached() -> bool:
        batch = learner.collect()
        learner.update(batch)
        learner.ledger.updates += 1
        return float(batch["reward"].mean()) >= job["reward"]

    def run(units: int) -> None:
        nonlocal seed, learner
        for _ in range(units):
            seed += 1
            learner = anew(seed)
            while not reached():
                pass

    def anew(seed: int) -> Any:
        made: Any = begun(plan("ppo", job["task"], seed=seed, loggers=(), **settings(job)))
        if job.get("device", "cpu") != "cpu":
            made.to(job["device"])
        return made

    learner = anew(seed)
    reached()
    return timed(run)


CASES = {"many": many, "many-return": many_return}
