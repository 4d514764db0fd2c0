"""Tables in numbers: many models, rewards or policies at once, discounted problems, worst cases, all paths.

Leading dimensions *B are whatever stands side by side, seeds, models, the parts of a vector reward [m, ...], and
broadcast: transitions [*B, S, A, S], rewards and policies (probabilities) [*B, S, A], with a step [H] before the state
where the horizon is finite. Value and policy iteration: Puterman 1994, chapters 4 and 6. Robust ones: Iyengar 2005,
"Robust dynamic programming".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor

from polopt.core.batch import Batch
from polopt.core.errors import UsageError
from polopt.tasks.tabular import NamedMDP, TabularMDP, random_mdp

Expected = Callable[[Tensor], Tensor]
"""What V [*B, S] of the successor is worth to each pair, [*B, S, A]."""


def expectation(transition: Tensor) -> Expected:
    """The mean of V under transitions [*B, S, A, S]."""
    return lambda value: (transition @ value[..., None, :, None]).squeeze(-1)


def one_hot(q: Tensor) -> Tensor:
    """The greedy policy [*B, S, A] of q; the first of equal actions."""
    return torch.zeros_like(q).scatter_(-1, q.argmax(-1, keepdim=True), 1.0)


def finite_value(transition: Tensor, reward: Tensor, policy: Tensor, discount: float = 1.0) -> Tensor:
    """V [*B, H + 1, S] of policies [*B, H, S, A]; differentiable in everything.

    `discount` counts from each step: V_h = r_h + discount E[V_{h+1}].
    """
    batch = torch.broadcast_shapes(transition.shape[:-4], reward.shape[:-3], policy.shape[:-3])
    value = [policy.new_zeros(*batch, policy.shape[-2])]
    for h in reversed(range(policy.shape[-3])):
        q = reward[..., h, :, :] + discount * expectation(transition[..., h, :, :, :])(value[-1])
        value.append((policy[..., h, :, :] * q).sum(-1))
    return torch.stack(value[::-1], -2)


def finite_optimal(transition: Tensor, reward: Tensor, discount: float = 1.0) -> tuple[Tensor, Tensor]:
    """Optimal policies [*B, H, S, A], one-hot, and their V [*B, H + 1, S]."""
    batch = torch.broadcast_shapes(transition.shape[:-4], reward.shape[:-3])
    value, policy = [reward.new_zeros(*batch, reward.shape[-2])], list[Tensor]()
    for h in reversed(range(reward.shape[-3])):
        q = reward[..., h, :, :] + discount * expectation(transition[..., h, :, :, :])(value[-1])
        policy.append(one_hot(q))
        value.append(q.amax(-1))
    return torch.stack(policy[::-1], -3), torch.stack(value[::-1], -2)


def discounted_value(transition: Tensor, reward: Tensor, policy: Tensor, discount: float) -> Tensor:
    """V [*B, S] of stationary policies [*B, S, A], for ever; differentiable. Raises UsageError unless discount < 1."""
    _check(discount)
    step = (policy.unsqueeze(-1) * transition).sum(-2)
    system = torch.eye(step.shape[-1], dtype=step.dtype) - discount * step
    right = (policy * reward).sum(-1, keepdim=True)
    batch = torch.broadcast_shapes(system.shape[:-2], right.shape[:-2])
    return torch.linalg.solve(system.expand(*batch, *system.shape[-2:]), right.expand(*batch, -1, 1)).squeeze(-1)


def discounted_optimal(transition: Tensor, reward: Tensor, discount: float) -> tuple[Tensor, Tensor]:
    """Optimal stationary policies [*B, S, A], one-hot, and their V [*B, S], by policy iteration: exact."""
    _check(discount)
    reward = reward.expand(*torch.broadcast_shapes(reward.shape, transition.shape[:-1]))
    policy = one_hot(reward)
    while True:
        value = discounted_value(transition, reward, policy, discount)
        q = reward + discount * expectation(transition)(value)
        gain = q.amax(-1) - (policy * q).sum(-1)
        better = gain > 1e-12 * (1 + value.abs())  # an action that is only as good would go round in circles
        if not better.any():
            return policy, value
        policy = torch.where(better.unsqueeze(-1), one_hot(q), policy)


def discounted_occupancy(transition: Tensor, policy: Tensor, start: Tensor, discount: float) -> Tensor:
    """(1 - discount) sum_t discount^t Pr(s_t = s) [*B, S], from starts with probabilities [*B, S]; differentiable."""
    _check(discount)
    step = (policy.unsqueeze(-1) * transition).sum(-2)
    system = torch.eye(step.shape[-1], dtype=step.dtype) - discount * step.mT
    batch = torch.broadcast_shapes(system.shape[:-2], start.shape[:-1])
    right = (1 - discount) * start.unsqueeze(-1).expand(*batch, -1, 1)
    return torch.linalg.solve(system.expand(*batch, *system.shape[-2:]), right).squeeze(-1)


def robust_optimal(
    reward: Tensor, expected: Expected, discount: float, *, tolerance: float = 1e-10
) -> tuple[Tensor, Tensor]:
    """The policy [*B, S, A] with the best worst case, one-hot, and that V [*B, S], within `tolerance` of it.

        V(s) = max_a reward(s, a) + discount expected(V)(s, a)

    The worst case is chosen anew for every pair (a rectangular set): `expected` is `worst_model(transitions)`, say, or
    `lambda V: worst_case(transition, V[..., None, None, :], radius)`.
    """
    _check(discount)
    value = reward.amax(-1) * 0
    while True:
        q = reward + discount * expected(value)
        gap, value = (q.amax(-1) - value).abs().max(), q.amax(-1)
        if gap * discount <= tolerance * (1 - discount):
            return one_hot(q), value


def worst_model(transitions: Tensor) -> Expected:
    """The least mean of V under any of M models [M, *B, S, A, S], for each pair by itself."""
    expected = expectation(transitions)
    return lambda value: expected(value).amin(0)


def worst_case(probability: Tensor, value: Tensor, size: float, ball: str = "tv") -> Tensor:
    """The least mean [*B] of V [*B, S] under distributions near `probability` [*B, S]; exact.

    "tv": those within total variation `size`, half of the L1 distance. With a penalty in place of a bound, the least of
    mean + size * distance: "tv-penalty", "kl-penalty", "chi2-penalty", of KL(q || p) and sum (q - p)^2 / p. Raises
    UsageError for other balls, and for a size below 0 or a penalty of 0.
    """
    if ball not in BALLS:
        raise UsageError(f"there is no ball '{ball}' of distributions: choose from {', '.join(BALLS)}")
    if size < 0 or (size == 0 and ball != "tv"):
        raise UsageError(f"a ball '{ball}' cannot have the size {size}")
    probability, value = torch.broadcast_tensors(probability, value)
    return BALLS[ball](probability, value, size)


def _tv(p: Tensor, value: Tensor, size: float) -> Tensor:
    """max over levels of E[min(V, level)] - size (level - min V): mass goes from the best states to the worst one."""
    capped = torch.minimum(value.unsqueeze(-2), value.unsqueeze(-1))  # [*B, level, S]; the best level is a value
    lowest = value.amin(-1, keepdim=True)
    return ((p.unsqueeze(-2) * capped).sum(-1) - size * (value - lowest)).amax(-1)


def _tv_penalty(p: Tensor, value: Tensor, size: float) -> Tensor:
    return (p * torch.minimum(value, value.amin(-1, keepdim=True) + size)).sum(-1)


def _kl_penalty(p: Tensor, value: Tensor, size: float) -> Tensor:
    return -size * torch.logsumexp(p.log() - value / size, -1)


def _chi2_penalty(p: Tensor, value: Tensor, size: float) -> Tensor:
    """max over levels of E[min(V, level)] - Var(min(V, level)) / (4 size), a parabola between neighboring values."""
    value, order = value.sort(-1)
    p = p.gather(-1, order)
    below, above = (p * value).cumsum(-1), (1 - p.cumsum(-1)).clamp_min(0)  # of the values up to each, beyond it
    after = torch.cat([value[..., 1:], value[..., -1:]], -1)
    top = (2 * size + below) / (1 - above).clamp_min(torch.finfo(p.dtype).tiny)
    level = torch.minimum(torch.maximum(top, value), after)
    mean = below + above * level
    square = (p * value.square()).cumsum(-1) + above * level.square()
    return (mean - (square - mean.square()) / (4 * size)).amax(-1)


BALLS = {"tv": _tv, "tv-penalty": _tv_penalty, "kl-penalty": _kl_penalty, "chi2-penalty": _chi2_penalty}


def _check(discount: float) -> None:
    if not 0 <= discount < 1:
        raise UsageError(f"a problem without an end needs a discount of at least 0 and below 1, not {discount}")


@dataclass(frozen=True)
class Paths:
    """Every path of an episode: states and actions [K, H], and the probability [K] of the states given the actions."""

    state: Tensor
    action: Tensor
    chance: Tensor

    def log_prob(self, policy: Tensor) -> Tensor:
        """log of the policy's [*B, H, S, A] share in the probability of each decision, [*B, K, H]; differentiable."""
        return self._at(policy.log())

    def probability(self, policy: Tensor) -> Tensor:
        """Of each path under policies [*B, H, S, A]: [*B, K], which sum to 1; differentiable."""
        return self.chance.to(policy) * self._at(policy).prod(-1)

    def returns(self, reward: Tensor, discount: float = 1.0) -> Tensor:
        """sum_h discount^h reward_h [*B, K] of rewards [*B, H, S, A]; differentiable."""
        return (self._at(reward) * discount ** torch.arange(self.state.shape[-1])).sum(-1)

    def episodes(self, reward: Tensor) -> Batch:
        """The paths as a batch [K, H] of episodes with rewards from a table [H, S, A]: obs, action, reward, mask."""
        shape = self.state.shape
        step = torch.arange(shape[1]).expand(shape)
        obs = TensorDict({"state": self.state, "step": step}, shape)
        mask = torch.ones(shape, dtype=torch.bool)
        return TensorDict({"obs": obs, "action": self.action, "reward": self._at(reward), "mask": mask}, shape)

    def _at(self, table: Tensor) -> Tensor:
        return table[..., torch.arange(self.state.shape[-1]), self.state, self.action]


