"""The user's reward functions: several with weights, each known by itself, and none of them can take a run down.

Two signatures are known by their parameter names. TRL's: `f(prompts=[...], completions=[...], **columns)`, each column
a list, returns one number (or None) for each sample. The simple one: `f(prompt, completion, **columns)` returns one
number. Completions of conversational prompts are lists of messages for TRL's signature, as TRL passes them; the simple
signature always gets the text of the last turn.
"""

from __future__ import annotations

import asyncio
import ctypes
import functools
import inspect
import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from polopt.config.serialize import import_callable
from polopt.core.errors import UsageError


@dataclass(frozen=True)
class Unscored:
    """A sample whose reward could not be computed, and why."""

    why: str


Part = float | Unscored | None
"""What one reward function says of one sample; None: it does not apply."""

VERIFIER = "verifier"
"""The name of the task's own verifier among reward functions."""


COMPONENTS = ("components", "component_known", "component_failed")
"""Facts [N, K] of tasks with reward functions: the number that each gave, whether it gave one, whether it failed."""


class Hung(Exception):
    """A call that took too long and was left behind."""


class Calls:
    """Calls of one function, one after another, in a daemon thread: a function that hangs cannot hold up the run.

    A Python function that exceeds its time is asked to stop; one that waits inside C code keeps its thread.
    """

    def __init__(self, function: Callable[..., Any], each: Sequence[Mapping[str, Any]]) -> None:
        self._function, self._each = function, each
        self._outcomes: list[tuple[Any, BaseException | None]] = []
        self._began = time.monotonic()  # the call that runs now
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def _work(self) -> None:
        for arguments in self._each:
            self._began = time.monotonic()
            value, wrong = None, None
            try:
                value = self._function(**arguments)
                value = asyncio.run(_awaited(value)) if inspect.isawaitable(value) else value
            except BaseException as error:  # SystemExit too: a reward function may not end the run
                wrong = error
            if self._over.is_set():  # it was left behind
                return
            self._began = time.monotonic()  # before the outcome: what is found not to have come began no earlier
            self._outcomes.append((value, wrong))
        self._over.set()

    def results(self, seconds: float) -> list[Callable[[], Any]]:
        """What came of the calls, in order, each as a function that returns or raises it. The list ends with Hung at
        the first call that took more than `seconds`; those after it are not made."""
        while True:
            count, began = len(self._outcomes), self._began
            if self._over.wait(max(began + seconds - time.monotonic(), 0.0)):
                return [functools.partial(_outcome, *outcome) for outcome in self._outcomes]
            if len(self._outcomes) == count and time.monotonic() - began >= seconds:
                self._over.set()
                ident = ctypes.c_ulong(self._thread.ident or 0)
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ident, ctypes.py_object(SystemExit))
                hung = (None, Hung(f"took more than {seconds:g} seconds"))
                return [functools.partial(_outcome, *outcome) for outcome in [*self._outcomes[:count], hung]]


def _outcome(value: Any, error: BaseException | None) -> Any:
    if error is not None:
        raise error if isinstance(error, Exception) else RuntimeError(type(error).__name__)
    return value


class _Wrong(Exception):
    """A returned value that is no reward."""


