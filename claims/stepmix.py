"""StepMix and EpsMix: no episode below the threshold, and the baseline is left in the end.

Each seed is another random MDP (Dirichlet(0.3) transitions, sparse uniform rewards; 5 states, 4 actions, 5 steps) with
another deterministic baseline: optimal, but for random actions in 40 % of the (step, state). The threshold is 85 % of
its value. All arms have the same bonus and see the same MDPs and baselines. `violation` is the share of episodes whose
policy has an exact value below the threshold; one such episode in one run fails the claim. `regret` is the exact regret
per episode (times 10,000: the cumulative one), `late_regret` that of the last fifth, `conservatism` the share of the
baseline in what is played, in the last fifth. Expectations were written before any recorded seed.

What was found: in 100,000 episodes of each neither StepMix nor EpsMix was below the threshold once, UCBVI in 3.4 % of
its own. EpsMix leaves the baseline behind on every MDP and ends with UCBVI's regret; StepMix does on five of ten, and
on the others a quarter to three quarters of what it plays is still the baseline after 10,000 episodes, so that its late
regret is not half of the switch's with confidence. The mirrored orientation stays near the baseline.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from polopt.claims import Above, Below, Claim, Greater, train_arm

METRICS = {
    "violation": "violation:mean",
    "regret": "regret:mean",
    "late_regret": "regret",
    "conservatism": "conservatism",
    "mean_conservatism": "conservatism:mean",
}
NONE = 1e-6  # below one episode in all runs together


@dataclass(frozen=True)
class OnItsOwnMDP:
    """An arm for which each seed is another MDP, the same for all arms."""

    method: str
    settings: tuple[tuple[str, Any], ...] = ()

    def __call__(self, seed: int, budget: Mapping[str, int]) -> dict[str, Any]:
        task_options = {"mdp_seed": seed, "states": 5, "actions": 4, "horizon": 5}
        settings = dict(self.settings) | {"episodes": budget["episodes"], "alpha": 0.15, "bonus": "practical"}
        arm = train_arm(self.method, "random-mdp", metrics=METRICS, task_options=task_options, **settings)
        return arm(seed, budget)


CLAIM = Claim(
    method="stepmix",
    statement="on random MDPs StepMix and EpsMix never play below the threshold, where UCBVI does it again and again; "
    "they leave a deterministic baseline and its regret behind, where the naive switch stays with it",
    budget={"episodes": 10_000},
    seeds=10,
    minutes=12,
    arms={
        "stepmix": OnItsOwnMDP("stepmix"),
        "stepmix-mirror": OnItsOwnMDP("stepmix", (("orientation", "optimistic-first"),)),
        "epsmix": OnItsOwnMDP("epsmix"),
        "ucbvi": OnItsOwnMDP("stepmix", (("mixing", "none"),)),
        "switch": OnItsOwnMDP("stepmix", (("mixing", "switch"),)),
    },
    expect=(
        Above("violation", "ucbvi", 0.001, control=True),
        Above("conservatism", "switch", 0.95, control=True),
        Below("violation", "stepmix*", NONE),
        Below("violation", "epsmix", NONE),
        Below("conservatism", "stepmix", 0.5),
        Below("conservatism", "epsmix", 0.5),
        Greater("regret", "switch", "stepmix"),
        Greater("regret", "switch", "epsmix"),
        Greater("late_regret", "switch", "stepmix", ratio=2),
        Greater("late_regret", "switch", "epsmix", ratio=2),
    ),
)
