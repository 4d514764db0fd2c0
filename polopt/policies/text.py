"""What all language policies share: a model of transformers with its tokenizer, tokens in and texts out."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor, nn

from polopt.core import files
from polopt.core.errors import UsageError
from polopt.core.modules import device_of
from polopt.core.spec import Spec
from polopt.data.templates import continues
from polopt.data.tokenizing import Prompt, Tokens, need, pad_left, pad_right, quiet
from polopt.policies.base import Imitates, Record
from polopt.policies.pretrained import load_pretrained, write_folder
from polopt.tasks.spaces import check_followed

ADAPTER = "adapter"  # in a model folder: LoRA's own weights, as PEFT reads them
GENERATION = "generation_config.json"


class TextPolicy(Imitates):
    """Writes turns of a conversation: an act is one turn, `env_action` turns its tokens into text.

    Acting takes a list of N texts or messages, what is new in each conversation. The record holds, per row:
    `prompt` int64 [N, P] (the new tokens, padded on the left), `prompt_mask`, `action` int64 [N, T], `mask` [N, T] (the
    policy decided these tokens, the end among them: what is scored and counted), and `ended` [N], False where a limit
    cut the turn. A policy that leaves tokens in `action` which are there but were not decided, such as those behind the
    end, also records `attention` [N, T], which are there; without it they are those of `mask`. The policy alone says
    what stands behind the first end: sources keep what it calls there and cut the rest. The carry, if the policy takes
    more than one turn, holds the conversation so far, `tokens` and `attention` [N, L]; it is empty otherwise.

    How completions are scored is left to the families: with a density of each token, or through draws only. All of them
    are in evaluation mode always: with dropout, what samples and what is trained would disagree.

    Attributes:
        model: the model of transformers, or that of peft around it; `bare` is without peft.
        tokens: the tokenizer with its ends and padding; `tokenizer` is the bare one.
        context: the longest conversation, in tokens.
        unknown: bool [V], ids that are never written; None where there are none.

    Raises:
        UsageError: for everything that `load_pretrained` refuses, and a tokenizer that does not fit the model.
    """

    family = "language model"

    def __init__(self, spec: Spec, config: Any) -> None:
        super().__init__()
        self.spec = spec
        self.config: Any = config
        dtype = torch.get_default_dtype() if config.dtype is None else getattr(torch, config.dtype)
        model: Any
        model, tokenizer, _ = load_pretrained(
            config.model, dtype=dtype, trust_remote_code=config.trust_remote_code, allow_pickle=config.allow_pickle
        )
        if dtype == torch.float64 and model.config._attn_implementation == "eager":
            raise UsageError(f"model '{config.model}' computes its attention in single precision: use dtype float32")
        self.tokens = Tokens(tokenizer, f"'{config.model}'", _ends(model))
        self.context = context_of(model, tokenizer)
        self.model: Any = model if config.lora is None else _adapt(model, config)
        unknown = self.unknown_ids()
        self.unknown: Tensor | None
        self.register_buffer("unknown", unknown if unknown.any() else None, persistent=False)
        self.eval()

    @property
    def tokenizer(self) -> Any:
        return self.tokens.tokenizer

    @property
    def vocabulary(self) -> int:
        """Number of logits of a token."""
        return int(self.bare.get_output_embeddings().weight.shape[0])

    @property
    def bare(self) -> Any:
        """The model of transformers, without what peft puts around it."""
        return self.model if self.config.lora is None else self.model.get_base_model()

    def train(self, mode: bool = True) -> TextPolicy:
        """Stays in evaluation mode."""
        super().train(False)
        return self

    def env_action(  # type: ignore[override]
        self, action: Tensor, begun: bool | Sequence[bool] = False
    ) -> list[str]:
        """The texts of turns [N, T], up to the first end and without special tokens; in a task of messages also without
        what the chat template writes around them, or only behind those that the prompt has `begun` (all, or [N])."""
        return self.tokens.decode(action, chat=self.spec.info.get("conversational", False), begun=begun)

    def decode(self, tokens: Tensor, mask: Tensor, *, behind: bool = False) -> list[str]:
        """The texts of rows of tokens [B, L] where `mask` is True, without special tokens: prompts, or `behind` them
        completions, whose first space counts."""
        return self.tokens.texts([row[real].tolist() for row, real in zip(tokens, mask)], behind)

    def predict(self, obs: Prompt | Sequence[Prompt], *, greedy: bool = True) -> Any:
        """The answer to a text or to messages; of a list of N such prompts, a list of N answers. The conversations are
        remembered until `reset`, by policies that can.

        Raises UsageError for what is no prompt, and when a conversation has filled the context.
        """
        prompts, single = _given(obs)
        check_followed(self._carry, len(prompts), "conversation")
        record, carry = self.act(prompts, self._carry, greedy=greedy)
        if not record["mask"].any(1).all():
            raise UsageError(f"the conversation has filled the context of {self.context} tokens: call reset() first")
        self._carry = carry or None
        answers = [
            self.tokens.decode(turn, chat=not isinstance(prompt, str), begun=continues(prompt))[0]
            for prompt, turn in zip(prompts, record["action"].split(1))
        ]
        return answers[0] if single else answers

    def tokenize(
        self, prompts: Sequence[Prompt], completions: Sequence[str] | None = None, eos: bool = True
    ) -> TensorDict:
        """Rows [B] with `prompt` and `prompt_mask`, and, given completions, `completion`, `attention` and `mask`.

        The prompts are those that `act` sees; the completions end as the chat template or the tokenizer ends them,
        unless `eos` is False. Raises UsageError for a row that is longer than the context.
        """
        if completions is None:
            questions, answers = self.tokens.encode(prompts), [[0]] * len(prompts)
        elif len(completions) == len(prompts):
            questions, answers = self.tokens.complete(prompts, completions, eos)
        else:
            raise UsageError(f"{len(prompts)} prompts need as many completions, not {len(completions)}")
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

    def export(self, folder: Path | str, *, weights: bool = True) -> Path:
        """Writes what `AutoModelForCausalLM.from_pretrained` and `AutoTokenizer.from_pretrained` load, adapters
        merged; generation from it ends where a turn ends here. The adapters by themselves are in `adapter/`, for
        `peft.PeftModel.from_pretrained` on the model that the run began with. Without `weights`, all else: what a
        checkpoint lacks. The folder appears when it is complete. Raises UsageError and RunError as `write_folder`
        does."""

        def write(into: Path) -> None:
            with quiet():
                if weights:
                    model = self.model
                    if self.config.lora is not None:
                        # A model folder that has adapters beside its weights would be read as adapters alone.
                        model.save_pretrained(into / ADAPTER, save_embedding_layers=False)
                        model = copy.deepcopy(model).merge_and_unload()
                    with _plain_generation(model):
                        model.save_pretrained(into)
                else:
                    self.bare.config.save_pretrained(into)
                settings = getattr(self.bare, "generation_config", None)
                if settings is not None:
                    settings.to_json_file(into / GENERATION)
                self.tokenizer.save_pretrained(into)
            if set(_ends(self.bare)) != set(self.tokens.ends):
                _write_ends(into / GENERATION, self.tokens.ends)

        return write_folder(folder, write)

    # For the families

    def new_tokens(self, obs: Sequence[Prompt], before: Record) -> tuple[Tensor, Tensor]:
        """What is new in each conversation, as ids [N, P] padded on the left, and which are real [N, P].

        `before` is the carry, or `no_conversation`. Raises UsageError for a first prompt that leaves no room in the
        context for an answer.
        """
        started = before["attention"].any(1).tolist()
        last = before["tokens"][:, -1].tolist() if before["tokens"].shape[1] else [None] * len(obs)
        rows = self.tokens.encode(obs, [token if old else None for token, old in zip(last, started)])
        for row, old in zip(rows, started):
            if not old and len(row) + 1 > self.context:
                raise UsageError(
                    f"a prompt has {len(row)} tokens and the context of {self.tokens.name} holds {self.context}: "
                    "shorten the prompts or take a model with a longer context"
                )
        prompt, real = pad_left(rows, self.tokens.pad)
        device = device_of(self)
        return prompt.to(device), real.to(device)

    def scaled(self, logits: Tensor) -> Tensor:
        """Logits in at least single precision, divided by the temperature, -inf at the ids of `unknown`."""
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if self.config.temperature != 1.0:
            logits = logits / self.config.temperature
        return logits if self.unknown is None else logits.masked_fill(self.unknown, float("-inf"))

    def unknown_ids(self) -> Tensor:
        """bool [V], ids that the tokenizer does not know. Raises UsageError if it knows more than the model has."""
        known, size = self.tokens.ids, self.vocabulary
        if known and known[-1] >= size:
            raise UsageError(
                f"the tokenizer of {self.tokens.name} has ids up to {known[-1]} and the model a vocabulary of {size}: "
                "they do not belong together"
            )
        unknown = torch.ones(size, dtype=torch.bool)
        unknown[torch.tensor(known, dtype=torch.int64)] = False
        return unknown


def _given(obs: Any) -> tuple[list[Prompt], bool]:
    """What `predict` was given as a list of prompts, and whether it is one prompt. Raises UsageError for neither."""
    single = isinstance(obs, str) or (isinstance(obs, list) and bool(obs) and all(isinstance(m, dict) for m in obs))
    prompts = [obs] if single else list(obs) if isinstance(obs, (list, tuple)) else [obs]
    for row, prompt in enumerate(prompts):
        messages = isinstance(prompt, list) and prompt and all(isinstance(m, dict) and "content" in m for m in prompt)
        if not isinstance(prompt, str) and not messages:
            place = "" if single or not isinstance(obs, (list, tuple)) else f" (row {row})"
            said = f"a text, a list of messages with role and content, or a list of these, and was given {prompt!r:.40}"
            raise UsageError(f"predict takes {said}{place}")
    if not prompts:
        raise UsageError("predict was given a list without a prompt")
    return prompts, single


def no_conversation(count: int, device: torch.device | None) -> Record:
    """The carry of `count` conversations that have not begun."""
    tokens = torch.zeros(count, 0, dtype=torch.int64, device=device)
    return {"tokens": tokens, "attention": tokens.bool()}


def _adapt(model: nn.Module, config: Any) -> nn.Module:
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


@contextmanager
def _plain_generation(model: Any) -> Iterator[None]:
    """With the library's own settings of generation: before transformers 5.24 a model that was published with settings
    that do not go together, such as a temperature without sampling, is not saved."""
    settings = getattr(model, "generation_config", None)
    if settings is not None:
        model.generation_config = type(settings)()
    try:
        yield
    finally:
        if settings is not None:
            model.generation_config = settings


def _write_ends(file: Path, ends: Sequence[int]) -> None:
    """Into the file, not into the model's settings: what a hub model says besides may not pass the library's checks."""
    content = json.loads(file.read_text()) if file.is_file() else {}
    files.write(file, json.dumps(content | {"eos_token_id": list(ends)}, indent=2).encode())


def context_of(model: Any, tokenizer: Any) -> int:
    """The longest text that the two can read, in tokens."""
    config = model.config.get_text_config()
    context = getattr(config, "max_position_embeddings", None) or tokenizer.model_max_length
    return int(min(context, 1 << 30))
