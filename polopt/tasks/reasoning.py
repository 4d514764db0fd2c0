"""Every dataset of reasoning-gym as a text task: "reasoning-gym/NAME"."""

from __future__ import annotations

import inspect
import random
from dataclasses import fields
from typing import Any

from polopt.core.errors import UsageError, nearest
from polopt.tasks.calls import Calls, Hung
from polopt.tasks.options import flag
from polopt.tasks.problem import Problem
from polopt.tasks.text import TextTask

PREFIX = "reasoning-gym/"
TEXT_OPTIONS = {key for key, item in inspect.signature(TextTask).parameters.items() if item.kind is item.KEYWORD_ONLY}


class ReasoningGym(TextTask):
    """A dataset of reasoning-gym (Stojanovski et al. 2025), scored by its own `score_answer` (partial credit included).

    The answer is what stands between the last <answer> and </answer>, or the whole text without such tags. The
    answer of the dataset is what demonstrations imitate; some datasets have none. Scorers of the package run in a
    thread and may take `timeout` seconds; a few of them hand the text to sympy's parser.

    The options of the dataset (`max_value`, `min_terms`, ...) are options of the task. Evaluation draws with another
    seed; with few possible problems it may meet those of training. `heldout=False` evaluates on the training problems.

    Args:
        pool: number of problems.
    """

    def __init__(
        self,
        num: int = 1,
        seed: int = 0,
        evaluation: bool = False,
        name: str = "reasoning-gym/chain_sum",
        *,
        pool: int | None = 1000,
        **options: Any,
    ) -> None:
        own = {key: value for key, value in options.items() if key in TEXT_OPTIONS}
        config = {key: value for key, value in options.items() if key not in TEXT_OPTIONS}
        super().__init__(num, seed, evaluation, name, pool=1000 if pool is None else pool, **own)
        stream = int(self.evaluation and flag("heldout", self.heldout))
        # Problem i of a dataset depends on seed + i, so neighboring seeds would share problems.
        drawn = random.Random(f"{seed}/{stream}").randrange(2**31)
        self._dataset = _dataset(name, {**config, "size": self.pool, "seed": drawn})
        self._entries: dict[int, dict[str, Any]] = {}
        if self.rewards is not None:
            self.rewards.check({"answer", "solution", "level", "metadata"})

    @classmethod
    def options(cls, name: str) -> set[str]:
        config = _configs(name)[1]
        return super().options(name) | {item.name for item in fields(config)} - {"seed", "size"}

    def problem(self, index: int) -> Problem:
        if index not in self._entries:
            if len(self._entries) >= 10_000:
                self._entries.clear()
            self._entries[index] = self._dataset[index]
        entry = self._entries[index]
        answer = entry["answer"] if isinstance(entry["answer"], str) else None
        question, columns = entry["question"], {"metadata": entry["metadata"]}
        return Problem(question, answer, answer, columns=columns, key=question)

    def extract(self, problem: Problem, text: str) -> str:
        _, tag, after = text.rpartition("<answer>")
        return (after.split("</answer>")[0] if tag else text).strip()

    def verify(self, problem: Problem, text: str) -> float:
        entry = {"question": problem.question, "answer": problem.answer, "metadata": problem.columns["metadata"]}
        calls = Calls(self._dataset.score_answer, [{"answer": self.extract(problem, text), "entry": entry}])
        try:
            score = float(calls.results(self.timeout)[0]())
        except Hung:
            raise
        except Exception:  # some scorers raise on a text that they cannot parse: it is wrong
            return 0.0
        return min(max(score, 0.0), 1.0)


def _registry() -> dict[str, Any]:
    try:
        from reasoning_gym.factory import DATASETS
    except ImportError as error:
        advice = 'pip install "polopt[language]"'
        raise UsageError(f"tasks of reasoning-gym need the package '{error.name}': {advice}") from None
    return DATASETS


def _configs(name: str) -> tuple[Any, Any]:
    """The dataset class and the config class of a name. Raises UsageError for an unknown one."""
    registry = _registry()
    short = name.removeprefix(PREFIX)
    if short not in registry:
        raise UsageError(f"reasoning-gym has no dataset '{short}'{nearest(short, registry)}")
    return registry[short]


def _dataset(name: str, options: dict[str, Any]) -> Any:
    made, config = _configs(name)
    try:
        settings = config(**options)
        if hasattr(settings, "validate"):
            settings.validate()
        return made(config=settings)
    except ImportError as error:
        raise UsageError(f"{name} needs the package '{error.name}', which is not installed") from None
    except Exception as error:
        said = " ".join(str(error).split())
        raise UsageError(f"{name} cannot be made: {type(error).__name__}{said and ': ' + said}") from None
