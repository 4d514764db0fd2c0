"""A text task and an actor whose every token can be written down by hand: a token is the code of its character."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from polopt.tasks.problem import Message, Problem
from polopt.tasks.text import TextTask

EOS = 1


class Turns(TextTask):
    """Problem i says "q" and i, and takes 1 + i % `most` turns, the number of the turn being the feedback.

    The reward of a turn is the length of its text; "boom" makes the verifier raise.
    """

    def __init__(self, num: int = 1, most: int = 1, **options: Any) -> None:
        self.turns = most
        self.replies = 0
        super().__init__(num, name="turns", **options)

    def problem(self, index: int) -> Problem:
        return Problem(f"q{index}", level=index % 2, key=str(index))

    def reply(self, problem: Problem, transcript: list[Message], text: str) -> tuple[str | None, float, bool]:
        self.replies += 1
        if text == "boom":
            raise ValueError("no number")
        turn = sum(message["role"] == "assistant" for message in transcript)
        over = turn == int(problem.key) % self.turns
        return None if over else str(turn), float(len(text)), over


class Typist:
    """Answers a text with `answers[text]`, or with the text itself; cut after `max_tokens` without an end token.

    It remembers how often it has acted in a conversation, and records it.
    """

    def __init__(self, answers: dict[str, str] | None = None, max_tokens: int = 8) -> None:
        self.answers = answers or {}
        self.max_tokens = max_tokens
        self.seen: list[list[str]] = []

    def act(self, obs: Any, carry: Any = None, *, greedy: bool = False) -> tuple[dict[str, Tensor], Any]:
        assert not torch.is_grad_enabled()
        self.seen.append(list(obs))
        count = torch.zeros(len(obs), 1, dtype=torch.int64) if carry is None else carry["count"]
        texts = [self.answers.get(text, text) for text in obs]
        prompt, prompt_mask = codes([list(map(ord, text)) for text in obs], left=True)
        tokens = [[*map(ord, text), EOS][: self.max_tokens] for text in texts]
        action, mask = codes(tokens)
        log_prob = -action.to(torch.get_default_dtype()) / 100
        record = {
            "prompt": prompt,
            "prompt_mask": prompt_mask,
            "action": action,
            "mask": mask,
            "log_prob": log_prob,
            "engine_log_prob": 2 * log_prob,
            "ended": torch.tensor([row[-1] == EOS for row in tokens]),
            "acted": count.squeeze(1),
        }
        return record, {"count": count + 1}

    def env_action(self, action: Tensor) -> list[str]:
        return ["".join(chr(code) for code in row if code > EOS) for row in action.tolist()]

    def tokenize(self, prompts: list[Any], completions: list[str], eos: bool = True) -> TensorDict:
        prompt, prompt_mask = codes([list(map(ord, str(text))) for text in prompts], left=True)
        completion, mask = codes([[*map(ord, text), *[EOS] * eos] for text in completions])
        rows = {"prompt": prompt, "prompt_mask": prompt_mask, "completion": completion, "attention": mask, "mask": mask}
        return TensorDict(rows, batch_size=[len(prompts)])


def codes(rows: list[list[int]], left: bool = False) -> tuple[Tensor, Tensor]:
    """The rows padded with zeros to the longest, and where they are."""
    width = max(map(len, rows))
    ids = torch.zeros(len(rows), width, dtype=torch.int64)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for number, row in enumerate(rows):
        span = slice(width - len(row), width) if left else slice(0, len(row))
        ids[number, span] = torch.tensor(row, dtype=torch.int64)
        mask[number, span] = True
    return ids, mask
