"""What a language policy answers to held-out prompts: rewards, accuracy, lengths, and the texts themselves."""

from __future__ import annotations

from typing import Any

import torch

from polopt.core.random import paired
from polopt.data.components import means, tally
from polopt.data.prompt_groups import PromptGroups
from polopt.tasks.base import Task

SHOWN = 8  # transcripts that are kept of an evaluation


def evaluate_completions(
    actor: Any, task: Task, prompts: int = 64, *, samples: int = 1, greedy: bool = True
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Completes the same `prompts` problems at every call, `samples` times each; (scores, transcripts).

    Scores: `return` (mean reward), `return_std` (over completions), `accuracy` (share that the task's verifier calls
    correct), `length` (mean number of sampled tokens), `truncated` (share cut at the token limit), and with several
    samples `pass` (share of prompts with at least one correct completion). Completions whose reward could not be
    computed are left out. With reward functions, each by itself (`polopt.data.components.means`), over the completions
    that it gave a number. The global random state is put back afterwards.
    """
    with paired():
        batch = PromptGroups(task, prompts, samples, starts=range(prompts), greedy=greedy).next(actor)
    scored = ~batch["failed"]
    reward = batch["reward"][scored].double()
    correct = batch["correct"].double()
    scores = {
        "return": reward.mean().item(),
        "return_std": reward.std(correction=0).item(),
        "accuracy": correct[scored].mean().item(),
        "length": batch["mask"].sum(1)[scored].double().mean().item(),
        "truncated": batch["truncated"][scored].double().mean().item(),
    }
    if samples > 1:
        scores["pass"] = correct.reshape(prompts, samples).amax(1).mean().item()
    names = task.spec.info.get("components", ())
    scores |= means(tally(batch, names))
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
        record, _ = actor.act([problem.prompt for problem in problems], greedy=greedy)
    texts = zip(actor.decode(record["prompt"], record["prompt_mask"]), actor.env_action(record["action"]))
    return [{"prompt": prompt, "completion": text, "reward": None, "correct": False} for prompt, text in texts]
