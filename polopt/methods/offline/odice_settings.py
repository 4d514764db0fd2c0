"""Presets of O-DICE, as the released code has them; what its numbers mean; its smoke run."""

from polopt.bases.method import Settings, Smoke


class ODICESettings(Settings):
    headline = ("value", "cosine", "importance", "policy_loss")
    trains_on = "recorded data, then the task itself if wanted"
    metrics = {
        "value": "mean of V over the batch and members | settles at the scale of the (scaled) return",
        "residual": "mean of e | near 0 or below",
        "cosine": "of the angle between the forward and the backward gradient | mostly below 0: they are in conflict",
        "importance": "mean of w over the batch and members | of the scale of the rewards; 0: no decision counts",
        "zero_fraction": "share of decisions with w = 0 | high: only what turned out better than V is cloned",
        "clip_fraction": "share of decisions whose w is clipped | small",
        "policy_loss": "weighted -log pi of the data's actions",
    }
    presets = {
        "locomotion": {"rewards": "return-range"},
        "antmaze": {"rewards": "minus-three", "value_network.normalization": "none"},
        "antmaze-large": {"rewards": "minus-three", "value_network.normalization": "none", "members": 1},
        "imitation": {
            "rewards": "zero",
            "trade_off": 0.4,
            "lr": 1e-4,
            "weight_decay": 1e-5,
            "normalize_obs": True,
            "value_network.normalization": "none",
            "policy.mean": "tanh",
        },
    }
    no_limit = (
        "at backward-weight 0 it is its own gradient 'semi', and no other method of the catalogue learns V without Q: "
        "the step is tested against one that is written by hand"
    )
    probes = {"weight_clip": {"weight_clip": 0.02}}
    smoke = Smoke(
        "Pendulum-v1",
        24,
        {
            "dataset": "random",
            "random_episodes": 2,
            "batch_size": 32,
            "network.sizes": (16,),
            "value_network.sizes": (16,),
            "rewards": "zero",  # those of Pendulum are so far below the first values that no weight is above 0
            "offline_updates": 12,
            "replay_size": 1_000,
        },
    )
