"""Text to tokens and back: prompts padded on the left, completions on the right, masks that say what is real."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from polopt.core.errors import UsageError

Prompt = str | list[dict[str, Any]]
"""A plain text, or messages {"role", "content"} that the tokenizer's chat template turns into one."""

_MARK = "@@polopt-answer@@"  # stands for the previous answer when the text of a later turn is cut out of a template


def need(package: str) -> Any:
    """The imported package. Raises UsageError, naming the extra that brings it, where it is not installed."""
    import importlib

    try:
        return importlib.import_module(package)
    except ImportError:
        raise UsageError(f'language models need {package}: pip install "polopt[language]"') from None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without progress bars and warnings of transformers; its settings are put back."""
    logging = need("transformers").utils.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


class Tokens:
    """A tokenizer with what polopt asks of it. Copies of a policy share it.

    Args:
        tokenizer: a tokenizer of transformers.
        name: of the model, for messages.
        ends: ids that end a completion; by default the tokenizer's eos.

    `pad` fills what the masks call padding. It is the eos id where the tokenizer has no pad token, which is harmless
    because the masks decide, never the id. Raises UsageError where no id ends a completion.
    """

    def __init__(self, tokenizer: Any, name: str, ends: Sequence[int] = ()) -> None:
        self.tokenizer = tokenizer
        self.name = name
        own = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
        self.ends = tuple(dict.fromkeys([*own, *ends]))
        if not self.ends:
            raise UsageError(f"the tokenizer of {name} has no eos token, so no completion would ever end")
        self.eos = self.ends[0]
        self.pad = self.eos if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)
        bos = tokenizer.bos_token_id
        self._bos = [] if bos is None else [int(bos)]
        self._start = self._bos if self._bos and tokenizer("")["input_ids"][:1] == self._bos else []

    def __deepcopy__(self, memo: dict[int, Any]) -> Tokens:
        return self

    @property
    def ids(self) -> list[int]:
        """Every id that the tokenizer knows."""
        return sorted(set(self.tokenizer.get_vocab().values()))

    def encode(self, prompts: Sequence[Prompt], last: Sequence[int | None] | None = None) -> list[list[int]]:
        """The ids of what is new in each conversation, ready for the model to answer.

        `last` holds the last id of each conversation so far, None for a new one. A new plain text gets the bos token
        if the tokenizer adds one; messages go through the chat template, those of a later turn with what the template
        writes between an answer and them. A new conversation has at least one token. Raises UsageError for messages
        without a chat template, and for those that the template refuses.
        """
        last = [None] * len(prompts) if last is None else last
        texts = [prompt if isinstance(prompt, str) else self._render(prompt, end) for prompt, end in zip(prompts, last)]
        rows = self._plain(texts)
        for i, (prompt, end) in enumerate(zip(prompts, last)):
            if end is None:
                start = self._start if isinstance(prompt, str) else []
                rows[i] = [*start, *rows[i]] or self._bos or [self.eos]
        return rows

    def complete(self, completions: Sequence[str], eos: bool = True) -> list[list[int]]:
        """The ids of whole answers, with the eos token at the end unless told otherwise."""
        return [[*row, self.eos] if eos else row for row in self._plain(list(completions))]

    def decode(self, rows: Tensor) -> list[str]:
        """The texts of `rows` [N, T] up to the first end, without special tokens."""
        ends = set(self.ends)
        kept = [row[: next((i for i, token in enumerate(row) if token in ends), len(row))] for row in rows.tolist()]
        return self.texts(kept)

    def texts(self, rows: list[list[int]]) -> list[str]:
        """The texts of rows of tokens, without special tokens."""
        return self.tokenizer.batch_decode(rows, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def _plain(self, texts: list[str]) -> list[list[int]]:
        if not texts:
            return []
        with quiet():  # it warns of texts longer than the context; the policy says that itself
            return self.tokenizer(texts, add_special_tokens=False)["input_ids"]

    def _render(self, messages: list[dict[str, Any]], last: int | None) -> str:
        if self.tokenizer.chat_template is None:
            raise UsageError(f"{self.name} has no chat template: give prompts as plain text, not as messages")
        past = [] if last is None else [{"role": "user", "content": "?"}, {"role": "assistant", "content": _MARK}]
        try:
            text = self.tokenizer.apply_chat_template([*past, *messages], tokenize=False, add_generation_prompt=True)
        except Exception as error:  # whatever a template raises is about the messages
            first = (str(error).splitlines() or [""])[0].rstrip(".")
            raise UsageError(f"the chat template of {self.name} refuses these messages: {first}") from None
        if last is None:
            return text
        text = text.split(_MARK)[-1]
        if last in self.ends:  # the template's own end of the answer is there already, as a sampled token
            end = self.tokenizer.convert_ids_to_tokens(last)
            text = text.removeprefix(end)
        return text


def pad_left(rows: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    """Ids int64 [N, P] ending in the last column, and which are real, bool [N, P]."""
    width = max((len(row) for row in rows), default=0)
    return _table([[pad] * (width - len(row)) + list(row) for row in rows], width), _table(
        [[False] * (width - len(row)) + [True] * len(row) for row in rows], width
    ).bool()


def pad_right(rows: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    """Ids int64 [N, T] beginning in the first column, and which are real, bool [N, T]."""
    width = max((len(row) for row in rows), default=0)
    return _table([list(row) + [pad] * (width - len(row)) for row in rows], width), _table(
        [[True] * len(row) + [False] * (width - len(row)) for row in rows], width
    ).bool()


def pack_left(tokens: Tensor, real: Tensor, width: int | None = None) -> tuple[Tensor, Tensor]:
    """The real tokens of each row [N, L] in order, without holes, ending in the last column of [N, width]; the width
    is that of the longest row unless it is given."""
    order = real.to(torch.int8).argsort(dim=1, stable=True)
    if width is None:
        width = int(real.sum(1).max()) if real.numel() else 0
    order = order[:, order.shape[1] - width :]
    return tokens.gather(1, order), real.gather(1, order)


def _table(rows: Sequence[Sequence[int]], width: int) -> Tensor:
    return torch.tensor(rows, dtype=torch.int64).reshape(len(rows), width)
