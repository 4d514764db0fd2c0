"""Long answers of which every step is easy: where a map leads from a state, again and again."""

from __future__ import annotations

import random
from typing import Any

from polopt.core.errors import UsageError
from polopt.tasks.generated import GeneratedTask
from polopt.tasks.options import number, whole
from polopt.tasks.problem import Problem
from polopt.tasks.problems import LETTERS


class Orbit(GeneratedTask):
    """Maps between states, the letters from a on, that nobody is told: "2g:" is answered by where map 2 leads from g,
    from there, and so on, `level` letters. Only a whole answer is right, so a policy that knows a step with
    probability p is right with p^level, and one that is shown the beginning of an answer much more often.

    Every pair of a map and a state is a problem, in an order drawn from the seed; with `heldout` each eighth of them is
    for evaluation. Problem i is pair i modulo their number.

    Args:
        maps, states: how many; the maps are permutations, the same for every seed.
        noise: the share of the letters of worked solutions that are drawn at random, anew for every id; a solution
            goes on from there.
    """

    default_levels = (16, 16)
    level_range = (1, 200)

    def __init__(self, *args: Any, maps: int = 4, states: int = 16, noise: float = 0.0, **options: Any) -> None:
        maps, states = whole("maps", maps, 1, 10), whole("states", states, 2, len(LETTERS))
        self.noise = number("noise", noise)
        if not 0 <= self.noise < 1:
            raise UsageError(f"noise is a share below 1, not {noise!r}")
        self.letters = LETTERS[:states]
        rng = random.Random(f"orbit/{maps}/{states}")
        self.maps = [dict(zip(self.letters, rng.sample(self.letters, states))) for _ in range(maps)]
        super().__init__(*args, **options)
        pairs = [(index, letter) for index in range(maps) for letter in self.letters]
        random.Random(f"orbit/{self.seed}").shuffle(pairs)
        if self.heldout:
            if len(pairs) < 8:
                raise UsageError(f"{maps} maps of {states} states are too few to hold an eighth of them out")
            pairs = pairs[::8] if self.evaluation else [pair for place, pair in enumerate(pairs) if place % 8]
        self.pairs = pairs

    def drawn(self, index: int) -> Problem:
        which, start = self.pairs[index % len(self.pairs)]
        rng = random.Random(f"{self.spec.name}/{self.seed}/{int(self.evaluation)}/{index}")
        level = rng.randint(*self.levels)
        right, told = self.path(which, start, level), self.path(which, start, level, rng)
        return Problem(f"{which}{start}:", right, told, told[:1], level, key=f"{which}{start}")

    def path(self, which: int, state: str, length: int, noise: random.Random | None = None) -> str:
        """The `length` states behind `state`, with the task's noise where it is given."""
        found = ""
        for _ in range(length):
            astray = noise is not None and self.noise > 0 and noise.random() < self.noise
            state = noise.choice(self.letters) if noise is not None and astray else self.maps[which][state]
            found += state
        return found

    def verify(self, problem: Problem, text: str) -> float:
        return float(text.strip() == problem.answer)
