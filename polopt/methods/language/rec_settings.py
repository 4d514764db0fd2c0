"""What REC says of itself besides its mathematics: metrics, presets, its limit case, and its smallest run."""

from typing import ClassVar

from polopt.bases.method import Limit, Settings, Smoke


class RECSettings(Settings):
    headline = ("reward", "accuracy", "clip_fraction", "approx_kl", "completion_length")
    probes = {
        "restraint_coefficient": {"restraint": "k2"},
        "weight_temperature": {"data": "weight"},
        "overlong.buffer": {"policy.max_tokens": 24},
        "overlong.penalty": {"overlong": "soft-penalty", "overlong.buffer": 0.9, "policy.max_tokens": 24},
        "baseline.single": {"samples_per_prompt": 1},
    }
    metrics = {
        "kept": "share of the sampled groups whose rewards differ, with dynamic sampling | 0.3 or more",
        "staleness": "updates between the weights that sampled and those that learn, with `--ahead`, without the "
        "lag of `--sync-interval` | K",
    }
    presets = {
        "opmd": {"surrogate": "reinforce", "restraint": "k2"},
        "asymre": {"surrogate": "reinforce", "baseline.shift": -0.1},
        "red-drop": {"surrogate": "reinforce", "data": "drop"},
        "red-weight": {"surrogate": "reinforce", "data": "weight"},
        "wide": {"surrogate": "rec-one-side-wide"},
        "sequence": {"surrogate": "rec-seq-one-side-is", "aggregate": "sequence"},
        "small": {"batch_prompts": 16, "lr": 1e-4, "policy.max_tokens": 32},
    }
    limits: ClassVar[tuple[Limit, ...]] = (
        Limit(
            base="grpo",
            at={"surrogate": "rec-one-side-is", "baseline.std": "group", "aggregate": "sequence"},
            apart={"surrogate": "rec-one-side"},
            base_at={"reference_kl": None, "sync_interval": 2},
            because="GRPO without its KL penalty is the one-sided gate with the ratio, standardized within groups",
        ),
    )
    smoke = Smoke(
        "vowels",
        96,
        {
            "model": "tiny",
            "batch_prompts": 4,
            "samples_per_prompt": 4,
            "sync_interval": 2,
            "lr": 1e-2,
            "policy.max_tokens": 4,
            "surrogate": "rec-one-side-is",
            "restraint": "k2",
        },
        {"pool": 64, "score_truncated": True},
    )
