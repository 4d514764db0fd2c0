"""Presets of PPO, columns of "The 37 Implementation Details of PPO" but for `legged` and `pendulum`; its smoke run."""

from typing import Any

from polopt.bases.method import Settings, Smoke
from polopt.config import Linear
from polopt.losses.surrogate import METRICS as SURROGATE
from polopt.regularizers import AdaptiveKL, KLPenalty


class PPOSettings(Settings):
    headline = ("entropy", "approx_kl", "clip_fraction", "explained_variance")
    trains_on = "any task"
    metrics = SURROGATE | {
        "entropy": "of the policy, in nats; for a Gaussian it may be negative | falls slowly; suddenly: it has stopped "
        "exploring",
        "value_loss": "half the squared error of the critic, clipped",
        "explained_variance": "1 - Var(returns - value) / Var(returns), with the critic before the update | towards 1; "
        "below 0: worse than a constant",
        "grad_norm": "of policy and critic together, before clipping",
    }
    default_steps = 500_000
    presets = {
        "classic": {},
        "atari": {
            "envs": 8,
            "surrogate.clip_low": 0.1,
            "surrogate.clip_high": 0.1,
            "value_clip": 0.1,
            "network.sizes": (512,),
            "network.activation": "relu",
        },
        "mujoco": {
            "envs": 1,
            "window": 2048,
            "minibatches": 32,
            "epochs": 10,
            "lr": 3e-4,
            "entropy_coefficient": 0.0,
            "normalize_obs": True,
            "normalize_reward": True,
        },
        "procgen": {
            "envs": 64,
            "window": 256,
            "minibatches": 8,
            "epochs": 3,
            "lr": 5e-4,
            "lr_schedule": "constant",
            "discount": 0.999,
        },
        "isaacgym": {
            "envs": 4096,
            "window": 16,
            "minibatches": 2,
            "epochs": 4,
            "lr": 2.6e-3,
            "lr_schedule": "constant",
            "entropy_coefficient": 0.0,
            "value_clip": None,
            "value_coefficient": 2.0,
            "max_grad_norm": 1.0,
            "network.sizes": (256, 256),
        },
        "legged": {  # arXiv 2109.11978
            "envs": 4096,
            "window": 24,
            "minibatches": 4,
            "epochs": 5,
            "lr": 1e-3,
            "lr_schedule": "constant",
            "adaptive_lr": "adaptive-kl",
            "advantage_over": "batch",
            "value_coefficient": 2.0,  # rsl_rl's is 1.0, on a loss without the 1/2
            "max_grad_norm": 1.0,
            "network.sizes": (512, 256, 128),
            "network.activation": "elu",
        },
        "pendulum": {  # polopt
            "envs": 8,
            "window": 128,
            "minibatches": 32,
            "epochs": 10,
            "lr": 1e-3,
            "discount": 0.9,
            "entropy_coefficient": 0.0,
        },
    }
    no_limit = "it is the base of the others"
    probes = {
        "surrogate.dual_clip": {"surrogate.dual_clip": 1.0001},
        "value_clip": {"value_clip": 1e-4},
        "clip_schedule": {"value_clip": 1e-3},
        "target_kl": {"target_kl": 1e-9},
        "clip_schedule.end": {"clip_schedule": Linear(), "value_clip": 1e-3},
        "adaptive_lr.target": {"adaptive_lr": AdaptiveKL(), "adaptive_lr.target": 1e-9},
        "adaptive_lr.low": {"adaptive_lr": AdaptiveKL(target=1e-9), "adaptive_lr.low": 2e-4},
        "kl_penalty.target": {"kl_penalty": KLPenalty(), "kl_penalty.target": 1e-9},
    }
    smoke = Smoke("CartPole-v1", 192, {"envs": 2, "window": 32, "minibatches": 2, "epochs": 2, "network.sizes": (16,)})

    @classmethod
    def derived(cls, config: Any, steps: int) -> dict[str, int]:
        batch = config.envs * config.window
        minibatch = -(-batch // config.minibatches)
        return {"decisions per update": batch, "per minibatch": minibatch, "updates": -(-steps // batch)}
