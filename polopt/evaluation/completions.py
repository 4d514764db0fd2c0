"""What a language policy answers to held-out prompts: rewards, accuracy, lengths, votes, and the texts themselves."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from polopt.core import signals
from polopt.core.batch import Batch, pieces
from polopt.core.random import paired
from polopt.data.base import to_env
from polopt.data.components import means, tally
from polopt.data.prompt_groups import PromptGroups
from polopt.evaluation.statistics import bootstrap, mean
from polopt.tasks.base import Task

SHOWN = 8  # transcripts that are kept of an evaluation
LEVELS = 10  # most levels of difficulty that are told apart
ROWS = 32  # completions whose entropies are computed at once


def pass_at(correct: Tensor, k: int) -> Tensor:
    """The chance [P] that one of k completions is correct, without bias: 1 - C(n - c, k) / C(n, k) of n with c right.

    `correct` [P, n] of P prompts. Chen et al., "Evaluating Large Language Models Trained on Code", 2021, equation 1.
    """
    right, n = correct.double().sum(1), correct.shape[1]
    if k > n:
        raise ValueError(f"pass@{k} needs {k} completions of a prompt, and there are {n}")
    places = torch.arange(n - k + 1, n + 1, dtype=torch.float64)  # C(n - c, k) / C(n, k) = prod (1 - c / place)
    return 1.0 - (1.0 - right.unsqueeze(1) / places).clamp_min(0.0).prod(1)


def majority(answer: Tensor, correct: Tensor) -> Tensor:
    """The chance [P] that the answer most completions give is right; among answers with equally many, one at random.

    `answer` [P, n] int64, equal for equal answers; 0 is none and votes for nothing. `correct` [P, n].
    """
    votes = ((answer.unsqueeze(2) == answer.unsqueeze(1)) & (answer != 0).unsqueeze(1)).double().sum(2)  # [P, n]
    winning = ((votes == votes.amax(1, keepdim=True)) & (answer != 0)).double()
    winning = winning / votes.clamp_min(1.0)  # each answer counts once
    return (winning * correct.double()).sum(1) / winning.sum(1).clamp_min(1.0)


@torch.no_grad()
def token_entropy(actor: Any, batch: Batch) -> dict[str, float]:
    """`entropy`: that of the policy, in nats, mean over the tokens that it decided; empty for one without a density."""
    tokens = int(batch["mask"].sum())
    if not hasattr(actor, "entropy") or not tokens:
        return {}
    total = 0.0
    for part in pieces(batch, ROWS):
        signals.check()
        total += actor.entropy(part).double().sum().item()
    return {"entropy": total / tokens}


def evaluate_completions(
    actor: Any, task: Task, prompts: int = 64, *, samples: int = 1, greedy: bool = True, intervals: bool = False
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Completes the same `prompts` problems at every call, `samples` times each; (scores, transcripts).

    Scores: `return` (mean reward), `return_std` (over completions), `accuracy` (share that the task's verifier calls
    correct), `accuracy/level_N` where there are several levels of difficulty, `length` (mean number of sampled tokens),
    `truncated` (share cut at the token limit) and `entropy` (of the policy at these tokens, in nats). With several
    samples of tasks that verify, also `pass@k` (the chance that one of k is correct) for k = 1, 2, 4, ... and `maj@n`
    (that the answer given most often is). With `intervals`, `NAME/low` and `NAME/high`: 95 % percentile bootstrap over
    prompts. Completions whose reward could not be computed are left out, and count as wrong in pass@k and maj@n. With
    reward functions, each by itself (`polopt.data.components.means`), over the completions that it gave a number. The
    global random state is put back afterwards.
    """
    with paired():
        batch = PromptGroups(task, prompts, samples, starts=range(prompts), greedy=greedy).next(actor)
    rows = {name: batch[name].reshape(-1, samples).cpu() for name in ("reward", "correct", "truncated", "failed")}
    rows |= {"length": batch["mask"].sum(1).reshape(-1, samples).cpu()}
    scored = (~rows["failed"]).double()
    count = scored.sum(1)

    def per_prompt(name: str) -> Tensor:
        return (rows[name].double() * scored).sum(1)

    each = {"return": per_prompt("reward"), "accuracy": per_prompt("correct"), "length": per_prompt("length")}
    each["truncated"] = per_prompt("truncated")
    scores = {name: float(value.sum() / count.sum()) for name, value in each.items()}
    scores["return_std"] = rows["reward"].double()[scored.bool()].std(correction=0).item()
    scores |= token_entropy(actor, batch)
    names = task.spec.info.get("components", ())
    scores |= means(tally(batch, names))
    level = batch["level"].reshape(-1, samples)[:, 0].cpu()
    levels = sorted(set(level.tolist()))
    if 1 < len(levels) <= LEVELS and getattr(task, "verifiable", False):
        for one in levels:
            there = level == one
            scores[f"accuracy/level_{one}"] = float(each["accuracy"][there].sum() / count[there].sum().clamp_min(1.0))
    chances: dict[str, Tensor] = {}
    if samples > 1 and getattr(task, "verifiable", False):
        answer = batch["answer"].reshape(-1, samples).cpu()
        counts = [2**power for power in range(samples.bit_length()) if 2**power < samples] + [samples]
        chances = {f"pass@{k}": pass_at(rows["correct"], k) for k in counts}
        chances[f"maj@{samples}"] = majority(answer, rows["correct"])
        scores |= {name: value.mean().item() for name, value in chances.items()}
    if intervals:
        there = count > 0
        chances |= {name: (value / count)[there] for name, value in each.items() if name != "truncated"}
        for name, value in chances.items():
            found = bootstrap(np.asarray(value), mean)
            if found.low is not None and found.high is not None:
                scores |= {f"{name}/low": found.low, f"{name}/high": found.high}
    first = slice(0, SHOWN * samples, samples)
    texts = zip(
        actor.decode(batch["prompt"][first], batch["prompt_mask"][first]),
        actor.decode(batch["completion"][first], batch["attention"][first], behind=True),
        batch["reward"][first].tolist(),
        batch["correct"][first].tolist(),
    )
    shown = [
        {"prompt": prompt, "completion": text, "reward": reward, "correct": right}
        for prompt, text, reward, right in texts
    ]
    for sample, row in zip(shown, batch[first] if names else ()):
        given = zip(names, row["components"].tolist(), row["component_known"].tolist())
        sample["components"] = {name: value if known else None for name, value, known in given}
    return scores, shown


@torch.no_grad()
def show_completions(actor: Any, task: Any, prompts: int = SHOWN, *, greedy: bool = True) -> list[dict[str, Any]]:
    """Transcripts of the first problems of a task that cannot score them: their reward is None."""
    problems = task.problems(range(min(prompts, SHOWN)))
    with paired():
        asked = [problem.prompt for problem in problems]
        record, _ = actor.act(asked, greedy=greedy)
    texts = zip(actor.decode(record["prompt"], record["prompt_mask"]), to_env(actor, asked, record["action"]))
    return [{"prompt": prompt, "completion": text, "reward": None, "correct": False} for prompt, text in texts]
