"""Text tasks whose problems are drawn from a seed and their number, by level of difficulty."""

from __future__ import annotations

import random
import zlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from polopt.core.errors import UsageError
from polopt.tasks.options import flag, levels_of, share
from polopt.tasks.problem import Problem, Prompt
from polopt.tasks.styles import Styles
from polopt.tasks.text import TextTask


class GeneratedTask(TextTask):
    """Problems drawn from (seed, index): a subclass gives `draw` and the range of its levels.

    Levels are uniform over `levels` = (low, high), both included. With `heldout`, an eighth of all problems, chosen by
    a checksum of `Problem.key`, belongs to evaluation and the rest to training, whatever the seeds. Where a level has
    too few problems for that (none is found in 200 draws) the last draw is taken; without `heldout` evaluation only
    draws with other seeds.

    Args:
        levels: (low, high), or one number for both.
        scratchpad: solutions show their steps; otherwise they are the plain answer.
        style: how solutions are written, names of `polopt.tasks.styles.STYLES` with shares ("plain*1,steps*3"); the
            style of a problem is its column `style`.
        wrong: the share of solutions whose answer is wrong.
    """

    default_levels: tuple[int, int] = (1, 1)
    level_range: tuple[int, int] = (1, 1)
    level_name: str = "levels"

    def __init__(
        self,
        num: int = 1,
        seed: int = 0,
        evaluation: bool = False,
        name: str = "this task",
        *,
        levels: Any = None,
        scratchpad: bool = True,
        style: str | Sequence[str] | None = None,
        wrong: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(num, seed, evaluation, name, **options)
        self.heldout = flag("heldout", self.heldout)
        self.levels = levels_of("levels", levels, self.level_range) if levels is not None else self.default_levels
        self.scratchpad = flag("scratchpad", scratchpad)
        if style is not None and not scratchpad:
            raise UsageError("scratchpad false is the style plain: give one of them")
        styled = style is not None or share("wrong", wrong) > 0
        usual = "steps" if scratchpad else "plain"
        self.styles = Styles(style if style is not None else usual, wrong) if styled else None
        if self.rewards is not None:
            self.rewards.check({"answer", "solution", "level"} | ({"style"} if self.styles else set()))

    def draw(self, rng: random.Random, level: int) -> Problem:
        """One problem of this level."""
        raise NotImplementedError  # abstract

    def problem(self, index: int) -> Problem:
        problem = self.drawn(index)
        if self.styles is None or problem.solution is None:
            return problem
        rng = random.Random(f"style/{self.spec.name}/{self.seed}/{int(self.evaluation)}/{index}")
        *steps, answer = problem.solution.split(";")
        solution, style = self.styles.write(steps, answer, rng)
        return replace(problem, solution=solution, columns={**problem.columns, "style": style})

    def drawn(self, index: int) -> Problem:
        """Problem number `index`, its solution in the usual style."""
        rng = random.Random(f"{self.spec.name}/{self.seed}/{int(self.evaluation)}/{index}")
        level = rng.randint(*self.levels)
        problem = self.draw(rng, level)
        if self.heldout:
            for _ in range(200):
                if (zlib.crc32(problem.key.encode()) % 8 == 0) == self.evaluation:
                    break
                problem = self.draw(rng, level)
        return problem

    def preferences(self, indices: Sequence[int]) -> list[tuple[Prompt, str, str]]:
        """(prompt, its worked solution, the worked solution of the next problem with another answer) of these ids."""
        pairs = []
        for index in indices:
            problem = self.problems([index])[0]
            others = (self.problems([index + step])[0] for step in range(1, 100))
            other = next((other for other in others if other.answer != problem.answer), None)
            if problem.solution is None or other is None or other.solution is None:
                raise UsageError(
                    f"{self.spec.name} has no wrong answer to set against the right one of problem {index}"
                )
            pairs.append((problem.prompt, problem.solution, other.solution))
        return pairs

    def made(self, prompt: str, steps: list[str], answer: str, level: int, key: str) -> Problem:
        """A problem whose worked solution is `steps`, then the answer, separated by semicolons."""
        solution = ";".join([*steps, answer]) if self.scratchpad else answer
        return Problem(prompt, answer, solution, steps[0] if steps else None, level, key=key)

    def extract(self, problem: Problem, text: str) -> str:
        return final(text)

    def verify(self, problem: Problem, text: str) -> float:
        return float(final(text) == problem.answer)


def final(text: str) -> str:
    """What a text ends with: after the last semicolon of its last line that is not blank, without blanks around it."""
    lines = text.strip().splitlines()
    return lines[-1].rsplit(";", 1)[-1].strip() if lines else ""
