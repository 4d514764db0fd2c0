"""DR-RPO: who plans for factors that move loses little where they do not and much less where they do.

The task is the off-dynamics MDP of `polopt.tasks.tabular_sets`: three states in a row with a safe factor, that pays 0.5
and goes on, and a risky one, that pays nothing but leads to a goal that pays 1 a step; at the test the risky one fails
with probability q, in training it never does. 300 episodes; all arms have the same bonus (0.6) and regularizer (0.1).
`size` is the total variation within which every factor may move; `rpo` is DR-RPO with eta 0.02 and a uniform reference,
`greedy` is DR-LSVI-UCB, eta 0, and `greedy@0` LSVI-UCB. Seeds differ in the luck of policy and task only.

Returns are exact, of the last policy: `return@q`, and `shifted` is their mean over q of 0.5, 0.75 and 1. `own` is how
far it is from the optimum of its own objective, the worst regularized value; `average_own` averages that over all
episodes, and `slope` is that of its logarithm over the logarithm of their number, from 30 episodes on.

The arms `exact@SIZE` plan with the true factors, without luck, at 3,001 levels: their policies are the best that there
are, or the plan is not that of the set. What is not robust has 0.5 on average over the shifts.

Pilots (seeds 1000 to 1002), of `rpo@0`, `rpo@0.3`, `rpo@0.5`: `return@0` 1.94, 1.83, 1.68; `return@1` 0.13, 0.40,
0.85; `shifted` 0.58, 0.76, 1.05; `own` 0.04, 0.01, 0.005; `slope` -0.57 to -0.69, -0.21 to -0.59, -0.30 to -0.60.
`greedy@0.5` and mirror descent (`mirror@0.5`) take the safe path with certainty, 1.5 at every shift: at size 0.5 the
gaps between the 16 actions are small, and a softmax of eta 0.02 plays many of them. So no expectation sets DR-RPO above
DR-LSVI-UCB; the paper sets both above what is not robust.

What was found: all expectations hold. Over shifts of 0.5, 0.75 and 1 the plan for size 0.5 has 1.12 (1.21 with the true
factors), that for none 0.55; at a certain shift 0.95, 0.41 and 0.08 for the sizes 0.5, 0.3 and 0. Where nothing shifts
it has 1.64 of the 1.96. Suboptimality in the own objective falls with slopes of -0.39 to -0.69. Against the method: its
greedy form, DR-LSVI-UCB, and mirror descent have 1.5 at every shift, far above, because a softmax at eta 0.02 still
plays what is nearly as good in the worst case; and average suboptimality is about that of the greedy form (0.010 and
0.012).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from polopt.claims import Below, Claim, Greater, Ordered

SHIFTS = (0.0, 0.5, 0.75, 1.0)
FROM = 30


def returns(learner: Any) -> dict[str, float]:
    """Of the present policy under every shift, exact, and the distance from its own optimum."""
    from polopt.tasks.tabular_sets import off_dynamics

    found = {f"return@{shift:g}": learner.policy.value(off_dynamics(shift)) for shift in SHIFTS}
    found["shifted"] = sum(found[f"return@{shift:g}"] for shift in SHIFTS[1:]) / len(SHIFTS[1:])
    return found | {"own": learner.diagnostics()["suboptimality"]}


@dataclass(frozen=True)
class Learned:
    """An arm that learns, or plans with the true factors."""

    settings: tuple[tuple[str, Any], ...]
    known: bool = False
    trains = ("dr-rpo",)

    def __call__(self, seed: int, budget: Mapping[str, int]) -> dict[str, float]:
        from polopt.training.api import plan

        learner: Any = plan("dr-rpo", "off-dynamics", seed=seed, **dict(self.settings)).build()
        if self.known:
            self.look_up(learner)
            return returns(learner)
        averages = [
            float(learner.update(learner.collect())["average_suboptimality"]) for _ in range(budget["episodes"])
        ]
        return returns(learner) | {"average_own": averages[-1], "slope": slope(averages)}

    def look_up(self, learner: Any) -> None:
        """The regressions after 10^9 of each pair at every step, and no bonus for what else there was to see."""
        pairs = learner.phi.flatten(0, 1)
        learner.ridge.covariance += 1e9 * (pairs.T @ pairs)
        learner.ridge.moment += 1e9 * (pairs.T @ learner.mdp.transition.flatten(1, 2))
        learner.plan()


def slope(averages: list[float]) -> float:
    """Of log average over log episodes, by least squares."""
    import numpy as np

    episodes = np.arange(1, len(averages) + 1)[FROM - 1 :]
    return float(np.polyfit(np.log(episodes), np.log(averages[FROM - 1 :]), 1)[0])


def learned(**settings: Any) -> Learned:
    return Learned(tuple(settings.items()))


def exact(size: float) -> Learned:
    """At size 0 nothing is sought."""
    settings: dict[str, Any] = {"size": size, "beta": 0.0} | ({"levels": 3001} if size else {})
    return Learned(tuple(settings.items()), known=True)


CLAIM = Claim(
    method="dr-rpo",
    statement="on the off-dynamics MDP policies for moving factors are far better where dynamics shift, the better the "
    "further the factors may move, for at most a quarter of the return where they do not; and the average "
    "suboptimality in the objective of each falls, as that of DR-LSVI-UCB does",
    budget={"episodes": 300},
    seeds=20,
    minutes=3,
    deterministic=("exact@*",),
    arms={
        "rpo@0": learned(size=0.0),
        "rpo@0.3": learned(size=0.3),
        "rpo@0.5": learned(),
        "mirror@0.5": learned(reference="previous"),
        "greedy@0": learned(preset="lsvi-ucb"),
        "greedy@0.5": learned(preset="dr-lsvi-ucb"),
        "exact@0": exact(0.0),
        "exact@0.3": exact(0.3),
        "exact@0.5": exact(0.5),
    },
    expect=(
        Greater("shifted", "exact@0.5", "exact@0", ratio=1.3, control=True),
        Below("own", "rpo@*", 0.1, control=True),
        Below("own", "exact@*", 1e-4),
        Ordered("return@1", ("exact@0", "exact@0.3", "exact@0.5"), by=0.05),
        Greater("shifted", "rpo@0.5", "rpo@0", ratio=1.3),
        Greater("shifted", "rpo@0.5", "greedy@0", ratio=1.3),
        Ordered("return@1", ("rpo@0", "rpo@0.3", "rpo@0.5"), by=0.1),
        Greater("return@0", "rpo@0.5", "rpo@0", ratio=0.75),
        Below("slope", "rpo@*", -0.2),
        Greater("average_own", "greedy@0.5", "rpo@0.5", by=-0.02),
    ),
)


def figures(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Returns by the shift of the dynamics, and how far one seed is from the optimum of its own objective."""
    from polopt.evaluation.figures import Curves
    from polopt.training.api import plan

    arms = ("rpo@0", "rpo@0.3", "rpo@0.5", "greedy@0", "exact@0.5")
    returns = {
        arm: [sum(line[f"return@{shift:g}"] for line in metrics[arm]) / len(metrics[arm]) for shift in SHIFTS]
        for arm in arms
    }
    own: dict[str, list[float]] = {}
    for arm in ("rpo@0", "rpo@0.3", "rpo@0.5"):
        settings = dict(CLAIM.arms[arm].settings)  # type: ignore[attr-defined]
        learner: Any = plan("dr-rpo", "off-dynamics", seed=1000, **settings).build()
        own[arm] = [float(learner.update(learner.collect())["average_suboptimality"]) for _ in range(300)]
    count = list(range(1, 301))
    own["1/sqrt(K)"] = [own["rpo@0"][0] / k**0.5 for k in count]
    return {
        "return by the probability of the shift": Curves(SHIFTS, returns, x_label="q", dashed=("exact@0.5",)),
        "average suboptimality, one seed": Curves(count, own, x_label="episodes", dashed=("1/sqrt(K)",), log=True),
    }
