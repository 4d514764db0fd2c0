"""What Stable-Baselines3 and SBX share in a rate: SAC's settings, and going on slice by slice."""

from __future__ import annotations

from typing import Any

from protocol import Job, Run


def sac_settings(job: Job, activations: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments of `SAC`; every number comes from the job."""
    return {
        "learning_rate": job["lr"],
        "buffer_size": job["replay_size"],
        "learning_starts": job["warmup"],
        "batch_size": job["batch_size"],
        "tau": job["tau"],
        "gamma": job["discount"],
        "train_freq": 1,
        "gradient_steps": 1,
        "policy_kwargs": {"net_arch": job["sizes"], "activation_fn": activations[job["activation"]]},
        "seed": job["seed"],
        "device": "cpu",
    }


def learning(model: Any, warm: int) -> Run:
    """A run that goes on by `units` environment steps at a time, after `warm` of them."""

    def run(units: int) -> None:
        model.learn(units, reset_num_timesteps=False)

    run(warm)
    return run
