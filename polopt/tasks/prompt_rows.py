"""A problem from one row of columns: what the columns of data sets mean."""

from __future__ import annotations

import json
from typing import Any

from polopt.core.errors import UsageError
from polopt.tasks.problem import Message, Problem, Prompt


def read_row(row: dict[str, Any], where: str, worked: bool = True) -> Problem:
    """A problem from one row of columns; `where` says in messages which one. Raises UsageError.

    What is called its solution is a worked one, unless `worked` is False.
    """
    name = next((name for name in ("prompt", "messages") if row.get(name) is not None), None)
    preferred = _preference_prompt(row, name, where)
    if name is None and preferred is None:
        has = ", ".join(sorted(map(str, row))) or "none"
        raise UsageError(f"{where} has neither 'prompt' nor 'messages'; its columns are {has}")
    prompt: Prompt = preferred if preferred is not None else row[str(name)]
    reply = None
    if not isinstance(prompt, str) or name == "messages":
        prompt = _messages(prompt, f"'{name}' in {where}", "a list of messages")
        if name == "messages" and len(prompt) > 1 and prompt[-1]["role"] == "assistant":
            prompt, reply = prompt[:-1], prompt[-1]["content"]
            _check_turn(prompt, f"'{name}' in {where}")
    solution = row.get("solution") if worked and row.get("solution") is not None else row.get("completion")
    if isinstance(solution, list):
        prompt = _check_solution(solution, prompt, where)
    solution = completion_text(solution) if solution is not None else reply
    answer = row.get("answer")
    if answer is not None and not isinstance(answer, (str, int, float)):
        raise UsageError(f"'answer' in {where} must be a text or a number, not {type(answer).__name__}")
    level, hint = row.get("level"), row.get("hint")
    columns = {str(key): value for key, value in row.items() if key not in ("prompt", "messages")}
    key = prompt if isinstance(prompt, str) else json.dumps(prompt, sort_keys=True)
    return Problem(
        prompt=prompt,
        answer=None if answer is None else str(answer),
        solution=solution,
        hint=hint if isinstance(hint, str) else None,
        level=level if isinstance(level, int) else 0,
        columns=columns,
        key=key,
    )


def _messages(value: Any, where: str, what: str) -> list[Message]:
    good = isinstance(value, list) and bool(value)
    good = good and all(
        isinstance(one, dict) and isinstance(one.get("role"), str) and isinstance(one.get("content"), str)
        for one in value
    )
    if not good:
        raise UsageError(f"{where} must be {what} with the texts 'role' and 'content'")
    return [dict(one) for one in value]


def _check_turn(before: list[Message], where: str) -> None:
    """Raises UsageError when a message of the assistant would follow another one: templates make two turns of them."""
    if before[-1]["role"] == "assistant":
        raise UsageError(f"{where} ends in two messages of the assistant: join them, or put a user's message between")


def _check_solution(solution: list[Any], prompt: Prompt, where: str) -> Prompt:
    """The prompt of a solution that is messages: messages too. Raises UsageError where they say more than the answer
    to that prompt, which would be lost."""
    messages = _messages(solution, f"the solution in {where}", "a text or messages")
    opening = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    if messages[-1]["role"] != "assistant":
        raise UsageError(f"the solution in {where} must be a text or messages of which the last is the assistant's")
    if messages[:-1] not in ([], opening):
        raise UsageError(f"the solution in {where} has more messages than the answer: put the others in the prompt")
    return opening


def _preference_prompt(row: dict[str, Any], name: str | None, where: str) -> Prompt | None:
    """The prompt of a row as its `chosen` and `rejected` tell it; None if they are texts. Raises UsageError.

    Where a side is messages the prompt is messages too, so that it goes through the chat template.
    """
    sides = {side: row.get(side) for side in ("chosen", "rejected")}
    if any(value is None for value in sides.values()) or all(isinstance(value, str) for value in sides.values()):
        return None
    given = None if name is None else row[name]
    if name == "messages" and isinstance(given, list) and given and given[-1] == _last(sides["chosen"]):
        given = given[:-1]
    before = []  # what the sides have before their answers
    for side, value in sides.items():
        messages = [] if isinstance(value, str) else _messages(value, f"'{side}' in {where}", "a text or messages")
        if messages and messages[-1]["role"] != "assistant":
            raise UsageError(f"'{side}' in {where} must be a text or messages of which the last is the assistant's")
        if messages[:-1]:
            _check_turn(messages[:-1], f"'{side}' in {where}")
            before.append(messages[:-1])
            said = before[-1][-1]["content"] if isinstance(given, str) else before[-1]
            if given is not None and said != given:
                raise UsageError(f"'{side}' in {where} begins with other messages than '{name}'")
    if given is None and len(before) < 2:
        raise UsageError(f"{where} has no 'prompt' or 'messages', and its two sides do not both begin with one")
    if before and before[0] != before[-1]:
        raise UsageError(f"'chosen' and 'rejected' in {where} do not begin alike")
    if before:
        return before[0]
    return [{"role": "user", "content": given}] if isinstance(given, str) else None


def _last(value: Any) -> Any:
    return value[-1] if isinstance(value, list) and value else None


def completion_text(value: Any) -> str | None:
    """The text of a completion: a text, or the last of its messages, of which the others repeat the prompt."""
    if isinstance(value, list) and value and isinstance(value[-1], dict):
        value = value[-1].get("content")
    return value if isinstance(value, str) else None
