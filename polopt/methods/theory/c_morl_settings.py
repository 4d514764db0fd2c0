"""Presets of C-MORL, from the official scripts; its smoke run; what its numbers mean."""

from typing import Any

from polopt.bases.method import Settings, Smoke, Study


class CMORLSettings(Settings):
    headline = ("hypervolume", "policies", "slack", "violated")
    trains_on = "several objectives, any actions"
    metrics = {
        "policies": "of the front | grows, and falls where a better one replaces several",
        "hypervolume": "volume that the front dominates above `reference`, by its returns in training | rises",
        "round": "0: the initial stage; then of the extensions",
        "violated": "share of the policies that extensions have offered which are below a threshold | small; where "
        "not: a smaller ppo.barrier_t or ppo.lr",
        "slack": "of an extension: the least J_j - threshold_j, as a fraction of the margin, in the mean of an update; "
        "1 in the initial stage | above 0",
        "eval/hypervolume": "the same, by the returns of the evaluation; what a run is judged by",
        "eval/expected_utility": "the best weighted sum on the front, in the mean over weights",
        "eval/sparsity": "squared gaps between neighbors on the front, in the mean | small",
    }
    measured_by = {"hypervolume": ("reference",)}
    default_steps = 12_000_000
    presets = {  # the official scripts count the steps of one of their eight processes
        "hopper": {"reference": (-100.0, -100.0), "episodes": 5},
        "minecart": {
            "init_steps": 1_600_000,
            "weight_parts": 2,
            "select": 6,
            "reference": (-1.0, -1.0, -200.0),
            "archive_discount": 0.98,
        },
        "fruit-tree": {"init_steps": 800_000, "weight_parts": 1, "select": 6, "reference": (0.0,) * 6},
    }
    studies = {
        "hopper": Study("mo-hopper-2obj-v5", steps=12_000_000),
        "minecart": Study("minecart-v0", steps=4_000_000),
        "fruit-tree": Study("fruit-tree-v0", steps=4_000_000),
    }
    no_limit = "what it holds is PPO where there is one objective: a test shows it, since no named task has one"
    smoke = Smoke(
        "point/front",
        320,
        {"envs": 2, "init_steps": 96, "weight_parts": 1, "select": 1, "extension_updates": 2, "evaluate_every": 2}
        | {"capacity": 4, "episodes": 2, "evaluated": 2, "ppo.beta": 0.5}
        | {"ppo.window": 8, "ppo.minibatches": 2, "ppo.epochs": 2, "ppo.lr": 0.02, "ppo.network.sizes": (16,)},
        {"horizon": 3, "ends": False, "speed": 0.3},
    )

    @classmethod
    def derived(cls, config: Any, steps: int) -> dict[str, int]:
        return {
            "decisions per update": config.envs * config.ppo.window,
            "updates of an extension": config.extension_updates,
        }
