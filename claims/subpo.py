"""SubPO: credit for what is new covers a map; rewards of single states, however well learned, stay at the best place.

`grid/coverage`: 25 steps on 10 x 10 cells with smooth random weights, of which each pays once, when a cell within
distance 1 of it is first visited; a tenth of the moves slip; every seed has a map of its own. 100 updates of 100
episodes. `subpo` is SubPO-M, `modpo` the same with the modular reward, in which every visit pays all cells near it,
`released` is the weight of the official code of grids (what was gained up to and with the step, no baseline). All are
the mean over lr 0.003, 0.006 and 0.012 of every metric, so that no rate is chosen. `random` walks, `greedy` goes to the
next cell with the largest gain.

`coverage` is the mean of F(tau) - F(s_0) over 500 fresh episodes of the policy as it samples, `log_coverage` its
logarithm, so that differences are ratios, and `share` its part of the largest that a beam search of 2,000 paths finds.
A slipped episode is a path too, so that no policy has more than the best path; the beam only nearly has it. `modular`
is the mean modular reward of these episodes. `variance` is the total variance of the gradient from 50 episodes at the
first policy with suffix credit over that with the whole gain, both with the mean over the episodes at each step as
baseline.

Pilots (seeds 1000 and 1001): `coverage` 35 and 41 of subpo (`share` 0.74 and 0.84), 14.7 and 14.8 of modpo, 18.6 and
12.4 of released, 13.6 and 13.9 of random, 39 and 36 of greedy; `modular` 107 and 105 of modpo, 78 and 86 of subpo;
`variance` 0.47 and 0.63. `greedy`, `released` and `share` are reported and not judged.

Expectations: the paper says that SubPO covers more than MODPO by far. MODPO's best policy goes to the best place and
stands still, and covers what can be seen on the way there; a SubPO whose gains forget what was visited is MODPO, and
the ratio 1. Credit for the past as well has the same gradient in the mean, so only `variance` sees it: it would be 1.
That MODPO has more modular reward than SubPO says that it learned what it was given.

What was found: SubPO-M covers 33.5 in the mean over six maps, MODPO 10.0, less than a random walk (13.1), though it has
the most modular reward (102 against 79). Suffix credit has 0.61 of the gradient variance of the whole gain. With 10,000
episodes SubPO is at 0.76 of the best path known and does not surpass the greedy planner, which knows the map and plans
nothing (34.4, 0.77). The weight of the released code reaches 16.0 with the same network, rates and episodes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import log
from typing import Any

from polopt.claims import Below, Claim, Greater, mean_of

EPISODES, FRESH, BEAM, RATES = 100, 500, 2_000, (0.003, 0.006, 0.012)


def best_path(world: Any) -> float:
    """F(tau) - F(s_0) of the best path that a beam search without slips finds: of equal cells and sets one is kept."""
    import torch

    near, weights = world.near, world.weights.double()
    code = torch.randint(1 << 62, (world.size,), generator=torch.Generator().manual_seed(0))
    cells = world.start.clone()
    seen = near[cells]
    first = float(seen.double() @ weights)
    for _ in range(world.horizon):
        cells = world.next[cells].flatten()
        seen = seen.repeat_interleave(5, 0) | near[cells]
        value, key = seen.double() @ weights, (seen * code).sum(1) * world.size + cells
        order = value.argsort(descending=True, stable=True)
        _, group = key[order].unique(return_inverse=True)
        place = torch.arange(len(order))
        kept = torch.full_like(place, len(order)).scatter_reduce(0, group, place, "amin")[group] == place
        chosen = order[kept][:BEAM]
        cells, seen, found = cells[chosen], seen[chosen], value[chosen[0]]
    return float(found) - first


def world_of(seed: int, rows: int) -> Any:
    from polopt.tasks import make_task

    return make_task("grid/coverage", rows, seed, map_seed=seed)


def measured(actor: Any, seed: int) -> dict[str, float]:
    """Of fresh episodes, the same for all arms of a seed."""
    from polopt.core.random import paired
    from polopt.data.episodes import Episodes

    world = world_of(seed, FRESH)
    with paired():
        batch = Episodes(world, starts=range(FRESH)).next(actor(world))
    coverage, modular = (float(batch[name].double().sum(1).mean()) for name in ("gain", "modular"))
    return {"coverage": coverage, "log_coverage": log(coverage), "modular": modular} | {
        "share": coverage / best_path(world)
    }


@dataclass(frozen=True)
class Scripted:
    """A behavior of the world."""

    behavior: str

    def __call__(self, seed: int, budget: Mapping[str, int]) -> dict[str, float]:
        return measured(lambda world: world.scripted(self.behavior), seed)


def learner(seed: int, settings: Mapping[str, Any]) -> Any:
    from polopt.training.api import plan

    options = {"envs": EPISODES, "episodes": EPISODES, **settings}
    return plan("subpo", "grid/coverage", seed=seed, loggers=(), task_options={"map_seed": seed}, **options).build()


@dataclass(frozen=True)
class Learned:
    """SubPO with these settings."""

    settings: tuple[tuple[str, Any], ...]

    trains = ("subpo",)

    def __call__(self, seed: int, budget: Mapping[str, int]) -> dict[str, float]:
        import torch

        torch.set_num_threads(1)
        method = learner(seed, dict(self.settings))
        for _ in range(budget["updates"]):
            method.update(method.collect())
        return measured(lambda world: method.policy, seed)


@dataclass(frozen=True)
class Variance:
    """Of the gradient with suffix credit, over that with the gain of the whole episode."""

    trains = ("subpo",)

    def __call__(self, seed: int, budget: Mapping[str, int]) -> dict[str, float]:
        import torch

        from polopt.core.functional import gradient

        torch.set_num_threads(1)
        found = []
        for credit in ("reward-to-go", "return"):
            method = learner(seed, {"credit": credit, "baseline": "time-mean"})
            own, slopes = list(method.policy.parameters()), []
            for _ in range(10):
                for part in method.collect().split(50):
                    slopes.append(gradient(method.policy_loss(method.evaluate_episodes(part))[0], own))
            found.append(float(torch.stack(slopes).double().var(0).sum()))
        return {"variance": found[0] / found[1]}


def learned(**settings: Any) -> Any:
    return mean_of(lambda lr: Learned((("lr", lr), *settings.items())), RATES)


CLAIM = Claim(
    method="subpo",
    statement="on maps to be covered SubPO-M covers at least 1.5 times what the same learner does with the modular "
    "reward, and credit for what follows alone has the smaller gradient variance",
    budget={"updates": 100},
    seeds=6,
    minutes=4,
    arms={
        "subpo": learned(),
        "modpo": learned(modular=True),
        "released": learned(credit="prefix", baseline="none"),
        "random": Scripted("random"),
        "greedy": Scripted("greedy"),
        "variance": Variance(),
    },
    expect=(
        Greater("log_coverage", "subpo", "random", by=log(1.3), control=True),
        Greater("modular", "modpo", "subpo", control=True),
        Greater("log_coverage", "subpo", "modpo", by=log(1.5)),
        Below("variance", "variance", 0.8),
    ),
)
