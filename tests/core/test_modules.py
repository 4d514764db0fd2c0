"""Parameters without names."""

from torch import nn

from polopt.core.modules import parameters_of


def test_they_are_those_of_the_module_in_its_order():
    module = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.ModuleDict({"a": nn.Linear(4, 2, bias=False)}), nn.GRU(2, 2))
    module.register_parameter("none", None)
    assert [id(p) for p in parameters_of(module)] == [id(p) for p in module.parameters()]


def test_a_shared_one_comes_twice():
    layer = nn.Linear(2, 2)
    assert len(list(parameters_of(nn.ModuleList([layer, layer])))) == 4
