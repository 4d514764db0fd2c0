"""Prompts from files: "PATH.jsonl", or "datasets/ID" through the Hugging Face library."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from polopt.core.errors import UsageError, nearest
from polopt.tasks.numbers import last_number
from polopt.tasks.problem import Message, Problem, Prompt
from polopt.tasks.text import TextTask

PREFIX = "datasets/"
OWN = ("prompt", "messages", "answer", "solution", "completion", "chosen", "rejected")
SHARE = 0.1  # of the prompts are held out for evaluation


class Prompts(TextTask):
    """One problem per row of a JSONL file or of a dataset.

    Columns: `prompt` (a text, or messages) or `messages` (a last message of the assistant is the solution); then, all
    optional, `answer`, `solution` or `completion` (worked solutions), `chosen` and `rejected` (preferences), `hint`,
    `level`. Every column except the prompt goes to the reward functions. `chosen` and `rejected` are texts, or messages
    of which the last is the assistant's; those may repeat the prompt, or stand for it when there is none.

    Rewards come from the reward functions, or else from comparing with `answer`. Data that only has solutions or
    preferences can be imitated, not scored (`scores` is False).

    A tenth of the different prompts, every tenth in order, is held out for evaluation when there are at least ten;
    equal prompts stay on one side. With fewer, evaluation uses the training prompts.

    Args:
        pool: the first so many prompts only; at most as many as there are.
        heldout: a share below 1; False for none; the name of a split of a dataset; or a second JSONL file.
        match: "line": the last line must be the answer; "number": the last number of the text must equal that of the
            answer exactly, however either is written: 1,000, 1000.0 and 2000/2 are equal.
        split: split of a dataset.
        subset: configuration of a dataset.
    """

    def __init__(
        self,
        num: int = 1,
        seed: int = 0,
        evaluation: bool = False,
        name: str = "prompts.jsonl",
        *,
        match: str = "line",
        split: str | None = None,
        subset: str | None = None,
        **options: Any,
    ) -> None:
        if match not in ("line", "number"):
            raise UsageError(f"match must be line or number, not {match!r}")
        if (split or subset) and not name.startswith(PREFIX):
            raise UsageError(f"split and subset belong to datasets/ID, not to the file {name}")
        super().__init__(num, seed, evaluation, name, **options)
        self.match = match
        self._rows = self._select(name, split, subset)
        self.conversational = not isinstance(self._rows[0].prompt, str)
        self.spec.info["conversational"] = self.conversational
        columns = {key for row in self._rows for key in row.columns}
        self.verifiable = any(row.answer is not None for row in self._rows)
        self.scores = self.rewards is not None or self.verifiable
        if match == "number":
            for row in self._rows:
                if row.answer is not None and last_number(row.answer) is None:
                    raise UsageError(f"match number needs answers with a number; {name} has the answer {row.answer!r}")
        if self.rewards is not None:
            if self.rewards.verifies and not self.verifiable:
                raise UsageError(f"the reward 'verifier' needs a column 'answer', which {name} has not")
            self.rewards.check(columns | {"answer", "solution", "level"})
        elif not self.verifiable and not any(row.solution or "chosen" in row.columns for row in self._rows):
            advice = "give --task.rewards module:function"
            raise UsageError(f"{name} has no 'answer' column and there is no reward function: {advice}")

    @property
    def count(self) -> int:
        return len(self._rows)

    def problem(self, index: int) -> Problem:
        return self._rows[index % len(self._rows)]

    def extract(self, problem: Problem, text: str) -> str:
        if self.match == "number":
            number = last_number(text)
            return "" if number is None else str(number)
        return (text.strip().splitlines() or [""])[-1].strip()

    def verify(self, problem: Problem, text: str) -> float:
        if problem.answer is None:
            return 0.0
        if self.match == "number":
            number = last_number(text)
            return float(number is not None and number == last_number(problem.answer))
        lines = text.strip().splitlines() or [""]
        return float(problem.answer.strip() in (text.strip(), lines[-1].strip()))

    def preferences(self, indices: Sequence[int]) -> list[tuple[Prompt, str, str]]:
        """(prompt, chosen, rejected) of the rows with these ids. Raises UsageError for a row without them."""
        pairs = []
        for index in indices:
            row = self.problem(int(index))
            chosen, rejected = (completion_text(row.columns.get(name)) for name in ("chosen", "rejected"))
            if chosen is None or rejected is None:
                raise UsageError(f"prompt {index} of {self.spec.name} has no 'chosen' and 'rejected' texts")
            pairs.append((row.prompt, chosen, rejected))
        return pairs

    def _select(self, name: str, split: str | None, subset: str | None) -> list[Problem]:
        """The rows of this side, training or evaluation."""
        heldout = self.heldout
        if isinstance(heldout, str):
            if self.evaluation and name.startswith(PREFIX):
                split = heldout
            elif self.evaluation:
                name = heldout
            heldout = False
        share = SHARE if heldout is True else heldout
        if not isinstance(share, (float, int)) or not 0 <= share < 1:
            raise UsageError(f"heldout must be a share below 1, false, a split or a JSONL file, not {heldout!r}")
        rows = read_dataset(name, split, subset) if name.startswith(PREFIX) else read_jsonl(name)
        keys = {key: order for order, key in enumerate(dict.fromkeys(row.key for row in rows))}
        if share and len(keys) * share >= 1:
            # Key number k is held out when the count floor((k + 1) share) steps up there.
            out = {key for key, k in keys.items() if int((k + 1) * share + 1e-9) > int(k * share + 1e-9)}
            rows = [row for row in rows if (row.key in out) == self.evaluation]
        return rows[: self.pool]


def read_jsonl(path: str | Path) -> list[Problem]:
    """One problem per line of a file of JSON objects; blank lines are skipped. Raises UsageError naming the line."""
    file = Path(path)
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except FileNotFoundError:
        folder = file.parent
        others = [str(folder / other.name) for other in folder.glob("*.jsonl")] if folder.is_dir() else []
        raise UsageError(f"there is no file {path}{nearest(str(file), others)}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not a text file in UTF-8") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    rows = []
    for count, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"line {count} of {path}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{where} is not JSON: {error}") from None
        if not isinstance(row, dict):
            raise UsageError(f"{where} is not a JSON object with columns")
        rows.append(read_row(row, where))
    if not rows:
        raise UsageError(f"{path} is empty: it needs one JSON object with a 'prompt' or 'messages' per line")
    return rows


def read_dataset(name: str, split: str | None = None, subset: str | None = None) -> list[Problem]:
    """One problem per row of "datasets/ID": a hub id, a folder of data files or one written by `save_to_disk`.

    Without `split`, "train" or the only one. All rows are read into memory. Raises UsageError, one sentence.
    """
    try:
        import datasets
    except ImportError as error:
        advice = 'pip install "polopt[language]"'
        raise UsageError(f"{name} needs the package '{error.name}': {advice}") from None
    source = name.removeprefix(PREFIX)
    folder = Path(source)
    saved = any((folder / file).exists() for file in ("dataset_info.json", "dataset_dict.json"))
    try:
        data = datasets.load_from_disk(source) if saved else datasets.load_dataset(source, subset)
    except Exception as error:
        said = " ".join(str(error).split()).rstrip(".")
        raise UsageError(f"{name} cannot be loaded: {type(error).__name__}{said and ': ' + said}") from None
    if isinstance(data, dict):
        chosen = split or ("train" if "train" in data else next(iter(data)))
        if chosen not in data or (split is None and "train" not in data and len(data) > 1):
            asked = f"has no split '{chosen}'" if split else "has several splits, so --task.split must name one"
            raise UsageError(f"{name} {asked}{nearest(chosen, data)}")
        data = data[chosen]
    elif split not in (None, str(data.split)):
        raise UsageError(f"{name} has no split '{split}': it is a single table")
    rows = [read_row(dict(row), f"row {count} of {name}") for count, row in enumerate(data)]
    if not rows:
        raise UsageError(f"{name} is empty")
    return rows


def read_row(row: dict[str, Any], where: str) -> Problem:
    """A problem from one row of columns; `where` says in messages which one. Raises UsageError."""
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
    solution = row.get("solution") if row.get("solution") is not None else row.get("completion")
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
