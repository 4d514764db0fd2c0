"""What compiled code is asked in each call."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from polopt.bases.learner import Learner
from polopt.config import Constant
from polopt.core.compiling import compiled, inductor_options

FACTOR, NEGATIVE, SHIFT = 2.0, False, None


def doubled(x: Tensor) -> Tensor:
    x = FACTOR * (-x if NEGATIVE else x)
    return x if SHIFT is None else x + SHIFT


class Holder:
    """What a learner may hold: numbers, flags, something that is not there yet, lists, tensors and modules."""

    flag = False

    def __init__(self) -> None:
        self.number, self.more = 1.0, None
        self.parts = [torch.ones(1)]
        self.table = torch.ones(1)
        self.layer = nn.Linear(1, 1, bias=False)
        nn.init.ones_(self.layer.weight)

    def value(self, x: Tensor, loss: Any) -> Tensor:
        x = doubled(x) * self.number + sum(self.parts) + (self.table * torch.ones_like(self.table)).sum()
        x = x if self.more is None else x + self.more
        return loss(self.layer(-x if self.flag else x))


@pytest.fixture
def calls():
    """A holder, its function, and the same compiled; the graphs that were made are counted."""
    graphs: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph

    holder = Holder()
    return holder, holder.value, compiled(holder.value, backend=backend), graphs


CHANGES = {
    "number": lambda holder: setattr(holder, "number", 3.0),
    "flag": lambda holder: setattr(holder, "flag", True),
    "there": lambda holder: setattr(holder, "more", torch.ones(1)),
    "gone": lambda holder: setattr(holder, "more", None),
    "longer": lambda holder: holder.parts.append(torch.ones(1)),
    "larger": lambda holder: setattr(holder, "table", torch.ones(2, 3)),
    "module": lambda holder: setattr(holder, "layer", nn.Sequential(nn.Linear(1, 2), nn.Linear(2, 1))),
    "weights": lambda holder: setattr(holder, "layer", nn.Linear(1, 4)),
}


def test_what_a_learner_holds_may_change(calls):
    holder, plain, fast, graphs = calls
    rows = torch.arange(3.0).unsqueeze(1)
    for name, change in {"": lambda holder: None, **CHANGES}.items():
        change(holder)
        seen = len(graphs)
        torch.testing.assert_close(fast(rows, torch.sin), plain(rows, torch.sin), msg=name)
        assert len(graphs) == seen + (name != "gone"), name


@pytest.mark.parametrize(("name", "value"), [("FACTOR", 3.0), ("NEGATIVE", True), ("SHIFT", 1.0)])
def test_a_value_of_a_module_may_change(calls, name, value, monkeypatch):
    _, plain, fast, graphs = calls
    rows = torch.arange(3.0).unsqueeze(1)
    fast(rows, torch.sin)
    monkeypatch.setattr(sys.modules[__name__], name, value)
    torch.testing.assert_close(fast(rows, torch.sin), plain(rows, torch.sin))
    assert len(graphs) == 2


def test_one_tensor_in_two_places_may_become_two(calls):
    holder, plain, fast, graphs = calls
    rows = torch.arange(3.0).unsqueeze(1)
    holder.table = holder.parts[0]
    torch.testing.assert_close(fast(rows, torch.sin), plain(rows, torch.sin))
    holder.table = torch.full((1,), 5.0)
    torch.testing.assert_close(fast(rows, torch.sin), plain(rows, torch.sin))
    assert len(graphs) == 2


def test_that_code_is_the_same_is_not_asked(calls, monkeypatch):
    """Which takes longer than small networks. What the arguments are is asked."""
    holder, plain, fast, graphs = calls
    rows = torch.arange(3.0).unsqueeze(1)
    before = fast(rows, torch.sin)
    torch.testing.assert_close(fast(rows[1:], torch.sin), plain(rows[1:], torch.sin))
    torch.testing.assert_close(fast(rows, torch.cos), plain(rows, torch.cos))
    assert len(graphs) == 3
    monkeypatch.setattr(sys.modules[__name__], "doubled", lambda x: 5.0 * x)
    holder.layer.register_forward_hook(lambda module, inputs, output: output + 1.0)
    assert torch.equal(fast(rows, torch.sin), before)
    assert not torch.equal(plain(rows, torch.sin), before)
    assert len(graphs) == 3


def test_a_constant_factor_is_compiled_once() -> None:
    """Every method begins at progress 0, and would be compiled for that number and again for others."""
    graphs: list[Any] = []
    learner = Learner()

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph

    scaled = compiled(lambda x: x * Constant()(learner.progress), backend=backend)
    for learner.progress in (0.0, 0.1, 0.2):
        assert scaled(torch.ones(1)) == 1
    assert len(graphs) == 1


def test_the_compiler_is_not_asked_for_vector_instructions(monkeypatch) -> None:
    """torch takes the processor's word, unless the environment says otherwise."""
    from torch._inductor import config, cpu_vec_isa

    def build(*args: Any) -> bool:
        raise AssertionError("a program is compiled to find out")

    monkeypatch.setattr(cpu_vec_isa.VecISA, "check_build", build)
    options = inductor_options()
    assert options["cpp.vec_isa_ok"] is True
    with config.patch(options):
        assert cpu_vec_isa.VecAVX2()
        assert "cpp.vec_isa_ok" not in inductor_options()
    with config.patch({"cpp.vec_isa_ok": False}):
        assert "cpp.vec_isa_ok" not in inductor_options()
