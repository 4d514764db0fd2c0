"""Presets of f-DVL and ReCOIL, as their released code has them; what their numbers mean; their smoke runs."""

from typing import Any

from polopt.bases.method import Limit, Settings, Smoke

WEIGHTS = {
    "value": "mean of V over the batch",
    "value_loss": "of V, by the divergence",
    "advantage": "mean of min Q - V",
    "advantage_weight": "mean of min(exp(advantage_temperature advantage), clip) | of the order of 1",
    "clip_fraction": "share of decisions whose weight is clipped | small",
    "policy_loss": "weighted -log pi of the data's actions",
}
SMALL: dict[str, Any] = {
    "dataset": "random",
    "random_episodes": 2,
    "batch_size": 32,
    "network.sizes": (16,),
    "value_network.sizes": (16,),
    "offline_updates": 12,
    "replay_size": 1_000,
}
CLONING: dict[str, Any] = {
    "dataset": "random",
    "advantage_temperature": 0.0,
    "policy": "auto",
    "lr": 1e-3,
    "policy_lr_schedule": "constant",
}


class DualRLSettings(Settings):
    headline = ("value", "advantage", "policy_loss", "critic_loss")
    trains_on = "recorded data, then the task itself if wanted"
    metrics = WEIGHTS | {
        "q": "mean of Q at the data's actions, over critics | near `value`",
        "critic_loss": "Huber loss of Q, summed over critics | falls, then settles",
    }
    presets = {
        "locomotion": {"rewards": "return-range"},
        "antmaze": {
            "rewards": "minus-one",
            "divergence": "tv",
            "strength": 0.8,
            "random_actions": 0,
            "advantage_temperature": 10.0,
            "policy_lr_schedule": "constant",
        },
        "adroit": {
            "divergence": "rkl",
            "value_temperature": 8.0,
            "value_clip": 5.0,
            "advantage_temperature": 0.5,
            "policy_dropout": 0.1,
        },
    }
    limits = (
        Limit(
            "bc",
            at={**CLONING, "random_actions": 0},
            apart={"advantage_temperature": 1.0},
            because="with temperature 0 every decision has weight 1",
        ),
    )
    probes = {"huber": {"huber": 0.01}}
    smoke = Smoke("Pendulum-v1", 24, SMALL | {"rewards": "return-range"})


class ReCOILSettings(Settings):
    headline = ("value", "advantage", "expert_reward", "offline_reward")
    trains_on = "recorded data beside demonstrations, without rewards"
    metrics = WEIGHTS | {
        "expert_q": "mean of Q at the expert's decisions, over critics | near reward_gap / (1 - discount)",
        "offline_q": "mean of Q at the other decisions, over critics | below `expert_q`",
        "critic_loss": "squared errors of Q, summed over critics | falls, then settles",
        "expert_reward": "mean of what Q and V say that the expert is rewarded with | above `offline_reward`",
        "offline_reward": "the same of the other decisions",
    }
    presets = {
        "locomotion": {},
        "adroit": {"value_network.normalization": "layer", "policy_dropout": 0.1},
        "kitchen": {"value_network.normalization": "layer", "policy_dropout": 0.1, "advantage_temperature": 0.5},
    }
    smoke = Smoke("Pendulum-v1", 24, SMALL | {"demonstrations": "random"})
