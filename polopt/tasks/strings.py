"""Strings that are few enough to enumerate: what a policy writes, and what it should write, are known exactly."""

from __future__ import annotations

import itertools
import math
import random
import re
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from polopt.core.errors import UsageError
from polopt.tasks.options import number, whole
from polopt.tasks.problem import Problem
from polopt.tasks.text import TextTask

LETTERS = "abcdefghijklmnopqrstuvwxyz"
MOST = 1 << 18  # strings that are enumerated
ROWS = 2048  # of them that a policy scores at once


class Strings(TextTask):
    """`length` of the first `letters` letters, with a pattern in them: "abc:" is answered by "dabcab", for one.

    Problem i asks for the pattern i modulo their number; give `pool` as many as there are patterns where prompts are to
    come again. Worked solutions are strings of a language in which a pattern is as rare as it is: a Markov chain, the
    same for every seed, whose first letter is any. A model that imitates them writes such strings, knows of no pattern,
    and can learn it from rewards. Every pattern is asked in training and in evaluation.

    Args:
        patterns: regular expressions, one or several, of which each is a prompt; right is a string with a match in it.
        skew: how far the language is from letters that are all equally likely, 0: not at all.
    """

    def __init__(
        self,
        *args: Any,
        letters: int = 4,
        length: int = 6,
        patterns: Any = "abc",
        skew: float = 0.5,
        heldout: Any = False,
        **options: Any,
    ) -> None:
        self.letters = LETTERS[: whole("letters", letters, 2, len(LETTERS))]
        self.length = whole("length", length, 1, 18)
        if letters**length > MOST:
            raise UsageError(
                f"{letters} letters make more than {MOST:,} strings of length {length}, which are too many"
            )
        if heldout is not False:
            raise UsageError("heldout has no effect on strings: every pattern is asked in training and in evaluation")
        given = list(patterns) if isinstance(patterns, (list, tuple)) else [patterns]
        self.patterns = [_pattern(each) for each in given]
        if not given:
            raise UsageError("strings needs a pattern at least")
        rng = random.Random(f"strings/{letters}")
        weights = [[math.exp(number("skew", skew) * rng.gauss(0, 1)) for _ in self.letters] for _ in self.letters]
        self.next_letter = dict(zip(self.letters, weights))
        super().__init__(*args, heldout=heldout, **options)

    def problem(self, index: int) -> Problem:
        pattern = self.patterns[index % len(self.patterns)]
        rng = random.Random(f"{self.spec.name}/{self.seed}/{int(self.evaluation)}/{index}")
        text = rng.choice(self.letters)
        while len(text) < self.length:
            text += rng.choices(self.letters, self.next_letter[text[-1]])[0]
        return Problem(f"{pattern}:", None, text, columns={"pattern": pattern}, key=pattern)

    def verify(self, problem: Problem, text: str) -> float:
        ours = len(text) == self.length and set(text) <= set(self.letters)
        return float(ours and re.search(problem.columns["pattern"], text) is not None)

    # What is exact

    @cached_property
    def strings(self) -> list[str]:
        """All S strings, in alphabetical order."""
        return ["".join(each) for each in itertools.product(self.letters, repeat=self.length)]

    @cached_property
    def language(self) -> Tensor:
        """Log-probabilities [S] of the strings as worked solutions."""
        chances = torch.tensor(list(self.next_letter.values()), dtype=torch.float64)
        chances = (chances / chances.sum(1, keepdim=True)).log()
        found = torch.full((len(self.letters),), -math.log(len(self.letters)), dtype=torch.float64)
        for _ in range(self.length - 1):
            found = (found.reshape(-1, len(self.letters), 1) + chances).flatten()
        return found

    def right(self, index: int) -> Tensor:
        """What the verifier gives, for problem `index`, to each string and to whatever else may be written [S + 1]."""
        (problem,) = self.problems([index])
        return torch.tensor([self.verify(problem, text) for text in self.strings] + [0.0], dtype=torch.float64)

    @torch.no_grad()
    def distribution(self, policy: Any, index: int) -> Tensor:
        """Log-probabilities [S + 1] with which a language policy answers problem `index` by each of the strings, and,
        last, by anything else, which is one outcome.

        They end where the policy ends a turn, or at `max_tokens`, if that is `length`. Raises UsageError for a model
        whose tokens are not single letters, or that may not write so many.
        """
        (problem,) = self.problems([index])
        length, room = self.length, policy.config.max_tokens
        tokens = length + (room > length)  # with its end
        found = []
        for start in range(0, len(self.strings), ROWS):
            texts = self.strings[start : start + ROWS]
            rows = policy.tokenize([problem.prompt] * len(texts), texts, eos=room > length)
            if room < length or (rows["mask"].sum(1) != tokens).any():
                raise UsageError(f"strings of {length} letters need max_tokens {length} and a token per letter")
            found.append(policy.log_prob(rows).double().sum(1).cpu())
        strings = torch.cat(found)
        written = strings.logsumexp(0).clamp_max(-1e-15)
        return torch.cat((strings, torch.log(-torch.expm1(written)).reshape(1)))


def _pattern(text: Any) -> str:
    try:
        re.compile(text)
    except (re.error, TypeError):
        raise UsageError(f"a pattern is a regular expression, not {text!r}") from None
    return str(text)
