"""Chat templates: the text that a template makes of a prompt, of the answer to it, and of a later turn."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

from polopt.core.errors import UsageError

MARK = "@@polopt-answer@@"  # stands for an answer where only what the template writes around it is wanted
OPENINGS = ([{"role": "user", "content": "?"}], [{"role": "system", "content": "?"}, {"role": "user", "content": "?"}])


def continues(prompt: str | Sequence[dict[str, Any]]) -> bool:
    """Whether these are messages of which the last is the assistant's, so that the answer goes on with its words."""
    last = prompt[-1] if prompt and not isinstance(prompt, str) else {}
    return isinstance(last, dict) and last.get("role") == "assistant" and isinstance(last.get("content"), str)


class ChatTemplate:
    """What the chat template of a tokenizer writes. All of it is text; the tokenizer makes tokens of the whole.

    Args:
        tokenizer: a tokenizer of transformers, with or without a template.
        name: of the model, for messages.

    Attributes:
        end: the special token behind an answer; empty where it writes none.
        rest: what it writes behind the last answer of a conversation, after the end.
        opening: a prompt that it takes; empty where it takes none of `OPENINGS`.

    Everything raises UsageError, one sentence, for messages without a template and for those that it refuses.
    """

    def __init__(self, tokenizer: Any, name: str) -> None:
        self.tokenizer = tokenizer
        self.name = name
        self.end = self.rest = after = ""
        self.opening: list[dict[str, str]] = []
        for opening in () if tokenizer.chat_template is None else OPENINGS:
            with contextlib.suppress(UsageError):  # it wants other conversations than this one
                text = self._render([*opening, {"role": "assistant", "content": MARK}], False)
                self.opening, after = opening, text.partition(MARK)[2]
                break
        special = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
        found = [(after.find(token), -len(token), token) for token in {*special, *tokenizer.all_special_tokens}]
        found = sorted(entry for entry in found if entry[0] >= 0)
        self.rest = after
        if found:
            place, _, self.end = found[0]
            self.rest = after[place + len(self.end) :]

    def prompt(self, messages: Sequence[dict[str, Any]]) -> str:
        """The text that an answer follows. A last message of the assistant is the beginning of the answer."""
        if not continues(messages):
            return self._render(messages, True)
        text, mark, _ = self._render(_continued(messages, MARK), False).rpartition(MARK)
        if not mark:
            raise UsageError(f"the chat template of {self.name} does not let a prompt end in the assistant's words")
        return text

    def answered(self, messages: Sequence[dict[str, Any]], answer: str) -> tuple[str, str, bool]:
        """The text of the prompt, that of the answer up to its end, and whether it has one.

        Raises UsageError, too, where the template does not begin the text of both with that of the prompt.
        """
        if self.end:
            answer = answer.removesuffix(self.end)
        opened = self.prompt(messages)
        whole = self._render(
            _continued(messages, answer)
            if continues(messages)
            else [*messages, {"role": "assistant", "content": answer}],
            False,
        )
        if not whole.startswith(opened):
            same = next((i for i, (one, other) in enumerate(zip(opened, whole)) if one != other), len(whole))
            raise UsageError(
                f"the chat template of {self.name} opens an answer with {opened[same:]!r} and writes the answer "
                f"{answer[:40]!r} without it: give answers that begin so, or prompts and answers as plain text"
            )
        place = whole.rfind(self.end, len(opened)) if self.end else -1
        if place < 0:
            return opened, whole[len(opened) :].removesuffix(self.rest), False
        return opened, whole[len(opened) : place + len(self.end)], True

    def later(self, messages: Sequence[dict[str, Any]], ended: bool) -> str:
        """What follows an answer when the conversation goes on with these messages; `ended` says that the answer has
        its end already."""
        _, mark, text = self.prompt([*self.opening, {"role": "assistant", "content": MARK}, *messages]).partition(MARK)
        if not mark:
            raise UsageError(
                f"the chat template of {self.name} does not write the answers of earlier turns as they are"
            )
        before, end, after = text.partition(self.end) if self.end else (text, "", "")
        return after if ended and end and not before.strip() else text

    def _render(self, messages: Sequence[dict[str, Any]], opens: bool) -> str:
        if self.tokenizer.chat_template is None:
            raise UsageError(f"{self.name} has no chat template: give prompts as plain text, not as messages")
        try:
            return self.tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=opens)
        except Exception as error:  # whatever a template raises is about the messages
            first = (str(error).splitlines() or [""])[0].rstrip(".")
            raise UsageError(f"the chat template of {self.name} refuses these messages: {first}") from None


def _continued(messages: Sequence[dict[str, Any]], more: str) -> list[dict[str, Any]]:
    """The messages with more words of the last one."""
    *before, last = messages
    return [*before, {**last, "content": last["content"] + more}]
