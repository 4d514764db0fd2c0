"""Presets, the smoke run and the numbers of Symphony.

"mujoco" is the official S3 on tasks of 1,000 steps that can terminate; "s2", "se" and "ed" are the other versions of
the official code, on the same tasks.
"""

import math

from polopt.bases.method import Settings, Smoke, Study

IDLE = {"idle_after": 949}
TASKS = ("mujoco", "s2", "se", "ed")


class SymphonySettings(Settings):
    headline = ("strength", "q", "critic_loss", "policy_loss")
    trains_on = "box actions"
    metrics = {
        "strength": "mean of S over the batch's next states and coordinates | goes to about 1 / e first, and rises "
        "where strong actions pay",
        "q": "mean of the critics' outputs at the batch, in rewards of mean size 1 | grows to the scale of the return",
        "next_value": "mean of the soft minimum of the target critics' outputs at the next states | a little below `q`",
        "critic_loss": "e tanh(e / 2) of the critics' errors | falls",
        "policy_loss": "minus the error function of the advantage over the moving average | its level means little",
        "swaddling": "the penalty on strength, without its coefficient | falls",
    }
    default_steps = 1_000_000
    presets = {
        "mujoco": IDLE,
        "s2": IDLE | {"silent_dropout": 0.5, "lr": 5e-5, "warmup": 20_480},
        "se": IDLE | {"noise_std": 1.0 / math.pi, "noise_clip": math.pi},
        "ed": IDLE | {"width": 384, "warmup": 7_680, "replay_size": 384_000, "updates_per_step": 2},
    }
    studies = {name: Study("Humanoid-v4") for name in TASKS}
    no_limit = "loss, critics, optimizer and replay are its own, and no setting takes all of them away"
    smoke = Smoke("Pendulum-v1", 96, {"warmup": 64, "batch_size": 32, "width": 16, "replay_size": 1_000})
