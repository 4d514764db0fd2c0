"""A causal language model as a policy: an act is one turn, a decision is one token.

The density of a token is that of the model's distribution divided by `temperature` and cut to the `top_k` likeliest
tokens and then to the smallest set of mass `top_p`, renormalized, over the ids that the tokenizer knows. The recorded
token always belongs to the set, so that rounding never gives it density zero. Sampling and scoring share this
definition, the positions (which count real tokens only), and evaluation mode: no dropout in either pass.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from polopt.core.batch import Batch
from polopt.core.errors import UsageError
from polopt.core.modules import device_of
from polopt.core.spec import Spec
from polopt.data.tokenizing import Prompt, Tokens, need, pack_left, pad_left, pad_right, quiet
from polopt.policies import CausalLM
from polopt.policies.base import Density, Imitates, Record, same_family
from polopt.policies.pretrained import load_pretrained, write_folder

Sampler = Callable[[Tensor, Tensor, Tensor, bool], tuple[Tensor, Tensor, Tensor, Tensor]]

PIECES = 8  # of the decisions of one call: the logits of so many never stand at once
LARGEST = 1 << 25  # numbers in the logits of one piece
SMALL = 1 << 22  # so many stand at once, and are kept for the backward pass: 16 MB
SCORED = 1 << 16  # tokens in one forward pass while acting


class CausalLMPolicy(Density, Imitates):
    """Writes turns of a conversation, and scores them.

    Acting takes a list of N texts or messages, what is new in each conversation. The record holds, per row:
    `prompt` int64 [N, P] (the new tokens, padded on the left), `prompt_mask`, `action` int64 [N, T] (padded on the
    right), `mask` [N, T] (sampled, with the end token), `log_prob` and `engine_log_prob` [N, T], and `ended` [N],
    False where the limit of tokens or the context cut the turn. The carry holds the conversation so far, `tokens` and
    `attention` [N, L]. A conversation that has outgrown the context gets an empty turn that has not ended.

    Batches [B] are read by `prompt`, `prompt_mask` [B, P], `completion`, `attention` (real) and `mask` (to be scored)
    [B, T]. Results are [B, T] and zero where `mask` is False.

    Attributes:
        model: the model of transformers, or that of peft around it.
        tokens: the tokenizer with its ends and padding; `tokenizer` is the bare one.
        context: the longest conversation, in tokens.

    Raises:
        UsageError: for everything that `load_pretrained` refuses, and a tokenizer that does not fit the model.
    """

    family = "language model"

    def __init__(self, spec: Spec, config: CausalLM) -> None:
        super().__init__()
        self.spec = spec
        self.config = config
        dtype = torch.get_default_dtype() if config.dtype is None else getattr(torch, config.dtype)
        model: Any
        model, tokenizer, _ = load_pretrained(
            config.model, dtype=dtype, trust_remote_code=config.trust_remote_code, allow_pickle=config.allow_pickle
        )
        if dtype == torch.float64 and model.config._attn_implementation == "eager":
            raise UsageError(f"model '{config.model}' computes its attention in single precision: use dtype float32")
        self.tokens = Tokens(tokenizer, f"'{config.model}'", _ends(model))
        self.context = _context(model, tokenizer)
        self.model: Any = model if config.lora is None else _adapt(model, config)
        self.compaction = 0.75  # the batch shrinks when at most this share of its rows still writes
        self._positions = "position_ids" in inspect.signature(self._causal.forward).parameters
        unknown = self._unknown_ids()
        self.unknown: Tensor | None
        self.register_buffer("unknown", unknown if unknown.any() else None, persistent=False)
        if config.gradient_checkpointing:
            with quiet():
                self._causal.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        self.headed = self._has_plain_head()
        self.eval()

    @property
    def tokenizer(self) -> Any:
        return self.tokens.tokenizer

    @property
    def vocabulary(self) -> int:
        """Number of logits of a token."""
        return int(self._causal.get_output_embeddings().weight.shape[0])

    def train(self, mode: bool = True) -> CausalLMPolicy:
        """Stays in evaluation mode: with dropout, the two passes would disagree."""
        super().train(False)
        return self

    def compile(self, **options: Any) -> None:
        """From here on each pass through the model is one compiled function: of a batch, and of the next tokens.

        What is around them stays as it is, because its sizes depend on the data. `options` go to `torch.compile`.
        """
        for name in ("_hidden", "_branched", "_more_logits"):
            growing = {"dynamic": True} if name == "_more_logits" else {}  # one token more at every step
            compiled = torch.compile(getattr(type(self), name), **growing | options)
            setattr(self, name, functools.partial(compiled, self))  # a copy of this policy has its own weights

    # Acting

    @torch.no_grad()
    def act(self, obs: Sequence[Prompt], carry: Record | None = None, *, greedy: bool = False) -> tuple[Record, Record]:
        return self.act_with(self.generate, obs, carry, greedy=greedy)

    @torch.no_grad()
    def act_with(
        self, sampler: Sampler, obs: Sequence[Prompt], carry: Record | None = None, *, greedy: bool = False
    ) -> tuple[Record, Record]:
        """Acts, with the tokens drawn by `sampler`, which has the signature of `generate`."""
        device = device_of(self)
        before = _empty(len(obs), device) if carry is None else carry
        prompt, real = (x.to(device) for x in pad_left(self._new_tokens(obs, before), self.tokens.pad))
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
        others leave. Returns action [N, T], mask [N, T], log_prob [N, T] and ended [N].
        """
        count, length = tokens.shape
        device, steps = tokens.device, int(limit.max()) if count else 0
        kind = torch.promote_types(self._causal.dtype, torch.float32)
        action = torch.full((count, steps), self.tokens.pad, device=device)
        mask = torch.zeros(count, steps, dtype=torch.bool, device=device)
        log_prob = torch.zeros(count, steps, dtype=kind, device=device)
        ended = torch.zeros(count, dtype=torch.bool, device=device)
        ends = torch.tensor(self.tokens.ends, device=device)
        rows = (limit > 0).nonzero().squeeze(1)  # what each row of the running batch writes
        if not len(rows):
            return action[:, :0], mask[:, :0], log_prob[:, :0], ended
        seen = torch.cat((attention, attention.new_ones(count, steps)), 1)[rows]
        place = attention.sum(1, keepdim=True)[rows]  # position of the next token
        cache = _new_cache(self._causal.config, length + steps)
        inputs, position = tokens[rows], (attention.cumsum(1) - 1).clamp_min(0)[rows]
        writing = torch.ones_like(rows, dtype=torch.bool)
        for step in range(steps):
            ahead = self._more_logits if step else self._first_logits
            logits = ahead(inputs, seen[:, : length + step], position, cache)
            token, value = self._draw(logits, rows, count, greedy)
            token = torch.where(writing, token, self.tokens.pad)
            action[rows, step] = token
            mask[rows, step] = writing
            log_prob[rows, step] = torch.where(writing, value, 0.0).to(kind)
            over = writing & torch.isin(token, ends)
            ended[rows] |= over
            writing = writing & ~over & (limit[rows] > step + 1)
            left = int(writing.sum())
            if left == 0:
                steps = step + 1
                break
            inputs, position, place = token.unsqueeze(1), place, place + 1
            if left <= self.compaction * len(rows):
                keep = writing.nonzero().squeeze(1)
                cache.batch_select_indices(keep)
                rows, seen, place, position = rows[keep], seen[keep], place[keep], position[keep]
                inputs, writing = inputs[keep], writing[keep]
        return action[:, :steps], mask[:, :steps], log_prob[:, :steps], ended

    def env_action(self, action: Tensor) -> list[str]:  # type: ignore[override]
        """The texts of turns [N, T], up to the first end and without special tokens."""
        return self.tokens.decode(action)

    def decode(self, tokens: Tensor, mask: Tensor) -> list[str]:
        """The texts of rows of tokens [B, L] where `mask` is True, without special tokens: prompts, conversations."""
        return self.tokens.texts([row[real].tolist() for row, real in zip(tokens, mask)])

    def predict(self, obs: Prompt, *, greedy: bool = True) -> str:
        """The answer to a text or to messages. The conversation is remembered until `reset`.

        Raises UsageError when the conversation has filled the context.
        """
        record, carry = self.act([obs], self._carry, greedy=greedy)
        if not record["mask"].any():
            raise UsageError(f"the conversation has filled the context of {self.context} tokens: call reset() first")
        self._carry = carry
        return self.env_action(record["action"])[0]

    # Scoring

    def log_prob(self, batch: Batch, noise: Batch | None = None) -> Tensor:
        return self._per_token(batch, lambda logits, token: self._log_prob_of(logits[0], token))

    def entropy(self, batch: Batch) -> Tensor:
        """Entropy [B, T] of the distribution that tokens are sampled from, in nats."""
        return self._per_token(batch, lambda logits, token: _entropy(self._cut(logits[0])))

    def kl(self, batch: Batch, other: Any) -> Tensor:
        """KL(self || other) [B, T] of the distributions before `top_k` and `top_p`, which would make it infinite."""
        same_family(self, other)
        if other.vocabulary != self.vocabulary:
            raise UsageError(
                f"the divergence needs equal vocabularies, and these have {self.vocabulary} and {other.vocabulary}"
            )
        return self._per_token(
            batch, lambda logits, token: _kl(self._scale(logits[0]), other._scale(logits[1])), (self, other)
        )

    def imitation_loss(self, batch: Batch, noise: Batch | None = None) -> Tensor:
        """Cross-entropy [B, T] of the tokens."""
        return -self.log_prob(batch)

    # Data

    def tokenize(
        self, prompts: Sequence[Prompt], completions: Sequence[str] | None = None, eos: bool = True
    ) -> TensorDict:
        """Rows [B] with `prompt` and `prompt_mask`, and, given completions, `completion`, `attention` and `mask`.

        Raises UsageError for a row that is longer than the context.
        """
        questions = self.tokens.encode(prompts)
        answers = [[0]] * len(questions) if completions is None else self.tokens.complete(completions, eos)
        if len(answers) != len(questions):
            raise UsageError(f"{len(questions)} prompts need as many completions, not {len(answers)}")
        longest = max((len(q) + len(a) for q, a in zip(questions, answers)), default=0)
        if longest > self.context:
            what = "a prompt with one token of an answer" if completions is None else "a prompt with its completion"
            raise UsageError(
                f"{what} has {longest} tokens and the context of {self.tokens.name} holds {self.context}: leave out "
                "long rows or take a model with a longer context"
            )
        prompt, real = pad_left(questions, self.tokens.pad)
        rows = {"prompt": prompt * real, "prompt_mask": real}
        if completions is not None:
            completion, attention = pad_right(answers, self.tokens.pad)
            rows |= {"completion": completion * attention, "attention": attention, "mask": attention.clone()}
        return TensorDict(rows, batch_size=[len(questions)]).to(device_of(self))

    def export(self, folder: Path | str) -> Path:
        """Writes what `AutoModelForCausalLM.from_pretrained` and `AutoTokenizer.from_pretrained` load, adapters
        merged. The folder appears when it is complete. Raises UsageError and RunError as `write_folder` does."""

        def write(into: Path) -> None:
            with quiet():
                model = self.model
                if self.config.lora is not None:
                    model = copy.deepcopy(model).merge_and_unload()
                model.save_pretrained(into)
                self.tokenizer.save_pretrained(into)

        return write_folder(folder, write)

    # Inside

    @property
    def _causal(self) -> Any:
        """The model of transformers, without what peft puts around it."""
        return self.model if self.config.lora is None else self.model.get_base_model()

    def _new_tokens(self, obs: Sequence[Prompt], before: Record) -> list[list[int]]:
        started = before["attention"].any(1).tolist()
        last = before["tokens"][:, -1].tolist() if before["tokens"].shape[1] else [None] * len(obs)
        rows = self.tokens.encode(obs, [token if old else None for token, old in zip(last, started)])
        for row, old in zip(rows, started):
            if not old and len(row) + 1 > self.context:
                raise UsageError(
                    f"a prompt has {len(row)} tokens and the context of {self.tokens.name} holds {self.context}: "
                    "shorten the prompts or take a model with a longer context"
                )
        return rows

    def _next_logits(self, inputs: Tensor, seen: Tensor, position: Tensor, cache: Any) -> Tensor:
        where = {"position_ids": position} if self._positions else {}
        options = {"attention_mask": seen, "past_key_values": cache, "use_cache": True, **where}
        if not self.headed:
            return self._causal(inputs, **options).logits[:, -1]
        return self._causal.get_output_embeddings()(self._causal.base_model(inputs, **options)[0][:, -1])

    _more_logits = _next_logits  # compiled, the pass over a prompt and that over one token are two functions

    def _first_logits(self, tokens: Tensor, seen: Tensor, position: Tensor, cache: Any) -> Tensor:
        """`_next_logits` of conversations, of which equal ones (the samples of a prompt) are read once."""
        equal = _distinct(tokens, seen)
        if equal is None:
            return self._next_logits(tokens, seen, position, cache)
        distinct, row = equal
        logits = self._next_logits(tokens[distinct], seen[distinct], position[distinct], cache)
        cache.batch_select_indices(row)
        return logits[row]

    def _draw(self, logits: Tensor, rows: Tensor, count: int, greedy: bool) -> tuple[Tensor, Tensor]:
        """One token for each row of `logits` [n, V], and its log-density."""
        wide = torch.float32 if logits.device.type == "mps" else torch.float64
        log_p = self._cut(logits).to(wide).log_softmax(-1)
        if greedy:
            token = log_p.argmax(-1)
        else:
            mass = log_p.exp().cumsum(-1)
            uniform = torch.rand(count, 1, dtype=wide, device=logits.device)[rows]
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

    def _per_token(
        self,
        batch: Batch,
        value: Callable[[list[Tensor], Tensor], Tensor],
        models: Sequence[CausalLMPolicy] | None = None,
    ) -> Tensor:
        """`value(logits of each model [C, V], token [C]) -> [C]` at every decision, [B, T], in pieces."""
        models = models or (self,)
        completion, mask = batch["completion"], batch["mask"]
        prompt, width = batch["prompt"], batch["prompt"].shape[1]
        tokens = torch.cat((prompt, completion), 1)
        attention = torch.cat((batch["prompt_mask"], batch["attention"]), 1).bool()
        before = (attention.cumsum(1) - attention.long())[:, width:]  # real tokens that each decision has seen
        # Without holes, because attention windows count columns. A compiled graph has no sizes that depend on data.
        compiling = torch.compiler.is_compiling()
        tokens, attention = pack_left(tokens, attention, tokens.shape[1] if compiling else None)
        source = (tokens.shape[1] - attention.sum(1, keepdim=True) + before - 1).clamp_min(0)  # [B, T]
        if not all(model.headed for model in models):
            rows = [_row(models, value, *each) for each in zip(tokens, attention, source, completion)]
            return torch.where(mask, torch.stack(rows), 0.0)
        equal = None if compiling else _repeated(batch)
        caches: list[Any] = [None if equal is None else model._prompt_cache() for model in models]
        if equal is not None and None not in caches:
            real, follows = batch["prompt_mask"], batch["attention"]
            hidden = [
                model._branched(prompt, real, completion, follows, *equal, cache)
                for model, cache in zip(models, caches)
            ]
            flat = torch.arange(mask.numel(), device=mask.device)
        else:
            hidden = [model._hidden(tokens, attention) for model in models]
            flat = (source + tokens.shape[1] * torch.arange(len(tokens), device=tokens.device).unsqueeze(1)).flatten()
        chosen = completion.flatten()
        needed = None if compiling else mask.flatten().nonzero().squeeze(1)
        if needed is not None:
            flat, chosen = flat[needed], chosen[needed]
        heads = [model._causal.get_output_embeddings() for model in models]
        inputs = [state.flatten(0, 1)[flat] for state in hidden]

        def piece(token: Tensor, *states: Tensor) -> Tensor:
            return value([head(state) for head, state in zip(heads, states)], token)

        if len(flat) * self.vocabulary <= SMALL:
            result = piece(chosen, *inputs)
        else:
            size = max(1, min(-(-len(flat) // PIECES), LARGEST // self.vocabulary))
            parts = [slice(start, start + size) for start in range(0, len(flat), size)]
            result = torch.cat([_recomputed(piece, chosen[part], *(x[part] for x in inputs)) for part in parts])
        if needed is None:
            return torch.where(mask, result.view_as(completion), 0.0)
        return result.new_zeros(completion.numel()).index_copy(0, needed, result).view_as(completion)

    def _hidden(self, tokens: Tensor, attention: Tensor) -> Tensor:
        """The states [B, L, H] that the output head reads."""
        with self._recomputing():
            return self._causal.base_model(tokens, **self._inputs(attention))[0]

    def _prompt_cache(self) -> Any:
        """An empty cache from which completions can go on; None unless attention is plain and nothing recomputed."""
        cache = need("transformers").DynamicCache(config=self._causal.config)
        plain = bool(cache.layers) and all(type(layer) is _layers()[0] for layer in cache.layers)
        return cache if plain and not (self.config.gradient_checkpointing and torch.is_grad_enabled()) else None

    def _branched(
        self,
        prompt: Tensor,
        real: Tensor,
        completion: Tensor,
        attention: Tensor,
        distinct: Tensor,
        row: Tensor,
        cache: Any,
    ) -> Tensor:
        """The states [B, T, H] from which each token of the completions [B, T] is predicted, where each of the
        `distinct` prompts, `row` [B] among them, goes through the model once; gradients flow through its keys and
        values."""
        seen = real.bool()[distinct]
        states = self._causal.base_model(
            prompt[distinct], past_key_values=cache, **self._inputs(seen) | {"use_cache": True}
        )[0]
        first = states[row, -1:]
        if completion.shape[1] == 1:
            return first
        cache.batch_select_indices(row)
        seen = torch.cat((seen[row], attention.bool()[:, :-1]), 1)
        options = self._inputs(seen) | {"use_cache": True}
        if self._positions:
            options["position_ids"] = options["position_ids"][:, prompt.shape[1] :]
        rest = self._causal.base_model(completion[:, :-1], past_key_values=cache, **options)[0]
        return torch.cat((first, rest), 1)

    def _logits(self, tokens: Tensor, attention: Tensor) -> Tensor:
        """All logits [B, L, V], for models whose head is more than a matrix."""
        with self._recomputing():
            return self._causal(tokens, **self._inputs(attention)).logits

    def _inputs(self, attention: Tensor) -> dict[str, Any]:
        where = {"position_ids": (attention.cumsum(1) - 1).clamp_min(0)} if self._positions else {}
        return {"attention_mask": attention, "use_cache": False, **where}

    @contextlib.contextmanager
    def _recomputing(self) -> Iterator[None]:
        """Gradient checkpointing, which transformers does in training mode only: the layers are told they are in it,
        and what is inside them, with the dropout, is not."""
        layers = []
        if self.config.gradient_checkpointing and torch.is_grad_enabled():
            layers = [layer for layer in self.model.modules() if getattr(layer, "gradient_checkpointing", False)]
        for layer in layers:
            layer.training = True
        try:
            yield
        finally:
            for layer in layers:
                layer.training = False

    def _scale(self, logits: Tensor) -> Tensor:
        """Logits in at least single precision, divided by the temperature, -inf at ids unknown to the tokenizer."""
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if self.config.temperature != 1.0:
            logits = logits / self.config.temperature
        return logits if self.unknown is None else logits.masked_fill(self.unknown, float("-inf"))

    def _cut(self, logits: Tensor, token: Tensor | None = None) -> Tensor:
        """Scaled logits [C, V], -inf outside the kept set, to which `token` [C] always belongs."""
        logits = self._scale(logits)
        if self.config.top_k == 0 and self.config.top_p == 1.0:
            return logits
        kept = kept_tokens(logits.detach(), self.config.top_k, self.config.top_p)
        if token is not None:
            kept = kept.scatter(1, token.unsqueeze(1), True)
        return logits.masked_fill(~kept, float("-inf"))

    def _log_prob_of(self, logits: Tensor, token: Tensor) -> Tensor:
        logits = self._cut(logits, token)
        return logits.gather(1, token.unsqueeze(1)).squeeze(1) - logits.logsumexp(-1)

    def _unknown_ids(self) -> Tensor:
        known, size = self.tokens.ids, self.vocabulary
        if known and known[-1] >= size:
            raise UsageError(
                f"the tokenizer of {self.tokens.name} has ids up to {known[-1]} and the model a vocabulary of {size}: "
                "they do not belong together"
            )
        unknown = torch.ones(size, dtype=torch.bool)
        unknown[torch.tensor(known, dtype=torch.int64)] = False
        return unknown

    @torch.no_grad()
    def _has_plain_head(self) -> bool:
        """Whether the output embeddings, applied to the states of the base model, give the logits."""
        causal = self._causal
        if causal.base_model is causal:
            return False
        tokens = torch.tensor([[self.tokens.eos, *self.tokens.ids[:3]]], device=device_of(self))
        attention = torch.ones_like(tokens, dtype=torch.bool)
        states = self._hidden(tokens, attention)
        logits = self._logits(tokens, attention)
        own = causal.get_output_embeddings()(states)
        return own.shape == logits.shape and torch.allclose(own.float(), logits.float(), rtol=1e-4, atol=1e-5)


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


def _entropy(logits: Tensor) -> Tensor:
    log_p = logits.log_softmax(-1)
    return -(log_p.exp() * log_p.masked_fill(logits == float("-inf"), 0.0)).sum(-1)


def _kl(own: Tensor, other: Tensor) -> Tensor:
    log_p, log_q = own.log_softmax(-1), other.log_softmax(-1)
    difference = (log_p - log_q).masked_fill((own == float("-inf")) & (other == float("-inf")), 0.0)
    difference = difference.masked_fill(own == float("-inf"), 0.0)
    return (log_p.exp() * difference).sum(-1)


def _distinct(tokens: Tensor, real: Tensor) -> tuple[Tensor, Tensor] | None:
    """Rows [U] that stand for all of `tokens` [N, L] (where `real`), and which of them each row equals [N]; nothing
    when at most half of the rows could be spared."""
    unique, row = torch.unique(torch.where(real.bool(), tokens, -1), dim=0, return_inverse=True)
    if 2 * len(unique) > len(tokens):
        return None
    return torch.empty_like(row[: len(unique)]).scatter_(0, row, torch.arange(len(row), device=row.device)), row


def _repeated(batch: Batch) -> tuple[Tensor, Tensor] | None:
    """`_distinct` of the prompts, if every completion follows its prompt without a hole."""
    prompt, completion = batch["prompt_mask"].bool(), batch["attention"].bool()
    if not prompt.shape[1] or not completion.shape[1]:
        return None
    follows = (
        prompt[:, -1].all() & (prompt[:, 1:] >= prompt[:, :-1]).all() & (completion[:, :-1] >= completion[:, 1:]).all()
    )
    return _distinct(batch["prompt"], prompt) if follows else None


def _row(
    models: Sequence[CausalLMPolicy],
    value: Callable[[list[Tensor], Tensor], Tensor],
    tokens: Tensor,
    attention: Tensor,
    source: Tensor,
    completion: Tensor,
) -> Tensor:
    """The values [T] of one row [L], from logits that stand for this row only."""

    def compute(tokens: Tensor) -> Tensor:
        rows = [model._logits(tokens.unsqueeze(0), attention.unsqueeze(0))[0, source] for model in models]
        return value(rows, completion)

    return _recomputed(compute, tokens)


def _recomputed(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """`function(*inputs)`, whose intermediate results are computed again in the backward pass."""
    if not torch.is_grad_enabled():
        return function(*inputs)
    return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False, determinism_check="none")


def _empty(count: int, device: torch.device | None) -> Record:
    tokens = torch.zeros(count, 0, dtype=torch.int64, device=device)
    return {"tokens": tokens, "attention": tokens.bool()}


def _adapt(model: nn.Module, config: CausalLM) -> nn.Module:
    lora = config.lora
    assert lora is not None
    peft = need("peft")
    options = peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=0.0,
        target_modules="all-linear" if lora.targets == ("all-linear",) else list(lora.targets),
        task_type="CAUSAL_LM",
    )
    try:
        with quiet():
            return peft.get_peft_model(model, options, autocast_adapter_dtype=False)
    except ValueError:
        raise UsageError(f"'{config.model}' has no layers named {', '.join(lora.targets)} to adapt") from None


def _ends(model: Any) -> list[int]:
    """The ids that the model's own settings say end a text."""
    ends = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    return [int(end) for end in ends] if isinstance(ends, (list, tuple)) else [] if ends is None else [int(ends)]


def _context(model: Any, tokenizer: Any) -> int:
    config = model.config.get_text_config()
    context = getattr(config, "max_position_embeddings", None) or tokenizer.model_max_length
    return int(min(context, 1 << 30))


def _new_cache(config: Any, room: int) -> Any:
    """An empty key-value cache for `room` tokens."""
    cache = need("transformers").DynamicCache(config=config)
    plain, growing = _layers()
    cache.layers = [growing(room) if type(layer) is plain else layer for layer in cache.layers]
    return cache


@functools.cache
def _layers() -> tuple[type, Any]:
    """The layer of transformers' cache, which copies everything at every token, and one that writes in place."""
    from transformers.cache_utils import DynamicLayer

    class Growing(DynamicLayer):
        def __init__(self, room: int) -> None:
            super().__init__()
            self.room = room
            self.stores: list[Tensor] = []

        def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
            super().lazy_initialization(key_states, value_states)
            self.stores = [x.new_empty(*x.shape[:-2], self.room, x.shape[-1]) for x in (key_states, value_states)]

        def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
            if not self.is_initialized:
                self.lazy_initialization(key_states, value_states)
            held = self.get_seq_length()
            total = held + key_states.shape[-2]
            for store, new in zip(self.stores, (key_states, value_states)):
                store[..., held:total, :] = new
            return self._show(total)

        def batch_select_indices(self, indices: Tensor) -> None:
            if self.is_initialized:  # layers that use the keys of others are not
                total = self.get_seq_length()
                self.stores = [store[indices] for store in self.stores]
                self._show(total)

        def _show(self, total: int) -> tuple[Tensor, Tensor]:
            keys, values = (store[..., :total, :] for store in self.stores)
            self.keys, self.values = keys, values
            return keys, values

    return DynamicLayer, Growing
