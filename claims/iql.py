"""Implicit Q-Learning (arXiv 2110.06169): values spread through a maze with a high expectile, not with a mean.

Four parts. `exact`: on random tabular MDPs with a random behavior, which uses half of the actions of each state, the
fixed point of "V(s) is the expectile of Q(s, a) over the behavior's actions, Q = r + discount P V" never falls as the
expectile rises, and nears the best value within the behavior's actions, not the optimal one. `u-maze`: the toy of the
paper, an 11 x 11 maze with one shortest path and 99 episodes of random actions; IQL with four expectiles and one
temperature, cloning, and cloning of the best tenth. `cross`: no episode goes from the start to the goal, two sets of
episodes cross in the middle. `lottery`: one decision, 1 for sure or 10 in one of twenty cases; the wrong variant has
its expectile on the target of Q. The goal is 20 steps from the start, and the horizon is scaled with the maze, to a
discount of 0.95. Values and policies are tables, trained by the method's own updates.

Third registration. The first one (seeds 0 to 4, kept on the page) correlated V with the value of the shortest path,
over all cells in the data. In one of five seeds two cells had no way out but to a cell in which nothing was ever done:
their value within the data is 0, beside 9.5 on the shortest path. Exact calculation with these data gives a perfect IQL
a correlation of 0.65 there, and 0.996 with the best value within the data, which is what the paper's theorem speaks of
(the recorded run had 0.58, and has 0.995). And it asked for a far success of the greedy policy below 0.6 at expectile
0.5, where a perfect one gets 0.36 to 0.89 with these data, 0.57 in the mean: most of it is luck in the counts of
actions, of which the greedy policy takes the most weighted, however near the weights are. What fades with the values
are the weights themselves, so since the second registration the sampled policy is asked to arrive.

The second one (seeds 5 to 10, kept too) failed by a control of its exact part, one MDP a seed: that the best value with
all actions is above the one within the data by 5 % held in the mean (16 %), but with a long tail (0.5 to 52 %), and so
did V stay below the best value within the data in every seed, by an amount with as long a tail. An interval of the mean
is no test of what must hold always. Now there are ten MDPs a seed, and what must never happen is counted as what
happens, 0 or more. The expectiles' success is three expectations, since it failed at 0.99 alone: there the greedy
policy of two of six seeds arrived from 20 and 11 % of the cells, though the sampled one did from the start with
probability 1.00 and 0.55. That was not the experiment's fault and is asked for again as it was; all trained arms and
their thresholds are unchanged.

`success` is the share of the cells in the data from which the greedy policy gets to the goal, `reach` the exact
probability that the sampled policy gets from the start to the goal within 100 steps. `correlation` is that of V with
the best value within the data, by dynamic programming over the actions that were taken, each cell counted as often as
it was visited; `start_value` is V at the start in units of that value.

What a perfect implementation gets on the data of eight pilot seeds: correlation 0.58 to 0.70 at expectile 0.5, 0.989
and more at 0.9; reach 0.53 to 0.70, and 1.00; start value 0.002, and 0.67 to 0.70. The pilots (1000 and 1001) had 0.51
and 0.60, 0.98; 0.41 and 0.57, 1.00; 0.001, 0.69 and 0.71. Thresholds are those of the first registration (and of the
paper's toy) where there was one, and about half of the exact difference for the new ones.

What was found: all of it. The correlation of V with the best value within the data is 0.96 to 0.99 with the high
expectiles (0.44 to 0.65 with the mean), the sampled policy arrives with probability 1.00 (0.18 to 0.55), and cloning,
of all or of the best tenth, arrives from a quarter of the cells at most. At 0.99 it is less sure than this verdict:
over the twelve seeds of the last two registrations the greedy policy arrived from all cells in nine, and from 84, 20
and 11 % in three; at 0.9 and 0.95 from all cells in all twelve. V at the start ends there at 1.02 to 1.28 times the
best value within the data, where the exact fixed point has 0.97: so high an expectile takes the noise of the critics
for value, as the wrong variant does with luck, and advantages that are all far below 0 leave little to tell actions
apart.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from polopt.claims import Above, Below, Claim, Greater

EXPECTILES = (0.5, 0.9, 0.95, 0.99)
STATES, ACTIONS, DISCOUNT, MDPS = 8, 4, 0.9, 10
GOAL, MAZE_DISCOUNT = 10.0, 0.95
LR = 0.05
VALUES: dict[str, Any] = {"advantage_temperature": 10.0, "tau": 0.05, "discount": MAZE_DISCOUNT}


def exact(seed: int, budget: Mapping[str, int]) -> dict[str, float]:
    """Of MDPS random MDPs, in whose states half of the actions are in the data: `fall`, the largest fall of V
    anywhere from one expectile to the next, and `excess`, by how much V is anywhere above the best value within the
    data, both 0 if they never are; `gap`, the largest distance of V at 0.999 from that value over the states, and
    `room`, the mean over them of how much more the best value with all actions is, both relative to it and averaged
    over the MDPs. `residual`: largest gradient of the library's loss at the fixed points."""
    rng = np.random.default_rng(seed)
    found = [exact_mdp(rng) for _ in range(MDPS)]
    worst = {name: max(0.0, *(item[name] for item in found)) for name in ("fall", "excess", "residual")}
    return worst | {name: float(np.mean([item[name] for item in found])) for name in ("gap", "room")}


