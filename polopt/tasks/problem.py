"""What a text task asks, and help with it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
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
        plain: the prompt before anything was put around it, where something was: see `question`.
    """

    prompt: Prompt
    answer: str | None = None
    solution: str | None = None
    hint: str | None = None
    level: int = 0
    columns: dict[str, Any] = field(default_factory=dict)
    key: str = ""
    given: str = ""
    plain: Prompt | None = None

    @property
    def question(self) -> str:
        """What is asked, as the task has written it: the last words of a prompt of messages."""
        prompt = self.prompt if self.plain is None else self.plain
        return prompt if isinstance(prompt, str) else str(prompt[-1]["content"])


class Ladder(Protocol):
    """Help of increasing `levels`, 1 and up: `climb` gives the problem with the help of one of them.

    `seed` tells problems apart: whatever is drawn for one is the same every time. Raises UsageError for a problem
    that there is no help for.
    """

    @property
    def levels(self) -> int: ...

    def climb(self, problem: Problem, level: int, seed: str) -> Problem: ...


def opening(problem: Problem) -> list[Message]:
    """The messages with which a conversation about a problem begins."""
    if isinstance(problem.prompt, str):
        return [{"role": "user", "content": problem.prompt}]
    return list(problem.prompt)


def as_written(problem: Problem, transcript: list[Message]) -> list[Message]:
    """A conversation about a problem as the task would have begun it, without what was put around its prompt."""
    if problem.plain is None:
        return transcript
    return [*opening(replace(problem, prompt=problem.plain)), *transcript[len(opening(problem)) :]]


@dataclass(frozen=True)
class Around:
    """What is put around every prompt of a task.

    Attributes:
        system: a system message before it, in place of one that is there. The prompt becomes messages.
        instruction: a text behind what the user says, on a line of its own.
        chat: a prompt that is a text becomes a user's message, so that the model's chat template writes it.
    """

    system: str | None = None
    instruction: str | None = None
    chat: bool = False

    @property
    def conversational(self) -> bool:
        """Whether prompts become messages."""
        return self.chat or self.system is not None

    def __call__(self, problem: Problem) -> Problem:
        if not self.conversational and not self.instruction:
            return problem
        prompt = problem.prompt
        if isinstance(prompt, str) and not self.conversational:
            return replace(problem, prompt=f"{prompt}\n{self.instruction}", plain=problem.prompt)
        messages = opening(problem)
        if self.system is not None:
            rest = messages[1:] if messages[0]["role"] == "system" else messages
            messages = [{"role": "system", "content": self.system}, *rest]
        last = max((place for place, one in enumerate(messages) if one["role"] == "user"), default=None)
        if self.instruction and last is not None:
            said = {**messages[last], "content": f"{messages[last]['content']}\n{self.instruction}"}
            messages = [*messages[:last], said, *messages[last + 1 :]]
        return replace(problem, prompt=messages, plain=problem.prompt)


def code_of(answer: str) -> int:
    """A number of 63 bits that stands for an answer, 0 for an empty one."""
    return int.from_bytes(hashlib.blake2b(answer.encode(), digest_size=8).digest()) >> 1 if answer else 0
