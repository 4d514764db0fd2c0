"""StepMix and EpsMix: exploration whose every episode is as good as a threshold.

Li et al., "Near-optimal Conservative Exploration in Reinforcement Learning under Episode-wise Constraints", ICML 2023,
arXiv 2306.06265.

In a tabular MDP with horizon H a baseline policy is known, whose value lies above `threshold`. Each episode must be
played by a policy with a value above the threshold, although the MDP is unknown. So the optimistic policy is mixed with
the baseline just enough that a lower confidence bound of the value of the mixture, known before the episode, meets it.

With visits n, frequencies P^ and mean rewards r of each (h, s, a), L = log(S A H K / delta) for K = `episodes`, and
variance and expectations over P^ (h, s, a):

    bonus       b  = scale (3 sqrt(Var(V~_{h+1}) L / n) + 14 H^2 L / n + P^ (V~_{h+1} - V_{h+1}) / H)     "bernstein"
                b  = scale (3 sqrt(Var(V~_{h+1}) L / n) + 1.4 H L / n + sqrt(L / n))                      "practical"
                b  = scale H sqrt(L / n)                              "hoeffding";  b = H where n = 0 in all of them
    optimistic  Q~ = min(H, r + P^ V~_{h+1} + b),  pi~ = argmax Q~,  V~ = max Q~
    lower       Q_ = max(0, r + P^ V_{h+1} - b),   V_ = sum_a pi(a|s) Q_      for any policy pi
    candidates  pi^i follows the baseline in its first i steps, and pi~ in the others: pi^0 = pi~, pi^H = baseline
    StepMix     i the first with V_(pi^i) >= threshold; plays rho pi^i + (1 - rho) pi^(i-1), which differ in one step
                only, with the smallest rho in [0, 1] for which V_ of that mixture is >= threshold
    EpsMix      plays the baseline with probability rho, else pi~, a whole episode each; rho is the smallest for which
                rho V(baseline) + (1 - rho) V_(pi~) >= threshold
    both        play the baseline alone where no mixture is safe

Differs from UCBVI (`--mixing none`) in the mixture; all else is the same. `--mixing switch` is the naive rule: pi~ if
it is safe, else the baseline; behind a deterministic baseline it never sees what it would need to leave it.

Departs from the paper in: the constants of the bonuses are reconstructed, and those of the theory never leave the
baseline within a small budget, so the default is "practical" at scale 0.1 (`--preset theory` has the others); rewards
are estimated, without a width of their own, which is exact where they are deterministic; the baseline is given, not
learned from offline data.

The baseline and the threshold are made from the task's model, as knowledge that the learner is given; from nothing else
does it know the model. The metrics `value`, `violation` and `regret` use it too, for logging only.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import log
from typing import NamedTuple

import torch
from torch import Tensor

from polopt.config import param
from polopt.core.batch import Batch
from polopt.core.errors import UsageError
from polopt.data.rollouts import Rollouts
from polopt.method import Limit, Method, Smoke
from polopt.models.tabular import TabularModel
from polopt.policies.tabular import TabularMixture
from polopt.tasks.base import Task
from polopt.tasks.tabular import TabularMDP, TabularTask


ROUNDING = 1e-12  # of a value in float64


class Bonus(NamedTuple):
    """b = deviation sqrt(Var) + constant + gap P^ (V~ - V_), with deviation and constant [H, S, A]."""

    deviation: Tensor
    constant: Tensor
    gap: float


def practical(visits: Tensor, horizon: int, log_term: float) -> Bonus:
    rate = log_term / visits
    return Bonus(3 * rate.sqrt(), 1.4 * horizon * rate + rate.sqrt(), 0.0)


def bernstein(visits: Tensor, horizon: int, log_term: float) -> Bonus:
    rate = log_term / visits
    return Bonus(3 * rate.sqrt(), 14 * horizon**2 * rate, 1 / horizon)


def hoeffding(visits: Tensor, horizon: int, log_term: float) -> Bonus:
    return Bonus(torch.zeros_like(visits), horizon * (log_term / visits).sqrt(), 0.0)


BONUSES = {"practical": practical, "bernstein": bernstein, "hoeffding": hoeffding}


def scaled(bonus: Bonus, scale: float, visits: Tensor) -> Bonus:
    """The bonus times `scale`, and H where nothing was seen (there P^ is 0, and so is the gap)."""
    seen, horizon = visits > 0, float(len(visits))
    constant = torch.where(seen, scale * bonus.constant, horizon)
    return Bonus(torch.where(seen, scale * bonus.deviation, 0.0), constant, scale * bonus.gap)


class Bounds(NamedTuple):
    """The optimistic policy [H, S, A], V~ [H + 1, S], and what a lower bound needs: V_ of pi at step h is the mean of
    max(0, floor + slope V_{h+1}) with floor [H, S, A] and slope [H, S, A, S]."""

    policy: Tensor
    upper: Tensor
    floor: Tensor
    slope: Tensor


def plan(reward: Tensor, transition: Tensor, bonus: Bonus) -> Bounds:
    """Optimistic value iteration; the first of equal actions is taken."""
    horizon, states, _ = reward.shape
    policy, floor = torch.zeros_like(reward), torch.empty_like(reward)
    upper, lower = reward.new_zeros(2, horizon + 1, states)
    slope = (1 + bonus.gap) * transition
    for h in reversed(range(horizon)):
        after = upper[h + 1]
        mean, square = (transition[h] @ torch.stack((after, after.square()), -1)).unbind(-1)
        width = bonus.deviation[h] * (square - mean.square()).clamp_min(0).sqrt() + bonus.constant[h]
        width = width + bonus.gap * mean  # lacks gap P^ V_, which `slope` holds for V_ of any policy
        q = (reward[h] + mean + width - bonus.gap * (transition[h] @ lower[h + 1])).clamp_max(horizon)
        best = q.max(-1, keepdim=True)
        upper[h] = best.values[:, 0]
        policy[h].scatter_(-1, best.indices, 1.0)
        floor[h] = reward[h] - width
        lower[h] = (floor[h] + slope[h] @ lower[h + 1]).clamp_min(0).gather(-1, best.indices)[:, 0]
    return Bounds(policy, upper, floor, slope)


def lower_values(bounds: Bounds, policies: Tensor) -> Tensor:
    """V_ [C, S] at the first step of policies [C, H, S, A]."""
    value = bounds.floor.new_zeros(len(policies), bounds.floor.shape[1])
    for h in reversed(range(len(bounds.floor))):
        q = (bounds.floor[h] + (bounds.slope[h] @ value.T).movedim(-1, 0)).clamp_min(0)
        value = (policies[:, h] * q).sum(-1)
    return value


def candidates(baseline: Tensor, optimistic: Tensor, orientation: str) -> Tensor:
    """pi^0 .. pi^H as [H + 1, H, S, A]; "optimistic-first" takes the baseline in the last i steps instead."""
    horizon = len(baseline)
    step = torch.arange(horizon) if orientation == "baseline-first" else torch.arange(horizon).flip(0)
    follows = step < torch.arange(horizon + 1).unsqueeze(-1)
    return torch.where(follows[..., None, None], baseline, optimistic)


def smallest_share(lower: Callable[[Tensor], Tensor], unsafe: Tensor, safe: Tensor, threshold: float) -> float:
    """The smallest rho for which V_ of rho `safe` + (1 - rho) `unsafe` [H, S, A] is at least `threshold`.

    V_ is convex in rho, because of the maximum with 0: the root of the chord is exact where that is not active, and at
    most rho where it is; then intervals are cut into 32 parts, until the result is safe and at most 3e-5 too large.
    """
    below, above = lower(torch.stack((unsafe, safe))).tolist()
    start, end = (threshold - below) / (above - below), 1.0
    if lower(torch.lerp(unsafe, safe, start).unsqueeze(0)) >= threshold - ROUNDING:
        return start
    for _ in range(3):
        shares = torch.linspace(start, end, 33, dtype=safe.dtype)
        meets = lower(torch.lerp(unsafe, safe, shares[1:-1, None, None, None])) >= threshold
        first = 1 + int((~meets).sum())  # those that meet it come last
        start, end = float(shares[first - 1]), float(shares[first])
    return end


class Choice(NamedTuple):
    """The policy [H, S, A] of the next episode, the probability that the baseline plays it instead, and how much of
    the baseline is in both: 0 none, 1 nothing else."""

    policy: Tensor
    baseline_share: float
    conservatism: float


def step_mixture(
    lower: Callable[[Tensor], Tensor], optimistic: Tensor, baseline: Tensor, threshold: float, orientation: str
) -> Choice:
    """StepMix; the conservatism is (i - 1 + rho) / H."""
    family = candidates(baseline, optimistic, orientation)
    safe = (lower(family) >= threshold).tolist()
    if safe[0]:
        return Choice(optimistic, 0.0, 0.0)
    if not any(safe):
        return Choice(baseline, 0.0, 1.0)
    first = safe.index(True)
    share = smallest_share(lower, family[first - 1], family[first], threshold)
    mixture = torch.lerp(family[first - 1], family[first], share)
    return Choice(mixture, 0.0, (first - 1 + share) / len(baseline))


def switch(
    lower: Callable[[Tensor], Tensor], optimistic: Tensor, baseline: Tensor, threshold: float, orientation: str
) -> Choice:
    """The naive rule: all or nothing."""
    safe = bool(lower(optimistic.unsqueeze(0)) >= threshold)
    return Choice(optimistic, 0.0, 0.0) if safe else Choice(baseline, 0.0, 1.0)


def unrestrained(
    lower: Callable[[Tensor], Tensor], optimistic: Tensor, baseline: Tensor, threshold: float, orientation: str
) -> Choice:
    """UCBVI."""
    return Choice(optimistic, 0.0, 0.0)


MIXING = {"step": step_mixture, "switch": switch, "none": unrestrained}


def episode_share(below: float, baseline: float, threshold: float) -> float:
    """The smallest rho in [0, 1] with rho `baseline` + (1 - rho) `below` >= threshold, or 1 if there is none."""
    if below >= threshold:
        return 0.0
    return 1.0 if baseline <= threshold else (threshold - below) / (baseline - below)


def noisy(optimal: Tensor, noise: float, generator: torch.Generator) -> Tensor:
    """Deterministic: optimal, but for a share `noise` of the (h, s), which take a random action."""
    actions = optimal.shape[-1]
    random = torch.randint(actions, optimal.shape[:-1], generator=generator)
    replaced = torch.rand(optimal.shape[:-1], generator=generator) < noise
    return torch.where(replaced.unsqueeze(-1), torch.eye(actions, dtype=optimal.dtype)[random], optimal)


def soft(optimal: Tensor, noise: float, generator: torch.Generator) -> Tensor:
    """Optimal with probability 1 - noise, else uniform: it tries every action."""
    return (1 - noise) * optimal + noise / optimal.shape[-1]


BASELINES = {"deterministic": noisy, "soft": soft}


class Conservative(Method):
    """What StepMix and EpsMix share: all but the choice of the mixture."""

    @dataclass(frozen=True)
    class Config(Method.Config):
        alpha: float = param(0.15, "assumed", low=0, high=1, help="threshold = (1 - alpha) V(baseline)")
        bonus: str = param("practical", "assumed", choices=tuple(BONUSES))
        scale: float = param(0.1, "assumed", low=0, help="factor on the bonus; 1 is what the theory asks for")
        delta: float = param(0.05, "section 6", above=0, below=1, help="probability that a bound fails")
        episodes: int = param(10_000, "assumed", low=1, help="K, for how many episodes the bounds shall hold")
        baseline: str = param("deterministic", "assumed", choices=tuple(BASELINES))
        baseline_noise: float = param(0.4, "assumed", low=0, high=1, help="share of random actions of the baseline")

    saved = ("conservatism", "total_regret")
    unit = "episodes"
    default_steps = 10_000
    headline = ("violation", "regret", "conservatism")
    presets = {"theory": {"bonus": "bernstein", "scale": 1.0}}
    smoke = Smoke("random-mdp", 40, {"alpha": 0.5}, task_options={"states": 3, "actions": 2, "horizon": 3})
    policy: TabularMixture

    def build(self, task: Task) -> None:
        config = self.config
        if not isinstance(task, TabularTask):
            raise UsageError(f"{self.slug} plans in a table: it needs a tabular task, which {self.spec.name} is not")
        self.mdp: TabularMDP = task.mdp
        self.policy = self.make_policy(self)
        self.model = TabularModel(self.mdp.horizon, self.mdp.states, self.mdp.actions)
        self.source = Rollouts(task, self.mdp.horizon, self.ledger)
        optimal, value = self.mdp.optimal()
        self.optimal_value = self.start(value)
        self.baseline = BASELINES[config.baseline](optimal, config.baseline_noise, self.generator)
        self.baseline_value = self.start(self.mdp.value(self.baseline))
        self.threshold = (1 - config.alpha) * self.baseline_value
        self.log_term = log(self.baseline.numel() * config.episodes / config.delta)
        self.total_regret = 0.0
        self.plan()

    def start(self, value: Tensor) -> float:
        """The value at the start of an episode, of a table [H + 1, S]."""
        return float(value[0, self.mdp.start])

    def choose(self, lower: Callable[[Tensor], Tensor], optimistic: Tensor) -> Choice:
        """How the next episode is played; `lower` gives the lower bound [C] of the value of policies [C, H, S, A]."""
        raise NotImplementedError  # abstract

    def plan(self) -> None:
        """Before the episode: bounds from all data, and from them the policy."""
        visits = self.model.visits
        bonus = BONUSES[self.config.bonus](visits, self.mdp.horizon, self.log_term)
        bounds = plan(*self.model.estimate(), scaled(bonus, self.config.scale, visits))
        choice = self.choose(lambda policies: lower_values(bounds, policies)[:, self.mdp.start], bounds.policy)
        share = choice.baseline_share
        self.policy.set(torch.stack((choice.policy, self.baseline)), torch.tensor([1 - share, share]))
        self.conservatism = choice.conservatism

    def executed_value(self) -> float:
        """The exact value of the policy, coin included: for logging only."""
        return sum(
            weight * self.start(self.mdp.value(table))
            for weight, table in zip(self.policy.weight.tolist(), self.policy.table)
            if weight > 0
        )

    def diagnostics(self) -> dict[str, float]:
        value = self.executed_value()
        violation = float(value < self.threshold - ROUNDING)
        return {"value": value, "violation": violation, "regret": self.optimal_value - value}

    def update(self, batch: Batch) -> dict[str, Tensor]:
        metrics = self.diagnostics() | {"conservatism": self.conservatism}
        self.total_regret += metrics["regret"] * len(batch)
        self.model.add(batch)
        self.plan()
        metrics |= {"total_regret": self.total_regret}
        return {name: torch.tensor(value, dtype=torch.float64) for name, value in metrics.items()}

    def evaluate(self, task: Task, episodes: int = 10, *, greedy: bool = True) -> dict[str, float]:
        """Exact, of the policy as it is played (it has no greedy form): `return`, `violation` and `regret`."""
        metrics = self.diagnostics()
        return {"return": metrics["value"], "violation": metrics["violation"], "regret": metrics["regret"]}


class StepMix(Conservative):
    @dataclass(frozen=True)
    class Config(Conservative.Config):
        mixing: str = param("step", "algorithm 1", choices=tuple(MIXING), help="switch and none are for comparison")
        orientation: str = param(
            "baseline-first", "assumed", choices=("baseline-first", "optimistic-first"), help="order in the candidates"
        )

    slug = "stepmix"
    no_limit = "its base, UCBVI, is its own `--mixing none`, which alpha = 1 equals; a test compares the two"

    def choose(self, lower: Callable[[Tensor], Tensor], optimistic: Tensor) -> Choice:
        mix = MIXING[self.config.mixing]
        return mix(lower, optimistic, self.baseline, self.threshold, self.config.orientation)


class EpsMix(Conservative):
    @dataclass(frozen=True)
    class Config(Conservative.Config):
        baseline_bound: str = param(
            "known", "assumed", choices=("known", "lower"), help="V(baseline): its exact value, or its lower bound"
        )

    slug = "epsmix"
    limits = (
        Limit(
            base="stepmix",
            base_at={"alpha": 1.0},
            at={"alpha": 1.0},
            apart={"alpha": 0.15},
            because="the threshold is 0, which every lower bound meets: both play the optimistic policy",
        ),
    )

    def choose(self, lower: Callable[[Tensor], Tensor], optimistic: Tensor) -> Choice:
        below, baseline = lower(torch.stack((optimistic, self.baseline))).tolist()
        if self.config.baseline_bound == "known":
            baseline = self.baseline_value
        share = episode_share(below, baseline, self.threshold)
        return Choice(optimistic, share, share)
