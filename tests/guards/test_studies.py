"""The settings of papers at their own scale parse, are printed, and build with a tiny model in place of theirs."""

from __future__ import annotations

import pytest

import polopt
from polopt.bases.method import Study
from polopt.cli.describe import describe
from polopt.cli.main import main
from polopt.core.errors import UsageError
from polopt.methods.language.rec import GRPO
from polopt.tasks.named import is_text, place
from polopt.tasks.recorded import DATASET_ID
from polopt.training.folder import Run
from polopt.training.plan import plan
from tests.guards.harness import BUILT, load

STUDIED = [(name, preset) for name in BUILT for preset in load(name).studies]
OWN = {"scaf-grpo": "its hints are columns of the data: see its test file"}
LANGUAGE = [
    (name, preset)
    for name in BUILT
    for preset, settings in load(name).presets.items()
    if "model" in settings and name not in OWN
]
HERE = {"batch_prompts": 2, "batch_size": 4, "samples_per_prompt": 2, "updates_per_batch": 1, "pairs": 2}


@pytest.mark.parametrize(("name", "preset"), STUDIED)
def test_a_study_is_a_task_and_a_budget(name, preset):
    study = load(name).studies[preset]
    assert preset in load(name).presets
    assert place(study.task) is not None or DATASET_ID.fullmatch(study.task), "an own name, an environment, a dataset"
    planned = plan(name, preset=preset)
    assert (planned.task, planned.task_options, planned.preset) == (study.task, study.task_options, preset)
    assert planned.steps == (study.steps or load(name).default_steps)
    own = plan(name, "vowels" if is_text(study.task) else load(name).smoke.task, preset=preset)
    assert own.steps == load(name).default_steps
    printed = describe(name).presets[preset]
    assert printed["task"] == study.task
    assert printed.get("steps") == (str(study.steps) if study.steps else None)


@pytest.mark.parametrize(("name", "preset"), LANGUAGE)
def test_settings_of_a_model_of_a_paper_build_with_a_tiny_one(name, preset):
    cls = load(name)
    fields = cls.Config.__dataclass_fields__
    small = {key: value for key, value in HERE.items() if key in fields}
    settings = cls.presets[preset]
    assert "/" in settings["model"], "a hub id"
    model = {"policy": "causal-lm"} if "policy" in settings else {}
    planned = plan(
        name, cls.smoke.task, preset=preset, task_options=cls.smoke.task_options, model="tiny", **model, **small,
        **{"policy.max_tokens": 4},
    )  # fmt: skip
    method = planned.build()
    try:
        assert method.config.lr == settings.get("lr", cls.Config().lr)
    finally:
        method.task.close()


def test_a_run_without_a_task_is_that_of_the_study(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(GRPO, "studies", {"small": Study("vowels", 32, {"pool": 16, "score_truncated": True})})
    own = {"model": "tiny", "batch_prompts": 2, "loggers": ()}
    run = polopt.train("grpo", preset="small", task_options={"pool": 8}, out=tmp_path / "one", **own)
    record = run.config
    assert (record["task"], record["task_options"]) == ("vowels", {"pool": 8, "score_truncated": True})
    assert run.rows[-1]["completions"] == record["steps"] == 32
    words = ["train", "grpo", "--preset", "small", "--model", "tiny", "--batch-prompts", "2", "--out"]
    assert main([*words, str(tmp_path / "two"), "--steps", "16"]) == 0
    record = Run(tmp_path / "two").config
    assert (record["task"], record["task_options"]["pool"], record["steps"]) == ("vowels", 16, 16)
    assert main([*words, str(tmp_path / "three"), "--task", "addition", "--steps", "16"]) == 0
    assert Run(tmp_path / "three").config["task_options"] == {}
    monkeypatch.setattr(GRPO, "studies", {"small": Study("vowels", 32)})
    assert main(["train", "grpo", "--preset", "dapo"]) == 2
    assert "needs --task, for example --task vowels, or --preset small, which brings its own" in capsys.readouterr().err


def test_a_preset_without_a_study_needs_a_task():
    with pytest.raises(UsageError, match="polopt train ppo needs --task, for example --task "):
        polopt.train("ppo", preset="classic")