def exact_mdp(rng: np.random.Generator) -> dict[str, float]:
    """`exact` of the next MDP of this generator."""
    import torch

    from polopt.values.in_sample import expectile_value_loss

    transition = rng.dirichlet(np.full(STATES, 0.5), size=(STATES, ACTIONS))
    reward = rng.random((STATES, ACTIONS))
    behavior = np.zeros((STATES, ACTIONS))
    for state in range(STATES):
        behavior[state, rng.permutation(ACTIONS)[: ACTIONS // 2]] = rng.dirichlet(np.ones(ACTIONS // 2))
    values, residual = [], 0.0
    for tau in (*EXPECTILES, 0.999):
        value = np.zeros(STATES)
        for _ in range(400):
            q = reward + DISCOUNT * transition @ value
            for _ in range(20):  # the expectile is a weighted mean whose weights depend on it
                weight = np.where(q > value[:, None], tau, 1 - tau) * behavior
                value = (weight * q).sum(1) / weight.sum(1)
        table = torch.from_numpy(value).requires_grad_()
        rows = table[:, None].expand(STATES, ACTIONS)
        q = torch.from_numpy(reward + DISCOUNT * transition @ value)
        expectile_value_loss(rows, q, torch.from_numpy(behavior), tau).backward()
        assert table.grad is not None
        residual = max(residual, float(table.grad.abs().max()))
        values.append(value)
    best, within = np.zeros(STATES), np.zeros(STATES)
    for _ in range(400):
        best = (reward + DISCOUNT * transition @ best).max(1)
        within = np.where(behavior > 0, reward + DISCOUNT * transition @ within, 0.0).max(1)
    return {
        "fall": float(-np.diff(np.array(values), axis=0).min()),
        "excess": float((np.array(values) - within).max()),
        "gap": float((1 - values[-1] / within).max()),
        "room": float((best / within - 1).mean()),
        "residual": residual,
    }


def table(inputs: int, outputs: int) -> Any:
    """A trunk that is a table, 0 at first: of cells, or of cells and actions, where both are one-hot inputs."""
    import torch

    actions = {121 + 4: 4, 1 + 2: 2}.get(inputs, 0)  # the maze's and the lottery's

    class Table(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(inputs - actions, actions or outputs))

        def forward(self, x: Any) -> Any:
            values = x[..., : inputs - actions] @ self.weight
            return (values * x[..., -actions:]).sum(-1, keepdim=True) if actions else values

    return Table()


def trained(learner: Any, updates: int) -> Any:
    """The method after this many updates."""
    learner.task.close()
    for update in range(updates):
        learner.progress = update / updates
        learner.update(learner.collect())
    return learner


@dataclass(frozen=True)
class Maze:
    """An arm on recorded episodes of a maze; `best` is the share of the episodes, by return, that is kept."""

    method: str
    layout: str
    behavior: str
    settings: tuple[tuple[str, Any], ...] = ()
    best: float = 1.0

    def __call__(self, seed: int, budget: Mapping[str, int]) -> dict[str, float]:
        import torch

        from polopt.data.demonstrations import save_demonstrations
        from polopt.tasks import make_task
        from polopt.tasks.maze import UMaze, transitions
        from polopt.training.api import plan

        options = {"layout": self.layout, "obs": "cell", "goal_reward": GOAL}
        maze = UMaze(**options)
        episodes = maze.behavior_episodes(self.behavior, 100 * 100, seed)[:100]
        if self.best < 1.0:
            ranked = sorted(episodes, key=lambda episode: -episode["reward"].sum())
            episodes = ranked[: round(self.best * len(ranked))]
        data = transitions(episodes)
        settings = {"lr": LR, "policy": "tabular-softmax", **dict(self.settings)}
        with tempfile.TemporaryDirectory(prefix="polopt-claim-") as folder:
            file = Path(folder) / "episodes.safetensors"
            save_demonstrations(file, data, make_task("u-maze", **options).spec)
            where = {"dataset" if self.method == "iql" else "demonstrations": str(file)}
            learner = plan(self.method, "u-maze", seed=seed, task_options=options, **where, **settings).build()
        trained(learner, budget["updates"])
        cells = torch.arange(maze.grid.size)
        with torch.no_grad():
            policy = learner.policy.logits({"obs": cells}).double().softmax(-1).numpy()
            value = learner.in_sample.value(cells).numpy() if self.method == "iql" else None
        visits = np.zeros((maze.grid.size, 4))
        np.add.at(visits, (data["obs"].numpy(), data["action"].numpy()), 1)
        return self.measured(maze, policy, value, visits)

    def measured(self, maze: Any, policy: np.ndarray, value: np.ndarray | None, visits: np.ndarray) -> dict[str, float]:
        """`policy` [cells, 4], `value` [cells]; `visits` [cells, 4] counts the actions in the data."""
        columns = maze.grid.shape[1]
        goal, start = (int(np.dot(cell, (columns, 1))) for cell in (maze.goal, maze.start))
        sampled, after = np.zeros((maze.grid.size, maze.grid.size)), np.zeros((maze.grid.size, 4), dtype=int)
        for row, column in maze.free:
            cell = row * columns + column
            after[cell] = [int(np.dot(maze.moved((row, column), action), (columns, 1))) for action in range(4)]
            np.add.at(sampled[cell], after[cell], policy[cell])
        greedy = after[np.arange(len(after)), policy.argmax(1)]
        sampled[goal], greedy[goal] = np.eye(len(sampled))[goal], goal
        end = np.arange(len(greedy))
        for _ in range(100):
            end = greedy[end]
        seen = np.flatnonzero(visits.sum(1))  # never the goal, where episodes end
        found = {
            "success": float((end[seen] == goal).mean()),
            "reach": float(np.linalg.matrix_power(sampled, 100)[start, goal]),
        }
        if value is not None:
            best = np.zeros(len(value))
            for _ in range(200):
                best = np.where(visits > 0, np.where(after == goal, GOAL, MAZE_DISCOUNT * best[after]), 0.0).max(1)
            moments = np.cov(value[seen], best[seen], aweights=visits.sum(1)[seen])
            found["correlation"] = float(moments[0, 1] / np.sqrt(moments[0, 0] * moments[1, 1]))
            found["start_value"] = float(value[start] / best[start])
        return found


class Lottery(gymnasium.Env):
    """One decision: action 0 pays 1, action 1 pays 10 in one of twenty cases."""

    def __init__(self) -> None:
        self.observation_space, self.action_space = spaces.Discrete(1), spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        return np.int64(0), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        reward = 1.0 if action == 0 else 10.0 * (self.np_random.random() < 0.05)
        return np.int64(0), float(reward), True, False, {}


@dataclass(frozen=True)
class Draw:
    """An arm on the lottery; `wrong` regresses Q on an expectile of its target in place of the mean."""

    wrong: bool = False

    def __call__(self, seed: int, budget: Mapping[str, int]) -> dict[str, float]:
        import torch

        from polopt.losses.regression import expectile
        from polopt.training.api import plan

        settings = {**VALUES, "lr": LR, "policy": "tabular-softmax", "network": table, "expectile": 0.9}
        learner = plan("iql", Lottery, seed=seed, dataset="random", random_episodes=2_000, **settings).build()

        def wrong_loss(batch: Any) -> Any:
            error = batch["reward"] - learner.in_sample.critic(batch["obs"], batch["action"])  # always terminates
            return (batch["weight"] * expectile(error, 0.9)).sum(), {}

        if self.wrong:
            learner.critic_loss = wrong_loss
        trained(learner, budget["updates"] // 3)
        with torch.no_grad():
            safe, risky = learner.in_sample.critic(torch.zeros(2).long(), torch.arange(2)).mean(0).tolist()
            probability = learner.policy.logits({"obs": torch.zeros(1).long()}).softmax(-1)[0, 0].item()
        return {"margin": safe - risky, "safe": probability}


def maze_iql(tau: float, layout: str = "u", behavior: str = "mixture") -> Maze:
    return Maze("iql", layout, behavior, (("expectile", tau), ("network", table), *VALUES.items()))


CLAIM = Claim(
    method="iql",
    statement="with a high expectile the value of the goal spreads through a maze of random data, and through episodes "
    "that only cross, up to the best value within the data and not beyond, where the mean and cloning fail; and luck "
    "in the transitions is not taken for skill",
    budget={"updates": 3_000},
    seeds=6,
    minutes=4,
    revision=3,
    first_seed=11,
    diagnosis="the second registration failed by a control of its exact part, that data leave room below the optimum "
    "(16 % in the mean, 0.5 to 52 %), and missed that values stay below the best within the data, which they did in "
    "every seed: of amounts with such tails the mean of six MDPs is no test. Now there are ten MDPs a seed, and what "
    "must never happen is counted. The first one correlated values with the shortest path's where the data do not have "
    "it. Trained arms and their thresholds are those of the second.",
    arms={
        "exact": exact,
        **{f"iql@{tau}": maze_iql(tau) for tau in EXPECTILES},
        "bc": Maze("bc", "u", "mixture"),
        "bc-best": Maze("bc", "u", "mixture", best=0.1),
        "cross-iql": maze_iql(0.9, "cross", "crossing"),
        "cross-bc": Maze("bc", "cross", "crossing"),
        "lottery": Draw(),
        "lottery-wrong": Draw(wrong=True),
    },
    expect=(
        Below("fall", "exact", 1e-9, control=True),
        Below("residual", "exact", 1e-9, control=True),
        Above("room", "exact", 0.05, control=True),
        Below("gap", "exact", 0.02),
        Below("excess", "exact", 1e-9),
        Above("success", "iql@0.9", 0.9),
        Above("success", "iql@0.95", 0.9),
        Above("success", "iql@0.99", 0.9),
        Above("correlation", "iql@0.9*", 0.9),
        Greater("correlation", "iql@0.9*", "iql@0.5", by=0.15),
        Greater("reach", "iql@0.9*", "iql@0.5", by=0.2),
        Below("start_value", "iql@0.5", 0.2),
        Above("start_value", "iql@0.9", 0.5),
        Greater("success", "iql@0.9", "bc*", by=0.3),
        Above("reach", "cross-iql", 0.9),
        Below("reach", "cross-bc", 0.6),
        Above("margin", "lottery", 0.0),
        Below("margin", "lottery-wrong", 0.0, control=True),
    ),
)
