"""What is learned, as a value: nothing that is trained later changes it, and checkpoints share what archives keep."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import nn

from polopt.core.batch import weigh
from polopt.core.errors import CheckpointError
from polopt.core.ledger import Ledger
from polopt.core.snapshot import Archive, Snapshot, give, take
from polopt.core.state import Stateful, content_key, gather, restore
from polopt.data import Sequential
from polopt.optim import Optimizer
from polopt.training.checkpoints import Checkpoints


class Learner(Stateful):
    """One of everything: a module that a source shares, an optimizer, a count, and what says where a run stands."""

    saved = ("steps", "history")

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.ledger = Ledger()
        self.source = Drawn()
        self.net = self.source.net
        self.optimizer = Optimizer(self.net, lr=0.1)
        self.generator = torch.Generator().manual_seed(1)
        self.steps = 0
        self.history: list[int] = []

    def train(self) -> None:
        batch = weigh(TensorDict({"x": torch.tensor([[1.0, 2.0]])}, [1]))
        self.optimizer.minimize(lambda rows: ((rows["weight"] * self.net(rows["x"]).sum(-1).square()).sum(), {}), batch)
        self.steps += 1
        self.history.append(self.steps)
        self.ledger.env_steps += 5
        self.source.draw(3)
        torch.rand(2, generator=self.generator)


class Drawn(Sequential):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(2, 1)


def frozen(snapshot: Snapshot) -> Any:
    """The content of a snapshot, copied."""
    blocks = {path: blob.tensors() for path, blob in snapshot.blobs.items()}
    return copy.deepcopy((blocks, snapshot.values))


def same(one: Any, other: Any) -> bool:
    blocks = zip(one[0].values(), other[0].values(), strict=True)
    equal = all(a.keys() == b.keys() and all(torch.equal(a[path], b[path]) for path in a) for a, b in blocks)
    return equal and one[1] == other[1]


def test_it_holds_what_was_learned_and_not_where_the_run_stands():
    learner = Learner()
    learner.train()
    snapshot = take(learner)
    moments = {f"optimizer@{index}.{name}" for index in (0, 1) for name in ("step", "exp_avg", "exp_avg_sq")}
    assert set(snapshot.blobs[""].tensors()) == {"net.weight", "net.bias", *moments}
    assert snapshot.values == {"#steps": 1, "#history": [1], "optimizer#lr": 0.1}


def test_training_changes_no_snapshot_neither_of_the_giver_nor_of_the_taker():
    one, other = Learner(), Learner()
    one.train()
    snapshot = take(one)
    before = frozen(snapshot)
    one.train()
    give(other, snapshot)
    other.train()
    assert same(frozen(snapshot), before)
    assert torch.equal(one.net.weight, other.net.weight)  # the same second step
    assert (other.steps, other.history, other.ledger.env_steps) == (2, [1, 2], 5)
    give(other, snapshot)  # the learner itself goes back in what it learned, and on in what it spent
    assert (other.steps, other.history, other.ledger.env_steps) == (1, [1], 5)
    assert same(frozen(take(other)), before)


def test_a_fresh_one_given_back_clears_the_optimizer():
    fresh, learner = take(Learner()), Learner()
    learner.train()
    give(learner, fresh)
    assert not learner.optimizer.extra_state()


def test_the_key_is_the_content():
    one, other = Learner(), Learner()
    assert take(one).blobs == take(other).blobs
    one.train()
    assert take(one).blobs != take(other).blobs
    with torch.no_grad():
        other.net.weight.mul_(1.0).add_(1e-7)
    assert take(other).blobs != take(Learner()).blobs


def test_the_key_does_not_depend_on_the_order():
    one, other = torch.ones(2), torch.zeros(2)
    assert content_key("x", {"a": one, "b": other}) == content_key("x", {"b": other, "a": one})
    keys = {content_key("x", {"a": each}) for each in (one, one.double(), one.reshape(1, 2), one.int(), torch.ones(()))}
    assert len(keys) == 5
    assert content_key("x", {"b": one}) not in keys


def test_what_does_not_fit_is_named():
    class Wider(Learner):
        def __init__(self) -> None:
            super().__init__()
            self.more = nn.Linear(1, 1)

    with pytest.raises(CheckpointError, match=r"it has no 'more\.weight'"):
        give(Wider(), take(Learner()))
    with pytest.raises(CheckpointError, match=r"the snapshot holds 'more\.bias', which this learner does not have"):
        give(Learner(), take(Wider()))


class Holder(Stateful):
    def __init__(self) -> None:
        self.learner = Learner()
        self.archive = Archive()


def filled() -> Holder:
    holder = Holder()
    for count in range(3):
        holder.archive.add(take(holder.learner), note={"score": [float(count)], "name": f"n{count}"})
        holder.learner.train()
    return holder


def test_an_archive_keeps_entries_in_the_order_asked_for():
    archive = filled().archive
    archive.keep([2, 0])
    assert len(archive) == 2
    assert [entry.note["name"] for entry in archive] == ["n2", "n0"]
    assert archive[0].snapshot.values["#steps"] == 2
    note = {"score": 1.0}
    archive.add(archive[1].snapshot, note)
    note["score"] = 2.0
    assert archive[-1].note == {"score": 1.0}


def blocks(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (folder / "checkpoints" / "blobs").glob("*.safetensors")}


def test_checkpoints_write_an_entry_once_and_give_it_back(tmp_path):
    holder, checkpoints = filled(), Checkpoints(tmp_path)
    checkpoints.save(1, gather(holder))
    written = blocks(tmp_path)
    assert len(written) == 3
    holder.archive.add(take(holder.learner))
    checkpoints.save(2, gather(holder))
    assert {name: blocks(tmp_path)[name] for name in written} == written
    assert len(blocks(tmp_path)) == 4
    again = Holder()
    again.archive.add(take(again.learner))  # replaced
    restore(again, checkpoints.load(2))
    assert [entry.note for entry in again.archive] == [entry.note for entry in holder.archive]
    assert all(same(frozen(a.snapshot), frozen(b.snapshot)) for a, b in zip(again.archive, holder.archive, strict=True))
    give(again.learner, again.archive[1].snapshot)
    assert again.learner.steps == 1
    holder.archive.keep([3])
    for step in (3, 4):
        checkpoints.save(step, gather(holder))
    assert len(blocks(tmp_path)) == 1  # those that are dropped go with their last checkpoint
    checkpoints.save(5, gather(Holder()))
    restore(again, checkpoints.load(5))
    assert len(again.archive) == 0


def test_entries_that_were_loaded_outlive_the_folder(tmp_path):
    import shutil

    checkpoints, again = Checkpoints(tmp_path), Holder()
    checkpoints.save(1, gather(filled()))
    restore(again, checkpoints.load(1, blobs=False))
    shutil.rmtree(tmp_path / "checkpoints")
    give(again.learner, again.archive[2].snapshot)
    assert again.learner.steps == 2


def test_a_snapshot_of_what_holds_an_archive():
    holder, other = filled(), Holder()
    give(other, take(holder))
    assert [entry.snapshot for entry in other.archive] == [entry.snapshot for entry in holder.archive]
    other.archive.add(take(other))  # also inside itself, at the cost of references
    again = Holder()
    restore(again, gather(other))
    give(again, again.archive[3].snapshot)
    assert len(again.archive) == 3
