"""Pareto fronts by constrained policy optimization.

Liu et al., "Efficient Discovery of Pareto Front for Multi-Objective Reinforcement Learning", ICLR 2025,
arXiv 2410.02236; official code RuohLiuq/C-MORL.

No network sees a preference: what is learned is a front of policies (`polopt.evaluation.pareto.Front`), of which
`polopt.load(run).prefer(weights)` is one. They are learned one after the other by PPO with a value V_j for each of the
m objectives, and those on the way are evaluated and offered to the front as well.

    A_j         advantage in objective j, by `gae` with V_j, in units of the rewards
    initial     for every weight w of a grid, from fresh weights: PPO on A = sum_j w_j A_j
    extension   from each of the `select` policies of the front that have most room and were not extended yet, and for
                each objective i: PPO on A = A_i, while the others stay above thresholds by a logarithmic barrier,
                    loss - 1/t sum_{j != i} log(J_j - threshold_j),    threshold_j = G_j - (1 - beta) |G_j|
                with G_j the mean return of the policy that it begins with
    J_j         G_j(window) + reach E[ (ratio - 1) A_j ],    reach = (1 - discount^L) / (1 - discount), episodes of L
                decisions; below a slack of 0.002 |G_j| the log goes on as its tangent, which still pushes
    room        crowding distance of NSGA-II, infinite at the ends of the front

Only the gradient of the barrier counts: it is that of -sum_j pressure_j E[ratio A_j], where pressure_j = reach /
(t max(slack_j, 0.002 |G_j|)) is of the whole minibatch, so that pieces of it add up (`c_morl_learner.py`).

Differs from PPO in: a vector of values, whose sum the advantage is of, and the barrier; and it is many runs of PPO.

Departs from the paper in: the barrier. The released one (`--ppo.barrier released`) puts clip(ratio) G_j for J_j and
beta G_j for the threshold, both of the minibatch: at ratio 1 its gradient is 0 on average whatever happens to J_j, so
that it only limits the step, and where returns are negative it is nowhere defined; it averages over the objectives, the
maximized one too. Steps of evaluations count. Extensions have the base learning rate (officially what the decay of the
initial stage had left), and so has the initial stage. Values bootstrap through time limits, where the official
advantage is 0. The variant by trust regions (C-MORL-CPO, for two objectives) is not here.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from polopt.bases.method import Method, learner_param
from polopt.config import Constant, param
from polopt.core.batch import Batch
from polopt.core.errors import UsageError
from polopt.core.ledger import Ledger
from polopt.core.snapshot import Archive, Entry, give, take
from polopt.data.episodes import Episodes
from polopt.evaluation.figures import Figure
from polopt.evaluation.pareto import (
    Array,
    Front,
    crowding_distance,
    front_figures,
    front_scores,
    hypervolume,
    weight_grid,
)
from polopt.evaluation.returns import evaluate_returns
from polopt.methods.control.ppo import PPO
from polopt.methods.theory.c_morl_learner import ObjectivePPO
from polopt.methods.theory.c_morl_settings import CMORLSettings
from polopt.networks import Network
from polopt.policies.preferred import Preferred
from polopt.tasks.base import Task


class CMORL(CMORLSettings, Method):
    @dataclass(frozen=True)
    class Config(Method.Config):
        envs: int = param(8, "official code", low=1)
        ppo: ObjectivePPO.Config = learner_param(
            ObjectivePPO.Config(
                window=512,
                epochs=10,
                minibatches=32,
                discount=0.995,
                entropy_coefficient=0.0,
                advantage_over="batch",
                lr=3e-4,
                lr_schedule=Constant(),
                normalize_obs=True,
                normalize_reward=True,
                network=Network((64, 64), "tanh", init="orthogonal", head_gain=0.01),
            ),
            "official code",
            help="the learner of every policy",
        )
        init_steps: int = param(
            8_000_000, "official code: Hopper", low=1, unit="env_steps", help="of the initial stage"
        )
        weight_parts: int = param(5, "official code: Hopper", low=1, help="initial weights are multiples of 1 / this")
        select: int = param(5, "official code: Hopper", low=1, help="policies that are extended in a round")
        selection: str = param("crowding", "section 4", choices=("crowding", "random"), help="which ones are extended")
        extension_updates: int = param(20, "official code", low=1, help="of a policy for one objective")
        evaluate_every: int = param(10, "official code", low=1, help="updates between policies of the initial stage")
        episodes: int = param(10, "official code", low=1, help="greedy ones of a policy that is offered to the front")
        archive_discount: float = param(
            0.99, "official code: MuJoCo", low=0, high=1, help="of the returns of the front"
        )
        capacity: int = param(200, "official code", low=1, help="policies of the front")
        reference: tuple[float, ...] = param(
            (), "official code", help="returns that policies of the front reach, and hypervolumes begin at; (): all 0"
        )
        evaluated: int = param(50, "polopt", low=1, help="policies of the front that an evaluation plays, at most")

    slug = "c-morl"
    objectives = "several"
    score = "hypervolume"
    learns = "learner.policy"
    metrics_of = (PPO,)
    saved = ("round", "run", "updates", "offered", "violations")

    def build(self, task: Task) -> None:
        config, count = self.config, len(self.spec.objectives)
        if len(config.reference) not in (0, count):
            raise UsageError(
                f"reference has {len(config.reference)} numbers for the {count} objectives of {task.spec.name}"
            )
        self.reference = config.reference or (0.0,) * count
        self.weights = weight_grid(count, config.weight_parts)
        self.learner = ObjectivePPO(self.learner_config(config.ppo), task, ledger=self.ledger)
        self.front, self.parents = Front(self.reference, config.capacity), Archive()
        self.policy = Preferred(self.learner.policy, self.front)
        rows = task.twin(min(task.num, config.episodes))
        self.trials = Episodes(rows, starts=range(config.episodes), greedy=True, ledger=self.ledger, keep=("rewards",))
        self.round, self.run, self.updates = 0, 0, 0  # of the stage; policies before this one; its updates
        self.offered, self.violations = 0, 0  # by extensions; of these below a threshold
        self.learner.goal.set(self.weights[0], 0.0)

    def collect(self) -> Batch:
        return self.learner.collect()

    def update(self, batch: Batch) -> dict[str, Tensor]:
        metrics = {"slack": batch["reward"].new_ones(())} | self.learner.update(batch)
        config, self.updates = self.config, self.updates + 1
        length = config.extension_updates if self.round else self.initial_updates
        if self.round or self.updates == length or self.updates % config.evaluate_every == 0:
            self.offer()
        if self.updates == length:
            self.next_run()
        numbers = {
            "policies": len(self.front),
            "hypervolume": hypervolume(self.front.returns, self.reference),
            "round": self.round,
            "violated": self.violations / max(self.offered, 1),
        }
        return metrics | {name: torch.tensor(float(value)) for name, value in numbers.items()}

    @property
    def initial_updates(self) -> int:
        """Of each policy of the initial stage."""
        window = self.config.envs * self.config.ppo.window
        return max(1, self.config.init_steps // (len(self.weights) * window))

    def returns(self) -> Array:
        """The mean discounted returns [m] of the learner's policy, of the same starts at every call."""
        batch = self.trials.next(self.learner.policy)
        discount = self.config.archive_discount ** torch.arange(batch.shape[1], dtype=torch.float64)
        weight = batch["mask"].cpu() * discount
        return (batch["rewards"].cpu() * weight.unsqueeze(-1)).sum(1).mean(0).numpy()

    def offer(self) -> None:
        """Offers the present policy to the front; of an extension, notes whether it is below a threshold."""
        returns = self.returns()
        if self.round:
            start, margin = np.array(self.parent.note["returns"]), self.learner.goal.margin.cpu().numpy()
            self.offered += 1
            self.violations += int(((margin > 0) & (returns < start - margin * np.abs(start))).any())
        if self.front.offer(self.learner, returns, extended=False):
            self.policy.prefer([1.0 / len(returns)] * len(returns))

    def next_run(self) -> None:
        """Begins with the next policy of the stage, or with the next stage."""
        count = len(self.reference)
        self.run, self.updates = self.run + 1, 0
        if self.run == (len(self.parents) * count if self.round else len(self.weights)):
            self.round, self.run = self.round + 1, 0
            self.choose()
        if self.round:
            give(self.learner, self.parent.snapshot)
            chosen = np.arange(count) == self.run % count
            self.learner.goal.set(chosen.astype(float), (1.0 - self.config.ppo.beta) * ~chosen)
        else:
            give(self.learner, take(ObjectivePPO(self.learner.config, self.task, ledger=Ledger())))
            self.learner.goal.set(self.weights[self.run], 0.0)
        self.learner.guarded = bool(self.round)
        self.task.reset()

    @property
    def parent(self) -> Entry:
        """What is extended now."""
        return self.parents[self.run // len(self.reference)]

    def choose(self) -> None:
        """Takes those of the front that are extended in this round: none twice, as long as there are others."""
        left = [index for index, entry in enumerate(self.front) if not entry.note["extended"]]
        left = left or list(range(len(self.front)))
        order = np.argsort(-crowding_distance(self.front.returns)[left], kind="stable")
        if self.config.selection == "random":
            order = torch.randperm(len(left), generator=self.generator).numpy()
        self.parents.keep(())
        for place in order[: self.config.select]:
            entry = self.front[left[place]]
            entry.note["extended"] = True
            self.parents.add(entry.snapshot, entry.note)

    def evaluate(self, task: Task, episodes: int = 10, *, greedy: bool = True) -> dict[str, float]:
        """What the policies of the front are worth together, by returns of episodes of their own (undiscounted); those
        with most room, if they are more than `evaluated`."""
        names = [f"return_{name}" for name in self.spec.objectives]
        if not len(self.front):
            played = [evaluate_returns(self.policy, task, episodes, greedy=greedy)]
        else:
            order = np.argsort(-crowding_distance(self.front.returns), kind="stable")[: self.config.evaluated]
            shown = Preferred(self.learner.policy, self.front)
            played = [evaluate_returns(shown.show(int(index)), task, episodes, greedy=greedy) for index in order]
        points = [[scores[name] for name in names] for scores in played]
        return front_scores(points, self.reference) | {"policies": float(len(self.front))}

    def figures(self) -> dict[str, Figure]:
        """The front, in its first two objectives."""
        return front_figures(self.front.returns, self.spec.objectives)
