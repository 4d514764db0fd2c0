"""Models that reward texts: one that is asked for a grade, and one that was trained to give a score.

Both are reward functions with TRL's signature, in Python (`rewards=Judge(...)`) as by name: `--task.rewards
judge:MODEL`, `scorer:MODEL`, or `module:function` for one that a module of your own has made.
"""

from __future__ import annotations

import re
import weakref
from collections.abc import Callable, Mapping, Sequence
from inspect import Parameter, Signature
from typing import Any

import torch
from gymnasium import spaces

from polopt.core.errors import UsageError, nearest
from polopt.core.modules import device_of
from polopt.core.spec import Spec
from polopt.data.tokenizing import Prompt, need, pad_right, quiet
from polopt.policies.language import CausalLM
from polopt.policies.pretrained import kept_model, load_pretrained
from polopt.policies.text import context_of
from polopt.tasks.rewards import Unscored

TEMPLATE = """Grade the answer to a question.

Question:
{prompt}

Answer:
{completion}

Reply with the grade alone, a number from {low} (useless) to {high} (perfect)."""

FIELD = re.compile(r"\{(\w+)\}")
GRADE = re.compile(r"(?<![\d.])((?:(?<!\w)-)?\d+(?:\.\d+)?)(?:\s*(?:/|out of|of)\s*(\d+(?:\.\d+)?))?")


class ModelReward:
    """A reward function that asks a model.

    Attributes:
        timeout: seconds that a call may take, in place of the task's.
        __signature__: that it takes prompts, completions and these columns.
    """

    timeout = 600.0

    def __init__(self, model: str, columns: Sequence[str], batch: int) -> None:
        if batch < 1:
            raise UsageError(f"a model reads at least 1 completion at a time, not {batch!r}")
        self.model = model
        self.batch = batch
        names = ("prompts", "completions", *columns)
        self.__signature__ = Signature([Parameter(name, Parameter.KEYWORD_ONLY) for name in names])

    def __call__(
        self, prompts: Sequence[Prompt], completions: Sequence[Prompt], **columns: Sequence[Any]
    ) -> list[float | Unscored | None]:
        """The rewards of n samples; None where a column that is asked for has no value, Unscored where none came."""
        found: list[float | Unscored | None] = [None] * len(prompts)
        asked = [i for i in range(len(prompts)) if all(values[i] is not None for values in columns.values())]
        for start in range(0, len(asked), self.batch):
            rows = asked[start : start + self.batch]
            each = [{name: values[i] for name, values in columns.items()} for i in rows]
            given = self.ask([prompts[i] for i in rows], [completions[i] for i in rows], each)
            for i, value in zip(rows, given, strict=True):
                found[i] = value
        return found

    def ask(
        self, prompts: Sequence[Prompt], completions: Sequence[Prompt], columns: Sequence[Mapping[str, Any]]
    ) -> list[float | Unscored]:
        raise NotImplementedError  # abstract


