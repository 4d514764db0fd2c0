"""polopt's side of the language benchmarks, beside `peer_trl.py`.

Every job has `model`, a folder of `benchmarks.language_model`, and may have `micro_batch`, the rows of one backward
pass (by default all; fewer need less memory, and less time where activations outgrow the caches), `micro_tokens`, its
positions instead, and `compile`.

Equal on both sides: weights, texts, tokenizer, batch sizes, lengths, float32, AdamW without weight decay, gradients
clipped at norm 1, a constant learning rate, and for GRPO the reward, 8 completions a prompt, rewards standardized in
groups (mean / (std + 1e-4)), clip 0.2, means over sequences (`loss_type="grpo"` of TRL), no KL term, temperature 1, one
optimizer step a batch.

As TRL does where completions are used for one step, GRPO takes the log-probabilities of the sampler for the old ones
(`--policy.log-probs engine`; a job's `log_probs` may be "trainer", polopt's default, which scores them once more).
Not equal: polopt tokenizes SFT's texts batch by batch, TRL before training.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from language_shared import (
    DPO_PAIRS,
    OPTIMIZER,
    RATE_LR,
    SAMPLES,
    SFT_ROWS,
    STD_EPS,
    Clock,
    Lap,
    letter_share,
    read_problems,
)
from ours_shared import begun
from protocol import Job, Run

from polopt.evaluation.completions import evaluate_completions
from polopt.optim import optimizer
from polopt.tasks import make_task
from polopt.training.api import plan

GRPO = OPTIMIZER | {"samples_per_prompt": SAMPLES, "reference_kl": None, "baseline.std_eps": STD_EPS}


def build(method: str, task: str | Path, job: Job, task_options: dict[str, Any], **settings: Any) -> Any:
    threads = int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads()))
    settings |= {"model": job["model"], "threads": threads, "seed": job.get("seed", 0)}
    settings |= {name: job.get(name) for name in ("micro_batch", "micro_tokens")}
    built = begun(plan(method, str(task), task_options=task_options, **settings))
    if job.get("compile"):
        built.compile()
    return built


def step(method: Any) -> Any:
    batch = method.collect()
    method.update(batch)
    method.ledger.updates += 1
    return batch


def rate(method: Any, clock: Clock, tokens: Callable[[Any], Any], expected: int | None) -> Run:
    """Updates of `method`. Raises RuntimeError when one has other than `expected` tokens, unless that is None."""
    clock.watch("backward", optimizer, "backward")
    clock.watch("optimizer", method.optimizer, "_apply")

    def run(units: int) -> dict[str, float]:
        counts = [int(tokens(step(method))) for _ in range(units)]
        if expected is not None and set(counts) != {expected}:
            raise RuntimeError(f"updates had {set(counts)} tokens, not {expected}")
        return {"tokens": sum(counts), **clock.take()}

    run(2)
    return run


def grpo(job: Job) -> Run:
    """64 completions (`completions`) of exactly `length` tokens an update; `tokens` are those sampled."""
    completions, length = job.get("completions", 64), job.get("length", 16)
    method = build(
        "grpo",
        Path(job["model"]) / "grpo.jsonl",
        job,
        {"rewards": letter_share, "score_truncated": True, "heldout": False},
        batch_prompts=completions // SAMPLES,
        lr=RATE_LR,
        **GRPO,
        **{"policy.max_tokens": length, "policy.log_probs": job.get("log_probs", "engine")},
    )
    clock = Clock()
    clock.watch("generate", method.policy, "generate")
    clock.watch("score", method.task, "step")
    clock.watch("log_prob", method.policy, "_score")
    clock.watch("log_prob", method, "policy_loss")
    return rate(method, clock, lambda batch: batch["mask"].sum(), completions * length)


def sft(job: Job) -> Run:
    """32 sequences an update of 64 tokens, 48 of them learned, or, where the job says `ragged`, of mixed lengths;
    `tokens` are those learned."""
    ragged = job.get("ragged", False)
    file = Path(job["model"]) / ("sft-ragged.jsonl" if ragged else "sft.jsonl")
    method = build("sft", file, job, {"heldout": False}, batch_size=SFT_ROWS, lr=RATE_LR, **OPTIMIZER)
    clock = Clock()
    clock.watch("log_prob", method, "imitation_loss")
    return rate(method, clock, lambda batch: batch["mask"].sum(), None if ragged else SFT_ROWS * 48)


def dpo(job: Job) -> Run:
    """16 pairs an update of completions of 64 tokens; the reference is scored with every batch."""
    folder = Path(job["model"])
    method = build("dpo", folder / "dpo.jsonl", job, {"heldout": False}, batch_size=DPO_PAIRS, lr=RATE_LR, **OPTIMIZER)
    clock = Clock()
    clock.watch("log_prob", method, "score_reference")
    clock.watch("log_prob", method, "policy_loss")
    sides = ("chosen", "rejected")
    return rate(method, clock, lambda batch: sum(batch[side, "mask"].sum() for side in sides), 2 * DPO_PAIRS * 64)


def grpo_curve(job: Job) -> Iterator[dict]:
    """GRPO on `task` for `minutes` of training; every `every` seconds greedy accuracy on 256 held-out problems.

    Problems to train on are drawn without end by the generator that has drawn TRL's 20,000; those held out are equal.
    """
    problems = read_problems(job["model"])
    prompts, heldout = job.get("prompts", 16), len(problems["heldout"])
    method = build(
        "grpo",
        job["task"],
        job,
        {},
        batch_prompts=prompts,
        lr=job["lr"],
        **GRPO,
        **{"policy.max_tokens": problems["max_tokens"], "policy.log_probs": job.get("log_probs", "engine")},
    )
    task: Any = make_task(job["task"], seed=problems["seed"], evaluation=True)
    drawn = [problem.prompt for problem in task.problems(range(heldout))]
    if problems["task"] != job["task"] or drawn != [problem["prompt"] for problem in problems["heldout"]]:
        raise RuntimeError(f"{job['model']} holds other problems than those of {job['task']} here")
    lap, completions = Lap(job["minutes"], job.get("every", 20)), 0
    while True:
        if lap.due:
            scores, _ = evaluate_completions(method.policy, task, heldout)
            yield lap.row(completions, scores["accuracy"])
        if lap.over:
            return
        lap.start()
        completions += len(step(method))
        lap.stop()


CASES: dict[str, Callable] = {"grpo": grpo, "sft": sft, "dpo": dpo, "grpo-curve": grpo_curve}
