"""HDPO: near the optimum where that is known, nearer than score functions come with as many periods; and weights that
are shared among places need few scenarios.

Two stages, both with lost sales. A cost is that of a period and store after a burn-in of 40, on scenarios that nobody
learned from, the same for all arms of a seed; `value` is -cost, `gap` the part by which it is above the least.

1. One store, Poisson demand of mean 5, an order arrives two periods later, a unit that is left over costs 1 and a
   missing one 9. The least cost is 6.094 (value iteration, `polopt.tasks.inventory.exact`). `hdpo` learns from 2,048
   scenarios of 40 periods, of which the policy is kept that was best on other ones, as in the paper; `reinforce` is
   REINFORCE with the mean of the other episodes as baseline and a Gaussian policy with the same network, whose mean is
   measured. Both have 500 updates on 256 scenarios and keep the policy as said. `rules` has the cost of the best
   order-up-to level, and as `capped` that of the best one with a cap, both found on the tested scenarios.
2. A warehouse with ten stores that differ, and 16 scenarios, 250 updates. `shared` is the graph network, whose places
   have the same weights, with the official bound on its gradient; `vanilla` one network that sees all places.

A right implementation comes within a percent of the least cost. One whose gradient stops between periods never orders;
one that shares nothing has the cost of `vanilla`.

Pilots on seed 1000, of which rates follow: `hdpo` -6.112, -6.107 and -45 at 0.01, 0.03 and 0.1; `shared` -6.308, -6.261
and -6.218 at 0.001, 0.003 and 0.01. Both have the middle one. The baselines have the best of three rates:
`reinforce` had -6.154, -6.161 and -6.216 at 0.001, 0.003 and 0.01, so it gets a lower one too; `vanilla` -7.210,
-6.806 and -6.738 at 0.0003, 0.001 and 0.003, judged on two tuning seeds. Half of the difference between -6.261 and
-6.806 is expected. The best level has a `gap` of 0.036, and of 0.004 with a cap: so the capped rule is as good as HDPO,
which is reported.

Second registration. Of the first, one seed was run: `vanilla` had 37.5 there with 0.003, the best rate of one tuning
seed by 0.07, which is the edge of its grid, and `shared` 6.59 with 0.01, the edge as well. So one tuning seed does not
see that a rate is too high, and a baseline that diverged would have decided.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from polopt.claims import Above, Below, Claim, Greater, best_of

LEAST = 6.094
LEAD, PERIODS, BATCH = 2, 40, 256
STORE: dict[str, Any] = {
    "scenarios": 2048,
    "batch_size": BATCH,
    "periods": PERIODS,
    "burn_in": 20,
}
HOUSE: dict[str, Any] = {"scenarios": 16, "batch_size": 16, "periods": 40, "burn_in": 20}
TESTED = {"store_updates": 4096, "house_updates": 256}
JUDGES = {"store_updates": 1024, "house_updates": 64}  # scenarios that the kept policy is the best one on
EVALUATIONS = 10


@dataclass(frozen=True)
class Simulated:
    """HDPO; of its evaluations on some scenarios the best policy is kept, and measured on others."""

    task: str
    options: tuple[tuple[str, Any], ...]
    settings: tuple[tuple[str, Any], ...]
    updates: str

    def __call__(self, seed: int, budget: Mapping[str, int]) -> dict[str, Any]:
        from polopt.tasks import make_task
        from polopt.training import api

        options, updates = dict(self.options), budget[self.updates]
        settings = {"seed": seed, "loggers": (), "threads": 1, **dict(self.settings)}
        method: Any = api.plan("hdpo", self.task, task_options=options, **settings).build()
        judged, tested = (make_task(self.task, 1, seed + away, evaluation=True, **options) for away in (10_000, 20_000))
        curve = learn(method, method.policy.orders, judged, JUDGES[self.updates], updates)
        orders, count = method.policy.orders, TESTED[self.updates]
        rounded = cost_of(tested, lambda obs: orders(obs).round(), count)
        cost = cost_of(tested, orders, count)
        found = measured(cost) if self.task == "inventory/store" else {"value": -cost}
        return found | {"cost_rounded": rounded, "curve": curve}

    @property
    def trains(self) -> tuple[str, ...]:
        return ("hdpo",)


@dataclass(frozen=True)
class ScoreFunction:
    """REINFORCE, on as many periods; its mean action is measured, of the policy that is kept as HDPO's is."""

    lr: float

    def __call__(self, seed: int, budget: Mapping[str, int]) -> dict[str, Any]:
        from polopt.tasks import make_task
        from polopt.training import api

        settings = {
            "envs": BATCH,
            "episodes": BATCH,
            "discount": 1.0,
            "standardize": True,
            "network.sizes": (32, 32, 32),
            "network.activation": "elu",
            "lr": self.lr,
        }
        options = {"lead": LEAD, "horizon": PERIODS}
        method: Any = api.plan(
            "reinforce", "inventory/store", task_options=options, seed=seed, loggers=(), threads=1, **settings
        ).build()
        policy = method.policy
        judged, tested = (
            make_task("inventory/store", 1, seed + away, evaluation=True, lead=LEAD) for away in (10_000, 20_000)
        )

        def orders(obs: Any) -> Any:
            return policy.env_action(policy.act(obs, greedy=True)[0]["action"])

        curve = learn(method, orders, judged, JUDGES["store_updates"], budget["store_updates"])
        return measured(cost_of(tested, orders)) | {"curve": curve}

    @property
    def trains(self) -> tuple[str, ...]:
        return ("reinforce",)


