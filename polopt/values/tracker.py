"""Success rates of problems, remembered over the whole run: SPO, arXiv 2509.13232, and VADE, arXiv 2511.18902."""

from __future__ import annotations

import torch
from torch import Tensor

from polopt.core.batch import same_shape
from polopt.core.errors import CheckpointError
from polopt.core.state import Leaf, Stateful


class BetaCounts(Stateful):
    """Pseudo-counts alpha (successes) and beta (failures) of `size` problems, whose ids are 0 ... size - 1.

    They begin at `start`; `prior` is added to both wherever they are read. The counts are saved.
    """

    def __init__(self, size: int, start: float, prior: float = 0.0) -> None:
        self.size, self.prior = size, prior
        self.alpha = torch.full((size,), start)
        self.beta = torch.full((size,), start)

    def value(self, index: Tensor | None = None) -> Tensor:
        """Mean success rate of the problems `index` (int64, any shape; none: all, [size])."""
        value = (self.alpha + self.prior) / (self.alpha + self.beta + 2 * self.prior)
        return value if index is None else value[index]

    def extra_state(self) -> dict[str, Leaf]:
        return {"alpha": self.alpha, "beta": self.beta}

    def load_extra_state(self, state: dict[str, Leaf]) -> None:
        for name in ("alpha", "beta"):
            if state[name].shape != self.alpha.shape:
                raise CheckpointError(f"its tracker has {len(state[name])} problems, this run {len(self.alpha)}")
            setattr(self, name, state[name].to(self.alpha).clone())


class BetaBelief(BetaCounts):
    """What is believed of each problem: Beta(alpha + 1, beta + 1), uniform before anything was seen of it.

    Evidence fades at two rates: of problems that were just tried by the factor `tried`, of all others by `untried`.
    Steady tries of n each leave n / (1 - tried) counts; evidence that is left alone halves in ln 2 / (1 - untried)
    updates (arXiv 2511.18902).
    """

    def __init__(self, size: int, *, tried: float, untried: float) -> None:
        super().__init__(size, 0.0, prior=1.0)
        self.tried, self.untried = tried, untried

    def draw(self, generator: torch.Generator) -> Tensor:
        """One success rate of every problem, drawn from its belief: [size], float64."""
        shape = torch.stack([self.alpha, self.beta]).double() + self.prior
        success, failure = torch._standard_gamma(shape, generator)  # torch.distributions takes no generator
        return success / (success + failure)

    @torch.no_grad()
    def update(self, index: Tensor, success: Tensor) -> None:
        """Takes in the tries [B] of the problems `index` [B], 1 for a success and 0 for a failure, and fades the rest.

        One call is one update: a problem that appears several times fades once. Raises ValueError when shapes differ.
        """
        same_shape(index=index, success=success)
        index, success = index.to(self.alpha.device), success.to(self.alpha)
        successes = torch.zeros_like(self.alpha).index_add(0, index, success)
        failures = torch.zeros_like(self.beta).index_add(0, index, 1 - success)
        fade = torch.full_like(self.alpha, self.untried).index_fill(0, index, self.tried)
        self.alpha = fade * self.alpha + successes
        self.beta = fade * self.beta + failures


class BetaTracker(BetaCounts):
    """A success rate of each of `size` problems, alpha / (alpha + beta), with a memory that adapts to drift.

    A reward r updates alpha <- rho alpha + r and beta <- rho beta + 1 - r, which moves the value by
    (r - value) / (rho (alpha + beta) + 1): for rewards that are no 0/1 (any number, with values then outside of [0, 1])
    the same rule is an exponential average.
    `rho` in [rho_low, rho_high] is the share of the memory that stays, 1 / (1 - rho) its effective length.

    Args:
        size: number of problems.
        half_drift: mean |change of log-probability| per token that halves the memory.
        floor: added to the sampling weight, so that no problem is given up.

    Raises ValueError for a range of rho that is not inside (0, 1).
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
        super().__init__(size, 0.5)
        self.half_drift, self.rho_low, self.rho_high, self.floor = half_drift, rho_low, rho_high, floor

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


def _occurrence(index: Tensor) -> Tensor:
    """How many equal elements come before each element of `index` [B]."""
    order = index.argsort(stable=True)
    ordered, place = index[order], torch.arange(len(index), device=index.device)
    new = torch.ones_like(ordered, dtype=torch.bool)
    new[1:] = ordered[1:] != ordered[:-1]
    first = torch.where(new, place, 0).cummax(0).values if len(index) else place
    return torch.empty_like(index).scatter(0, order, place - first)
