"""Parquet, other columns, and known data sets: made here in the shape that they have on the hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from polopt.core.errors import UsageError
from polopt.tasks import make_task
from polopt.tasks.layouts import BOXED, HASHES, KNOWN, MATH, layout_of
from polopt.tasks.prompts import Prompts

DAPO = "Solve the following math problem step by step. The last line is of the form Answer: $Answer.\n\n"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, in which "owner/name" is a data set as it would be on the hub."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def on_hub(here: Path, name: str, splits: dict[str, dict[str, list[dict[str, Any]]]]) -> str:
    """A repository with these configurations and splits; "default" is one without a name."""
    lines = ["---", "configs:"]
    for config, parts in splits.items():
        lines += [f"- config_name: {config}", "  data_files:"]
        for split, rows in parts.items():
            parquet(here / name / config / f"{split}-00000-of-00001.parquet", rows)
            lines += [f"  - split: {split}", f"    path: {config}/{split}-*"]
    (here / name / "README.md").write_text("\n".join([*lines, "---", ""]))
    return f"datasets/{name}"


def made(name: str, **options: Any) -> Prompts:
    task = make_task(name, **options)
    assert isinstance(task, Prompts)
    return task


def asked(problem: Any) -> str:
    return problem.prompt[-1]["content"]


def grades(task: Prompts, *texts: str) -> list[float]:
    return [task.verify(task.problem(0), text) for text in texts]


def test_parquet_is_read_as_jsonl_is(tmp_path: Path) -> None:
    rows = [{"prompt": f"{n}+1=", "answer": str(n + 1), "level": n % 3, "tags": ["a", str(n)]} for n in range(20)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    name = str(parquet(tmp_path / "a.parquet", rows))
    for evaluation in (False, True):
        one, other = (made(path, evaluation=evaluation) for path in (str(tmp_path / "a.jsonl"), name))
        assert one.problems(range(one.count)) == other.problems(range(other.count))
    assert made(name, heldout=str(tmp_path / "a.jsonl"), evaluation=True).count == 20
    assert made(str(tmp_path / "a.jsonl"), heldout=name, evaluation=True).count == 20


def test_files_of_verl_are_read_as_they_are(tmp_path: Path) -> None:
    rows = [
        {
            "data_source": "openai/gsm8k",
            "prompt": [{"role": "user", "content": f"What is {n}+{n}?"}],
            "ability": "math",
            "reward_model": {"style": "rule", "ground_truth": str(2 * n)},
            "extra_info": {"split": "train", "index": n},
        }
        for n in range(3)
    ]
    task = made(str(parquet(tmp_path / "train.parquet", rows)), match="number", num=3)
    assert task.reset() == [row["prompt"] for row in rows]
    assert task.step({"action": ["it is 0", "2", "3"]})[1].tolist() == [1.0, 1.0, 0.0]
    assert task.problem(1).columns["extra_info"]["index"] == 1


def test_parquet_that_cannot_be_read(tmp_path: Path) -> None:
    parquet(tmp_path / "train.parquet", [{"prompt": "a", "answer": "b"}])
    with pytest.raises(UsageError, match=r"there is no file .*trian.parquet; did you mean '.*train.parquet'"):
        make_task(str(tmp_path / "trian.parquet"))
    (tmp_path / "b.parquet").write_bytes(b"PAR1 but no more")
    with pytest.raises(UsageError, match=r"b.parquet is no whole Parquet file: ") as caught:
        make_task(str(tmp_path / "b.parquet"))
    assert "\n" not in str(caught.value)
    (tmp_path / "c.parquet").mkdir()
    with pytest.raises(UsageError, match=r"c.parquet"):
        make_task(str(tmp_path / "c.parquet"))
    parquet(tmp_path / "d.parquet", [{"question": "a", "answer": "b"}])
    with pytest.raises(UsageError, match=r"row 1 of .*d.parquet has neither 'prompt' nor 'messages'"):
        make_task(str(tmp_path / "d.parquet"))


def test_columns_may_have_other_names(tmp_path: Path) -> None:
    rows = [{"q": "1+1=", "info": {"truth": "1 and 1 is\n#### 2", "level": "Level 4"}, "how": "two"}]
    (tmp_path / "a.jsonl").write_text(json.dumps(rows[0]))
    columns = {
        "prompt_column": "q",
        "answer_column": "info.truth",
        "solution_column": "how",
        "level_column": "info.level",
    }
    task = made(str(tmp_path / "a.jsonl"), extract="hashes", **columns)
    problem = task.problem(0)
    assert (problem.prompt, problem.answer, problem.solution, problem.level) == ("1+1=", "2", "two", 4)
    assert problem.columns["info"] == rows[0]["info"]
    assert made(str(tmp_path / "a.jsonl"), **columns).problem(0).answer == "1 and 1 is\n#### 2"
    for wrong, said in (
        ({"answer_column": "info.truht"}, "line 1 of .* has no column 'info.truht'; its columns are how, info, q"),
        ({"extract": "boxed"}, r"'info.truth' in line 1 of .* has not a \\boxed\{\} answer"),
        ({"extract": "half"}, "extract is one of text, hashes, boxed, not 'half'"),
    ):
        with pytest.raises(UsageError, match=said):
            make_task(str(tmp_path / "a.jsonl"), **columns | wrong)


def test_gsm8k(here: Path) -> None:
    rows = [
        {"question": f"Tom has {n} and gets 1,000?", "answer": f"Tom has <<{n}>>.\n#### {1000 + n:,}"}
        for n in range(12)
    ]
    name = on_hub(here, "openai/gsm8k", {"main": {"train": rows, "test": rows[:2]}, "socratic": {"train": rows[:3]}})
    task, held = made(name), made(name, evaluation=True)
    assert (task.count, held.count) == (12, 2)  # nothing of training is held out where there is a split for it
    assert task.problem(0).answer == "1000"
    assert task.problem(0).solution == rows[0]["answer"]
    assert task.problem(0).prompt == rows[0]["question"]
    assert task.problems([0])[0].prompt == [{"role": "user", "content": f"{rows[0]['question']}\n{HASHES}"}]
    assert task.spec.info["conversational"]
    assert grades(task, "so\n#### 1,000", "1000.0", "#### 1001", "") == [1, 1, 0, 0]
    assert made(name, subset="socratic", heldout=False).count == 3
    plain = made(name, chat=False, instruction="")
    assert plain.problems([0])[0].prompt == rows[0]["question"]
    assert made(name, heldout=0.25).count == 9
    assert [made(name, split="train", evaluation=side).count for side in (False, True)] == [11, 1]
    assert made(f"datasets/{here}/openai/gsm8k").count == 12  # a copy of it elsewhere


def test_math(here: Path) -> None:
    row = {
        "problem": "How much?",
        "level": "Level 5",
        "type": "Algebra",
        "solution": r"As $x=2$, it is $\boxed{\frac{1}{2}}$.",
    }
    parts = {part: {"train": [row | {"problem": part}], "test": [row]} for part in MATH.split(",")}
    name = on_hub(here, "EleutherAI/hendrycks_math", parts)
    test = row | {"answer": r"\frac{1}{2}", "unique_id": "test/1.json", "subject": "Algebra"}
    of500 = on_hub(here, "HuggingFaceH4/MATH-500", {"default": {"test": [test | {"level": 3}]}})
    pytest.importorskip("math_verify")
    task = made(name)
    assert [problem.prompt for problem in map(task.problem, range(task.count))] == MATH.split(",")
    assert (task.problem(0).answer, task.problem(0).level) == (r"\frac{1}{2}", 5)
    assert task.problem(0).solution == row["solution"]
    assert asked(task.problems([0])[0]) == f"algebra\n{BOXED}"
    assert made(name, evaluation=True).count == 7
    held = made(name, heldout=of500, evaluation=True)
    assert [(one.answer, one.level) for one in held.problems(range(held.count))] == [(r"\frac{1}{2}", 3)]
    assert made(of500).count == 1


def test_dapo(here: Path) -> None:
    processed = {
        "prompt": "What is 3 + 31?", "solution": "34", "data_source": "math_dapo", "ability": "MATH",
        "source_prompt": [{"role": "user", "content": DAPO + "What is 3 + 31?"}],
        "reward_model": {"ground_truth": "34", "style": "rule-lighteval/MATH_v2"}, "extra_info": {"index": "9a9b"},
    }  # fmt: skip
    raw = {key: processed[key] for key in ("data_source", "ability", "reward_model", "extra_info")}
    raw |= {"prompt": processed["source_prompt"]}
    first = on_hub(
        here, "open-r1/DAPO-Math-17k-Processed", {"all": {"train": [processed]}, "en": {"train": [processed] * 2}}
    )
    second = on_hub(here, "BytedTsinghua-SIA/DAPO-Math-17k", {"default": {"train": [raw] * 5}})
    pytest.importorskip("math_verify")
    task = made(first)
    assert (task.count, task.problem(0).answer, task.problem(0).solution) == (1, "34", None)
    assert task.columns(task.problem(0))["solution"] == "34"  # as TRL's rewards expect
    assert asked(task.problems([0])[0]) == f"What is 3 + 31?\n{BOXED}"
    assert made(first, subset="en").count == 2
    task = made(second)
    assert (task.count, task.problem(0).answer) == (1, "34")  # each of its prompts is there a hundred times
    assert task.problems([0])[0].prompt == processed["source_prompt"]
    assert grades(task, "Answer: 34", r"Answer: $\boxed{34}$", "Answer: 35") == [1, 1, 0]


def test_layouts_are_found_by_whole_ids() -> None:
    assert layout_of("datasets/openai/gsm8k") is layout_of("/data/openai/gsm8k/") is KNOWN["openai/gsm8k"]
    assert layout_of("datasets/notopenai/gsm8k") == layout_of("gsm8k.jsonl")


def test_match_math_without_math_verify(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from polopt.tasks import math_answers

    monkeypatch.setitem(__import__("sys").modules, "math_verify", None)
    math_answers.checker.cache_clear()
    (tmp_path / "a.jsonl").write_text('{"prompt": "a", "answer": "b"}')
    with pytest.raises(UsageError, match=r'needs the package math-verify: pip install "polopt\[math\]"'):
        make_task(str(tmp_path / "a.jsonl"), match="math")
