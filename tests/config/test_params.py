import math
from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polopt.config import Config, Constant, Cosine, InvalidValue, Linear, kind, param
from polopt.core.errors import UsageError
from polopt.networks.denoisers import DiT
from polopt.policies import CausalLM

from .example import FlowPolicy, Gaussian, Learner, Net, Surrogate


@dataclass(frozen=True)
class Single(Config):
    steps: int = param(1, "assumed", low=1, high=1)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Learner(lr=0.0), "lr must be above 0, not 0"),
        (lambda: Learner(lr=float("nan")), "lr must be above 0, not nan"),
        (lambda: Learner(lr="3e-4"), "lr must be a number, not '3e-4'"),
        (lambda: Learner(delay=True), "delay must be an integer, not True"),
        (lambda: Learner(delay=1.5), "delay must be an integer, not 1.5"),
        (lambda: Learner(double=1), "double must be true or false, not 1"),
        (lambda: Learner(target="self"), "target must be a number or auto, not 'self'"),
        (
            lambda: Learner(policy=Surrogate()),
            f"policy must be one of gaussian, flow-policy or none, not {Surrogate()}",
        ),
        (lambda: Single(steps=2), "steps must be 1, not 2"),
        (lambda: FlowPolicy(steps=101), "steps must be at least 1 and at most 100, not 101"),
        (lambda: Gaussian(std="free"), "std must be one of fixed, state-dependent, not free"),
        (lambda: Net(sizes=(64, 0)), "sizes must be at least 1, not 64 0"),
        (lambda: Net(sizes=64), "sizes must be integers, not 64"),
        (lambda: Net(betas=(0.9,)), "betas must be 2 numbers, not (0.9,)"),
        (lambda: Net(make=3), "make must be a callable or none, not 3"),
    ],
)
def test_a_bad_value_is_one_sentence_with_field_range_and_value(make, sentence):
    with pytest.raises(UsageError) as error:
        make()
    assert str(error.value) == sentence
    assert isinstance(error.value, InvalidValue)


def test_values_take_the_type_of_their_field():
    config = Learner(lr=1, network=Net(sizes=[32, 16]))
    assert isinstance(config.lr, float)
    assert config.network.sizes == (32, 16)
    assert hash(config.network) == hash(Net(sizes=(32, 16)))


def test_replace_validates():
    with pytest.raises(UsageError, match="lr must be above 0"):
        replace(Learner(), lr=-1.0)


def test_a_param_without_source_is_refused():
    with pytest.raises(TypeError, match="source"):
        param(1, "")


def test_a_dict_default_is_not_shared():
    assert Learner().extra is not Learner().extra


def test_annotations_that_do_not_resolve_are_reported():
    @dataclass(frozen=True)
    class Broken(Config):
        x: "Missing" = param(1, "polopt")  # noqa: F821

    with pytest.raises(TypeError, match=r"annotations of .*Broken must resolve"):
        Broken()


def test_kind_is_kebab_case_and_a_method_names_its_config():
    class SAC:
        class Config(Config):
            pass

    class MDPOConfig(Config):
        pass

    assert (kind(FlowPolicy), kind(SAC.Config), kind(MDPOConfig)) == ("flow-policy", "sac", "mdpo-config")
    assert (kind(DiT), kind(CausalLM)) == ("dit", "causal-lm")


def test_schedules_by_hand():
    assert [Constant()(p) for p in (0, 0.5, 1)] == [1, 1, 1]
    assert [Linear()(p) for p in (0, 0.25, 1)] == [1, 0.75, 0]
    assert Linear(end=0.5, warmup=0.2)(0.1) == 0.5
    assert Linear(end=0.5, warmup=0.2)(0.2) == 1.0
    assert Linear(end=0.5, warmup=0.2)(0.6) == pytest.approx(0.75)
    assert Cosine(end=0.1)(0.5) == pytest.approx(0.55)
    assert Cosine()(1 / 3) == pytest.approx((1 + math.cos(math.pi / 3)) / 2)
    with pytest.raises(UsageError, match="warmup must be at least 0 and below 1, not 1"):
        Constant(warmup=1.0)


@given(
    st.sampled_from([Constant, Linear, Cosine]), st.floats(0, 0.99), st.floats(0, 1, exclude_max=True), st.floats(0, 1)
)
def test_schedules_stay_in_the_unit_interval(cls, warmup, progress, end):
    schedule = cls(warmup=warmup) if cls is Constant else cls(warmup=warmup, end=end)
    assert 0 <= schedule(progress) <= 1
