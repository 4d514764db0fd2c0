"""AILBoost (arXiv 2404.08513): from one episode of an expert, a discriminator that is shown what every learner does by
its share brings a policy nearer to the expert than one that is shown a whole replay, and more steadily than one that is
shown the latest learner.

A point moves in a box from -1 to 1, 0.05 a step along each axis, for 50 steps from anywhere; the expert goes to the
middle and stays there, and nobody but the measurements sees what is paid, minus the distance. All arms have the same
episode of the expert, the same steps in the world, networks of the same sizes, the same batches, and about as many
updates of policy and discriminator. `eta=0.2` is AILBoost, in rounds of 400 steps of exploration with an update for
every fourth, 400 steps of fresh play, and 100 steps of the discriminator; with the released eta, 0.05, the first
learner, which has learned nothing, would keep 0.6 of so short a run. `eta=1` is shown the latest learner alone. `dac`
explores for 800 steps in as long, 400 of them at random at the start, and has a step of the discriminator on its whole
replay in every update; `dac@reverse-kl` is the same with the divergence and the bound of AILBoost. Each arm has the
rate of three, for all its networks, with the highest `score` on a tuning seed.

`score` is 0 for random actions and 1 for the expert: of the greedy policy from 100 starts that are always the same, the
mean of the last five of the measurements after every 50 updates; `area` is the mean of all of them, and `wobble` the
deviation among those five. `mixture` is the score of the ensemble at the end, one learner for an episode, and `first`
that of its first learner: reports. Perfect code can get 1; with the sign of the discriminator turned round, or without
its steps, there is nothing that leads to the expert, and the score is 0 or less.

Pilots, at the rate 2e-3 but where another is named. Seeds 1000 and 1001: `eta=0.2` 0.61 and 0.53 (wobble 0.03 and
0.02), `dac` 0.43 and 0.44, `eta=1` 0.44 and 0.39 (0.13 and 0.15); seed 1000: `dac@reverse-kl` 0.42, at 4e-3 `eta=0.2`
0.57 and `dac` 0.41, at 8e-3 `dac` 0.42. About half of these differences is asked for. Where the box is from -5 to 5
(steps of 0.25) it is the other way round, `eta=0.2` 0.52 and `dac` 0.89 (seed 1000): within +-1 d cannot have the slope
of 1 that the penalty asks for over such distances, and the logit of DAC can. So this says nothing of observations that
are not of order 1. With a temperature that begins at 0.02 in place of 0.1 `eta=0.2` has 0.45 (seed 1001).
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from polopt.claims import Above, Claim, Greater, best_of
from polopt.claims.grids import BestOf

TASK, HORIZON, EPISODES, ROUND, EVERY, LAST = "point", 50, 100, 400, 50, 5
RATES = (1e-3, 2e-3, 4e-3)
WORLD: dict[str, Any] = {"speed": 0.05, "ends": False, "horizon": HORIZON}
COMMON: dict[str, Any] = {
    "envs": 4,
    "discount": 0.9,
    "tau": 0.02,
    "batch_size": 128,
    "network.sizes": (64, 64),
    "entropy.initial": 0.1,
    "entropy.lr": 3e-3,
    "discriminator_rows": 128,
    "discriminator_network.sizes": (64, 64),
    "replay_size": 20_000,
    "loggers": (),
    "threads": 1,
}
BOOSTING: dict[str, Any] = {
    "round_steps": ROUND,
    "fresh": ROUND,
    "discriminator_updates": ROUND // 4,
    "learners": 100,
    "steps_per_update": 4,
}
DAC: dict[str, Any] = {"warmup": ROUND, "steps_per_update": 8}


def learner(method: str, seed: int, settings: Mapping[str, Any]) -> Any:
    """A method that has one episode of the expert."""
    from polopt.core import files
    from polopt.data.demonstrations import save_demonstrations, scripted_episodes
    from polopt.tasks import make_task
    from polopt.training.api import plan

    place: Any = make_task(TASK, 1, seed=seed, **WORLD)
    with files.temporary_folder("polopt-claim-") as folder:
        file = folder / "episode.safetensors"
        save_demonstrations(file, scripted_episodes(place, "expert", HORIZON), place.spec)
        own = COMMON | settings | {"demonstrations": str(file)}
        return plan(method, TASK, task_options=WORLD, seed=seed, **own).build()


@dataclass(frozen=True)
class Imitating:
    """Trains, and measures the policy as it goes."""

    method: str
    settings: tuple[tuple[str, Any], ...]

    def __call__(self, seed: int, budget: Mapping[str, int]) -> dict[str, Any]:
        from polopt.evaluation.returns import evaluate_returns
        from polopt.tasks import make_task

        place: Any = make_task(TASK, EPISODES, seed=77, evaluation=True, **WORLD)

        def played(actor: Any) -> float:
            return evaluate_returns(actor, place, EPISODES)["return"]

        low, high = (played(place.scripted(name)) for name in ("random", "expert"))

        def score(actor: Any) -> float:
            return (played(actor) - low) / (high - low)

        method, scores, updates = learner(self.method, seed, dict(self.settings)), list[float](), 0
        while method.ledger.env_steps < budget["env_steps"]:
            method.update(method.collect())
            updates += 1
            if updates % EVERY == 0:
                scores.append(score(method.policy))
        last = scores[-LAST:]
        found = {"score": statistics.mean(last), "area": statistics.mean(scores), "wobble": statistics.pstdev(last)}
        if self.method == "ailboost":
            found |= {"mixture": score(method.ensemble), "first": score(method.ensemble.members[0])}
        return found

    @property
    def trains(self) -> tuple[str, ...]:
        return (self.method,)


def tuned(method: str, **settings: Any) -> BestOf:
    def make(rate: float) -> Imitating:
        own = COMMON | settings | {"lr": rate, "discriminator_lr": rate}
        return Imitating(method, tuple(own.items()))

    return best_of(make, RATES, by="score", tuning_seeds=1)


CLAIM = Claim(
    method="ailboost",
    statement="from one episode of an expert the policy of AILBoost ends nearer to the expert than DAC's after as many "
    "steps in the world and updates, and wavers less than where the latest learner alone is shown",
    budget={"env_steps": 8_000},
    quick={"env_steps": 1_600},
    seeds=8,
    minutes=10,
    arms={
        "eta=0.2": tuned("ailboost", **BOOSTING, eta=0.2),
        "eta=1": tuned("ailboost", **BOOSTING, eta=1.0),
        "dac": tuned("dac", **DAC),
        "dac@reverse-kl": tuned("dac", **DAC, divergence="reverse-kl", bound=1.0),
    },
    expect=(
        Above("score", "dac", 0.2, control=True),
        Above("score", "eta=0.2", 0.3),
        Greater("score", "eta=0.2", "dac*", by=0.06),
        Greater("wobble", "eta=1", "eta=0.2", by=0.05),
    ),
)
