"""Two processes share a run: what they compute is what one process computes with the same parts, to the last bit."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import polopt
from polopt import registry
from polopt.bases.language import LanguageMethod
from polopt.cli import main
from polopt.core import ranks
from polopt.policies import causal_scoring
from polopt.training import api
from polopt.training.folder import Run
from tests.guards.harness import one_of_a_kind
from tests.training import pair

LANGUAGE = [name for name in registry.entries() if issubclass(registry.load(name), LanguageMethod)]
QUICK = [each.values[0] for each in one_of_a_kind(LANGUAGE) if not each.marks]
SETTINGS = [name for name in pair.GRPO if name != "compiled"]
SHARDED = ["sharded", "sharded lora"]
DEAR = ["sharded exact kl", *(f"sharded {name}" for name in LANGUAGE)]


def together(folder: Path, work: Sequence[str]) -> list[Any]:
    """What the first and the second process of every pair found, and the exit codes of each pair."""
    own = {"OMP_NUM_THREADS": "1", "POLOPT_CACHE": str(folder / "cache")}
    command = [sys.executable, "-m", "tests.training.pair", str(folder), *work]
    done = subprocess.run(command, env=os.environ | own, stderr=subprocess.PIPE, text=True)
    assert len(list(folder.glob("found-*"))) == 2 * (1 + work.count("/")), done.stderr
    said: list[dict[str, Any]] = [{}, {}]
    for path in sorted(folder.glob("found-*")):
        said[int(path.stem[-1])] |= torch.load(path, weights_only=False)
    return [*said, torch.load(folder / "codes.pt")]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pair")


@pytest.fixture(scope="module")
def both(place: Path) -> list[Any]:
    first = ["checks", "divided", "memory", *QUICK, *SETTINGS, *SHARDED, "runs", "folders", "killed"]
    return together(place, [*first, "/", "after killed", "sharded killed", "/", "after sharded killed"])


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    names = [name for name in LANGUAGE if name not in QUICK]
    return together(tmp_path_factory.mktemp("others"), [*names, "compiled", *DEAR])


def differing(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """The leaves in which two states differ."""

    def same(a: Any, b: Any) -> bool:
        return torch.equal(a, b) if isinstance(a, Tensor) else bool(a == b)

    assert one.keys() == other.keys()
    return [path for path, leaf in one.items() if not same(leaf, other[path])]


def check(name: str, both: list[Any]) -> None:
    with ranks.divided(2):
        state, metrics = pair.settled(name)
    for found in both[:2]:
        assert differing(state, found[name][0]) == []
        assert metrics == found[name][1]


@pytest.mark.parametrize("name", [*QUICK, *SETTINGS])
def test_two_processes_are_one_with_the_same_parts(name: str, both: list[Any]) -> None:
    check(name, both)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", [*(name for name in LANGUAGE if name not in QUICK), "compiled"])
def test_so_they_are_with_every_method(name: str, others: list[Any]) -> None:
    check(name, others)


def close(name: str, both: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as sums in another order allow. A divided model reads a prompt for each of its completions, which moves
    the norms, that are in single precision: so does the whole one here."""
    monkeypatch.setattr(causal_scoring, "shared_prompts", lambda batch: None)
    with ranks.divided(2):
        state, metrics = pair.settled(name)
    for found in both[:2]:
        assert apart(state, found[name][0]) < 1e-12
        for one, other in zip(metrics, found[name][1]):
            assert one == pytest.approx(other, rel=1e-12, abs=1e-12)


def apart(one: dict[str, Any], other: dict[str, Any]) -> float:
    """The largest difference of two states, of which all but floating numbers is equal."""
    largest = 0.0
    assert one.keys() == other.keys()
    for path, leaf in one.items():
        if isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.numel():
            largest = max(largest, (leaf - other[path]).abs().max().item())
        elif isinstance(leaf, Tensor):
            assert torch.equal(leaf, other[path]), path
    assert all(leaf == other[path] for path, leaf in one.items() if not isinstance(leaf, (Tensor, float, list, dict)))
    return largest


