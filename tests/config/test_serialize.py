import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polopt.config import Cosine, Linear, fields_of, from_dict, to_dict
from polopt.core.errors import UsageError

from .example import Distill, FlowPolicy, Gaussian, Learner, Net, Surrogate, trunk

learners = st.builds(
    Learner,
    lr=st.floats(0, exclude_min=True),
    decay=st.sampled_from([Linear(end=0.5), Cosine(warmup=0.1)]),
    shift=st.floats(allow_nan=False),
    clip=st.none() | st.floats(0, 1e9, exclude_min=True),
    target=st.just("auto") | st.floats(allow_nan=False),
    double=st.booleans(),
    note=st.text(),
    extra=st.dictionaries(st.text(max_size=3), st.none() | st.integers() | st.text() | st.booleans(), max_size=3),
    folder=st.none() | st.just(Path("runs/1")),
    surrogate=st.sampled_from([Surrogate(), Surrogate.named["gspo"]]),
    network=st.builds(Net, sizes=st.lists(st.integers(1, 9), max_size=3)),
    policy=st.none() | st.builds(FlowPolicy, steps=st.integers(1, 100)) | st.just(Gaussian(std="state-dependent")),
)


@given(learners, learners)
def test_json_round_trip(student, teacher):
    config = Distill(student=student, teacher=teacher)
    text = json.dumps(to_dict(config), allow_nan=False)
    assert from_dict(Distill, json.loads(text)) == config


def test_what_is_written():
    data = to_dict(Learner(policy=FlowPolicy(steps=7), clip=math.inf))
    assert data["kind"] == "learner"
    assert data["policy"] == {"kind": "flow-policy", "steps": 7}
    assert data["network"] == {"kind": "net", "sizes": [64, 64], "betas": [0.9, 0.999], "make": None}
    assert data["clip"] == "inf"


def test_a_missing_field_takes_its_default_and_a_union_may_be_the_root():
    assert from_dict(Learner, {"kind": "learner", "lr": 1.0}) == Learner(lr=1.0)
    assert from_dict(Gaussian | FlowPolicy, {"kind": "flow-policy", "steps": 2}) == FlowPolicy(steps=2)


def test_nan_survives():
    assert math.isnan(from_dict(Learner, to_dict(Learner(shift=math.nan))).shift)


def test_callables_are_named_and_never_run_from_a_file():
    data = to_dict(Learner(network=Net(make=trunk)))
    name = f"{trunk.__module__}:trunk"
    assert data["network"]["make"] == {"callable": name}
    assert from_dict(Learner, data, imports=True).network.make is trunk
    assert from_dict(Learner, data, again={"network.make": trunk}).network.make is trunk
    with pytest.raises(UsageError) as error:
        from_dict(Learner, data)
    assert str(error.value) == (
        f"network.make was {name}, which is code, which is not run from a file: say it again with --network {name}"
    )


def test_a_callable_that_cannot_be_imported_must_be_passed_again():
    anonymous = lambda inputs, outputs: None  # noqa: E731
    data = json.loads(json.dumps(to_dict(Learner(network=Net(make=anonymous)))))
    for imports in (False, True):
        with pytest.raises(
            UsageError, match=r"network\.make was <function .*, which cannot be written .* passed again"
        ):
            from_dict(Learner, data, imports=imports)
    assert from_dict(Learner, data, again={"network.make": anonymous}).network.make is anonymous


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ({"lr": -1.0}, "lr must be above 0, not -1"),
        ({"policy": {"kind": "flow"}}, "policy.kind 'flow' is unknown; choose from flow-policy, gaussian"),
        ({"policy": {"kind": "flow-policy", "steps": 0}}, "policy.steps must be at least 1 and at most 100, not 0"),
        ({"network": {"size": [1]}}, "net has no field 'network.size'; did you mean 'sizes'?"),
        ({"network": 3}, "network must be net, not 3"),
        ({"kind": "sac"}, "kind 'sac' is unknown; choose from learner"),
    ],
)
def test_a_bad_file_is_one_sentence(data, sentence):
    with pytest.raises(UsageError) as error:
        from_dict(Learner, data)
    assert str(error.value) == sentence


def test_fields_of_lists_every_field_and_those_of_the_other_choices():
    rows = {(row.choice, row.name): row for row in fields_of(Distill)}
    steps = rows["student.policy flow-policy", "student.policy.steps"]
    assert (steps.type, steps.default, steps.unit) == ("an integer", "10", "denoising steps")
    assert (steps.range, steps.source) == ("at least 1 and at most 100", "section 5.2")
    assert rows["", "student.policy.low"].default == "-5"  # of the default itself, not of its class
    assert rows["", "student.policy.low"].source == "table 1"
    assert rows["", "teacher.lr"].default == "1"
    assert rows["", "student.surrogate"].type == "one of ppo, gspo"
    assert rows["", "student.network"].type == "see its parts"
    assert rows["", "student.surrogate"].default == "ppo"
    assert rows["", "student.lr"].help == "step size of Adam"
    assert rows["student.decay cosine", "student.decay.warmup"].source == "polopt"
    assert (rows["", "teacher.lr"].source, rows["", "student.lr"].source) == ("polopt", "table 1")
    assert all(row.source for row in rows.values())
    assert fields_of(Learner(policy=FlowPolicy(steps=2)))[-3].name == "policy.steps"
