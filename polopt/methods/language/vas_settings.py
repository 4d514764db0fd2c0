"""What VAS says of itself besides its mathematics: metrics, presets, smoke run."""

from polopt.bases.method import Settings, Smoke


class VASSettings(Settings):
    headline = ("reward", "accuracy", "informative", "pass_rate", "completion_length")
    trains_on = "a pool of prompts"
    probes = {
        "diversity": {"diversity_weight": 1.0},
        "momentum": {"rescore_every": 1},
        "outcome_weight": {"outcome_weight": 0.0},
    }
    metrics = {
        "pass_rate": "share of right answers while prompts are scored | rises",
        "varied": "share of the scored prompts whose answers are neither all right nor all wrong",
        "waiting": "share of the pool that is still to be scored | 0 when weights are made",
    }
    presets = {
        "mixed": {"outcome_weight": 0.8, "diversity_weight": 0.2},
        "paper": {"model": "Qwen/Qwen2.5-7B-Instruct", "policy.temperature": 0.6, "policy.max_tokens": 8192},
        "small": {
            "batch_prompts": 16,
            "rescore_every": 25,
            "lr": 1e-4,
            "reference_kl": None,
            "policy.max_tokens": 32,
        },
    }
    smoke = Smoke(
        "vowels",
        384,
        {
            "model": "tiny",
            "batch_prompts": 4,
            "samples_per_prompt": 4,
            "updates_per_batch": 2,
            "scoring_samples": 2,
            "rescore_every": 2,
            "right_at": 0.3,
            "lr": 1e-2,
            "policy.max_tokens": 4,
        },
        {"pool": 16, "score_truncated": True},
    )