class Judge(ModelReward):
    """A language model that reads a text and answers with a grade; the reward is (grade - low) / (high - low).

    An answer without a grade between `low` and `high`, or one that was cut at `max_tokens`, costs the sample. Answers
    are greedy, so that equal texts have equal grades.

    Args:
        model: a folder, a hub id, a run of polopt, or the size of a new one.
        template: what the model reads. `{prompt}`, `{completion}`, `{low}`, `{high}` and columns of the task such as
            `{answer}` are filled in; other braces stay as they are.
        parse: reads the grade in the answer, None where there is none. Without it the grade is the last number behind
            the last "</think>"; "7/10" is 7.
        chat: the text is a user's message in the model's chat template; None: if it has one.
        batch: completions that it reads at once.
        device: None: the GPU if there is one. dtype: of the weights; None: torch's default.

    Raises:
        UsageError: for a model that cannot be loaded, and a template without `{completion}`.
    """

    def __init__(
        self,
        model: str,
        template: str = TEMPLATE,
        *,
        low: float = 0.0,
        high: float = 10.0,
        parse: Callable[[str], float | None] | None = None,
        max_tokens: int = 256,
        chat: bool | None = None,
        batch: int = 32,
        device: str | None = None,
        dtype: str | None = None,
    ) -> None:
        own = ("prompt", "completion", "low", "high")
        fields = list(dict.fromkeys(FIELD.findall(template)))
        if "completion" not in fields:
            raise UsageError("the template of a judge has no '{completion}', so that it would grade nothing")
        if not low < high:
            raise UsageError(f"the grades of a judge go from a lower to a higher one, not from {low!r} to {high!r}")
        super().__init__(model, [name for name in fields if name not in own], batch)
        self.template, self.low, self.high = template, float(low), float(high)
        self.parse = parse or self.last_number
        text = spaces.Text(1 << 20)
        with kept_model(None):  # a run that is read back keeps its own model, not its judge
            config = CausalLM(model=model, max_tokens=max_tokens, dtype=dtype, log_probs="engine")
            self.policy = config.build(Spec(text, text, "a judge")).requires_grad_(False).to(_device(device))
        self.chat = self.policy.tokenizer.chat_template is not None if chat is None else chat

    def last_number(self, text: str) -> float | None:
        """The last number of a text behind its last thought; None without one, and for a share of another than `high`
        such as 3/5."""
        found = GRADE.findall(text.rpartition("</think>")[2])
        grade, over = found[-1] if found else ("", "")
        return float(grade) if grade and float(over or self.high) == self.high else None

    def read(self, text: str) -> float | Unscored:
        """The reward that an answer of the model means."""
        grade, shown = self.parse(text), " ".join(text.split())
        if grade is None or not self.low <= grade <= self.high:
            shown = shown if len(shown) <= 60 else f"{shown[:60]}..."
            return Unscored(
                f"the judge {self.model} answered '{shown}', not a grade from {self.low:g} to {self.high:g}"
            )
        return (grade - self.low) / (self.high - self.low)

    def fill(self, prompt: Prompt, completion: Prompt, columns: Mapping[str, Any]) -> str:
        """The template of one sample."""
        scale = {"low": f"{self.low:g}", "high": f"{self.high:g}"}
        values = {**columns, "prompt": as_text(prompt), "completion": as_text(completion), **scale}
        return FIELD.sub(lambda match: str(values.get(match[1], match[0])), self.template)

    @torch.no_grad()
    def ask(
        self, prompts: Sequence[Prompt], completions: Sequence[Prompt], columns: Sequence[Mapping[str, Any]]
    ) -> list[float | Unscored]:
        texts = [self.fill(*sample) for sample in zip(prompts, completions, columns)]
        read: list[Prompt] = [[{"role": "user", "content": text}] if self.chat else text for text in texts]
        lengths, context = [len(ids) for ids in self.policy.tokens.encode(read)], self.policy.context
        fit = [i for i, length in enumerate(lengths) if length < context]
        found: list[float | Unscored] = [
            Unscored(f"the judge {self.model} was to read {length} tokens, and its context holds {context}")
            for length in lengths
        ]
        if fit:
            record, _ = self.policy.act([read[i] for i in fit], greedy=True)
            answers = self.policy.tokens.decode(record["action"], chat=self.chat)
            for i, answer, ended in zip(fit, answers, record["ended"].tolist()):
                found[i] = self.read(answer) if ended else Unscored(f"the answer of the judge {self.model} was cut")
        return found


