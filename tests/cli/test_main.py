"""Every verb through `main(argv)`: what it prints, what it refuses, and with which exit code."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import polopt
from polopt.cli import VERBS, catalogue, main, runs
from polopt.cli.arguments import split_task
from polopt.cli.describe import describe
from polopt.config.serialize import fields_of
from polopt.core.errors import UsageError
from polopt.training import loop
from polopt.training.folder import Run
from polopt.training.options import RunOptions
from tests.training.runs import TASK_OPTIONS, TINY, command, settings, train


def said(capsys: Any) -> tuple[str, str]:
    captured = capsys.readouterr()
    return captured.out, captured.err.strip()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train("ppo", tmp_path_factory.mktemp("cli") / "run").folder


def test_help_and_version(capsys):
    assert main(["--help"]) == 0
    usage = said(capsys)[0]
    assert all(f"polopt {verb}" in usage for verb in VERBS)
    assert main(["--version"]) == 0
    assert said(capsys)[0].startswith("polopt 0.")
    assert main([]) == 2
    for verb in VERBS:
        assert main([verb, "--help"]) == 0, verb
        assert verb in said(capsys)[0]


def test_the_help_of_train_lists_the_options_of_every_run(capsys):
    assert main(["train", "--help"]) == 0
    out = said(capsys)[0]
    for option in fields_of(RunOptions):
        assert f"  --{option.name}\n" in out
    assert "--task TASK" in out
    assert "default 100000; at least 1" in out


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_show_fits_the_terminal(columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    for name in ("sac", "grpo", "marl-dse", "dql"):
        text = catalogue.show_text(name)
        assert [line for line in text.splitlines() if len(line) > columns] == []
        words = " ".join(text.split())
        for field in describe(name).fields:
            assert f"--{field.name} " in words
            assert not field.help or " ".join(field.help.split()) in words


def test_the_help_of_a_method_lists_its_options(capsys):
    assert main(["train", "ppo", "--help"]) == 0
    out = said(capsys)[0]
    assert "--gae-lambda" in out
    assert "--eval-every" in out


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["trian"], "there is no verb 'trian'; did you mean 'train'?"),
        (["methods", "--family", "controll"], "there is no family 'controll'; did you mean 'control'?"),
        (["methods", "--status", "done"], "there is no status 'done'"),
        (["methods", "--jsn"], "polopt methods: unrecognized arguments: --jsn"),
        (["show"], "polopt show: the following arguments are required: method"),
        (["show", "sacc"], "there is no method 'sacc'; did you mean 'sac'?"),
        (["train"], "name a method first"),
        (["train", "--task", "CartPole-v1"], "name a method first"),
        (["train", "ppo"], "polopt train ppo needs --task"),
        (["train", "pppo", "--task", "CartPole-v1"], "there is no method 'pppo'; did you mean 'ppo'?"),
        (["train", "PPO", "--task", "CartPole-v1"], "did you mean 'ppo'?"),
        (["train", "rldp", "--task", "CartPole-v1"], "rldp is planned, not built yet"),
        (["train", "ppo", "--task", "CartPol-v1"], "there is no task 'CartPol-v1'; did you mean 'CartPole-v1'?"),
        (["train", "ppo", "--task", "CartPole-v1", "--gae-lamda", "1"], "did you mean '--gae-lambda'?"),
        (["train", "ppo", "--task", "CartPole-v1", "--policy.steps", "3"], "--policy.steps"),
        (["train", "ppo", "--task", "CartPole-v1", "--preset", "mujocco"], "did you mean 'mujoco'?"),
        (["train", "ppo", "--task", "CartPole-v1", "--policy", "gausian"], "did you mean 'gaussian'?"),
        (["train", "ppo", "--task", "CartPole-v1", "--lr"], "--lr"),
        (["train", "ppo", "--task", "CartPole-v1", "--lr", "1", "--lr", "2"], "--lr is given twice"),
        (["train", "ppo", "--task", "CartPole-v1", "--task.length"], "--task.length needs a value"),
        (["train", "ppo", "--task", "no_such_module:make"], "needs the module 'no_such_module'"),
        (
            ["train", "ppo", "--task", "tests.cli.test_main:no_such"],
            "the module 'tests.cli.test_main' has no 'no_such'",
        ),
        (["train", "ppo", "--task", "CartPole-v1", "--init", "nowhere"], "nowhere is not a run folder"),
        (["resume"], "polopt resume: the following arguments are required: dir"),
        (["resume", "nowhere"], "nowhere is not a run folder"),
        (["resume", "nowhere", "--extend", "many"], "argument --extend: invalid int value: 'many'"),
        (["eval", "nowhere"], "nowhere is not a run folder"),
        (["eval", "nowhere", "--episodes", "0"], "--episodes 0: at least 1"),
        (["compare", "--task", "CartPole-v1"], "needs a method or more, before the options"),
        (["compare", "ppo", "bc-ppo"], "the following arguments are required: --task"),
        (["compare", "ppo", "bc-ppo", "--task", "CartPole-v1", "--seeds", "0"], "--seeds 0: at least one"),
        (["compare", "ppo", "bcppo", "--task", "CartPole-v1"], "did you mean 'bc-ppo'?"),
        (["report"], "polopt report: the following arguments are required: dirs"),
        (["report", "nowhere"], "nowhere is not a run folder"),
        (["claim"], "polopt claim: the following arguments are required: method"),
        (["claim", "sacc"], "did you mean 'sac'?"),
        (["claim", "grpo"], "there is no claim for 'grpo': it is tried in that of rec"),
        (["claim", "rldp"], "there is no claim for 'rldp': it is planned, not built yet"),
        (["claim", "sft"], "there is no claim for 'sft': it is a base of others"),
        (["claim", "rl-llm-survey"], "there is no claim for 'rl-llm-survey': it is a survey"),
        (["train", "ppo", "--task", "CartPole-v1", "--learning-rate", "1e-3"], "option --learning-rate: it is '--lr'"),
        (["train", "ppo", "--task", "CartPole-v1", "--gamma", "0.9"], "--gamma: it is '--discount' here"),
        (["train", "ppo", "--env-id", "CartPole-v1"], "--env-id: it is '--task' here"),
        (["train", "rloo", "--task", "addition"], "no method 'rloo': it is rec --baseline rloo"),
        (["train", "double-dqn", "--task", "CartPole-v1"], "no method 'double-dqn': it is dqn --double true"),
        (["train", "ppo", "--task", "CartPole-v1", "--device", "gpu"], "--device gpu: it is 'cuda' here"),
        (["train", "iql", "--task", "halfcheetah-medium-v2"], "Minari's now, this one as mujoco/halfcheetah/medium-v0"),
        (["train", "ppo", "--task", "envs/mine.py:Env"], "names a file: say its module, 'envs.mine:Env'"),
        (["train", "ppo", "--task", "CartPole-v1", "--network", "mine.py:Net"], "say its module, 'mine:Net'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_usage_exits_with_2_and_one_line(argv, sentence, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(argv) == 2
    out, err = said(capsys)
    assert sentence in err.splitlines()[-1]
    assert err.splitlines()[-1].startswith("polopt: ")
    assert "Traceback" not in out + err
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_methods(capsys):
    assert main(["methods", "--json"]) == 0
    rows = json.loads(said(capsys)[0])
    keys = ["slug", "title", "year", "arxiv_id", "family", "base", "kind", "base_only", "status", "claim", "entries"]
    assert all(sorted(row) == sorted(keys) for row in rows)
    assert sum(not row["base_only"] for row in rows) == 116
    built = {row["slug"]: row for row in rows if row["status"] != "planned"}
    assert {"sac", "ppo", "bc", "bc-ppo"} <= built.keys()
    assert main(["methods", "--family", "control", "--status", "planned", "--json"]) == 0
    chosen = json.loads(said(capsys)[0])
    assert chosen
    assert {(row["family"], row["status"]) for row in chosen} == {("control", "planned")}
    assert main(["methods", "--family", "theory"]) == 0
    assert "stepmix" in said(capsys)[0]


@pytest.mark.parametrize("name", ["sac", "ppo", "bc-ppo"])
def test_show(name, capsys):
    assert main(["show", name]) == 0
    out = said(capsys)[0]
    assert "--lr" in out or "lr" in out.split()
    assert "table 1" in out or "37 details" in out


def test_show_and_help_import_no_torch():
    code = "import sys; from polopt.cli import main; main({argv}); sys.exit('torch' in sys.modules)"
    for argv in (["--help"], ["methods"]):
        done = subprocess.run([sys.executable, "-c", code.format(argv=argv)], capture_output=True, check=False)
        assert done.returncode == 0, done.stderr


def test_train_eval_report(tmp_path, capsys):
    folder = tmp_path / "run"
    assert main(command("ppo", folder)) == 0
    out, err = said(capsys)
    assert str(folder) in out.splitlines()[-1]
    head = "ppo on CartPole-v1: 96 env_steps, seed 3, 2 environments, cpu, float32"
    assert f"{head}; 16 decisions per update; 8 per minibatch; 6 updates -> {folder}" in err
    assert {"config.json", "metrics.csv", "checkpoints"} <= {path.name for path in folder.iterdir()}
    assert main(["eval", str(folder), "--episodes", "2", "--json"]) == 0
    scores = json.loads(said(capsys)[0])
    assert scores.keys() == {"return", "return_std", "length", "episodes", "checkpoint"}
    assert (scores["episodes"], scores["checkpoint"]) == (2, "latest")
    assert main(["eval", str(folder), "--episodes", "2", "--checkpoint", "best", "--stochastic"]) == 0
    assert "sampled episodes" in said(capsys)[0]
    assert main(["eval", str(folder), "--checkpoint", "worst"]) == 2
    assert "choose latest, best or a step" in said(capsys)[1]
    page = tmp_path / "page.html"
    assert main(["report", str(folder), "--out", str(page), "--no-video"]) == 0
    assert said(capsys)[0].strip() == str(page)
    text = page.read_text()
    assert "CartPole-v1" in text
    assert "http://" not in text.replace("http://www.w3.org", "")
    assert "<script src" not in text


def test_without_out_a_run_gets_a_folder_of_its_own(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("bc-CartPole-v1-s3", "bc-CartPole-v1-s3-2"):
        words = command("bc", tmp_path / "x", steps=2)
        at = words.index("--out")
        assert main(words[:at] + words[at + 2 :]) == 0
        assert (tmp_path / "runs" / name / "config.json").exists()
    assert main(["train", "sac", "--task", "CartPole-v1"]) == 2
    assert not (tmp_path / "runs" / "sac-CartPole-v1-s0").exists()


def test_options_of_the_task(tmp_path, capsys):
    words = [*command("ppo", tmp_path / "run", steps=16), "--task.max-episode-steps", "3"]
    assert main(words) == 0
    assert Run(tmp_path / "run").final["eval/length"] == 3
    assert Run(tmp_path / "run").config["task_options"] == {"max_episode_steps": 3}


def test_compare(tmp_path, capsys):
    out = tmp_path / "compare"
    words = ["compare", "ppo", "bc-ppo", "--task", "CartPole-v1", "--seeds", "2", "--out", str(out), "--steps", "32"]
    words += ["--envs", "2", "--window", "8", "--network.sizes", "8", "--eval-episodes", "1"]
    assert main(words) == 2  # bc-ppo needs demonstrations, and ppo has no such option
    assert main([*words[:1], "ppo", "mdpo", *words[3:]]) == 0
    text = said(capsys)[0]
    assert "ppo" in text
    assert "mdpo" in text
    assert str(out / "report.html") in text
    runs = sorted(path.name for path in out.glob("*-s*"))
    assert runs == ["mdpo-s0", "mdpo-s1", "ppo-s0", "ppo-s1"]
    assert all(Run(out / name).rows[-1]["env_steps"] == 32 for name in runs)
    assert main([*words[:1], "ppo", "mdpo", *words[3:]]) == 0  # nothing runs again
    other = [*words[:1], "ppo", "mdpo", *words[3:]]
    other[other.index("--steps") + 1] = "48"
    assert main(other) == 2
    assert "holds a run with another steps" in said(capsys)[1]


def test_report_of_two_runs(run, tmp_path, capsys):
    other = train("ppo", tmp_path / "other", seed=8).folder
    page = tmp_path / "both.html"
    assert main(["report", str(run), str(other), "--out", str(page)]) == 0
    assert page.exists()


def test_a_reader_that_has_seen_enough(monkeypatch):
    def broken(*args: Any) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(catalogue, "methods_verb", broken)
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    assert main(["methods"]) == 0


def test_interrupting_any_verb_exits_with_130(monkeypatch, capsys):
    def interrupted(argv: list[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(catalogue, "methods_verb", interrupted)
    assert main(["methods"]) == 130
    assert said(capsys)[1] == "polopt: interrupted"


def test_every_tiny_run_is_spelled_on_the_command_line_as_in_python(tmp_path, monkeypatch):
    """Nothing is trained for it: the config is written before that."""
    monkeypatch.setattr(runs, "_trained", lambda work, *rest: int(not work()))  # without its report
    monkeypatch.setattr(loop.Trainer, "_rows", lambda trainer, watch: iter(()))
    for name in TINY:
        assert main(command(name, tmp_path / name)) == 0
        again, options = tmp_path / f"{name}-python", TASK_OPTIONS.get(name)
        assert list(polopt.iterate(name, TINY[name][0], out=again, task_options=options, **settings(name))) == []
        assert Run(tmp_path / name).config["config"] == Run(again).config["config"]


def test_a_task_option_may_have_several_values() -> None:
    argv = ["--task", "addition", "--task.levels", "1", "5", "--steps", "9", "--task.low=-2", "--task.high", "-1"]
    options, rest = split_task(argv)
    assert options == {"levels": [1, 5], "low": -2, "high": -1}
    assert rest == ["--task", "addition", "--steps", "9"]
    with pytest.raises(UsageError, match=r"--task\.levels needs a value"):
        split_task(["--task.levels"])
