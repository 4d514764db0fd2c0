"""A policy that zooms into each coordinate of the action, level by level, with a softmax of soft advantages at each."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from polopt.core.batch import Batch
from polopt.core.spec import Spec
from polopt.networks.build import FeedForward, join
from polopt.networks.encoders import Obs
from polopt.policies.base import Record, Scores
from polopt.policies.boxes import BoxActor
from polopt.policies.categorical import draw


def soft_advantage(raw: Tensor, temperature: float) -> Tensor:
    """A = f - temperature logsumexp(f / temperature) of scores f [..., bins]: exp(A / temperature) sums to 1."""
    return raw - temperature * (raw / temperature).logsumexp(-1, keepdim=True)


class ZoomingPolicy(BoxActor, Scores):
    """pi(a) = prod_t softmax(min_i A_t^i / sampling_temperature)[b_t], one token t for each level and coordinate.

    At every level each coordinate, one after the other, goes into one of `bins` equal parts of the interval that it is
    in; the first interval is [-1, 1], and the action is the center of the last ones. What a token reads beside the
    observation is its context: the centers of the intervals that all coordinates are in when it is chosen. With
    `conditioning` "levels" the coordinates of a level do not see each other's choices in it.

    `net` has `members` trunks, each with the scores of all tokens as outputs, of which a token reads its own. Reads
    `obs` and `action` [..., A]; records `action` and `log_prob`, the logarithm of the probability of a cell.
    """

    family = "zooming policy"
    unit = True
    net: FeedForward

    def __init__(
        self,
        spec: Spec,
        net: nn.Module,
        *,
        levels: int,
        bins: int,
        sampling_temperature: float,
        conditioning: str = "all",
    ) -> None:
        super().__init__(spec, net)
        self.levels = levels
        self.bins = bins
        self.sampling_temperature = sampling_temperature
        self.within = conditioning == "all"

    @property
    def tokens(self) -> int:
        return self.levels * self.size

    def cells(self, action: Tensor) -> Tensor:
        """int64 [levels + 1, ..., A]: in which of the bins^l intervals of level l = 0, 1, .. each coordinate is;
        actions beyond +-1 are in the outer ones."""
        count = self.bins**self.levels
        finest = (0.5 * (action + 1.0) * count).floor().clamp(0, count - 1).long()
        return torch.stack([finest // self.bins ** (self.levels - level) for level in range(self.levels + 1)])

    def centers(self, cells: Tensor) -> Tensor:
        """The centers of the intervals `cells` [levels + 1, ..., A] of each level, in the default dtype."""
        return torch.stack([self.center(cell, level) for level, cell in enumerate(cells)])

    def center(self, cell: Tensor, level: Tensor | int) -> Tensor:
        """The centers [..., A] of intervals of one level, or of one for each coordinate: `level` int64 [A]."""
        count = self.bins**level
        return (2.0 * cell.to(torch.get_default_dtype()) + 1.0) / count - 1.0

    def contexts(self, cells: Tensor) -> Tensor:
        """What each token reads, [levels * A, ..., A], where the action is in `cells` [levels + 1, ..., A]."""
        center = self.centers(cells)
        before = torch.zeros(self.size, self.size, dtype=torch.bool, device=cells.device)
        if self.within:
            before = torch.ones_like(before).tril(-1)
        lead = [1] * (cells.dim() - 2)
        chosen = before.reshape(self.size, *lead, self.size)
        return torch.cat([torch.where(chosen, center[level + 1], center[level]) for level in range(self.levels)])

    def scores(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Scores [members, ..., tokens, bins] of all parts that the recorded actions could have gone into, and the part
        int64 [..., tokens] that they went into, all tokens in one pass."""
        cells = self.cells(batch["action"])
        features = self.net.features(batch["obs"])
        asked = self.net.trunk(join(features, self.contexts(cells)))  # [members, tokens, ..., tokens * bins]
        own = asked.unflatten(-1, (self.tokens, self.bins)).diagonal(dim1=1, dim2=-2)
        return own.transpose(-1, -2), (cells[1:] % self.bins).movedim(0, -2).flatten(-2)

    def conditionals(self, raw: Tensor) -> Tensor:
        """Log-probabilities [..., bins] while acting, from scores [members, ..., bins]."""
        least = soft_advantage(raw, self.sampling_temperature).amin(0)
        return (least / self.sampling_temperature).log_softmax(-1)

    @torch.no_grad()
    def act(self, obs: Obs, carry: Record | None = None, *, greedy: bool = False) -> tuple[Record, Record]:
        """Greedy acting takes the most likely part at every token in turn."""
        features = self.net.features(obs)
        cell = torch.zeros(*features.shape[:-1], self.size, dtype=torch.int64, device=features.device)
        level = torch.zeros(self.size, dtype=torch.int64, device=features.device)
        log_prob = features.new_zeros(features.shape[:-1])
        for token in range(self.tokens):
            coordinate = token % self.size
            if coordinate == 0 or self.within:
                context = self.center(cell, level)
            raw = self.net.trunk(join(features, context)).unflatten(-1, (self.tokens, self.bins))[..., token, :]
            log_probs = self.conditionals(raw)
            part = log_probs.argmax(-1) if greedy else draw(log_probs)
            cell[..., coordinate] = cell[..., coordinate] * self.bins + part
            level[coordinate] += 1
            log_prob = log_prob + log_probs.gather(-1, part.unsqueeze(-1)).squeeze(-1)
        return {"action": self.center(cell, level), "log_prob": log_prob}, {}

    def log_prob(self, batch: Batch, noise: Batch | None = None) -> Tensor:
        """Log-probability [...] of the cell that each action lies in."""
        raw, part = self.scores(batch)
        return self.conditionals(raw).gather(-1, part.unsqueeze(-1)).squeeze(-1).sum(-1)

    def entropy(self, batch: Batch) -> Tensor:
        """An estimate, unbiased for actions that this policy drew: the sum over tokens of the entropy given the
        action's own parts before it."""
        log_probs = self.conditionals(self.scores(batch)[0])
        return -(log_probs.exp() * log_probs).sum(-1).sum(-1)
