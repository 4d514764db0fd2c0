"""Text to tokens and back: prompts padded on the left, completions on the right, masks that say what is real."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from polopt.core.errors import UsageError
from polopt.data.templates import MARK, ChatTemplate

Prompt = str | list[dict[str, Any]]
"""A plain text, or messages {"role", "content"} that the tokenizer's chat template turns into one."""

HEADS = "a.0e!1"  # characters that may stand before a text while it is tokenized or decoded


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

    A completion is tokenized behind its prompt, not by itself: the ids of prompt and completion are those of the whole
    text. Only where a token would reach across the boundary are the prompt's ids kept, as they are while sampling, and
    the completion gets ids of its own that spell it. Messages are what the chat template makes of them, spaces around
    the answer and its end included.

    Args:
        tokenizer: a tokenizer of transformers.
        name: of the model, for messages.
        ends: further ids that end a completion, beside the tokenizer's eos and the end that the chat template writes.

    `pad` fills what the masks call padding. It is the eos id where the tokenizer has no pad token, which is harmless
    because the masks decide, never the id. Raises UsageError where no id ends a completion.
    """

    def __init__(self, tokenizer: Any, name: str, ends: Sequence[int] = ()) -> None:
        self.tokenizer = tokenizer
        self.name = name
        self.template = ChatTemplate(tokenizer, name)
        own = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
        written = [int(tokenizer.convert_tokens_to_ids(self.template.end))] if self.template.end else []
        self.ends = tuple(dict.fromkeys([*own, *written, *ends]))
        if not self.ends:
            raise UsageError(f"the tokenizer of {name} has no eos token, so no completion would ever end")
        self.eos = self.ends[0]
        self.pad = self.eos if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)
        bos = tokenizer.bos_token_id
        self._bos = [] if bos is None else [int(bos)]
        self._start = self._bos if self._bos and tokenizer("")["input_ids"][:1] == self._bos else []
        self._letter = self._find_letter()
        self._around = self._find_around()

    def __deepcopy__(self, memo: dict[int, Any]) -> Tokens:
        return self

    @property
    def ids(self) -> list[int]:
        """Every id that the tokenizer knows."""
        return sorted(set(self.tokenizer.get_vocab().values()))

    def encode(self, prompts: Sequence[Prompt], last: Sequence[int | None] | None = None) -> list[list[int]]:
        """The ids of what is new in each conversation, ready for the model to answer.

        `last` holds the last id of each conversation so far, None for a new one. A new plain text gets the bos token
        if the tokenizer adds one and the text does not begin with it; messages go through the chat template, those of a
        later turn with what the template writes between an answer and them. Messages that end in the assistant's words
        are to be continued. A new conversation has at least one token. Raises UsageError for messages without a chat
        template, and for those that the template refuses.
        """
        last = [None] * len(prompts) if last is None else last
        template = self.template
        texts = [
            prompt
            if isinstance(prompt, str)
            else template.prompt(prompt)
            if end is None
            else template.later(prompt, end in self.ends)
            for prompt, end in zip(prompts, last)
        ]
        rows = self._plain(texts)
        return [
            self._opened(row, prompt) if end is None else self._behind(text, end)
            for row, prompt, text, end in zip(rows, prompts, texts, last)
        ]

    def complete(
        self, prompts: Sequence[Prompt], completions: Sequence[str], eos: bool = True
    ) -> tuple[list[list[int]], list[list[int]]]:
        """The ids of prompts, as `encode` gives them, and of the whole answers to them.

        An answer to messages is what the chat template writes, up to its end; one to a plain text has the eos token
        behind it, and so has one to messages whose template writes no end. An end that is there already is not written
        twice; without `eos` none is written.
        """
        parts = [
            (prompt, answer, False) if isinstance(prompt, str) else self.template.answered(prompt, answer)
            for prompt, answer in zip(prompts, completions, strict=True)
        ]
        bare = self._plain([text for text, _, _ in parts])
        wholes = self._plain([text + answer for text, answer, _ in parts])
        answers = []
        for (_, answer, has_end), before, whole in zip(parts, bare, wholes):
            clean = before and whole[: len(before)] == before  # no token reaches across the boundary
            row = whole[len(before) :] if clean else self._behind(answer)
            if eos and not (row and row[-1] in self.ends):
                row = [*row, self.eos]
            answers.append(row[:-1] if has_end and not eos else row)
        return [self._opened(row, prompt) for row, prompt in zip(bare, prompts)], answers

    def decode(self, rows: Tensor, chat: bool = False, begun: bool | Sequence[bool] = False) -> list[str]:
        """The texts of completions `rows` [N, T] up to the first end, without special tokens and, of a `chat`, without
        what the template writes around an answer, or only behind it where the prompt has `begun` the answer (of all
        rows, or [N])."""
        ends = set(self.ends)
        kept = [row[: next((i for i, token in enumerate(row) if token in ends), len(row))] for row in rows.tolist()]
        texts = self.texts(kept, behind=True)
        lead, trail = self._around if chat else ("", "")
        open_ = [begun] * len(texts) if isinstance(begun, bool) else begun
        return [
            text.removeprefix("" if on else lead).removesuffix(trail) for text, on in zip(texts, open_, strict=True)
        ]

    def texts(self, rows: list[list[int]], behind: bool = False, special: bool = False) -> list[str]:
        """The texts of rows of tokens, with or without special tokens. What stands `behind` other text keeps the space
        that tokenizers take from the beginning of a text."""
        letter = self._letter if behind else None
        texts = self.tokenizer.batch_decode(
            rows if letter is None else [[letter[0], *row] for row in rows],
            skip_special_tokens=not special,
            clean_up_tokenization_spaces=False,
        )
        return texts if letter is None else [text[len(letter[1]) :] for text in texts]

    def _plain(self, texts: list[str]) -> list[list[int]]:
        if not texts:
            return []
        with quiet():  # it warns of texts longer than the context; the policy says that itself
            return self.tokenizer(texts, add_special_tokens=False)["input_ids"]

    def _opened(self, row: list[int], prompt: Prompt) -> list[int]:
        """The ids of a new conversation, which has at least one."""
        start = self._start if isinstance(prompt, str) and row[:1] != self._bos else []
        return [*start, *row] or self._bos or [self.eos]

    def _behind(self, text: str, last: int | None = None) -> list[int]:
        """The ids of a text that follows others, without what a tokenizer does at the beginning of a text.

        It is tokenized behind something from which its tokens can be told: the token `last` if that is special, or
        else characters that do not grow together with it. The first ids that spell the text are taken.
        """
        if not text:
            return []
        if last in self.ends:
            own, row = self._plain([self._word(last), self._word(last) + text])
            if own == [last] and row[:1] == own:
                return row[1:]
        found: list[list[int]] = []
        for head in (self._word(self.eos), *HEADS):
            own, row = self._plain([head, head + text])
            if own and row[: len(own)] == own:
                found.append(row[len(own) :])
                if self.texts(found[-1:], behind=True, special=True) == [text]:
                    return found[-1]
        return found[0] if found else self._plain([text])[0]

    def _word(self, token: int) -> str:
        return self.tokenizer.convert_ids_to_tokens(token)

    def _find_letter(self) -> tuple[int, str] | None:
        """A token, and its text, to which the decoder adds nothing and from which it takes nothing; None where it adds
        spaces between tokens of its own accord."""
        for head in HEADS:
            token = (self._plain([head * 2])[0] or [self.eos])[-1]
            one, two = self.texts([[token], [token, token]])
            if one.strip() == one != "" and two == 2 * one:
                return token, one
        return None

    def _find_around(self) -> tuple[str, str]:
        """What stands before and behind an answer to messages: spaces, an empty thought."""
        with contextlib.suppress(UsageError):  # messages are refused, and it will be said of those that are given
            answers = self.complete([self.template.opening], [MARK])[1]
            lead, mark, trail = self.decode(torch.tensor(answers))[0].partition(MARK)
            if mark:
                return lead, trail
        return "", ""


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
