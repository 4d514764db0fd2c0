"""DR-RPO: online learning of a softmax policy for the worst of many transitions, in linear MDPs.

Gu, He, Liu and Xu, "Policy Regularized Distributionally Robust Markov Decision Processes with Linear Function
Approximation", 2025, arXiv 2510.14246.

Transitions are a mixture of d factors, P_h(.|s, a) = sum_i phi_i(s, a) mu_{h,i}, in which each factor may be another
one at the test (a d-rectangular set), and the policy is held near a reference. With known rewards phi theta_h, steps
h = 0..H-1, V_H = 0 and regressions on what the present policies saw in the nominal task, Lambda_h = regularizer I + sum
phi phi^T and z_h(f) = Lambda_h^-1 sum phi f(s'), in which f is a function of V_{h+1}:

    worst     nu_i = max_a { z_i(min(V, a)) - size (a - min V) }              "tv": within total variation `size`
              nu_i = z_i(min(V, min V + size))                                "tv-penalty": size TV is paid for moving
              nu_i = -size log clip(z_i(exp(-V / size)), exp(-H / size), 1)   "kl-penalty"
              nu_i = max_a { z_i(min(V, a)) - [z_i(min(V, a)^2) - z_i(min(V, a))^2]_+ / (4 size) }     "chi2-penalty"
    bonus     b_h(s, a) = beta sum_i phi_i sqrt((Lambda_h^-1)_ii)
    values    Q_h = clip(phi (theta_h + nu) + b_h, 0, H - h),   V_h = eta log sum_a reference(a|s) exp(Q_h / eta)
    policy    pi_h(a|s) is proportional to reference(a|s) exp(Q_h / eta): the best for E[Q_h] - eta KL(pi || reference)

The largest a is sought for each coordinate i by itself, over `levels` numbers from min V to H. Where all is over and
nothing paid, features are 0: V is 0 there, without a bonus, and so the least. With total variation of size 0 the only a
is H, since over several noise is sought. The last two penalties move mass only to where there is some: what is certain
stays so.

Differs from LSVI-UCB, its base (`--preset lsvi-ucb`), in the worst case and in the softmax; from its greedy robust
form, DR-LSVI-UCB (`--preset dr-lsvi-ucb`), in the latter. For policies that shall hold where the task is not quite that
of the training.

Departs from the paper in: the reference is the uniform policy (`--reference previous`: that of the last episode, which
is mirror descent); which of the two the paper iterates was not read, nor were its constants: sizes are of pilots.
Where a task is not linear each pair has its own feature, so that the set is one for each pair.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import exp, inf

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from polopt.bases.method import Method, Smoke
from polopt.config import param
from polopt.core.batch import Batch
from polopt.core.errors import UsageError
from polopt.data.rollouts import Rollouts
from polopt.evaluation.figures import Curves, Figure
from polopt.policies.tabular import TabularMixture
from polopt.tasks.base import Task
from polopt.tasks.tabular import known_mdp
from polopt.tasks.tabular_sets import BALLS, LinearMDP, ended, features_of, worst_case
from polopt.values.ridge import Ridge, linear_values

Improve = Callable[[Tensor, Tensor], Tensor]  # Q [..., A] and a table [..., A] -> V [...]
Worst = Callable[[Tensor, Tensor], Tensor]  # regression [*B, d, S] and V [*B, S] -> nu [*B, d]
SOUGHT = ("tv", "chi2-penalty")  # over levels


def capped(value: Tensor, levels: int, high: float) -> tuple[Tensor, Tensor]:
    """min(V, a) [*B, S, levels] of V [*B, S], and how far each a is above min V, [*B, levels]."""
    lowest = value.amin(-1, keepdim=True)
    above = (high - lowest) * torch.linspace(0.0, 1.0, levels, dtype=value.dtype)
    return torch.minimum(value.unsqueeze(-1), (lowest + above).unsqueeze(-2)), above


def estimated(ball: str, size: float, levels: int, high: float) -> Worst:
    """nu from regressions of the successors, for values of at most `high`."""

    def tv(model: Tensor, value: Tensor) -> Tensor:
        if size == 0:
            return (model @ value.unsqueeze(-1)).squeeze(-1)
        below, above = capped(value, levels, high)
        return (model @ below - size * above.unsqueeze(-2)).amax(-1)

    def tv_penalty(model: Tensor, value: Tensor) -> Tensor:
        below = torch.minimum(value, value.amin(-1, keepdim=True) + size)
        return (model @ below.unsqueeze(-1)).squeeze(-1)

    def kl_penalty(model: Tensor, value: Tensor) -> Tensor:
        mean = (model @ (-value / size).exp().unsqueeze(-1)).squeeze(-1)
        return -size * mean.clamp(max(exp(-high / size), 1e-300), 1.0).log()

    def chi2_penalty(model: Tensor, value: Tensor) -> Tensor:
        below, _ = capped(value, levels, high)
        mean = model @ below
        variance = (model @ below.square() - mean.square()).clamp_min(0.0)
        return (mean - variance / (4 * size)).amax(-1)

    return {"tv": tv, "tv-penalty": tv_penalty, "kl-penalty": kl_penalty, "chi2-penalty": chi2_penalty}[ball]


def soft_value(q: Tensor, reference: Tensor, eta: float) -> Tensor:
    """The best E[Q] - eta KL(pi || reference) [...] for Q and reference [..., A]; at eta 0 the best Q."""
    return eta * torch.logsumexp(reference.log() + q / eta, -1) if eta > 0 else q.amax(-1)


def soft_policy(q: Tensor, reference: Tensor, eta: float) -> Tensor:
    """The policy [..., A] that has it; at eta 0 greedy."""
    return (reference.log() + q / eta).softmax(-1) if eta > 0 else one_hot(q.argmax(-1), q.shape[-1]).to(q)


def regularized(q: Tensor, policy: Tensor, reference: Tensor, price: float) -> Tensor:
    """E[Q] - price KL(pi || reference) [...] of any policy [..., A]."""
    return (policy * q).sum(-1) - price * (torch.xlogy(policy, policy) - torch.xlogy(policy, reference)).sum(-1)


def backwards(improve: Improve, tables: Tensor) -> Callable[[Tensor], Tensor]:
    """`improve` for `linear_values`, which begins with the last step: with the table of the step, of [H, S, A]."""
    left = iter(tables.flip(0))
    return lambda q: improve(q, next(left))


class DRRPO(Method):
    @dataclass(frozen=True)
    class Config(Method.Config):
        ball: str = param("tv", "paper", choices=tuple(BALLS), help="how far factors move, or what they pay for it")
        size: float = param(0.5, "assumed", low=0, help="of the ball, or the price of moving by 1")
        eta: float = param(0.02, "assumed", low=0, help="price of a nat away from the reference; 0: greedy")
        reference: str = param("uniform", "assumed", choices=("uniform", "previous"))
        beta: float = param(0.6, "assumed", low=0, help="of the bonus")
        regularizer: float = param(0.1, "assumed", above=0)
        levels: int = param(31, "assumed", low=2, help="numbers over which the dual variable is sought")

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.size == 0 and self.ball != "tv":
                raise UsageError(f"{self.ball} has no size 0: the worst would cost nothing")
            if self.ball not in SOUGHT or self.size == 0:
                self.refuse("levels", because=f"on {self.ball} of size {self.size:g}, where nothing is sought")
            if self.eta == 0:
                self.refuse("reference", because="at eta 0")

    slug = "dr-rpo"
    unit = "episodes"
    score = "-suboptimality"
    saved = ("total", "played", "believed")
    default_steps = 300
    headline = ("suboptimality", "average_suboptimality")
    trains_on = "tabular tasks, linear ones by their features: `off-dynamics`"
    metrics = {
        "suboptimality": "of the policy that was played, in its own objective, the worst sum of rewards minus eta KL, "
        "exact; the task's model is known to the logger, not to the learner | towards 0",
        "average_suboptimality": "over all episodes so far | falls",
        "optimism": "V_0 of the start minus the best worst case, exact | above 0, towards it",
        "eval/return": "of the policy as it samples, exact, in the task of the evaluation",
        "eval/worst_return": "the least that the set allows, without the price of KL but with penalties paid",
    }
    presets = {"lsvi-ucb": {"size": 0.0, "eta": 0.0}, "dr-lsvi-ucb": {"eta": 0.0}}
    no_limit = "LSVI-UCB and DR-LSVI-UCB are its own presets; tests compare them with regressions row by row"
    probes = {"levels": {"levels": 4}}
    smoke = Smoke("off-dynamics", 12, {"envs": 2})

    def build(self, task: Task) -> None:
        config = self.config
        mdp = self.mdp = known_mdp(self.spec, self.slug)
        least, most = float(mdp.reward.min()), float(mdp.reward.max())
        if least < 0 or most > 1:
            raise UsageError(
                f"dr-rpo takes rewards from 0 to 1, and {self.spec.name} has some from {least:g} to {most:g}"
            )
        self.phi = features_of(mdp).masked_fill(ended(mdp)[:, None, None], 0.0)
        if isinstance(mdp, LinearMDP):
            self.theta, self.factors = mdp.weights.expand(mdp.horizon, -1), mdp.factors.expand(mdp.horizon, -1, -1)
        else:
            self.theta, self.factors = mdp.reward.flatten(1), mdp.transition.flatten(1, 2)
        self.ridge = Ridge(self.phi.shape[-1], mdp.states, (mdp.horizon,), config.regularizer)
        self.policy = TabularMixture(self.spec)
        self.uniform = self.policy.table[0].clone()
        self.price = config.eta if config.reference == "uniform" else 0.0  # of KL in the objective
        self.source = Rollouts(task, mdp.horizon, self.ledger)
        self.total, self.played = 0.0, 0
        self.optimum = self.exact(partial(soft_value, eta=self.price), self.uniform, config.ball, config.size)
        self.plan()

    def exact(self, improve: Improve, tables: Tensor, ball: str, size: float) -> float:
        """The worst value of the start, by dynamic programming in the task's model: V_h = improve(Q_h, tables[h])."""
        found = linear_values(
            self.phi,
            self.theta,
            self.factors,
            0.0,
            inf,
            low=-inf,
            expected=lambda factors, value: worst_case(factors, value.unsqueeze(-2), size, ball),
            improve=backwards(improve, tables),
        )
        return float(found[1][0, self.mdp.start])

    def worth(self, price: float) -> float:
        """Of the policy, exactly, at a price of KL."""
        improve = partial(regularized, price=price, reference=self.uniform[0])
        return self.exact(improve, self.policy.table[0].cpu(), self.config.ball, self.config.size)

    def plan(self) -> None:
        """Before an episode, from all data: the policy."""
        config, horizon = self.config, self.mdp.horizon
        bonus = config.beta * self.ridge.coordinate_width(self.phi.flatten(0, 1)).cpu()
        reference = self.uniform if config.reference == "uniform" else self.policy.table[0].cpu()
        q, value = linear_values(
            self.phi,
            self.theta,
            self.ridge.weights().cpu(),
            bonus.unflatten(-1, self.phi.shape[:2]),
            torch.arange(horizon, 0, -1),
            expected=estimated(config.ball, config.size, config.levels, horizon),
            improve=backwards(partial(soft_value, eta=config.eta), reference),
        )
        self.policy.table.copy_(soft_policy(q, reference, config.eta).unsqueeze(0))
        self.believed = float(value[0, self.mdp.start])

    def initialized(self) -> None:
        """What another run has seen is taken over, and planned for anew."""
        super().initialized()
        self.plan()

    def diagnostics(self) -> dict[str, float]:
        """Exact, of the policy that is played next: for logging only."""
        return {"suboptimality": self.optimum - self.worth(self.price), "optimism": self.believed - self.optimum}

    def update(self, batch: Batch) -> dict[str, Tensor]:
        metrics = self.diagnostics()
        self.total, self.played = self.total + metrics["suboptimality"] * len(batch), self.played + len(batch)
        metrics["average_suboptimality"] = self.total / self.played
        state, action, after = batch["obs", "state"], batch["action"], batch["final_obs", "state"]  # [N, H]
        self.ridge.add(self.phi[state.T.cpu(), action.T.cpu()], one_hot(after.T.cpu(), self.mdp.states))
        self.plan()
        return {name: torch.tensor(value, dtype=torch.float64) for name, value in metrics.items()}

    def evaluate(self, task: Task, episodes: int = 10, *, greedy: bool = True) -> dict[str, float]:
        """Exact, of the policy as it samples, so `episodes` and `greedy` do not matter; `return` is that in `task`,
        which may have other transitions."""
        value = self.policy.value(known_mdp(task.spec, self.slug))
        return {"return": value, "worst_return": self.worth(0.0), **self.diagnostics()}

    def figures(self) -> dict[str, Figure]:
        """The worst return as factors move further away, beside that of the best policy for the nominal task."""
        sizes = [index / 20 for index in range(21)]
        tables = {"policy": self.policy.table[0].cpu(), "best where nothing moves": self.mdp.optimal()[0]}
        plain = partial(regularized, price=0.0, reference=self.uniform[0])
        lines = {name: [self.exact(plain, table, "tv", size) for size in sizes] for name, table in tables.items()}
        return {"robustness": Curves(sizes, lines, "total variation of every factor", "worst return")}
