"""vLLM samples, the policy is trained: a wrapper that acts through an engine and follows the policy's weights."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from polopt.core.errors import UsageError
from polopt.core.modules import device_of
from polopt.data.tokenizing import Prompt
from polopt.policies.base import Record
from polopt.policies.causal_lm import CausalLMPolicy
from polopt.policies.wrappers import Wrapper


class VLLMActor(Wrapper):
    """Acts as the language model `policy` does, with the tokens sampled by `vllm.LLM`.

    The engine gets token ids and returns token ids and their log-densities after temperature, top-k and top-p, which
    become `engine_log_prob`; `log_prob` comes from the policy's own forward pass, unless its config says "engine".
    Before it samples, the engine reads the policy's weights again if they have changed: the policy is
    exported to a temporary folder, adapters merged, and the workers load it from there. Seeds come from torch's
    global generator, one for each conversation. Before it acts it can be sent to another process, to act there.

    This class was tested against a stand-in for vLLM, not on a GPU.

    Args:
        policy: what is trained.
        options: further arguments of `vllm.LLM`, for example `gpu_memory_utilization`.

    Raises:
        UsageError: where vLLM is not installed.
    """

    actor: CausalLMPolicy

    def __init__(self, policy: CausalLMPolicy, **options: Any) -> None:
        super().__init__(policy)
        try:
            import vllm
        except ImportError:
            raise UsageError('--policy.engine vllm needs vLLM: pip install "polopt[vllm]"') from None
        self._sampling: Any = vllm.SamplingParams
        self._begin: Any = vllm.LLM
        self._options = options
        self._place: tempfile.TemporaryDirectory[str] | None = None
        self._engine: Any = None
        self._loaded = torch.empty(0)

    @torch.no_grad()
    def act(
        self,
        obs: Sequence[Prompt],
        carry: Record | None = None,
        *,
        greedy: bool = False,
    ) -> tuple[Record, Record]:
        self.follow()
        return self.actor.act_with(self.generate, obs, carry, greedy=greedy)

    @torch.no_grad()
    def follow(self) -> None:
        """Begins the engine, which is where this first acts; then loads the policy's weights into it when they have
        changed since the last time."""
        now = self._changes()
        if self._place is None:
            self._place = tempfile.TemporaryDirectory(prefix="polopt-vllm-")
            self._folder = self.actor.export(Path(self._place.name) / "model")
            own = {
                "model": str(self._folder),
                "max_model_len": self.actor.context,
                "dtype": str(self.actor.model.dtype).removeprefix("torch."),
                "trust_remote_code": self.actor.config.trust_remote_code,
                "logprobs_mode": "processed_logprobs",
            }
            self._engine = self._begin(**own | self._options)
        elif not torch.equal(now, self._loaded):
            self.actor.export(self._folder)
            self._engine.collective_rpc("reload_weights")
            self._engine.reset_prefix_cache()
        self._loaded = now

    def generate(
        self, tokens: Tensor, attention: Tensor, limit: Tensor, greedy: bool = False
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What `CausalLMPolicy.generate` returns, by the engine."""
        config, ids = self.actor.config, self.actor.tokens
        rows = (limit > 0).nonzero().squeeze(1).tolist()
        seeds = torch.randint(2**31, (len(limit),)).tolist()
        allowed = None if self.actor.unknown is None else (~self.actor.unknown).nonzero().squeeze(1).tolist()
        prompts = [{"prompt_token_ids": tokens[row][attention[row]].tolist()} for row in rows]
        params = [
            self._sampling(
                temperature=0.0 if greedy else config.temperature,
                top_k=config.top_k or -1,
                top_p=config.top_p,
                max_tokens=int(limit[row]),
                logprobs=0,
                seed=seeds[row],
                stop_token_ids=list(ids.ends),
                allowed_token_ids=allowed,
                detokenize=False,
            )
            for row in rows
        ]
        outputs = self._engine.generate(prompts, params, use_tqdm=False) if rows else []
        written = {row: output.outputs[0] for row, output in zip(rows, outputs, strict=True)}
        width = max((len(out.token_ids) for out in written.values()), default=0)
        action = torch.full((len(limit), width), ids.pad)
        mask = torch.zeros(len(limit), width, dtype=torch.bool)
        log_prob = torch.zeros(len(limit), width)
        ended = torch.zeros(len(limit), dtype=torch.bool)
        for row, out in written.items():
            count = len(out.token_ids)
            action[row, :count] = torch.tensor(list(out.token_ids), dtype=torch.int64)
            mask[row, :count] = True
            values = [step[token].logprob for step, token in zip(out.logprobs, out.token_ids, strict=True)]
            log_prob[row, :count] = torch.tensor(values)
            ended[row] = count > 0 and out.token_ids[-1] in ids.ends
        device = device_of(self.actor)
        return action.to(device), mask.to(device), log_prob.to(device), ended.to(device)

    def _changes(self) -> Tensor:
        """What changes with the weights: the norm and the sum of each parameter."""
        parameters: list[Tensor] = list(self.actor.parameters())
        norms = torch._foreach_norm(parameters, 2.0, torch.float32)
        return torch.stack([*norms, *(parameter.sum(dtype=torch.float32) for parameter in parameters)])
