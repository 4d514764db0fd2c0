"""A state is every attribute that holds one, each once, and comes back into an object built in the same way."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from polopt.core.errors import CheckpointError, UsageError, nearest
from polopt.core.ledger import Ledger
from polopt.core.state import Blob, Stateful, gather, restore


class Part(Stateful):
    saved = ("count",)

    def __init__(self) -> None:
        self.count = 0
        self.generator = torch.Generator().manual_seed(1)
        self.extra = torch.zeros(2)

    def extra_state(self) -> dict[str, Any]:
        return {"extra": self.extra, "block": Blob("key", lambda: {"x": self.extra})}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        self.extra = state["extra"]


class Whole(Stateful):
    saved = ("best", "note")

    def __init__(self) -> None:
        self.best: float | None = None
        self.note = "new"
        self.net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
        self.again = self.net  # the same object under a second name
        self.parts = {"a": Part(), "b": [Part()]}
        self._hidden = nn.Linear(1, 1)
        self.plain = 3
        self.log: list[str] = []

    def rebuilt(self) -> None:
        self.log.append(f"rebuilt with {self.note}")


def changed() -> Whole:
    whole = Whole()
    whole.best, whole.note = 1.5, "changed"
    whole.parts["a"].count = 7
    whole.parts["b"][0].extra = torch.ones(2)
    torch.rand(3, generator=whole.parts["a"].generator)
    with torch.no_grad():
        for tensor in (*whole.net.parameters(), *whole.net.buffers()):
            tensor.add_(1)
    return whole


def test_paths_name_each_thing_once():
    paths = set(gather(Whole()))
    assert paths == {
        "#best",
        "#note",
        *(f"net.0.{name}" for name in ("weight", "bias")),
        *(f"net.1.{name}" for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")),
        *(f"parts.a{name}" for name in ("#count", "@extra", "@block", ".generator#generator")),
        *(f"parts.b.0{name}" for name in ("#count", "@extra", "@block", ".generator#generator")),
    }


def test_what_was_gathered_comes_back():
    source, target = changed(), Whole()
    state = {path: leaf.clone() if torch.is_tensor(leaf) else leaf for path, leaf in gather(source).items()}
    used = restore(target, state)
    assert set(used) == set(state)
    assert (target.best, target.note, target.parts["a"].count) == (1.5, "changed", 7)
    assert target.log == ["rebuilt with changed"]  # scalars first, then rebuilt
    assert torch.equal(target.parts["b"][0].extra, torch.ones(2))
    assert torch.equal(target.net[0].weight, source.net[0].weight)
    assert int(target.net[1].num_batches_tracked) == 1
    draws = [torch.rand(4, generator=each.parts["a"].generator) for each in (source, target)]
    assert torch.equal(*draws)


def test_restoring_writes_into_the_tensors_that_are_there():
    target = Whole()
    before = [id(p) for p in target.net.parameters()]
    restore(target, gather(changed()))
    assert [id(p) for p in target.net.parameters()] == before


def test_generators_come_last():
    """Rebuilding may draw numbers; afterwards the saved state holds all the same."""

    class Drawing(Whole):
        def rebuilt(self) -> None:
            torch.rand(9, generator=self.parts["a"].generator)

    source = changed()
    target = Drawing()
    restore(target, gather(source))
    one, other = (torch.rand(2, generator=each.parts["a"].generator) for each in (source, target))
    assert torch.equal(one, other)


def test_missing_left_over_and_misshapen_paths_are_named():
    state = gather(changed())
    with pytest.raises(CheckpointError, match=r"it has no 'net\.0\.weight'"):
        restore(Whole(), {path: leaf for path, leaf in state.items() if path != "net.0.weight"})
    with pytest.raises(CheckpointError, match="it has no '#best'"):
        restore(Whole(), {path: leaf for path, leaf in state.items() if path != "#best"})
    with pytest.raises(CheckpointError, match="it holds 'other', which this run does not have"):
        restore(Whole(), state | {"other": 1})
    with pytest.raises(CheckpointError, match=r"'net.0.bias' has shape \(5,\) there and \(2,\) in this run"):
        restore(Whole(), state | {"net.0.bias": torch.zeros(5)})


def test_without_strict_only_tensors_that_fit_are_taken():
    target = Whole()
    state = gather(changed()) | {"net.0.bias": torch.zeros(5), "other": torch.zeros(1)}
    del state["net.1.weight"]
    used = restore(target, state, strict=False)
    assert "net.0.weight" in used
    assert not {"net.0.bias", "net.1.weight", "#best", "other"} & set(used)
    assert (target.best, target.note, target.log) == (None, "new", [])


def test_a_prefix():
    net = nn.Linear(2, 1)
    assert set(gather(net, "policy")) == {"policy.weight", "policy.bias"}
    twin = nn.Linear(2, 1)
    restore(twin, gather(net, "policy"), "policy")
    assert torch.equal(twin.weight, net.weight)


def test_tied_parameters_are_saved_once():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Linear(2, 2)
            self.two = nn.Linear(2, 2)
            self.two.weight = self.one.weight

    state = gather(Tied())
    assert set(state) == {"one.weight", "one.bias", "two.bias"}
    target = Tied()
    restore(target, state)
    assert target.two.weight is target.one.weight


def test_saved_names_are_inherited():
    class Below(Part):
        saved = ("more",)
        more = 2

    assert {"#count", "#more"} <= set(gather(Below()))


def test_ledger():
    ledger = Ledger()
    ledger.env_steps += 5
    assert ledger["env_steps"] == 5
    assert ledger.counts() == {"env_steps": 5, "episodes": 0, "completions": 0, "tokens": 0, "updates": 0}
    with pytest.raises(UsageError, match="'env_step' is not counted by the ledger; did you mean 'env_steps'"):
        ledger["env_step"]


def test_nearest():
    assert nearest("gausian", ["gaussian", "flow"]) == "; did you mean 'gaussian'?"
    assert nearest("xyz", ["b", "a"]) == "; choose from a, b"
    assert nearest("xyz", map(str, range(20))) == ""
    assert nearest("xyz", []) == ""
