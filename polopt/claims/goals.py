"""Four goals that are as good: the stage of claims about policies that know several ways. Importing this imports no
torch."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from polopt.claims.keys import describe_arm, plain
from polopt.core import files

TASK = "point/goals"
OPTIONS: dict[str, Any] = {"scale": 0.1}  # of rewards, while training
EPISODES = 256
MEASURED, OF = 5, 25  # the last rows

Look = Callable[[Any, Any], dict[str, float]]


def where_it_goes(learner: Any, task: Any) -> dict[str, float]:
    """Of a learner's policy, as it acts while training."""
    from polopt.evaluation.goals import goal_scores

    return goal_scores(learner.policy, task, EPISODES)


@dataclass(frozen=True)
class AtGoals:
    """An arm that trains on the four goals of "point/goals", rewards times 0.1, and looks where 256 episodes from the
    middle end, in rewards as they are: means over looks in the last fifth of the run."""

    method: str
    settings: tuple[tuple[str, Any], ...] = ()
    look: Look = where_it_goes

    def __call__(self, seed: int, budget: Mapping[str, int]) -> dict[str, Any]:
        from polopt.tasks import make_task
        from polopt.training.api import iterate

        steps = budget["env_steps"]
        once: dict[str, Any] = {"loggers": (), "threads": 1, "checkpoint_every": 2**40, "eval_episodes": 1}
        once |= {"log_every": max(steps // OF, 1), "eval_every": steps, "task_options": OPTIONS}
        task, found = make_task(TASK, EPISODES, seed=77, evaluation=True), []
        try:
            with files.temporary_folder("polopt-claim-") as folder:
                settings = once | dict(self.settings)
                for row in iterate(self.method, TASK, steps=steps, seed=seed, out=folder / "run", **settings):
                    if row["env_steps"] > steps * (1 - MEASURED / OF):
                        found.append(self.look(row["method"], task))
        finally:
            task.close()
        return {name: statistics.mean(one[name] for one in found) for name in found[0]}

    @property
    def trains(self) -> tuple[str, ...]:
        return (self.method,)

    def describe(self) -> dict[str, Any]:
        return {"goals": self.method, "settings": plain(dict(self.settings)), "look": describe_arm(self.look)}


def at_goals(method: str, look: Look = where_it_goes, **settings: Any) -> AtGoals:
    return AtGoals(method, tuple(settings.items()), look)
