"""StepMix and EpsMix: exploration whose every episode is as good as a threshold, without a neural network.

Li et al., "Near-optimal Conservative Exploration in Reinforcement Learning under Episode-wise Constraints", ICML 2023,
arXiv 2306.06265.

In an unknown tabular MDP with horizon H every episode must be played by a policy with a value above `threshold`; that
of a known baseline is. The optimistic policy is mixed with the baseline just enough that a lower confidence bound of
the value of the mixture, known before the episode, meets the threshold; all data, also of mixtures, is counted.
With visits n, frequencies P^ and mean rewards r of each (h, s, a), L = log(S A H K / delta), K = `episodes`, and in b
the V_ of the policy that is bounded (that of pi~ in Q~):

    bonus       b  = scale (3 sqrt(Var(V~_{h+1}) L / n) + 14 H^2 L / n + P^ (V~_{h+1} - V_{h+1}) / H)     "bernstein"
                b  = scale (3 sqrt(Var(V~_{h+1}) L / n) + 1.4 H L / n + sqrt(L / n))                      "practical"
                b  = scale H sqrt(L / n)                              "hoeffding";  b = H where n = 0 in all of them
    optimistic  Q~ = min(H, r + P^ V~_{h+1} + b),  pi~ = argmax Q~,  V~ = max Q~
    lower       Q_ = max(0, r + P^ V_{h+1} - b),   V_ = sum_a pi(a|s) Q_      for any policy pi
    candidates  pi^i follows the baseline in its first i steps, and pi~ in the others: pi^0 = pi~, pi^H = baseline
    StepMix     with the first i for which V_(pi^i) >= threshold, plays rho pi^i + (1 - rho) pi^(i-1): these differ in
                one step only; rho in [0, 1] is the smallest for which V_ of the mixture is >= threshold
    EpsMix      plays the baseline with probability rho, else pi~, for a whole episode; rho is the smallest for which
                rho V(baseline) + (1 - rho) V_(pi~) >= threshold
    both        play the baseline alone where no mixture is safe

Differs from UCBVI, its base (`--mixing none`), in the mixture. `--mixing switch` is the naive rule: pi~ if it is safe,
else the baseline; behind a deterministic baseline it never sees what it would need to leave it.

Departs from the paper in: the bonuses are reconstructed; those of the theory (`--preset theory`) never leave the
baseline within a small budget, so the default is "practical" at scale 0.1. Rewards are estimated without a width of
their own, exact where they are deterministic. The baseline is given: it is not learned from offline data.

Baseline and threshold are made from the task's model, as what the learner is told. Beyond that the model is only used
to log `value`, `violation` (value below the threshold) and `regret`, all exact.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import log

import torch
from torch import Tensor

from polopt.bases.method import Limit, Method, Smoke
from polopt.config import param
from polopt.core.batch import Batch
from polopt.data.rollouts import Rollouts
from polopt.models.tabular import TabularModel
from polopt.policies.tabular import TabularMixture, noisy_table, soft_table
from polopt.tasks.base import Task
from polopt.tasks.tabular import known_mdp
from polopt.values.confidence import BONUSES, lower_values, optimistic_plan, scaled

ROUNDING = 1e-12  # of a value in float64
NEARLY_SAFE = {"alpha": 0.9, "scale": 0.01}  # where mixtures begin within few episodes
Lower = Callable[[Tensor], Tensor]  # policies [C, H, S, A] -> lower bounds [C] of their values


def candidates(baseline: Tensor, optimistic: Tensor, orientation: str) -> Tensor:
    """pi^0 .. pi^H as [H + 1, H, S, A]; "optimistic-first" takes the baseline in the last i steps instead."""
    horizon = len(baseline)
    step = torch.arange(horizon) if orientation == "baseline-first" else torch.arange(horizon).flip(0)
    follows = step < torch.arange(horizon + 1).unsqueeze(-1)
    return torch.where(follows[..., None, None], baseline, optimistic)


def smallest_share(lower: Lower, unsafe: Tensor, safe: Tensor, threshold: float) -> float:
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


def step_mixture(lower: Lower, family: Tensor, threshold: float) -> tuple[Tensor, float]:
    """StepMix: the policy [H, S, A], and its conservatism (i - 1 + rho) / H; the baseline where nothing is safe."""
    safe = (lower(family) >= threshold).tolist()
    if safe[0] or not any(safe):
        return (family[0], 0.0) if safe[0] else (family[-1], 1.0)
    first = safe.index(True)
    share = smallest_share(lower, family[first - 1], family[first], threshold)
    return torch.lerp(family[first - 1], family[first], share), (first - 1 + share) / (len(family) - 1)


def switch(lower: Lower, family: Tensor, threshold: float) -> tuple[Tensor, float]:
    """The naive rule: all or nothing."""
    return (family[0], 0.0) if lower(family[:1]) >= threshold else (family[-1], 1.0)


def unrestrained(lower: Lower, family: Tensor, threshold: float) -> tuple[Tensor, float]:
    """UCBVI."""
    return family[0], 0.0


MIXING = {"step": step_mixture, "switch": switch, "none": unrestrained}
BASELINES = {"deterministic": noisy_table, "soft": soft_table}


def episode_share(below: float, baseline: float, threshold: float) -> float:
    """The smallest rho in [0, 1] with rho `baseline` + (1 - rho) `below` >= threshold, or 1 if there is none."""
    if below >= threshold:
        return 0.0
    return 1.0 if baseline <= threshold else (threshold - below) / (baseline - below)


class Conservative(Method):
    """What StepMix and EpsMix share: all but the choice of the mixture."""

    @dataclass(frozen=True)
    class Config(Method.Config):
        alpha: float = param(0.15, "assumed", low=0, high=1, help="threshold = (1 - alpha) V(baseline)")
        bonus: str = param("practical", "assumed", choices=tuple(BONUSES))
        scale: float = param(0.1, "assumed", low=0, help="factor on the bonus; 1 is what the theory asks for")
        delta: float = param(0.05, "assumed", above=0, below=1, help="probability that a bound fails")
        episodes: int = param(10_000, "assumed", low=1, help="K, for how many episodes the bounds shall hold")
        baseline: str = param("deterministic", "assumed", choices=tuple(BASELINES))
        baseline_noise: float = param(0.4, "assumed", low=0, high=1, help="share of random actions of the baseline")

    entry = False
    saved = ("conservatism", "total_regret")
    unit = "episodes"
    default_steps = 10_000
    headline = ("violation", "regret", "conservatism")
    trains_on = "tabular tasks"
    metrics = {
        "value": "exact value of the policy that was played in the episode, its coin included; the task's model is "
        "known to the logger, not to the learner",
        "violation": "1 if that value was below the threshold, averaged over the episodes since the row before | 0 is "
        "the promise",
        "regret": "optimal value minus `value`, of an episode",
        "total_regret": "summed over all episodes, averaged over those since the row before",
        "conservatism": "how much of the baseline was in the mixture: 0 nothing, 1 nothing else",
        "eval/return": "exact, not sampled, of the policy that comes next",
        "eval/violation": "likewise",
        "eval/regret": "likewise",
    }
    presets = {"theory": {"bonus": "bernstein", "scale": 1.0}}
    probes = dict.fromkeys(("bonus", "delta", "episodes"), NEARLY_SAFE)
    smoke = Smoke("random-mdp", 40, {"alpha": 0.5}, task_options={"states": 3, "actions": 2, "horizon": 3})
    policy: TabularMixture

    def build(self, task: Task) -> None:
        config = self.config
        self.mdp = known_mdp(self.spec, self.slug)
        self.policy = TabularMixture(self.spec, components=2)
        self.model = TabularModel(self.mdp.horizon, self.mdp.states, self.mdp.actions)
        self.source = Rollouts(task, self.mdp.horizon, self.ledger)
        optimal, value = self.mdp.optimal()
        self.optimal_value = float(value[0, self.mdp.start])
        self.baseline = BASELINES[config.baseline](optimal, config.baseline_noise, self.generator)
        self.baseline_value = float(self.mdp.value(self.baseline)[0, self.mdp.start])
        self.threshold = (1 - config.alpha) * self.baseline_value
        self.log_term = log(self.baseline.numel() * config.episodes / config.delta)
        self.total_regret = 0.0
        self.plan()

    def choose(self, lower: Lower, optimistic: Tensor) -> tuple[Tensor, float, float]:
        """The policy [H, S, A] of the next episode, the probability that the baseline plays it instead, and how much
        of the baseline is in both: 0 none, 1 nothing else."""
        raise NotImplementedError  # abstract

    def plan(self) -> None:
        """Before the episode: bounds from all data, and from them the policy."""
        visits, config = self.model.visits, self.config
        bonus = BONUSES[config.bonus](visits, self.mdp.horizon, self.log_term)
        bounds = optimistic_plan(*self.model.estimate(), scaled(bonus, config.scale, visits))

        def lower(policies: Tensor) -> Tensor:
            return lower_values(bounds, policies)[:, self.mdp.start]

        policy, share, self.conservatism = self.choose(lower, bounds.policy)
        self.policy.set(torch.stack((policy, self.baseline)), visits.new_tensor([1 - share, share]))

    def diagnostics(self) -> dict[str, float]:
        """Exact, of the policy that is played next, coin included: for logging only."""
        value = self.policy.value(self.mdp)
        violation = float(value < self.threshold - ROUNDING)
        return {"value": value, "violation": violation, "regret": self.optimal_value - value}

    def update(self, batch: Batch) -> dict[str, Tensor]:
        metrics = self.diagnostics() | {"conservatism": self.conservatism}
        self.total_regret += metrics["regret"] * len(batch)
        metrics["total_regret"] = self.total_regret
        self.model.add(batch)
        self.plan()
        return {name: torch.tensor(value, dtype=torch.float64) for name, value in metrics.items()}

    def evaluate(self, task: Task, episodes: int = 10, *, greedy: bool = True) -> dict[str, float]:
        """Exact, of the policy as it is played, so `episodes` and `greedy` do not matter: `return` and diagnostics."""
        metrics = self.diagnostics()
        return {"return": metrics.pop("value"), **metrics}


class StepMix(Conservative):
    @dataclass(frozen=True)
    class Config(Conservative.Config):
        mixing: str = param("step", "paper", choices=tuple(MIXING), help="switch and none are for comparison")
        orientation: str = param("baseline-first", "assumed", choices=("baseline-first", "optimistic-first"))

    slug = "stepmix"
    probes = {"orientation": NEARLY_SAFE}
    no_limit = "its base, UCBVI, is its own `--mixing none`, which alpha = 1 equals; a test compares the two"

    def choose(self, lower: Lower, optimistic: Tensor) -> tuple[Tensor, float, float]:
        family = candidates(self.baseline, optimistic, self.config.orientation)
        policy, conservatism = MIXING[self.config.mixing](lower, family, self.threshold)
        return policy, 0.0, conservatism


class EpsMix(Conservative):
    @dataclass(frozen=True)
    class Config(Conservative.Config):
        baseline_bound: str = param("known", "assumed", choices=("known", "lower"), help="which V(baseline) counts")

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

    def choose(self, lower: Lower, optimistic: Tensor) -> tuple[Tensor, float, float]:
        below, baseline = lower(torch.stack((optimistic, self.baseline))).tolist()
        if self.config.baseline_bound == "known":
            baseline = self.baseline_value
        share = episode_share(below, baseline, self.threshold)
        return optimistic, share, share
