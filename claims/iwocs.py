"""IWOCS: few solved models are enough for the robust value of a set, and make a learned policy safe in its worst model.

1. Tables, exact, discount 0.95. A walker takes one of three corridors of 4, 6 and 9 steps; in the first two gusts throw
   back to the start, each with a probability between 0 and 0.5: 25 models (`polopt.tasks.windy`). `exact` searches the
   model with the least sum of values, `start` that with the least value of the start. `gap` is how far the value of
   the final policy in its worst model is below the robust optimum from the start, by robust value iteration with any
   model for any pair; `duality` how far the least optimal value of a model is above that; `solves` how many models were
   solved; `first` the gap of the policy for the windless model. The best there is: gap 0 after 2 solves. A search that
   stops early keeps the gap of the windless policy, and one that adds nothing useful needs more solves.
2. The pendulum, mass between 0.7 and 1.3 and friction between 0 and 0.3; the first model has mass 1 and no friction.
   Both arms have two times 12,000 steps of SAC: `iwocs` in two models, of which the second is found by a search of 32
   models, `nominal` all in the first. `final` is the least mean return, of ten starts, over a grid of 5 x 5 models, at
   the end. Steps of searches count in the run, and are no updates; nobody learns from them.

With values on a grid of states in place of learned ones, the policy for the first model has -860 in its worst model,
and the candidate after one search -320, which is the optimum of that model. Who searches nothing, or adds the first
model again, has what `nominal` has.

Pilot, seed 1000, with 5,000 steps for each model: `gap` 0 after 2 solves (3.9 of the first policy; `start` ends with
9.8 after 3). SAC in the first model has -1053 in the worst one of the grid, at the largest mass and friction, and -169
in its own. The search finds a model with friction 0.296, where the candidate has -958; after as many steps there the
second candidate has -1009 in its worst model, and the first one is kept. SAC by itself in that model has -1006 after
4,500 steps, -752 after 7,500 and -606 after 9,000: 5,000 are too few. With the 12,000 above (seed 1000 again) it is the
same: the first candidate is kept, with -1014 in its worst model, where `nominal` has -1080 after as many steps. With
friction up to 0.2 the first candidate has -347, and is kept as well; `nominal` has -835 there at the end and had -347
half way, so that what differs is that IWOCS keeps what was best. The second model has to be learned before this says
anything about the method: nothing is to be recorded with these sizes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from polopt.claims import Above, Below, Claim, Greater, train_arm

DISCOUNT = 0.95


def tables(start: int | None) -> dict[str, Any]:
    from polopt.methods.theory.iwocs import exact
    from polopt.tasks.tabular_sets import discounted_optimal, robust_optimal, worst_model
    from polopt.tasks.windy import gust_grid, windy_walk

    transition, reward = windy_walk(gust_grid())
    robust = float(robust_optimal(reward, worst_model(transition), DISCOUNT)[1][0])
    found = exact(transition, reward, DISCOUNT, start=start)
    worst = [float(values[:, 0].min()) for values in found.values]
    least = float(discounted_optimal(transition, reward, DISCOUNT)[1][:, 0].min())
    return {
        "gap": robust - worst[-1],
        "first": robust - worst[0],
        "duality": abs(least - robust),
        "solves": float(len(found.models)),
    }


def exact_sum(seed: int, budget: Mapping[str, int]) -> dict[str, Any]:
    return tables(None)


def exact_start(seed: int, budget: Mapping[str, int]) -> dict[str, Any]:
    return tables(0)


def last_worst(run: Any) -> float:
    """Of the policy that the run ends with."""
    return float(run.evaluations[-1]["eval/worst"])


COMMON: dict[str, Any] = {
    "task_options": {"length_spread": 0.0, "friction": 0.15, "friction_spread": 1.0},
    "sac.warmup": 500,
    "sac.lr": 1e-3,
    "sac.batch_size": 128,
    "sac.network.sizes": (64, 64),
    "nominal": (0.0, -1.0),
    "grid": 5,
    "eval_episodes": 10,
}


@dataclass(frozen=True)
class Learned:
    """A run of so many models, as long as two of them; with two the run ends by itself after the second search."""

    models: int
    trains = ("iwocs",)

    def __call__(self, seed: int, budget: Mapping[str, int]) -> dict[str, Any]:
        steps = budget["model_steps"]
        own: dict[str, Any] = {}
        if self.models > 1:
            own = {"model_steps": steps, "population": 8, "generations": 4}
        metrics = {"final": last_worst, "nominal_return": "eval/return:last", "mean": "eval/grid_mean:last"}
        arm = train_arm("iwocs", "pendulum", metrics=metrics, eval_every=steps, models=self.models, **COMMON, **own)
        return arm(seed, {"env_steps": (2 if self.models == 1 else 60) * steps})


CLAIM = Claim(
    method="iwocs",
    statement="of 25 models of a windy walk two solves give the robust optimum; on the pendulum the second model, "
    "found by a search, raises the return in the worst model far above that of SAC in the nominal one",
    budget={"model_steps": 12_000},
    quick={"model_steps": 700},
    seeds=3,
    minutes=20,
    deterministic=("exact", "start"),
    arms={
        "exact": exact_sum,
        "start": exact_start,
        "iwocs": Learned(2),
        "nominal": Learned(1),
    },
    expect=(
        Below("gap", "exact", 1e-3),
        Below("solves", "exact", 5.5),
        Greater("final", "iwocs", "nominal", by=200),
        Below("duality", "exact", 1e-6, control=True),
        Above("first", "exact", 1.0, control=True),
    ),
)
