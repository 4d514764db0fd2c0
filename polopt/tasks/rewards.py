"""The user's reward functions: several with weights, each known by itself, and none of them can take a run down.

Two signatures are known by their parameter names. TRL's: `f(prompts=[...], completions=[...], **columns)`, each column
a list, returns one number (or None) for each sample. The simple one: `f(prompt, completion, **columns)` returns one
number. Completions of conversational prompts are lists of messages for TRL's signature, as TRL passes them; the simple
signature always gets the text of the last turn.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
import math
import re
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from polopt.config.serialize import import_callable
from polopt.core.errors import UsageError
from polopt.core.workers import Crashed, Failed, Hung, Outcome, Workers
from polopt.tasks.calls import in_threads
from polopt.tasks.options import number, whole


@dataclass(frozen=True)
class Unscored:
    """A sample whose reward could not be computed, and why."""

    why: str


Part = float | Unscored | None
"""What one reward function says of one sample; None: it does not apply."""

VERIFIER = "verifier"
"""The name of the task's own verifier among reward functions."""


MODELS = ("judge", "scorer")
MODEL_REWARD = "polopt.policies.judge:model_reward"  # by name: models are known further up than tasks

COMPONENTS = ("components", "component_known", "component_failed")
"""Facts [N, K] of tasks with reward functions: the number that each gave, whether it gave one, whether it failed."""


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
        timeout: seconds per call, unless a function has a `timeout` of its own. One that always hangs costs four times
            this at most.

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
        self.calls = function if isinstance(function, Workers) else functools.partial(in_threads, function)
        limit = getattr(function, "timeout", None)
        self.timeout = float(limit) if isinstance(limit, (int, float)) else None  # its own, in place of the task's
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
        timeout = self.timeout or timeout
        if not self.single and len(samples) > 1:
            try:
                together = self.calls([self._arguments(samples)], timeout)
                return self._read(together[0](), len(samples))
            except Exception:  # a sample of the batch may be the culprit: each is asked alone
                pass
        outcomes = self.calls([self._arguments([sample]) for sample in samples], timeout)
        return [self._finish(outcome, timeout) for outcome in outcomes]

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

    def _finish(self, outcome: Outcome, timeout: float) -> Part:
        try:
            value = outcome()
            return _number(value, self.name) if self.single else self._read(value, 1)[0]
        except Hung:
            return Unscored(f"the reward function '{self.name}' took more than {timeout:g} seconds and was left behind")
        except Crashed as error:
            return Unscored(f"the reward function '{self.name}' {error}")
        except Failed as error:
            return Unscored(f"the reward function '{self.name}' raised {error}")
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
    if isinstance(value, dict) and set(value) == {"why"}:  # from a worker
        value = Unscored(value["why"])
    if isinstance(value, Unscored):
        raise _Wrong(f"the reward function '{name}' gave no number: {value.why}")
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
    return any(str(name).strip() != VERIFIER and not _of_model(str(name).strip()) for name in names)


def _of_model(name: str) -> tuple[str, str] | None:
    """(kind, model) of "judge:MODEL" and "scorer:MODEL"; None for other names, also for those that are functions of a
    module of yours that is called like that."""
    kind, _, model = name.partition(":")
    if kind not in MODELS or not model:
        return None
    yours = re.fullmatch(r"[A-Za-z_][\w.]*", model) and importlib.util.find_spec(kind) is not None
    return None if yours else (kind, model)


def _named(name: str) -> tuple[str, Any]:
    """A short name and the function of a name; no function for the task's own verifier. Raises UsageError."""
    if name == VERIFIER:
        return name, None
    asked = _of_model(name)
    return (name, import_callable(name)) if asked is None else (asked[0], import_callable(MODEL_REWARD)(*asked))


_WORKERS: weakref.WeakValueDictionary[tuple[Any, ...], Workers] = weakref.WeakValueDictionary()


def _isolated(item: Any, count: int, memory: float | None) -> tuple[str, Any]:
    """The same of a name or a function, which `count` processes call, as long as it is used the same ones: training
    and evaluation share them. Raises UsageError, also for a function that is not found by its name."""
    name = item if isinstance(item, str) else f"{item.__module__}:{getattr(item, '__qualname__', '<object>')}"
    if name == VERIFIER:
        return name, None
    if not isinstance(item, str) and (name.startswith("__main__:") or "<" in name or import_callable(name) is not item):
        raise UsageError(f"{name} cannot be isolated: name it as module:function, which a new process can import")
    asked = _of_model(name)
    if asked is None and ":" not in name:
        import_callable(name)  # says how names are written
    code = (name,) if asked is None else (MODEL_REWARD, *asked)
    made = _WORKERS.get((code, count, memory)) or Workers(code, count, memory)
    return name if asked is None else asked[0], _WORKERS.setdefault((code, count, memory), made)


def make_rewards(
    functions: Any, weights: Any, timeout: float, isolated: bool | int = False, memory_limit: float | None = None
) -> Rewards | None:
    """The reward functions of a task: one or several functions or "module:function"; None without any.

    Args:
        timeout: seconds per call.
        isolated: functions are called in processes of their own, so many for each (True: one).
        memory_limit: GB that each of these may have.

    Raises UsageError for names that cannot be imported, weights that do not fit and functions that cannot be isolated.
    """
    count = whole("isolated", int(isolated) if isinstance(isolated, bool) else isolated, 0)
    if memory_limit is not None and (not count or number("memory_limit", memory_limit) <= 0):
        raise UsageError("memory_limit is a number of GB above 0 and needs isolated rewards: --task.isolated true")
    if count and functions in (None, []):
        raise UsageError("isolated rewards are functions of yours: give --task.rewards module:function")
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
            said = f"a function, module:function, {VERIFIER}, judge:MODEL or scorer:MODEL"
            raise UsageError(f"a reward is {said}, not {type(item).__name__}")
        if count:
            pairs.append(_isolated(item, count, memory_limit))
        elif isinstance(item, str):
            pairs.append(_named(item))
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
