"""DCPPO: the reward for which a far-sighted human made its choices, and a plan for it that doubts what it has not seen.

Li, Yang and Wang, "Reinforcement Learning with Human Feedback: Learning Dynamic Choices via Pessimism", 2023, arXiv
2305.18438.

The data are states and what a human chose in them, no rewards. The human looks ahead, with a discount g of its own, and
chooses softly (dynamic discrete choice); the rewards follow from its choices once the worth of one action is known:
leaving is worth 0 in every state. With features phi (one for each pair unless the task is linear), steps h = 0..H-1,
Lambda_h = regularizer I + sum phi phi^T over what was seen at step h, and values of 0 where all is over:

    human     pi_h = softmax(Q_h),  Q_h = r_h + g P_h V_{h+1},  V_h = sum_a pi_h Q_h        "average"
                                                                V_h = log sum_a exp Q_h     "soft"
    choices   theta_h = argmax sum_i log softmax(phi(s_i, .) theta)[a_i], with phi = 0 for leaving;  Q^_h = phi theta_h,
              V^_h of it as the human's
    reward    w_h = Lambda_h^-1 sum_i phi_i (Q^_h(s_i, a_i) - g V^_{h+1}(s_{i+1})),   r^_h = phi w_h
    plan      u_h = Lambda_h^-1 sum_i phi_i (r^_h(s_i, a_i) + V~_{h+1}(s_{i+1})),     V~_h = max_a Q~_h,
              Q~_h = clip(phi u_h - beta sqrt(phi^T Lambda_h^-1 phi), 0, max_reward (H - h))

All three have the same data. The human discounts, the plan does not: its objective is the sum of rewards. For policies
that shall do better than those whose choices were seen, where nobody wrote rewards down.

Differs from pessimistic value iteration (PEVI, `--rewards observed`), its base, in where the rewards come from, and
from taking log pi for the reward (`--assumed-discount 0`) in that what a choice leads to is no part of its reward.

Departs from the paper in: the human is simulated in the task's model, which beyond that serves to log exact values.
`prior` choices of each pair are added, without which what was never chosen would be worth minus infinity. The paper's
beta grows with exp(H) and forbids everything; here it is a number. That V is the average of Q is a reading.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from polopt.bases.method import Method, Smoke
from polopt.config import param
from polopt.core.batch import Batch
from polopt.core.errors import UsageError
from polopt.data.rollouts import Rollouts
from polopt.models.tabular import TabularModel
from polopt.policies.tabular import TabularMixture
from polopt.tasks.base import Task
from polopt.tasks.tabular import TabularMDP, known_mdp
from polopt.tasks.tabular_sets import ended, expectation, features_of, finite_value, one_hot
from polopt.values.ridge import Ridge, linear_values

VALUES = {"average": lambda q: (q.softmax(-1) * q).sum(-1), "soft": lambda q: q.logsumexp(-1)}
ROUNDING = 1e-9


def human_q(transition: Tensor, reward: Tensor, over: Tensor, discount: float, value: str) -> Tensor:
    """The human's Q [H, S, A], for transitions [H, S, A, S] and rewards [H, S, A]; `over` [S] is worth 0."""
    after, found = reward.new_zeros(reward.shape[1]), []
    for h in reversed(range(len(reward))):
        found.append(reward[h] + discount * expectation(transition[h])(after))
        after = VALUES[value](found[-1]).masked_fill(over, 0.0)
    return torch.stack(found[::-1])


def likeliest(phi: Tensor, count: Tensor) -> Tensor:
    """Q = phi theta [*B, S, A] under whose softmax choices counted [*B, S, A] are most likely: phi [S, A, d].

    Newton's method, whose steps are halved where they go too far. Directions of theta that change no choice stay 0.
    """
    rows, visits = phi.flatten(0, 1), count.sum(-1, keepdim=True)

    def q(theta: Tensor) -> Tensor:
        return (rows @ theta.unsqueeze(-1)).squeeze(-1).unflatten(-1, phi.shape[:2])

    def likelihood(theta: Tensor) -> Tensor:
        return (count * q(theta).log_softmax(-1)).sum((-2, -1))

    theta = count.new_zeros(*count.shape[:-2], phi.shape[-1])
    for _ in range(100):
        chance = q(theta).softmax(-1)
        slope = (count - visits * chance).flatten(-2) @ rows
        mean = torch.einsum("...sa,sad->...sd", chance, phi)
        curvature = rows.mT @ ((visits * chance).flatten(-2).unsqueeze(-1) * rows) - mean.mT @ (visits * mean)
        curvature.diagonal(dim1=-2, dim2=-1).add_(1e-9 * visits.amax((-2, -1)).unsqueeze(-1))  # it may be singular
        step = torch.linalg.solve(curvature, slope)
        gain = (step * slope).sum(-1)
        least = likelihood(theta) * (1 + 1e-12)
        while (worse := likelihood(theta + step) < least).any():
            step = torch.where(worse.unsqueeze(-1), step / 2, step)
        theta = theta + step
        if (gain <= 1e-20 * visits.sum((-2, -1))).all():
            break
    return q(theta)


