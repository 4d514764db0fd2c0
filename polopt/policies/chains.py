"""Chains of scored steps: what policies share whose every step from noise to an action is a Gaussian decision."""

from __future__ import annotations

import torch
from torch import Tensor

from polopt.core.batch import Batch
from polopt.networks.encoders import Obs
from polopt.policies.base import Record, Scores
from polopt.policies.gaussian import HALF_LOG_TWO_PI, gaussian_log_prob
from polopt.policies.generative import GenerativePolicy


class ScoredChain(GenerativePolicy, Scores):
    """Beside a generative policy with `stds`: each of its steps is a Gaussian decision (DPPO, arXiv 2409.00588).

    When it explores (`act`, not greedy) no step has a standard deviation under `min_std`, without which a step that is
    certain would have no density, or above `max_std`, if that is set. `rsample` and greedy actions have no such bounds.
    Records `chain` [N, K + 1, A], from the noise to the action before it is clamped, and `log_prob` [N, K], of the
    steps; the first noise is not a decision. `log_prob` reads `obs` and `chain`.
    """

    min_std: float
    max_std: float | None

    @property
    def log_stds(self) -> Tensor:
        """Log standard deviation [K] of each step when exploring."""
        return self.stds.clamp(self.min_std, self.max_std).log()

    @torch.no_grad()
    def act(self, obs: Obs, carry: Record | None = None, *, greedy: bool = False) -> tuple[Record, Record]:
        if greedy:
            action = super().act(obs, carry, greedy=True)[0]["action"]
            return {"action": action}, {}
        features = self.net.features(obs)
        chain, scores = [self.draw(features)[..., 0, :]], []
        for step, log_std in enumerate(self.log_stds):
            mean = self.next_mean(features, chain[-1], step)
            chain.append(mean + log_std.exp() * torch.randn_like(mean))
            scores.append(gaussian_log_prob(chain[-1], mean, log_std).sum(-1))
        record = {"action": chain[-1].clamp(-1.0, 1.0), "chain": torch.stack(chain, -2)}
        return {**record, "log_prob": torch.stack(scores, -1)}, {}

    def log_prob(self, batch: Batch, noise: Batch | None = None) -> Tensor:
        """Log-density [..., K] of each recorded step, given the one before; with `noise` a batch that has `step`, int64
        [..., n], of these steps alone: [..., n]."""
        features = self.net.features(batch["obs"])
        if noise is not None and "step" in noise.keys():
            step = noise["step"]
            before, after = (_taken(batch["chain"], place) for place in (step, step + 1))
            mean = self.next_mean(features.unsqueeze(-2), before, step)
            return gaussian_log_prob(after, mean, self.log_stds[step].unsqueeze(-1)).sum(-1)
        chain = batch["chain"].unbind(-2)
        scores = [
            gaussian_log_prob(after, self.next_mean(features, before, step), log_std).sum(-1)
            for step, (before, after, log_std) in enumerate(zip(chain, chain[1:], self.log_stds))
        ]
        return torch.stack(scores, -1)

    def entropy(self, batch: Batch) -> Tensor:
        """Entropy [..., K] of each step, a Gaussian: an estimate, because that of the action alone has no closed form.
        It is a constant, without a gradient."""
        return (self.size * (self.log_stds + 0.5 + HALF_LOG_TWO_PI)).expand(*batch.batch_size, self.steps)


def _taken(chain: Tensor, place: Tensor) -> Tensor:
    """chain [..., K + 1, A] at places [..., n]: [..., n, A]."""
    return chain.gather(-2, place.unsqueeze(-1).expand(*place.shape, chain.shape[-1]))
