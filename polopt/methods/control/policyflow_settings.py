"""Presets, limit case, smoke run and meanings of the numbers of PolicyFlow.

Presets are the official code's for its tasks: `multigoal` is its own, the others are IsaacLab's, with the networks and
the 24 steps that it has for all of these. How many copies of a task it runs there is the task's own affair: `envs` 4096
is what IsaacLab has for most. `small` is polopt's, of the claim.
"""

from typing import Any

from polopt.bases.method import Limit, Settings, Smoke, Study

ISAACLAB: dict[str, Any] = {
    "envs": 4096,
    "window": 24,
    "value_error": "clipped",
    "network.sizes": (512, 256, 128),
    "network.activation": "elu",
    "lr": 1e-3,
}


PLAIN = {"lr_schedule": "constant", "adam_eps": 1e-8, "max_grad_norm": 1.0, "advantage_over": "batch"}


class PolicyFlowSettings(Settings):
    headline = ("entropy", "shift_kl", "brownian_loss", "explained_variance")
    trains_on = "box actions"
    metrics = {
        "entropy": "of the Gaussian around a center, in nats; what the flow spreads is not in it | falls slowly",
        "shift_kl": "KL(old || new) of the Gaussians that are a shift apart, given the noise | near the target of "
        "`adaptive_lr`",
        "shift": "by how much the drift has changed at the points where it is compared, a length in units of actions",
        "brownian_loss": "squared error of the drift against spreading as noise does, a mean over coordinates | with a "
        "large `brownian_coefficient` it stays small, and returns may too",
        "grad_norm": "of policy and critic together, before clipping",
    }
    default_steps = 1_000_000
    presets = {
        "multigoal": {
            "envs": 4096,
            "value_error": "clipped",
            "brownian_coefficient": 0.25,
        },
        "franka": ISAACLAB
        | {"entropy_coefficient": 0.004, "brownian_coefficient": 0.002, "lr": 1e-4, "discount": 0.98},
        "navigation": ISAACLAB | {"entropy_coefficient": 0.0025, "brownian_coefficient": 0.0025},
        "quadcopter": ISAACLAB | {"entropy_coefficient": 0.005, "brownian_coefficient": 0.005, "lr": 5e-4},
        "anymal-d": ISAACLAB | {"entropy_coefficient": 0.0025, "brownian_coefficient": 0.0025},
        "h1": ISAACLAB | {"entropy_coefficient": 0.005, "brownian_coefficient": 0.005},
        "go2": ISAACLAB | {"entropy_coefficient": 0.008, "brownian_coefficient": 0.002},
        "g1": ISAACLAB | {"entropy_coefficient": 0.002, "brownian_coefficient": 0.006},
        "cabinet": ISAACLAB
        | {"entropy_coefficient": 0.0008, "brownian_coefficient": 0.0002, "lr": 5e-4, "adaptive_lr.target": 0.02},
        "small": {
            "envs": 256,
            "window": 30,
            "lr": 1e-3,
            "brownian_coefficient": 0.1,
            "network.sizes": (64, 64),
            "policy.steps": 5,
        },
    }
    studies = {"small": Study("point/goals", 400_000, {"scale": 0.1})}
    limits = (
        Limit(
            "ppo",
            task="Pendulum-v1",
            base_at=PLAIN | {"policy": "gaussian"},
            at={
                "policy.start": "zero",
                "policy.denoiser": "blind",
                "policy.steps": 1,
                "brownian_coefficient": 0.0,
                "adaptive_lr": None,
                "weight_decay": 0.0,
                "value_coefficient": 0.5,
                "entropy_coefficient": 0.01,
                "lr": 2.5e-4,
                "network.activation": "tanh",
            },
            apart={"policy.start": "normal"},
            collects="method",
            because="from 0, in one step of a drift that is the same everywhere, the center is the output of the "
            "network and the shift its difference: a Gaussian, up to rounding, since ratios are of what is left of an "
            "action without its center",
            tolerance=1e-10,
        ),
    )
    probes = {"value_error": {"value_clip": 1e-4, "discount": 0.0, "lr": 1.0}}  # it overshoots
    smoke = Smoke(
        "Pendulum-v1",
        192,
        {"envs": 2, "window": 32, "minibatches": 2, "epochs": 2, "network.sizes": (16,), "policy.steps": 2},
    )
