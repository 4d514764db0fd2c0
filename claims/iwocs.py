"""IWOCS: few solved models are enough for the robust value of a set, and make a learned policy safe in its worst model.

1. Tables, exact, discount 0.95. A walker takes one of three corridors of 4, 6 and 9 steps; in the first two gusts throw
   back to the start, each with a probability between 0 and 0.5: 25 models (`polopt.tasks.windy`). `exact` searches the
   model with the least sum of values, `start` that with the least value of the start. `gap` is how far the value of
   the final policy in its worst model is below the robust optimum from the start, by robust value iteration with any
   model for any pair; `duality` how far the least optimal value of a model is above that; `solves` how many models were
   solved; `first` the gap of the policy for the windless model. The best there is: gap 0 after 2 solves. A search that
   stops early keeps the gap of the windless policy, and one that adds nothing useful needs more solves.
2. A pendulum that is light: mass 0.35, between 0.3 and 1.7 times that, length between 0.9 and 1.1. In the middle of
   this box, the first model, gravity asks for 1.75 Nm at most and the motor has 2: it lifts the rod at once. At the far
   corner gravity asks for 3.3 Nm: who only lifts stays where the motor just holds the rod, and has to learn to swing.
   Both arms have three times 8,000 steps of SAC: `iwocs` in three models, of which the second and the third are each
   found by a search of 48 models in 20 episodes, `nominal` all in the first. `final` is the least mean return, of ten
   starts, over a grid of 5 x 5 models: at the end of `iwocs`, of the candidate that was kept; of `nominal`, which goes
   on learning, the mean over its last three evaluations. `own` is the least return of an expert by itself in the model
   that it learned in: both arms have to learn for this to say anything. Reported beside it: `alone` and `last`, the
   worst returns of the first candidate and of the last one, whether it was kept or not, and `middle`, the return in
   the middle of the box. Steps of searches count in the run, and are no updates; nobody learns from them.

Pilot, seed 1000, both arms to their end: `iwocs` -137 in the worst model, its experts at least -106 in their own;
`nominal` -523, at its best -495, and -48 in its own. Half of that difference is asked for.

Second registration. In the first (seeds 0 to 4, kept on the page) the box was narrower, up to 2.9 Nm, with 4,000 steps
a model: see the diagnosis. Pilots of others: a pendulum of mass 1 with friction, whose second model SAC did not solve
in 12,000 steps; and mass 0.375, where `nominal` learns by itself to use its momentum, with -296 and -343 after 9,000
steps in the worst of seven models, which leaves little to gain. Nothing of these was recorded.
"""

from __future__ import annotations

from collections.abc import Mapping
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


MODELS, GRID, EPISODES = 3, 5, 10
BOX: dict[str, Any] = {"mass": 0.35, "mass_spread": 0.7, "length_spread": 0.1}
COMMON: dict[str, Any] = {
    "task_options": BOX,
    "sac.warmup": 500,
    "sac.lr": 1e-3,
    "sac.batch_size": 128,
    "sac.network.sizes": (64, 64),
    "grid": GRID,
    "eval_episodes": EPISODES,
}
SEARCH: dict[str, Any] = {"models": MODELS, "population": 8, "generations": 6, "search_episodes": 20}
SEARCHED = 1_000_000  # more steps than all searches of a run take, which ends by itself


def kept(run: Any) -> float:
    """The worst return of the candidate that was kept."""
    return float(run.evaluations[-1]["eval/worst"])


def at_the_end(run: Any) -> float:
    """The mean worst return of a policy that learns to the end."""
    last = [float(row["eval/worst"]) for row in run.evaluations[-3:]]
    return sum(last) / len(last)


def learned(run: Any) -> tuple[Any, Any]:
    """The method as the run left it, and the pendulum of its evaluations."""
    from polopt.training import seeding
    from polopt.training.api import load_method

    method, planned = load_method(run.folder)
    return method, planned.make_task(seeding.EVAL_TASK, EPISODES)


def candidate(run: Any, experts: int) -> float:
    """The worst return of the first so many experts together."""
    from polopt.evaluation.robust import grid_returns

    method, task = learned(run)
    method.policy.used = experts
    return float(grid_returns(method.policy, task, GRID, EPISODES).min())


def alone(run: Any) -> float:
    return candidate(run, 1)


def last(run: Any) -> float:
    return candidate(run, MODELS)


def own(run: Any) -> float:
    """The least mean return of an expert by itself in its own model."""
    import torch

    from polopt.evaluation.robust import returns_in

    method, task = learned(run)
    start = task.start_of(*range(EPISODES))
    return min(
        float(returns_in(task, method.box, expert.actor, torch.tensor([psi]), start)[0].mean())
        for expert, psi in zip(method.policy.experts, method.psi)
    )


def iwocs(seed: int, budget: Mapping[str, int]) -> dict[str, Any]:
    steps = budget["model_steps"]
    metrics = {"final": kept, "own": own, "alone": alone, "last": last, "middle": "eval/return:last"}
    arm = train_arm(
        "iwocs", "pendulum", metrics=metrics, unit="env_steps", eval_every=steps, model_steps=steps, **SEARCH, **COMMON
    )
    return arm(seed, {"env_steps": MODELS * steps + SEARCHED})


def nominal(seed: int, budget: Mapping[str, int]) -> dict[str, Any]:
    steps = budget["model_steps"]
    metrics = {"final": at_the_end, "own": "eval/return:last"}
    arm = train_arm("iwocs", "pendulum", metrics=metrics, unit="env_steps", eval_every=steps // 4, models=1, **COMMON)
    return arm(seed, {"env_steps": MODELS * steps})


CLAIM = Claim(
    method="iwocs",
    statement="of 25 models of a windy walk two solves give the robust optimum; on a light pendulum three models, two "
    "of them found by searches, raise the return in the worst model far above that of SAC in the nominal one",
    budget={"model_steps": 8_000},
    quick={"model_steps": 700},
    seeds=5,
    minutes=20,
    deterministic=("exact", "start"),
    revision=2,
    first_seed=10,
    diagnosis="The control that every expert learned its own model failed: -235 in the mean (-292 to -147) where -250 "
    "was asked, so 4,000 steps were too few to say what experts give together; they are 8,000 now. And `nominal` ended "
    "at -323 to -389, for at 2.9 Nm in the farthest model a policy that lifts still comes far: the box is wider. Half "
    "of a pilot's effect is asked for, where the first had no pilot of both arms.",
    arms={"exact": exact_sum, "start": exact_start, "iwocs": iwocs, "nominal": nominal},
    expect=(
        Below("gap", "exact", 1e-3),
        Below("solves", "exact", 5.5),
        Greater("final", "iwocs", "nominal", by=190),
        Below("duality", "exact", 1e-6, control=True),
        Above("first", "exact", 1.0, control=True),
        Above("own", "nominal", -150, control=True),
        Above("own", "iwocs", -250, control=True),
    ),
)
