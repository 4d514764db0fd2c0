"""One policy for all preferences, and for systems of any size.

Yang et al., "Generalizable Pareto-Optimal Offloading with Reinforcement Learning in Mobile Edge Computing", 2025,
arXiv 2509.10474.

Several objectives are weighed by a preference w that is not known while training. A single policy and its critics are
told w beside the observation. Where actions are candidates with a row of the observation each, such as servers, of
which there may be more or fewer, one network reads all of them (`polopt.networks.candidates`).

With a replay batch (s, a, r [m], s'), rewards of m objectives, and a preference w for each of its transitions:

    reward      r_w = sum_j w_j r_j
    value       V(s', w) = sum_a' pi(a'|s', w) (min_i Q_targ_i(s', a', w) - temperature log pi(a'|s', w))
    target      y = r_w + discount (1 - terminated) V(s', w)
    critic, policy, temperature, targets: those of discrete SAC at (s, w)

An episode is played by one preference, drawn at its start. What is replayed gets a fresh one (`relabel`): w changes
neither what followed nor the vector of rewards, so that y is exact for any w. The target of the entropy counts legal
actions, and a step at which only one is legal, as without a task to assign, has no part in the losses of policy and
temperature.

Differs from discrete SAC in: the preference, the vector of rewards, and the network.

Departs from the paper in: its own code could not be had; the world, its encoding and its rewards follow the released
environment of the authors' method before, where each preference has a policy of its own, and what learns here is
reconstructed from the abstract. That code keeps its per-server features apart in a head of fixed size; this head pools
them, so that it reads any number of servers.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from polopt.config import param
from polopt.core.batch import Batch
from polopt.core.errors import UsageError
from polopt.evaluation.figures import Figure
from polopt.evaluation.measures import rank_correlation
from polopt.evaluation.pareto import Array, front_figures, front_scores, weight_grid
from polopt.evaluation.returns import evaluate_returns
from polopt.methods.control.discrete_sac import DiscreteSAC
from polopt.methods.theory.gmorl_settings import GMORLSettings
from polopt.networks import Network
from polopt.networks.sets import Sets
from polopt.policies.base import Actor
from polopt.policies.conditioned import CONTEXT, Preferring, join, told
from polopt.tasks.base import Task
from polopt.values.finite import FiniteQ


class GMORL(GMORLSettings, DiscreteSAC):
    @dataclass(frozen=True)
    class Config(DiscreteSAC.Config):
        envs: int = param(16, "assumed", low=1)
        discount: float = param(0.95, "assumed", low=0, high=1)
        batch_size: int = param(256, "assumed", low=1)
        replay_size: int = param(100_000, "assumed", low=1, unit="transitions")
        warmup: int = param(1_000, "assumed", low=1, unit="env_steps", help="uniform random actions at the start")
        steps_per_update: int = param(2, "assumed", low=1, unit="env_steps", help="collected between updates")
        entropy_share: float = param(
            0.6, "assumed", above=0, high=1, help="target of the entropy, of the largest that legal actions allow"
        )
        preferences: tuple[float, ...] = param(
            (), "assumed", low=0, high=1, help="weights of the first of two objectives, that are drawn; (): all, evenly"
        )
        relabel: bool = param(True, "polopt", help="replayed transitions get a fresh preference")
        reference: tuple[float, ...] = param((), "assumed", help="returns that hypervolumes begin at; (): all 0")
        network: Network | Sets = param(Sets(), "assumed", help="sets: of candidates with a row each")  # type: ignore[assignment]

        def __post_init__(self) -> None:
            super().__post_init__()
            if len(self.preferences) == 1:
                self.refuse("relabel", because="with one preference")

    slug = "gmorl"
    objectives = "several"
    score = "expected_utility"

    def build(self, task: Task) -> None:
        config, count = self.config, len(self.spec.objectives)
        if config.preferences and count != 2:
            raise UsageError(f"preferences are weights of two objectives, and {task.spec.name} has {count}")
        if len(config.reference) not in (0, count):
            raise UsageError(
                f"reference has {len(config.reference)} numbers for the {count} objectives of {task.spec.name}"
            )
        first = np.array(config.preferences)
        self.weights = (
            np.stack([first, 1.0 - first], -1) if len(first) else weight_grid(count, {1: 1, 2: 10, 3: 4}.get(count, 2))
        )
        self.told = len(first) != 1  # of one preference nothing has to be told
        self.points: Array = np.zeros((0, count))
        super().build(task)
        self.explorer = self.policy_told() if self.told else self.policy

    def make_policy(self, config: Any, **options: Any) -> Actor:
        if not self.told:
            return super().make_policy(config, **options)
        reading = told(self.spec, len(self.spec.objectives))
        return self.part("policy", lambda: Preferring(config.build(reading, **options), self.spec))

    def make_critic(self) -> FiniteQ:  # type: ignore[override]
        spec = told(self.spec, len(self.spec.objectives)) if self.told else self.spec
        return FiniteQ(spec, self.config.network, members=self.config.critics)

    def policy_told(self) -> Preferring:
        """The policy, to be given other preferences than those that it acts by now."""
        return Preferring(self.policy.actor, self.spec)

    @property
    def behavior(self) -> Actor:
        return self.explorer

    def draw(self, count: int) -> Tensor:
        """Preferences [count, m], of `preferences` or of all."""
        if self.config.preferences:
            weights = torch.as_tensor(self.weights, dtype=torch.get_default_dtype())
            return weights[torch.randint(len(weights), (count,), generator=self.generator)]
        parts = -torch.rand(count, len(self.spec.objectives), generator=self.generator).clamp_min(1e-9).log()
        return parts / parts.sum(-1, keepdim=True)

    def collect(self) -> Batch:
        """Transitions [B] with the `preference` [B, m] that each is learned for, and observations joined with it."""
        if self.told:
            self.explorer.given(self.draw(self.task.num))  # of the episodes that begin
        batch = super().collect().clone(False)
        fresh = self.config.relabel or not self.told
        preference = self.draw(len(batch)).to(batch["reward"]) if fresh else batch[CONTEXT]
        batch["preference"] = preference
        if self.told:
            batch["obs"], batch["next_obs"] = join(batch["obs"], preference), join(batch["next_obs"], preference)
        return batch

    def soft_target(self, batch: Batch, next_q: Tensor, next_log_prob: Tensor | None) -> Tensor:
        batch = batch.clone(False)
        batch["reward"] = (batch["rewards"] * batch["preference"]).sum(-1)
        return super().soft_target(batch, next_q, next_log_prob)

    def evaluate(self, task: Task, episodes: int = 10, *, greedy: bool = True) -> dict[str, float]:
        """What the policy is worth over preferences, by undiscounted returns of the same starts for each."""
        names = self.spec.objectives
        returns = []
        for weights in self.weights:
            policy = self.policy_told().prefer(weights.tolist()) if self.told else self.policy
            scores = evaluate_returns(policy, task, episodes, greedy=greedy)
            returns.append([scores[f"return_{name}"] for name in names])
        self.points = points = np.array(returns)
        found = front_scores(points, self.config.reference or (0.0,) * len(names))
        found["utility"] = float((self.weights * points).sum(-1).mean())
        if self.told:
            follows = {f"follows_{name}": column for name, column in zip(names, zip(self.weights.T, points.T))}
            found |= {name: rank_correlation(*pair) for name, pair in follows.items()}
        return found

    def figures(self) -> dict[str, Figure]:
        """Returns for every preference at the last evaluation, in the first two objectives."""
        return front_figures(self.points, self.spec.objectives)
