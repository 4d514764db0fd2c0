"""The runs of a comparison: planned before the first begins, then trained as jobs."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polopt.core.errors import RunError, UsageError
from polopt.report.members import Member
from polopt.training.api import train_or_resume
from polopt.training.beginning import check_same
from polopt.training.job_table import Job, shown
from polopt.training.jobs import Engine, run_jobs
from polopt.training.plan import Plan, TaskLike, plan


@dataclass(frozen=True)
class Call:
    """One run of a comparison, as a process of its own is told."""

    member: Member
    task: TaskLike
    seed: int
    place: Path
    settings: dict[str, Any]

    @property
    def name(self) -> str:
        return f"{self.member.name}, seed {self.seed}"


def planned(
    member: Member, task: TaskLike, seeds: Sequence[int], folder: Path, settings: dict[str, Any]
) -> tuple[list[Call], list[Plan]]:
    """The runs of one member, and the plans of those that are not there yet. Raises UsageError.

    A run has one thread unless it is told otherwise: sums depend on it, so it is the same whatever runs beside it.
    """
    if member.name != member.method:
        settings["name"] = member.name
    calls, new = [], []
    for seed in seeds:
        place = folder / f"{member.name}-s{seed}"
        one = plan(member.method, task, seed=seed, **settings)
        own = settings if one.options.threads is not None else settings | {"threads": 1}
        if (place / "config.json").exists():
            check_same(one, place)
        else:
            new.append(one)
        calls.append(Call(member, task, seed, place.absolute(), own))
    return calls, new


def train_all(calls: Sequence[Call], engine: Engine, folder: Path, progress: bool) -> dict[int, Exception]:
    """Trains what is missing of each; the runs that failed, by their place: they keep none of the others from ending.

    Raises UsageError at once.
    """
    heads = [f"{call.name}: run {number} of {len(calls)}" for number, call in enumerate(calls, 1)]
    todo = [(call, head if progress and engine.here else None) for call, head in zip(calls, heads)]
    ended = run_jobs(_train, todo, engine, folder)
    if progress and not engine.here:
        ended = shown(ended, [Job(call.name, call.place) for call in calls])
    return {place: result for place, result in ended if isinstance(result, Exception)}


def raise_first(calls: Sequence[Call], failed: dict[int, Exception]) -> None:
    """Raises what the first run has failed with, if one has: the sentence says which, and how many others."""
    if failed:
        place = min(failed)
        more = f" ({len(failed) - 1} more failed)" if len(failed) > 1 else ""
        raise RunError(f"{calls[place].name}: {failed[place]}{more}") from failed[place]


def _train(call: Call, head: str | None) -> RunError | None:
    """One job. A run that fails is its result; wrong usage is raised, since it concerns them all."""
    if head is not None:
        print(head, file=sys.stderr)
    try:
        train_or_resume(call.member.method, call.task, call.seed, call.place, call.settings, head is not None)
    except RunError as error:
        return error
    except UsageError as error:
        raise UsageError(f"{call.name}: {error}") from error
    return None


def file_name(task: str) -> str:
    """The name of a task as part of a path."""
    return task.replace(":", "_").replace("/", "_")


@contextmanager
def about(who: str) -> Iterator[None]:
    """Has an error say who it is about."""
    try:
        yield
    except (UsageError, RunError) as error:
        lost = "unknown option" in str(error) and "did you mean" not in str(error)
        hint = "; an option that only some have is written --NAME.OPTION" if lost and who else ""
        kind = UsageError if isinstance(error, UsageError) else RunError  # further kinds are made of other things
        raise kind(f"{who}: {error}{hint}" if who else str(error)) from error
