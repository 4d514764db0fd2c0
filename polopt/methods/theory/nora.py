"""NORA: an actor-critic that explores, whose critic is renewed rarely and whose actor then begins anew.

Tan, Fan and Wei, "Actor-Critics Can Achieve Optimal Sample Efficiency", ICML 2025, arXiv 2505.03710.

Episodes t = 1, 2, ... of H decisions; returns lie in [0, 1] once they are divided by `max_return`. With features
phi(s, a) [d], the data D_h of all episodes so far, offline ones first, and Lambda_h = regularizer I + sum_D phi phi^T:

    act      an episode with pi^t, stored in D: nothing is ever thrown away
    test     due when det Lambda_h >= growth x what it was at the last switch, for some h
    switch   if due: f = critic of D, pi^t = uniform (`reset`), in all steps h
    critic   f_h = clip(phi^T w_h + bonus sqrt(phi^T Lambda_h^-1 phi), 0, 1), h = H .. 1, where w_h regresses
             r + max_a' f_{h+1}(s', a') on phi: the target is Q*, not the Q of the actor        `target` optimal
    actor    pi^{t+1}(a|s) = pi^t(a|s) exp(eta f_h(s, a)) / Z, a softmax of eta sum f since the reset

    NORA     as above; hybrid NORA with offline episodes in D (`dataset`), which shrink what is left to explore
    NOAH     bonus 0: no optimism, which is right where offline data cover what an optimal policy does
    DOUHUA   the warm-up: E_{a' ~ pi^t} f_{h+1} in the target, growth 1 (a critic every episode), no reset
    LSVI-UCB eta = inf, growth 1: greedy in the newest critic

Differs from optimistic value iteration, its base, in the actor: small steps of natural policy gradient between few
switches, O(d H log T) of them. For exploring with tables or linear models; the paper promises regret sqrt(T) and
judges the uniform mixture of all policies played (`mixture_return`).

Departs from the paper in: the critic adds a width to the regression, as LSVI-UCB does, in place of the search in a
confidence set of a general class; switches follow determinants in place of losses of the last critic; all constants.
The model of a task is used only to log exact values.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from polopt.bases.method import Method, Smoke
from polopt.bases.offline import recorded_data
from polopt.config import param
from polopt.core.batch import Batch
from polopt.core.errors import UsageError
from polopt.data.demonstrations import scripted_episodes
from polopt.data.rollouts import Rollouts
from polopt.evaluation.returns import evaluate_returns
from polopt.policies.tabular import TabularMixture
from polopt.tasks.base import Task
from polopt.tasks.simulated import Simulated
from polopt.tasks.tabular import TabularMDP
from polopt.values.ridge import Ridge, greedy, linear_values

MOST = 500  # features: a matrix of them is decomposed for every step and episode
ROUNDING = 1e-6  # of what is equal


def fitted_critic(ridge: Ridge, features: Tensor, bonus: float, policy: Tensor | None = None) -> Tensor:
    """f [*batch, H, S, A] in [0, 1], from the regressions of reward and successors on the features [S, A, d].

    Targets take the maximum over actions, or the mean under a policy [*batch, H, S, A].
    """
    reward, successors = ridge.weights().split([1, len(features)], -1)
    width = bonus * ridge.width(features.flatten(0, 1)).unflatten(-1, features.shape[:2])
    later = iter(
        () if policy is None else policy.unbind(-3)[::-1]
    )  # the induction runs from the last step to the first
    mean = None if policy is None else lambda q: (next(later) * q).sum(-1)
    return linear_values(features, reward.squeeze(-1), successors, width, 1.0, improve=mean or greedy)[0]


def grown(log_det: Tensor, planned: Tensor, growth: float) -> Tensor:
    """Whether some det Lambda_h is at least `growth` times that of the last plan: log_det, planned [*batch, H]."""
    return (log_det - planned >= math.log(growth) - ROUNDING).any(-1)


def softmax_actor(total: Tensor, eta: float) -> Tensor:
    """pi [..., A], proportional to exp(eta total); with eta = inf the best actions share it."""
    if math.isinf(eta):
        best = (total >= total.amax(-1, keepdim=True) - ROUNDING).to(total)
        return best / best.sum(-1, keepdim=True)
    return torch.softmax(eta * total, -1)


class ActorCritic(nn.Module):
    """What is learned from episodes of independent runs side by side, which is one run where `batch` is empty.

    Buffers, float64: those of `ridge`, for each run and step; `critic` f [*batch, H, S, A], 1 before the first switch;
    `total` like it, the sum of critics since the last reset; `planned` [*batch, H], log det Lambda at the last switch,
    at first that of no data, so that the first episode makes a switch due; `switches` [*batch].
    """

    features: Tensor
    critic: Tensor
    total: Tensor
    planned: Tensor
    switches: Tensor

    def __init__(self, config: "NORA.Config", features: Tensor, horizon: int, batch: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("features", features, persistent=False)
        self.ridge = Ridge(features.shape[-1], 1 + len(features), (*batch, horizon), config.regularizer)
        self.register_buffer("critic", features.new_ones(*batch, horizon, *features.shape[:2]))
        self.register_buffer("total", torch.zeros_like(self.critic))
        self.register_buffer("planned", self.ridge.log_det())
        self.register_buffer("switches", features.new_zeros(batch))

    def policy(self) -> Tensor:
        """pi [*batch, H, S, A]."""
        return softmax_actor(self.total, self.config.eta)

    def add(self, state: Tensor, action: Tensor, reward: Tensor, after: Tensor) -> None:
        """Stores n episodes of each run: states, actions, rewards and successors [*batch, H, n]."""
        indicator = nn.functional.one_hot(after, len(self.features)).to(self.features)
        targets = torch.cat([reward.unsqueeze(-1).to(indicator), indicator], -1)
        self.ridge.add(self.features[state, action], targets)

    def step(self) -> None:
        """After an episode was stored: the test, the switch where it is due, and one step of the actor."""
        config, log_det = self.config, self.ridge.log_det()
        due = grown(log_det, self.planned, config.growth)
        if due.any():
            renewed, policy = due[..., None, None, None], self.policy() if config.target == "policy" else None
            critic = fitted_critic(self.ridge, self.features, config.bonus, policy)
            self.critic = torch.where(renewed, critic, self.critic)
            if config.reset:
                self.total = torch.where(renewed, 0.0, self.total)
            self.planned = torch.where(due.unsqueeze(-1), log_det, self.planned)
            self.switches = self.switches + due
        self.total = self.total + self.critic


class NORA(Method):
    @dataclass(frozen=True)
    class Config(Method.Config):
        eta: float = param(5.0, "assumed", above=0, help="step of the actor; inf: greedy in the critic")
        growth: float = param(2.0, "assumed", low=1, help="of a determinant until the next switch; 1: every episode")
        bonus: float = param(0.3, "assumed", low=0, help="factor of the width, in shares of max-return")
        regularizer: float = param(0.01, "assumed", above=0, help="of the regressions, in visits")
        target: str = param("optimal", "paper", choices=("optimal", "policy"), help="whose Q the critic is")
        reset: bool = param(True, "paper", help="the actor begins anew at every switch")
        max_return: float = param(1.0, "assumed", above=0, help="no episode returns more, and none less than 0")
        features: str = param(
            "table", "assumed", choices=("table", "linear"), help="linear: those of a linear MDP such as off-dynamics"
        )
        dataset: str = param(
            "",
            "paper",
            help="offline episodes: a file of 'polopt eval RUN --record FILE', random, or a behavior of the task (of "
            "lock: right, half)",
        )
        offline_episodes: int = param(500, "assumed", low=1, help="how many of random or of a behavior")

        def __post_init__(self) -> None:
            super().__post_init__()
            if not self.dataset:
                self.refuse("offline_episodes", because="without a dataset")

    slug = "nora"
    saved = ("played", "total_return", "total_regret")
    unit = "episodes"
    score = "mixture_return"
    default_steps = 3000
    headline = ("regret", "switches")
    trains_on = "tabular tasks and linear MDPs"
    metrics = {
        "value": "of the policy that played, exact where the task has a model (the learner does not see it), else the "
        "mean return of its episodes",
        "regret": "optimal value minus `value`, of an episode, where the task has a model",
        "total_regret": "summed over all episodes | flattens",
        "switches": "of the critic so far | logarithmic in the episodes",
        "start_value": "what the critic promises at the start | above the optimal value while it is optimistic",
        "eval/return": "of the actor as it is, exact where the task has a model",
        "eval/mixture_return": "of the uniform mixture of all actors that played: what the theorem is about",
        "eval/regret": "optimal value minus return, where the task has a model",
    }
    presets = {
        "hybrid": {"dataset": "half"},
        "noah": {"dataset": "right", "bonus": 0.0},
        "douhua": {"target": "policy", "growth": 1.0, "reset": False},
        "lsvi-ucb": {"eta": math.inf, "growth": 1.0},
    }
    no_limit = "its base, LSVI-UCB, is its own preset; a test compares it with a loop of its own"
    probes = {name: {"features": "linear", "regularizer": 1.0} for name in ("growth", "target")}
    smoke = Smoke("off-dynamics", 12, {"max_return": 3.0, "dataset": "random", "offline_episodes": 3})
    policy: TabularMixture

    def build(self, task: Task) -> None:
        config, self.policy = self.config, TabularMixture(self.spec)
        horizon, states, actions = self.policy.table.shape[1:]
        features = torch.eye(states * actions, dtype=torch.float64).unflatten(0, (states, actions))
        if config.features == "linear":
            features = getattr(self.spec.info.get("mdp"), "features", None)
            if features is None:
                raise UsageError(f"{self.spec.name} is no linear MDP, whose features could be taken: --features table")
        if features.shape[-1] > MOST:
            raise UsageError(
                f"{self.slug} inverts matrices of its features, and {self.spec.name} has {features.shape[-1]:,} pairs "
                f"of state and action: {MOST} are the most that are served"
            )
        self.learner = ActorCritic(config, features, horizon)
        self.source = Rollouts(task, horizon, self.ledger)
        self.offline = task.twin(config.offline_episodes) if config.dataset else None
        self.played, self.total_return, self.total_regret = 0, 0.0, 0.0

    def prepare(self) -> None:
        """Offline episodes are the first data, and so part of every regression."""
        name, task, count = self.config.dataset, self.offline, self.config.offline_episodes
        if task is None:
            return
        horizon = self.policy.table.shape[1]
        data: Any
        if isinstance(task, Simulated) and name in task.behaviors:
            data = scripted_episodes(task, name, count * horizon)
        else:
            data = recorded_data(name, task, random_episodes=count)
        step = data["obs", "step"]
        if len(data) % horizon or (step.view(-1, horizon) != torch.arange(horizon)).any():
            raise UsageError(f"{self.slug} learns from whole episodes, and the dataset {name} has parts of some")
        self.store(data.reshape(-1, horizon), data["next_obs", "state"].view(-1, horizon))

    def store(self, batch: Batch, after: Tensor) -> None:
        """Adds whole episodes [n, H] with the successors `after`. Raises UsageError for rewards out of bounds."""
        to_go = batch["reward"].flip(1).cumsum(1)
        low, high, most = float(to_go.min()), float(to_go.max()), self.config.max_return
        if low < 0 or high > most * (1 + ROUNDING):
            raise UsageError(
                f"rewards of {self.spec.name} sum to {low if low < 0 else high:g}, and {self.slug} clips values to "
                f"[0, {most:g}]: --max-return names the largest sum, and none may be negative"
            )
        columns = (batch["obs", "state"], batch["action"], batch["reward"] / most, after)
        self.learner.add(*(column.mT for column in columns))

    def values(self, task: Task) -> dict[str, float]:
        """Exact value and regret of the actor, where the task has a model."""
        mdp: TabularMDP | None = task.spec.info.get("mdp")
        if mdp is None:
            return {}
        value, best = self.policy.value(mdp), float(mdp.optimal()[1][0, mdp.start])
        return {"value": value, "regret": best - value}

    @torch.no_grad()
    def update(self, batch: Batch) -> dict[str, Tensor]:
        found = {"value": float(batch["reward"].sum(1).mean())} | self.values(self.task)
        self.played += len(batch)
        self.total_return += len(batch) * found["value"]
        if "regret" in found:
            self.total_regret += len(batch) * found["regret"]
            found["total_regret"] = self.total_regret
        self.store(batch, batch["final_obs", "state"])
        self.learner.step()
        self.policy.set(self.learner.policy().unsqueeze(0), self.policy.weight)
        start = self.learner.critic[0, batch["obs", "state"][:, 0]].amax(-1).mean() * self.config.max_return
        found |= {"switches": float(self.learner.switches), "start_value": float(start)}
        return {name: torch.tensor(value, dtype=torch.float64) for name, value in found.items()}

    def evaluate(self, task: Task, episodes: int = 10, *, greedy: bool = True) -> dict[str, float]:
        """Of the actor as it acts, so `greedy` does not matter; exact where the task has a model, else sampled."""
        scores = self.values(task)
        if scores:
            scores["return"] = scores.pop("value")
        else:
            scores = evaluate_returns(self.policy, task, episodes, greedy=False)
        return scores | {"mixture_return": self.total_return / self.played if self.played else scores["return"]}
