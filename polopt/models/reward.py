"""Rewards that are learned from comparisons: Bradley-Terry models of steps, segments and texts.

    P(y > y') = sigmoid(R(y) - R(y'))                 R of a segment: the sum of r(s, a) over its decisions
    loss        - E[ label log P(y > y') + (1 - label) log P(y' > y) ]

Bradley and Terry 1952; segments of behavior: Christiano et al. 2017, arXiv 1706.03741; texts, read at their last token:
Stiennon et al. 2020, arXiv 2009.01325.

Comparisons are batches [B] with two sides, "chosen" and "rejected", as `polopt.data.preferences` makes and serves them:
segments [B, T] with a `mask`, or rows of tokens. Where it is not sure which of the two is better there is a `label` [B]
in [0, 1], the probability or the share of votes that it is the first; without one it is 1.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from polopt.core.batch import Batch, same_shape, weighted_mean
from polopt.core.spec import Spec
from polopt.networks import Network
from polopt.networks.transformer import Transformer, causal_mask, padding_mask
from polopt.values.critics import QEnsemble


class Compares(Protocol):
    """What `comparison_loss` asks of a model: R [E, B] of one side of the comparisons, of each of E members."""

    def returns(self, rows: Batch) -> Tensor: ...


class StepReward(nn.Module):
    """r(s, a) of `members` models with trunks of their own, [E, ...]; what it gives a policy is their mean.

    Args:
        network: feed-forward. bound: rewards are within +-bound, by tanh; None leaves them free.

    Raises UsageError for other actions than those of a Box or a discrete space and for recurrent networks.
    """

    def __init__(self, spec: Spec, network: Network, members: int = 1, bound: float | None = None) -> None:
        super().__init__()
        self.ensemble = QEnsemble(spec, network, members)
        self.bound = bound

    def forward(self, batch: Batch) -> Tensor:
        """Of every decision of a batch, by its `obs` and `action`: [E, ...]."""
        reward = self.ensemble(batch["obs"], batch["action"])
        assert isinstance(reward, Tensor)  # the head is a scalar
        return reward if self.bound is None else self.bound * torch.tanh(reward / self.bound)

    def returns(self, rows: Batch) -> Tensor:
        """R [E, B] of segments [B, T]: the sum over the decisions that their `mask` says exist, all without one."""
        reward, mask = self(rows), rows.get("mask", None)
        return (reward if mask is None else torch.where(mask, reward, 0.0)).sum(-1)

    @torch.no_grad()
    def reward(self, batch: Batch) -> Tensor:
        """The mean of the members [...], for a policy to learn from; 0 where a `mask` is False."""
        reward, mask = self(batch).mean(0), batch.get("mask", None)
        return reward if mask is None else torch.where(mask, reward, 0.0)


class TextReward(nn.Module):
    """R of prompt and completion, read by a small transformer of its own at their last token; one member.

    Args:
        vocabulary: number of different tokens. width, depth, heads: of the transformer.
    """

    def __init__(self, vocabulary: int, width: int = 64, depth: int = 2, heads: int = 4) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.transformer = Transformer(width, depth, heads, rotary=True)
        self.head = nn.Linear(width, 1)

    def forward(self, rows: Batch) -> Tensor:
        """[B] of rows of tokens: `prompt`, `prompt_mask` [B, P], `completion`, `attention` [B, T]."""
        tokens = torch.cat([rows["prompt"], rows["completion"]], 1)
        there = torch.cat([rows["prompt_mask"], rows["attention"]], 1)
        mask = causal_mask(torch.zeros_like(there)) & padding_mask(there)
        place = torch.arange(there.shape[1], device=there.device)
        last = torch.where(there, place, 0).amax(1)
        read = self.transformer(self.embedding(tokens), mask)[torch.arange(len(last), device=last.device), last]
        return self.head(read).squeeze(-1)

    def returns(self, rows: Batch) -> Tensor:
        """[1, B], as `forward`."""
        return self(rows).unsqueeze(0)

    @torch.no_grad()
    def reward(self, rows: Batch) -> Tensor:
        """[B], for a policy to learn from."""
        return self(rows)


def surprise(model: Compares, batch: Batch) -> tuple[Tensor, Tensor]:
    """Minus the log-likelihood of the label of each comparison, and the margin R(y) - R(y'), both [E, B].

    Raises ValueError for labels of another shape.
    """
    margin = model.returns(batch["chosen"]) - model.returns(batch["rejected"])
    label = batch.get("label", None)
    label = torch.ones_like(margin[0]) if label is None else label.to(margin.dtype)
    same_shape(label=label, margin=margin[0])
    return functional.binary_cross_entropy_with_logits(margin, label.expand_as(margin), reduction="none"), margin


def comparison_loss(model: Compares, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of comparisons, summed over members, each of which learns by itself, and weighted sums that describe it.

    Reads `weight` [B] beside the sides. Metrics: `reward_loss`, the mean over members, and `reward_accuracy`, the share
    of comparisons that their mean R decides as the label does. Raises ValueError for labels of another shape.
    """
    weight, (each, margin) = batch["weight"], surprise(model, batch)
    same_shape(weight=weight, margin=margin[0])
    first = batch.get("label", torch.ones_like(weight)) > 0.5
    right = ((margin.mean(0) > 0) == first).to(weight.dtype)
    loss = (weight * each).sum()
    return loss, {"reward_loss": loss / len(margin), "reward_accuracy": weighted_mean(right, weight)}


def draw_labels(margin: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Answers of a simulated human, 1 with probability sigmoid(margin), else 0: shaped like R(y) - R(y')."""
    probability = margin.detach().sigmoid().cpu()
    return torch.bernoulli(probability, generator=generator).to(margin)
