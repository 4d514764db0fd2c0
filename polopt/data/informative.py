"""Dynamic sampling: groups that teach nothing are left out, and others are sampled in their place."""

from __future__ import annotations

from torch import Tensor

from polopt.core.batch import Batch
from polopt.data.base import Acts, Source
from polopt.data.mixing import cat_rows
from polopt.values.groups import group_equal


def distinct(batch: Batch) -> Tensor:
    """Whether the rewards in the group of a row differ, of those that could be computed (bool [B])."""
    return ~group_equal(batch["reward"], batch["group"], ~batch["failed"])


class Informative(Source):
    """The first `groups` groups with rewards that differ, from at most `tries` batches of `source` in a call.

    DAPO's dynamic sampling (arXiv 2503.14476, section 3.2). What is sampled in excess is thrown away, and the ledger
    counts all that was sampled. When the tries are used up a batch has fewer groups; where no group is left it is the
    last batch as it was sampled. `tried` and `kept` say how many groups the last call sampled, and how many of them
    were informative.
    """

    def __init__(self, source: Source, groups: int, tries: int) -> None:
        self.source = source
        self.groups = groups
        self.tries = tries
        self.tried = self.kept = 0

    def next(self, actor: Acts) -> Batch:
        parts: list[Batch] = []
        self.tried = self.kept = 0
        for _ in range(self.tries):
            batch = self.source.next(actor)
            rows = batch[distinct(batch)]
            self.tried += len(batch["group"].unique())
            rows["group"] = rows["group"].unique(return_inverse=True)[1] + self.kept
            self.kept += len(rows["group"].unique())
            parts.append(rows)
            if self.kept >= self.groups:
                break
        if not self.kept:
            return batch
        joined = cat_rows(parts)
        return joined[joined["group"] < self.groups]

    def episodes(self) -> list[tuple[float, int]]:
        return self.source.episodes()
