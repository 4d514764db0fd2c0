"""Expected values of random programs, with a way to differentiate chosen at each random choice.

Lew, Huot, Staton and Mansinghka, "ADEV: Sound Automatic Differentiation of Expected Values of Probabilistic Programs",
POPL 2023, arXiv 2212.06386; here for reverse mode, by a surrogate: a number whose value is an estimate of the expected
value, and whose gradient is an unbiased estimate of its gradient.

A program is a function that calls `expectation.sample(distribution, strategy)` and returns a loss. `rows` independent
copies of it run side by side, as tensors [rows]. What follows a choice is its continuation k; each strategy gives k a
weight, and all weights of a copy multiply:

    reparameterized   x = g(parameters, noise): the gradient goes through x                               weight 1
    reinforce         x is a constant, whose probability has the gradient               exp(log p(x) - sg log p(x))
    enumerated        every x in its own branch, an axis in front of all tensors                          p(x)
    measure-valued    of a coin b with p = P(b = 1), and the other branch 1 - b    1 + s (p - sg p) and -s (p - sg p),
                      s = 2 b - 1: together p' (k(1) - k(0)), where the other branch's own derivative has the factor 0

A baseline c of a choice is taken from k and added again before it: k - c weighs as k, c as what was before.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.distributions import Bernoulli, Distribution

from polopt.core.errors import UsageError, nearest


class Expectation:
    """One run of a program in `rows` copies.

    Attributes:
        shape: [*branches, rows], the shape of what is computed now; branches stand in front.
        weight: of the present branches, with the gradients of the choices so far.
        plates: sizes of the axes of particles, the innermost first, in front of `shape` while they are open.
    """

    def __init__(self, rows: int, device: torch.device | str = "cpu") -> None:
        self.shape = torch.Size([rows])
        self.weight = torch.ones(rows, device=device)
        self.plates: tuple[int, ...] = ()
        self._total = torch.zeros(rows, device=device)

    def sample(self, distribution: Distribution, strategy: str, baseline: Tensor | float | None = None) -> Tensor:
        """A value [*plates, *branches, rows, *event] of the distribution, independent in all of them.

        Its parameters broadcast with that shape. `baseline`, [*branches, rows] or a number, must not depend on what is
        drawn here. Raises UsageError, one sentence, for a strategy that there is not, or that does not fit.
        """
        if strategy not in STRATEGIES:
            raise UsageError(f"there is no strategy '{strategy}'{nearest(strategy, STRATEGIES)}")
        if baseline is not None:
            baseline = torch.as_tensor(baseline).detach()
            self.add(baseline)
        value = STRATEGIES[strategy](self, distribution.expand((*self.plates, *self.shape)))
        if baseline is not None:
            self.add(-baseline)
        return value

    @contextmanager
    def plate(self, particles: int) -> Iterator[None]:
        """Inside, what is drawn has an axis of `particles` independent copies in front. One particle has no axis."""
        before = self.plates
        self.plates = (particles, *before) if particles > 1 else before
        yield
        self.plates = before

    def add(self, cost: Tensor | float) -> None:
        """Adds a cost [*branches, rows] to the value: choices made later have nothing to do with it."""
        cost = (self.weight * cost).broadcast_to(self.shape)
        self._total = self._total + cost.reshape(-1, self.shape[-1]).sum(0)

    def values(self, loss: Tensor | float = 0.0) -> Tensor:
        """The surrogates [rows] of the costs so far and of the loss [*branches, rows] that the program returned."""
        self.add(loss)
        return self._total

    def reweigh(self, factor: Tensor) -> None:
        """Multiplies the weight; a factor of particles [*plates, *branches, rows] is that of all of them together."""
        together = factor.flatten(0, len(self.plates) - 1).prod(0) if self.plates else factor
        self.weight = self.weight * together

    def branch(self, factors: Tensor) -> None:
        """Continues in branches with these factors [K, *branches, rows]. Raises UsageError where there are particles:
        every combination of their values would be a branch."""
        if self.plates:
            raise UsageError("a choice that is enumerated or measure-valued cannot stand among several particles")
        self.shape = torch.Size([len(factors), *self.shape])
        self.weight = self.weight * factors


class Sampling(Expectation):
    """A run without derivatives and without branches: every choice is drawn."""

    @torch.no_grad()
    def sample(self, distribution: Distribution, strategy: str = "", baseline: Tensor | float | None = None) -> Tensor:
        return distribution.expand((*self.plates, *self.shape)).sample()


def reparameterized(run: Expectation, distribution: Distribution) -> Tensor:
    if not distribution.has_rsample:
        raise UsageError(f"a choice from {_name(distribution)} cannot be reparameterized: reinforce serves any choice")
    return distribution.rsample()


def reinforce(run: Expectation, distribution: Distribution) -> Tensor:
    value = distribution.sample()
    log_prob = distribution.log_prob(value)
    run.reweigh((log_prob - log_prob.detach()).exp())
    return value


def enumerated(run: Expectation, distribution: Distribution) -> Tensor:
    if not distribution.has_enumerate_support:
        raise UsageError(f"a choice from {_name(distribution)} has no finite number of values to enumerate")
    values = distribution.enumerate_support()
    run.branch(distribution.log_prob(values).exp())
    return values


def measure_valued(run: Expectation, distribution: Distribution) -> Tensor:
    if not isinstance(distribution, Bernoulli):
        raise UsageError(f"the measure-valued derivative is that of a coin, a Bernoulli, not of {_name(distribution)}")
    value = distribution.sample()
    change = (2 * value - 1) * (distribution.probs - distribution.probs.detach())
    run.branch(torch.stack((1 + change, -change)))
    return torch.stack((value, 1 - value))


Strategy = Callable[[Expectation, Distribution], Tensor]
STRATEGIES: dict[str, Strategy] = {
    "reparameterized": reparameterized,
    "reinforce": reinforce,
    "enumerated": enumerated,
    "measure-valued": measure_valued,
}


def log_mean_exp(log_weight: Tensor, particles: int) -> Tensor:
    """log of the mean over the axis in front, where `plate(particles)` made one."""
    return log_weight if particles == 1 else torch.logsumexp(log_weight, 0) - math.log(particles)


def _name(distribution: Distribution) -> str:
    return f"a {type(distribution).__name__}"
