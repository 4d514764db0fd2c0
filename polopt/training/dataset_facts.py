"""What is in a recorded dataset, and how it compares with random actions and an expert: `polopt dataset`."""

from __future__ import annotations

import warnings
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from polopt.core.errors import Notice, RunError
from polopt.data.arrays import load_arrays
from polopt.data.datasets import Dataset, load_dataset
from polopt.data.storing import write_references
from polopt.evaluation.dataset_measures import lsaco, saco, tq
from polopt.evaluation.returns import evaluate_returns
from polopt.policies.wrappers import Uniform
from polopt.tasks import make_task
from polopt.tasks.arrays import is_arrays
from polopt.training import api
from polopt.training.concerns import at_bounds, concerns

QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)
MOST_COLUMNS = 1000  # of observation and action: the coverage of images means nothing
ROWS = 10  # copies of the environment that play together
SAME_SIZE = 1.1  # so many times as large as another one a dataset may be


def info(source: Any) -> dict[str, Any]:
    """What is in a dataset, by its id, or in arrays, as a file or a dict: sizes, returns, lengths, ends, spaces,
    actions at and beyond the bounds, coverage, references; and `warnings`, sentences about what breaks learning.

    Raises what `load_dataset` and `load_arrays` do.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is to be said is said below
        data = load_arrays(source) if is_arrays(source) else load_dataset(source)
    at, beyond = at_bounds(data)
    returns, counts = data.returns, data.lengths.double()
    last = torch.cat([data.starts[1:] - 1, torch.tensor([len(data.data) - 1])])
    facts: dict[str, Any] = {
        "dataset": data.name,
        "task": None if is_arrays(source) else data.spec.name,
        "episodes": len(counts),
        "transitions": len(data.data),
        "return": returns.mean().item(),
        "return_std": returns.std(correction=0).item(),
        "return_min": returns.min().item(),
        **{f"return_q{round(100 * q)}": returns.quantile(q).item() for q in QUANTILES},
        "return_max": returns.max().item(),
        "length": counts.mean().item(),
        "length_min": int(counts.min()),
        "length_max": int(counts.max()),
        "terminated": data.data["terminated"][last].double().mean().item(),
        "truncated": (data.data["truncated"] & ~data.data["terminated"])[last].double().mean().item(),
        "reward_min": data.data["reward"].min().item(),
        "reward_max": data.data["reward"].max().item(),
        "observations": str(data.spec.obs),
        "actions": str(data.spec.action),
        "actions_at_bounds": at,
        "actions_beyond_bounds": beyond,
        "coverage": _coverage(data),
        "random_return": None,
        "expert_return": None,
        "normalized_return": None,
        "made_by": data.metadata.get("algorithm_name"),
    }
    if data.references is not None:
        facts |= dict(zip(("random_return", "expert_return"), data.references))
        facts["normalized_return"] = data.normalized(facts["return"])
    return facts | {"warnings": concerns(data)}


def measure(
    name: str,
    *,
    expert: str | Path | None = None,
    reference: str | None = None,
    episodes: int = 50,
    seed: int = 0,
    store: bool = True,
) -> dict[str, Any]:
    """Measures the references of a dataset for normalized scores, and how much its decisions cover.

    Args:
        expert: a run folder, whose policy plays, or a dataset, whose mean return is taken; by default the expert's
            reference that is stored, if any.
        reference: a dataset, everything that the run collected from which the expert comes.
        episodes: of each policy that plays.
        store: keep the references in the dataset's metadata.

    Returns `random_return`, `expert_return` and `normalized_return` (None without an expert), `return_std` over the
    episodes of the dataset, and `coverage`, see there (None for images). With a reference also `tq`, on the scale from
    `random_return` to `expert_return` (that of the reference where the dataset has none), `saco` and `lsaco`, see
    `polopt.evaluation.dataset_measures`. They compare datasets of one size: a Notice says where these are not.
    """
    with closing(make_task(name, num=ROWS, seed=seed, evaluation=True)) as task:
        task.check_played()
        data = load_dataset(name).check(task.spec)
        seen = None if reference is None else load_dataset(reference).check(task.spec)
        low = evaluate_returns(Uniform(task.spec), task, episodes, greedy=False)["return"]
        high = next((each.references[1] for each in (data, seen) if each is not None and each.references), None)
        if expert is not None and (Path(expert) / "config.json").exists():
            high = evaluate_returns(api.load(expert), task, episodes)["return"]
        elif expert is not None:
            high = load_dataset(str(expert)).check(task.spec).returns.mean().item()
    found = {"random_return": low, "expert_return": high, "normalized_return": None}
    if high is not None:
        if high <= low:
            raise RunError(
                f"the expert has a return of {high:.6g}, and random actions have {low:.6g}: no scale to score on"
            )
        found["normalized_return"] = 100.0 * (data.returns.mean().item() - low) / (high - low)
    found |= {"return_std": data.returns.std(correction=0).item(), "coverage": _coverage(data)}
    if seen is not None:
        found |= _beside(data, seen, low, high)
    if store and high is not None:
        write_references(name, (low, high))
    return found


def _beside(data: Dataset, seen: Dataset, low: float, high: float | None) -> dict[str, Any]:
    """How data compare with what the same run collected."""
    if not 1 / SAME_SIZE < len(data.data) / len(seen.data) < SAME_SIZE:
        sizes = f"{data.name} has {len(data.data):,} decisions and {seen.name} {len(seen.data):,}"
        warnings.warn(f"{sizes}: SACo compares datasets of one size", Notice, stacklevel=3)
    quality = None if high is None else tq(data, random=low, online=high)
    return {"tq": quality, "saco": saco(data, seen), "lsaco": lsaco(data, seen)}


def _coverage(data: Dataset) -> float | None:
    return coverage(data) if _columns(data) <= MOST_COLUMNS else None


def coverage(data: Dataset, bins: int = 10) -> float:
    """Share of decisions whose (observation, action) falls into a box that no earlier one was in, in (0, 1].

    Each coordinate is cut into `bins` equal parts of its range in the dataset. After the state-action coverage of
    Schweighofer et al., "A Dataset Perspective on Offline Reinforcement Learning", 2022, arXiv 2111.04714, which counts
    distinct pairs, here without a second dataset to compare with.
    """
    columns = torch.cat([*(leaf.flatten(1) for leaf in _leaves(data.data["obs"])), *_leaves(data.data["action"])], 1)
    low, high = columns.amin(0), columns.amax(0)
    cells = ((columns - low) / (high - low).clamp_min(1e-12) * bins).floor().clamp_max(bins - 1).to(torch.int16)
    rows = np.ascontiguousarray(cells.numpy()).view(np.dtype((np.void, 2 * cells.shape[1])))  # many times as fast
    return len(np.unique(rows)) / len(cells)


def _columns(data: Dataset) -> int:
    return sum(leaf[0].numel() for leaf in data.data.select("obs", "action").values(True, True))


def _leaves(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value.reshape(len(value), -1).to(torch.float64)]
    return [leaf for part in value.values() for leaf in _leaves(part)]
