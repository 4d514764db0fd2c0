"""Policy search by resets, in a given list of policies: PSDP and CPI, with exact expectations in a table.

Both learn what they would from infinitely much data. With a class that holds what each of their steps looks for they
find its best policy; in any other they need not, however much data there is.

Resets are one distribution over states for every step: reset [H, S], float64, each row with sum 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from polopt.policies.listed import probabilities
from polopt.tasks.tabular import TabularMDP


def psdp(mdp: TabularMDP, tables: Tensor, reset: Tensor) -> Tensor:
    """Policy search by dynamic programming (Bagnell et al., 2003): the policy [H, S, A], one-hot.

    From the last step back, and with what was chosen for later steps, each step takes the actions of that policy of
    `tables` int64 [P, H, S] which is best on the reset distribution of the step; the first of equal ones.
    """
    value, chosen = mdp.reward.new_zeros(mdp.states), list[Tensor]()
    for step in reversed(range(mdp.horizon)):
        q = mdp.q(value, step)
        returns = q.gather(1, tables[:, step].T)  # [S, P]
        best = int((reset[step] @ returns).argmax())
        value = returns[:, best]
        chosen.append(tables[best, step])
    return probabilities(torch.stack(chosen[::-1]), mdp.actions)


def cpi(
    mdp: TabularMDP, tables: Tensor, reset: Tensor, *, alpha: float | None = None, eps: float = 0.0, rounds: int = 1000
) -> tuple[Tensor, list[float]]:
    """Conservative policy iteration (Kakade and Langford, 2002): the policy [H, S, A], and the advantage of each round.

    It begins with the first of `tables` int64 [P, H, S]. Each round takes the policy of the largest mean advantage in
    the states to which the present one comes from resets, to a uniform step; stops if that is at most `eps`; and mixes
    it in with the share `alpha`, in every decision anew. None: advantage / (4 H^2 R), which does no harm, with R the
    largest reward.
    """
    policy, advantages = probabilities(tables[0], mdp.actions), list[float]()
    for _ in range(rounds):
        value = mdp.value(policy)
        q = torch.stack([mdp.q(value[step + 1], step) for step in range(mdp.horizon)])
        visits, present = list[Tensor](), torch.zeros(mdp.states, dtype=torch.float64)
        for step in range(mdp.horizon):
            visits.append(present + reset[step] / mdp.horizon)
            present = torch.einsum("s,sa,sat->t", visits[-1], policy[step], mdp.transition[step])
        share = torch.stack(visits) / torch.stack(visits).sum()  # [H, S]
        gains = (q.gather(2, tables.permute(1, 2, 0)) - value[:-1].unsqueeze(-1)) * share.unsqueeze(-1)
        mean = gains.sum((0, 1))  # [P]
        best = int(mean.argmax())
        advantages.append(float(mean[best]))
        if advantages[-1] <= eps:
            break
        bound = 4 * mdp.horizon**2 * float(mdp.reward.abs().max())
        step_size = advantages[-1] / bound if alpha is None else alpha
        policy = torch.lerp(policy, probabilities(tables[best], mdp.actions), step_size)
    return policy, advantages
