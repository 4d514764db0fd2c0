"""The passes through a causal model of transformers: over whole rows, over the completions of shared prompts, and one
token further with a key-value cache."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from polopt.core import shards
from polopt.core.batch import Batch
from polopt.data.tokenizing import need, quiet
from polopt.policies.compiled_layers import compile_layers, compiled_step
from polopt.policies.straight_line import is_straight, next_states


class CausalPasses:
    """Runs a causal model. A copy of the policy that holds this gets one of its own, around its own copy of the model.

    Args:
        model: of transformers, without what peft puts around it.
        probe: a row of ids [L] that the model knows, to find out what its head is.
        checkpointing: recompute layers in the backward pass.

    Attributes:
        headed: the output embeddings, applied to the states of the base model, are the logits; otherwise they come from
            `logits` alone, for whole rows.
    """

    def __init__(self, model: Any, probe: Tensor, checkpointing: bool = False) -> None:
        self.model = model
        self.checkpointing = checkpointing
        takes = inspect.signature(model.forward).parameters
        self.positions = "position_ids" in takes
        self.keys = "cache" if "cache" in takes else "past_key_values"  # the older name, until transformers 5.24
        if checkpointing:
            with quiet():
                if hasattr(model, "activation_checkpointing_enable"):
                    model.activation_checkpointing_enable({"use_reentrant": False})
                else:  # the older name, until transformers 5.24
                    model.gradient_checkpointing_enable({"use_reentrant": False})
        self.headed = self._has_plain_head(probe)

    def compile(self, **options: Any) -> None:
        """From here on a layer is one compiled function of a batch, which all layers share, and a pass over the next
        tokens is another."""
        compile_layers(self.model, options)
        self.more_logits = functools.partial(compiled_step(type(self).more_logits, options), self)  # type: ignore

    @property
    def divided(self) -> bool:
        """Whether the parameters are divided among processes, which then make the same passes."""
        return shards.is_divided(self.model)

    @property
    def head(self) -> Any:
        """From states [..., H] to logits [..., V], of models that are `headed`."""
        return self.model.get_output_embeddings()

    # Of a batch

    def hidden(self, tokens: Tensor, attention: Tensor) -> Tensor:
        """The states [B, L, H] that the head reads, of rows [B, L] where `attention`."""
        with self._recomputing():
            return shards.run(self.model, tokens, **self._inputs(attention))[0]

    def logits(self, tokens: Tensor, attention: Tensor) -> Tensor:
        """All logits [B, L, V], for models whose head is more than a matrix."""
        with self._recomputing():
            return self.model(tokens, **self._inputs(attention)).logits

    def prompt_cache(self) -> Any:
        """An empty cache from which completions can go on; None unless attention is plain and nothing recomputed."""
        cache = need("transformers").DynamicCache(config=self.model.config)
        plain = bool(cache.layers) and all(type(layer) is _layers()[0] for layer in cache.layers)
        return cache if plain and not (self.checkpointing and torch.is_grad_enabled()) else None

    def branched(
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
        states = shards.run(self.model, prompt[distinct], **self._inputs(seen) | self._growing(cache))[0]
        first = states[row, -1:]
        if completion.shape[1] == 1:
            return first
        cache.batch_select_indices(row)
        seen = torch.cat((seen[row], attention.bool()[:, :-1]), 1)
        options = self._inputs(seen) | self._growing(cache)
        if self.positions:
            options["position_ids"] = options["position_ids"][:, prompt.shape[1] :]
        rest = shards.run(self.model, completion[:, :-1], **options)[0]
        return torch.cat((first, rest), 1)

    # One token further

    def next_logits(self, inputs: Tensor, seen: Tensor, position: Tensor, cache: Any) -> Tensor:
        """The logits [B, V] after `inputs` [B, L], where the cache and they are `seen` [B, C]; the cache grows."""
        where = {"position_ids": position} if self.positions else {}
        options = {"attention_mask": seen, **self._growing(cache), **where}
        if not self.headed:
            return self.model(inputs, **options).logits[:, -1]
        return self.head(shards.run(self.model, inputs, **options)[0][:, -1])

    def more_logits(self, inputs: Tensor, seen: Tensor, position: Tensor, cache: Any) -> Tensor:
        """`next_logits` of one token a row [B, 1]: compiled, unlike the pass over a prompt."""
        if not cache.straight:
            return self.next_logits(inputs, seen, position, cache)
        return self.head(next_states(self.model, inputs[:, 0], seen, position, cache))

    def first_logits(self, tokens: Tensor, seen: Tensor, position: Tensor, cache: Any) -> Tensor:
        """`next_logits` of conversations, of which equal ones (the samples of a prompt) are read once."""
        equal = distinct_rows(tokens, seen)
        if equal is None:
            return self.next_logits(tokens, seen, position, cache)
        distinct, row = equal
        logits = self.next_logits(tokens[distinct], seen[distinct], position[distinct], cache)
        cache.batch_select_indices(row)
        return logits[row]

    def new_cache(self, room: int) -> Any:
        """An empty key-value cache for `room` tokens."""
        cache = need("transformers").DynamicCache(config=self.model.config)
        plain, growing = _layers()
        cache.straight = self.headed and all(type(layer) is plain for layer in cache.layers) and is_straight(self.model)
        cache.layers = [growing(room) if type(layer) is plain else layer for layer in cache.layers]
        cache.writing = True
        return cache

    # Inside

    def _inputs(self, attention: Tensor) -> dict[str, Any]:
        where = {"position_ids": (attention.cumsum(1) - 1).clamp_min(0)} if self.positions else {}
        return {"attention_mask": attention, "use_cache": False, **where}

    def _growing(self, cache: Any) -> dict[str, Any]:
        return {self.keys: cache, "use_cache": True}

    @contextlib.contextmanager
    def _recomputing(self) -> Iterator[None]:
        """Gradient checkpointing, which transformers does in training mode only: the layers are told they are in it,
        and what is inside them, with the dropout, is not."""
        layers = []
        if self.checkpointing and torch.is_grad_enabled():
            layers = [layer for layer in self.model.modules() if getattr(layer, "gradient_checkpointing", False)]
        for layer in layers:
            layer.training = True
        try:
            yield
        finally:
            for layer in layers:
                layer.training = False

    @torch.no_grad()
    def _has_plain_head(self, probe: Tensor) -> bool:
        """Whether the output embeddings, applied to the states of the base model, give the logits."""
        if self.model.base_model is self.model:
            return False
        tokens = probe.unsqueeze(0)
        attention = torch.ones_like(tokens, dtype=torch.bool)
        states = self.hidden(tokens, attention)
        logits = self.logits(tokens, attention)
        own = self.head(states)
        return own.shape == logits.shape and torch.allclose(own.float(), logits.float(), rtol=1e-4, atol=1e-5)


def distinct_rows(tokens: Tensor, real: Tensor) -> tuple[Tensor, Tensor] | None:
    """Rows [U] that stand for all of `tokens` [N, L] (where `real`), and which of them each row equals [N]; nothing
    when at most half of the rows could be spared."""
    unique, row = torch.unique(torch.where(real.bool(), tokens, -1), dim=0, return_inverse=True)
    if 2 * len(unique) > len(tokens):
        return None
    return torch.empty_like(row[: len(unique)]).scatter_(0, row, torch.arange(len(row), device=row.device)), row


def shared_prompts(batch: Batch) -> tuple[Tensor, Tensor] | None:
    """`distinct_rows` of the prompts, if every completion follows its prompt without a hole."""
    prompt, completion = batch["prompt_mask"].bool(), batch["attention"].bool()
    if not prompt.shape[1] or not completion.shape[1]:
        return None
    follows = (
        prompt[:, -1].all() & (prompt[:, 1:] >= prompt[:, :-1]).all() & (completion[:, :-1] >= completion[:, 1:]).all()
    )
    return distinct_rows(batch["prompt"], prompt) if follows else None


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
