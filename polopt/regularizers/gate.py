"""A gate between a policy that learns and the best one so far, and a divergence from that one that waits for a miss.

Uni-O4 (arXiv 2311.03351) replaces its old policy when an off-policy estimate says that the new one is better; RL-100
(arXiv 2510.14830) when it is better by 5 percent, and puts the policy back otherwise; OSPO anchors its policy at the
best evaluated one, from the first evaluation on that brought nothing new.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from polopt.core.snapshot import Archive, give, take
from polopt.core.state import Stateful


class BestSoFar(Stateful):
    """Keeps what was learned at the best estimate, and says whether a candidate may take its place.

    Args:
        kept: what belongs together: a policy, and its optimizer if it is to be put back too.
        rise: a candidate must beat the best estimate J by more than this share of |J|; 0: by anything.
        restore: put the best back whenever a candidate is turned down; else the candidate goes on from where it is.

    Attributes:
        best: the estimate of what is kept, None before the first.
        accepted, missed: how often a candidate took the place, and how often in a row since then none did.
    """

    saved = ("best", "accepted", "missed", "ever_missed")

    def __init__(self, kept: Sequence[nn.Module | Stateful], *, rise: float = 0.0, restore: bool = False) -> None:
        self._kept: list[Any] = list(kept)  # it belongs to the method, which saves it
        self.rise, self.restore = rise, restore
        self.best: float | None = None
        self.accepted, self.missed, self.ever_missed = 0, 0, False
        self.archive = Archive()
        self.archive.add(take(self._kept))

    def judge(self, estimate: float, again: float | None = None) -> bool:
        """Whether the present state, with this estimate, becomes the best.

        `again` is the estimate of the best one on the same draws, where both were estimated anew: the difference is
        then that of the policies and not of the luck. An estimate that is not finite is never accepted; the first
        finite one always is.
        """
        before = self.best if again is None else again
        better = before is None or estimate - before > self.rise * abs(before)
        if math.isfinite(estimate) and better:
            self.best, self.missed = estimate, 0
            self.accepted += 1
            self.archive = Archive()
            self.archive.add(take(self._kept))
            return True
        self.missed, self.ever_missed = self.missed + 1, True
        if self.restore:
            self.recall()
        return False

    def recall(self) -> None:
        """Puts the best state back."""
        give(self._kept, self.archive[0].snapshot)


class DelayedAnchor(nn.Module):
    """coefficient * KL from an anchor, which counts from `begin` on; steps beyond `limit` are left out.

    In an update: `renew()` first, then for every step `penalty(kl)` joins the loss, and the step is taken where
    `allows(kl)`; each that is not doubles the coefficient for the rest of the update.
    """

    value: Tensor
    active: Tensor

    def __init__(self, coefficient: float = 0.5, limit: float = 0.01) -> None:
        super().__init__()
        self.coefficient, self.limit = coefficient, limit
        self.register_buffer("value", torch.tensor(float(coefficient)))
        self.register_buffer("active", torch.tensor(False))

    def begin(self) -> None:
        """From here on it restrains: after an evaluation that brought nothing better."""
        self.active.fill_(True)

    def renew(self) -> None:
        """The coefficient as it was at first."""
        self.value.fill_(self.coefficient)

    def penalty(self, kl: Tensor) -> Tensor:
        """What to add to the loss, 0-d."""
        return torch.where(self.active, self.value, 0.0) * kl

    @torch.no_grad()
    def allows(self, kl: Tensor) -> Tensor:
        """Whether a step at this divergence is taken, bool 0-d."""
        beyond = self.active & (kl.detach() > self.limit)
        self.value.mul_(torch.where(beyond, 2.0, 1.0))
        return ~beyond