def regressions(phi: Tensor, visits: Tensor, successors: Tensor, regularizer: float) -> Ridge:
    """Of the successors on the features, side by side [*B, H]: visits [*B, H, S, A], successors [*B, H, S, A, S]."""
    ridge = Ridge(phi.shape[-1], successors.shape[-1], visits.shape[:-2], regularizer)
    frequency = successors / visits.clamp_min(1e-300).unsqueeze(-1)
    rows = phi.flatten(0, 1).expand(*visits.shape[:-2], -1, -1)
    ridge.add(rows, frequency.flatten(-3, -2), visits.flatten(-2))
    return ridge


def summed(phi: Tensor, table: Tensor) -> Tensor:
    """sum phi y [*B, d, 1] of a table [*B, S, A] with the sum of y at each pair."""
    return torch.einsum("sad,...sa->...d", phi, table).unsqueeze(-1)


def recovered(ridge: Ridge, phi: Tensor, visits: Tensor, q: Tensor, value: Tensor, discount: float) -> Tensor:
    """r^ [*B, H, S, A] for the human's Q^ [*B, H, S, A] and V^ [*B, H, S], of which there is none behind the end."""
    after = torch.cat([value[..., 1:, :], torch.zeros_like(value[..., :1, :])], -2).unsqueeze(-1)
    weights = ridge.solve(summed(phi, visits * q) - discount * ridge.moment @ after)
    return torch.einsum("sad,...d->...sa", phi, weights.squeeze(-1))


def pessimistic(ridge: Ridge, phi: Tensor, visits: Tensor, reward: Tensor, beta: float, max_reward: float) -> Tensor:
    """Q~ [*B, H, S, A] for rewards [*B, H, S, A]: PEVI."""
    horizon = reward.shape[-3]
    width = ridge.width(phi.flatten(0, 1)).unflatten(-1, phi.shape[:2])
    left = max_reward * torch.arange(horizon, 0, -1, dtype=reward.dtype)
    weights = ridge.solve(summed(phi, visits * reward)).squeeze(-1)
    return linear_values(phi, weights, ridge.weights(), -beta * width, left)[0]


def leaving(mdp: TabularMDP, over: Tensor) -> int | None:
    """The first action that ends all, for nothing, from every state, or None."""
    ends = (mdp.transition[..., over].sum(-1) > 1 - 1e-9) & (mdp.reward == 0)
    found = ends.all(0).all(0).nonzero().flatten().tolist()
    return found[0] if found and over.any() else None


