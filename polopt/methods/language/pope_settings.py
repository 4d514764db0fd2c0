"""Presets of POPE, the meaning of its numbers, and its smoke run."""

from polopt.bases.method import Settings, Smoke


class POPESettings(Settings):
    headline = ("unguided_accuracy", "guided_accuracy", "informative", "shown", "completion_length")
    trains_on = "a pool of prompts with worked solutions"
    metrics = {
        "guided_accuracy": "of the completions of prompts with help | above 0 from the first step on, or there is "
        "nothing to learn from: raise `--max-fraction`",
        "unguided_accuracy": "of the completions of problems as they stand | rises after the guided one",
        "hard": "share of the pool that is trained on, as far as it is known",
        "shown": "mean share of the solutions that guided prompts show | the smaller, the better help carries over",
        "leaked": "share of guided prompts of which the help alone would be judged right | 0, or lower "
        "`--max-fraction`",
        "waiting": "share of the pool for which the search goes on",
    }
    presets = {
        "paper": {
            "model": "Qwen/Qwen3-4B-Instruct-2507",
            "search_samples": 128,
            "piece": "line",
            "policy.max_tokens": 16_384,
        },
        "small": {"lr": 1e-4, "policy.max_tokens": 32, "words": "{prompt}{given}", "max_fraction": 0.75},
    }
    smoke = Smoke(
        "vowels",
        128,
        {
            "model": "tiny",
            "batch_prompts": 4,
            "samples_per_prompt": 4,
            "updates_per_batch": 2,
            "max_fraction": 0.9,
            "search_samples": 2,
            "success": 0.5,
            "lr": 1e-2,
            "policy.max_tokens": 4,
        },
        {"pool": 6, "score_truncated": True},
    )