def paths(mdp: TabularMDP, most: int = 1_000_000) -> Paths:
    """All paths of a small MDP that have a chance above 0, for exact expectations of anything that a path decides.

    Raises UsageError when there are more than `most`.
    """
    state, action = torch.full((1, 1), mdp.start), torch.zeros(1, 0, dtype=torch.int64)
    chance = torch.ones(1, dtype=torch.float64)
    for h in range(mdp.horizon):
        if len(chance) * mdp.actions > most:
            raise UsageError(f"this MDP has more than {most} paths: they cannot all be listed")
        row, choice = (
            part.flatten()
            for part in torch.meshgrid(torch.arange(len(chance)), torch.arange(mdp.actions), indexing="ij")
        )
        state, chance = state[row], chance[row]
        action = torch.cat([action[row], choice.unsqueeze(-1)], -1)
        if h + 1 < mdp.horizon:
            onward = chance.unsqueeze(-1) * mdp.transition[h, state[:, -1], choice]  # [K, S]
            row, after = onward.nonzero().T
            state, action = torch.cat([state[row], after.unsqueeze(-1)], -1), action[row]
            chance = onward[row, after]
    return Paths(state, action, chance)


class LinearMDP(TabularMDP):
    """Transitions phi(s, a)^T factors and rewards phi(s, a)^T weights, at every step.

    Attributes, float64: `features` [S, A, d], at least 0 and summing to 1; `factors` [d, S], distributions over
    successors; `weights` [d]. Raises UsageError for features and factors that are no distributions.
    """

    def __init__(self, features: Any, factors: Any, weights: Any, horizon: int, start: int = 0) -> None:
        parts = (torch.as_tensor(part, dtype=torch.float64) for part in (features, factors, weights))
        self.features, self.factors, self.weights = parts
        for name, part in (("features of each pair", self.features), ("factors", self.factors)):
            if (part < 0).any() or not torch.allclose(part.sum(-1), part.new_ones(()), atol=1e-9):
                raise UsageError(f"the {name} of a linear MDP must be distributions: at least 0 and adding up to 1")
        super().__init__(self.features @ self.factors, self.features @ self.weights, horizon, start)


