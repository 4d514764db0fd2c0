"""A causal language model as a policy: an act is one turn, a decision is one token.

The density of a token is that of the model's distribution divided by `temperature` and cut to the `top_k` likeliest
tokens and then to the smallest set of mass `top_p`, renormalized, over the ids that the tokenizer knows. The recorded
token always belongs to the set, so that rounding never gives it density zero. Sampling and scoring share this
definition, the positions (which count real tokens only), and evaluation mode: no dropout in either pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from polopt.core import ranks, shards, signals
from polopt.core.batch import Batch, pieces
from polopt.core.errors import UsageError
from polopt.core.modules import device_of
from polopt.core.spec import Spec
from polopt.data.tokenizing import Prompt, pack_left
from polopt.policies.base import Density, Record, same_family
from polopt.policies.causal_passes import CausalPasses
from polopt.policies.causal_scoring import joined_per_token, per_token
from polopt.policies.luck import Luck, wide
from polopt.policies.shapes import blocks_of
from polopt.policies.text import TextPolicy, no_conversation

Sampler = Callable[[Tensor, Tensor, Tensor, bool], tuple[Tensor, Tensor, Tensor, Tensor]]

SCORED = 1 << 16  # tokens in one forward pass while acting


class CausalLMPolicy(TextPolicy, Density):
    """A `TextPolicy` that writes from left to right, so that every token has a density.

    The record also holds `log_prob` and `engine_log_prob` [N, T]; `action` is padded on the right, and nothing stands
    behind the end. A conversation that has outgrown the context gets an empty turn that has not ended.

    Batches [B] are read by `prompt`, `prompt_mask` [B, P], `completion`, `attention` (real) and `mask` (to be scored)
    [B, T]. Results are [B, T] and zero where `mask` is False.

    Attributes:
        passes: how the model is run.
        compaction: the batch that writes shrinks when at most this share of its rows still does.
    """

    def __init__(self, spec: Spec, config: Any) -> None:
        super().__init__(spec, config)
        self.compaction = 0.75
        probe = torch.tensor([self.tokens.eos, *self.tokens.ids[:3]], device=device_of(self))
        self.passes = CausalPasses(self.bare, probe, config.gradient_checkpointing)

    def compile(self, **options: Any) -> None:
        """From here on the layers of the model are compiled: for passes of a batch, and of the next tokens.

        What is around them stays as it is: it is little, and its sizes depend on the data. `options` go to
        `torch.compile`.
        """
        self.passes.compile(**options)

    def shard(self, device: torch.device) -> dict[Tensor, Tensor]:
        """Divides the parameters among the processes, which then are on `device`; which replaces which. Raises
        UsageError for models of which a row is a pass of its own."""
        if not self.passes.headed:
            raise UsageError("--shard: the logits of this model are not its output embeddings applied to its states")
        return shards.divide(self.bare, blocks_of(self.bare), device)

    # Acting

    @torch.no_grad()
    def act(self, obs: Sequence[Prompt], carry: Record | None = None, *, greedy: bool = False) -> tuple[Record, Record]:
        return self.act_with(self.generate, obs, carry, greedy=greedy)

    @torch.no_grad()
    def act_with(
        self, sampler: Sampler, obs: Sequence[Prompt], carry: Record | None = None, *, greedy: bool = False
    ) -> tuple[Record, Record]:
        """Acts, with the tokens drawn by `sampler`, which has the signature of `generate`."""
        before = no_conversation(len(obs), device_of(self)) if carry is None else carry
        prompt, real = self.new_tokens(obs, before)
        room = self.context - before["attention"].sum(1) - real.sum(1)
        if (room < 1).any():  # rows that have no room for an answer do not get the question either
            real = real & (room >= 1).unsqueeze(1)
        tokens, attention = pack_left(
            torch.cat((before["tokens"], prompt), 1), torch.cat((before["attention"].bool(), real), 1)
        )
        action, mask, engine, ended = sampler(tokens, attention, room.clamp(0, self.config.max_tokens), greedy)
        record = {
            "prompt": prompt * real,
            "prompt_mask": real,
            "action": action,
            "mask": mask,
            "log_prob": engine,
            "engine_log_prob": engine,
            "ended": ended,
        }
        if self.config.log_probs == "trainer":
            record["log_prob"] = self._score(tokens, attention, action, mask)
        after = pack_left(torch.cat((tokens, action), 1), torch.cat((attention, mask), 1))
        return record, {"tokens": after[0] * after[1], "attention": after[1]}

    @torch.no_grad()
    def generate(
        self, tokens: Tensor, attention: Tensor, limit: Tensor, greedy: bool = False
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Continues conversations [N, L], padded on the left, by at most `limit` [N] tokens each.

        One token per row and step, with a key-value cache; rows that have ended leave the batch. Each step draws one
        uniform number for every row, whether it still writes or not, so what a row writes does not depend on when
        others leave. Of several processes each writes rows of its own (`polopt.core.ranks`). Returns action [N, T],
        mask [N, T], log_prob [N, T] and ended [N].
        """
        count, device = len(tokens), tokens.device
        steps = int(limit.max()) if count else 0
        kind = torch.promote_types(self.bare.dtype, torch.float32)
        action = torch.full((count, steps), self.tokens.pad, device=device)
        mask = torch.zeros(count, steps, dtype=torch.bool, device=device)
        log_prob = torch.zeros(count, steps, dtype=kind, device=device)
        ended = torch.zeros(count, dtype=torch.bool, device=device)
        luck = Luck(count, device)
        rows = (limit > 0).nonzero().squeeze(1)  # that write
        given, written = (tokens, attention, limit), (action, mask, log_prob, ended)
        blocks = [block for block in ranks.mine(len(rows)) if block.stop > block.start]
        with shards.whole(self.bare):
            lengths = [self._write(rows[block], given, written, luck, greedy) for block in blocks]
        steps = ranks.most(max(lengths, default=0))
        action, mask, log_prob = (value[:, :steps].contiguous() for value in (action, mask, log_prob))
        if ranks.count() > 1:
            if not greedy:
                luck.drawn(steps)  # the processes go on from the same random state
            action = action * mask
            ranks.add_((action, mask, log_prob, ended))
            action = action.where(mask, self.tokens.pad)
        return action, mask, log_prob, ended

    def _write(
        self,
        rows: Tensor,
        given: tuple[Tensor, Tensor, Tensor],
        written: tuple[Tensor, Tensor, Tensor, Tensor],
        luck: Luck,
        greedy: bool,
    ) -> int:
        """Writes what some `rows` [R] of conversations write into all rows of the results; returns how many steps."""
        (tokens, attention, limit), (action, mask, log_prob, ended) = given, written
        device, kind, length = tokens.device, log_prob.dtype, tokens.shape[1]
        steps = int(limit[rows].max())
        ends = torch.tensor(self.tokens.ends, device=device)
        seen = torch.cat((attention[rows], attention.new_ones(len(rows), steps)), 1)
        place = attention.sum(1, keepdim=True)[rows]  # position of the next token
        cache = self.passes.new_cache(length + steps)
        inputs, position = tokens[rows], (attention.cumsum(1) - 1).clamp_min(0)[rows]
        writing = torch.ones_like(rows, dtype=torch.bool)
        for step in range(steps):
            signals.check()
            ahead = self.passes.more_logits if step else self.passes.first_logits
            logits = ahead(inputs, seen[:, : length + step], position, cache)
            token, value = self._draw(logits, None if greedy else luck.drawn(step + 1)[rows])
            token = torch.where(writing, token, self.tokens.pad)
            action[rows, step] = token
            mask[rows, step] = writing
            log_prob[rows, step] = torch.where(writing, value, 0.0).to(kind)
            over = writing & torch.isin(token, ends)
            ended[rows] |= over
            writing = writing & ~over & (limit[rows] > step + 1)
            left = int(writing.sum())
            if left == 0:
                return step + 1
            inputs, position, place = token.unsqueeze(1), place, place + 1
            if left <= self.compaction * len(rows):
                keep = writing.nonzero().squeeze(1)
                cache.batch_select_indices(keep)
                rows, seen, place, position = rows[keep], seen[keep], place[keep], position[keep]
                inputs, writing = inputs[keep], writing[keep]
        return steps

    def _draw(self, logits: Tensor, uniform: Tensor | None) -> tuple[Tensor, Tensor]:
        """One token for each row of `logits` [n, V], drawn by numbers [n, 1] or the likeliest, and its log-density."""
        log_p = self._cut(logits).to(wide(logits.device)).log_softmax(-1)
        if uniform is None:
            token = log_p.argmax(-1)
        else:
            mass = log_p.exp().cumsum(-1)
            token = torch.searchsorted(mass, uniform * mass[:, -1:], right=True).squeeze(1)
            token = token.clamp_max(logits.shape[-1] - 1)
        return token, log_p.gather(1, token.unsqueeze(1)).squeeze(1)

    def _score(self, tokens: Tensor, attention: Tensor, action: Tensor, mask: Tensor) -> Tensor:
        batch = TensorDict(
            {"prompt": tokens, "prompt_mask": attention, "completion": action, "attention": mask, "mask": mask},
            batch_size=[len(tokens)],
        )
        rows = max(1, SCORED // max(1, tokens.shape[1] + action.shape[1]))
        return torch.cat([self.log_prob(part) for part in batch.split(rows)]) if len(tokens) else mask.float()

    # Scoring

    def log_prob(self, batch: Batch, noise: Batch | None = None) -> Tensor:
        return joined_per_token(batch, lambda logits, token: self._log_prob_of(logits[0], token), [self.passes])

    def entropy(self, batch: Batch) -> Tensor:
        """Entropy [B, T] of the distribution that tokens are sampled from, in nats."""
        return joined_per_token(batch, lambda logits, token: entropy_of(self._cut(logits[0])), [self.passes])

    def kl(self, batch: Batch, other: Any) -> Tensor:
        """KL(self || other) [B, T] of the distributions before `top_k` and `top_p`, which would make it infinite."""
        same_family(self, other)
        if other.vocabulary != self.vocabulary:
            raise UsageError(
                f"the divergence needs equal vocabularies, and these have {self.vocabulary} and {other.vocabulary}"
            )
        return joined_per_token(
            batch,
            lambda logits, token: divergence_of(self.scaled(logits[0]), other.scaled(logits[1])),
            [self.passes, other.passes],
        )

    def of_logits(self, batch: Batch, value: Callable[..., Tensor], *columns: Tensor) -> Tensor:
        """`value(logits [C, V], token [C], *columns [C, ...]) -> [C, ...]` at every decision [B, T], 0 elsewhere.

        `logits` are those of the distribution before `top_k` and `top_p`, divided by the temperature. They stand for a
        piece of the decisions at a time and may be computed again in the backward pass: `value` draws no random
        numbers, which come as one of the `columns` [B, T, ...] instead. It may keep what it sees of the batch: every
        process asks for all rows.
        """
        return per_token(
            batch, lambda logits, token, *rest: value(self.scaled(logits[0]), token, *rest), [self.passes], columns
        )

    def of_states(self, batch: Batch, value: Callable[..., Tensor], *columns: Tensor) -> Tensor:
        """`of_logits` with the states that the head reads: `value(states [C, H], logits [C, V], token [C], *columns)`.

        The state of a decision is the one from which its token is predicted, so the logits before the temperature are
        those of `self.passes.head` there. Raises UsageError for models whose head is more than a matrix.
        """
        self.need_states()

        def of_pair(pairs: list[tuple[Tensor, Tensor]], token: Tensor, *rest: Tensor) -> Tensor:
            states, logits = pairs[0]
            return value(states, self.scaled(logits), token, *rest)

        return per_token(batch, of_pair, [self.passes], columns, read=lambda head, states: (states, head(states)))

    def need_states(self) -> None:
        """Raises UsageError for models of which there is no `of_states`."""
        if not self.passes.headed:
            raise UsageError("the logits of this model are not its output embeddings applied to its last states")

    def imitation_loss(self, batch: Batch, noise: Batch | None = None) -> Tensor:
        """Cross-entropy [B, T] of the tokens."""
        return -self.log_prob(batch)

    def _cut(self, logits: Tensor, token: Tensor | None = None) -> Tensor:
        """What `cut` gives of logits [C, V] as they come from the model."""
        return self.cut(self.scaled(logits), token)

    def cut(self, logits: Tensor, token: Tensor | None = None) -> Tensor:
        """Logits [C, V], as `of_logits` gives them, -inf outside the set that is sampled from (`top_k`, `top_p`), to
        which `token` [C] always belongs."""
        if self.config.top_k == 0 and self.config.top_p == 1.0:
            return logits
        kept = kept_tokens(logits.detach(), self.config.top_k, self.config.top_p)
        if token is not None:
            kept = kept.scatter(1, token.unsqueeze(1), True)
        return logits.masked_fill(~kept, float("-inf"))

    def _log_prob_of(self, logits: Tensor, token: Tensor) -> Tensor:
        logits = self._cut(logits, token)
        return logits.gather(1, token.unsqueeze(1)).squeeze(1) - logits.logsumexp(-1)


def scored_pieces(batch: Batch, rows: int | None = None, tokens: int | None = None) -> Sequence[Batch]:
    """The rows of a batch in pieces for passes without gradients: of so many rows, or tokens, or else of `SCORED`."""
    width = batch["prompt"].shape[1] + batch["mask"].shape[1]
    return pieces(batch, rows or max(1, (tokens or SCORED) // width))


def kept_tokens(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """Which tokens may be sampled, bool [C, V]: the `top_k` likeliest (0 for all), and of their mass, renormalized,
    the smallest set of the likeliest that reaches `top_p`. Equal logits are kept together."""
    kept = logits > float("-inf")
    if 0 < top_k < logits.shape[-1]:
        kept = kept & (logits >= logits.topk(top_k, dim=-1).values[:, -1:])
    if top_p < 1.0:
        ordered = logits.masked_fill(~kept, float("-inf")).sort(-1, descending=True).values
        mass = ordered.softmax(-1)
        inside = mass.cumsum(-1) - mass < top_p  # the mass before it falls short; true of the first
        last = inside.sum(-1, keepdim=True) - 1
        kept = kept & (logits >= ordered.gather(1, last))
    return kept


def entropy_of(logits: Tensor) -> Tensor:
    """Entropy [C] in nats of the softmax of `logits` [C, V], of which some may be -inf."""
    log_p = logits.log_softmax(-1)
    return -(log_p.exp() * log_p.masked_fill(logits == float("-inf"), 0.0)).sum(-1)


def divergence_of(own: Tensor, other: Tensor) -> Tensor:
    """KL [C] between the softmaxes of logits [C, V]; where the first is -inf nothing is added."""
    log_p, log_q = own.log_softmax(-1), other.log_softmax(-1)
    difference = (log_p - log_q).masked_fill((own == float("-inf")) & (other == float("-inf")), 0.0)
    difference = difference.masked_fill(own == float("-inf"), 0.0)
    return (log_p.exp() * difference).sum(-1)
