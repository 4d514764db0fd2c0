"""SRL: a policy that decodes sequences keeps its return when it looks seldom; one that holds its action does not.

Pendulum-v1, 6,000 steps, from step 1,000 on with an update after each. `srl` decodes 4 actions from one observation,
each trained at the state in which a learned model says that it is taken; `no-recall` scores all of them at the state of
the first; `sac` decides at every step. Networks, batches, and the grid of rates from which a tuning seed chooses, are
the same for all.

Each policy is asked at every 1, 2, 4 and 8 decisions, greedily, in 20 episodes from the same starts. Between, the two
decoders go on by themselves (8 is twice what they were trained for) and SAC's action is held. `fas` is the area under
the return by the interval, rescaled so that -1400 is 0 and -150 is 1, clipped, and divided by the range, 7; `at1` to
`at8` are the returns. All are means over five evaluations in the last fifth of the run. `drift` is how wrong the model
is at the last place of a sequence, after three steps of its own, as a share of how far the state itself moves in these
steps (both root mean squares), on episodes of the policy.

What perfect code gets: the pendulum is deterministic, so that a sequence from a known state loses nothing, and `fas` of
`srl` could be that of looking always. A decoder without recall has no reason to tell places apart: what it does is the
action that is best for one step, held, as with `sac`. Near the top an error of the angle grows by exp(3.9 t), to almost
five times in the 0.4 seconds of 8 decisions, and a torque that is held all the while overshoots: of the best policy for
every step, from value iteration on a grid, the returns are -146, -148, -177 and -725, and `fas` is 0.86.

Pilot, seed 1000 at the rate 1e-3: `srl` has a `fas` of 0.997, -128 at every step, -154 at every eighth, and a drift of
0.04. The other arms had none; thresholds are those that were planned.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from polopt.claims import Above, Below, Claim, Greater, best_of
from polopt.claims.grids import BestOf
from polopt.core import files

TASK, EPISODES, STEPS = "Pendulum-v1", 20, 200
INTERVALS, LENGTH = (1, 2, 4, 8), 4
LOW, HIGH = -1400.0, -150.0
MEASURED, OF = 5, 25  # the last rows
RATES = (3e-4, 1e-3, 3e-3)
SETTINGS: dict[str, Any] = {
    "warmup": 1_000,
    "batch_size": 128,
    "network.sizes": (64, 64),
    "loggers": (),
    "threads": 1,
    "checkpoint_every": 2**40,
    "eval_episodes": 1,
}
DECODER: dict[str, Any] = {"policy.length": LENGTH}
MODEL: dict[str, Any] = {"model_network.sizes": (64, 64)}


@dataclass(frozen=True)
class Seldom:
    """Trains, and measures the policy that looks seldom: means of the last measurements."""

    method: str
    settings: tuple[tuple[str, Any], ...]

    def __call__(self, seed: int, budget: Mapping[str, int]) -> dict[str, Any]:
        from polopt.tasks import make_task
        from polopt.training.api import iterate

        steps = budget["env_steps"]
        settings = SETTINGS | dict(self.settings) | {"log_every": max(steps // OF, 1), "eval_every": steps}
        task, found = make_task(TASK, EPISODES, seed=77, evaluation=True), []
        try:
            with files.temporary_folder("polopt-claim-") as folder:
                for row in iterate(self.method, TASK, steps=steps, seed=seed, out=folder / "run", **settings):
                    learner = row["method"]
                    if row["env_steps"] > steps * (1 - MEASURED / OF):
                        found.append(measured(learner, task))
        finally:
            task.close()
        return {name: statistics.mean(one[name] for one in found) for name in found[0]}

    @property
    def trains(self) -> tuple[str, ...]:
        return (self.method,)


def measured(learner: Any, task: Any) -> dict[str, float]:
    """The policy of a learner by how often it is asked, and its model, if it has one."""
    from polopt.evaluation.frequency import frequency_averaged_score, returns_by_interval

    returns = returns_by_interval(learner.policy, task, INTERVALS, EPISODES)
    found = {"fas": frequency_averaged_score(returns, LOW, HIGH)}
    found |= {f"at{interval}": value for interval, value in returns.items()}
    return found | (drifted(learner, task) if getattr(learner, "model", None) is not None else {})


def drifted(learner: Any, task: Any) -> dict[str, float]:
    """How far the states of the target model are from those that followed, by place in a sequence."""
    from polopt.core.random import paired
    from polopt.data.rollouts import Rollouts

    with paired():
        task.reset()
        window = Rollouts(task, STEPS).next(learner.policy)
    obs, action = (
        window[name].reshape(EPISODES * STEPS // LENGTH, LENGTH, -1) for name in ("obs", "action")
    )  # sequences begin with the episodes
    states = learner.target_model.imagine(obs[:, 0], action)  # [LENGTH, B, 3]
    error = [float((states[place] - obs[:, place]).square().mean().sqrt()) for place in range(LENGTH)]
    moved = float((obs[:, LENGTH - 1] - obs[:, 0]).square().mean().sqrt())
    return {f"error{place}": error[place] for place in range(1, LENGTH)} | {"drift": error[-1] / moved}


def tuned(method: str, **settings: Any) -> BestOf:
    def make(lr: float) -> Seldom:
        return Seldom(method, (*settings.items(), ("lr", lr)))

    return best_of(make, RATES, by="fas", tuning_seeds=1)


CLAIM = Claim(
    method="srl",
    statement="on Pendulum a decoder of sequences that is trained by recall keeps its return when it looks seldom, and "
    "at every step it is as good as SAC",
    budget={"env_steps": 6_000},
    quick={"env_steps": 1_500},
    seeds=5,
    minutes=12,
    arms={
        "srl": tuned("srl", **DECODER, **MODEL),
        "no-recall": tuned("srl", recall="none", **DECODER),
        "sac": tuned("sac"),
    },
    expect=(
        Above("at1", "sac", -400, control=True),
        Below("drift", "srl", 0.5, control=True),
        Greater("fas", "srl", "sac"),
        Greater("fas", "srl", "no-recall"),
        Greater("at1", "srl", "sac", by=-100),
    ),
)
