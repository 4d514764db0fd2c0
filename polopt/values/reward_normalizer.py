"""Running statistics that put rewards and critic errors on a common scale."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from polopt.core.batch import same_shape
from polopt.values.returns import recursion, same_end


class RewardNormalizer(nn.Module):
    """Divides rewards by the running standard deviation of the discounted return, as Gymnasium's NormalizeReward.

    For each of `num` environment rows R_t = reward_t + discount * R_{t-1}, from 0 in every new episode (terminated or
    truncated before). The variance is taken over all R seen so far, of all rows, including the current column; the
    result is clipped to +-`clip`. Batches keep raw rewards: call this once per window, in `update`.

    With `objectives` rewards are [m, N, T], flags still [N, T], and every objective has statistics of its own.

    One call on [N, T] gives what T calls on [N, 1] give. Statistics are float64 buffers, and start as in Gymnasium:
    mean 0 and variance 1 with the weight of 1e-4 samples.
    """

    count: Tensor
    mean: Tensor
    squares: Tensor
    carried: Tensor

    def __init__(
        self,
        num: int,
        discount: float = 0.99,
        clip: float = 10.0,
        epsilon: float = 1e-8,
        objectives: int | None = None,
    ) -> None:
        super().__init__()
        front = () if objectives is None else (objectives,)
        self.discount, self.clip, self.epsilon = discount, clip, epsilon
        self.register_buffer("count", torch.tensor(1e-4, dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(front, dtype=torch.float64))
        self.register_buffer("squares", torch.full(front, 1e-4, dtype=torch.float64))  # sum of squares around the mean
        self.register_buffer("carried", torch.zeros(*front, num, dtype=torch.float64))  # discount * R, 0 after an end

    @property
    def std(self) -> Tensor:
        """Current standard deviation of the discounted return, 0-d (or [m]), in units of the reward."""
        return (self.squares / self.count).sqrt()

    @torch.no_grad()
    def forward(self, reward: Tensor, terminated: Tensor, truncated: Tensor, mask: Tensor | None = None) -> Tensor:
        """Normalized rewards of the next window, all [N, T] (with objectives [m, N, T]); the statistics move on.
        ValueError when shapes differ."""
        same_end(reward, terminated=terminated, truncated=truncated)
        same_shape(rows_of_reward=reward[..., 0], rows_of_normalizer=self.carried)
        raw = reward.double()
        exists = torch.ones_like(terminated) if mask is None else mask

        # carried_t = k_t (reward_t + carried_{t-1}) with k_t = discount, or 0 at an end; masked columns carry over.
        factor = torch.where(exists, self.discount * (~(terminated | truncated)).double(), 1.0).expand_as(raw)
        term = torch.where(exists, factor * raw, 0.0)
        term[..., 0] += factor[..., 0] * self.carried
        carried = recursion(term.flip(-1), factor.flip(-1)).flip(-1)
        returns = raw + torch.cat([self.carried.unsqueeze(-1), carried[..., :-1]], -1)

        # Prefix sums of powers around the old mean: the same numbers as one update per column, and no cancellation.
        deviation = torch.where(exists, returns - self.mean[..., None, None], 0.0)
        count = self.count + exists.sum(-2).cumsum(-1)  # [T]
        first = deviation.sum(-2).cumsum(-1)  # [T], of each objective
        squares = self.squares.unsqueeze(-1) + deviation.square().sum(-2).cumsum(-1) - first.square() / count
        scale = (squares / count + self.epsilon).sqrt()

        self.carried.copy_(carried[..., -1])
        self.mean.add_(first[..., -1] / count[-1])
        self.count.copy_(count[-1])
        self.squares.copy_(squares[..., -1])
        return (raw / scale.unsqueeze(-2)).clamp(-self.clip, self.clip).to(reward.dtype)


class RunningMean(nn.Module):
    """Exponential mean, m <- (1 - rate) m + rate x, equal to x at the first update."""

    value: Tensor
    started: Tensor

    def __init__(self, rate: float, shape: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.rate = rate
        self.register_buffer("value", torch.zeros(shape))
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))

    @torch.no_grad()
    def update(self, x: Tensor) -> Tensor:
        """Takes in `x`, shaped like the mean, and returns a copy of the new mean."""
        same_shape(x=x, mean=self.value)
        self.value.copy_(torch.where(self.started, torch.lerp(self.value, x.detach().to(self.value), self.rate), x))
        self.started.fill_(True)
        return self.value.clone()
