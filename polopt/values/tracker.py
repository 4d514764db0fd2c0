"""A success rate per problem, remembered over the whole run: SPO, arXiv 2509.13232."""

from __future__ import annotations

import torch
from torch import Tensor

from polopt.core.batch import same_shape
from polopt.core.errors import CheckpointError
from polopt.core.state import Leaf, Stateful


class BetaTracker(Stateful):
    """Pseudo-counts alpha (successes) and beta (failures) of `size` problems, with a memory that adapts to drift.

    The value of a problem is alpha / (alpha + beta). A reward r updates alpha <- rho alpha + r and
    beta <- rho beta + 1 - r, which moves the value by (r - value) / (rho (alpha + beta) + 1): for rewards that are no
    0/1 (any number, with values then outside of [0, 1]) the same rule is an exponential average.
    `rho` in [rho_low, rho_high] is the share of the memory that stays, 1 / (1 - rho) its effective length.

    Args:
        size: number of problems; their ids are 0 ... size - 1.
        half_drift: mean |change of log-probability| per token that halves the memory.
        floor: added to the sampling weight, so that no problem is given up.

    Raises ValueError for a range of rho that is not inside (0, 1). The counts are saved.
    """

    def __init__(
        self,
        size: int,
        *,
        half_drift: float = 0.06,
        rho_low: float = 0.875,
        rho_high: float = 0.96,
        floor: float = 0.05,
    ) -> None:
        if not 0 < rho_low <= rho_high < 1:
            raise ValueError(f"rho must be inside (0, 1), not from {rho_low} to {rho_high}")
        self.size = size
        self.half_drift, self.rho_low, self.rho_high, self.floor = half_drift, rho_low, rho_high, floor
        self.alpha = torch.full((size,), 0.5)
        self.beta = torch.full((size,), 0.5)

    def value(self, index: Tensor | None = None) -> Tensor:
        """alpha / (alpha + beta) of the problems `index` (int64, any shape; none: all, [size])."""
        value = self.alpha / (self.alpha + self.beta)
        return value if index is None else value[index]

    def initialize(self, successes: Tensor, n: int, index: Tensor | None = None) -> None:
        """Starts problems from `successes` (any number in 0 ... n, shaped like `index`) of `n` tries.

        The counts are smoothed by half a success and half a failure and scaled to a total of 1 / (1 - rho_low), the
        length of the shortest memory; n = 0 leaves alpha = beta = 0.5. `index` none: all problems, `successes` [size].
        """
        if n == 0:
            alpha = torch.full_like(successes, 0.5, dtype=self.alpha.dtype)
            beta = alpha.clone()
        else:
            total = 1 / (1 - self.rho_low)
            alpha = total * (successes.to(self.alpha) + 0.5) / (n + 1)
            beta = total - alpha
        index = torch.arange(len(self.alpha), device=self.alpha.device) if index is None else index
        same_shape(successes=successes, index=index)
        self.alpha[index], self.beta[index] = alpha, beta

    def forget(self, drift: Tensor) -> Tensor:
        """rho = 2^(-drift / half_drift), kept in [rho_low, rho_high]; shaped like `drift`.

        `drift` is the mean over tokens of |log_prob then - log_prob now| of the response that was stored at the last
        visit of the problem, 0 at its first visit.
        """
        return torch.exp2(-drift / self.half_drift).clamp(self.rho_low, self.rho_high)

    @torch.no_grad()
    def update(self, index: Tensor, reward: Tensor, rho: Tensor) -> None:
        """Takes in rewards [B] of the problems `index` [B] with memories `rho` [B], in that order.

        A problem that appears several times is updated several times, one after the other. Read `value` for the
        baseline BEFORE this call. Raises ValueError when shapes differ.
        """
        same_shape(index=index, reward=reward, rho=rho)
        index = index.to(self.alpha.device)
        reward, rho = reward.to(self.alpha), rho.to(self.alpha)
        turn = _occurrence(index)
        for each in range(int(turn.max()) + 1 if len(turn) else 0):  # one round unless a problem is repeated
            now = turn == each
            at, keep, r = index[now], rho[now], reward[now]
            self.alpha[at] = keep * self.alpha[at] + r
            self.beta[at] = keep * self.beta[at] + (1 - r)

    def weight(self) -> Tensor:
        """Sampling weights [size], sqrt(value (1 - value)) + floor: largest for problems solved half of the time."""
        value = self.value()
        return (value * (1 - value)).clamp_min(0).sqrt() + self.floor

    def extra_state(self) -> dict[str, Leaf]:
        return {"alpha": self.alpha, "beta": self.beta}

    def load_extra_state(self, state: dict[str, Leaf]) -> None:
        for name in ("alpha", "beta"):
            if state[name].shape != self.alpha.shape:
                raise CheckpointError(f"its tracker has {len(state[name])} problems, this run {len(self.alpha)}")
            setattr(self, name, state[name].to(self.alpha).clone())


def _occurrence(index: Tensor) -> Tensor:
    """How many equal elements come before each element of `index` [B]."""
    order = index.argsort(stable=True)
    ordered, place = index[order], torch.arange(len(index), device=index.device)
    new = torch.ones_like(ordered, dtype=torch.bool)
    new[1:] = ordered[1:] != ordered[:-1]
    first = torch.where(new, place, 0).cummax(0).values if len(index) else place
    return torch.empty_like(index).scatter(0, order, place - first)
