"""Agnostic policy learning: with petals, the best of 4,000 or 40,000 policies is found by the same few episodes.

The world: 8 layers of S states, which follow each other by chance; action 1 in one special state of the fourth layer,
met with probability 0.2, pays 1, and every episode pays 1 more with probability 0.3. The policies: action 1 in at most
one state. So the best one is worth 0.5, all others 0.3. Each seed has 20 runs (8 of `importance-5x`), each with a
special state of its own; metrics are means over them. `right` is the share of runs that took a policy within 0.05 of
the best, by exact values; `episodes` how many were played, 8 decisions each; `log_cost` the logarithm of the mean of
episodes times the squared error of the estimate of the best policy: how many episodes an error of 1 takes.

`popler@S` ends when no further petal is reached surely enough (500 episodes a data set, eps 0.15). `importance@S`
has 1,500 episodes of uniform actions, and `importance-5x@S` 7,500. `trees@S` has 20 trees, with a simulator that can be
taken back.

The fork: one state, from which one comes to v and never to u; rewards are u: (1, 0) and v: (0, 0.6), for the actions 0
and 1, and the policies always 0 and always 1. `value` is the exact return of what is found: by `psdp`, with resets to u
and v alike, and exact expectations; by `psdp-complete`, with the policy (u: 0, v: 1) in the class as well; by `cpi`,
with resets to u four times as often as to v; and by 200 episodes of `popler-fork` and 200 trees of `trees-fork`.

`unbiased`: a random world in which each decision leads to one of two states, alike, 4 steps of 4 states. The data sets
of the beginning and of all petals hold every episode once, that is as often as it is likely. `gap` is how far the
estimate of one of 137 policies, with at most two petals, is from its exact value, at most. `whole` is broken: it
divides by the number of core policies that agree with the whole rest of a trajectory, not with the piece.

Pilots (seeds 1000 and 1001, 12 runs each): `right` 1 of popler, 0.96 of trees, 0.38 of importance, 0.88 of
importance-5x; `episodes` of popler 1,458 and 1,000, of trees 110; `log_cost` 2.7 and 2.3 of popler, 4.7 of importance;
`gap` 1e-15, and 9 of `whole`; `value` 0 of psdp and cpi, 0.6 of the others.

Expectations: by hand, the cost of importance sampling is 2^8 0.62 - 0.25 = 158 (log 5.1), and that of POPLER about 17
for 1,500 episodes (log 2.8) and 12 for 1,000 (log 2.4). Twenty trees miss the special state in 1 % of the runs, so a
perfect learner has `right` 0.99. Without the threshold POPLER collects for thousands of petals; wrong weights show in
`gap`.

What was found: all expectations hold. POPLER takes the right one of 4,001 policies in 0.97 of the runs after 1,388
episodes, and of 40,001 in 0.995 after 1,003; importance sampling with 1,500 episodes in 0.39, with 7,500 in 0.90. An
error of 1 costs POPLER 16 and 12 episodes, importance sampling 155, as computed by hand, and trees 2. With all data as
often as expected no estimate is further than rounding from the truth (8.7 with the broken weights). PSDP and CPI miss
the best policy of the fork, which POPLER, trees, and PSDP in the complete class find. That more policies took fewer
episodes is because a special state is one of more states then, and fewer petals are reached surely enough to be
explored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from math import log
from typing import Any

from polopt.claims import Above, Below, Claim, Greater

RUNS = 20
BEST = 0.5


@dataclass(frozen=True)
class Searched:
    """An arm of the layers."""

    estimator: str
    states: int
    episodes: int
    runs: int = RUNS
    trains = ("agnostic-rl",)

    def __call__(self, seed: int, budget: Mapping[str, int]) -> dict[str, float]:
        runs = [self.run(RUNS * seed + each) for each in range(self.runs)]
        found = {name: sum(run[name] for run in runs) / len(runs) for name in runs[0]}
        return found | {"log_cost": log(found["cost"])}

    def run(self, seed: int) -> dict[str, float]:
        from polopt.training.api import plan

        options = {"states": self.states, "map_seed": seed}
        settings = {"estimator": self.estimator, "episodes": self.episodes, "envs": min(self.episodes, 1500)}
        method: Any = plan("agnostic-rl", "layers", seed=seed, task_options=options, loggers=(), **settings).build()
        method.update(method.collect())
        while not method.finished:
            method.update(method.collect())
        world, policies = method.task, method.policies
        special = policies.number(world.layer, world.special)
        value, _ = method.processes.solve()
        error = float(value[(policies.states == special).any(1)]) - BEST
        episodes = method.ledger.env_steps / world.horizon
        taken = float(world.value(method.policy.table[0, ..., 1]))
        return {"right": float(taken > BEST - 0.05), "episodes": episodes, "cost": episodes * error**2}


def fork() -> Any:
    import torch

    from polopt.tasks.tabular import TabularMDP

    transition, reward = torch.zeros(2, 3, 2, 3), torch.zeros(2, 3, 2)
    transition[0, :, :, 2] = transition[1, :, :, 0] = 1.0
    reward[1, 1, 0], reward[1, 2, 1] = 1.0, 0.6
    return TabularMDP(transition, reward, 2)


def always(spec: Any = None) -> Any:
    """The two policies as tables [2, 2, 3]; at the first step all have the same one."""
    import torch

    return torch.tensor([[[0, 0, 0], [0, 0, 0]], [[0, 0, 0], [1, 1, 1]]])


@dataclass(frozen=True)
class Forked:
    """An arm of the fork."""

    how: str

    def __call__(self, seed: int, budget: Mapping[str, int]) -> dict[str, float]:
        import torch

        from polopt.policies.resets import cpi, psdp

        mdp, tables = fork(), always()
        reset = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.5, 0.5]], dtype=torch.float64)
        if self.how in ("psdp", "psdp-complete"):
            if self.how == "psdp-complete":
                tables = torch.cat((tables, torch.tensor([[[0, 0, 0], [0, 0, 1]]])))
            policy = psdp(mdp, tables, reset)
        elif self.how == "cpi":
            reset[1] = torch.tensor([0.0, 0.8, 0.2])
            policy, _ = cpi(mdp, tables, reset)
        else:
            policy = self.learned(seed)
        return {"value": float(mdp.value(policy)[0, mdp.start])}

    def learned(self, seed: int) -> Any:
        from polopt.tasks.tabular import NamedMDP
        from polopt.training.api import plan

        class Fork(NamedMDP):
            model = staticmethod(fork)

        settings = {"tables": always, "estimator": self.how, "episodes": 200, "envs": 200}
        method: Any = plan("agnostic-rl", Fork, seed=seed, loggers=(), **settings).build()
        method.update(method.collect())
        while not method.finished:
            method.update(method.collect())
        return method.policy.table[0]


def even(seed: int, steps: int = 4, states: int = 4) -> Any:
    """A random world in which every decision leads to one of two states, alike."""
    import torch

    from polopt.tasks.tabular import TabularMDP

    generator = torch.Generator().manual_seed(seed)
    transition = torch.zeros(steps, states, 2, states)
    for place in product(range(steps), range(states), range(2)):
        transition[place][torch.randperm(states, generator=generator)[:2]] = 0.5
    return TabularMDP(transition, torch.rand(steps, states, 2, generator=generator), steps)


def everything(mdp: Any, core: Any, begin: int, state: int) -> Any:
    """The batch of all episodes of all policies of a core, from a state at a step on; what is before it is 0."""
    import torch
    from tensordict import TensorDict

    ways = []
    for table in core.tolist():
        for luck in product(range(2), repeat=mdp.horizon - begin):
            here, way = state, [(0, 0, 0.0)] * begin
            for step, coin in zip(range(begin, mdp.horizon), luck):
                action = table[step][here]
                way.append((here, action, float(mdp.reward[step, here, action])))
                here = int(mdp.transition[step, here, action].nonzero()[coin])
            ways.append(way)
    seen, action, reward = torch.tensor(ways, dtype=torch.float64).unbind(-1)
    group = torch.arange(len(ways)).unsqueeze(1).expand(seen.shape)
    keys = {"action": action.long(), "reward": reward, "mask": torch.ones_like(seen).bool(), "group": group}
    return TensorDict({"obs": TensorDict({"state": seen.long()}, seen.shape), **keys}, seen.shape)


@dataclass(frozen=True)
class Expected:
    """An arm of the exact expectations."""

    broken: bool = False
    trains = ("agnostic-rl",)

    def __call__(self, seed: int, budget: Mapping[str, int]) -> dict[str, float]:
        import torch

        from polopt.methods.theory.agnostic_rl import Popler, Processes
        from polopt.policies.listed import probabilities, tons
        from polopt.tasks.tabular import TabularTask

        class Whole(Popler):
            def density(self, core: Any, length: Any, begin: int, stop: Any, actions: int) -> Any:
                return super().density(core, length, begin, length, actions).clamp_min(1 / len(core))

        mdp = even(seed)
        policies = tons(TabularTask(mdp).spec, 2)
        processes = Processes(policies, policies.core(), Whole() if self.broken else Popler(), 2)
        processes.add(everything(mdp, processes.core, 0, mdp.start))
        for petal in range(mdp.horizon * mdp.states):
            processes.add(everything(mdp, processes.core, *divmod(petal, mdp.states)), petal)
        tables = [probabilities(policies.table(which), 2) for which in range(len(policies))]
        exact = torch.stack([mdp.value(table)[0, mdp.start] for table in tables])
        return {"gap": float((processes.solve()[0] - exact).abs().max())}


def both(arm: str, estimator: str, episodes: int, runs: int = RUNS) -> dict[str, Searched]:
    return {f"{arm}@{states}": Searched(estimator, states, episodes, runs) for states in (500, 5000)}


CLAIM = Claim(
    method="agnostic-rl",
    statement="of 4,001 and of 40,001 policies POPLER finds the best one by as many episodes, a fifth of what naive "
    "importance sampling takes for the same accuracy, and trajectory trees by fewer; all policies are evaluated "
    "without bias by the same data; PSDP and CPI, however exact, miss the best policy of a class that is not complete",
    budget={"episodes": 7500},
    seeds=10,
    minutes=4,
    arms={
        **both("popler", "popler", 500),
        **both("importance", "importance", 1500),
        **both("importance-5x", "importance", 7500, runs=8),
        **both("trees", "tree", 20),
        "psdp": Forked("psdp"),
        "psdp-complete": Forked("psdp-complete"),
        "cpi": Forked("cpi"),
        "popler-fork": Forked("popler"),
        "trees-fork": Forked("tree"),
        "unbiased": Expected(),
        "whole": Expected(broken=True),
    },
    deterministic=("psdp*", "cpi"),
    expect=(
        Above("gap", "whole", 0.01, control=True),
        Below("gap", "unbiased", 1e-9),
        Above("right", "popler@*", 0.8),
        Above("right", "trees@*", 0.8),
        Greater("episodes", "popler@500", "popler@5000", ratio=1 / 1.3),
        Below("episodes", "popler@*", 3000),
        Greater("log_cost", "importance@500", "popler@500", by=log(5)),
        Greater("log_cost", "importance@5000", "popler@5000", by=log(5)),
        Greater("right", "popler@500", "importance@500", by=0.1),
        Greater("right", "popler@5000", "importance@5000", by=0.1),
        Below("value", "psdp", 1e-9),
        Below("value", "cpi", 1e-9),
        Above("value", "*-fork", 0.599),
        Above("value", "psdp-complete", 0.599),
    ),
)
