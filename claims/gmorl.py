"""GMORL: one policy that is told the preference does not stand behind one policy for each with all of its budget.

`edge` with one to four edge servers, drawn with their frequencies at every start, and seven weights of delay, dense
near 1, where delay begins to count: on an empty server the energy of a task is 20 to 160 times its delay. Both methods
have 5,000 updates in all, with two steps of the world and a batch of 128 for each:

    gmorl    one policy for the seven weights
    each     a policy for each weight with a seventh of the steps and updates, from fresh weights: discrete SAC with
             the same networks, which GMORL is where there is one preference (a limit case, tested to the bit)
    greedy   takes the best reward of the step as the simulator tells it: no learner, and not to be beaten

Both methods have the best of four rates by `hypervolume` on a tuning seed: one of them makes seven times as many steps
as the other with each of its networks. For the same reason the temperature, which moves by a rate at a step, begins at
0.05 and not at 1, where a run of 700 updates at 1e-3 would still have half of it.

All play 64 greedy episodes for each weight on the same systems. `hypervolume` is that of the mean returns of delay and
energy of all seven, above three times those of random actions on these systems, as a share of the rectangle from there
to 0: random actions have 0.44. `follows` is the rank correlation of the weight of delay and the return in it. For the
record: `utility`, the weighted returns in the mean over weights, by those of random actions; `unseen`, the hypervolume
on systems with six edge servers, which no training had.

Pilots of seed 1000. `gmorl` with 8,000 updates at 1e-3 and a first temperature of 1: returns of delay and energy from
-76 and -80 at weight 0 over -14 and -143 at 0.9 to -8 and -186 at 1, `follows` 1.0, `hypervolume` 0.634, beside 0.650
of `greedy`; `unseen` 0.622, beside 0.664 of `greedy`. `each` at two weights only, with a seventh of 5,000 updates: -9.9
and -168.8 at 0.95 and 1e-3, -10.2 and -168.9 there at 1e-2, -6.2 and -220.5 at 1 and 1e-3. So the margin of 0.02 is
what is meant by "no less" and follows no result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from polopt.claims import Above, Claim, Greater, best_of

WEIGHTS = (0.0, 0.5, 0.8, 0.9, 0.95, 0.98, 1.0)
SEEN, UNSEEN = {"edges": "1-4", "bins": 30}, {"edges": 6, "bins": 30}
RATES = (3e-4, 1e-3, 3e-3, 1e-2)
EPISODES, WARMUP = 64, 1_400
SETTINGS: dict[str, Any] = {
    "batch_size": 128,
    "entropy.initial": 0.05,
    "replay_size": 20_000,
    "network.sizes": (32, 32),
    "network.head": (32,),
}


def returns(actor: Any, seed: int, **options: Any) -> list[float]:
    """The mean returns of delay and energy, of starts that are the same for all actors."""
    from polopt.evaluation.returns import evaluate_returns
    from polopt.tasks import make_task

    task: Any = make_task("edge", EPISODES, seed, evaluation=True, **options)
    scores = evaluate_returns(task.scripted(actor) if isinstance(actor, str) else actor, task, EPISODES)
    return [scores["return_delay"], scores["return_energy"]]


def volume(points: Sequence[Sequence[float]], random: Sequence[float]) -> float:
    """The hypervolume above three times what random actions have, as a share of all there is."""
    import numpy as np

    from polopt.evaluation.pareto import hypervolume

    return hypervolume(1.0 + np.array(points) / (3.0 * np.abs(random)), (0.0, 0.0))


def trained(preferences: tuple[float, ...], share: float, rate: float, seed: int, updates: int) -> Any:
    """GMORL with these preferences, this share of the budget, and this rate."""
    from polopt.training import api

    settings = {**SETTINGS, "lr": rate, "preferences": preferences, "warmup": max(1, round(share * WARMUP))}
    steps = 2 * updates + WARMUP
    plan = api.plan("gmorl", "edge", task_options=SEEN, seed=seed, steps=steps, loggers=(), **settings)
    method = plan.build()
    for _ in range(round(share * updates)):
        method.update(method.collect())
        method.ledger.updates += 1
    return method


def learned(groups: Sequence[tuple[float, ...]], rate: float, seed: int, budget: Mapping[str, int]) -> dict[str, float]:
    """What the policies of each group of weights are worth together."""
    from polopt.evaluation.measures import rank_correlation

    chosen = {}
    for preferences in groups:
        method = trained(preferences, 1 / len(groups), rate, seed, budget["updates"])
        for weight in preferences:
            told = [weight, 1.0 - weight]
            chosen[weight] = method.policy_told().prefer(told) if method.told else method.policy
    found = {}
    for name, options in (("hypervolume", SEEN), ("unseen", UNSEEN)):
        random = returns("random", seed, **options)
        points = [returns(chosen[weight], seed, **options) for weight in WEIGHTS]
        found[name] = volume(points, random)
        if name == "hypervolume":
            found["follows"] = rank_correlation(WEIGHTS, [delay for delay, _ in points])
            worth = [
                (weight * delay + (1 - weight) * energy) / (weight * random[0] + (1 - weight) * random[1])
                for weight, (delay, energy) in zip(WEIGHTS, points, strict=True)
            ]
            found["utility"] = -sum(worth) / len(worth)
    return found


def greedy(seed: int, budget: Mapping[str, int]) -> dict[str, float]:
    found = {}
    for name, options in (("hypervolume", SEEN), ("unseen", UNSEEN)):
        points = [returns("greedy", seed, weight=weight, **options) for weight in WEIGHTS]
        found[name] = volume(points, returns("random", seed, **options))
    return found


def tuned(*groups: tuple[float, ...]) -> Any:
    return best_of(partial(partial, learned, groups), RATES, by="hypervolume", tuning_seeds=1)


CLAIM = Claim(
    method="gmorl",
    statement="one policy that is told the preference covers no less than a policy for each, with their budget, and it "
    "trades energy for delay as it is told",
    budget={"updates": 5_000},
    quick={"updates": 700},
    seeds=5,
    minutes=14,
    arms={
        "gmorl": tuned(WEIGHTS),
        "each": tuned(*[(weight,) for weight in WEIGHTS]),
        "greedy": greedy,
    },
    expect=(
        Above("hypervolume", "gmorl", 0.5, control=True),
        Greater("hypervolume", "gmorl", "each", by=-0.02),
        Above("follows", "gmorl", 0.8),
    ),
)
