"""Presets of GMORL; its limit case; its smoke run; what its numbers mean."""

from typing import Any

from polopt.bases.method import Limit, Settings, Smoke, Study

WIDTHS: dict[str, Any] = {"network.sizes": (512,) * 4, "network.head": (1_024,) * 3}  # of the released code before


class GMORLSettings(Settings):
    headline = ("entropy", "entropy_temperature", "q", "critic_loss")
    trains_on = "several objectives, discrete actions"
    metrics = {
        "entropy": "of the policy, in nats, exact; 0 where one action is legal | settles at `entropy_share` of the "
        "largest there is",
        "eval/expected_utility": "the best weighted sum on the front, in the mean over weights: what a run is judged "
        "by",
        "eval/utility": "the weighted sum that the policy has for the weights that it was told, in the mean over those "
        "evaluated | near the expected utility, where these are the same weights",
        "eval/hypervolume": "volume that the returns for the weights evaluated dominate above `reference` | rises",
        "eval/sparsity": "squared gaps between neighbors on the front, in the mean | small",
        "eval/follows_NAME": "rank correlation of the weight of an objective and the return in it | towards 1; near 0: "
        "the policy does not heed what it is told",
    }
    measured_by = {"hypervolume": ("reference",)}
    default_steps = 200_000
    presets = {
        "small": {"reference": (-60.0, -250.0)},
        "large": {**WIDTHS, "batch_size": 4_096, "envs": 64, "discount": 0.9},
    }
    studies = {
        "small": Study("edge", steps=30_000, task_options={"edges": "1-4"}),
        "large": Study("edge", steps=4_480_000),
    }
    limits = (
        Limit(
            base="discrete-sac",
            at={"preferences": (0.95,), "network": "network", "network.activation": "relu", "entropy_share": 0.98},
            apart={"preferences": (0.3,)},
            because="a single preference makes one reward, that of the task if it has the task's weights",
            task="edge",
            collects="method",
        ),
    )
    smoke = Smoke(
        "edge",
        120,
        {"envs": 4, "warmup": 64, "batch_size": 32, "replay_size": 500, "steps_per_update": 2}
        | {"network.sizes": (16, 16), "network.head": (16,), "preferences": (0.5, 0.9, 1.0)},
        {"edges": "1-3", "horizon": 8, "bins": 6},
    )
