"""StepMix and EpsMix: no episode below the threshold, and the baseline is left in the end.

Each seed is another random MDP (Dirichlet(0.3) transitions, sparse uniform rewards; 5 states, 4 actions, 5 steps) with
another deterministic baseline: optimal, but for random actions in 40 % of the (step, state). The threshold is 85 % of
its value. All arms have the same bonus and see the same MDPs and baselines. Expectations were written before any
recorded seed.

Second registration. The first one (seeds 0 to 9, kept on the page) asked each MDP for a late regret of half the
baseline's. On two of ten MDPs the baseline was within 0.09 of the optimum: there is nothing to leave behind, and no
learner can halve it. On three others StepMix was still in its conservative phase when the 10,000 episodes ended; how
long that lasts is the constant of its regret, which differs tenfold between MDPs, and a difference of regrets in the
scale of each MDP lets the largest one decide. So now: the first MDP, of a sequence that belongs to the seed, whose
baseline loses at least 0.3 (a rule about the MDP alone; optimal values are near 2.5); 50,000 episodes, planned after
every 20 of them, since plans take all the time (bounds from fewer data are as valid); and statistics without a scale.
The mirrored orientation, which the first registration found to stay near the baseline, is left out: it did so in a
pilot of 50,000 episodes too (nine tenths of what it played, late regret 1.58 where the baseline has 1.37).

`violation` is the share of episodes whose policy has an exact value below the threshold; one such episode in one run
fails the claim. `conservatism` is the share of the baseline in what is played, in the last fifth. `log_regret` and
`log_late_regret` are logarithms of the exact regret per episode, of all and of the last fifth, so that differences of
them are ratios. `doubling` tells the laws of growth apart: R(K) - R(K/2) over R(K/2) - R(K/4) for the cumulative regret
R of K episodes is 2 if R is linear, 1.41 if it grows like the root of K, as in the bound of the paper, and 1 if like
log K, as where one policy is best by a gap; what was spent before K/4 does not matter. It is taken for UCBVI, whose
order the two are said to keep, too. 3 for the late regret beside UCBVI's is a constant that hides no other order.

Pilots (seeds 1000 to 1004; UCBVI and the switch on two of them): no violation of StepMix and EpsMix, 0.8 and 1.2 % of
UCBVI's episodes; StepMix left the baseline after 5,000 to 19,000 episodes, with 1/26 to 2/5 of its regret in all and
1/300 or less late; late regrets within 1.4 of UCBVI's; `doubling` between 0.01 and 0.93 for StepMix, 0.4 and 1.4 for
EpsMix.

What was found: in 500,000 episodes of each neither was below the threshold once, UCBVI in 0.95 % of its own. Both leave
the baseline behind on all ten MDPs, and their late regret is that of UCBVI (1.2 times in the mean; StepMix 2.2 times at
worst) and a two hundredth or less of the baseline's; from K/4 on no regret grows faster than log K in the mean
(`doubling` 0.58, 0.86 and 0.97 for UCBVI). What it costs lies before that: over all episodes StepMix has a third to a
fifteenth of the baseline's regret, and 1.6 to 11 times UCBVI's, EpsMix, which mixes whole episodes, only a tenth to a
sixteenth of the baseline's. What StepMix plays of the baseline sums to 2,800 to 15,800 episodes of it (EpsMix 1,600 to
3,800), of the order of the first registration's 10,000.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import log
from typing import Any

from polopt.claims import Above, Below, Claim, Greater

TOGETHER = 20  # episodes from one plan to the next
LOSS = 0.3  # of the baseline, at least
NONE = 1e-6  # below one episode in all runs together
ROOT = 2**0.5  # `doubling` of the root of K


@dataclass(frozen=True)
class OnItsOwnMDP:
    """An arm for which each seed is another MDP, the same for all arms."""

    method: str
    settings: tuple[tuple[str, Any], ...] = ()

    def __call__(self, seed: int, budget: Mapping[str, int]) -> dict[str, float]:
        from polopt.core.random import paired

        sums: dict[str, list[float]] = {"regret": [0.0], "violation": [0.0], "conservatism": [0.0]}
        with paired(seed):
            learner, skipped = self.on_the_first_that_loses(seed, budget["episodes"])
            for _ in range(budget["episodes"] // TOGETHER):
                found = learner.update(learner.collect())
                for name, values in sums.items():
                    values.append(values[-1] + TOGETHER * float(found[name]))
        learner.task.close()
        episodes, last = budget["episodes"], len(sums["regret"]) - 1

        def between(name: str, start: float, end: float = 1.0) -> float:
            return sums[name][round(end * last)] - sums[name][round(start * last)]

        return {
            "violation": between("violation", 0.0) / episodes,
            "conservatism": between("conservatism", 0.8) / (0.2 * episodes),
            "mean_conservatism": between("conservatism", 0.0) / episodes,
            "regret": between("regret", 0.0) / episodes,
            "late_regret": between("regret", 0.8) / (0.2 * episodes),
            "log_regret": log(between("regret", 0.0) / episodes),
            "log_late_regret": log(between("regret", 0.8) / (0.2 * episodes)),
            "doubling": between("regret", 0.5) / between("regret", 0.25, 0.5),
            "baseline_regret": learner.optimal_value - learner.baseline_value,
            "skipped": skipped,
        }

    def on_the_first_that_loses(self, seed: int, episodes: int) -> tuple[Any, int]:
        """The learner on the first of the seed's MDPs whose baseline loses `LOSS`, and how many were passed over."""
        from polopt.training.api import plan

        settings = dict(self.settings) | {"episodes": episodes, "alpha": 0.15, "bonus": "practical", "envs": TOGETHER}
        for skipped in range(100):
            options = {"mdp_seed": 100 * seed + skipped, "states": 5, "actions": 4, "horizon": 5}
            learner: Any = plan(self.method, "random-mdp", seed=seed, task_options=options, **settings).build()
            if learner.optimal_value - learner.baseline_value >= LOSS:
                return learner, skipped
            learner.task.close()
        raise ValueError(f"none of the 100 MDPs of seed {seed} has a baseline that loses {LOSS}")


