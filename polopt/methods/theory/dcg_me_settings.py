"""Presets of DCG-MAP-Elites and of what it is compared with; its smoke run; what its numbers mean."""

from typing import Any

from polopt.bases.method import Settings, Smoke

ARCHIVE = ("cells", "descriptor", "coordinates", "low", "high")


class DCGMESettings(Settings):
    headline = ("qd_score", "coverage", "gradient_accepted", "critic_loss")
    trains_on = "vector observations and box actions; kinds of behavior by where, or how, episodes go"
    metrics = {
        "qd_score": "sum of the returns in the archive, with `reward_offset` for each decision | rises",
        "coverage": "share of the cells that hold a policy | rises",
        "best": "largest return in the archive",
        "gradient_accepted": "share of the offspring by gradients that came into the archive | above 0",
        "line_accepted": "share of the offspring by iso+line that did | above 0",
        "descriptor_error": "of the actor: mean distance of the descriptor that it was told to that of its episode, as "
        "fractions of the bounds | falls",
        "critic_loss": "squared error summed over both critics, in the mean of an iteration",
        "q": "mean action value, over critics",
        "policy_loss": "minus Q_1 of the actor's actions; its level means nothing",
        "eval/qd_score": "of the archive, by the episodes in which its policies were found; what a run is judged by",
        "eval/return": "mean of the actor (without one, of the archive's policies), asked for what is in the archive",
        "eval/descriptor_error": "of the same episodes, as above",
    }
    measured_by = {"qd_score": (*ARCHIVE, "reward_offset"), "coverage": ARCHIVE}
    default_steps = 1_000_000
    eval_episodes = 64
    presets = {
        "gecco": {},
        "pga-me": {"conditioned": False, "actor_episodes": 0},
        "map-elites": {"gradient_share": 0.0, "conditioned": False, "actor_episodes": 0},
        "point": {
            "envs": 32,
            "cells": 256,
            "actor_episodes": 8,
            "critic_steps": 200,
            "gradient_steps": 30,
            "network.sizes": (32, 32),
            "critic_network.sizes": (64, 64),
        },
    }
    no_limit = "PGA-MAP-Elites and MAP-Elites are settings of it (presets), and none is another entry"
    smoke = Smoke(
        "point/robot",
        400,
        {"envs": 8, "cells": 16, "cvt_samples": 500, "actor_episodes": 4, "critic_steps": 4, "gradient_steps": 3}
        | {"batch_size": 16, "replay_size": 1_000, "network.sizes": (8,), "critic_network.sizes": (16,)},
        {"horizon": 10, "speed": 0.1},
    )

    @classmethod
    def derived(cls, config: Any, steps: int) -> dict[str, int]:
        return {"episodes per iteration": config.envs + config.actor_episodes, "critic steps": config.critic_steps}
