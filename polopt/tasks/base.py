"""What every task is: rows of environments that step together and never reset by themselves."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from tensordict import TensorDictBase
from torch import Tensor

from polopt.core.errors import UsageError, nearest
from polopt.core.spec import Spec
from polopt.core.state import Stateful

Obs = Tensor | TensorDictBase | list[Any]
Step = tuple[Obs, Tensor, Tensor, Tensor]

TRAIN, EVALUATE, TRAIN_INDEX, EVALUATE_INDEX, TWIN = range(5)
"""Streams of starts that are drawn from one seed: those of each row in turn, those with a number, those of twins."""


def start_seed(seed: int, key: Sequence[int]) -> int:
    """The seed of one episode start: independent streams by key, below 2**31 as some simulators need."""
    return int(np.random.SeedSequence(seed, spawn_key=tuple(key)).generate_state(1)[0] >> 1)


class Task(Stateful):
    """`num` rows (N) of one environment. The source resets finished rows, the task never does.

    Attributes:
        spec: the spaces of one row.
        num: number of rows N.
        seed: what all starts derive from.
        obs: the present observation of every row [N, ...], None before the first reset.
        first: bool [N], rows whose episode has not been stepped yet (also after a resume that had to reset).
        exact_restore: True when a restored state continues bitwise as the saved run would have.
        restore_note: one sentence that says why it does not; empty when it does.
        facts: what else is true of the step just taken, [N, ...] by the names of `spec.facts`: costs, the parts of a
            vector reward, rewards of agents. Fresh tensors at every step, that every source stores under their names.
        longest: decisions after which `Episodes` cuts an episode that has not ended; evaluations say how many were cut.
        player: the source that moved it last: another one that goes on would go on in episodes that it does not know.
            A task that is made of another's rows hands it on.
        device: where observations are. resident: it steps and begins its rows there without a look at what happened,
            so that nothing has to be copied from an accelerator at each step: then there is `flow`.
    """

    learned = False
    spec: Spec
    num: int
    seed: int = 0
    obs: Obs | None = None
    first: Tensor
    exact_restore: bool = True
    restore_note: str = ""
    facts: Mapping[str, Tensor] = MappingProxyType({})
    longest: int = 100_000
    device: torch.device = torch.device("cpu")
    resident: bool = False
    _player: object = None
    _twins: int = 0
    elastic: bool = False
    """True when `num` may be set at any time; the next reset must then be one of all rows. Sources give such a task
    `record["active"]` (bool [N]), and it steps only the rows where that is True."""

    @classmethod
    def make(cls, name: str, num: int, seed: int, evaluation: bool, **options: Any) -> Task:
        """`num` rows of the task that is called `name`: how `make_task` makes a named task.

        Raises UsageError, one sentence, for an option that is none of `options(name)`.
        """
        cls.check_options(name, options)
        made: Any = cls
        return made(num=num, seed=seed, evaluation=evaluation, name=name, **options)

    @classmethod
    def check_options(cls, name: str, options: Iterable[str]) -> None:
        """Raises UsageError, one sentence, for an option that is none of `options(name)`."""
        known = cls.options(name)
        for option in options:
            if option in ("workers", "render_mode", "preset", "facts") and option not in known:
                raise UsageError(f"the task {name} makes and steps all its rows itself: leave out {option}")
            if option not in known:
                raise UsageError(f"the task {name} has no option '{option}'{nearest(option, known)}")

    @classmethod
    def options(cls, name: str) -> set[str]:
        """The options of the task of this name: what the constructors take as keywords only."""
        signatures = (inspect.signature(vars(base)["__init__"]) for base in cls.__mro__ if "__init__" in vars(base))
        return {key for one in signatures for key, item in one.parameters.items() if item.kind is item.KEYWORD_ONLY}

    def check_played(self) -> None:
        """Raises UsageError, one sentence, where there is nothing to step: what plays asks before a run begins."""

    @property
    def environments(self) -> int:
        """How many environments one step of all rows steps: N, unless several rows are of one environment."""
        return self.num

    @property
    def player(self) -> object:
        return self._player

    @player.setter
    def player(self, source: object) -> None:
        self._player = source

    def reset(self, rows: Tensor | None = None, index: Tensor | None = None) -> Obs:
        """Starts new episodes in the rows where the bool mask `rows` [N] is True (None: all).

        `index` (int64 [N]) names the start: equal indices start equally; None takes the next start of each row.
        Returns the observation of ALL rows [N, ...]; rows that were not reset keep theirs.
        """
        raise NotImplementedError  # abstract

    def step(self, record: Mapping[str, Tensor]) -> Step:
        """Acts with `record["action"]`, in the environment's own units.

        Returns (obs, reward, terminated, truncated), each [N, ...]: `obs` is always the true successor, also at the
        end of an episode. Stepping a row that has ended raises RunError.
        """
        raise NotImplementedError  # abstract

    def flow(self, record: Mapping[str, Tensor], cut: Tensor | None = None) -> Step:
        """`step`, after which rows that have ended begin anew, of tasks that are `resident`: all on their device.

        Rows where `cut` is True are truncated in any case. What is returned is as from `step`, with the true successor
        also where an episode ends; `obs` and `first` are of what comes next.
        """
        raise NotImplementedError  # abstract

    def compile(self, **options: Any) -> None:
        """Compiles what its steps compute, of tasks that are made of tensors; `options` go to `torch.compile`."""

    def twin(self, rows: int) -> Task:
        """`rows` further rows of the same task with starts of their own: for a method that needs a second source,
        because two sources on one task would disturb each other.

        The first twin, the second, ... of a task have the same starts in every run with its seed; a method makes its
        twins in `build`. Raises UsageError, one sentence, for a task that cannot be made again.
        """
        self._twins += 1
        twin = self._twin(rows, start_seed(self.seed, [TWIN, self._twins]))
        twin._twins, twin.player = 0, None
        return twin

    def _twin(self, rows: int, seed: int) -> Task:
        raise UsageError(f"{self.spec.name} has no second set of rows, which is needed here")

    def snapshot(self) -> list[Any]:
        """Where each row is in its episode, one value a row, for `restore`. Values are kept or copied, never changed.

        Raises UsageError, one sentence, for a task that cannot take a row back.
        """
        raise UsageError(f"{self.spec.name} cannot take a row back to where it was")

    def restore(self, values: Sequence[Any], rows: Tensor | None = None) -> Obs:
        """Takes the rows where the mask `rows` [N] is True (None: all), in order, to where `values` say: equal actions
        then lead as they led from there, also the luck (but not in tabular tasks, whose luck is no row's). The rows may
        be others, also those of a twin; the starts to come stay.

        Returns the observation of ALL rows [N, ...]. Raises UsageError, one sentence, for a task that cannot.
        """
        raise UsageError(f"{self.spec.name} cannot take a row back to where it was")

    def _where(self, values: Sequence[Any], rows: Tensor | None) -> Tensor:
        """The numbers of the rows that `values` are for. Raises ValueError unless there is one value for each."""
        where = torch.arange(self.num) if rows is None else rows.cpu().nonzero().flatten()
        if len(where) != len(values):
            raise ValueError(f"{len(values)} values of a snapshot do not fit {len(where)} rows")
        return where

    def render(self) -> list[Any]:
        """One frame per row, for tasks that were made with a `render_mode`."""
        raise NotImplementedError  # abstract

    def close(self) -> None:
        """Frees processes and windows; closing twice is fine."""