CLAIM = Claim(
    method="stepmix",
    statement="on random MDPs StepMix and EpsMix never play below the threshold, where UCBVI does it again and again; "
    "they leave a deterministic baseline behind and end with a regret of UCBVI's order, where the naive switch stays",
    budget={"episodes": 50_000},
    seeds=10,
    minutes=4,
    revision=2,
    first_seed=10,
    diagnosis="on two of ten MDPs the baseline was optimal within 0.09, so that no learner could halve its regret; "
    "on three others 10,000 episodes ended within StepMix's conservative phase; and differences of regrets in the "
    "scale of each MDP let the largest decide. Now the MDPs have baselines that lose 0.3 or more, there are 50,000 "
    "episodes, and regrets are compared by ratios and by their growth.",
    arms={
        "stepmix": OnItsOwnMDP("stepmix"),
        "epsmix": OnItsOwnMDP("epsmix"),
        "ucbvi": OnItsOwnMDP("stepmix", (("mixing", "none"),)),
        "switch": OnItsOwnMDP("stepmix", (("mixing", "switch"),)),
    },
    expect=(
        Above("violation", "ucbvi", 0.001, control=True),
        Above("conservatism", "switch", 0.95, control=True),
        Above("doubling", "switch", 1.9, control=True),
        Below("violation", "stepmix", NONE),
        Below("violation", "epsmix", NONE),
        Below("conservatism", "stepmix", 0.5),
        Below("conservatism", "epsmix", 0.5),
        Greater("log_regret", "switch", "stepmix", by=log(2)),
        Greater("log_regret", "switch", "epsmix", by=log(2)),
        Greater("log_late_regret", "switch", "stepmix", by=log(10)),
        Greater("log_late_regret", "switch", "epsmix", by=log(10)),
        Greater("log_late_regret", "ucbvi", "stepmix", by=-log(3)),
        Greater("log_late_regret", "ucbvi", "epsmix", by=-log(3)),
        Below("doubling", "ucbvi", ROOT),
        Below("doubling", "stepmix", ROOT),
        Below("doubling", "epsmix", ROOT),
    ),
)


def figures(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """What is lost so far on the MDP of one seed, beside what always playing the baseline loses."""
    from polopt.core.random import paired
    from polopt.evaluation.figures import Curves

    lines: dict[str, list[float]] = {}
    episodes = 20_000
    for name, arm in CLAIM.arms.items():
        with paired(1000):
            learner, _ = arm.on_the_first_that_loses(1000, episodes)
            lost = [0.0]
            for _ in range(episodes // TOGETHER):
                lost.append(lost[-1] + TOGETHER * float(learner.update(learner.collect())["regret"]))
        loss = learner.optimal_value - learner.baseline_value
        lines[name] = lost
        learner.task.close()
    count = range(0, episodes + 1, TOGETHER)
    lines["baseline"] = [loss * each for each in count]
    title = "regret of one seed; the baseline's is dashed"
    return {title: Curves(list(count), lines, x_label="episodes", dashed=("baseline",))}
