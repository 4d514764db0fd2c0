"""Checkpoints are whole or absent, whatever happens while they are written, and a damaged one is refused by name."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import polopt
from polopt.cli import main
from polopt.core import files
from polopt.core.errors import CheckpointError, RunError
from polopt.core.state import Blob
from polopt.training.checkpoints import Checkpoints
from polopt.training.folder import Run
from tests.training.runs import differing, final_state, train

pytestmark = pytest.mark.usefixtures("unreported")

OPERATIONS = ("write", "rename", "replace", "make_folder", "remove")


class Killed(BaseException):
    """Stands for a power cut: nothing after it runs."""


def count_operations(monkeypatch: pytest.MonkeyPatch, at: int | None = None, fault: Callable[[], Any] | None = None):
    """Counts the calls of polopt.core.files; number `at` and all later ones call `fault` instead."""
    made: list[str] = []
    depth = [0]

    def wrap(name: str) -> Callable[..., Any]:
        original = getattr(files, name)

        def operation(*args: Any) -> Any:
            if depth[0] == 0 or name in ("write", "rename"):  # replace is a write and a rename
                if at is not None and len(made) >= at:
                    assert fault is not None
                    fault()
                if name != "replace":
                    made.append(name)
            depth[0] += 1
            try:
                return original(*args)
            finally:
                depth[0] -= 1

        return operation

    for name in OPERATIONS:
        monkeypatch.setattr(files, name, wrap(name))
    return made


def timeless(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "seconds"}


def kill() -> None:
    raise Killed


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing stopped."""
    return train("sac", tmp_path_factory.mktemp("whole") / "run").folder