class Rewards:
    """The weighted sum of reward functions.

    A call that raises, hangs, or returns the wrong length or shape is repeated for each sample alone; a sample for
    which it fails again, or that gets NaN or infinity, is `Unscored`. None means "does not apply" and is left out of
    the sum when at least one other function gave a number. Weights are not normalized. A function of weight 0 is
    watched only: it changes no reward and costs no sample.

    Args:
        functions: (name, function) pairs; no function stands for the task's own verifier.
        weights: one per function.
        timeout: seconds per call. After two calls for single samples have hung, the remaining ones run side by side,
            so that a function that always hangs costs four times this at most.

    Attributes:
        names: of the functions [K], short and different: what stands behind "module:", numbered where two are equal.
        verifies: the task's own verifier is one of them.
    """

    def __init__(
        self,
        functions: Sequence[tuple[str, Callable[..., Any] | None]],
        weights: Sequence[float],
        timeout: float = 10.0,
    ) -> None:
        self.functions = [None if function is None else _Function(name, function) for name, function in functions]
        self.names = _short([name for name, _ in functions])
        self.verifies = any(function is None for function in self.functions)
        self.weights = list(weights)
        self.timeout = timeout

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], columns: Sequence[Mapping[str, Any]]
    ) -> list[float | Unscored]:
        """Rewards of n samples: prompts, completions (texts, or lists of messages) and columns, each of length n."""
        return [self.total(parts) for parts in self.parts(prompts, completions, columns)]

    def parts(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        columns: Sequence[Mapping[str, Any]],
        verified: Sequence[float | Unscored] = (),
    ) -> list[tuple[Part, ...]]:
        """What each of the K functions says of each of the n samples, unweighted: n tuples of length K.

        `verified` is what the task's verifier says of them.
        """
        samples = list(zip(prompts, completions, columns))
        given = [verified if one is None else one.score(samples, self.timeout) for one in self.functions]
        return list(zip(*given, strict=True))

    def total(self, parts: Sequence[Part]) -> float | Unscored:
        """The reward of one sample from what each function says of it."""
        heard = [(weight, part) for weight, part in zip(self.weights, parts) if weight]
        for _, part in heard:
            if isinstance(part, Unscored):
                return part
        terms = [weight * part for weight, part in heard if isinstance(part, float)]
        return sum(terms) if terms else Unscored("every reward function returned None for this sample")

    def check(self, columns: Iterable[str]) -> None:
        """Raises UsageError when a function asks for a column that the task does not have."""
        known = set(columns)
        for function in filter(None, self.functions):
            lacking = sorted(function.required - known)
            if lacking:
                has = f"; its columns are {', '.join(sorted(known))}" if known else ""
                raise UsageError(f"the reward function '{function.name}' asks for '{lacking[0]}', not in the task{has}")


class _Function:
    """One reward function under one calling convention: `score` gives a number, None or Unscored per sample."""

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        self.name = name
        self.function = function
        try:
            parameters = inspect.signature(function).parameters
        except (TypeError, ValueError):
            raise UsageError(f"the reward function '{name}' does not say what its parameters are") from None
        kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        named = {key for key, item in parameters.items() if item.kind in kinds}
        self.open = any(item.kind is item.VAR_KEYWORD for item in parameters.values())
        self.single = "completion" in named
        if not self.single and not self.open and not {"prompts", "completions"} & named:
            raise UsageError(
                f"the reward function '{name}' takes neither 'completions' (all samples) nor 'completion' (one sample)"
            )
        self.named = named
        own = {"prompt", "completion"} if self.single else {"prompts", "completions"}
        self.required = {key for key in named - own if parameters[key].default is inspect.Parameter.empty}

    def score(self, samples: list[tuple[Any, Any, Mapping[str, Any]]], timeout: float) -> list[Part]:
        if not self.single and len(samples) > 1:
            try:
                return self._read(self._calls([samples]).results(timeout)[0](), len(samples))
            except Exception:  # a sample of the batch may be the culprit: each is asked alone
                pass
        alone = [[sample] for sample in samples]
        scores: list[Part] = []
        hung = 0
        while len(scores) < len(samples) and hung < 2:
            # One at a time, because user code need not be safe in threads, until waiting would become long.
            found = self._calls(alone[len(scores) :]).results(timeout)
            scores += [self._finish(outcome, timeout) for outcome in found]
            hung += 1
        end = time.monotonic() + timeout
        for calls in [self._calls([one]) for one in alone[len(scores) :]]:
            scores.append(self._finish(calls.results(max(end - time.monotonic(), 0.0))[0], timeout))
        return scores

    def _calls(self, each: Sequence[list[tuple[Any, Any, Mapping[str, Any]]]]) -> Calls:
        return Calls(self.function, [self._arguments(samples) for samples in each])

    def _arguments(self, samples: list[tuple[Any, Any, Mapping[str, Any]]]) -> dict[str, Any]:
        values: dict[str, Any]
        if self.single:
            prompt, completion, columns = samples[0]
            text = completion if isinstance(completion, str) else completion[-1]["content"]
            values = {**columns, "prompt": prompt, "completion": text}
        else:
            names = dict.fromkeys(key for _, _, columns in samples for key in columns)
            values = {key: [columns.get(key) for _, _, columns in samples] for key in names}
            values["prompts"], values["completions"] = [one[0] for one in samples], [one[1] for one in samples]
        return {key: value for key, value in values.items() if self.open or key in self.named}

    def _finish(self, outcome: Callable[[], Any], timeout: float) -> Part:
        try:
            value = outcome()
            return _number(value, self.name) if self.single else self._read(value, 1)[0]
        except Hung:
            return Unscored(f"the reward function '{self.name}' took more than {timeout:g} seconds and was left behind")
        except _Wrong as error:
            return Unscored(str(error))
        except Exception as error:
            said = " ".join(str(error).split())
            return Unscored(f"the reward function '{self.name}' raised {type(error).__name__}{said and ': ' + said}")

    def _read(self, values: Any, count: int) -> list[Part]:
        if hasattr(values, "tolist"):
            values = values.tolist()  # tensors and arrays
        if not isinstance(values, (list, tuple)):
            raise _Wrong(f"the reward function '{self.name}' returned {type(values).__name__}, not a list of numbers")
        if len(values) != count:
            raise _Wrong(f"the reward function '{self.name}' returned {len(values)} rewards for {count} samples")
        scores: list[Part] = []
        for value in values:
            try:
                scores.append(_number(value, self.name))
            except _Wrong as error:
                scores.append(Unscored(str(error)))
        return scores