def learn(method: Any, orders: Any, judged: Any, judges: int, updates: int) -> list[float]:
    """Trains, and gives the policy back what was best in `EVALUATIONS` evaluations, whose costs are returned."""
    from polopt.core.snapshot import give, take

    best, kept, curve = float("inf"), take(method.policy), []
    for update in range(1, updates + 1):
        method.update(method.collect())
        if update % max(updates // EVALUATIONS, 1) == 0:
            curve.append(cost_of(judged, orders, judges, 60, 20))
            if curve[-1] < best:
                best, kept = curve[-1], take(method.policy)
    give(method.policy, kept)
    return curve


def measured(cost: float) -> dict[str, Any]:
    return {"value": -cost, "gap": cost / LEAST - 1.0}


@torch.no_grad()
def cost_of(world: Any, choose: Any, count: int = 4096, periods: int = 100, burn_in: int = 40) -> float:
    """The cost of a period and store of these orders, after a burn-in."""
    from polopt.methods.theory.hdpo import simulate

    return -float(simulate(world, choose, world.start_of(*range(count)), periods)[:, burn_in:].double().mean())


def rules(seed: int, budget: Mapping[str, int]) -> dict[str, Any]:
    """The least costs over levels, and over levels with a cap, on the tested scenarios themselves."""
    from polopt.tasks import make_task

    world = make_task("inventory/store", 1, seed + 20_000, evaluation=True, lead=LEAD)

    def cost(level: int, cap: float) -> float:
        return cost_of(world, lambda obs: (level - obs.sum(-1, keepdim=True)).clamp(0.0, cap))

    best = min(cost(level, 1e9) for level in range(14, 24))
    return measured(best) | {
        "capped": min(cost(level, cap) for level in range(16, 25) for cap in (6, 7, 8, 9)),
    }


def store(lr: float) -> Simulated:
    return Simulated("inventory/store", (("lead", LEAD),), (*STORE.items(), ("lr", lr)), "store_updates")


def house(lr: float, own: Mapping[str, Any]) -> Simulated:
    settings = {**HOUSE, **own, "lr": lr}
    return Simulated("inventory/warehouse", (("stores", 10),), tuple(settings.items()), "house_updates")


shared_house = partial(house, own={"policy": "graph-orders", "max_grad_norm": 1.0, "network.sizes": (32, 32)})
vanilla_house = partial(house, own={"network.sizes": (128, 128, 128)})

CLAIM = Claim(
    method="hdpo",
    statement="gradients through the simulator end within a percent of the optimum of a store, nearer than REINFORCE "
    "with as many periods and than the best order-up-to level; with 16 scenarios shared weights cost less",
    budget={"store_updates": 500, "house_updates": 250},
    seeds=5,
    minutes=20,
    revision=2,
    first_seed=10,
    diagnosis="The best rate of one tuning seed was at an edge of its grid in three arms, and too high for other seeds "
    "in two: the network without shared weights had a cost of 37.5 on the one seed that was run. Its rate is chosen on "
    "two tuning seeds now, REINFORCE gets a lower one, the others have the middle of their grids, and half of the "
    "difference at these rates is expected, 0.27 in place of 0.35.",
    quick={"store_updates": 20, "house_updates": 20},
    arms={
        "hdpo": store(0.03),
        "reinforce": best_of(ScoreFunction, (3e-4, 1e-3, 3e-3), by="value", tuning_seeds=1),
        "rules": rules,
        "shared": shared_house(3e-3),
        "vanilla": best_of(vanilla_house, (3e-4, 1e-3, 3e-3), by="value", tuning_seeds=2),
    },
    expect=(
        Below("gap", "hdpo", 0.01),
        Greater("value", "hdpo", "reinforce", by=0.01),
        Greater("value", "hdpo", "rules", by=0.1),
        Greater("value", "shared", "vanilla", by=0.27),
        Above("gap", "rules", 0.015, control=True),
        Below("gap", "reinforce", 0.2, control=True),
    ),
)
