"""SAC, DSAC-T and PPO as users of polopt run them: `polopt.iterate`, the loop behind `polopt train`.

A slice is cut where the loop logs a row (every `log_every` steps, at the end of an update), so what a run costs besides
learning is inside: rows of metrics.csv and returns of training episodes. Left out are evaluations and checkpoints,
which `iterate` does before the first slice only; the peers do none. TensorBoard is off on both sides.
"""

import os
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
from protocol import Job, Run

import polopt


def training(method: str, job: Job, log_every: int, warm: int, **settings: Any) -> Run:
    """A run that goes on by `units` environment steps at a time, a multiple of `log_every`, after `warm` of them."""
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    folder = tempfile.TemporaryDirectory(prefix="polopt-speed-")
    never = 10**9
    rows = polopt.iterate(
        method,
        job["task"],
        out=f"{folder.name}/run",
        seed=job["seed"],
        compile=job.get("compile", False),
        steps=never,
        eval_every=never,
        checkpoint_every=never,
        eval_episodes=1,
        log_every=log_every,
        loggers=(),
        **settings,
    )
    learner = next(rows)["method"]
    seconds = {"collect": 0.0, "update": 0.0}

    def timed(name: str) -> Callable[..., Any]:
        work = getattr(learner, name)

        def call(*args: Any) -> Any:
            begin = time.perf_counter()
            result = work(*args)
            seconds[name] += time.perf_counter() - begin
            return result

        return call

    for name in seconds:
        setattr(learner, name, timed(name))

    def run(units: int) -> dict[str, float]:
        assert folder  # lives as long as the run
        if units % log_every:
            raise ValueError(f"a slice of {method} is a multiple of {log_every} steps, not {units}")
        seconds.update(dict.fromkeys(seconds, 0.0))
        until = learner.ledger.env_steps + units
        while learner.ledger.env_steps < until:
            next(rows)
        return dict(seconds)

    run(warm)
    return run


def off_policy(method: str, *names: str, **own: Any) -> Callable[[Job], Run]:
    """`names` are further settings that the job has, `own` those that it does not have."""

    def case(job: Job) -> Run:
        settings = {name: job[name] for name in names} | {
            "lr": job["lr"],
            "batch_size": job["batch_size"],
            "replay_size": job["replay_size"],
            "tau": job["tau"],
            "discount": job["discount"],
            "warmup": job["warmup"],
            "steps_per_update": 1,
            "updates_per_step": 1,
            "network.sizes": tuple(job["sizes"]),
            "network.activation": job["activation"],
        }
        return training(method, job, job["log_every"], job["warmup"] + 500, **settings, **own)

    return case


def ppo(job: Job) -> Run:
    """The value loss has a 1/2 here and none in Stable-Baselines3, so the coefficient is twice the job's."""
    decisions = job["envs"] * job["window"]
    settings = {
        "envs": job["envs"],
        "workers": job.get("workers", 0),
        "window": job["window"],
        "minibatches": decisions // job["batch_size"],
        "epochs": job["epochs"],
        "lr": job["lr"],
        "lr_schedule": "constant",
        "discount": job["discount"],
        "gae_lambda": job["gae_lambda"],
        "surrogate.clip_low": job["clip"],
        "surrogate.clip_high": job["clip"],
        "value_clip": None,
        "value_coefficient": 2 * job["value_coefficient"],
        "entropy_coefficient": job["entropy_coefficient"],
        "max_grad_norm": job["max_grad_norm"],
        "network.sizes": tuple(job["sizes"]),
        "network.activation": job["activation"],
    }
    return training("ppo", job, decisions, decisions, **settings)


LOG_ALPHA = {"entropy.form": "log-alpha"}
CASES = {
    "sac": off_policy("sac", **LOG_ALPHA),
    "dsac-t": off_policy("dsac-t", **LOG_ALPHA),
    "td3": off_policy("td3", "delay", "exploration_noise", "target_noise", "target_noise_clip"),
    "ppo": ppo,
}
