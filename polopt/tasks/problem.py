"""What a text task asks, and help with it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any, Protocol

Message = dict[str, Any]
Prompt = str | list[Message]


@dataclass(frozen=True)
class Problem:
    """One problem: what is asked, and what is known about it.

    Attributes:
        prompt: plain text, or messages (`{"role": ..., "content": ...}`).
        answer: the right answer, when there is a single one.
        solution: the worked solution that supervised fine-tuning imitates; it ends with the answer.
        hint: the beginning of the solution, or None.
        level: difficulty, comparable within a task.
        columns: what reward functions get besides prompt and completion, by name.
        key: what makes two problems the same one; equal keys are never split between training and evaluation.
        given: the beginning of the answer where the prompt shows it; what is judged is this and what is written.
    """

    prompt: Prompt
    answer: str | None = None
    solution: str | None = None
    hint: str | None = None
    level: int = 0
    columns: dict[str, Any] = field(default_factory=dict)
    key: str = ""
    given: str = ""


class Ladder(Protocol):
    """Help of increasing `levels`, 1 and up: `climb` gives the problem with the help of one of them.

    `seed` tells problems apart: whatever is drawn for one is the same every time. Raises UsageError for a problem
    that there is no help for.
    """

    @property
    def levels(self) -> int: ...

    def climb(self, problem: Problem, level: int, seed: str) -> Problem: ...


def code_of(answer: str) -> int:
    """A number of 63 bits that stands for an answer, 0 for an empty one."""
    return int.from_bytes(hashlib.blake2b(answer.encode(), digest_size=8).digest()) >> 1 if answer else 0