@pytest.mark.parametrize("name", SHARDED)
def test_a_divided_model_is_the_whole_one(
    name: str, both: list[Any], float64: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    close(name, both, monkeypatch)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", DEAR)
def test_so_it_is_with_every_method(
    name: str, others: list[Any], float64: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    close(name, others, monkeypatch)


def test_what_a_divided_model_holds_and_gathers(both: list[Any], float64: None) -> None:
    """Two layers and the rest are gathered once for a generation, and between passes each process holds its half: of
    the 99 rows of the embedding 50 or 49."""
    for found in (each["divided"] for each in both[:2]):
        assert found["gathers"] == 3
        assert found["divided"]
        assert found["left"] == []
        total, held = found["held"]
        assert held[0] == held[1]
        assert abs(held[0] - total / 2) == 128 / 2
        assert "not its output embeddings applied to its states" in found["refused"]
        action, log_prob = found["written"]
        expected = pair.written()
        assert torch.equal(action, expected[0])
        assert (log_prob - expected[1]).abs().max() < 1e-12


def test_parts_add_up_to_the_whole(float64: None) -> None:
    """In parts a batch gives what it gives whole, up to rounding: the norms of the model are in single precision, and
    Adam makes much of small gradients. Its steps are of 1e-2."""
    whole, metrics = pair.settled("grpo")
    with ranks.divided(3):
        parts, others = pair.settled("grpo")
    for path, leaf in whole.items():
        if isinstance(leaf, Tensor) and leaf.is_floating_point():
            torch.testing.assert_close(leaf, parts[path], rtol=0, atol=1e-5)
    assert [one.keys() for one in metrics] == [one.keys() for one in others]


def test_what_is_joined(both: list[Any]) -> None:
    one, two = (found["primitives"] for found in both[:2])
    assert one.pop("count") == (2, True, 2, [0], [slice(0, 1)])
    assert two.pop("count") == (2, False, 2, [1], [slice(1, 3)])
    assert one == two
    assert (one["told"], one["each"], one["most"], one["in turn"]) == (0, [0, 1], 1, True)
    assert one["error"] == ("nothing was said", "only the second process knows")
    assert one["disk"] == "could not write run: the disk is full; what was saved before is untouched"
    assert one["code"] == "process 1 has torch 2.1, and process 0 2.0: all that share a run need the same"
    assert one["same code"] == "nothing was said"
    assert one["added"] == ([True, False], [3.0, 4.0])
    assert (one["joined"], one["one row"]) == ([0.0, 2.0, 4.0], [0.0])
    assert one["gradients"] == [[1.0, 1.0], [1.0, 1.0], None]
    assert one["sums"] == {"both": 2.0, "of 0": 2.0, "of 1": 2.0}
    assert len(set(one["luck"].values())) == 3


def test_one_process_joins_nothing() -> None:
    assert (ranks.count(), ranks.first(), ranks.parts(), ranks.mine(3)) == (1, True, 1, [slice(0, 3)])
    with ranks.divided(2):
        assert ranks.mine(3) == [slice(0, 1), slice(1, 3)]
        with ranks.apart():
            assert ranks.mine(3) == [slice(0, 3)]
    state = random.getstate()
    assert ranks.shared([1, 2], lambda items: dict.fromkeys(items, random.getstate() == state)) == {1: True, 2: True}


def test_who_disagrees_is_stopped_with_the_name_of_what_differs(both: list[Any]) -> None:
    for found in both[:2]:
        said = found["disagreements"]
        assert "processes 0 and 1 disagree about method.policy.model" in said["weights"]
        assert "about method.ledger#tokens at 0 completions" in said["counts"]
        assert "about random/torch" in said["luck"]


def test_a_reward_that_is_drawn_is_drawn_once(both: list[Any]) -> None:
    one, two = (found["random reward"] for found in both[:2])
    assert one["state"] == two["state"]
    assert one["metrics"] == two["metrics"]
    assert (one["asked"], two["asked"]) == (8, 10)
    assert len({metrics["reward"] for metrics in one["metrics"]}) == 2


def test_a_judge_is_asked_once(both: list[Any]) -> None:
    one, two = (found["random judge"] for found in both[:2])
    assert torch.equal(one["said"], two["said"])
    assert len(one["said"].unique()) == 1 + 3 * 3 * 2
    assert one["after"] == two["after"]
    assert (one["asked"], two["asked"]) == (3, 6)


def test_what_cannot_be_divided_is_refused(both: list[Any]) -> None:
    for found in both[:2]:
        said = found["refusals"]
        assert "drawing draws random numbers, and several processes would all draw the same" in said["drawing"]
        assert "only methods for language models divide their batches, and ppo is none" in said["control"]
        assert said["number"] == "--processes 3, and torchrun has started 2"
        assert said["engine"] == "--processes 2: --policy.engine vllm samples for one process only"
        assert said["device"].endswith("so say --device cuda, not cuda:0")


def final(folder: Path, step: int = -1) -> dict[str, Any]:
    """What is saved at a step, or last."""
    checkpoints = Run(folder).checkpoints
    state = checkpoints.load(checkpoints.steps()[-1] if step < 0 else step)
    return {path: leaf for path, leaf in state.items() if path not in ("#seconds", "#rows")}


@pytest.fixture(scope="module")
def unstopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two parts that one process has made without a stop."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    planned = api.plan("sft", "addition", task_options=pair.POOL, **pair.SFT)
    planned.options = replace(planned.options, processes=2)
    for _ in api.start(planned, folder):
        pass
    return folder


@pytest.fixture(scope="module")
def whole(unstopped: Path) -> dict[str, Any]:
    """What it ends with."""
    return final(unstopped)


def test_a_signal_to_one_stops_all_and_any_number_goes_on(both: list[Any], place: Path, whole: dict[str, Any]) -> None:
    for found in both[:2]:
        assert found["stopped"] == "interrupted; saved"
        assert found["resumed"] == "nothing was said"
    assert Run(place / "alone").checkpoints.steps()[-1] < 12
    assert Run(place / "stopped").config["run"]["processes"] == 2
    assert differing(final(place / "stopped"), whole) == []
    polopt.resume(place / "alone")
    assert differing(final(place / "alone"), whole) == []
    assert [row["updates"] for row in Run(place / "alone").rows] == [
        row["updates"] for row in Run(place / "stopped").rows
    ]


@pytest.mark.parametrize("name", ["killed", "sharded killed"])
def test_after_one_was_killed_any_number_goes_on_divided_or_not(
    name: str, both: list[Any], place: Path, unstopped: Path
) -> None:
    """Two processes of which the second is killed, with a model that both hold or that is divided."""
    assert both[2] == [[0, -9], [0, -9], [0, 0]]
    assert (place / f"{name}.txt").read_text() == "another process of this run has ended"
    assert Run(place / name).checkpoints.steps()[-1] == 8
    assert apart(final(place / name), final(unstopped, 8)) < (1e-12 if "sharded" in name else 1e-300)
    polopt.resume(place / name)
    for shard in (False, True):
        again = f"{name}, {shard}"
        assert {found[again] for found in both[:2]} == {"nothing was said"}
        assert Run(place / again).config["run"]["shard"] == shard
        assert apart(final(place / again), final(unstopped)) < 1e-12
    assert apart(final(place / name), final(unstopped)) < 1e-12
    if name == "killed":
        assert differing(final(place / name), final(unstopped)) == []
        assert differing(final(place / "killed, False"), final(unstopped)) == []


def test_a_folder_that_is_not_shared_is_one_sentence_and_nothing_is_left(both: list[Any], place: Path) -> None:
    for found in both[:2]:
        folder = place / "machine-0" / "run"
        said = f"process 1, on {socket.gethostname()}, does not see {folder}: the folder of a run lies on a disk that"
        assert found["not shared"].startswith(said)
        assert found["left"] == []
        assert found["nothing to resume"] == "run is not a run folder: it has no config.json"
        assert found["resume not shared"].startswith(said)
    assert not list((place / "machine-1").iterdir())
    assert differing(final(place / "machine-0" / "run"), final(place / "stopped")) == []


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="asks the kernel of Linux")
def test_a_divided_model_takes_as_much_less_memory_as_is_computed(both: list[Any]) -> None:
    """10 million parameters in single precision: 164 MB of weights, gradients and moments where they are whole."""
    for found in (each["memory"] for each in both[:2]):
        for what in ("learning", "sampling"):
            (whole, computed), (divided, asked) = found[False][what], found[True][what]
            assert computed > 160e6
            assert whole == pytest.approx(computed, rel=0.05), what
            assert divided == pytest.approx(asked, rel=0.12), what
            assert divided < 0.85 * whole


@pytest.fixture(scope="module")
def sixty(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("sixty") / "run"
    planned = api.plan("sft", "addition", task_options=pair.POOL, **pair.SFT | pair.LONG)
    planned.options = replace(planned.options, processes=2)
    for _ in api.start(planned, folder):
        pass
    return final(folder)


def test_a_divided_run_goes_on_whole_or_divided_and_by_any_number(
    both: list[Any], place: Path, whole: dict[str, Any], sixty: dict[str, Any]
) -> None:
    for found in both[:2]:
        assert found["sharded stopped"] == "interrupted; saved"
        assert {found[name] for name in ("sharded resumed", "then whole", "then sharded")} == {"nothing was said"}
    assert Run(place / "then alone").checkpoints.steps()[-1] < 60
    polopt.resume(place / "then alone")
    for name in ("sharded", "then whole", "then alone"):
        assert apart(final(place / name), sixty) < 1e-12
    assert apart(final(place / "then sharded"), whole) < 1e-12
    shared = {name: Run(place / name).config["run"]["shard"] for name in ("sharded", "then whole", "then sharded")}
    assert shared == {"sharded": True, "then whole": False, "then sharded": True}


def test_a_divided_run_is_exported_whole(both: list[Any], place: Path) -> None:
    exported = load_file(place / "sharded" / "model" / "model.safetensors")
    state = final(place / "sharded")
    assert len(exported) > 5
    for name, value in exported.items():
        assert torch.equal(value, state[f"method.policy.model.{name}"])


@pytest.mark.exhaustive
def test_the_command_line_starts_several_and_goes_on_after_one_was_killed(
    tmp_path: Path, whole: dict[str, Any], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = [item for name, value in pair.SFT.items() if value != () for item in (f"--{name.replace('_', '-')}", value)]
    flags += ["--task.pool", 16, "--task.score-truncated", "true", "--out", tmp_path / "run", "--loggers"]
    monkeypatch.setenv("POLOPT_KILLED", str(tmp_path / "killed"))
    task = "tests.training.pair:Deadly"
    assert main(["train", "sft", "--task", task, "--processes", "2", *map(str, flags)]) == 1
    assert "process 1 of 2 was ended by SIGKILL" in capfd.readouterr().err
    assert main(["resume", str(tmp_path / "run"), "--processes", "2", "--task", task]) == 0
    out, err = capfd.readouterr()
    assert out.count("report ") == 1
    assert "Traceback" not in err
    assert differing(final(tmp_path / "run"), whole) == []
