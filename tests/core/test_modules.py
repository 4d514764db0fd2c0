"""Parameters without names."""

from torch import nn

from polopt.core.modules import first_parameter, parameters_of


def test_they_are_those_of_the_module_in_its_order():
    module = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.ModuleDict({"a": nn.Linear(4, 2, bias=False)}), nn.GRU(2, 2))
    module.register_parameter("none", None)
    assert [id(p) for p in parameters_of(module)] == [id(p) for p in module.parameters()]


def test_a_shared_one_comes_twice():
    layer = nn.Linear(2, 2)
    assert len(parameters_of(nn.ModuleList([layer, layer]))) == 4


def test_the_first_one_is_the_first_of_them():
    layer = nn.Linear(2, 2)
    module = nn.Sequential(nn.ReLU(), nn.Sequential(nn.Tanh(), layer), nn.Linear(2, 2))
    module.register_module("none", None)
    assert first_parameter(module) is layer.weight
    assert first_parameter(nn.Sequential(nn.ReLU())) is None
