"""What a policy is worth, estimated from what another one did: nothing is played.

    importance sampling    rho_t = prod_{i <= t} pi(a_i | s_i) / behavior(a_i | s_i)      Precup, Sutton, Singh 2000
        ordinary                mean over episodes of rho_T sum_t gamma^t r_t
        weighted                the same sum over the sum of rho_T: biased, with far less variance
        per-decision            mean over episodes of sum_t gamma^t rho_t r_t
        weighted-per-decision   sum_t gamma^t (sum of rho_t r_t) / (sum of rho_t)
        ncis                    sum of min(cap, ratio) r over sum of min(cap, ratio), over single decisions: the mean
                                reward of a decision, for logs of independent ones
                                (Gilotte et al. 2018, arXiv 1801.07030)
    fitted Q evaluation    Q(s, a) <- r + gamma (1 - terminated) Q(s', a'), a' ~ pi
                           (Le, Voloshin, Yue 2019, arXiv 1903.08738)
    model                  sum_t gamma^t r_t along rollouts of a learned model, or the mean of a Q over what they visit
                           (AM-Q: arXiv 2311.03351)

Intervals are 95 percent and over episodes (importance sampling, starts of rollouts) or over members that learned from
resampled episodes (fitted Q): they speak of the luck of the data, not of a model or a Q that is wrong off the data.
Two policies are compared on the same starts and draws (`paired_difference` of `model_returns`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from polopt.core.batch import Batch, same_shape
from polopt.core.errors import UsageError
from polopt.core.modules import device_of
from polopt.core.random import paired
from polopt.data.base import put
from polopt.data.datasets import returns_to_go
from polopt.evaluation.statistics import LEVEL, RESAMPLES, Interval, student_t
from polopt.losses.regression import regression
from polopt.models.dynamics import Dynamics
from polopt.networks import Network
from polopt.optim import Optimizer, frozen_copy, polyak_update
from polopt.policies.base import Actor, Density, require
from polopt.policies.gaussian import GaussianPolicy, gaussian_log_prob
from polopt.values.critics import QEnsemble
from polopt.values.targets import td_target

KINDS = ("ordinary", "weighted", "per-decision", "weighted-per-decision", "ncis")
BEHAVIOR = "behavior_log_prob"
"""The key of recorded decisions with `environment_log_prob` of the policy that took them."""

EDGE = 1e-6  # a Gaussian's action so near to a bound was clamped there


# Importance sampling


def environment_log_prob(policy: Any, batch: Batch) -> Tensor:
    """log of how likely a policy makes the environment get `batch["action"]` [B, ...], given in the environment's
    units: of continuous actions a density in these units, or, of a Gaussian policy at a bound, where it clamps, the
    probability of all that lies beyond. Policies of different units are so compared.

    Raises UsageError, one sentence, for policies without a density or with a memory, and for whole-numbered Boxes.
    """
    require(policy, Density, by="importance sampling")
    space = policy.spec.action
    if policy.recurrent:
        raise UsageError("importance sampling scores single decisions, which a recurrent policy cannot")
    if isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.integer):
        raise UsageError(f"importance sampling cannot score actions that are rounded: {policy.spec.name} has {space}")
    own = batch.clone(False).set("action", policy.own_action(batch["action"]))
    width = torch.log((policy.high - policy.low) / 2) if policy.unit else None
    if not isinstance(policy, GaussianPolicy):
        log_prob = policy.log_prob(own)
        return log_prob if width is None else log_prob - width.sum()
    mean, log_std = policy.moments(own)
    action, std = own["action"], log_std.exp()
    low, high = (-1.0, 1.0) if policy.unit else (policy.low, policy.high)
    inside = gaussian_log_prob(action, mean, log_std) - (0.0 if width is None else width)
    below = torch.special.log_ndtr((low - mean) / std)
    above = torch.special.log_ndtr((mean - high) / std)
    each = torch.where(action <= low + EDGE, below, torch.where(action >= high - EDGE, above, inside))
    return each.sum(-1)


def by_episode(first: Tensor, *columns: Tensor) -> tuple[Tensor, ...]:
    """Columns [B] of decisions in order, as [R, T], padded with 0; and which exist, bool [R, T], in front."""
    episode = first.long().cumsum(0) - 1
    starts = first.nonzero().flatten()
    time = torch.arange(len(first), device=first.device) - starts[episode]
    shape = (len(starts), int(time.max()) + 1)
    mask = torch.zeros(shape, dtype=torch.bool, device=first.device)
    mask[episode, time] = True
    rows = []
    for column in columns:
        row = column.new_zeros(shape)
        row[episode, time] = column
        rows.append(row)
    return mask, *rows


def importance_sampling(
    reward: Tensor,
    log_ratio: Tensor,
    mask: Tensor,
    *,
    discount: float = 1.0,
    cap: float | None = None,
    ncis_cap: float = 10.0,
    seed: int = 0,
) -> tuple[dict[str, Interval], dict[str, float]]:
    """The estimates of all `KINDS` from whole episodes, and the effective number of episodes (decisions for ncis).

    Args:
        reward, log_ratio: [R, T]; log_ratio is log pi(a|s) - log behavior(a|s) of each decision.
        mask: bool [R, T], the decisions that exist.
        cap: an upper bound of rho_t for all but ncis, which trades variance for bias; None: none.
        ncis_cap: that of ncis, for single ratios.

    The effective number is (sum w)^2 / sum w^2. Intervals are percentiles of bootstraps over episodes; an estimate
    whose weights are all 0 is NaN. Raises ValueError when shapes differ.
    """
    same_shape(reward=reward, log_ratio=log_ratio, mask=mask)
    exists = mask.double()
    ratio = torch.where(mask, log_ratio.double(), 0.0)
    running = ratio.cumsum(1)
    if cap is not None:
        running = running.clamp_max(math.log(cap))
    gains = discount ** torch.arange(reward.shape[1], dtype=torch.float64) * torch.where(mask, reward.double(), 0.0)
    rho, own = running.exp(), _scaled(running)
    single = ratio.exp().clamp_max(ncis_cap) * exists
    one = torch.ones_like(rho)
    sums = {  # sum_k (sum_r of the first) / (sum_r of the second), each [R, K]
        "ordinary": (rho[:, -1:] * gains.sum(1, keepdim=True), one[:, :1]),
        "weighted": (own[:, -1:] * gains.sum(1, keepdim=True), own[:, -1:]),
        "per-decision": (rho * gains, one),
        "weighted-per-decision": (own * gains, own),
        "ncis": ((single * reward.double()).sum(1, keepdim=True), single.sum(1, keepdim=True)),
    }
    weight = dict.fromkeys(KINDS, own[:, -1]) | {"ncis": single.flatten()}
    count = np.random.default_rng(seed).multinomial(len(reward), np.full(len(reward), 1 / len(reward)), RESAMPLES)
    draws = torch.from_numpy(count).double()
    estimates = {kind: _ratio_interval(*sums[kind], draws) for kind in KINDS}
    return estimates, {kind: float(weight[kind].sum() ** 2 / weight[kind].square().sum()) for kind in KINDS}


def _scaled(log_weight: Tensor) -> Tensor:
    """Weights [R, K] up to a factor of each column, which normalizing takes away: they cannot overflow."""
    return (log_weight - log_weight.amax(0).clamp_min(torch.finfo(log_weight.dtype).min)).exp()


def _ratio_interval(above: Tensor, below: Tensor, draws: Tensor) -> Interval:
    estimate = float((above.sum(0) / below.sum(0)).sum())
    if len(above) == 1 or not math.isfinite(estimate):
        return Interval(estimate, None, None, len(above))
    found = ((draws @ above) / (draws @ below)).sum(1).numpy()
    low, high = np.nanquantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(estimate, float(low), float(high), len(above))


def mean_interval(values: Tensor) -> Interval:
    """The mean of independent `values` [n] with the two-sided interval of Student's t."""
    n, center = len(values), float(values.double().mean())
    if n < 2:
        return Interval(center, None, None, n)
    half = student_t(n, 0.5 + LEVEL / 2) * float(values.double().std()) / math.sqrt(n)
    return Interval(center, center - half, center + half, n)


