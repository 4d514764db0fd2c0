"""Presets, limit case, smoke run and meanings of the numbers of IWOCS.

The defaults have the scale of the paper, networks and rates of SAC. `pendulum` is polopt's, of the claim.
"""

from typing import Any

from polopt.bases.method import Limit, Settings, Smoke, Study
from polopt.methods.control.sac import SAC

SMALL = {f"sac.{name}": value for name, value in SAC.smoke.config.items()}


class IWOCSSettings(Settings):
    headline = ("models", "worst_found", "entropy", "critic_loss")
    trains_on = "worlds with a box of models, such as `pendulum`"
    metrics = {
        "stage": "the model in which SAC learns, by its place in the list; the numbers of SAC are of it",
        "models": "that were solved, whose experts act together",
        "worst_found": "return of the kept candidate in the worst model that its search has found, from resets",
        "eval/return": "in the middle of the box",
        "eval/worst": "the least of the mean returns over a grid of the box; what a run is judged by",
        "eval/grid_mean": "the mean of them",
    }
    measured_by = {"worst": ("grid",), "grid_mean": ("grid",)}
    default_steps = 6_000_000
    presets = {
        "pendulum": {
            "sac.warmup": 1_000,
            "sac.network.sizes": (64, 64),
            "models": 3,
            "model_steps": 12_000,
            "population": 8,
            "generations": 4,
            "grid": 5,
        },
    }
    studies = {"pendulum": Study("pendulum", 400_000)}
    limits = (
        Limit(
            "sac",
            task="pendulum",
            learner="learner",
            at=SMALL | {"models": 1},
            apart={"sac.tau": 0.5},
            collects="method",
            because="one model is the nominal one, in which SAC learns and nothing is searched",
        ),
    )
    probes = {"samples": {"rule": "q-min", "samples": 2}}
    smoke = Smoke(
        "pendulum",
        640,
        SMALL
        | {
            "models": 2,
            "model_steps": 80,
            "coverage": 0.5,
            "coverage_updates": 5,
            "coverage_network.sizes": (8,),
            "population": 4,
            "generations": 1,
            "search_episodes": 2,
            "grid": 2,
        },
        {"horizon": 20},
    )

    @classmethod
    def derived(cls, config: Any, steps: int) -> dict[str, int]:
        found = {"transitions per update": config.sac.batch_size}
        if config.models == 1:
            return found
        tried = config.population * config.generations
        return found | {"episodes of a search": (tried + config.models) * config.search_episodes}
