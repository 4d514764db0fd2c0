"""What each reward function of a text task gave by itself, counted over completions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from polopt.core.batch import Batch

Tally = dict[str, list[float]]
"""By name of the function: the sum of the numbers that it gave, how many these are, its failures, all completions."""


def tally(batch: Batch, names: Sequence[str]) -> Tally:
    """Of a batch [B] with the facts of `polopt.tasks.rewards.COMPONENTS`, each [B, K] with K names; empty without."""
    if not names:
        return {}
    known = batch["component_known"]
    columns = [batch["components"].double().sum(0), known.sum(0), batch["component_failed"].sum(0)]
    return {name: [*counts, len(batch)] for name, *counts in zip(names, *(column.tolist() for column in columns))}


def added(one: Mapping[str, Sequence[float]], other: Mapping[str, Sequence[float]]) -> Tally:
    """Both together."""
    sums = {name: list(counts) for name, counts in one.items()}
    for name, counts in other.items():
        sums[name] = [a + b for a, b in zip(sums.get(name, [0.0] * 4), counts, strict=True)]
    return sums


def means(counts: Tally) -> dict[str, float]:
    """`reward/NAME`, the mean of the numbers, left out where there is none; `reward/NAME/share`, of completions with a
    number, left out where all have one; `reward/NAME/failed`, where the function failed, left out at 0."""
    found: dict[str, float] = {}
    for name, (total, known, failed, completions) in counts.items():
        if known:
            found[f"reward/{name}"] = total / known
        if known < completions:
            found[f"reward/{name}/share"] = known / completions
        if failed:
            found[f"reward/{name}/failed"] = failed / completions
    return found
