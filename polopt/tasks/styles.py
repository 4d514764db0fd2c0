"""How worked solutions are written: the same steps to the same answer, at once, at length, or in another notation."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from polopt.tasks.options import shares_of

LONGEST = 8  # times that a solution is written at most


def turned(step: str) -> str:
    """A step in another notation: "7+5=12" as "12=7+5"; one without an equals sign backwards."""
    return "=".join(reversed(step.split("="))) if "=" in step else step[::-1]


def again(steps: Sequence[str], rng: random.Random) -> list[str]:
    """All steps k times, where k is floor(u^(-1 / 1.5)) with u uniform, the largest 8: lengths with a heavy tail."""
    return list(steps) * min(int((1.0 - rng.random()) ** (-1 / 1.5)), LONGEST)


STYLES: dict[str, Callable[[Sequence[str], random.Random], list[str]]] = {
    "steps": lambda steps, rng: list(steps),
    "plain": lambda steps, rng: [],
    "turned": lambda steps, rng: [turned(step) for step in steps],
    "checked": lambda steps, rng: [each for step in steps for each in (step, turned(step))],
    "again": again,
}
"""The steps that are shown before the answer, by the name of the style."""


def spoiled(answer: str, rng: random.Random) -> str:
    """An answer with one letter or digit, drawn at random, in place of another of its kind."""
    places = [place for place, sign in enumerate(answer) if sign.isascii() and sign.isalnum()]
    if not places:
        return answer
    place = rng.choice(places)
    kind = "0123456789" if answer[place].isdigit() else "abcdefghijklmnopqrstuvwxyz"
    other = rng.choice([sign for sign in kind if sign != answer[place].lower()])
    return answer[:place] + other + answer[place + 1 :]


class Styles:
    """Solutions in several styles, each of a share of the problems.

    Args:
        value: names of `STYLES` with their shares, such as "plain*1,steps*3"; without shares they are equal.
        wrong: the share of solutions that end in a wrong answer.

    Raises UsageError for names that are none and shares that are not positive.
    """

    def __init__(self, value: str | Sequence[str], wrong: float = 0.0) -> None:
        self.names, self.shares = shares_of("style", value, STYLES)
        self.wrong = wrong

    def write(self, steps: Sequence[str], answer: str, rng: random.Random) -> tuple[str, str]:
        """(a solution, the name of its style)."""
        name = rng.choices(self.names, self.shares)[0]
        shown = STYLES[name](steps, rng)
        return ";".join([*shown, spoiled(answer, rng) if rng.random() < self.wrong else answer]), name
