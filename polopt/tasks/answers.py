"""What a turn of a conversation leads to, whatever the verifier makes of it."""

from __future__ import annotations

from typing import Any

from polopt.core.errors import RunError, UsageError
from polopt.tasks.problem import Message, Problem, as_written, code_of

Answered = tuple[str | None, float, bool, int, str | None]
"""Feedback, reward, whether the episode is over, the code of the answer that was given, and why it was not scored."""


def answered(task: Any, problem: Problem, transcript: list[Message], text: str) -> Answered:
    """What `task.reply` says of a turn; a verifier that fails costs this sample only."""
    text = problem.given + text
    try:
        feedback, value, over = task.reply(problem, as_written(problem, transcript), text)
        return feedback, value, over, code_of(task.extract(problem, text)) if over else 0, None
    except (UsageError, RunError):
        raise
    except Exception as error:
        said = " ".join(str(error).split())
        why = f"the verifier of {task.spec.name} raised {type(error).__name__}" + (f": {said}" if said else "")
        return None, 0.0, True, 0, why
