"""What every task is: rows of environments that step together and never reset by themselves."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from tensordict import TensorDictBase
from torch import Tensor

from polopt.core.errors import UsageError, nearest
from polopt.core.spec import Spec
from polopt.core.state import Stateful

Obs = Tensor | TensorDictBase | list[Any]
Step = tuple[Obs, Tensor, Tensor, Tensor]


class Task(Stateful):
    """`num` rows (N) of one environment. The source resets finished rows, the task never does.

    Attributes:
        spec: the spaces of one row.
        num: number of rows N.
        obs: the present observation of every row [N, ...], None before the first reset.
        first: bool [N], rows whose episode has not been stepped yet (also after a resume that had to reset).
        exact_restore: True when a restored state continues bitwise as the saved run would have.
        restore_note: one sentence that says why it does not; empty when it does.
        facts: what else is true of the step just taken, [N, ...] by the names of `spec.facts`: costs, the parts of a
            vector reward, rewards of agents. Fresh tensors at every step, that every source stores under their names.
    """

    spec: Spec
    num: int
    obs: Obs | None = None
    first: Tensor
    exact_restore: bool = True
    restore_note: str = ""
    facts: Mapping[str, Tensor] = MappingProxyType({})
    elastic: bool = False
    """True when `num` may be set at any time; the next reset must then be one of all rows. Sources give such a task
    `record["active"]` (bool [N]), and it steps only the rows where that is True."""

    @classmethod
    def make(cls, name: str, num: int, seed: int, evaluation: bool, **options: Any) -> Task:
        """`num` rows of the task that is called `name`: how `make_task` makes a named task.

        Raises UsageError, one sentence, for an option that is none of `options(name)`.
        """
        known = cls.options(name)
        for option in options:
            if option not in known:
                raise UsageError(f"the task {name} has no option '{option}'{nearest(option, known)}")
        made: Any = cls
        return made(num=num, seed=seed, evaluation=evaluation, name=name, **options)  # type: ignore[no-any-return]

    @classmethod
    def options(cls, name: str) -> set[str]:
        """The options of the task of this name: what the constructors take as keywords only."""
        signatures = (inspect.signature(vars(base)["__init__"]) for base in cls.__mro__ if "__init__" in vars(base))
        return {key for one in signatures for key, item in one.parameters.items() if item.kind is item.KEYWORD_ONLY}

    @property
    def environments(self) -> int:
        """How many environments one step of all rows steps: N, unless several rows are of one environment."""
        return self.num

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

    def render(self) -> list[Any]:
        """One frame per row, for tasks that were made with a `render_mode`."""
        raise NotImplementedError  # abstract

    def close(self) -> None:
        """Frees processes and windows; closing twice is fine."""
