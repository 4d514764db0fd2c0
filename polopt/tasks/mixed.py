"""Several text tasks as one: skills side by side, easy problems among hard ones."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from polopt.core.errors import UsageError
from polopt.tasks.named import is_text, own_class
from polopt.tasks.options import number, shares_of
from polopt.tasks.problem import Message, Problem, Prompt
from polopt.tasks.text import TextTask

PART = "part"


class Mixed(TextTask):
    """Problems of several text tasks in one pool: "addition:1*3,addition:4,sorting:5" has three of five from additions
    of one digit. Problem i is problem i of the part that was drawn for it; its part judges it.

    Reward functions get the number of the part as the column `part`. With files among the parts their problems are
    taken again and again.

    Args:
        parts: "NAME:LEVELS*SHARE", of which LEVELS ("2" or "1-4") and SHARE (1) may be left out, with commas between;
            or mappings {"task": NAME, "share": SHARE} with the options of each task beside.
    """

    def __init__(
        self,
        num: int = 1,
        seed: int = 0,
        evaluation: bool = False,
        name: str = "mixed",
        *,
        parts: str | Sequence[Mapping[str, Any]] = "addition:1,addition:3",
        **options: Any,
    ) -> None:
        super().__init__(num, seed, evaluation, name, **options)
        self.parts: list[TextTask] = []
        self.shares: list[float] = []
        for part in _told(parts):
            own = {key: value for key, value in part.items() if key not in ("task", "share")}
            which = part.get("task")
            if not isinstance(which, str) or not is_text(which) or which == name:
                raise UsageError(f"a part of a mixed task is a text task by its name, not {which!r}")
            made: Any = own_class(which).make(which, 1, seed, evaluation, **({"heldout": self.heldout} | own))
            if made.turns > 1 or made.rewards is not None:
                raise UsageError("the parts of a mixed task have one turn, and rewards belong to the whole")
            self.parts.append(made)
            self.shares.append(number("share", part.get("share", 1.0)))
        if not self.parts or min(self.shares) <= 0:
            raise UsageError("a mixed task has parts, each with a share above 0")
        if len({part.conversational for part in self.parts}) > 1:
            raise UsageError("the prompts of a mixed task are all texts or all messages")
        self.conversational = self.conversational or self.parts[0].conversational
        self.spec.info["conversational"] = self.conversational
        self.scores = self.rewards is not None or all(part.scores for part in self.parts)
        self.verifiable = all(part.verifiable for part in self.parts)
        if self.rewards is not None:
            self.rewards.check({"answer", "solution", "level", PART})

    def problem(self, index: int) -> Problem:
        draw = random.Random(f"mixed/{self.seed}/{int(self.evaluation)}/{index}")
        part = draw.choices(range(len(self.parts)), self.shares)[0]
        problem = self.parts[part].problems([index])[0]
        return replace(problem, columns={**problem.columns, PART: part})

    def verify(self, problem: Problem, text: str) -> float:
        return self.parts[problem.columns[PART]].verify(problem, text)

    def extract(self, problem: Problem, text: str) -> str:
        return self.parts[problem.columns[PART]].extract(problem, text)

    def expert(self, problem: Problem, transcript: list[Message]) -> str:
        return self.parts[problem.columns[PART]].expert(problem, transcript)

    def preferences(self, indices: Sequence[int]) -> list[tuple[Prompt, str, str]]:
        pairs = []
        for index, problem in zip(self._within(indices), self.problems(indices)):
            ((_, *answers),) = self.parts[problem.columns[PART]].preferences([index])
            pairs.append((problem.prompt, *answers))
        return pairs

    def _within(self, indices: Sequence[int]) -> list[int]:
        return [int(index) if self.pool is None else int(index) % self.pool for index in indices]


def _told(parts: Any) -> list[Mapping[str, Any]]:
    if not isinstance(parts, str):
        if not isinstance(parts, (list, tuple)) or not all(isinstance(part, Mapping) for part in parts):
            raise UsageError(f"parts are a text such as addition:1,sorting:4*2, or mappings, not {parts!r}")
        return list(parts)
    told: list[Mapping[str, Any]] = []
    for text, share in zip(*shares_of("parts", parts)):
        task, _, levels = text.partition(":")
        told.append({"task": task, "share": share} | ({"levels": levels} if levels else {}))
    return told
