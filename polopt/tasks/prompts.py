"""Prompts from files: "PATH.jsonl", "PATH.parquet", or "datasets/ID" through the Hugging Face library."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from polopt.core.errors import UsageError
from polopt.tasks.layouts import READ, Layout, layout_of
from polopt.tasks.math_answers import checker
from polopt.tasks.numbers import last_number
from polopt.tasks.options import choice
from polopt.tasks.problem import Problem, Prompt
from polopt.tasks.prompt_files import PREFIX, read_prompts
from polopt.tasks.prompt_rows import completion_text
from polopt.tasks.text import TextTask

SHARE = 0.1  # of the prompts are held out for evaluation
MATCHES = ("line", "number", "math")


class Prompts(TextTask):
    """One problem per row of a JSONL file, a Parquet file or a data set.

    Columns: `prompt` (a text, or messages) or `messages` (a last message of the assistant is the solution); then, all
    optional, `answer` (or verl's `reward_model.ground_truth`), `solution` or `completion` (worked solutions), `chosen`
    and `rejected` (preferences), `hint`, `level`. Other names are given as options, and those of known data sets are
    known (`polopt.tasks.layouts`). Every column except the prompt goes to the reward functions. `chosen` and `rejected`
    are texts, or messages of which the last is the assistant's; those may repeat the prompt, or stand for it when there
    is none.

    Rewards come from the reward functions, or else from comparing with `answer`. Data that only has solutions or
    preferences can be imitated, not scored (`scores` is False).

    A tenth of the different prompts, every tenth in order, is held out for evaluation when there are at least ten;
    equal prompts stay on one side. With fewer, evaluation uses the training prompts. Known data sets with a split for
    evaluation are evaluated there.

    Args:
        pool: the first so many prompts only; at most as many as there are.
        heldout: a share below 1; False for none; the name of a split of a data set; a second file; or "datasets/ID".
        match: "line": the last line must be the answer; "number": the last number of the text must equal that of the
            answer exactly, however either is written: 1,000, 1000.0 and 2000/2 are equal; "math": the last \\boxed{},
            or else the last expression, must mean the same, by math-verify in a process of its own.
        split: split of a data set.
        subset: configuration of a data set, or several with commas.
        prompt_column, answer_column, solution_column, level_column: their names; "a.b" is b in the record a.
        extract: how the answer is read from its column: "text", "hashes" (behind the last ####), "boxed" (in the last
            \\boxed{}).
    """

    def __init__(
        self,
        num: int = 1,
        seed: int = 0,
        evaluation: bool = False,
        name: str = "prompts.jsonl",
        *,
        match: str | None = None,
        split: str | None = None,
        subset: str | None = None,
        prompt_column: str | None = None,
        answer_column: str | None = None,
        solution_column: str | None = None,
        level_column: str | None = None,
        extract: str | None = None,
        chat: bool | None = None,
        instruction: str | None = None,
        **options: Any,
    ) -> None:
        if (split or subset) and not name.startswith(PREFIX):
            raise UsageError(f"split and subset belong to datasets/ID, not to the file {name}")
        asked = {"prompt": prompt_column, "answer": answer_column, "solution": solution_column, "level": level_column}
        asked |= {"match": match, "extract": extract, "split": split, "subset": subset}
        self._asked_for: dict[str, Any] = {key: value for key, value in asked.items() if value is not None}
        layout = replace(layout_of(name), **self._asked_for)
        self.match = choice("match", layout.match, MATCHES)
        choice("extract", layout.extract, tuple(READ))
        options |= {"chat": layout.chat if chat is None else chat}
        options |= {"instruction": layout.instruction if instruction is None else instruction}
        super().__init__(num, seed, evaluation, name, **options)
        self._last: tuple[dict[str, str], list[Any]] = {}, []
        self._rows = self._select(name, layout)
        self.conversational = self.conversational or not isinstance(self._rows[0].prompt, str)
        self.spec.info["conversational"] = self.conversational
        columns = {key for row in self._rows for key in row.columns}
        self.verifiable = any(row.answer is not None for row in self._rows)
        self.scores = self.rewards is not None or self.verifiable
        if self.match == "number":
            for row in self._rows:
                if row.answer is not None and last_number(row.answer) is None:
                    raise UsageError(f"match number needs answers with a number; {name} has the answer {row.answer!r}")
        if self.match == "math":
            checker()
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
        if self.match == "math":
            return str(self._checked(problem, text)[0])
        if self.match == "number":
            number = last_number(text)
            return "" if number is None else str(number)
        return (text.strip().splitlines() or [""])[-1].strip()

    def verify(self, problem: Problem, text: str) -> float:
        if problem.answer is None:
            return 0.0
        if self.match == "math":
            return float(self._checked(problem, text)[1])
        if self.match == "number":
            number = last_number(text)
            return float(number is not None and number == last_number(problem.answer))
        lines = text.strip().splitlines() or [""]
        return float(problem.answer.strip() in (text.strip(), lines[-1].strip()))

    def _checked(self, problem: Problem, text: str) -> list[Any]:
        """What a text says that the answer is, and whether it is right. Raises Hung and Crashed of the checker."""
        asked = {"answer": problem.answer or "", "text": text}
        if self._last[0] != asked:  # both are asked for, one after the other
            (outcome,) = checker()([asked], self.timeout)
            self._last = asked, outcome()
        return self._last[1]

    def preferences(self, indices: Sequence[int]) -> list[tuple[Prompt, str, str]]:
        """(prompt, chosen, rejected) of the rows with these ids. Raises UsageError for a row without them."""
        pairs = []
        for index, row in zip(indices, self.problems(indices)):
            chosen, rejected = (completion_text(row.columns.get(name)) for name in ("chosen", "rejected"))
            if chosen is None or rejected is None:
                raise UsageError(f"prompt {index} of {self.spec.name} has no 'chosen' and 'rejected' texts")
            pairs.append((row.prompt, chosen, rejected))
        return pairs

    def _select(self, name: str, layout: Layout) -> list[Problem]:
        """The rows of this side, training or evaluation."""
        heldout = self.heldout
        if heldout is True and layout.heldout is not None and "split" not in self._asked_for:
            heldout = layout.heldout
        if isinstance(heldout, str):
            if self.evaluation and (heldout.startswith(PREFIX) or not name.startswith(PREFIX)):
                own: dict[str, Any] = {
                    key: value for key, value in self._asked_for.items() if key not in ("split", "subset")
                }
                name, layout = heldout, replace(layout_of(heldout), **own)
            elif self.evaluation:
                layout = replace(layout, split=heldout)
            heldout = False
        share = SHARE if heldout is True else heldout
        if not isinstance(share, (float, int)) or not 0 <= share < 1:
            what = "a share below 1, false, a split, a second file or datasets/ID"
            raise UsageError(f"heldout must be {what}, not {heldout!r}")
        rows = read_prompts(name, layout)
        keys = {key: order for order, key in enumerate(dict.fromkeys(row.key for row in rows))}
        if share and len(keys) * share >= 1:
            # Key number k is held out when the count floor((k + 1) share) steps up there.
            out = {key for key, k in keys.items() if int((k + 1) * share + 1e-9) > int(k * share + 1e-9)}
            rows = [row for row in rows if (row.key in out) == self.evaluation]
        return rows[: self.pool]