# Fitted Q evaluation


class FittedQ:
    """Q of a policy, fitted to recorded decisions by `members` critics, each on a resample of the episodes.

    Rewards are learned in units of the deviation of the returns. A time limit is bootstrapped through: what is
    estimated is the value of going on. The target critics follow as averages.

    Args:
        policy: without memory, or UsageError.
        data: decisions [B] in order: obs, action (as the policy acts), reward, next_obs, terminated, first.
        discount: below 1, unless all episodes terminate.
        greedy: of the policy's mode; else of its samples.
    """

    def __init__(
        self,
        policy: Actor,
        data: Batch,
        *,
        discount: float = 0.99,
        greedy: bool = True,
        members: int = 5,
        network: Network | None = None,
        batch_size: int = 256,
        lr: float = 1e-3,
        tau: float = 0.02,
        seed: int = 0,
    ) -> None:
        if policy.recurrent:
            raise UsageError(
                "fitted Q evaluation asks about single observations, which a recurrent policy cannot judge"
            )
        self.policy, self.data, self.discount, self.greedy = policy, data, discount, greedy
        self.batch_size, self.tau, self.device = batch_size, tau, device_of(policy)
        self.generator = torch.Generator().manual_seed(seed)
        with paired(seed):
            self.critic = QEnsemble(policy.spec, network or Network((64, 64), "relu"), members).to(self.device)
        self.target = frozen_copy(self.critic)
        self.optimizer = Optimizer(self.critic, lr=lr)
        self.scale = max(float(returns_to_go(data, discount).std()), 1e-6)
        self.episode = data["first"].long().cumsum(0) - 1
        self.counts = self._resample(int(self.episode[-1]) + 1)
        self.seed = seed

    def fit(self, updates: int) -> FittedQ:
        """So many steps; itself."""
        with paired(self.seed + 1):
            for _ in range(updates):
                index = torch.randint(len(self.data), (self.batch_size,), generator=self.generator)
                self._step(put(self.data[index], self.device), self.counts[:, self.episode[index]])
        return self

    def value(self, obs: Any, samples: int = 10) -> Interval:
        """The mean value of starts `obs` [B, ...]: the mean of the members, each over its own resample of the starts.
        The interval is that of their deviation; with one member there is none."""
        obs = put(obs, self.device)
        with torch.no_grad(), paired(self.seed + 2):
            drawn = [
                self.critic(obs, _act(self.policy, obs, self.greedy)) for _ in range(1 if self.greedy else samples)
            ]
        value = self.scale * torch.stack(drawn).mean(0).double().cpu()
        counts = self._resample(value.shape[1]).double()
        each = (counts * value).sum(1) / counts.sum(1)
        center, n = float(value.mean()), len(each)
        if n < 2:
            return Interval(center, None, None, n)
        half = student_t(n, 0.5 + LEVEL / 2) * float(each.std())
        return Interval(center, center - half, center + half, n)

    def _resample(self, count: int) -> Tensor:
        """How often each of `count` things is in the resample of each member [E, count]; one member has all."""
        if self.critic.members == 1:
            return torch.ones(1, count)
        index = torch.randint(count, (self.critic.members, count), generator=self.generator)
        return torch.zeros(self.critic.members, count).scatter_add_(1, index, torch.ones(index.shape))

    def _step(self, rows: Batch, counts: Tensor) -> None:
        with torch.no_grad():
            action = _act(self.policy, rows["next_obs"], self.greedy)
            after: Any = self.target(rows["next_obs"], action)
            reward = (rows["reward"] / self.scale).expand_as(after)
            target = td_target(reward, self.discount, rows["terminated"].expand_as(after), after)
        q: Any = self.critic(rows["obs"], rows["action"])
        self.optimizer.step(regression(q, target, counts.to(q) / len(rows)))
        polyak_update(self.target, self.critic, self.tau)


