"""A small masked-diffusion language model: a policy that is no causal one, and has no density of a token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from polopt.config import param
from polopt.core.batch import Batch
from polopt.core.modules import device_of
from polopt.data.tokenizing import Prompt
from polopt.data.tokens import widen
from polopt.policies.base import Record
from polopt.policies.language import TextModel, need_text
from polopt.policies.small_lm import new_model
from polopt.policies.text import TextPolicy, no_conversation


@dataclass(frozen=True)
class MaskedToy(TextModel):
    steps: int = param(4, "a test", low=1, help="passes that fill the canvas")

    def build(self, spec: Any) -> MaskedToyPolicy:
        need_text(spec)
        return MaskedToyPolicy(spec, replace(self, model=new_model(self.model)))


class MaskedToyPolicy(TextPolicy):
    """Fills a canvas of `max_tokens` holes, the surest first, and calls the whole of it there: also what stands behind
    the first end, though that was not decided. `imitation_loss` is an estimate from one draw of masks."""

    family = "masked language model"

    def __init__(self, spec: Any, config: MaskedToy) -> None:
        super().__init__(spec, config)
        self.hole = int(self.tokenizer.unk_token_id)

    def unknown_ids(self) -> Tensor:
        unknown = super().unknown_ids()
        unknown[int(self.tokenizer.unk_token_id)] = True
        return unknown

    def compile(self, **options: Any) -> None:
        pass

    @torch.no_grad()
    def act(self, obs: Sequence[Prompt], carry: Record | None = None, *, greedy: bool = False) -> tuple[Record, Record]:
        prompt, real = self.new_tokens(obs, no_conversation(len(obs), device_of(self)))
        width = self.config.max_tokens
        action = prompt.new_full((len(obs), width), self.hole)
        for step in range(self.config.steps):
            log_p = self.scaled(self.canvas_logits(prompt, real, action)).log_softmax(-1)
            noise = torch.zeros_like(log_p) if greedy else -torch.empty_like(log_p).exponential_().log()
            token = (log_p + noise).argmax(-1)
            sure = log_p.gather(-1, token.unsqueeze(-1)).squeeze(-1).masked_fill(action != self.hole, -torch.inf)
            left = width - step * width // self.config.steps
            some = sure.argsort(1, descending=True)[:, : left - (width - (step + 1) * width // self.config.steps)]
            action = action.scatter(1, some, token.gather(1, some))
        over = torch.isin(action, torch.tensor(self.tokens.ends, device=action.device))
        record = {
            "prompt": prompt * real,
            "prompt_mask": real,
            "action": action,
            "mask": over.cumsum(1) - over.long() == 0,
            "attention": torch.ones_like(over),
            "ended": over.any(1),
        }
        return record, {}

    def tokenize(
        self, prompts: Sequence[Prompt], completions: Sequence[str] | None = None, eos: bool = True
    ) -> TensorDict:
        """The ends behind the end are learned as well."""
        rows = super().tokenize(prompts, completions, eos)
        if completions is not None:
            real = widen(rows["attention"], self.config.max_tokens)
            rows["completion"] = torch.where(real, widen(rows["completion"], real.shape[1]), self.tokens.eos)
            rows["attention"], rows["mask"] = torch.ones_like(real), torch.ones_like(real)
        return rows

    def draw_noise(self, batch: Batch, times: Tensor | None = None) -> Batch:
        mask = batch["mask"]
        times = torch.rand(len(mask), 1, device=mask.device).clamp_min(0.1) if times is None else times
        masked = (torch.rand(mask.shape, device=mask.device) < times) & mask
        return TensorDict({"masked": masked, "factor": masked / times}, batch_size=[len(mask)])

    def imitation_loss(self, batch: Batch, noise: Batch | None = None) -> Tensor:
        noise = self.draw_noise(batch) if noise is None else noise
        canvas = torch.where(noise["masked"], self.hole, batch["completion"])
        logits = self.scaled(self.canvas_logits(batch["prompt"], batch["prompt_mask"], canvas, batch["attention"]))
        log_p = logits.log_softmax(-1).gather(-1, batch["completion"].unsqueeze(-1)).squeeze(-1)
        return torch.where(noise["masked"], -noise["factor"] * log_p, 0.0)

    def canvas_logits(self, prompt: Tensor, real: Tensor, canvas: Tensor, there: Tensor | None = None) -> Tensor:
        """Logits [B, T, V] of the canvas: every token sees every one that is there, before and behind it."""
        there = torch.ones_like(canvas, dtype=torch.bool) if there is None else there
        seen = torch.cat((real, there), 1)
        both = seen[:, None, None, :].expand(-1, 1, seen.shape[1], -1)
        place = (seen.cumsum(1) - 1).clamp_min(0)
        tokens = torch.cat((prompt, canvas), 1)
        states = self.bare.base_model(tokens, attention_mask=both, position_ids=place, use_cache=False)[0]
        return self.bare.get_output_embeddings()(states[:, prompt.shape[1] :])
