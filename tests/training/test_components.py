"""What each reward function gave by itself, in the rows of runs, on their pages and after a resume."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import polopt
from polopt.core.errors import UsageError
from polopt.report import read_run, write_report
from polopt.report.curves import by_learner, reward_parts
from polopt.training.folder import Run


def length(completions: list[str], **columns: Any) -> list[float]:
    return [float(len(text)) for text in completions]


def early(completions: list[str], **columns: Any) -> list[float | None]:
    """1 or 0 by the first letter; nothing of an empty text."""
    return [float(text[0] < "n") if text else None for text in completions]


def learn(folder: Path, method: str = "rec", rewards: Any = (length, early), **changes: Any) -> Run:
    options = {"pool": 10, "score_truncated": True, "rewards": list(rewards)}
    options |= {"weights": [0.5, 2.0]} if len(rewards) == 2 else {}
    settings = {"model": "tiny", "steps": 32, "samples_per_prompt": 2, "policy.max_tokens": 4, "lr": 1e-2}
    settings |= {"batch_prompts": 4} if method != "iterative-dpo" else {"pairs": 4, "batch_size": 4}
    settings |= {"eval_episodes": 4, "checkpoint_every": 16, "log_every": 16, "eval_every": 16, "loggers": ()}
    return polopt.train(method, "vowels", out=folder, task_options=options, **settings | changes)


def told(run: Run) -> list[dict[str, float]]:
    return [{name: value for name, value in row.items() if "reward" in name} for row in run.rows]


@pytest.mark.usefixtures("drawn")
def test_rows_evaluations_and_pages_have_each_function(tmp_path):
    run = learn(tmp_path / "run")
    rows = [row for row in run.rows if row["completions"]]
    for row in rows:
        shares = row.get("reward/early/share", 1.0)
        assert row["reward"] == pytest.approx(0.5 * row["reward/length"] + 2 * row["reward/early"] * shares)
        assert row["eval/return"] == pytest.approx(0.5 * row["eval/reward/length"] + 2 * row["eval/reward/early"])
        assert row["train/return"] == pytest.approx(row["reward"])
    assert set(told(run)[0]) == {"eval/reward/length", "eval/reward/early"}  # before training nothing was sampled

    shown = json.loads((run.folder / "samples.json").read_text())["shown"]
    kept = [sample for entry in shown for sample in entry["samples"]]
    assert all(set(sample["components"]) == {"length", "early"} for sample in kept)
    data = read_run(run.folder)
    assert reward_parts(data) == ["length", "early"]
    assert by_learner(data) == {}
    page = write_report([run.folder], tmp_path / "page.html").read_text()
    assert "Reward by component" in page
    assert page.count("completions of training") == 2  # a picture of each function
    assert page.count("<small>early") == len(kept)
    assert "<span>eval/reward/length</span>" not in page  # drawn once


def test_the_verifier_among_the_functions_trains_as_by_itself(tmp_path):
    settings = {"steps": 16, "log_every": 1, "eval_every": 8}
    plain, named = (
        learn(tmp_path / name, rewards=chosen, **settings) for name, chosen in (("a", ()), ("b", ("verifier",)))
    )
    assert max(row.get("reward", 0.0) for row in plain.rows) > 0
    for row, other in zip(plain.rows, named.rows, strict=True):
        assert row.items() - {("seconds", row["seconds"])} <= other.items()
    assert all(row["reward"] == row["reward/verifier"] for row in named.rows[1:])
    with pytest.raises(KeyError):
        plain.rows[-1]["reward/verifier"]


@pytest.mark.parametrize("method", ["iterative-dpo", "single-stream-po"])
def test_whatever_stands_around_the_source(method, tmp_path):
    run = learn(tmp_path / "run", method, **{"samples_per_prompt": 1} if method == "single-stream-po" else {})
    assert {"reward/length", "reward/early", "eval/reward/length"} <= set(told(run)[-1])


def test_recorded_functions_are_given_again_but_the_verifier_is_not_yours(tmp_path):
    folder = learn(tmp_path / "run", rewards=("verifier", length), steps=8).folder
    with pytest.raises(UsageError, match="rewards of yours"):
        polopt.resume(folder, extend=16)
    folder = learn(tmp_path / "other", rewards=("verifier",), steps=8).folder
    polopt.resume(folder, extend=16)
    assert Run(folder).rows[-1]["completions"] == 16
