"""Dataset measures (arXiv 2111.04714): quality says whether to clone, coverage whether Q-learning will do.

Two stages, each with an online run of Q-learning, whose replay is the reference, and six more datasets of as many
decisions: `random` (uniform actions), `expert` (the last policy, greedy), `noisy` (the same, with one action in five
uniform), and mixtures of the first two, `mixed` (80 : 20), `mix-40` (60 : 40) and `mix-70` (30 : 70). From each learn a
clone (BC), which plays its most likely actions (`bc`) or all as it learned them (`sampled-bc`), Q-learning without a
constraint (`dqn`), and with one (`bcq`, threshold 0.3). A performance is on the scale of TQ: 0 is the random dataset of
the run, 1 the best of its online evaluations.

`cartpole`: polopt's `dqn` for 10,000 steps; then `bc`, `cql --conservatism 0`, which is DQN on recorded data, and
`bcq`, two layers of 64, 2,000 updates of 128 decisions, the same rate for all. A performance is the mean of four
evaluations of ten episodes over the second half of the updates. The paper's networks are larger, its rates smaller, and
its updates five times as many as its decisions.

`grid`: 6 x 6 cells, a wall of lava with one gap between start and goal, 3,000 decisions. All is exact, with tables: BC
has the frequencies of the recorded actions, DQN and BCQ the fixed point of Q-iteration on the recorded pairs. The value
of a pair that is not recorded stays what a table began with, uniform between 0 and 1, the least and the largest value
that there are. A number is the mean over 20 online runs, each with 20 such tables.

`with_tq` and `with_saco` are rank correlations over the seven datasets of a run between a performance and the measure.
The most likely actions arrive from every dataset of the grid but the random one: `bc` has six equal ranks there, and no
implementation a correlation above 0.61 with TQ. So the clone that is asked to follow TQ there is `sampled-bc`. Seven
datasets give a coarse correlation: on CartPole that of SACo is only asked to be larger for DQN than for BC. Reported
and not judged: on how many datasets BCQ is within 0.1 of the better of BC and DQN, both greedy (`constrained`).

Pilots, seed 1000. Grid, 20 runs: TQ 0, 0.37 and 1 of random, mixed and expert; SACo(expert) 0.09; `with_tq` of
sampled-bc 1.00, `with_saco` 0.71 of dqn and -0.14 of bc; dqn 1.00 from the replay and 0 from the expert, whose `bc` has
1.00. CartPole, after 1,000 updates: TQ 0, 0.02 and 0.41, SACo(expert) 0.79; `with_tq` of bc 0.89; bc 0.00 from random
data and 0.47 from the expert's, dqn 0.50 and -0.05; but `with_saco` 0.02 of dqn and 0.32 of bc. The noisy dataset
covers 0.98 of what the replay does and teaches dqn nothing (-0.05), and from the replay it had not learned much yet
(0.28). The paper has many times as many updates; here there are 2,000, and the expectation stands as the paper has it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from polopt.claims import Above, Claim, Greater, Ordered
from polopt.claims.shared import shared

EXPERT = {"mixed": 0.2, "mix-40": 0.4, "mix-70": 0.7}  # share of the expert's decisions
KINDS = ("random", *EXPERT, "noisy", "expert", "replay")
LEARNERS = ("bc", "sampled-bc", "dqn", "bcq")
NOISE, THRESHOLD, DISCOUNT = 0.2, 0.3, 0.95
Facts = dict[str, dict[str, float]]  # of each kind of dataset: tq, saco, lsaco, and the performance of each learner

TASK = "CartPole-v1"
ONLINE: dict[str, Any] = {
    "warmup": 500,
    "batch_size": 64,
    "steps_per_update": 1,
    "target_every": 200,
    "exploration": 0.3,
    "epsilon": 0.05,
    "lr": 1e-3,
    "discount": DISCOUNT,
    "network.sizes": (64, 64),
}
OFFLINE: dict[str, Any] = {"batch_size": 128, "lr": 1e-3, "network.sizes": (64, 64)}
VALUES: dict[str, Any] = {"discount": DISCOUNT, "double": False, "target_every": 100}
OFFLINE_METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "bc": ("bc", {}),
    "dqn": ("cql", {"conservatism": 0.0, **VALUES}),
    "bcq": ("bcq", {"threshold": THRESHOLD, **VALUES}),
}
ONLINE_EVALUATIONS, EVALUATIONS, EPISODES = 20, 8, 10

SIDE, HORIZON, GRID_STEPS, RUNS, TABLES, SWEEPS = 6, 60, 3_000, 20, 20, 150
STATES, ACTIONS, GOAL = SIDE * SIDE, 4, SIDE * SIDE - 1
Random = np.random.Generator
Array = np.ndarray[Any, Any]


# CartPole


def write_datasets(folder: Path, seed: int, steps: int) -> None:
    """KIND.safetensors: all datasets of an online run; run.json: its best and its random return."""
    import torch

    from polopt.data.demonstrations import joined, save_demonstrations
    from polopt.data.episodes import Episodes
    from polopt.evaluation.dataset_measures import mean_return
    from polopt.evaluation.returns import evaluate_returns
    from polopt.policies.greedy import EpsilonGreedy
    from polopt.policies.wrappers import Uniform
    from polopt.tasks import make_task
    from polopt.training.api import plan
    from polopt.training.datasets import Watch, in_order

    learner: Any = plan("dqn", TASK, seed=seed, loggers=(), threads=1, envs=1, **ONLINE).build()
    judge = make_task(TASK, EPISODES, 20_000 + seed, evaluation=True)
    watch, best, judged = Watch(learner), -np.inf, 0
    while learner.ledger.env_steps < steps:
        learner.progress = learner.ledger.env_steps / steps
        learner.update(learner.collect())
        if learner.ledger.env_steps >= (judged + 1) * steps // ONLINE_EVALUATIONS:
            judged += 1
            best = max(best, evaluate_returns(learner.policy, judge, EPISODES)["return"])
    replay: Any = in_order(watch.windows())
    replay["truncated"][-1] = watch.windows()[-1]["truncated"][0, -1]  # the end of the data is no end of an episode

    def played(actor: Any, number: int) -> Any:
        parts, size = [], 0
        source = Episodes(make_task(TASK, EPISODES, 30_000 + 10 * seed + number), EPISODES)
        while size < steps:
            parts.append(joined(source.next(actor), actor, learner.spec))
            size += len(parts[-1])
        return torch.cat(parts)[:steps]  # type: ignore[arg-type]

    data = {"random": played(Uniform(learner.spec), 0), "expert": played(learner.policy, 1)}
    data |= {"noisy": played(EpsilonGreedy(learner.policy, NOISE), 2), "replay": replay[:steps]}
    for kind, share in EXPERT.items():
        most = round((1 - share) * steps)
        data[kind] = torch.cat([data["random"][:most], data["expert"][: steps - most]])
        data[kind]["first"][most] = True
    for kind, rows in data.items():
        save_demonstrations(folder / f"{kind}.safetensors", rows, learner.spec)
    found = {"online": best, "random": mean_return(data["random"]), "expert": mean_return(data["expert"])}
    (folder / "run.json").write_text(json.dumps(found))
    for task in (learner.task, judge):
        task.close()


def offline(file: Path, learner: str, seed: int, updates: int) -> dict[str, float]:
    """The mean return of what a learner makes of a file of decisions: of its best actions, and of BC's distribution."""
    from polopt.evaluation.returns import evaluate_returns
    from polopt.tasks import make_task
    from polopt.training.api import plan

    name, settings = OFFLINE_METHODS[learner]
    data = {"demonstrations" if name == "bc" else "dataset": str(file)}
    method: Any = plan(name, TASK, seed=seed, loggers=(), threads=1, **OFFLINE, **settings, **data).build()
    judge = make_task(TASK, EPISODES, 40_000 + seed, evaluation=True)
    forms = {"bc": True, "sampled-bc": False} if learner == "bc" else {learner: True}
    found: dict[str, list[float]] = {form: [] for form in forms}
    for update in range(1, updates + 1):
        method.update(method.collect())
        if update % (updates // EVALUATIONS) == 0 and 2 * update > updates:
            for form, greedy in forms.items():
                found[form].append(evaluate_returns(method.policy, judge, EPISODES, greedy=greedy)["return"])
    for task in (method.task, judge):
        task.close()
    return {form: float(np.mean(scores)) for form, scores in found.items()}


def cartpole(folder: Path, kind: str, seed: int, budget: Mapping[str, int]) -> None:
    """facts.json: the measures of one dataset, and how the learners do on it."""
    from polopt.core.spec import Spec
    from polopt.data.demonstrations import load_demonstrations
    from polopt.evaluation.dataset_measures import lsaco, mean_return, saco, tq
    from polopt.tasks import make_task

    steps = budget["env_steps"]
    run = shared(f"datasets {seed} {steps}", lambda place: write_datasets(place, seed, steps))
    task = make_task(TASK)
    spec: Spec = task.spec
    task.close()
    data, replay = (load_demonstrations(run / f"{name}.safetensors", spec) for name in (kind, "replay"))
    ends = json.loads((run / "run.json").read_text())
    low, high = ends["random"], ends["online"]
    facts = {"tq": tq(data, random=low, online=high), "saco": saco(data, replay), "lsaco": lsaco(data, replay)}
    facts |= {"return": mean_return(data), "online": high}
    for learner in OFFLINE_METHODS:
        scores = offline(run / f"{kind}.safetensors", learner, seed, budget["updates"])
        facts |= {form: (score - low) / (high - low) for form, score in scores.items()}
    (folder / "facts.json").write_text(json.dumps(facts))


def cartpole_facts(seed: int, budget: Mapping[str, int], kinds: tuple[str, ...] = KINDS) -> list[Facts]:
    """Of the one run of a seed, in a list."""
    facts = {}
    for kind in kinds:
        make = partial(cartpole, kind=kind, seed=seed, budget=budget)
        place = shared(f"cartpole {kind} {seed} {dict(budget)}", make)
        facts[kind] = json.loads((place / "facts.json").read_text())
    return [facts]


# The grid


class Lava:
    """Steps of a 6 x 6 grid: 1 for arriving in the corner opposite to the start, and an end in the lava."""

    def __init__(self, gap: int) -> None:
        row, column = np.divmod(np.arange(STATES), SIDE)
        moves = np.array([[-1, 0], [1, 0], [0, -1], [0, 1]])
        rows, columns = (
            np.clip(each[:, None] + moves[:, axis], 0, SIDE - 1) for axis, each in enumerate((row, column))
        )
        self.next = rows * SIDE + columns  # [S, A]
        lava = (column == SIDE // 2) & (row != gap)
        self.ends = lava[self.next] | (self.next == GOAL)
        self.reward = (self.next == GOAL).astype(float)

    def play(self, act: Any, decisions: int, learn: Any = None) -> dict[str, Array]:
        """So many decisions of `act(state) -> action`, the last episode cut off where they are there; `learn` is told
        each of them."""
        rows: list[tuple[Any, ...]] = []
        state, time = 0, 0
        while len(rows) < decisions:
            action = act(state)
            after, ends = self.next[state, action], self.ends[state, action]
            time += 1
            late = not ends and time == HORIZON
            rows.append((state, action, self.reward[state, action], after, ends, late, time == 1))
            if learn is not None:
                learn(*rows[-1])
            state, time = (0, 0) if ends or late else (after, time)
        names = ("obs", "action", "reward", "next_obs", "terminated", "truncated", "first")
        return dict(zip(names, map(np.array, zip(*rows))))

    def returns(self, table: Array) -> float:
        """The return of the greedy policy of values or frequencies [S, A]: whether it arrives."""
        state = 0
        for _ in range(HORIZON):
            action = table[state].argmax()
            if self.ends[state, action]:
                return float(self.reward[state, action])
            state = self.next[state, action]
        return 0.0

    def q_learning(self, random: Random) -> tuple[Array, float, dict[str, Array]]:
        """(values, return of the best evaluation, all decisions): optimistic tables, epsilon from 1 to 0.05."""
        table, best, step = np.ones((STATES, ACTIONS)), 0.0, 0

        def act(state: int) -> int:
            nonlocal step
            step += 1
            epsilon = max(1 - step / (0.3 * GRID_STEPS), 0.05)
            return int(random.integers(ACTIONS)) if random.random() < epsilon else int(table[state].argmax())

        def learn(state: int, action: int, reward: float, after: int, ends: bool, late: bool, first: bool) -> None:
            nonlocal best
            table[state, action] = reward + (0.0 if ends else DISCOUNT * table[after].max())
            if step % (GRID_STEPS // ONLINE_EVALUATIONS) == 0:
                best = max(best, self.returns(table))

        replay = self.play(act, GRID_STEPS, learn)
        return table, best, replay

    def sampled(self, policy: Array) -> float:
        """The expected return of probabilities [S, A]."""
        value = np.zeros(STATES)
        for _ in range(HORIZON):
            value = (policy * (self.reward + ~self.ends * value[self.next])).sum(1)
        return float(value[0])

    def learned(self, data: Mapping[str, Array], learner: str, random: Random) -> float:
        """The return of what a learner makes of the decisions, over `TABLES` beginnings where it has a table."""
        counts = np.zeros((STATES, ACTIONS))
        np.add.at(counts, (data["obs"], data["action"]), 1)
        seen, visited = counts > 0, counts.any(1, keepdims=True)
        if learner == "bc":
            return self.returns(np.where(visited, counts, random.random((STATES, ACTIONS))))
        if learner == "sampled-bc":
            return self.sampled(np.where(visited, counts / counts.sum(1, keepdims=True).clip(1), 1 / ACTIONS))
        allowed = (counts > THRESHOLD * counts.max(1, keepdims=True)) | ~visited | (learner == "dqn")
        tables = random.random((TABLES, STATES, ACTIONS))
        for _ in range(SWEEPS):
            value = np.where(allowed, tables, -np.inf).max(-1)
            tables = np.where(seen, self.reward + DISCOUNT * ~self.ends * value[:, self.next], tables)
        return float(np.mean([self.returns(table) for table in np.where(allowed, tables, -np.inf)]))


def joined_rows(parts: Any) -> dict[str, Array]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def as_batch(data: Mapping[str, Array]) -> Any:
    import torch
    from tensordict import TensorDict

    return TensorDict({name: torch.from_numpy(column) for name, column in data.items()}, [len(data["obs"])])


def grid_run(random: Random) -> Facts:
    """The facts of one online run."""
    from polopt.evaluation.dataset_measures import lsaco, mean_return, saco, tq

    world = Lava(int(random.integers(SIDE)))
    table, best, replay = world.q_learning(random)
    uniform = lambda state: int(random.integers(ACTIONS))  # noqa: E731
    greedy = lambda state: int(table[state].argmax())  # noqa: E731
    noisy = lambda state: uniform(state) if random.random() < NOISE else greedy(state)  # noqa: E731
    data = {"replay": replay}
    data |= {k: world.play(f, GRID_STEPS) for k, f in (("random", uniform), ("expert", greedy), ("noisy", noisy))}
    for kind, share in EXPERT.items():
        most = round((1 - share) * GRID_STEPS)
        halves = (("random", most), ("expert", GRID_STEPS - most))
        data[kind] = joined_rows([{name: rows[:count] for name, rows in data[of].items()} for of, count in halves])
    batches = {kind: as_batch(rows) for kind, rows in data.items()}
    low, facts = mean_return(batches["random"]), Facts()
    for kind in KINDS:
        mine, reference = batches[kind], batches["replay"]
        facts[kind] = {"tq": tq(mine, random=low, online=best), "saco": saco(mine, reference)}
        facts[kind] |= {"lsaco": lsaco(mine, reference), "return": mean_return(mine), "online": best}
        for learner in LEARNERS:
            facts[kind][learner] = (world.learned(data[kind], learner, random) - low) / (best - low)
    return facts


def grid_facts(seed: int, budget: Mapping[str, int], kinds: tuple[str, ...] = KINDS) -> list[Facts]:
    def write(folder: Path) -> None:
        runs = [grid_run(np.random.default_rng((seed, number))) for number in range(RUNS)]
        (folder / "facts.json").write_text(json.dumps(runs))

    place = shared(f"grid {seed}", write)
    found: list[Facts] = json.loads((place / "facts.json").read_text())
    return found


# Arms

STAGES: dict[str, Any] = {"cartpole": cartpole_facts, "grid": grid_facts}


def ranks_agree(a: list[float], b: list[float]) -> float:
    """Spearman's correlation; 0 where one of them is the same everywhere."""
    from scipy.stats import spearmanr

    return 0.0 if np.ptp(a) == 0 or np.ptp(b) == 0 else float(spearmanr(a, b).statistic)


@dataclass(frozen=True)
class Measured:
    """An arm: a dataset of a stage, or a learner over all of its datasets."""

    stage: str
    what: str

    def __call__(self, seed: int, budget: Mapping[str, int]) -> dict[str, float]:
        kinds = (self.what,) if self.what in KINDS else KINDS
        runs = STAGES[self.stage](seed, budget, kinds)
        found = [run[self.what] if self.what in KINDS else self.agreement(run) for run in runs]
        return {name: float(np.mean([each[name] for each in found])) for name in found[0]}

    def agreement(self, run: Facts) -> dict[str, float]:
        column = {name: [run[kind][name] for kind in KINDS] for name in ("tq", "saco", *LEARNERS)}
        near = [run[kind]["bcq"] >= max(run[kind]["bc"], run[kind]["dqn"]) - 0.1 for kind in KINDS]
        return {
            "with_tq": ranks_agree(column["tq"], column[self.what]),
            "with_saco": ranks_agree(column["saco"], column[self.what]),
            "mean": float(np.mean(column[self.what])),
            "constrained": float(np.mean(near)),
        }

    @property
    def trains(self) -> tuple[str, ...]:
        return ("dqn", "bc", "cql", "bcq") if self.stage == "cartpole" else ()


CLAIM = Claim(
    method="dataset-measures",
    statement="of datasets of one size those of better policies have the higher TQ and those of more various ones the "
    "higher SACo; how well a clone does follows TQ, and Q-learning without a constraint depends on SACo more than a "
    "clone does",
    budget={"env_steps": 10_000, "updates": 2_000},
    seeds=5,
    minutes=12,
    arms={f"{stage}-{what}": Measured(stage, what) for stage in STAGES for what in (*KINDS, *LEARNERS)},
    expect=(
        Above("online", "cartpole-replay", 100, control=True),
        Above("online", "grid-replay", 0.9, control=True),
        Ordered("tq", ("cartpole-random", "cartpole-mixed", "cartpole-expert")),
        Ordered("tq", ("grid-random", "grid-mixed", "grid-expert")),
        Greater("saco", "cartpole-replay", "cartpole-expert", by=0.1),
        Greater("saco", "grid-replay", "grid-expert", by=0.5),
        Above("with_tq", "cartpole-bc", 0.7),
        Above("with_tq", "grid-sampled-bc", 0.7),
        Greater("with_saco", "cartpole-dqn", "cartpole-bc"),
        Greater("dqn", "cartpole-random", "cartpole-expert", by=0.2),
        Greater("bc", "cartpole-expert", "cartpole-random", by=0.2),
        Greater("with_saco", "grid-dqn", "grid-bc", by=0.3),
        Above("with_saco", "grid-dqn", 0.4),
        Greater("dqn", "grid-replay", "grid-expert", by=0.5),
        Greater("bc", "grid-expert", "grid-random", by=0.5),
    ),
)