@pytest.mark.parametrize(("name", "stride", "changes"), [("bc", 1, {"steps": 4}), ("sac", 11, {})])
def test_killed_at_any_file_operation_it_resumes_bitwise(name, stride, changes, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        made = count_operations(patch)
        whole = train(name, tmp_path / "whole", **changes)
    wanted = final_state(whole.folder)
    assert len(made) > 4 * stride
    for at in range(0, len(made), stride):
        folder = tmp_path / f"run{at}"
        with monkeypatch.context() as patch:
            count_operations(patch, at, kill)
            with pytest.raises(Killed):
                train(name, folder, **changes)
        started = (folder / "config.json").exists()  # before, nothing was promised yet
        run = polopt.resume(folder) if started else train(name, folder, **changes)
        assert differing(final_state(run.folder), wanted) == [], f"killed at operation {at}, {made[at]}"
        assert [timeless(row) for row in run.rows] == [timeless(row) for row in whole.rows]


@pytest.mark.parametrize("inside", ["rename", "rmtree"])
def test_killed_inside_an_operation_it_resumes_bitwise(inside, tmp_path, whole, monkeypatch):
    """Between the rename and its flush, and while a folder is half removed."""
    real, os_open = files.shutil.rmtree, os.open

    def half(path: Path) -> None:
        for file in sorted(Path(path).rglob("*"))[:1]:
            file.unlink()
        raise Killed

    def after(path: Any, flags: int) -> int:
        raise Killed

    for at in (0, 2):
        calls = [0]

        def fault(*args: Any, at: int = at, calls: list[int] = calls) -> Any:
            if len(args) > 2:  # a file that is made, such as the lock of the run
                return os_open(*args)
            calls[0] += 1
            if calls[0] <= at:
                return real(*args) if inside == "rmtree" else os_open(*args)
            return half(*args) if inside == "rmtree" else after(*args)

        folder = tmp_path / f"run{at}"
        with monkeypatch.context() as patch:
            if inside == "rmtree":
                patch.setattr(files.shutil, "rmtree", fault)
            else:
                patch.setattr(files.os, "open", fault)
            with pytest.raises(Killed):
                train("sac", folder)
        assert differing(final_state(polopt.resume(folder).folder), final_state(whole)) == []


def test_killed_while_a_future_is_dropped_no_half_checkpoint_is_left(tmp_path, monkeypatch):
    folder = train("bc", tmp_path / "run").folder
    wanted, (older, last) = final_state(folder), Run(folder).checkpoints.steps()

    def half(path: Path) -> None:
        sorted(Path(path).iterdir())[0].unlink()
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(files.shutil, "rmtree", half)
        with pytest.raises(Killed):
            polopt.resume(folder, checkpoint=older)
    assert last not in Run(folder).checkpoints.steps()
    assert differing(final_state(polopt.resume(folder).folder), wanted) == []


@pytest.mark.parametrize("call", ["open", "fsync", "replace", "mkdir", "rmtree"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_disk_that_refuses_is_one_sentence_and_loses_nothing(call, number, tmp_path, whole, monkeypatch, capsys):
    """The system call fails from the middle of the run on; afterwards the run continues from what it had saved."""
    error = OSError(number, os.strerror(number))
    calls = [0]
    owner, after = {  # where the call is looked up, and how many of them succeed: some saves are whole by then
        "open": (files, 8),
        "fsync": (files.os, 20),
        "replace": (files.os, 10),
        "mkdir": (files.Path, 8),
        "rmtree": (files.shutil, 1),
    }[call]
    original = getattr(owner, call, open)

    def failing(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] > after:
            raise error
        return original(*args, **kwargs)

    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(owner, call, failing, raising=False)
        with pytest.raises(RunError) as raised:
            train("sac", folder)
    said = "the disk is full" if number == errno.ENOSPC else "the disk is read-only"
    assert said in str(raised.value)
    assert "what was saved before is untouched" in str(raised.value)
    assert str(folder) in str(raised.value)
    saved = Run(folder).checkpoints
    assert saved.steps()
    saved.load(saved.steps()[-1])
    assert differing(final_state(polopt.resume(folder).folder), final_state(whole)) == []


def test_a_full_disk_exits_with_1(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "run"
    train("bc", folder, steps=4)

    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    assert main(["resume", str(folder), "--extend", "12"]) == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("polopt: could not write")
    assert "the disk is full; what was saved before is untouched" in said
    assert said.endswith(f"continue with 'polopt resume {folder}'")
    assert not list(folder.rglob(".new-*"))
    assert Run(folder).checkpoints.steps()[-1] == 4


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_demonstrations_on_a_disk_that_refuses(number, tmp_path, monkeypatch, capsys):
    run = train("ppo", tmp_path / "run")

    def refusing(*args: Any) -> None:
        raise OSError(number, os.strerror(number))

    file = tmp_path / "below" / "shown.safetensors"
    words = ["eval", str(run.folder), "--episodes", "1", "--record"]
    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", refusing)
        assert main([*words, str(file)]) == 1
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert f"{files.REFUSALS[number]}; what was saved before is untouched" in said[0]
    assert not file.exists()
    assert main([*words, str(file)]) == 0
    assert file.exists()
    assert main([*words, str(tmp_path)]) == 2
    assert f"{tmp_path} is a folder, not a file" in capsys.readouterr().err


def damage(path: Path, kind: str) -> None:
    data = path.read_bytes()
    if kind == "truncated":
        path.write_bytes(data[: len(data) // 2])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "missing":
        path.unlink()
    elif kind == "flipped":
        path.write_bytes(data[:-20] + bytes([data[-20] ^ 1]) + data[-19:])


@pytest.mark.parametrize("kind", ["truncated", "empty", "missing", "flipped"])
@pytest.mark.parametrize("file", ["state.json", "tensors.safetensors"])
def test_a_damaged_checkpoint_is_refused_and_the_one_before_offered(file, kind, tmp_path, whole, capsys):
    folder = shutil.copytree(whole, tmp_path / "run")
    before, last = Run(folder).checkpoints.steps()
    damage(Run(folder).checkpoints.path(last) / file, kind)
    with pytest.raises(CheckpointError, match=f"step-{last:09d} is damaged .*--checkpoint {before}$"):
        polopt.resume(folder)
    assert main(["eval", str(folder)]) == 1
    assert f"step-{last:09d} is damaged" in capsys.readouterr().err
    assert Run(folder).checkpoints.steps() == [before, last]
    polopt.resume(folder, checkpoint=before)  # as offered
    assert differing(final_state(folder), final_state(whole)) == []


def test_without_another_checkpoint_nothing_is_offered(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    damage(checkpoints.save(1, {"a": torch.ones(3)}) / "state.json", "empty")
    with pytest.raises(CheckpointError) as raised:
        checkpoints.load(1)
    assert "--checkpoint" not in str(raised.value)


def test_a_damaged_block_of_the_replay_is_refused(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    block = {"x": torch.arange(10.0)}
    checkpoints.save(1, {"replay@shard.0": Blob("b0", lambda: block)})
    assert torch.equal(checkpoints.load(1)["replay@shard.0"].tensors()["x"], block["x"])
    damage(tmp_path / "checkpoints" / "blobs" / "b0.safetensors", "flipped")
    with pytest.raises(CheckpointError, match=r"b0\.safetensors does not match its digest"):
        checkpoints.load(1)
    later = checkpoints.load(1, blobs=False)["replay@shard.0"]
    assert later.key == "b0"
    with pytest.raises(CheckpointError, match=r"checkpoint .*000000001 is damaged .*b0\.safetensors"):
        later.tensors()


def test_blocks_are_written_once_and_removed_with_their_last_checkpoint(tmp_path):
    checkpoints, written = Checkpoints(tmp_path), []

    def block(name: str) -> Blob:
        return Blob(name, lambda: written.append(name) or {"x": torch.ones(2)})

    def there() -> set[str]:
        return {path.name for path in (tmp_path / "checkpoints" / "blobs").iterdir()}

    checkpoints.save(1, {"a": block("one")})
    checkpoints.save(2, {"a": block("one"), "b": block("two")})
    assert written == ["one", "two"]
    for step in (3, 4):
        checkpoints.save(step, {"b": block("two")})
    assert written == ["one", "two"]
    assert there() == {"two.safetensors", "two.sha256"}
    assert checkpoints.steps() == [3, 4]


def test_a_checkpoint_of_another_format_is_named(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    path = checkpoints.save(1, {"a": 1}) / "state.json"
    import hashlib

    inner = json.loads(json.loads(path.read_text())["state"]) | {"format": 99}
    text = json.dumps(inner)
    path.write_text(json.dumps({"digest": hashlib.sha256(text.encode()).hexdigest(), "state": text}))
    with pytest.raises(CheckpointError, match="has format 99, this polopt reads 1"):
        checkpoints.load(1)


def test_what_is_saved_comes_back(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    state = {"tensor": torch.tensor([1.0, float("inf")]), "bool": torch.tensor(True), "list": [1, None, "x"], "n": 0.1}
    checkpoints.save(5, state)
    loaded = checkpoints.load(5)
    assert loaded.keys() == state.keys()
    assert torch.equal(loaded["tensor"], state["tensor"])
    assert loaded["bool"].dtype == torch.bool
    assert (loaded["list"], loaded["n"]) == (state["list"], state["n"])


def test_what_a_killed_save_left_goes_with_the_next_one(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"a": 1})
    for name in (".new-step-000000002", ".old-step-000000000"):
        (checkpoints.folder / name).mkdir()
    assert checkpoints.steps() == [1]
    checkpoints.save(3, {"a": 3})
    assert sorted(path.name for path in checkpoints.folder.iterdir()) == ["blobs", "step-000000001", "step-000000003"]


def test_dropping_a_future_keeps_the_past(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2, 3):
        checkpoints.save(step, {"a": step}, keep=3)
        checkpoints.save(step, {"a": step}, kind="best", keep=1)
    checkpoints.drop_after(2)
    assert checkpoints.steps() == [1, 2]
    assert checkpoints.steps("best") == []
    assert checkpoints.load(2)["a"] == 2


def test_another_network_does_not_fit_and_says_so(tmp_path, capsys):
    folder = train("bc", tmp_path / "run").folder
    record = json.loads((folder / "config.json").read_text())
    record["config"]["network"]["sizes"] = [9]
    (folder / "config.json").write_text(json.dumps(record))
    for argv in (["resume", str(folder)], ["eval", str(folder)]):
        assert main(argv) == 1
        said = capsys.readouterr().err.strip().splitlines()[-1]
        assert "step-000000012 does not fit" in said
        assert "policy" in said


def test_tensors_that_share_memory_are_saved(tmp_path):
    """As leaves of their own and inside a block: a row and its column of one matrix, and the same tensor twice."""
    whole = torch.arange(6.0).reshape(2, 3)
    leaves = {"one": whole[0], "other": whole[:, 0], "same": whole, "again": whole}
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, leaves | {"block": Blob("key", lambda: dict(leaves))})
    state = checkpoints.load(1)
    for found in (state, state["block"].tensors()):
        assert torch.equal(found["one"], torch.tensor([0.0, 1.0, 2.0]))
        assert torch.equal(found["other"], torch.tensor([0.0, 3.0]))
        assert torch.equal(found["same"], whole)
        assert torch.equal(found["again"], whole)
