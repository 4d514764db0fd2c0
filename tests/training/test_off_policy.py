"""`polopt eval RUN --ope`: estimates from recorded data, and one sentence for each that cannot be had."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import polopt
from polopt.cli.main import main
from polopt.data.demonstrations import load_demonstrations
from polopt.models.ensemble import Ensemble
from polopt.networks import Network
from polopt.tasks import make_task

SMALL = {"network.sizes": (8,), "eval_episodes": 1, "loggers": ()}


@pytest.fixture(autouse=True)
def small_model(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = Ensemble(members=2, elites=2, network=Network((8,), "silu"), epochs=2)
    monkeypatch.setattr("polopt.training.off_policy.MODEL", tiny)


@pytest.fixture(scope="module")
def cloned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone of random actions in CartPole."""
    folder = tmp_path_factory.mktemp("ope") / "cloned"
    polopt.train("bc", "CartPole-v1", steps=3, out=folder, demonstrations="random", random_episodes=6, **SMALL)
    return folder


def said(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    assert main(["eval", *map(str, words)]) == 0
    return capsys.readouterr().out


def test_a_policy_on_its_own_samples_has_weights_of_one(
    cloned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    file = tmp_path / "sampled.safetensors"
    said(capsys, cloned, "--stochastic", "--episodes", 15, "--record", file)
    text = said(capsys, cloned, "--stochastic", "--ope", file, "--ope-discount", 1, "--ope-updates", 20, "--json")
    found = json.loads(text)
    assert found["held_out_episodes"] == 3
    assert found["discount"] == 1
    assert found["missing"] == []
    for kind in ("ordinary", "weighted", "per-decision", "weighted-per-decision"):
        assert found[f"{kind} importance sampling"] == pytest.approx(found["data"], rel=1e-4)
        assert found[f"{kind} effective size"] == pytest.approx(3, rel=1e-3)
    assert found["ncis importance sampling"] == pytest.approx(1)
    assert found["data/low"] < found["data"] < found["data/high"]
    assert found["fitted q/low"] < found["fitted q"] < found["fitted q/high"]
    assert 0 < found["model"] < 200
    shown = said(capsys, cloned, "--stochastic", "--ope", file, "--ope-updates", 5)
    assert shown.startswith("sampled policy, discount 0.99, on 3 held-out episodes:")
    assert "(effectively 3.0 episodes)" in shown


def test_what_cannot_be_estimated_is_said(cloned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    text = said(capsys, cloned, "--ope", "--ope-updates", 5)
    assert "greedy policy" in text
    assert "importance sampling needs the densities of the recorded actions, behavior_log_prob" in text
    file = tmp_path / "sampled.safetensors"
    said(capsys, cloned, "--stochastic", "--episodes", 5, "--record", file)
    assert "is of a policy that samples: add --stochastic" in said(capsys, cloned, "--ope", file, "--ope-updates", 5)


def test_a_policy_without_a_density(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = tmp_path / "run"
    settings = {"demonstrations": "random", "random_episodes": 2, "policy": "deterministic", **SMALL}
    polopt.train("bc", "Pendulum-v1", steps=2, out=folder, **settings)
    text = said(capsys, folder, "--ope", "--ope-updates", 5)
    assert "not estimated: importance sampling needs a policy that has a density for any action" in text
    assert "fitted q" in text
    assert "model  " in text
    file = tmp_path / "some.safetensors"
    said(capsys, folder, "--stochastic", "--episodes", 1, "--record", file)
    assert "behavior_log_prob" not in load_demonstrations(file, make_task("Pendulum-v1").spec).keys()


def test_wrong_uses_get_one_sentence(cloned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    def fails(*words: object) -> str:
        assert main(["eval", *map(str, words)]) == 2
        return capsys.readouterr().err

    online = tmp_path / "online"
    polopt.train("ppo", "CartPole-v1", steps=32, out=online, envs=2, window=16, **SMALL)
    assert "has learned from no dataset: name the recorded data, --ope DATASET" in fails(online, "--ope")
    assert "there are no demonstrations at" in fails(online, "--ope", "nowhere.safetensors")
    memory = tmp_path / "memory"
    polopt.train("ppo", "CartPole-v1", steps=32, out=memory, envs=2, window=16, **SMALL, **{"network.recurrent": "gru"})
    assert "which a recurrent policy cannot judge" in fails(memory, "--ope", "random")
    assert "--record plays episodes, and --ope plays none" in fails(cloned, "--ope", "--record", tmp_path / "x")
    for name in ("shown.npz", "shown.hdf5"):  # which would be read as something else
        said_so = f"{name} would be read as arrays, and demonstrations are safetensors: name it shown.safetensors"
        assert said_so in fails(cloned, "--record", tmp_path / "new" / name)
    assert not (tmp_path / "new").exists()
    assert "--samples plays episodes, and --ope plays none" in fails(cloned, "--samples", 2, "--ope")
    assert "--episodes are played, and --ope plays none" in fails(cloned, "--episodes", 2, "--ope")
    assert "--ope-updates 0: at least 1" in fails(cloned, "--ope", "--ope-updates", 0)
    assert "--ope-discount 1.5: within 0 and 1" in fails(cloned, "--ope", "--ope-discount", 1.5)
    single = tmp_path / "one.safetensors"
    said(capsys, cloned, "--episodes", 1, "--record", single)
    assert "two recorded episodes or more" in fails(cloned, "--ope", single)


def test_sampled_files_serve_methods_as_before(cloned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """The densities of a file join no batch: what is collected online has none."""
    file = tmp_path / "sampled.safetensors"
    said(capsys, cloned, "--stochastic", "--episodes", 3, "--record", file)
    spec = make_task("CartPole-v1").spec
    assert "behavior_log_prob" in load_demonstrations(file, spec).keys()
    settings = {"dataset": str(file), "offline_updates": 1, "replay_size": 500, "batch_size": 4, "policy": "auto"}
    run = polopt.train("iql", "CartPole-v1", steps=3, out=tmp_path / "iql", **settings, **SMALL)
    assert run.final["updates"] == 3
