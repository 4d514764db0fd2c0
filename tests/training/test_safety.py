"""Reading what someone else wrote runs no code of theirs, and a changed file is one sentence."""

from __future__ import annotations

import builtins
import json
import pickle
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import polopt
from polopt.cli import main
from polopt.core.errors import UsageError
from polopt.training.api import load_method
from polopt.training.folder import Run
from tests.forked import POLOPT, Forked
from tests.training.runs import train


class Bomb:
    """Unpickling it leaves a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of which every test has copies."""
    folder = tmp_path_factory.mktemp("trained")
    train("sac", folder / "run")
    train("rec", folder / "spoken", steps=8)
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Run:
    return Run(shutil.copytree(trained / "run", tmp_path / "run"))


def test_no_pickle_is_ever_opened(run, tmp_path, monkeypatch):
    fired = tmp_path / "fired"
    bomb = pickle.dumps(Bomb(fired))
    folder = run.folder
    for name in (
        "policy.pkl",
        "state.pt",
        "model.pth",
        "data.pickle",
        "weights.npy",
        "conftest.py",
        "sitecustomize.py",
    ):
        for place in (folder, folder / "checkpoints", run.checkpoints.path(run.checkpoints.steps()[-1])):
            (place / name).write_bytes(bomb)

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("something was unpickled")

    for owner, name in ((pickle, "load"), (pickle, "loads"), (pickle, "Unpickler"), (torch, "load")):
        monkeypatch.setattr(owner, name, refuse)
    opened: list[str] = []
    real = builtins.open

    def spy(path: Any, *args: Any, **kwargs: Any) -> Any:
        opened.append(str(path))
        return real(path, *args, **kwargs)

    monkeypatch.setattr(builtins, "open", spy)
    polopt.load(folder).predict(torch.zeros(3).numpy())
    polopt.evaluate(folder, episodes=1)
    polopt.resume(folder, extend=52)
    assert not fired.exists()
    assert not [
        path for path in opened if path.startswith(str(folder)) and path.endswith((".pkl", ".pt", ".pth", ".py"))
    ]


@pytest.mark.parametrize("file", ["tensors.safetensors", "state.json"])
def test_a_pickle_under_the_name_of_a_checkpoint_is_refused(file, run, tmp_path, capsys):
    fired = tmp_path / "fired"
    path = run.checkpoints.path(run.checkpoints.steps()[-1]) / file
    path.write_bytes(pickle.dumps(Bomb(fired)))
    assert main(["resume", str(run.folder)]) == 1
    assert "is damaged" in capsys.readouterr().err
    assert not fired.exists()


