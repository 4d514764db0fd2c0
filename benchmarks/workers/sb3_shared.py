"""What Stable-Baselines3 and SBX share: off-policy settings, going on slice by slice, noise for acting."""

from __future__ import annotations

from typing import Any

from protocol import Job, Run


def sac_settings(job: Job, activations: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments of `SAC` and `TD3`; every number comes from the job."""
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


def exploring(env: Any, std: float) -> Any:
    """Gaussian noise of this deviation, in the units [-1, 1] in which Stable-Baselines3 adds it, as polopt does."""
    import numpy as np
    from stable_baselines3.common.noise import NormalActionNoise

    size = env.action_space.shape
    return NormalActionNoise(np.zeros(size), np.full(size, std))