def _number(value: Any, name: str) -> float | None:
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        value = value.item()
    if value is None:
        return None
    if not isinstance(value, (int, float)):
        raise _Wrong(f"the reward function '{name}' returned {type(value).__name__} for a sample, not a number")
    if not math.isfinite(value):
        raise _Wrong(f"the reward function '{name}' returned {value}")
    return float(value)


def _short(names: Sequence[str]) -> list[str]:
    """The names without their modules; equal ones are numbered."""
    found: list[str] = []
    for name in names:
        short = name.rpartition(":")[2]
        numbered = (f"{short}_{number}" for number in range(2, len(names) + 2))
        found.append(next(one for one in (short, *numbered) if one not in found))
    return found


async def _awaited(value: Any) -> Any:
    return await value


def component_facts(scored: Mapping[int, Sequence[Part]], rows: int, count: int) -> dict[str, Tensor]:
    """The facts COMPONENTS [rows, count] from what each function says of some of the rows."""
    value = torch.zeros(rows, count)
    known, failed = (torch.zeros(rows, count, dtype=torch.bool) for _ in range(2))
    for row, parts in scored.items():
        value[row] = torch.tensor([part if isinstance(part, float) else 0.0 for part in parts])
        known[row] = torch.tensor([isinstance(part, float) for part in parts])
        failed[row] = torch.tensor([isinstance(part, Unscored) for part in parts])
    return dict(zip(COMPONENTS, (value, known, failed)))


def own_code(functions: Any) -> bool:
    """Whether a run folder's names of reward functions stand for code of the user's, which reading it never runs."""
    names = functions.split(",") if isinstance(functions, str) else functions or []
    return any(str(name).strip() != VERIFIER for name in names)


def make_rewards(functions: Any, weights: Any, timeout: float) -> Rewards | None:
    """The reward functions of a task: one or several functions or "module:function"; None without any.

    Raises UsageError for names that cannot be imported and weights that do not fit.
    """
    if functions is None or functions == []:
        if weights is not None:
            raise UsageError("weights belong to reward functions: give --task.rewards module:function")
        return None
    if isinstance(functions, str):
        functions = [name.strip() for name in functions.split(",")]
    functions = list(functions) if isinstance(functions, (list, tuple)) else [functions]
    pairs: list[tuple[str, Any]] = []
    for item in functions:
        if not isinstance(item, str) and not callable(item):
            raise UsageError(f"a reward is a function, module:function or {VERIFIER}, not {type(item).__name__}")
        if isinstance(item, str):
            pairs.append((item, None if item == VERIFIER else import_callable(item)))
        else:
            pairs.append((getattr(item, "__name__", type(item).__name__), item))
    if isinstance(weights, str):
        weights = weights.split(",")
    weights = [1.0] * len(pairs) if weights is None else weights
    weights = list(weights) if isinstance(weights, (list, tuple)) else [weights]
    if len(weights) != len(pairs):
        raise UsageError(f"there are {len(weights)} weights for {len(pairs)} reward functions")
    try:
        numbers = [float(weight) for weight in weights]
    except (TypeError, ValueError):
        numbers = [math.nan]
    if not all(math.isfinite(weight) for weight in numbers):
        raise UsageError(f"weights must be numbers, not {weights!r}")
    if not any(numbers):
        raise UsageError("every weight is 0, so that every reward would be: give one function a weight")
    return Rewards(pairs, numbers, timeout)