def edit(folder: Path, change: Any) -> None:
    path = folder / "config.json"
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module on the path that leaves a file behind when it is imported."""
    fired = tmp_path / "fired"
    (tmp_path / "planted_module.py").write_text(
        f"from pathlib import Path\nPath({str(fired)!r}).touch()\n"
        "import gymnasium\n"
        "def make(**kwargs): return gymnasium.make('Pendulum-v1')\n"
        "def trunk(inputs, outputs): raise AssertionError\n"
        "def score(prompt, completion): return float(len(completion))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("planted_module", None)
    return fired


def test_a_task_that_is_code_must_be_said_again(run, planted, capsys):
    edit(run.folder, lambda record: record.update(task="planted_module:make"))
    for verb in ("resume", "eval"):
        assert main([verb, str(run.folder)]) == 2
        assert "say it again with --task planted_module:make" in capsys.readouterr().err
    assert not planted.exists()
    assert main(["eval", str(run.folder), "--episodes", "1", "--task", "planted_module:make"]) == 0
    assert planted.exists()


def test_a_gymnasium_id_that_imports_a_module_is_code_too(run, planted, capsys):
    edit(run.folder, lambda record: record.update(task="planted_module:Pendulum-v1"))
    assert main(["eval", str(run.folder)]) == 2
    assert not planted.exists()


def test_a_network_that_is_code_must_be_said_again(run, planted, capsys):
    edit(run.folder, lambda record: record["config"]["network"].update(make={"callable": "planted_module:trunk"}))
    for verb in ("resume", "eval"):
        assert main([verb, str(run.folder)]) == 2
        said = capsys.readouterr().err
        assert "network.make was planted_module:trunk, which is code, which is not run from a file" in said
    assert not planted.exists()


@pytest.fixture
def spoken(trained: Path, tmp_path: Path) -> Run:
    return Run(shutil.copytree(trained / "spoken", tmp_path / "spoken"))


def refusals(
    folder: Path, tmp_path: Path, said: str, capsys: pytest.CaptureFixture[str], *, loads: bool = False
) -> None:
    """Every verb that reads a run folder refuses with a sentence, from the command line and from Python; but where the
    policy `loads` without what is missing, `load`."""
    folders, demonstrations = str(folder), tmp_path / "demonstrations.safetensors"
    verbs: list[list[str]] = [["resume"], ["resume", "--extend", "16"], ["eval"], ["eval", "--episodes", "2"]]
    for verb, *options in [*verbs, ["eval", "--record", str(demonstrations)]]:
        assert main([verb, folders, *options]) == 2
        error = capsys.readouterr().err.strip()
        assert said in error
        assert error.count("\n") == 0
    calls: list[Callable[[], Any]] = [
        lambda: load_method(folder),
        lambda: polopt.evaluate(folder, episodes=2),
        lambda: polopt.resume(folder),
        lambda: polopt.resume(folder, extend=16),
        lambda: polopt.demonstrate(folder, demonstrations),
    ]
    for checkpoint in ("latest", "best"):
        if loads:
            assert isinstance(polopt.load(folder, checkpoint=checkpoint).predict("bc:"), str)
        else:
            calls.append(lambda checkpoint=checkpoint: polopt.load(folder, checkpoint=checkpoint))  # type: ignore[misc]
    for call in calls:
        with pytest.raises(UsageError, match=re.escape(said)):
            call()
    shutil.rmtree(folder / "checkpoints")  # killed before its first checkpoint: it would start again
    with pytest.raises(UsageError, match=re.escape(said)):
        polopt.resume(folder)
    assert not demonstrations.exists()


@pytest.mark.parametrize(
    "named", ["planted_module:score", ["planted_module:score"], "planted_module:score,planted_module:score", [3, "a:b"]]
)
def test_rewards_that_are_code_must_be_said_again(named, spoken, planted, tmp_path, capsys):
    edit(spoken.folder, lambda record: record["task_options"].update(rewards=named))
    names = named if isinstance(named, str) else ",".join(map(str, named))
    assert main(["report", str(spoken.folder)]) == 0
    said = f"with rewards of yours, {names}: say them again with --rewards {names}"
    refusals(spoken.folder, tmp_path, said, capsys, loads=True)
    assert not planted.exists()


def test_rewards_that_are_said_again_are_used(spoken, planted, capsys):
    edit(spoken.folder, lambda record: record["task_options"].update(rewards="nowhere:f"))
    given = ["--rewards", "planted_module:score"]
    assert main(["eval", str(spoken.folder), "--episodes", "2", "--json", *given]) == 0
    length = json.loads(capsys.readouterr().out)["return"]
    assert length > 1  # a reward of the task itself is at most 1
    assert polopt.evaluate(spoken.folder, episodes=2, rewards=lambda prompt, completion: 2.0)["return"] == 2
    assert polopt.load(spoken.folder, rewards="planted_module:score").predict("bc:") is not None
    assert main(["resume", str(spoken.folder), "--extend", "16", *given]) == 0
    assert spoken.rows[-1]["completions"] == 16
    assert json.loads((spoken.folder / "config.json").read_text())["task_options"]["rewards"] == "planted_module:score"


def test_rewards_belong_to_text_tasks(run, capsys):
    assert main(["eval", str(run.folder), "--rewards", "os:system"]) == 2
    assert "Pendulum-v1 is no text task: it takes no rewards" in capsys.readouterr().err


def test_a_model_that_brings_code_must_be_allowed_again(spoken, tmp_path, capsys):
    fired, model = tmp_path / "fired", tmp_path / "model"
    shutil.copytree(spoken.folder / "model", model)
    (model / "own.py").write_text(
        f"from pathlib import Path\nPath({str(fired)!r}).touch()\n"
        "from transformers import LlamaConfig as C, LlamaForCausalLM as M\n"
    )
    shape = json.loads((model / "config.json").read_text())
    shape["auto_map"] = {"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"}
    (model / "config.json").write_text(json.dumps(shape))
    edit(spoken.folder, lambda record: record["config"].update(model=str(model)))
    edit(spoken.folder, lambda record: record["config"]["policy"].update(model=str(model), trust_remote_code=True))
    # In a process of its own, because transformers keeps what a model has brought.
    words = ["eval", str(spoken.folder), "--episodes", "2", "--trust-remote-code"]
    assert Forked(POLOPT, words).wait() == 0
    assert fired.exists()
    fired.unlink()
    said = "runs Python code that its model brings: say it again with --trust-remote-code"
    refusals(spoken.folder, tmp_path, said, capsys)
    assert not fired.exists()


DAMAGE: dict[str, Any] = {
    "no task": (lambda record: record.pop("task"), 1, "config.json is damaged: it has no 'task'"),
    "a number for a task": (lambda record: record.update(task=3), 1, "config.json is damaged: it has no 'task'"),
    "no config": (lambda record: record.update(config=None), 1, "config.json is damaged: it has no 'config'"),
    "another method": (
        lambda record: record.update(method="sacc"),
        2,
        "there is no method 'sacc'; did you mean 'sac'?",
    ),
    "a planned method": (lambda record: record.update(method="rldp"), 2, "rldp is planned, not built yet"),
    "a value out of range": (lambda record: record["config"].update(tau=7), 2, "tau must be"),
    "an unknown field": (
        lambda record: record["config"].update(taau=0.1),
        2,
        "has no field 'taau'; did you mean 'tau'?",
    ),
    "a wrong type": (lambda record: record["config"].update(network="x"), 2, "network"),
    "an unknown task": (lambda record: record.update(task="Pendulumm-v1"), 2, "there is no task 'Pendulumm-v1'"),
    "a reserved option": (lambda record: record["task_options"].update(seed=1), 2, "--task.seed cannot be set"),
    "an unknown option": (lambda record: record["task_options"].update(foo=1), 2, "cannot be made"),
    "an unknown logger": (lambda record: record["run"].update(loggers=["os"]), 2, "there is no logger 'os'"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_tampered_config_is_one_sentence(kind, run, capsys):
    change, code, sentence = DAMAGE[kind]
    edit(run.folder, change)
    before = sorted(run.folder.rglob("*"))
    assert main(["resume", str(run.folder)]) == code
    said = capsys.readouterr().err.strip()
    assert sentence in said
    assert said.count("\n") == 0
    assert sorted(run.folder.rglob("*")) == before


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", "\x00\x01"])
def test_a_config_that_is_no_record(text, run, capsys):
    (run.folder / "config.json").write_text(text)
    for verb in ("resume", "eval", "report"):
        assert main([verb, str(run.folder)]) == 1
        assert "config.json" in capsys.readouterr().err


def test_demonstrations_are_not_unpickled(tmp_path):
    fired, file = tmp_path / "fired", tmp_path / "demos.safetensors"
    file.write_bytes(pickle.dumps(Bomb(fired)))
    with pytest.raises(UsageError, match="cannot be read"):
        polopt.train("bc", "CartPole-v1", steps=2, out=tmp_path / "bc", loggers=(), demonstrations=str(file))
    assert not fired.exists()


def test_a_misspelt_name_of_own_code_is_one_sentence(run):
    calls: list[Callable[..., Any]] = [polopt.load, polopt.evaluate, polopt.resume, polopt.record]
    calls.append(lambda folder, **own: polopt.report([folder], **own))
    calls.append(lambda folder, **own: polopt.demonstrate(folder, "x", **own))
    for call in calls:
        with pytest.raises(UsageError, match="there is no option 'netwrk'; did you mean 'network'"):
            call(run.folder, netwrk=None)
