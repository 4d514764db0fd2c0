"""RLIF (arXiv 2311.12996): who knows when to step in, but not how to do it, can make a learner better than they are.

A point moves in a box, 0.05 a step along each axis, for 50 steps from anywhere; the return is minus the sum of its
distances from the middle. Who oversees sees what was done by its worth: if the last step has lost more than 0.15 of the
discounted rewards of ten steps, compared with the best step and the best nine after it, they take over for four steps
(and once in twenty times the decision is the wrong one). But they go to a wrong place, (0.4, 0.3), at half the speed:
a flaw that no average takes away, and they would not stand to watch themselves.

All arms begin with two episodes of the overseer's own acting, and have the same steps in the world, networks, rate and
number of policy updates: `rlif` learns from the beginnings of takeovers, `chance` likewise from those of somebody who
acts as badly and takes over with a probability of 0.3 whatever is done (of those of the released scripts the lowest),
`hg-dagger` clones what was done in takeovers, with the same overseer as `rlif`; `hg-dagger@good` has one who goes to
the right place. `overseer` is the one with the flaw alone, `expert` the best there is. `return` is that of the greedy
policy from 100 starts that are always the same, the mean of five evaluations over the last fifth of the run; `takeover`
the share of steps that are the overseer's over the last fifth, `takeover_first` over the first.

The released code has the overseer judge what the learner is about to do: the penalty then falls on the decision before,
and what was refused is never done. Here they come one decision late, and the penalty falls on what they refuse, as of
a reward that is a function of a state and what is done in it. `planned` is the released way, a report: with it an
earlier pilot of 3,200 steps on a harder world saw no gain (RLIF -54.1, overseer -56.3, HG-DAgger -54.9).

Pilots: RLIF (seed 1000) has -25.5 at step 500, where it does what the recorded episodes do, -12.1 at 1,000 and -7.8 at
3,500, while the share of takeovers falls from 0.75 to 0.22; without any cause, but for mistakes, it would be 0.17.
Seed 1001: HG-DAgger -25.3, with a good overseer -6.6, takeovers by chance -26.0. The overseer has -25.3, the expert
-5.5. Half of these differences is asked for. A learner that is paid for being taken over, or for nothing, or one
decision too late, has no reason to leave the overseer's way.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from polopt.claims import Above, Below, Claim, Greater
from polopt.policies.overseeing import ByChance, ByValue

TASK, HORIZON, EPISODES, ROWS, HOLD, DISCOUNT = "point", 50, 100, 10, 4, 0.9
WORLD: dict[str, Any] = {
    "speed": 0.05,
    "ends": False,
    "horizon": HORIZON,
    "scripts": {"expert": {}, "flawed": {"pace": 0.5, "miss": (0.4, 0.3)}},
}
LEARNER: dict[str, Any] = {
    "envs": ROWS,
    "lr": 1e-3,
    "batch_size": 128,
    "network.sizes": (64, 64),
    "loggers": (),
    "threads": 1,
}
RLIF: dict[str, Any] = {
    "hold": HOLD,
    "discount": DISCOUNT,
    "tau": 0.02,
    "steps_per_update": 5,
    "updates_per_step": 2,
    "critics": 3,
    "critic_network.sizes": (64, 64),
    "entropy.initial": 0.1,
    "entropy.lr": 3e-3,
    "replay_size": 20_000,
}


def world(rows: int = EPISODES) -> Any:
    """The world of evaluations."""
    from polopt.tasks import make_task

    return make_task(TASK, rows, seed=77, evaluation=True, **WORLD)


def learner(method: str, seed: int, **settings: Any) -> Any:
    """A method that has two episodes of the overseer."""
    from polopt.core import files
    from polopt.data.demonstrations import save_demonstrations, scripted_episodes
    from polopt.tasks import make_task
    from polopt.training.api import plan

    place = make_task(TASK, 2, seed=seed, **WORLD)
    with files.temporary_folder("polopt-claim-") as folder:
        file = folder / "episodes.safetensors"
        save_demonstrations(file, scripted_episodes(place, "flawed", 2 * HORIZON), place.spec)
        settings["demonstrations" if method == "bc" else "dataset"] = str(file)
        return plan(method, TASK, task_options=WORLD, seed=seed, **LEARNER, **settings).build()


def measured(actor: Any, place: Any) -> float:
    from polopt.evaluation.returns import evaluate_returns

    return evaluate_returns(actor, place, EPISODES)["return"]


def due(before: int, after: int, steps: int) -> bool:
    """Whether an evaluation falls between two counts of steps: five, over the last fifth."""
    return 20 * after // steps > max(20 * before // steps, 15)


@dataclass(frozen=True)
class Interactive:
    """Reinforcement learning from takeovers."""

    overseer: Any

    def __call__(self, seed: int, budget: Mapping[str, int]) -> dict[str, Any]:
        steps, place, returns, shares = budget["env_steps"], world(), list[float](), list[Any]()
        method = learner("rlif", seed, overseer=self.overseer, **RLIF)
        while (before := method.ledger.env_steps) < steps:
            shares.append(method.update(method.collect())["takeover"])
            if due(before, method.ledger.env_steps, steps):
                returns.append(measured(method.policy, place))
        fifth = len(shares) // 5
        first, last = (statistics.mean(float(share) for share in part) for part in (shares[:fifth], shares[-fifth:]))
        return {"return": statistics.mean(returns), "takeover": last, "takeover_first": first}

    @property
    def trains(self) -> tuple[str, ...]:
        return ("rlif",)


@dataclass(frozen=True)
class Cloning:
    """HG-DAgger: after every round of episodes what was done in takeovers joins what is cloned."""

    overseer: Any

    def __call__(self, seed: int, budget: Mapping[str, int]) -> dict[str, Any]:
        import torch

        from polopt.core.ledger import Ledger
        from polopt.data.rollouts import Rollouts
        from polopt.policies.takeover import Intervened

        steps, place, returns, ledger = budget["env_steps"], world(), list[float](), Ledger()
        method = learner("bc", seed, policy="deterministic")
        watched = Intervened(method.policy, self.overseer.build(method.policy, method.task, DISCOUNT), HOLD)
        rollouts, source, shares = Rollouts(method.task, HORIZON, ledger), method.source, list[float]()
        source.data = source.data.select("obs", "action")
        while (before := ledger.env_steps) < steps:
            for _ in range(ROWS * HORIZON // RLIF["steps_per_update"]):
                method.update(method.collect())
            window = rollouts.next(watched)
            taken = window["takeover"]
            source.data = torch.cat([source.data, window.select("obs", "action")[taken]])
            shares.append(float(taken.float().mean()))
            if due(before, ledger.env_steps, steps):
                returns.append(measured(method.policy, place))
        fifth = max(len(shares) // 5, 1)
        first, last = statistics.mean(shares[:fifth]), statistics.mean(shares[-fifth:])
        return {"return": statistics.mean(returns), "takeover": last, "takeover_first": first}

    @property
    def trains(self) -> tuple[str, ...]:
        return ("bc",)


@dataclass(frozen=True)
class Alone:
    """A script of the world by itself."""

    script: str

    def __call__(self, seed: int, budget: Mapping[str, int]) -> dict[str, Any]:
        place = world()
        return {"return": measured(place.scripted(self.script), place)}


def judging(expert: str, late: bool = True) -> ByValue:
    return ByValue(expert=expert, reference="expert", margin=0.15, ahead=10, mistakes=0.05, late=late)


CLAIM = Claim(
    method="rlif",
    statement="from the decisions alone of an overseer who knows when to take over and acts badly a learner becomes "
    "better than the overseer, whom cloning of the same takeovers repeats, and from takeovers at random it does not",
    budget={"env_steps": 4_000},
    seeds=5,
    minutes=6,
    deterministic=("overseer", "expert"),
    arms={
        "rlif": Interactive(judging("flawed")),
        "planned": Interactive(judging("flawed", late=False)),
        "chance": Interactive(ByChance(expert="flawed", rate=0.3)),
        "hg-dagger": Cloning(judging("flawed")),
        "hg-dagger@good": Cloning(judging("expert")),
        "overseer": Alone("flawed"),
        "expert": Alone("expert"),
    },
    expect=(
        Above("return", "hg-dagger@good", -12, control=True),
        Greater("return", "rlif", "overseer", by=8),
        Greater("return", "rlif", "hg-dagger", by=8),
        Greater("return", "rlif", "chance", by=8),
        Below("takeover", "rlif", 0.45),
    ),
)
