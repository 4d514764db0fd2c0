"""TSCAC: near the policies of rare responses the main one rises and the rare ones do not fall.

Sessions of a recommender (`sessions`): ten kinds of items, ten interests, three degrees of fatigue; watch time comes
with every item, and two responses with 3 to 10 percent of their two favored kinds and 1 percent of the others. Each
seed has other means and chances, and a log of 50,000 decisions that were random, whose probabilities are known. All
learners are tables, which step on the whole log, with the method's own ratios and weights:

    main-only    A2C with ratios on the watch time alone, 600 steps
    sum-W        the same on watch time plus W times both responses
    tscac-L      300 steps of A2C for each response, 300 of the second stage with restraint L

All numbers are exact values, discounted by 0.9, over those of the policy of the log: `main` of the watch time, `worse`
of the response that has less of it left, `better` of the other one, `sum` of both.

What could be had, by dynamic programming with exact experts on four such worlds whose users refreshed faster: main-only
1.8 to 1.9 with `worse` 0.4 to 0.65; the second stage at restraint 0.4 1.2 to 1.3 with `worse` above 1. An expert that
is wrong in states that its log hardly has takes the product for itself: there, on logs, `worse` was 0.6 to 1.1 at 0.4;
that is why fatigue comes evenly now, which was changed before the pilot below.

Restraint 0.4 is the smallest of the four that kept both responses at 0.95 on all seeds of the pilot (1000 to 1003):
`main` 1.22, 1.29, 1.26, 1.32 and `worse` 1.07, 1.39, 1.09, 1.16; at 0.2 `main` 1.48 to 1.62 and `worse` 0.83 to 0.90.
Of main-only `main` was 1.74 to 2.08 and `worse` 0.48 to 0.60. That TSCAC's watch time is within a tenth of main-only's
cannot be had in these worlds, and is not asked. The summed arms are for the record; in the pilot weight 6 had more
watch time than TSCAC (1.38, 1.56, 1.73, 1.77) and `worse` 1.02, 1.05, 1.02, 0.68: on a log that tries everything a
good weight is a strong rival, which has to be found.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache, partial
from typing import Any

from polopt.claims import Above, Below, Claim, Trend, together

DECISIONS, DISCOUNT, LR, ENTROPY, CLIP, TAU = 50_000, 0.9, 0.05, 0.03, 10.0, 0.1


@lru_cache(maxsize=1)
def logs(seeds: tuple[int, ...]) -> tuple[list[Any], dict[str, Any]]:
    """The world of each seed, and its log as columns [seeds, N] of decisions that were random."""
    import torch

    from polopt.data.demonstrations import scripted_episodes
    from polopt.tasks.sessions import Sessions

    worlds = [Sessions(500, seed, map_seed=seed, dull=0.8, side_rate=0.1) for seed in seeds]
    data = [scripted_episodes(world, "random", DECISIONS) for world in worlds]
    size = min(len(each) for each in data)
    keys = ("obs", "action", "rewards", "next_obs", "terminated")
    log = {key: torch.stack([each[key][:size] for each in data]) for key in keys}
    return worlds, log | {"rewards": log["rewards"].movedim(-1, 1).contiguous()}


class Tables:
    """V [seeds, k, S] and logits [seeds, k, S, A] of k responses, as tables, and their steps on whole logs."""

    def __init__(self, log: dict[str, Any], states: int, actions: int, rewards: Any) -> None:
        import torch

        seeds, responses, size = rewards.shape
        self.log, self.rewards, self.behavior = log, rewards, torch.full((seeds, 1, size), 1 / actions).log()
        self.value = torch.zeros(seeds, responses, states, requires_grad=True)
        self.logits = torch.zeros(seeds, responses, states, actions, requires_grad=True)
        self.target = self.value.detach().clone()
        self.optimizer = torch.optim.Adam([self.value, self.logits], lr=LR)
        self.often = torch.nn.functional.one_hot(log["obs"], states).sum(1, keepdim=True)  # [seeds, 1, S]

    def log_prob(self) -> Any:
        """log pi of the decisions, [seeds, k, N]."""
        import torch

        taken = self.log["obs"] * self.logits.shape[-1] + self.log["action"]
        return at(torch.log_softmax(self.logits, -1).flatten(2), taken)

    def step(self, importance: Any = None) -> None:
        """One step: of A2C, or of regression with `importance(advantage)`."""
        import torch

        from polopt.methods.multiagent.tscac import likelihood_ratio
        from polopt.values.targets import td_target

        log, size = self.log, self.rewards.shape[-1]
        log_prob, value, after = self.log_prob(), at(self.value, log["obs"]), at(self.target, log["next_obs"])
        target = td_target(self.rewards, DISCOUNT, log["terminated"].unsqueeze(1).expand_as(after), after)
        rho, advantage = likelihood_ratio(log_prob, self.behavior, CLIP), (target - value).detach()
        loss = (rho * (value - target).square() / 2).sum()
        if importance is None:
            every = torch.log_softmax(self.logits, -1)
            entropy = -(every.exp() * every).sum(-1)
            loss = loss - (rho * advantage * log_prob).sum() - ENTROPY * (self.often * entropy).sum()
        else:
            loss = loss - (importance(advantage) * log_prob).sum()
        self.optimizer.zero_grad()
        (loss / size).backward()
        self.optimizer.step()
        self.target.lerp_(self.value.detach(), TAU)


def at(table: Any, index: Any) -> Any:
    """Entries [seeds, k, N] of tables [seeds, k, S] at `index` [seeds, N]."""
    return table.gather(2, index.unsqueeze(1).expand(-1, table.shape[1], -1))


def learned(weight: float | None, restraint: float | None, seeds: tuple[int, ...], budget: Mapping[str, int]) -> Any:
    """An arm, all seeds side by side: A2C on the main reward plus `weight` times the others, or TSCAC with
    `restraint`."""
    import torch

    from polopt.methods.multiagent.tscac import greed, guidance

    worlds, log = logs(seeds)
    states, actions = int(worlds[0].spec.obs.n), worlds[0].kinds
    main, others = log["rewards"][:, :1], log["rewards"][:, 1:]
    tables = Tables(log, states, actions, main + (weight or 0.0) * others.sum(1, keepdim=True))
    if restraint is None:
        for _ in range(budget["updates"]):
            tables.step()
    else:
        experts = Tables(log, states, actions, others)
        for _ in range(budget["updates"] // 2):
            experts.step()
        guided = guidance(experts.log_prob().detach().movedim(1, 0), tables.behavior[:, 0], CLIP)
        uniform = torch.full_like(guided, 1 / guided.shape[-1])
        for _ in range(budget["updates"] // 2):
            tables.step(lambda advantage: (guided * greed(advantage[:, 0], restraint, uniform)).unsqueeze(1))
    found = {}
    for row, (seed, world) in enumerate(zip(seeds, worlds)):
        policy = torch.softmax(tables.logits[row, 0].detach().double(), -1)
        uniform = torch.full_like(policy, 1 / actions)
        share = world.value(policy, DISCOUNT) / world.value(uniform, DISCOUNT)
        sides = share[1:].tolist()
        found[seed] = {"main": float(share[0]), "worse": min(sides), "better": max(sides), "sum": sum(sides)}
    return found


def arm(weight: float | None = None, restraint: float | None = None) -> Any:
    return together(partial(learned, weight, restraint))


RESTRAINTS = (0.1, 0.2, 0.4, 0.8)
CLAIM = Claim(
    method="tscac",
    statement="in simulated sessions watch time alone costs one of two rare responses more than a fifth; TSCAC raises "
    "watch time above the log's and keeps both responses, and its restraint trades the one against the others",
    budget={"updates": 600},
    seeds=8,
    minutes=4,
    arms={
        "main-only": arm(weight=0.0),
        **{f"sum-{weight:g}": arm(weight=weight) for weight in (3.0, 6.0, 12.0, 24.0)},
        **{f"tscac-{restraint:g}": arm(restraint=restraint) for restraint in RESTRAINTS},
    },
    expect=(
        Above("main", "main-only", 1.4, control=True),
        Below("worse", "main-only", 0.8),
        Above("main", "tscac-0.4", 1.1),
        Above("worse", "tscac-0.4", 0.95),
        Trend("main", tuple(f"tscac-{restraint:g}" for restraint in RESTRAINTS), "down", by=0.1),
        Trend("worse", tuple(f"tscac-{restraint:g}" for restraint in RESTRAINTS), "up", by=0.1),
    ),
)
