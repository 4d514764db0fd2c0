"""A part of which some fields are decided by who holds it: they are no options, nowhere."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from polopt.config import Config, apply, param, parse
from polopt.config.serialize import fields_of, from_dict, to_dict
from polopt.core.errors import UsageError
from tests.config.example import Gaussian, Learner, Net


@dataclass(frozen=True)
class Holder(Config):
    network: Net = param(Net(), "table 1")
    learner: Learner = param(Learner(), "table 2", without=("network", "double", "policy"))


def test_what_is_left_is_read_and_written():
    config = parse(Holder, ["--learner.lr", "0.5", "--network.sizes", "3"])[0]
    assert config == Holder(Net((3,)), Learner(lr=0.5)) == apply(Holder, {"learner": {"lr": 0.5}, "network.sizes": [3]})
    data = to_dict(config)
    assert data["learner"].keys() & {"network", "double", "policy", "lr", "delay"} == {"lr", "delay"}
    assert from_dict(Holder, data) == config
    names = {row.name for row in fields_of(Holder)}
    assert {"learner.lr", "network.sizes", "learner.surrogate.level"} <= names
    assert not [name for name in names if name.startswith(("learner.network", "learner.double", "learner.policy"))]


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["--learner.network.sizes", "3"], "--learner.network.sizes does nothing here: there is one --network for all"),
        (["--learner.double"], "--learner.double does nothing here"),
        (["--learner.policy", "flow-policy"], "--learner.policy does nothing here"),
        (["--learner.dela", "3"], "unknown option --learner.dela; did you mean '--learner.delay'?"),
    ],
)
def test_options_that_do_nothing_are_refused(argv, sentence):
    with pytest.raises(UsageError) as error:
        parse(Holder, argv)
    assert str(error.value) == sentence


def test_in_python_they_are_refused_too():
    with pytest.raises(UsageError, match=r"learner\.double does nothing here"):
        apply(Holder, {"learner": {"double": False}})
    for change in ({"network": Net((1,))}, {"double": False}, {"policy": Gaussian()}):
        with pytest.raises(UsageError, match=f"learner.{next(iter(change))} does nothing here"):
            Holder(learner=replace(Learner(), **change))
    old = to_dict(Holder())
    old["learner"]["double"] = True  # written down, as it was
    assert from_dict(Holder, old) == Holder()
    old["learner"]["double"] = False
    with pytest.raises(UsageError, match=r"learner\.double does nothing here"):
        from_dict(Holder, old)
