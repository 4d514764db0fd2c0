"""What both sides of the language benchmarks use, so that it is the same: settings, the reward, the verifier, clocks.

It needs nothing but Python: it is imported in the environments of all libraries.
"""

from __future__ import annotations

import ast
import functools
import json
import re
import time
from collections import defaultdict
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

Problem = dict[str, Any]

SAMPLES = 8  # completions of each prompt
SFT_ROWS, DPO_PAIRS = 32, 16  # per update
MICRO_TOKENS = 2048  # of a backward pass of ours on texts of mixed lengths
RATE_LR = 1e-6  # of GRPO and DPO on both sides: their usual one
OPTIMIZER = {"weight_decay": 0.0, "max_grad_norm": 1.0}  # AdamW with constant learning rate, clipped
STD_EPS = 1e-4  # added to the standard deviation of the rewards of a group; a constant in TRL


def letter_share(completions: list[str], **columns: Any) -> list[float]:
    """A reward that costs next to nothing: the share of lower-case letters in each text."""
    return [sum(map(str.islower, text)) / max(len(text), 1) for text in completions]


def read_problems(folder: Path | str) -> dict[str, Any]:
    """What `benchmarks.language_model` wrote beside a warm-started model: task, max_tokens, train and heldout."""
    return json.loads((Path(folder) / "problems.json").read_text())


def verified(problem: Problem, text: str) -> bool:
    """Whether what follows the last semicolon of the last line is right, as the verifiers of polopt's tasks say.

    `problem` has an `answer`, and the last number must be that, or `numbers` and a `target`: an expression that uses
    each number once and is worth the target.
    """
    lines = text.strip().splitlines()
    said = lines[-1].rsplit(";", 1)[-1].strip() if lines else ""
    if "answer" in problem:
        found = re.findall(r"-?[0-9]+", said)
        return bool(found) and found[-1] == problem["answer"]
    expression = said.replace(" ", "").removesuffix(f"={problem['target']}")
    used = sorted(re.findall(r"[0-9]+", expression))
    if used != sorted(problem["numbers"]) or not re.fullmatch(r"[-+*/()0-9]+", expression):
        return False
    try:
        return value_of(ast.parse(expression, mode="eval").body) == problem["target"]
    except (SyntaxError, ValueError, ZeroDivisionError):
        return False


def value_of(node: ast.expr) -> Fraction:
    """The exact value of a tree of whole numbers and + - * /; ValueError for anything else."""
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return Fraction(node.value)
    if isinstance(node, ast.BinOp):
        left, right = value_of(node.left), value_of(node.right)
        match node.op:
            case ast.Add():
                return left + right
            case ast.Sub():
                return left - right
            case ast.Mult():
                return left * right
            case ast.Div():
                return left / right
    raise ValueError("neither a whole number nor one of + - * /")


class Clock:
    """Seconds of the parts of an update, measured around functions. A part that calls itself is counted once."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._inside: set[str] = set()

    def timed(self, part: str, function: Callable) -> Callable:
        """`function`, with its time added to `part`."""

        @functools.wraps(function)
        def wrapped(*args: Any, **options: Any) -> Any:
            if part in self._inside:
                return function(*args, **options)
            self._inside.add(part)
            begin = time.perf_counter()
            try:
                return function(*args, **options)
            finally:
                self.seconds[part] += time.perf_counter() - begin
                self._inside.remove(part)

        return wrapped

    def watch(self, part: str, owner: Any, *names: str) -> None:
        """Replaces methods of an object, or of a class, by timed ones."""
        for name in names:
            setattr(owner, name, self.timed(part, getattr(owner, name)))

    def take(self) -> dict[str, float]:
        """The seconds since the last call."""
        taken, self.seconds = dict(self.seconds), defaultdict(float)
        return taken


class Lap:
    """The training time of a curve: wall and process seconds, not counting what happens while it is stopped.

    Args:
        minutes: of training; `over` says that they are spent.
        every: seconds of training between evaluations; `due` says that one is to be made.
    """

    def __init__(self, minutes: float, every: float) -> None:
        self.limit, self.every = 60 * minutes, every
        self.seconds = self.cpu_seconds = 0.0
        self._next = 0.0

    def start(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def stop(self) -> None:
        self.seconds += time.perf_counter() - self._wall
        self.cpu_seconds += time.process_time() - self._cpu

    @property
    def over(self) -> bool:
        return self.seconds >= self.limit

    @property
    def due(self) -> bool:
        return self.over or self.seconds >= self._next

    def row(self, completions: int, accuracy: float) -> dict[str, float]:
        self._next = self.seconds + self.every
        times = {"seconds": round(self.seconds, 3), "cpu_seconds": round(self.cpu_seconds, 3)}
        return {"completions": completions, **times, "accuracy": accuracy}
