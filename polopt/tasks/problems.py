"""Generated text tasks with verifiers, of adjustable difficulty, short in characters so that small models learn them.

Every worked solution is a few steps and the answer, separated by semicolons; only what follows the last semicolon of
the last line is judged.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from typing import Any

from polopt.core.errors import UsageError
from polopt.tasks.generated import GeneratedTask, final
from polopt.tasks.options import levels_of, whole
from polopt.tasks.problem import Message, Problem, Prompt

LETTERS = "abcdefghijklmnopqrstuvwxyz"
CONSONANTS = "bcdfghjklmnpqrstvwxz"  # y may be either


class Addition(GeneratedTask):
    """Two numbers of `level` digits: "47+85=" is worked out as "7+5=12;4+8+1=13;132", units first, carries as +1.

    Args:
        digits: number of digits of both terms, one number or (low, high); another name of `levels`.
    """

    default_levels = (2, 2)
    level_range = (1, 100)

    def __init__(self, *args: Any, digits: Any = None, levels: Any = None, **options: Any) -> None:
        if digits is not None and levels is not None:
            raise UsageError("digits and levels are the same option of addition: give one of them")
        if digits is not None:
            levels = levels_of("digits", digits, self.level_range)
        super().__init__(*args, levels=levels, **options)

    def draw(self, rng: random.Random, level: int) -> Problem:
        low = 10 ** (level - 1) if level > 1 else 0
        first, second = rng.randrange(low, 10**level), rng.randrange(low, 10**level)
        steps, carry = [], 0
        for a, b in zip(reversed(str(first)), reversed(str(second))):
            total = int(a) + int(b) + carry
            steps.append(f"{a}+{b}{'+1' if carry else ''}={total}")
            carry = total // 10
        key = f"{min(first, second)}+{max(first, second)}"
        return self.made(f"{first}+{second}=", steps, str(first + second), level, key)

    def extract(self, problem: Problem, text: str) -> str:
        return (re.findall(r"-?[0-9]+", final(text)) or [""])[-1]

    def verify(self, problem: Problem, text: str) -> float:
        """1 when the last number of the last line is the sum."""
        return float(self.extract(problem, text) == problem.answer)


class Countdown(GeneratedTask):
    """`level` numbers, each to be used once with + - * / and brackets to make a target: "2 7 3 make 17:".

    The worked solution computes step by step, then writes the expression: "7*2=14;14+3=17;7*2+3". Any expression that
    uses exactly the numbers and is worth the target is right.

    Args:
        largest: the largest number given; targets and results on the way are at most ten times that.
    """

    default_levels = (3, 3)
    level_range = (2, 6)

    def __init__(self, *args: Any, largest: int = 9, **options: Any) -> None:
        self.largest = whole("largest", largest, 2)
        super().__init__(*args, **options)

    def draw(self, rng: random.Random, level: int) -> Problem:
        while True:
            numbers = [rng.randint(1, self.largest) for _ in range(level)]
            made = self._combine(rng, numbers)
            if made is not None:
                break
        target, expression, steps = made
        rng.shuffle(numbers)
        listed = " ".join(map(str, numbers))
        key = " ".join(map(str, sorted(numbers))) + f" {target}"
        return self.made(f"{listed} make {target}:", steps, expression, level, key)

    def _combine(self, rng: random.Random, numbers: list[int]) -> tuple[int, str, list[str]] | None:
        """(target, expression, steps) from combining two random parts until one is left; None when it went wrong."""
        parts = [(number, str(number), 3) for number in numbers]  # value, expression, how tightly it binds
        steps = []
        while len(parts) > 1:
            a, text_a, bind_a = parts.pop(rng.randrange(len(parts)))
            b, text_b, bind_b = parts.pop(rng.randrange(len(parts)))
            sign = rng.choice("+-*/" if b and a % b == 0 else "+-*")
            value = {"+": a + b, "-": a - b, "*": a * b, "/": a // b if b else 0}[sign]
            if not 1 <= value <= 10 * self.largest:
                return None
            bind = 1 if sign in "+-" else 2
            steps.append(f"{a}{sign}{b}={value}")
            left = f"({text_a})" if bind_a < bind else text_a
            right = f"({text_b})" if bind_b < bind or (bind_b == bind and sign in "-/") else text_b
            parts.append((value, f"{left}{sign}{right}", bind))
        return parts[0][0], parts[0][1], steps

    def extract(self, problem: Problem, text: str) -> str:
        target = problem.question.rstrip(":").split(" make ")[1]
        return final(text).replace(" ", "").removesuffix(f"={target}")

    def verify(self, problem: Problem, text: str) -> float:
        """1 when the last line ends with an expression that uses each number once and is worth the target."""
        numbers, target = problem.question.rstrip(":").split(" make ")
        expression = self.extract(problem, text)
        used = sorted(re.findall(r"[0-9]+", expression))
        return float(used == sorted(numbers.split()) and value_of(expression) == int(target))


def value_of(expression: str) -> Fraction | None:
    """The exact value of a text of whole numbers, + - * / and brackets; None when it is not one.

    Operators and values wait on two stacks (Dijkstra's shunting yard), so that nothing is evaluated as code and deep
    brackets cannot exhaust the interpreter.
    """
    tokens = re.findall(r"[0-9]+|[-+*/()]", expression)
    if len(expression) > 1000 or "".join(tokens) != expression:
        return None
    binds = {"+": 1, "-": 1, "*": 2, "/": 2}
    values: list[Fraction] = []
    waiting: list[str] = []

    def apply() -> bool:
        b, a, sign = values.pop(), values.pop(), waiting.pop()
        if sign == "/" and b == 0:
            return False
        values.append({"+": a + b, "-": a - b, "*": a * b, "/": a / (b or 1)}[sign])
        return True

    operand = True  # what must come next
    for token in tokens:
        if operand != (token not in binds and token != ")"):
            return None
        if token == "(":
            waiting.append(token)
            continue
        if token in binds:
            while waiting and waiting[-1] != "(" and binds[waiting[-1]] >= binds[token]:
                if not apply():
                    return None
            waiting.append(token)
            operand = True
        elif token == ")":
            while waiting and waiting[-1] != "(":
                if not apply():
                    return None
            if not waiting:
                return None
            waiting.pop()
        else:
            values.append(Fraction(int(token)))
            operand = False
    if operand:
        return None
    while waiting:
        if waiting[-1] == "(" or not apply():
            return None
    return values[0]


class Vowels(GeneratedTask):
    """After a word of `level` consonants, "kbd:", only vowels are to be written; any number of them.

    The reward is the share of vowels in the text, so that a model which knows nothing yet can learn from it. Pairs are
    of texts with different shares.
    """

    default_levels = (2, 2)
    level_range = (1, 20)

    def draw(self, rng: random.Random, level: int) -> Problem:
        word = "".join(rng.choice(CONSONANTS) for _ in range(level))
        return self.made(f"{word}:", [], "aeiou", level, word)

    def preferences(self, indices: Sequence[int]) -> list[tuple[Prompt, str, str]]:
        """After each of these prompts two texts of four letters, about half of them vowels, the one with more first."""
        pairs = []
        for index, problem in zip(indices, self.problems(indices)):
            rng = random.Random(f"pair/{self.seed}/{int(self.evaluation)}/{index}")
            texts = ["", ""]
            while self.verify(problem, texts[0]) == self.verify(problem, texts[1]):
                texts = ["".join(rng.choice(rng.choice(("aeiou", CONSONANTS))) for _ in range(4)) for _ in texts]
            better, worse = sorted(texts, key=lambda text: -self.verify(problem, text))
            pairs.append((problem.prompt, better, worse))
        return pairs

    def verify(self, problem: Problem, text: str) -> float:
        return sum(letter in "aeiou" for letter in text) / max(len(text), 1)


class Ascending(GeneratedTask):
    """`level` different letters in alphabetical order, with two given ones among them: "dq6:" is answered by "bdkpqz".

    Many answers are right; the solution is one of them, drawn at random.
    """

    default_levels = (4, 4)
    level_range = (2, 20)

    def draw(self, rng: random.Random, level: int) -> Problem:
        letters = sorted(rng.sample(LETTERS, level))
        given = "".join(sorted(rng.sample(letters, 2)))
        return self.made(f"{given}{level}:", [], "".join(letters), level, f"{given}{level}")

    def verify(self, problem: Problem, text: str) -> float:
        """1 when the last line ends with such letters."""
        letters, given = final(text), problem.question[:2]
        rising = all(a < b for a, b in pairwise(letters)) and all(letter in LETTERS for letter in letters)
        return float(rising and len(letters) == problem.level and all(letter in letters for letter in given))


class Sorting(GeneratedTask):
    """`level` symbols in order: "sort 4131:" is worked out as "4;14;134;1134", each symbol put in its place.

    Args:
        symbols: "digits" or "letters".
    """

    default_levels = (4, 4)
    level_range = (2, 100)

    def __init__(self, *args: Any, symbols: str = "digits", **options: Any) -> None:
        if symbols not in ("digits", "letters"):
            raise UsageError(f"symbols must be digits or letters, not {symbols!r}")
        self.symbols = "0123456789" if symbols == "digits" else LETTERS
        super().__init__(*args, **options)

    def draw(self, rng: random.Random, level: int) -> Problem:
        text = "".join(rng.choice(self.symbols) for _ in range(level))
        steps = ["".join(sorted(text[:end])) for end in range(1, level)]
        return self.made(f"sort {text}:", steps, "".join(sorted(text)), level, text)


class Lookup(GeneratedTask):
    """Following `level` arrows: "a>c b>d c>b d>a;a+2=" is worked out as "a>c;c>b;b".

    The arrows form one ring, so that every letter has one arrow out and one in and the answer cannot be seen from
    the arrows alone.

    Args:
        pairs: number of arrows; by default 2 more than the highest level, so that all levels look alike.
        letters: the arrows are between letters drawn from the first so many of the alphabet.
    """

    default_levels = (1, 3)
    level_range = (1, 24)

    def __init__(
        self, *args: Any, levels: Any = None, pairs: int | None = None, letters: int = 10, **options: Any
    ) -> None:
        super().__init__(*args, levels=levels, **options)
        high = self.levels[1]
        self.pairs = high + 2 if pairs is None else whole("pairs", pairs, high + 1, len(LETTERS))
        self.letters = max(whole("letters", letters, 2, len(LETTERS)), self.pairs)

    def draw(self, rng: random.Random, level: int) -> Problem:
        ring = rng.sample(LETTERS[: self.letters], self.pairs)
        arrows = [f"{here}>{there}" for here, there in zip(ring, [*ring[1:], ring[0]])]
        steps, answer, start = arrows[:level], ring[level], ring[0]
        shown = rng.sample(arrows, len(arrows))
        key = " ".join(sorted(arrows)) + f";{start}+{level}"
        return self.made(f"{' '.join(shown)};{start}+{level}=", steps, answer, level, key)


class Guess(GeneratedTask):
    """A game of several turns: find a secret number in a range of `level` numbers; told only higher or lower.

    "guess 3-10:" is answered by a number, to which the game says "higher 7-10:" or "lower 3-5:" with the range that
    is left (a text without a number, or one outside the range, only repeats the question). The reward is 1 for the
    turn that finds the secret. The game ends after the turns that bisection needs at worst, plus `spare`.

    Because the secret is not in the prompt, evaluation does not hold problems out: it draws with other seeds. Worked
    solutions are the first guess of bisection; since ranges begin anywhere, they show the move for every turn.

    Args:
        spare: turns beyond those that bisection needs.
    """

    turns = 32
    default_levels = (8, 8)
    level_range = (2, 1000)

    def __init__(self, *args: Any, spare: int = 1, heldout: Any = False, **options: Any) -> None:
        self.spare = whole("spare", spare, 0)
        super().__init__(*args, heldout=heldout, **options)
        self.turns = self.limit(self.levels[1])
        self.spec.info["turns"] = self.turns

    def limit(self, level: int) -> int:
        """Turns of a game over a range of `level` numbers: floor(log2(level)) + 1 + spare."""
        return level.bit_length() + self.spare

    def draw(self, rng: random.Random, level: int) -> Problem:
        low = rng.randint(1, max(10 * self.levels[1] // 8, 2))
        high = low + level - 1
        secret, prompt = rng.randint(low, high), f"guess {low}-{high}:"
        return Problem(prompt, str(secret), str((low + high) // 2), None, level, key=f"{prompt}{secret}")

    def reply(self, problem: Problem, transcript: list[Message], text: str) -> tuple[str | None, float, bool]:
        over = len(transcript) // 2 + 1 >= self.limit(problem.level)
        if self.verify(problem, text):
            return None, 1.0, True
        low, high = _range(transcript[-1]["content"])
        guess, secret = _last_number(text), int(problem.answer or 0)
        if guess is None or not low <= guess <= high:
            feedback = f"guess {low}-{high}:"
        else:
            feedback = f"higher {guess + 1}-{high}:" if secret > guess else f"lower {low}-{guess - 1}:"
        return (None if over else feedback), 0.0, over

    def extract(self, problem: Problem, text: str) -> str:
        number = _last_number(text)
        return "" if number is None else str(number)

    def verify(self, problem: Problem, text: str) -> float:
        """1 when the last number of the last line is the secret."""
        return float(_last_number(text) == int(problem.answer or 0))

    def expert(self, problem: Problem, transcript: list[Message]) -> str:
        return str(sum(_range(transcript[-1]["content"])) // 2)


def _range(question: str) -> tuple[int, int]:
    low, high = question.rstrip(":").split(" ")[-1].split("-")
    return int(low), int(high)


def _last_number(text: str) -> int | None:
    numbers = re.findall(r"[0-9]+", final(text))
    return int(numbers[-1]) if numbers and len(numbers[-1]) < 10 else None