def _act(policy: Actor, obs: Any, greedy: bool) -> Tensor:
    """What a policy does, as it acts, after what the bounds of the environment make of it."""
    return policy.own_action(policy.env_action(policy.act(obs, greedy=greedy)[0]["action"]))


# Models


def model_returns(
    model: Dynamics,
    policy: Actor,
    start: Tensor,
    horizon: int,
    *,
    discount: float = 1.0,
    greedy: bool = True,
    noise: bool = True,
    seed: int = 0,
) -> Tensor:
    """Discounted return [B] of imagined episodes from `start` [B, ...], cut after `horizon` decisions.

    Start by start, the luck of two calls with one seed is the same, so that differences of policies are theirs.
    """
    with paired(seed):
        rolled = model.rollout(policy, start, horizon, greedy=greedy, noise=noise)
    factor = discount ** torch.arange(horizon, device=start.device)
    return (factor * torch.where(rolled["mask"], rolled["reward"], 0.0)).sum(1)


def model_q(
    model: Dynamics,
    policy: Actor,
    q: Callable[[Tensor, Tensor], Tensor],
    start: Tensor,
    horizon: int,
    *,
    greedy: bool = True,
    noise: bool = True,
    seed: int = 0,
) -> Tensor:
    """AM-Q, 0-d: the mean of `q(obs, action)` over all that imagined episodes visit. Luck as in `model_returns`."""
    with torch.no_grad(), paired(seed):
        rolled = model.rollout(policy, start, horizon, greedy=greedy, noise=noise)
        mask = rolled["mask"]
        return torch.where(mask, q(rolled["obs"], rolled["action"]), 0.0).sum() / mask.sum()
