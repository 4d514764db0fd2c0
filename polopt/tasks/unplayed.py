"""Recorded decisions without an environment, as a task: its spaces, and nothing to step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

import torch

from polopt.core.errors import UsageError
from polopt.core.observations import check_spaces, served
from polopt.core.spec import Spec
from polopt.tasks import arrays, recorded
from polopt.tasks.base import Obs, Step, Task


class Unplayed(Task):
    """A task of which only recorded decisions are here: methods learn from them, and evaluations are of held-out ones.

    Args:
        source: arrays (`polopt.tasks.arrays`), as a file or a dict, or the id of a dataset of Minari.
        num: 1, since there are no copies of an environment.
        low, high, actions: the action space, where arrays leave it open (`arrays.spaces_of`).
        heldout: share of the episodes that training never sees, at least one of several.
        facts: arrays (of Minari: `infos`) that batches have beside the reward.

    Raises UsageError, one sentence, for arrays that cannot be read, and for options that have no effect.
    """

    def __init__(
        self,
        source: Any = None,
        num: int = 1,
        seed: int = 0,
        evaluation: bool = False,
        name: str = "",
        *,
        low: Any = None,
        high: Any = None,
        actions: int | None = None,
        heldout: float = 0.1,
        facts: tuple[str, ...] = (),
    ) -> None:
        self.source = name if source is None else source
        self.seed = seed
        self.heldout = heldout
        self.scored: dict[int, Any] = {}  # the held-out decisions that evaluations of so many episodes score
        self._decisions: arrays.Decisions | None = None
        called = arrays.arrays_name(self.source)
        if num != 1 and not evaluation:
            raise UsageError(_absent(called, f"{num} copies of one"))
        if not isinstance(heldout, (int, float)) or not 0.0 <= heldout < 1.0:
            raise UsageError(f"--task.heldout {heldout}: a share of the episodes, at least 0 and below 1")
        shapes: dict[str, tuple[int, ...]] = {}
        if arrays.is_arrays(self.source):
            self._decisions = found = arrays.decisions(self.source, facts)
            obs, action = arrays.spaces_of(found, low, high, actions)
            for fact in facts:
                if fact not in found.columns:
                    raise UsageError(f"{called} has no array '{fact}' (or infos/{fact}), which --facts names")
            shapes = {fact: found.columns[fact].shape[1:] for fact in facts}
        else:
            if (low, high, actions) != (None, None, None):
                raise UsageError(f"{called} says what its actions are: leave out low, high and actions")
            stored = recorded.stored(self.source)
            obs, action = stored.observation_space, stored.action_space
            shapes = recorded.fact_shapes(self.source, facts)
        check_spaces(obs, action, called)
        info = {} if isinstance(self.source, Mapping) else {"dataset": self.source}
        self.spec = Spec(served(obs), action, called, info, shapes, env_obs=obs)
        self.num = 1
        self.first = torch.ones(1, dtype=torch.bool)

    @classmethod
    def of(cls, source: Any, num: int, seed: int, evaluation: bool, **options: Any) -> Unplayed:
        """As `make`, of arrays in a dict, or of a dataset whose environment is not here."""
        cls.check_options(arrays.arrays_name(source), options)
        return cls(source, num, seed, evaluation, **options)

    def decisions(self) -> arrays.Decisions:
        """What the arrays hold; read anew where they were asked for before, so that they are kept but once."""
        found, self._decisions = self._decisions, None
        return found or arrays.decisions(self.source, self.spec.facts)

    def check_played(self) -> NoReturn:
        raise UsageError(_absent(self.spec.name, "one"))

    def reset(self, rows: Any = None, index: Any = None) -> Obs:
        self.check_played()

    def step(self, record: Mapping[str, Any]) -> Step:
        self.check_played()

    def _twin(self, rows: int, seed: int) -> Task:
        self.check_played()


def _absent(name: str, what: str) -> str:
    how = "name it with --task, and the data with --dataset"
    return f"{name} is recorded data without an environment, and this needs {what}: {how}"
