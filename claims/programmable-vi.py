"""Programmable variational inference: any mixture of gradient strategies is unbiased, and tighter bounds are programs.

First part, exact: a program of three choices, a coin, a normal x that depends on it and a coin that depends on x, with
a smooth loss of all three and costs between them. Its gradient in four parameters is known by enumerating the coins and
quadrature over x. For each pair of strategies of the coins (`enum`, `mvd`, `score`, `base`: the measure-valued
derivative, and reinforce without and with the expected loss as its baseline; x is reparameterized, in `score@x` scored)
200,000 runs give a gradient each: `z` is the largest distance of their mean from the exact gradient, over the four
parameters, in standard errors, `value_z` that of the value; `noise` the logarithm of the sum of their variances.
`dropped` is broken: at the second choice it forgets the probability of the first, as where a score is not carried
through what follows.

Second part: the noisy cone of the paper, each arm as in the released code (64 runs per update, SGD at 1e-3, from its
initial values; 3,000 updates in place of 5,000, and for `iwelbo` 64 runs as all others have, where the code has one).
`bound` is the mean of the objective over 10,000 fresh draws. The log evidence is -5.323 and the best mean-field ELBO
-8.087, both by quadrature: no bound can be above the first (one of fresh auxiliary choices alone would be), no mean-
field ELBO above the second. The released code prints -8.08 for `elbo`, -7.67 for `iwelbo`, -9.75 for `hvi`, -8.18 for
`iwhvi` and -7.30 for `diwhvi`; 0.3 around these was set before any run.

Pilots (seeds 1000 and 1001): `z` 0.2 to 1.4 in all pairs, 423 of `dropped`; `noise` -1.6 of enum@enum, -0.8 and -0.5
with one coin by mvd, -0.7 and 0.3 by base, 0.7 by score; bounds -8.08 and -8.10, -7.52, -9.76, -8.19, -7.30.

A right implementation has `z` below 4 but for one seed in thousands, with means around 1.2.

What was found: all of it, `z` 0.4 to 2.6 in all seeds of all pairs and 424 where a probability is forgotten. As `noise`
is a logarithm, two coins by reinforce cost 26 times the variance of two enumerated ones, and scoring x seven times that
again. A baseline makes the first coin almost as quiet as the measure-valued derivative does, the second one 2.4 times
as noisy as that, and halves the variance where both have it. The bounds are the printed ones within 0.01, but for
IWELBO, which with 64 runs per update comes to -7.52 where the released code prints -7.67 for one. All seeds are
evaluated by the same draws, so that their spread, below 0.01 but for ELBO, is that of training only: the standard error
of a mean over the 10,000 draws is 0.01 to 0.04.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from polopt.claims import Above, Below, Claim, Ordered

RUNS = 200_000
DRAWS = 10_000
START = (0.4, 0.3, -0.2, 0.5)  # logit of the first coin; mean, log deviation of x; logit of the second coin
PRINTED = {"iwelbo": -7.67, "hvi": -9.75, "iwhvi": -8.18, "diwhvi": -7.30}  # by the released code
NAMES = {"enum": "enumerated", "mvd": "measure-valued", "score": "reinforce", "base": "reinforce"}


def cost(first: Any, x: Any) -> Any:
    """Known before the second coin."""
    return 0.5 * first * x


def loss(first: Any, x: Any, second: Any, last: Any) -> Any:
    return (1.0 + first - 0.7 * x + 1.5 * second) ** 2 / 2 + last * second * x.sin()


def program(run: Any, start: Any, strategies: tuple[str, str, str], baseline: float) -> Any:
    """The surrogates [rows] of the runs."""
    from torch.distributions import Bernoulli, Normal

    def coin(logits: Any, how: str) -> Any:
        return run.sample(Bernoulli(logits=logits), NAMES[how], baseline if how == "base" else None)

    logit, mean, log_std, last = start
    first = coin(logit, strategies[0])
    x = run.sample(Normal(mean + first, log_std.exp()), strategies[1])
    run.add(cost(first, x))
    second = coin(last + x - first, strategies[2])
    return run.values(loss(first, x, second, last))


def exact() -> tuple[float, Any]:
    """The expected value and its gradient [4], in float64."""
    import numpy as np
    import torch

    nodes, weights = (torch.from_numpy(part) for part in np.polynomial.hermite_e.hermegauss(60))
    start = torch.tensor(START, dtype=torch.float64, requires_grad=True)
    value: Any = 0.0
    for first in (0.0, 1.0):
        x = start[1] + first + start[2].exp() * nodes
        for second in (0.0, 1.0):
            coins = torch.sigmoid((2 * first - 1) * start[0]) * torch.sigmoid((2 * second - 1) * (start[3] + x - first))
            value = (
                value + (weights / weights.sum() * coins * (cost(first, x) + loss(first, x, second, start[3]))).sum()
            )
    (gradient,) = torch.autograd.grad(value, start)
    return value.item(), gradient


@dataclass(frozen=True)
class Unbiased:
    """An arm of the first part."""

    first: str
    second: str
    x: str = "reparameterized"
    dropped: bool = False

    def __call__(self, seed: int, budget: Mapping[str, int]) -> dict[str, float]:
        import torch

        from polopt.core.random import paired
        from polopt.losses.expectations import Expectation

        class Dropped(Expectation):
            def reweigh(self, factor: Any) -> None:
                self.weight = factor

        value, gradient = exact()
        start = [torch.full((RUNS,), each, dtype=torch.float64, requires_grad=True) for each in START]
        with paired(seed):
            run = (Dropped if self.dropped else Expectation)(RUNS)
            values = program(run, start, (self.first, self.x, self.second), value)
        found = torch.stack(torch.autograd.grad(values.sum(), start, materialize_grads=True))  # each run has its own
        error = (found.var(1) / RUNS).sqrt()
        return {
            "z": float(((found.mean(1) - gradient).abs() / error).max()),
            "noise": float(found.var(1).sum().log()),
            "value_z": float((values.detach().mean() - value).abs() / (values.detach().var() / RUNS).sqrt()),
        }


@dataclass(frozen=True)
class Fitted:
    """An arm of the second part: a preset of the method on the cone."""

    preset: str
    trains = ("programmable-vi",)

    def __call__(self, seed: int, budget: Mapping[str, int]) -> dict[str, float]:
        from polopt.training.api import plan

        planned = plan("programmable-vi", "cone", seed=seed, preset=self.preset, envs=64)
        method = planned.build()
        for _ in range(budget["updates"]):
            method.update(method.collect())
        return {"bound": method.evaluate(planned.make_task(1, DRAWS), DRAWS)["bound"]}


PAIRS = {f"{first}@{second}": Unbiased(first, second) for first in NAMES for second in NAMES}
CLAIM = Claim(
    method="programmable-vi",
    statement="whatever gradient strategies the choices of a program have, the gradient is unbiased, with less noise "
    "from enumeration than from the measure-valued derivative or a baseline, and most from reinforce; on the noisy "
    "cone the mean-field ELBO reaches its optimum, IWELBO is above it and DIWHVI, with an auxiliary choice, above both",
    budget={"updates": 3000},
    seeds=5,
    minutes=5,
    arms={
        **PAIRS,
        "score@x": Unbiased("score", "score", "reinforce"),
        "dropped": Unbiased("score", "score", dropped=True),
        **{preset: Fitted(preset) for preset in ("elbo", "iwelbo", "hvi", "iwhvi", "diwhvi")},
    },
    expect=(
        Above("z", "dropped", 10, control=True),
        Below("z", "*@*", 4),
        Below("value_z", "*@*", 4),
        Ordered("noise", ("enum@enum", "mvd@enum", "score@enum")),
        Ordered("noise", ("enum@enum", "base@enum", "score@enum")),
        Ordered("noise", ("enum@enum", "enum@mvd", "enum@score")),
        Ordered("noise", ("enum@enum", "enum@base", "enum@score")),
        Above("bound", "elbo", -8.187),
        Below("bound", "elbo", -7.987),
        Ordered("bound", ("elbo", "iwelbo", "diwhvi"), by=0.1),
        Below("bound", "*elbo", -5.323),
        Below("bound", "*hvi", -5.323),
        *(Above("bound", arm, printed - 0.3) for arm, printed in PRINTED.items()),
        *(Below("bound", arm, printed + 0.3) for arm, printed in PRINTED.items()),
    ),
)
