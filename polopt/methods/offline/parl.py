"""PARL: a reward is learned for the policy that will maximize it, and for the data that this policy will bring.

Chakraborty, Bedi, Koppel, Wang, Manocha, Wang and Huang, "PARL: A Unified Framework for Policy Alignment in
Reinforcement Learning from Human Feedback", ICLR 2024, arXiv 2308.02585; algorithm A-PARL. No official code is known.

Learning from human feedback is a problem with two levels. What the upper one judges are episodes of the policy theta*
that the lower one finds for the reward r_nu, so its gradient has a second term: another reward brings other episodes.
S of an episode is the sum of log pi(a|s) over its decisions, H an entropy; V'' (and V_theta nu) is taken at theta*(nu):

    lower         theta*(nu) = argmax V(theta, nu) - damping / 2 |theta|^2,
                  V = E sum_h discount^h (r_nu(s_h, a_h) + entropy_coefficient H(pi(.|s_h)))
    upper         G(nu) = E U + reward_penalty / 2 |nu|^2,  over episodes of theta*(nu)
    "preferences" U = -label log P(y > y') - (1 - label) log P(y' > y) of pairs, P = sigmoid(sum_h r_nu - sum_h r'_nu);
                  a simulated human says the label with probability sigmoid(rationality (R - R')), R the task's return
    "utility"     U = -R of an episode: the reward is designed, so that who learns from it does what is wanted
    direct        E dU / dnu
    hyper         (d theta*/d nu)^T q,  q = E (U - baseline) dS/dtheta, where S is that of both episodes of a pair;
                  d theta*/d nu = (damping I - V'')^-1 V_theta nu                     by conjugate gradients
    steps         K times theta <- theta + lr dV/dtheta;  nu <- nu - reward_lr (direct + hyper_weight hyper + penalty)

All derivatives of V come from one function whose gradient, Hessian and cross derivatives have those of V as their
expected values (DiCE: Foerster et al. 2018, arXiv 1802.05098; with advantages: Farquhar et al. 2019, arXiv 1909.10549).
Every step has fresh episodes of the present policy, and V'' and q those of different ones: a product of two estimates
from the same episodes would be biased.

Differs from RLHF in turns, its base (`--preset naive`), in the term `hyper`. Where a reward is to be designed, RLHF has
no gradient at all. For small problems with few decisions an episode, where second derivatives can be estimated. With
preferences G is low where pairs are easy to tell apart, which need not be where the policy is good: see `return`.

Departs from the paper in: the full second derivatives (there some terms are left out), an entropy term and damping
in the lower problem, which make its solution unique, and baselines of the other episodes in all estimates.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from polopt.bases.method import Method, Smoke
from polopt.config import param
from polopt.core.batch import Batch
from polopt.core.errors import UsageError
from polopt.core.functional import Solved, conjugate_gradient, flatten, gradient, hessian_product, unflatten
from polopt.core.random import paired
from polopt.data.episodes import Episodes
from polopt.methods.control.reinforce import gpomdp, over_baseline
from polopt.models.reward import StepReward, draw_labels, surprise
from polopt.networks import Network
from polopt.policies import AnyPolicy, Auto
from polopt.policies.base import Density
from polopt.tasks.base import Task

OTHERS = "leave-one-out"


def box(x: Tensor) -> Tensor:
    """1, whose derivatives are those of exp(x) / exp(x0) at x0 = x."""
    return (x - x.detach()).exp()


def lower_value(
    log_prob: Tensor,
    entropy: Tensor,
    reward: Tensor,
    mask: Tensor,
    share: Tensor,
    *,
    discount: float,
    entropy_coefficient: float,
    baseline: str = OTHERS,
) -> Tensor:
    """A number that means nothing, whose first and second derivatives have those of V as their expected values.

    `log_prob` and `entropy` [R, T] bring theta, `reward` [R, T] brings nu; `mask` [R, T] is False behind the end of an
    episode, and `share` [R] is its weight.
    """
    bonus = entropy_coefficient * gpomdp(entropy, discount, mask)  # of this decision and of all later ones
    later = torch.cat([bonus[:, 1:], torch.zeros_like(bonus[:, :1])], 1)  # its own does not depend on the action
    advantage = over_baseline(gpomdp(reward, discount, mask) + later, mask, baseline)
    upto = log_prob.cumsum(-1)
    rise = box(upto) - box(upto - log_prob)  # of the chance of what led here, by the decision itself
    return (share * ((rise * advantage).sum(-1) + bonus[:, 0])).sum()


def score_value(upper: Tensor, score: Tensor, share: Tensor, baseline: str = OTHERS) -> Tensor:
    """A number with the gradient q: of U and S [n], over the mean U of the others."""
    column = upper.detach().unsqueeze(-1)
    return (share * over_baseline(column, torch.ones_like(column).bool(), baseline).squeeze(-1) * score).sum()


def implicit(
    lower: Tensor,
    upper: Tensor,
    theta: Sequence[Tensor],
    nu: Sequence[Tensor],
    *,
    damping: float,
    steps: int,
    tolerance: float = 1e-10,
) -> tuple[Tensor, Solved]:
    """(d theta*/d nu)^T q, a vector [nu], and the solution of (damping I - V'') x = q; `upper` has the gradient q."""
    q = gradient(upper, theta)
    solved = conjugate_gradient(hessian_product(-lower, theta), q, steps=steps, damping=damping, tolerance=tolerance)
    slope = gradient(lower, theta, differentiable=True)
    return gradient(slope @ solved.x, nu), solved


class PARL(Method):
    @dataclass(frozen=True)
    class Config(Method.Config):
        objective: str = param("preferences", "paper", choices=("preferences", "utility"), help="U")
        episodes: int = param(
            64, "assumed", low=4, help="of each of the batches: K for the policy, one that is compared, one for V''"
        )
        policy_steps: int = param(10, "assumed", low=1, help="K, steps of the policy before each step of the reward")
        hyper_weight: float = param(1.0, "paper", low=0, help="of the implicit term; 0: RLHF in turns")
        discount: float = param(0.99, "assumed", low=0, high=1)
        entropy_coefficient: float = param(0.05, "assumed", low=0)
        damping: float = param(0.01, "assumed", above=0, help="of the policy's weights in the lower problem")
        cg_steps: int = param(20, "assumed", low=1, help="conjugate gradients: products with the Hessian at most")
        rationality: float = param(1.0, "assumed", above=0, help="scale of the returns that the human compares")
        reward_penalty: float = param(0.01, "assumed", low=0, help="of the reward's weights: Z")
        lr: float = param(3e-3, "assumed", above=0)
        reward_lr: float = param(1e-2, "assumed", above=0)
        max_grad_norm: float | None = param(
            1.0, "assumed", above=0, help="of the reward's step: estimates of an inverse have heavy tails"
        )
        optimizer: str = param("adam", "assumed", choices=("adam", "sgd"), help="of policy and reward")
        network: Network = param(Network((64, 64), "tanh"), "assumed")
        reward_network: Network = param(Network(()), "assumed", help="linear without sizes")
        policy: AnyPolicy = param(Auto(), "polopt")

        def __post_init__(self) -> None:
            super().__post_init__()
            self.refuse("micro_batch", because="where second derivatives are those of a whole batch")
            self.refuse("reward_network.head_gain", because="on a reward, whose last layer has scale 1")
            if self.objective == "utility":
                self.refuse("rationality", because="on the objective utility, where nothing is compared")
            if self.hyper_weight == 0:
                self.refuse("cg_steps", because="at hyper_weight 0, without an implicit term")
            if self.episodes % 2:
                raise UsageError(f"episodes are compared in pairs, and {self.episodes} is odd")

    slug = "parl"
    requires = (Density,)
    score = "-upper_objective"
    default_steps = 500_000
    eval_episodes = 100
    headline = ("upper_objective", "entropy", "hyper_norm")
    trains_on = "tasks with short episodes, whose reward is what a simulated human wants"
    metrics = {
        "upper_objective": "mean of U: of labels that were drawn, or minus the return | falls",
        "entropy": "of the policy, in nats, over the episodes that were compared",
        "direct_norm": "length of the direct gradient of the reward, all that RLHF in turns has; 0 for a utility",
        "hyper_norm": "length of the implicit term",
        "lower_slope": "length of the gradient of the lower problem after K steps, with the noise of a batch | small: "
        "the implicit term is right where it is 0",
        "solved": "1 where conjugate gradients met positive curvature only, else 0: the term is cut short there "
        "| near 1; more episodes, entropy or damping help",
        "eval/upper_objective": "of fresh episodes of the policy as it acts, with the probability of each label in "
        "place of a draw",
        "eval/return": "the task's own reward, which the learner sees through the upper problem only",
    }
    presets = {
        "naive": {"hyper_weight": 0.0},
        "reward-design": {"objective": "utility"},
        "tabular": {
            "policy": "tabular-softmax",
            "optimizer": "sgd",
            "lr": 0.5,
            "reward_lr": 0.1,
            "discount": 1.0,
            "envs": 64,
        },
    }
    probes = {"cg_steps": {"cg_steps": 1}} | {
        f"reward_network.{name}": {"reward_network.sizes": (4,)} for name in ("activation", "normalization", "dropout")
    }
    no_limit = "its base, RLHF in turns, is its own `--hyper-weight 0`; its test compares with the loss of comparisons"
    smoke = Smoke(
        "CartPole-v1", 800, {"envs": 4, "episodes": 4, "policy_steps": 2, "damping": 1.0, "network.sizes": (4,)}
    )

    @classmethod
    def derived(cls, config: Any, steps: int) -> dict[str, int]:
        batches = config.policy_steps + (2 if config.hyper_weight > 0 else 1)
        labels = config.episodes // 2 if config.objective == "preferences" else 0
        return {"episodes per step of the reward": batches * config.episodes, "labels per step of the reward": labels}

    def build(self, task: Task) -> None:
        config = self.config
        self.policy = self.make_policy(config.policy, network=config.network)
        self.reward = StepReward(self.spec, config.reward_network)
        self.source = Episodes(task, config.episodes, ledger=self.ledger)
        self.optimizer = self.make_optimizer(self.policy, lr=config.lr, kind=config.optimizer)
        self.reward_optimizer = self.make_optimizer(
            self.reward, lr=config.reward_lr, max_grad_norm=config.max_grad_norm, kind=config.optimizer
        )

    def lower(self, batch: Batch) -> Tensor:
        """`lower_value` of the learned reward, without the damping."""
        config, count = self.config, len(batch)
        log_prob, entropy = self.policy.score(batch)
        share, reward = torch.full((count,), 1 / count, device=log_prob.device), self.reward(batch).mean(0)
        how = {"discount": config.discount, "entropy_coefficient": config.entropy_coefficient}
        return lower_value(log_prob, entropy, reward, batch["mask"], share, **how)

    def policy_step(self, batch: Batch) -> None:
        weights = flatten(self.optimizer.parameters)
        self.optimizer.step(self.config.damping / 2 * weights @ weights - self.lower(batch))

    def collect(self) -> Batch:
        """K steps of the policy, then episodes of where it is now: two sides [n, T] of pairs with a `label` [n], and
        `others` [R, T] for the second derivatives."""
        for _ in range(self.config.policy_steps):
            self.policy_step(self.source.next(self.policy))
        found = {"compared": self.compare(self.source.next(self.policy))}
        if self.config.hyper_weight > 0:
            found["others"] = self.source.next(self.policy)
        return TensorDict(found, [])

    def compare(self, batch: Batch, drawn: bool = True) -> Batch:
        """Episodes [R, T] as pairs [R / 2], with the human's answer, or the probability of it."""
        chosen, rejected = batch[: len(batch) // 2], batch[len(batch) // 2 :]
        margin = self.config.rationality * (chosen["reward"].sum(-1) - rejected["reward"].sum(-1))
        label = draw_labels(margin) if drawn else margin.sigmoid()
        return TensorDict({"chosen": chosen, "rejected": rejected, "label": label}, [len(label)], device=batch.device)

    def upper(self, pairs: Batch) -> Tensor:
        """U [n] of pairs, or of their episodes one by one."""
        if self.config.objective == "preferences":
            return surprise(self.reward, pairs)[0].mean(0)
        return -torch.cat([pairs[side]["reward"].sum(-1) for side in ("chosen", "rejected")])

    def scores(self, pairs: Batch) -> tuple[Tensor, Tensor]:
        """S [n], of that which has a U, and the mean entropy."""
        sides = [(pairs[side]["mask"], *self.policy.score(pairs[side])) for side in ("chosen", "rejected")]
        sums = [torch.where(mask, log_prob, 0.0).sum(-1) for mask, log_prob, _ in sides]
        entropy = torch.cat([each[mask] for mask, _, each in sides]).mean()
        return (sums[0] + sums[1] if self.config.objective == "preferences" else torch.cat(sums)), entropy

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """The step of the reward."""
        config, theta, nu = self.config, self.optimizer.parameters, self.reward_optimizer.parameters
        upper, (score, entropy) = self.upper(batch["compared"]), self.scores(batch["compared"])
        direct = gradient(upper.mean(), nu)
        slope = direct + config.reward_penalty * flatten(nu).detach()
        metrics = {"upper_objective": upper.mean(), "entropy": entropy, "direct_norm": direct.norm()}
        if config.hyper_weight > 0:
            lower, share = self.lower(batch["others"]), torch.full_like(upper, 1 / len(upper))
            value = score_value(upper, score, share)
            hyper, solved = implicit(lower, value, theta, nu, damping=config.damping, steps=config.cg_steps)
            slope = slope + config.hyper_weight * hyper
            left = gradient(lower, theta) - config.damping * flatten(theta).detach()
            metrics |= {
                "hyper_norm": hyper.norm(),
                "lower_slope": left.norm(),
                "solved": solved.positive.to(left.dtype),
            }
        metrics |= self.reward_optimizer.step(grads=unflatten(slope, nu))
        return {name: value.detach() for name, value in metrics.items()}

    @torch.no_grad()
    def evaluate(self, task: Task, episodes: int = 10, *, greedy: bool = True) -> dict[str, float]:
        """Returns as always, and the upper objective of the policy as it acts, greedy or not."""
        with paired():
            batch = Episodes(task, starts=range(episodes + episodes % 2)).next(self.policy)
            objective = self.upper(self.compare(batch, drawn=False)).mean()
        return super().evaluate(task, episodes, greedy=greedy) | {"upper_objective": float(objective)}
