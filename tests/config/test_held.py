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


@dataclass(frozen=True)
class Later(Learner):
    """A kind of learner."""


@dataclass(frozen=True)
class Stages(Config):
    first: Learner = param(Learner(), "table 1", without=("note",))
    second: Later = param(Later(), "table 2", without=("double", "note"))

    meaning = {"first.network.sizes": "of the first", "second.lr": "of the second"}


def test_where_a_part_of_the_same_kind_has_it_that_one_is_named():
    for words, sentence in (
        (["--second.double"], "--second.double does nothing here: there is only --first.double"),
        (["--second.note", "x"], "--second.note does nothing here"),
        (["--first.note", "x"], "--first.note does nothing here"),
    ):
        with pytest.raises(UsageError) as error:
            parse(Stages, words)
        assert str(error.value) == sentence


def test_a_holder_may_say_what_a_field_of_a_part_means():
    rows = {row.name: row.help for row in fields_of(Stages)}
    assert rows["first.network.sizes"] == "of the first"
    assert rows["second.lr"] == "of the second"
    assert rows["first.lr"] == "step size of Adam"
    assert not rows["second.network.sizes"]


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