def features_of(mdp: TabularMDP) -> Tensor:
    """phi [S, A, d]: those of a linear MDP; of others one for each pair, d = S A."""
    pairs = mdp.states * mdp.actions
    eye = torch.eye(pairs, dtype=torch.float64).reshape(mdp.states, mdp.actions, pairs)
    return mdp.features if isinstance(mdp, LinearMDP) else eye


def ended(mdp: TabularMDP) -> Tensor:
    """bool [S]: the states that no action leaves or is paid in."""
    stays = mdp.transition.diagonal(dim1=1, dim2=3)  # [H, A, S]
    return (stays > 1 - 1e-9).all(0).all(0) & (mdp.reward == 0).all(-1).all(0)


def off_dynamics(shift: float = 0.0, horizon: int = 3, strength: float = 0.125) -> LinearMDP:
    """A safe path beside a risky jump, after the off-dynamics MDP of Liu and Xu 2024 (arXiv 2402.15399).

    In the first three of five states the 16 actions {-1, 1}^4 divide their weight between two factors: the safe one
    pays 0.5 and goes on to the next of the three, with weight 0.5 - `strength` sum(action); the risky one pays nothing
    and leads to the goal, the last state, that pays 1 at every step, but with probability `shift` to the fourth, that
    pays nothing for ever.
    """
    actions = np.array(np.meshgrid(*[[-1, 1]] * 4, indexing="ij")).reshape(4, 16).sum(0)
    risky = 0.5 + strength * actions
    features = np.zeros((5, 16, 6))  # safe in each of the three states, risky, failed, arrived
    for state in range(3):
        features[state, :, state], features[state, :, 3] = 1 - risky, risky
    features[3, :, 4] = features[4, :, 5] = 1.0
    factors = np.eye(5)[[1, 2, 2, 4, 3, 4]]
    factors[3] = [0, 0, 0, shift, 1 - shift]
    return LinearMDP(features, factors, [0.5, 0.5, 0.5, 0.0, 0.0, 1.0], horizon)


def exit_mdp(
    states: int = 20, actions: int = 4, horizon: int = 5, mdp_seed: int = 0, concentration: float = 0.3
) -> TabularMDP:
    """A random MDP that one may leave: action 0 goes, for nothing, to a further state, the last, in which all ends.

    The others have transitions ~ Dirichlet(concentration) among the other states and rewards uniform in [0, 1], the
    same at every step. What action 0 is worth is so known to be 0 everywhere, which identifies rewards from choices.
    """
    inner = random_mdp(states, actions, horizon, mdp_seed, concentration, reward_rate=1.0, stationary=True)
    transition, reward = np.zeros((states + 1, actions, states + 1)), np.zeros((states + 1, actions))
    transition[:states, :, :states], reward[:states] = inner.transition[0], inner.reward[0]
    transition[:, 0], reward[:, 0] = 0.0, 0.0
    transition[:, 0, -1] = transition[-1, :, -1] = 1.0
    return TabularMDP(transition, reward, horizon)


class OffDynamics(NamedMDP):
    model = staticmethod(off_dynamics)


class ExitMDP(NamedMDP):
    model = staticmethod(exit_mdp)
