"""The user's reward functions: several with weights, and none of them can take a run down.

Two signatures are known by their parameter names. TRL's: `f(prompts=[...], completions=[...], **columns)`, each column
a list, returns one number (or None) for each sample. The simple one: `f(prompt, completion, **columns)` returns one
number. Completions of conversational prompts are lists of messages for TRL's signature, as TRL passes them; the simple
signature always gets the text of the last turn.
"""

from __future__ import annotations

import asyncio
import ctypes
import inspect
import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from polopt.config.serialize import import_callable
from polopt.core.errors import UsageError

_HUNG = " and was left behind"


@dataclass(frozen=True)
class Unscored:
    """A sample whose reward could not be computed, and why."""

    why: str


class Hung(Exception):
    """A call that took too long and was left behind."""


class Call:
    """One call in a daemon thread, so that a function that hangs cannot hold up the run.

    A Python function that exceeds its time is asked to stop; one that waits inside C code keeps its thread.
    """

    def __init__(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        self._run = (function, args, kwargs)
        self._value: Any = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def _work(self) -> None:
        function, args, kwargs = self._run
        try:
            value = function(*args, **kwargs)
            self._value = asyncio.run(_awaited(value)) if inspect.isawaitable(value) else value
        except BaseException as error:  # SystemExit too: a reward function may not end the run
            self._error = error

    def result(self, seconds: float) -> Any:
        """What the call returned. Raises what it raised, or Hung."""
        self._thread.join(seconds)
        if self._thread.is_alive():
            ident = ctypes.c_ulong(self._thread.ident or 0)
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ident, ctypes.py_object(SystemExit))
            raise Hung(f"took more than {seconds:g} seconds")
        if self._error is not None:
            raise self._error if isinstance(self._error, Exception) else RuntimeError(type(self._error).__name__)
        return self._value


class _Wrong(Exception):
    """A returned value that is no reward."""


class Rewards:
    """The weighted sum of reward functions.

    A call that raises, hangs, or returns the wrong length or shape is repeated for each sample alone; a sample for
    which it fails again, or that gets NaN or infinity, is `Unscored`. None means "does not apply" and is left out of
    the sum when at least one other function gave a number.

    Args:
        functions: (name, function) pairs.
        weights: one per function.
        timeout: seconds per call. After two calls for single samples have hung, the remaining ones run side by side,
            so that a function that always hangs costs four times this at most.
    """

    def __init__(
        self, functions: Sequence[tuple[str, Callable[..., Any]]], weights: Sequence[float], timeout: float = 10.0
    ) -> None:
        self.functions = [_Function(name, function) for name, function in functions]
        self.weights = list(weights)
        self.timeout = timeout

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], columns: Sequence[Mapping[str, Any]]
    ) -> list[float | Unscored]:
        """Rewards of n samples: prompts, completions (texts, or lists of messages) and columns, each of length n."""
        samples = list(zip(prompts, completions, columns))
        given = [function.score(samples, self.timeout) for function in self.functions]
        return [_total(values, self.weights) for values in zip(*given)]

    def check(self, columns: Iterable[str]) -> None:
        """Raises UsageError when a function asks for a column that the task does not have."""
        known = set(columns)
        for function in self.functions:
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

    def score(self, samples: list[tuple[Any, Any, Mapping[str, Any]]], timeout: float) -> list[float | Unscored | None]:
        if not self.single and len(samples) > 1:
            try:
                return self._read(self._call(samples).result(timeout), len(samples))
            except Exception:  # a sample of the batch may be the culprit: each is asked alone
                pass
        scores: list[float | Unscored | None] = []
        hung = 0
        while len(scores) < len(samples):
            # One at a time, because user code need not be safe in threads, until waiting would become long.
            count = 1 if hung < 2 else len(samples) - len(scores)
            calls = [self._call([sample]) for sample in samples[len(scores) : len(scores) + count]]
            end = time.monotonic() + timeout
            for call in calls:
                value = self._finish(call, max(end - time.monotonic(), 0.0), timeout)
                hung += isinstance(value, Unscored) and value.why.endswith(_HUNG)
                scores.append(value)
        return scores

    def _call(self, samples: list[tuple[Any, Any, Mapping[str, Any]]]) -> Call:
        values: dict[str, Any]
        if self.single:
            prompt, completion, columns = samples[0]
            text = completion if isinstance(completion, str) else completion[-1]["content"]
            values = {**columns, "prompt": prompt, "completion": text}
        else:
            names = dict.fromkeys(key for _, _, columns in samples for key in columns)
            values = {key: [columns.get(key) for _, _, columns in samples] for key in names}
            values["prompts"], values["completions"] = [one[0] for one in samples], [one[1] for one in samples]
        return Call(self.function, **{key: value for key, value in values.items() if self.open or key in self.named})

    def _finish(self, call: Call, seconds: float, timeout: float) -> float | Unscored | None:
        try:
            value = call.result(seconds)
            return _number(value, self.name) if self.single else self._read(value, 1)[0]
        except Hung:
            return Unscored(f"the reward function '{self.name}' took more than {timeout:g} seconds{_HUNG}")
        except _Wrong as error:
            return Unscored(str(error))
        except Exception as error:
            said = " ".join(str(error).split())
            return Unscored(f"the reward function '{self.name}' raised {type(error).__name__}{said and ': ' + said}")

    def _read(self, values: Any, count: int) -> list[float | Unscored | None]:
        if hasattr(values, "tolist"):
            values = values.tolist()  # tensors and arrays
        if not isinstance(values, (list, tuple)):
            raise _Wrong(f"the reward function '{self.name}' returned {type(values).__name__}, not a list of numbers")
        if len(values) != count:
            raise _Wrong(f"the reward function '{self.name}' returned {len(values)} rewards for {count} samples")
        scores: list[float | Unscored | None] = []
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


def _total(values: Sequence[float | Unscored | None], weights: Sequence[float]) -> float | Unscored:
    for value in values:
        if isinstance(value, Unscored):
            return value
    parts = [weight * value for weight, value in zip(weights, values) if isinstance(value, float)]
    return sum(parts) if parts else Unscored("every reward function returned None for this sample")


async def _awaited(value: Any) -> Any:
    return await value


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
    pairs = []
    for item in functions:
        if not isinstance(item, str) and not callable(item):
            raise UsageError(f"a reward is a function or module:function, not {type(item).__name__}")
        function = import_callable(item) if isinstance(item, str) else item
        pairs.append((item if isinstance(item, str) else getattr(item, "__name__", type(item).__name__), function))
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
    return Rewards(pairs, numbers, timeout)
