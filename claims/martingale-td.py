"""Martingale policy evaluation: the TD error's minimum is the wrong value, however fine the grid of times.

`brownian`: dX = 0.3 dt + 0.8 dW until time 1, from N(0, 1), with the rate -X^2 and the payoff X_1^2. The exact value
lies in the span of the six features, so that only the condition and the grid make an error. 10,000 episodes, in batches
of 100, at dt = 1/10, 1/30 and 1/100; all arms see the same episodes of a seed. `clstd` and `clstd-0.5` (lambda 0.5),
`ml` (martingale loss) and `td-error` are solved by least squares over all episodes, each in its own best case; `ctd`
and `ctd-0.5` step by lr k^-0.67, with the mean over lr 0.1, 0.3 and 1 of every metric, so that no rate is chosen.

`error` is the L2 distance of J from the exact value under the distribution of (t, X_t), by quadrature, at dt = 1/100;
`log_error` its logarithm, so that differences are ratios; `fall` is log(error at 1/10 / error at 1/100). `excess` is
for features of degree 1, without tau x^2, in which nothing is exact: the error over that of the best approximation,
minus 1. `flatness` is how far J's slope in x is from the slope of least quadratic variation, E int (J_x)^2 dt, over how
far it is from the true slope: 0 is the first, above 1 is nearer to the second.

Pilots (seeds 1000 and 1001): `error` 0.64 of td-error, 0.02 and 0.03 of ml, 0.014 of clstd, 0.20 of ctd, 0.23 of
ctd-0.5; `fall` -0.3 of td-error, 0.7 to 1.0 of ml, 1.2 to 1.5 of clstd; `flatness` 0.08 of td-error, above 5 of all
others; `excess` below 0.0003 of ml, 0.005 of clstd, 0.05 of td-error.

Expectations: the paper says what the minimum of the TD error tends to, that CLSTD and the martingale loss do tend to
the value, and that the latter gives the best approximation. A perfect learner has errors of the grid, of the order of
dt, and of sampling, about 0.01 to 0.03; one whose test function sees the next state keeps Ito's correction, 0.1.

What was found: the minimum of the TD error is 0.64 from the value at dt = 1/100, and 0.49 at 1/10: it goes away from it
as the grid is refined, to the value of least quadratic variation (flatness 0.08). The martingale loss is 0.021 away,
CLSTD 0.017, steps of CTD 0.20 after 10,000 episodes. Where the features cannot hold the value the martingale loss has
its best approximation to within 0.04 %, CLSTD is 0.6 % and the TD error 5 % above. What was not seen surely is that the
errors of the two right conditions fall with dt: by a factor of 1.5 and 1.8 in the mean, but at 1/100 what is left is
luck of 10,000 episodes (0.011 to 0.032 by seed), which the expectation, set by two pilots, left no room for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import log
from typing import Any

from polopt.claims import Above, Below, Claim, Greater

HORIZONS = (10, 30, 100)
COLLECT, BATCH = 1000, 100
RATES = (0.1, 0.3, 1.0)
DRIFT, DEVIATION = 0.3, 0.8


def states() -> tuple[Any, Any]:
    """Nodes [n, 2] of (time left, x) and weights [n] that add up to 1: the distribution of (t, X_t), t uniform."""
    import numpy as np
    import torch

    nodes, weights = np.polynomial.hermite_e.hermegauss(12)
    times, spans = np.polynomial.legendre.leggauss(12)
    time = (times[:, None] + 1) / 2
    x = DRIFT * time + np.sqrt(1 + DEVIATION**2 * time) * nodes
    obs = np.stack(np.broadcast_arrays(1 - time, x), -1).reshape(-1, 2)
    weight = (spans[:, None] / 2) * weights / weights.sum()
    return torch.from_numpy(obs), torch.from_numpy(weight.reshape(-1))


def norm(values: Any, weight: Any) -> float:
    return float((weight * values.detach().square()).sum().sqrt())


def slope(values: Any, obs: Any) -> Any:
    """The derivative in x of values [n] at obs [n, 2]."""
    import torch

    return torch.autograd.grad(values.sum(), obs)[0][:, 1]


def best(features: Any, target: Any, weight: Any) -> Any:
    """Weights [d] of the smallest L2 distance; the smallest ones where several have it."""
    import torch

    root = weight.sqrt()
    return torch.linalg.pinv(root.unsqueeze(-1) * features) @ (root * target)


def measured(learner: Any) -> dict[str, float]:
    """Distances of J, and of its slope, by quadrature; `excess` is 0 where the features hold the value."""
    import torch

    obs, weight = states()
    obs.requires_grad_()
    value, world = learner.value, learner.value.diffusion
    phi, exact = value.phi(obs), world.value(obs)
    slopes = torch.stack([slope(value.phi(obs)[:, index], obs) for index in range(phi.shape[1])], -1)
    paid = slope(world.payoff(obs), obs)
    flattest = paid + slopes @ best(slopes, -paid, weight)
    found = paid + slopes @ value.weights
    projection = value.payoff(obs) + phi @ best(phi, exact - value.payoff(obs), weight)
    error, least = norm(value(obs) - exact, weight), norm(projection - exact, weight)
    return {
        "error": error,
        "excess": error / least - 1 if least > 1e-6 else 0.0,
        "flatness": norm(found - flattest, weight) / norm(found - slope(exact, obs), weight),
    }


@dataclass(frozen=True)
class Evaluated:
    """An arm that evaluates the same episodes on every grid, at every rate, with features of both degrees."""

    settings: tuple[tuple[str, Any], ...]
    rates: tuple[float, ...] = ()

    def __call__(self, seed: int, budget: Mapping[str, int]) -> dict[str, float]:
        found: dict[str, float] = {}
        for horizon in HORIZONS:
            rates = [{"solver.lr": rate} for rate in self.rates] or [{}]
            wide, narrow = ([self.learner(seed, horizon, degree, rate) for rate in rates] for degree in (2, 1))
            for _ in range(budget["episodes"] // COLLECT):
                for batch in wide[0].collect().split(BATCH):
                    for learner in (*wide, *narrow):
                        learner.update(batch)
            means = {name: sum(measured(each)[name] for each in wide) / len(wide) for name in ("error", "flatness")}
            means["excess"] = sum(measured(each)["excess"] for each in narrow) / len(narrow)
            found |= {f"{name}@{horizon}": value for name, value in means.items()}
        fall = log(found["error@10"] / found["error@100"])
        return found | means | {"log_error": log(means["error"]), "fall": fall}

    def learner(self, seed: int, horizon: int, degree: int, rate: Mapping[str, float]) -> Any:
        from polopt.training.api import plan

        settings = dict(self.settings) | rate | {"degree": degree, "envs": COLLECT, "batch_episodes": COLLECT}
        settings |= {"network.sizes": (1,)}  # of the policy, which does nothing here
        return plan("martingale-td", "brownian", seed=seed, task_options={"horizon": horizon}, **settings).build()


def evaluated(*rates: float, **settings: Any) -> Evaluated:
    return Evaluated(tuple(settings.items()), rates)


CLAIM = Claim(
    method="martingale-td",
    statement="on Brownian motion the minimum of the mean-square TD error stays away from the value as the grid of "
    "times is refined, at a value of small quadratic variation; CLSTD and the martingale loss go to the value, and "
    "where the features cannot hold it the martingale loss gives the best approximation",
    budget={"episodes": 10_000},
    seeds=10,
    minutes=5,
    arms={
        "ml": evaluated(preset="martingale-loss"),
        "clstd": evaluated(preset="clstd"),
        "clstd-0.5": evaluated(preset="clstd", **{"condition.trace": 0.5}),
        "td-error": evaluated(preset="td-error"),
        "ctd": evaluated(*RATES),
        "ctd-0.5": evaluated(*RATES, **{"condition.trace": 0.5}),
    },
    expect=(
        Below("error", "ml", 0.1, control=True),
        Above("error", "td-error", 0.3, control=True),
        Greater("log_error", "td-error", "ml", by=log(5)),
        Greater("log_error", "td-error", "clstd*", by=log(5)),
        Greater("log_error", "td-error", "ctd*", by=log(1.6)),
        Below("fall", "td-error", 0.0),
        Above("fall", "ml", 0.3),
        Above("fall", "clstd*", 0.3),
        Below("flatness", "td-error", 0.5),
        Below("excess", "ml", 0.002),
        Greater("excess", "clstd", "ml", by=0.002),
        Greater("excess", "td-error", "ml", by=0.02),
    ),
)


def figures(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Errors over the grids, and the values at the start that 10,000 episodes of one seed give."""
    import torch

    from polopt.evaluation.figures import Curves

    errors = {
        arm: [sum(line[f"error@{horizon}"] for line in lines) / len(lines) for horizon in HORIZONS]
        for arm, lines in metrics.items()
    }
    x = torch.linspace(-2.0, 3.0, 41, dtype=torch.float64)
    obs = torch.stack([torch.ones_like(x), x], -1)
    values = {}
    for name, condition in (("martingale loss", "martingale-loss"), ("TD error", "td-error")):
        arm = Evaluated((("condition", condition), ("solver", "least-squares")))
        learner = arm.learner(1000, HORIZONS[-1], 2, {})
        for _ in range(10):
            learner.update(learner.collect())
        values[name] = learner.value(obs).tolist()
        values["exact"] = learner.value.diffusion.value(obs).tolist()
    return {
        "error by steps of the grid": Curves(HORIZONS, errors, x_label="steps", log=True),
        "value at the start, by place": Curves(x, values, x_label="x", dashed=("exact",)),
    }
