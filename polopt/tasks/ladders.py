"""Help with the problems of a text task: beginnings of their worked solutions, and hints.

`task.with_ladder(Cuts((0.25, 0.5)))` has three ids for every problem: as it stands, with a quarter and with half of
its solution. What is shown is prompt, which nothing is learned of, and what is judged is `given` and what is written.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from polopt.core.errors import UsageError
from polopt.tasks.options import number
from polopt.tasks.problem import Ladder, Problem, Prompt

PIECES: dict[str, str] = {"character": r"(?s).", "step": r"[^;\n]*[;\n]?", "line": r"[^\n]*\n?"}
PARTIAL = "{prompt}\nHere is the beginning of a solution. Go on from where it stops.\n{given}"
HINT = "{prompt}\nHint: {hint}\n"


def beginning(text: str, fraction: float, piece: str) -> str:
    """The first `fraction` of the pieces of a text, rounded down, but one of them at least, and never all."""
    pieces = [part for part in re.findall(PIECES[piece], text) if part]
    count = min(max(int(fraction * len(pieces) + 1e-9), 1), len(pieces) - 1)
    return "".join(pieces[:count])


def opened(prompt: Prompt, given: str) -> Prompt:
    """A prompt that the answer has begun already, with the text `given`."""
    if isinstance(prompt, str):
        return prompt + given
    *before, last = prompt
    if last["role"] == "assistant":
        return [*before, {**last, "content": last["content"] + given}]
    return [*prompt, {"role": "assistant", "content": given}]


def rewritten(prompt: Prompt, words: str, **texts: str) -> Prompt:
    """A prompt whose text, or the last one of the user, is `words` with that text for {prompt}, and with others."""
    if isinstance(prompt, str):
        return words.format(prompt=prompt, **texts)
    place = max(index for index, message in enumerate(prompt) if message["role"] == "user")
    told = {**prompt[place], "content": words.format(prompt=prompt[place]["content"], **texts)}
    return [*prompt[:place], told, *prompt[place + 1 :]]


def check_words(words: str, name: str, **others: str) -> None:
    """Raises UsageError for a text that does not say where the prompt stands and where what is called `name` does, or
    that has more in braces than these and the `others`."""
    try:
        told = words.format(prompt="<prompt>", **{name: f"<{name}>"}, **others)
    except (LookupError, ValueError, AttributeError):
        told = ""
    if "<prompt>" not in told or f"<{name}>" not in told:
        raise UsageError(
            f"words have {{prompt}} and {{{name}}} in them, and braces of their own doubled: {{{{ and }}}}"
        )


@dataclass(frozen=True)
class Cuts:
    """Level j shows the share `fractions[j - 1]` of the worked solution.

    Attributes:
        fractions: in (0, 1), ascending; or a function that draws one from a `random.Random`, with `count` of them.
        piece: what is not cut through: character, step (to a semicolon or the end of a line) or line.
        words: None: the answer has begun so, in the turn of the assistant; else the prompt is this text, in which
            {prompt} and {given} stand for what they say (`PARTIAL` for one).
    """

    fractions: tuple[float, ...] | Callable[[random.Random], float]
    count: int = 0
    piece: str = "character"
    words: str | None = None
    levels: int = field(init=False)

    def __post_init__(self) -> None:
        drawn = callable(self.fractions)
        levels = self.count if drawn else len(self.fractions)  # type: ignore[arg-type]
        if levels < 1 or self.piece not in PIECES:
            raise UsageError(f"a ladder has at least one level, and pieces are {', '.join(PIECES)}")
        if not drawn:
            ascending: Any = self.fractions
            if any(not 0 < each < 1 for each in ascending) or list(ascending) != sorted(ascending):
                raise UsageError(f"the shares of a solution that are shown ascend between 0 and 1, not as {ascending}")
        if self.words is not None:
            check_words(self.words, "given")
        object.__setattr__(self, "levels", levels)

    def climb(self, problem: Problem, level: int, seed: str) -> Problem:
        if not problem.solution:
            raise UsageError("a problem without a worked solution has none to show the beginning of")
        if callable(self.fractions):
            fraction = self.fractions(random.Random(f"cut/{seed}/{level}"))
        else:
            fraction = self.fractions[level - 1]
        given = beginning(problem.solution, fraction, self.piece)
        prompt = problem.prompt
        shown = opened(prompt, given) if self.words is None else rewritten(prompt, self.words, given=given)
        return replace(
            problem, prompt=shown, given=problem.given + given, solution=problem.solution.removeprefix(given)
        )


def drawn_cut(shown: Any, words: str | None) -> Ladder | None:
    """One level, of a share of the solution drawn uniformly between the two numbers `shown`; None for None."""
    if shown is None:
        if words is not None:
            raise UsageError("words say how the beginning of a solution is shown, and shown says how much: give both")
        return None
    pair = [number("shown", each) for each in (shown if isinstance(shown, (list, tuple)) else [shown])]
    if len(pair) != 2 or not 0 <= pair[0] <= pair[1] <= 1:
        raise UsageError(f"shown is two shares of a solution, the lower first, between 0 and 1, not {shown!r}")
    return Cuts(lambda rng: rng.uniform(*pair), count=1, words=words)


@dataclass(frozen=True)
class Hints:
    """Level j shows the j-th of the hints that the column `column` of a problem holds, the last where there are fewer.

    `words` is the prompt then, in which {prompt} and {hint} stand for what they say.
    """

    levels: int
    column: str = "hints"
    words: str = HINT

    def __post_init__(self) -> None:
        if self.levels < 1:
            raise UsageError("a ladder has at least one level")
        check_words(self.words, "hint")

    def climb(self, problem: Problem, level: int, seed: str) -> Problem:
        hints = texts_of(problem, self.column)
        hint = hints[min(level, len(hints)) - 1]
        return replace(problem, prompt=rewritten(problem.prompt, self.words, hint=hint))


@dataclass(frozen=True)
class Tiers:
    """`parts` levels for each of the columns `columns`, lists of texts, of hints that say more and more: the first of
    them, the first two, and so on, and nothing of other columns.

    `words` is the prompt then, in which {prompt} and {hint} stand for what they say and {label} for the beginning of
    the column's name: the hints of knowledge_parts are labelled Knowledge.
    """

    columns: tuple[str, ...]
    parts: int = 4
    words: str = "{prompt}\n{label} hints: {hint}\n"

    def __post_init__(self) -> None:
        if not self.columns or self.parts < 1:
            raise UsageError("a ladder has at least one level")
        check_words(self.words, "hint", label="")

    @property
    def levels(self) -> int:
        return len(self.columns) * self.parts

    def climb(self, problem: Problem, level: int, seed: str) -> Problem:
        tier, last = divmod(level - 1, self.parts)
        hints, label = texts_of(problem, self.columns[tier]), self.columns[tier].partition("_")[0].capitalize()
        told = {"label": label, "hint": " ".join(hints[: last + 1])}
        return replace(problem, prompt=rewritten(problem.prompt, self.words, **told))


def texts_of(problem: Problem, column: str) -> list[str]:
    """The hints in a column of a problem. Raises UsageError for anything but texts, at least one."""
    hints = problem.columns.get(column)
    if not isinstance(hints, (list, tuple)) or not hints or not all(isinstance(each, str) for each in hints):
        raise UsageError(f"hints are a list of texts in the column '{column}', and a problem has {hints!r}")
    return list(hints)
