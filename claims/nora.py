"""NORA: on a combination lock optimism finds the way, few critics suffice, and offline data take optimism's place.

The lock: 10 steps, in each two good rooms and one dead one, 4 actions of which one is right; what opens all of it is
paid 1, a wrong first action 0.1, the decoy. Each seed is another code. 2,000 episodes; the table of pairs are the
features; all seeds are one batch of the method's own `ActorCritic`, with its usual settings unless an arm says else.

    nora         optimistic, reset at switches, determinants doubled
    greedy       the same with bonus 0
    lsvi-ucb     greedy in an optimistic critic of every episode
    hybrid       nora after 500 offline episodes that are right in the first half (each action random with 0.1) and
                 random in the second: they show half of the lock
    noah         bonus 0 after 500 offline episodes that are right, each action random with 0.3: one in 13 opens
    noah-random  bonus 0 after 500 offline episodes of random actions
    no-reset, every-episode, noah-half    for the record: nora without the reset; DOUHUA, a critic of the current policy
                 every episode; bonus 0 after the data of hybrid

`regret` is exact: optimal value, 1, minus value of the policy that plays, summed over the episodes; `late` is its mean
over the last two thirds, `value` 1 minus that. `switches` of the critic, `late_switches` in the last two thirds.
`pessimistic` counts the episodes after which the critic promises less at the start than the optimum: none may be where
there is a bonus, as this lock has no luck in its values and a width of 0.3 / sqrt(n + 0.01) exceeds the shrinkage
0.01 / (n + 0.01) for every n.

Pilots (seeds 1000 and 1001): `regret` 207 and 196 of nora, 1802 of greedy, 91 and 88 of lsvi-ucb, 51 and 54 of hybrid,
3 of noah, 1801 of noah-random and noah-half; 111 and 116 without the reset, 102 and 99 of DOUHUA: the reset is what the
proof needs, and costs here, and a critic of every episode is not beaten. `late` 0.007 and 0.005 of nora; `switches` 110
and 108 of nora, 33 and 34 of hybrid; `late_switches` 10 and 6. `pessimistic` 0 with a bonus, 2000 without.

Whoever must find the code tries, in the mean, 1.5 wrong actions in each of 20 rooms, one an episode: no learner has a
regret much below 30 without data. Whoever never leaves the decoy has 1,800. A critic of every episode has 2,000
switches; between episodes 667 and 2,000 determinants of the two rooms grow 9 times, 3 of `late_switches` at least.
Thresholds of regret (a quarter, four times, 0.6) are those of the design, older than this code.

What was found: all expectations hold. Regret is 200 of nora, 1,802 without optimism, 90 of LSVI-UCB and 53 with the
data of half of the lock; the critic is renewed 110 times in 2,000 episodes, 5 times in the last two thirds. Without
optimism data that open the lock leave a regret of 3, random data one of 1,801. Against the method: without the reset
the regret is 114, and with a critic of the current policy in every episode 99, so resets and rare switches, which the
proof needs, cost here. Data of half of the lock without optimism suffice on some seeds (0.37 on average).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import Any

from polopt.claims import Above, Below, Claim, Greater, together

SEEDS = 2048  # more than there are
OFFLINE = 2**20  # starts from here on are those of offline episodes
ACTION = 99  # what luck is for


@dataclass(frozen=True)
class Data:
    """Offline episodes of a behavior of the lock, whose actions are random with probability `stray`."""

    behavior: str
    stray: float = 0.0
    episodes: int = 500


def played(world: Any, index: Any, policy: Any = None, behavior: str = "") -> list[Any]:
    """States, actions, rewards and successors [rows, H] of the starts `index` [rows], by policies [rows, H, S, A] or
    by a behavior. Their luck is that of the start, whatever other rows there are."""
    import torch

    from polopt.tasks.luck import uniform

    obs, rows, steps = world.reset(index=index), torch.arange(len(index)), []
    for h in range(world.horizon):
        state = obs["state"]
        if behavior:
            action = world.behave(behavior, world.state, world.time)
        else:
            below = policy[rows, h, state].cumsum(-1)
            action = (uniform(world.state["key"], h, 1, ACTION) >= below[:, :-1]).sum(-1)
        obs, reward, _, _ = world.step({"action": action})
        steps.append((state, action, reward, obs["state"]))
    return [torch.stack(column, 1) for column in zip(*steps)]


def explored(
    settings: tuple[tuple[str, Any], ...], data: Data | None, seeds: tuple[int, ...], budget: Mapping[str, int]
) -> dict[int, dict[str, float]]:
    """An arm, all seeds side by side."""
    import torch

    from polopt.methods.theory.nora import NORA, ActorCritic
    from polopt.tasks.lock import Lock
    from polopt.tasks.tabular_sets import finite_value

    def code(seed: int) -> Any:
        return torch.randint(4, (10, 2), generator=torch.Generator().manual_seed(seed))

    def world(rows: int, **options: Any) -> Any:
        made = Lock(rows, **options)
        made.levels = {"code": torch.stack([code(seed) for seed in range(SEEDS)])}
        return made

    def model(seed: int) -> Any:
        lock = Lock()
        lock.code = code(seed)
        return lock.mdp()

    own, count = torch.tensor(seeds), len(seeds)
    models = [model(seed) for seed in seeds]
    transition, reward = (torch.stack([getattr(each, name) for each in models]) for name in ("transition", "reward"))
    features = torch.eye(12, dtype=torch.float64).unflatten(0, (3, 4))
    learner = ActorCritic(NORA.Config(**dict(settings)), features, 10, (count,))
    if data is not None:
        starts = own.unsqueeze(-1) + SEEDS * (OFFLINE + torch.arange(data.episodes))
        columns = played(world(starts.numel(), stray=data.stray), starts.flatten(), behavior=data.behavior)
        learner.add(*(column.unflatten(0, starts.shape).mT for column in columns))
    lock, regret, switches, promised = world(count), [], [], []
    for episode in range(budget["episodes"]):
        policy = learner.policy()
        regret.append(1.0 - finite_value(transition, reward, policy)[:, 0, 0])
        learner.add(*(column.unsqueeze(-1) for column in played(lock, own + SEEDS * episode, policy)))
        learner.step()
        switches.append(learner.switches)
        promised.append(learner.critic[:, 0, 0].amax(-1))
    third = budget["episodes"] // 3
    lost = torch.stack(regret)
    late = lost[third:].mean(0)
    found = {
        "regret": lost.sum(0),
        "late": late,
        "value": 1.0 - late,
        "switches": switches[-1],
        "late_switches": switches[-1] - switches[third - 1],
        "pessimistic": (torch.stack(promised) < 1.0 - 1e-6).double().sum(0),
    }
    return {seed: {name: float(each[row]) for name, each in found.items()} for row, seed in enumerate(seeds)}


def arm(data: Data | None = None, **settings: Any) -> Any:
    return together(partial(explored, tuple(settings.items()), data))


HALF = Data("half", stray=0.1)
CLAIM = Claim(
    method="nora",
    statement="on a combination lock with a decoy an optimistic critic that is renewed in few episodes, and an actor "
    "that is reset then, find the code with a regret within a factor of 4 of LSVI-UCB's, where the same without "
    "optimism stays at the decoy; offline data of half of the lock shrink the regret, and without optimism data of all "
    "of it suffice, while data of random actions do not",
    budget={"episodes": 2000},
    seeds=10,
    minutes=4,
    arms={
        "nora": arm(),
        "greedy": arm(bonus=0.0),
        "lsvi-ucb": arm(eta=inf, growth=1.0),
        "hybrid": arm(HALF),
        "noah": arm(Data("right", stray=0.3), bonus=0.0),
        "noah-random": arm(Data("random"), bonus=0.0),
        "no-reset": arm(reset=False),
        "every-episode": arm(target="policy", growth=1.0, reset=False),
        "noah-half": arm(HALF, bonus=0.0),
    },
    expect=(
        Above("regret", "greedy", 1000, control=True),
        Below("late", "lsvi-ucb", 0.05, control=True),
        Greater("regret", "greedy", "nora", ratio=4),
        Greater("regret", "lsvi-ucb", "nora", ratio=0.25),
        Greater("regret", "nora", "hybrid", ratio=1 / 0.6),
        Below("late", "nora", 0.05),
        Below("switches", "nora", 150),
        Below("late_switches", "nora", 20),
        Below("pessimistic", "nora", 0.5),
        Below("pessimistic", "hybrid", 0.5),
        Above("pessimistic", "greedy", 1500, control=True),
        Above("value", "noah", 0.9),
        Below("value", "noah-random", 0.2),
    ),
)


def figures(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Exact regret so far on the lock of one seed."""
    from polopt.evaluation.figures import Curves

    marks = [0, 50, 100, 200, 400]
    lines: dict[str, list[float]] = {}
    for name in ("nora", "greedy", "lsvi-ucb", "hybrid"):
        found = [0.0]
        for mark in marks[1:]:
            found.append(CLAIM.arms[name](1000, {"episodes": mark})["regret"])
        lines[name] = found
    return {"regret of one seed": Curves(marks, lines, x_label="episodes")}