class DCPPO(Method):
    @dataclass(frozen=True)
    class Config(Method.Config):
        envs: int = param(100, "assumed", low=1, help="episodes of choices per update")
        human_discount: float = param(0.9, "assumed", low=0, high=1, help="with which the human looks ahead")
        human_value: str = param("average", "assumed", choices=tuple(VALUES), help="what a state is worth to it")
        assumed_discount: float | None = param(
            None, "assumed", low=0, high=1, help="what the learner takes the human's discount for; none: it knows"
        )
        rewards: str = param("recovered", "paper", choices=("recovered", "observed"), help="observed: PEVI")
        prior: float = param(0.5, "assumed", above=0, help="choices of each pair that are added to those seen")
        regularizer: float = param(1.0, "assumed", above=0)
        beta: float = param(0.3, "assumed", low=0, help="of the width that is subtracted from values")
        max_reward: float = param(1.0, "paper", above=0, help="of one step")

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.rewards == "observed":
                self.refuse("assumed_discount", "prior", because="where rewards are observed")

    slug = "dcppo"
    unit = "episodes"
    score = "-suboptimality"
    default_steps = 20_000
    headline = ("suboptimality", "reward_error")
    trains_on = "tabular tasks that one may leave: `exit-mdp`"
    metrics = {
        "suboptimality": "optimal value minus that of the policy, exact and undiscounted | towards 0",
        "reward_error": "root mean square of r^ minus the reward over what the human does | towards 0, as 1/sqrt(n)",
        "pessimistic": "share of the pairs where Q~ is at most what following the policy is truly worth | 1 for "
        "a large beta",
        "eval/return": "exact, not sampled, of the policy",
    }
    presets = {"pevi": {"rewards": "observed"}, "myopic": {"assumed_discount": 0.0}}
    no_limit = "its base, PEVI, is its own `--rewards observed`; tests compare it and beta 0 with value iteration"
    probes = {"max_reward": {"max_reward": 0.05}}
    smoke = Smoke("exit-mdp", 120, {"envs": 20}, task_options={"states": 4, "actions": 3, "horizon": 3})

    def build(self, task: Task) -> None:
        config = self.config
        mdp = self.mdp = known_mdp(self.spec, self.slug)
        self.over = ended(mdp)
        action = leaving(mdp, self.over)
        if action is None:
            raise UsageError(
                f"dcppo tells rewards from choices by an action that leaves, for nothing, as in exit-mdp, and "
                f"{self.spec.name} has none"
            )
        self.phi = features_of(mdp).masked_fill(self.over[:, None, None], 0.0)
        self.phi_chosen = self.phi.clone()
        self.phi_chosen[:, action] = 0.0
        q = human_q(mdp.transition, mdp.reward, self.over, config.human_discount, config.human_value)
        self.chances = q.softmax(-1)
        self.human = TabularMixture(self.spec)
        self.human.table.copy_(self.chances.unsqueeze(0))
        self.policy = TabularMixture(self.spec)
        self.model = TabularModel(mdp.horizon, mdp.states, mdp.actions)
        self.source = Rollouts(task, mdp.horizon, self.ledger)
        self.optimum = float(mdp.optimal()[1][0, mdp.start])
        self.plan()

    def plan(self) -> dict[str, float]:
        """The three stages on all choices so far; returns what is known of the result, exactly, from the task's model:
        for logging only."""
        config, mdp, model = self.config, self.mdp, self.model
        visits, successors = model.visits.cpu(), model.successors.cpu()
        ridge = regressions(self.phi, visits, successors, config.regularizer)
        if config.rewards == "observed":
            reward = model.estimate()[0].cpu()
        else:
            discount = config.human_discount if config.assumed_discount is None else config.assumed_discount
            q = likeliest(self.phi_chosen, visits + config.prior)
            value = VALUES[config.human_value](q).masked_fill(self.over, 0.0)
            reward = recovered(ridge, self.phi, visits, q, value, discount)
        q = pessimistic(ridge, self.phi, visits, reward, config.beta, config.max_reward)
        policy = one_hot(q)
        self.policy.table.copy_(policy.unsqueeze(0))

        true = finite_value(mdp.transition, mdp.reward, policy)
        human = mdp.occupancy(self.chances).masked_fill(self.over, 0.0).unsqueeze(-1) * self.chances
        error = (human * (reward - mdp.reward).square()).sum() / human.sum()
        doubted = q <= mdp.reward + expectation(mdp.transition)(true[1:]) + ROUNDING
        return {
            "suboptimality": self.optimum - float(true[0, mdp.start]),
            "reward_error": float(error.sqrt()),
            "pessimistic": float(doubted[:, ~self.over].double().mean()),
        }

    def update(self, batch: Batch) -> dict[str, Tensor]:
        self.model.add(batch)
        return {name: torch.tensor(value, dtype=torch.float64) for name, value in self.plan().items()}

    def initialized(self) -> None:
        """The choices of another run are taken over, but not its human."""
        super().initialized()
        self.human.table.copy_(self.chances.unsqueeze(0))

    @property
    def behavior(self) -> TabularMixture:
        return self.human

    def evaluate(self, task: Task, episodes: int = 10, *, greedy: bool = True) -> dict[str, float]:
        """Exact, so `episodes` and `greedy` do not matter."""
        found = self.plan()
        return {"return": self.optimum - found["suboptimality"], **found}
