"""The empirical model of a finite-horizon tabular MDP: counts, and the frequencies that they give."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from polopt.core.batch import Batch


class TabularModel(nn.Module):
    """Counts of everything that was seen in a tabular task, step by step; they are buffers, so checkpoints have them.

    Buffers, float64: `visits` [H, S, A], `successors` [H, S, A, S] and `rewards` [H, S, A], the sum of rewards.
    """

    visits: Tensor
    successors: Tensor
    rewards: Tensor

    def __init__(self, horizon: int, states: int, actions: int) -> None:
        super().__init__()
        shape = (horizon, states, actions)
        self.register_buffer("visits", torch.zeros(shape, dtype=torch.float64))
        self.register_buffer("successors", torch.zeros((*shape, states), dtype=torch.float64))
        self.register_buffer("rewards", torch.zeros(shape, dtype=torch.float64))

    def add(self, batch: Batch) -> None:
        """Counts the transitions of a window; reads `obs`, `final_obs` ("state", "step"), `action` and `reward`."""
        where = (batch["obs", "step"], batch["obs", "state"], batch["action"])
        one = self.visits.new_ones(())
        self.visits.index_put_(where, one, accumulate=True)
        self.successors.index_put_((*where, batch["final_obs", "state"]), one, accumulate=True)
        self.rewards.index_put_(where, batch["reward"].to(self.rewards.dtype), accumulate=True)

    def estimate(self) -> tuple[Tensor, Tensor]:
        """Mean rewards [H, S, A] and frequencies of successors [H, S, A, S]; both are 0 where nothing was seen."""
        visits = self.visits.clamp_min(1.0)
        return self.rewards / visits, self.successors / visits.unsqueeze(-1)