class Scorer(ModelReward):
    """A sequence-classification model of transformers, such as a reward model: what it says of prompt and completion.

    It reads the whole conversation in its chat template, or, without one, the completion behind the prompt. A model of
    one output gives that number as it is; of several, `label` (number or name) says which one's probability.

    Args:
        model: a folder or a hub id. batch, device, dtype: as for `Judge`.

    Raises:
        UsageError: for a model that cannot be loaded or is none of that kind, and for a label that it lacks.
    """

    def __init__(
        self,
        model: str,
        *,
        label: int | str | None = None,
        batch: int = 32,
        device: str | None = None,
        dtype: str | None = None,
    ) -> None:
        super().__init__(model, (), batch)
        kind = torch.get_default_dtype() if dtype is None else getattr(torch, dtype)
        made: Any
        with kept_model(None):
            made, self.tokenizer, _ = load_pretrained(model, dtype=kind, head="SequenceClassification")
        self.net = made.requires_grad_(False).to(_device(device))
        labels = {int(number): str(name) for number, name in self.net.config.id2label.items()}
        self.label = _label(model, label, labels)
        self.context = min(context_of(self.net, self.tokenizer), self.tokenizer.model_max_length)
        own = self.tokenizer.pad_token_id
        self.pad = self.net.config.get_text_config().pad_token_id
        if self.pad is None:  # the model finds a text's last token by it
            self.pad = self.net.config.pad_token_id = self.tokenizer.eos_token_id if own is None else own

    def encode(self, prompt: Prompt, completion: Prompt) -> list[int]:
        """The ids of one conversation."""
        if self.tokenizer.chat_template is None:
            return self.tokenizer(as_text(prompt) + as_text(completion))["input_ids"]
        turns = [_messages(prompt, "user"), _messages(completion, "assistant")]
        text = self.tokenizer.apply_chat_template([*turns[0], *turns[1]], tokenize=False)
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    @torch.no_grad()
    def ask(
        self, prompts: Sequence[Prompt], completions: Sequence[Prompt], columns: Sequence[Mapping[str, Any]]
    ) -> list[float | Unscored]:
        with quiet():  # of texts longer than the context
            rows = [self.encode(*sample) for sample in zip(prompts, completions)]
        fit = [i for i, row in enumerate(rows) if 0 < len(row) <= self.context]
        found: list[float | Unscored] = [
            Unscored(f"the scorer {self.model} was to read {len(row)} tokens, and takes 1 to {self.context}")
            for row in rows
        ]
        if fit:
            tokens, real = (part.to(device_of(self.net)) for part in pad_right([rows[i] for i in fit], self.pad))
            logits = self.net(input_ids=tokens, attention_mask=real.long()).logits.double()  # [n, labels]
            scores = logits[:, 0] if self.label is None else logits.softmax(-1)[:, self.label]
            for i, score in zip(fit, scores.tolist()):
                found[i] = score
        return found


_MADE: weakref.WeakValueDictionary[tuple[str, str], ModelReward] = weakref.WeakValueDictionary()
KINDS: dict[str, Callable[[str], ModelReward]] = {"judge": Judge, "scorer": Scorer}


def model_reward(kind: str, model: str) -> ModelReward:
    """The judge or scorer of a name; one as long as it is used, so that training and evaluation share its weights."""
    need("transformers")
    made = _MADE.get((kind, model)) or KINDS[kind](model)
    return _MADE.setdefault((kind, model), made)


def as_text(turns: Prompt) -> str:
    """A prompt or a completion as one text; several messages are lines that begin with the role."""
    if isinstance(turns, str):
        return turns
    if len(turns) == 1:
        return str(turns[0]["content"])
    return "\n".join(f"{message['role']}: {message['content']}" for message in turns)


def _messages(turns: Prompt, role: str) -> list[dict[str, Any]]:
    return [{"role": role, "content": turns}] if isinstance(turns, str) else list(turns)


def _device(name: str | None) -> torch.device:
    return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))


def _label(model: str, label: int | str | None, labels: Mapping[int, str]) -> int | None:
    """The number of a label. Raises UsageError."""
    if label is None and len(labels) > 1:
        raise UsageError(f"{model} has the labels {', '.join(labels.values())}: say which with Scorer(..., label=...)")
    if label is None or label in labels:
        return None if label is None else int(label)
    for number, name in labels.items():
        if name == label:
            return number
    raise UsageError(f"{model} has no label {label!r}{nearest(str(label), labels.values())}")
