"""One policy of an archive at a time: that which suits a preference best."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from polopt.core.errors import UsageError
from polopt.core.snapshot import Entry
from polopt.core.state import restore, unlearned
from polopt.optim.copies import duplicate
from polopt.policies.base import Actor
from polopt.policies.wrappers import Wrapper


class Ranked(Protocol):
    """An archive of policies, each noted with its "returns", that knows the best one for weights of the objectives, as
    `polopt.evaluation.pareto.Front` does."""

    @property
    def returns(self) -> Any: ...

    def best(self, weights: Sequence[float]) -> int: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Entry: ...


class Preferred(Wrapper):
    """Acts as that policy of `archive` whose returns have the largest weighted sum.

    `polopt.load(run).prefer([0.3, 0.7])` is the one for these weights. Before one was kept it acts as `actor`, of which
    it has a copy. Entries of the archive hold the policy of a learner as `policy`; they are the owner's to save.
    """

    def __init__(self, actor: Actor, archive: Ranked) -> None:
        super().__init__(duplicate(actor).requires_grad_(False))
        self.family = actor.family
        self._archive = archive

    @property
    def returns(self) -> Any:
        """The returns [n, m] of every policy there is, one for each objective."""
        return self._archive.returns

    def prefer(self, weights: Sequence[float]) -> Preferred:
        """Acts from here on for these weights of the objectives; returns itself.

        Raises UsageError for another number of weights, and where there is no policy yet.
        """
        if not len(self._archive):
            raise UsageError("no policy has been kept yet, so none can be preferred")
        count = self.returns.shape[1]
        if len(weights) != count:
            raise UsageError(f"there are {count} objectives, and a preference has a weight for each of them")
        return self.show(self._archive.best(weights))

    def show(self, index: int) -> Preferred:
        """Acts from here on as the policy of the entry with this number; returns itself."""
        entry: Any = self._archive[index].snapshot
        tensors = entry.blobs[""].tensors()
        restore(self.actor, {k: v for k, v in tensors.items() if k.startswith("policy.")}, "policy", skip=unlearned)
        self.reset()
        return self
