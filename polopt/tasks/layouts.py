"""Which columns of a data set are prompt, answer and solution, and how the answer is read: known data sets by their id.

Ids and columns are those of the Hugging Face hub that TRL, verl and open-r1 train on.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from polopt.core.errors import UsageError
from polopt.tasks.math_answers import after_hashes, last_boxed

BOXED = r"Reason step by step, and put your final answer within \boxed{}."
HASHES = 'Think step by step, and end with the final answer behind "####".'
READ = {"text": lambda text: text, "hashes": after_hashes, "boxed": last_boxed}
"""How an answer is read from the text of its column: all of it, behind the last ####, in the last \\boxed{}."""

MATH = "algebra,counting_and_probability,geometry,intermediate_algebra,number_theory,prealgebra,precalculus"


@dataclass(frozen=True)
class Layout:
    """Columns by name; "a.b" is b of the record a. None: by the names of `polopt.tasks.prompts.Prompts`.

    Attributes:
        prompt, answer, solution, level: columns.
        worked: False where what is called a solution is no more than the answer.
        extract: a name of `READ`.
        match: how an answer is compared: see `Prompts`.
        subset: of a data set, several with commas. split: what is trained on. heldout: the split for evaluation.
        unique: of rows with equal prompts the first one only.
        chat: prompts that are texts become a user's message. instruction: what is put behind every prompt.
    """

    prompt: str | None = None
    answer: str | None = None
    solution: str | None = None
    level: str | None = None
    worked: bool = True
    extract: str = "text"
    match: str = "line"
    subset: str | None = None
    split: str | None = None
    heldout: str | None = None
    unique: bool = False
    chat: bool = False
    instruction: str | None = None


_MATH = Layout("problem", "solution", "solution", "level", extract="boxed", match="math", heldout="test", chat=True,
               instruction=BOXED)  # fmt: skip
KNOWN: dict[str, Layout] = {
    "openai/gsm8k": Layout(
        "question", "answer", "answer", extract="hashes", match="number", subset="main", heldout="test", chat=True,
        instruction=HASHES,
    ),
    "HuggingFaceH4/MATH-500": Layout(
        "problem", "answer", "solution", "level", match="math", split="test", chat=True, instruction=BOXED
    ),
    "EleutherAI/hendrycks_math": replace(_MATH, subset=MATH),
    "DigitalLearningGmbH/MATH-lighteval": _MATH,
    "open-r1/DAPO-Math-17k-Processed": Layout(
        "prompt", "solution", worked=False, match="math", subset="all", chat=True, instruction=BOXED
    ),
    "BytedTsinghua-SIA/DAPO-Math-17k": Layout("prompt", "reward_model.ground_truth", match="math", unique=True),
}  # fmt: skip


def layout_of(name: str) -> Layout:
    """That of a known data set, also of a copy in a folder whose path ends in the id; else the plain one."""
    path = name.rstrip("/")
    return next((layout for key, layout in KNOWN.items() if f"/{path}".endswith(f"/{key}")), Layout())


def arranged(row: Mapping[str, Any], layout: Layout, where: str) -> dict[str, Any]:
    """The row with its prompt, answer, solution and level under these names. Raises UsageError for a missing column and
    for an answer that is not there."""
    found = dict(row)
    for name in ("prompt", "solution", "level"):
        column = getattr(layout, name)
        if column is not None:
            found[name] = _value(row, column, where)
    if isinstance(found.get("level"), str):
        digits = re.search(r"\d+", found["level"])
        found["level"] = int(digits[0]) if digits else 0
    answer = _value(row, layout.answer, where) if layout.answer is not None else _truth(row)
    if answer is not None:
        read = READ[layout.extract](str(answer)) if layout.extract != "text" else answer
        if read is None:
            what = "an answer behind ####" if layout.extract == "hashes" else r"a \boxed{} answer"
            raise UsageError(f"'{layout.answer or 'answer'}' in {where} has not {what}")
        found["answer"] = read
    return found


def _truth(row: Mapping[str, Any]) -> Any:
    """The answer by its usual name, or where verl keeps it."""
    if row.get("answer") is None and isinstance(row.get("reward_model"), Mapping):
        truth = row["reward_model"].get("ground_truth")
        return truth if isinstance(truth, (str, int, float)) else None
    return row.get("answer")


def _value(row: Mapping[str, Any], column: str, where: str) -> Any:
    value: Any = row
    for part in column.split("."):
        if not isinstance(value, Mapping) or part not in value:
            has = ", ".join(sorted(map(str, row))) or "none"
            raise UsageError(f"{where} has no column '{column}'; its columns are {has}")
        value = value[part]
    return value
