"""Tiny runs, one for each kind of source, and what they must end with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import polopt
from polopt.training.folder import Run

TINY: dict[str, tuple[str, dict[str, Any]]] = {
    "sac": (
        "Pendulum-v1",
        {"steps": 48, "warmup": 24, "batch_size": 16, "network.sizes": (8,), "replay_size": 40, "checkpoint_every": 8}
        | {"eval_every": 24},
    ),
    "ppo": (
        "CartPole-v1",
        {
            "steps": 96,
            "envs": 2,
            "window": 8,
            "minibatches": 2,
            "epochs": 1,
            "network.sizes": (8,),
            "normalize_obs": True,
            "checkpoint_every": 16,
            "eval_every": 32,
        },
    ),
    "bc": (
        "CartPole-v1",
        {
            "steps": 12,
            "demonstrations": "random",
            "random_episodes": 2,
            "batch_size": 8,
            "network.sizes": (8,),
            "checkpoint_every": 2,
            "eval_every": 6,
        },
    ),
    "bc-ppo": (
        "CartPole-v1",
        {
            "steps": 64,
            "envs": 2,
            "window": 8,
            "minibatches": 2,
            "epochs": 1,
            "network.sizes": (8,),
            "bc_updates": 3,
            "critic_warmup": 1,
            "bc": {"demonstrations": "random", "random_episodes": 2, "batch_size": 8},
            "checkpoint_every": 16,
            "eval_every": 32,
        },
    ),
    "rec": (
        "vowels",
        {
            "model": "tiny",
            "steps": 48,
            "batch_prompts": 4,
            "samples_per_prompt": 2,
            "sync_interval": 2,
            "lr": 1e-2,
            "policy.max_tokens": 4,
            "checkpoint_every": 8,
            "eval_every": 24,
        },
    ),
    "sft": (
        "addition",
        {"model": "tiny", "steps": 8, "batch_size": 4, "policy.max_tokens": 4, "checkpoint_every": 2, "eval_every": 4},
    ),
    "dpo": (
        "addition",
        {
            "model": "tiny",
            "steps": 8,
            "pairs": 10,
            "batch_size": 4,
            "policy.max_tokens": 4,
            "checkpoint_every": 2,
            "eval_every": 4,
        },
    ),
}
"""Replay that wraps around, rollouts with a normalizer, samples of fixed data, two stages; for language models groups
of completions by a stale sampler, demonstrations as they are drawn, and epochs over pairs."""

TASK_OPTIONS: dict[str, dict[str, Any]] = {"rec": {"pool": 10, "score_truncated": True}}


def settings(name: str, **changes: Any) -> dict[str, Any]:
    return {"seed": 3, "loggers": (), "eval_episodes": 1} | TINY[name][1] | changes


def train(name: str, out: Path, **changes: Any) -> Run:
    return polopt.train(name, TINY[name][0], out=out, task_options=TASK_OPTIONS.get(name), **settings(name, **changes))


def command(name: str, out: Path, **changes: Any) -> list[str]:
    """The same run as words of the command line."""
    words = ["train", name, "--task", TINY[name][0], "--out", str(out)]
    for key, value in TASK_OPTIONS.get(name, {}).items():
        words += [f"--task.{key}", json.dumps(value)]
    for key, value in _flat(settings(name, **changes)).items():
        flag = "--" + key.replace("_", "-")
        if isinstance(value, bool):
            words.append(flag if value else "--no-" + flag[2:])
        elif isinstance(value, tuple):
            words += [flag, *map(str, value)]
        else:
            words += [flag, str(value)]
    return words


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def final_state(folder: Path) -> dict[str, Any]:
    """All that the last checkpoint holds, without the time it took."""
    checkpoints = Run(folder).checkpoints
    state = checkpoints.load(checkpoints.steps()[-1])
    return {path: leaf for path, leaf in state.items() if path != "#seconds"}


def same(one: Any, other: Any) -> bool:
    """Bitwise equality of leaves of a checkpoint."""
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return one == other


def differing(one: dict[str, Any], other: dict[str, Any], *, ignore: tuple[str, ...] = ()) -> list[str]:
    """Paths at which two states differ."""
    paths = sorted((one.keys() | other.keys()) - set(ignore))
    return [path for path in paths if path not in one or path not in other or not same(one[path], other[path])]
