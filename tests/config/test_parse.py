import contextlib
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polopt.config import Config, Linear, apply, apply_many, param, parse, parse_many
from polopt.core.errors import UsageError

from .example import Distill, FlowPolicy, Gaussian, Learner, Net, Run, Surrogate, trunk


def learner(line, **options):
    return parse(Learner, line.split(), **options)[0]


def refusal(line, cls=Learner, presets=Learner.presets):
    with pytest.raises(UsageError) as error:
        parse(cls, line.split(), presets=presets)
    return str(error.value)


def test_nothing_given_is_the_default():
    assert parse(Learner, []) == (Learner(), None)
    assert parse(Learner, [], default=Learner(lr=1.0)) == (Learner(lr=1.0), None)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("--lr 1e-3", Learner(lr=1e-3)),
        ("--lr=1", Learner(lr=1.0)),
        ("--shift -2e-3", Learner(shift=-2e-3)),
        ("--shift -inf", Learner(shift=float("-inf"))),
        ("--clip none", Learner()),
        ("--clip 0.5", Learner(clip=0.5)),
        ("--target auto", Learner()),
        ("--target -3", Learner(target=-3.0)),
        ("--delay 1e3", Learner(delay=1000)),
        ("--no-double", Learner(double=False)),
        ("--double", Learner()),
        ("--double False", Learner(double=False)),
        ("--double true", Learner()),
        ("--note=--x", Learner(note="--x")),
        ("--extra a=1 b=-2.5 c=no d=none", Learner(extra={"a": 1, "b": -2.5, "c": "no", "d": None})),
        ("--extra.a-b 1", Learner(extra={"a_b": 1})),
        ("--folder runs/1", Learner(folder=Path("runs/1"))),
        ("--decay linear --decay.end 0.5", Learner(decay=Linear(end=0.5))),
        ("--network.sizes 32 16", Learner(network=Net(sizes=(32, 16)))),
        ("--network.sizes 32,16", Learner(network=Net(sizes=(32, 16)))),
        ("--network.sizes", Learner(network=Net(sizes=()))),
        ("--network.betas 0.5 0.9", Learner(network=Net(betas=(0.5, 0.9)))),
        (f"--network.make {trunk.__module__}:trunk", Learner(network=Net(make=trunk))),
        (f"--network {trunk.__module__}:trunk", Learner(network=Net(make=trunk))),
        ("--surrogate gspo", Learner(surrogate=Surrogate.named["gspo"])),
        ("--surrogate gspo --surrogate.clip-high 1", Learner(surrogate=Surrogate(1.0, "sequence"))),
        ("--surrogate.clip_high 1", Learner(surrogate=Surrogate(1.0))),
        ("--policy none", Learner(policy=None)),
        ("--policy flow-policy --policy.steps 7", Learner(policy=FlowPolicy(steps=7))),
        ("--policy.std state-dependent", Learner(policy=Gaussian("state-dependent", -5.0))),
        ("--policy gaussian", Learner(policy=Gaussian())),  # a choice replaces the whole part
    ],
)
def test_one_line(line, expected):
    assert learner(line) == expected


def test_any_order():
    options = ["--surrogate gspo", "--surrogate.clip-high 4e-3", "--policy flow-policy", "--policy.steps 4"]
    options.append("--preset mujoco")
    found = {
        repr(parse(Learner, " ".join(order).split(), presets=Learner.presets))
        for order in itertools.permutations(options)
    }
    expected = Learner(lr=1e-3, surrogate=Surrogate(4e-3, "sequence"), policy=FlowPolicy(steps=4))
    assert found == {repr((expected, "mujoco"))}


def test_preset_then_choice_then_option():
    presets = Learner.presets
    assert learner("--preset mujoco", presets=presets).policy == FlowPolicy(steps=3)
    assert learner("--preset mujoco --policy.steps 5", presets=presets).policy == FlowPolicy(steps=5)
    assert learner("--policy flow-policy --preset mujoco", presets=presets).policy == FlowPolicy(steps=10)
    assert learner("--lr 2 --preset mujoco", presets=presets).lr == 2.0
    atari = learner("--network.betas 0 0 --preset atari", presets=presets)
    assert atari == Learner(network=Net(sizes=(512,), betas=(0.0, 0.0)), surrogate=Surrogate.named["gspo"])


def test_nested_methods():
    line = "--student.policy flow-policy --student.policy.steps 7 --teacher.preset mujoco --teacher.policy.steps 2"
    config, preset = parse(Distill, line.split())
    assert config.student == Learner(policy=FlowPolicy(steps=7))
    assert config.teacher == Learner(lr=1e-3, policy=FlowPolicy(steps=2))
    assert preset is None


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("--surogate gspo", "unknown option --surogate; did you mean '--surrogate'?"),
        ("--surogate.clip-high 1", "unknown option --surogate.clip-high; did you mean '--surrogate.clip-high'?"),
        ("--surrogate.clip-hgh 1", "unknown option --surrogate.clip-hgh; did you mean '--surrogate.clip-high'?"),
        ("--clip-high 1", "unknown option --clip-high; did you mean '--surrogate.clip-high'?"),
        ("--no-doubel", "unknown option --no-doubel; did you mean '--double'?"),
        ("--zzz 1", "unknown option --zzz"),
        ("-x 1", "unknown option -x: options start with two dashes"),
        ("fast", "unexpected 'fast': options start with two dashes"),
        ("--lr 1 --lr 2", "--lr is given twice"),
        ("--surrogate.clip-high 1 --surrogate.clip_high 2", "--surrogate.clip_high is given twice"),
        ("--double --no-double", "--no-double contradicts --double"),
        ("--no-double false", "--no-double takes no value"),
        ("--lr", "--lr needs a value: a number"),
        ("--lr fast", "--lr must be a number, not 'fast'"),
        ("--lr 1 2", "--lr must be a number, not '1 2'"),
        ("--lr none", "--lr must be a number, not 'none'"),
        ("--lr -1", "--lr must be above 0, not -1"),
        ("--double maybe", "--double must be true or false, not 'maybe'"),
        ("--delay 1.5", "--delay must be an integer, not '1.5'"),
        ("--clip x", "--clip must be a number or none, not 'x'"),
        ("--target self", "--target must be a number or auto, not 'self'"),
        ("--extra a", "--extra must be key=value pairs, not 'a'"),
        ("--network.sizes 64,", "--network.sizes must be integers, not '64,'"),
        ("--network.sizes 64 x", "--network.sizes must be integers, not '64 x'"),
        ("--network.sizes 64 0", "--network.sizes must be at least 1, not 64 0"),
        ("--network.betas 1 2 3", "--network.betas must be 2 numbers, not '1 2 3'"),
        ("--network.make os", "'os' does not name a callable: write it as module:function"),
        ("--network.make nowhere_at_all:f", "cannot import 'nowhere_at_all:f': there is no module 'nowhere_at_all'"),
        ("--network.make math:f", "cannot import 'math:f': module 'math' has no 'f'"),
        ("--network.make math:pi", "'math:pi' is not callable"),
        ("--network big", "--network takes no value of its own: set its parts, such as --network.sizes"),
        ("--surrogate gsp", "--surrogate must be one of gspo, ppo, surrogate, not 'gsp'; did you mean 'gspo'?"),
        ("--surrogate.level word", "--surrogate.level must be one of token, sequence, not 'word'"),
        (
            "--policy flwo-policy",
            "--policy must be one of flow-policy, gaussian, none, not 'flwo-policy'; did you mean 'flow-policy'?",
        ),
        ("--policy", "--policy needs a value: one of flow-policy, gaussian, none"),
        ("--policy.steps 3", "--policy.steps belongs to --policy flow-policy, but --policy is gaussian here"),
        (
            "--policy none --policy.steps 3",
            "--policy.steps belongs to --policy flow-policy, but --policy is none here",
        ),
        ("--policy flow-policy --policy.steps 0", "--policy.steps must be at least 1 and at most 100, not 0"),
        ("--policy.std free", "--policy.std must be one of fixed, state-dependent, not free"),
        ("--lr.scale 1", "unknown option --lr.scale: --lr has no parts"),
        ("--preset mujco", "there is no preset 'mujco'; did you mean 'mujoco'?"),
        ("--preset mujoco --preset atari", "--preset is given twice"),
    ],
)
def test_every_mistake_is_one_sentence(line, sentence):
    assert refusal(line) == sentence


def test_presets_where_there_are_none():
    assert refusal("--preset mujoco", presets=None) == "--preset mujoco: there are no presets here"
    assert refusal("--student.preset mujco", Distill) == "there is no preset 'mujco'; did you mean 'mujoco'?"


def test_nested_mistakes_have_the_full_name():
    assert refusal("--student.lr -1", Distill) == "--student.lr must be above 0, not -1"
    assert (
        refusal("--student.polcy none", Distill) == "unknown option --student.polcy; did you mean '--student.policy'?"
    )
    assert refusal("--stdent.lr 1", Distill) == "unknown option --stdent.lr; did you mean '--student.lr'?"
    assert refusal("--student.policy.steps 1", Distill) == (
        "--student.policy.steps belongs to --student.policy flow-policy, but --student.policy is gaussian here"
    )


def test_two_configs_on_one_line():
    configs, preset = parse_many(
        {"run": Run, "method": Learner},
        ["--seed", "3", "--lr", "1", "--preset", "mujoco", "--steps", "1e6"],
        Learner.presets,
    )
    assert configs == {"run": Run(seed=3, steps=1_000_000), "method": Learner(lr=1.0, policy=FlowPolicy(steps=3))}
    assert preset == "mujoco"
    with pytest.raises(UsageError, match="unknown option --sed; did you mean '--seed'"):
        parse_many({"run": Run, "method": Learner}, ["--sed", "1"])


def test_names_of_two_configs_may_not_clash():
    @dataclass(frozen=True)
    class Other(Config):
        seed: int = param(1, "polopt")

    with pytest.raises(TypeError, match="run and method both have a field 'seed'"):
        parse_many({"run": Run, "method": Other}, [])


def test_checks_over_several_fields_are_reported_as_they_are():
    @dataclass(frozen=True)
    class Window(Config):
        low: int = param(0, "polopt")
        high: int = param(1, "polopt")
        presets: ClassVar[dict] = {}

        def __post_init__(self):
            super().__post_init__()
            if self.low > self.high:
                raise UsageError("low must not be above high")

    assert parse(Window, ["--low", "5", "--high", "6"])[0] == Window(5, 6)  # never checked half way
    assert refusal("--low 5", Window) == "low must not be above high"


def test_help(capsys):
    with pytest.raises(SystemExit) as exit:
        parse(Learner, ["--help", "--policy", "flow-policy"], presets=Learner.presets, prog="polopt train x")
    text = capsys.readouterr().out
    assert exit.value.code == 0
    assert text.startswith("usage: polopt train x [options]\n")
    assert "--preset NAME\n      one of mujoco, atari" in text
    assert "  --lr\n      a number; default 0.0003; above 0; from table 1; step size of Adam\n" in text
    assert (
        "policy:\n  --policy.steps\n      an integer; default 10; at least 1 and at most 100; denoising steps; "
        "from section 5.2\n"
    ) in text
    assert "only with --policy gaussian:\n  --policy.std\n" in text
    with pytest.raises(SystemExit) as exit:
        parse(Learner, ["-h", "--wrong", "3"])
    assert exit.value.code == 0


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({"lr": 1}, Learner(lr=1.0)),
        ({"policy": "flow-policy"}, Learner(policy=FlowPolicy())),
        ({"policy": FlowPolicy}, Learner(policy=FlowPolicy())),
        ({"policy": FlowPolicy(steps=2)}, Learner(policy=FlowPolicy(steps=2))),
        ({"policy": FlowPolicy(steps=2), "policy.steps": 3}, Learner(policy=FlowPolicy(steps=3))),
        ({"policy.steps": 3, "policy": {"kind": "flow-policy"}}, Learner(policy=FlowPolicy(steps=3))),
        ({"policy": {"low": -1}}, Learner(policy=Gaussian(low=-1.0))),
        ({"policy": None}, Learner(policy=None)),
        ({"preset": "mujoco", "policy.steps": 9}, Learner(lr=1e-3, policy=FlowPolicy(steps=9))),
        ({"network": {"sizes": [8]}}, Learner(network=Net(sizes=(8,)))),
        ({"network": trunk}, Learner(network=Net(make=trunk))),
        ({"network": {"make": f"{trunk.__module__}:trunk"}}, Learner(network=Net(make=trunk))),
        ({"surrogate": "gspo", "surrogate.clip-high": 1}, Learner(surrogate=Surrogate(1.0, "sequence"))),
        ({"extra": {"a": {"b": 1}}}, Learner(extra={"a": {"b": 1}})),
        ({"folder": "runs/1", "double": False}, Learner(folder=Path("runs/1"), double=False)),
    ],
)
def test_python_overrides(overrides, expected):
    assert apply(Learner, overrides, Learner.presets) == expected


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ({"lrr": 1}, "unknown option lrr; did you mean 'lr'?"),
        ({"lr": "1e-3"}, "lr must be a number, not '1e-3'"),
        ({"lr": -1}, "lr must be above 0, not -1"),
        ({"double": "yes"}, "double must be true or false, not 'yes'"),
        ({"no_double": True}, "unknown option no_double; did you mean 'double'?"),
        ({"policy": "flow"}, "policy must be one of flow-policy, gaussian, none, not 'flow'"),
        ({"policy": 3}, "policy must be one of gaussian, flow-policy or none, not 3"),
        ({"policy.steps": 3}, "policy.steps belongs to policy=flow-policy, but policy is gaussian here"),
        ({"network": {"size": 3}}, "unknown option network.size; did you mean 'network.sizes'?"),
        ({"network": {"sizes": 3}}, "network.sizes must be integers, not 3"),
        ({"network": {"sizes": [3]}, "network.sizes": [4]}, "network.sizes is given twice"),
        ({"surrogate": {"clip_high": 0}}, "surrogate.clip_high must be above 0, not 0"),
        ({"clip_high": 0}, "unknown option clip_high; did you mean 'surrogate.clip_high'?"),
        ({"preset": "x"}, "there is no preset 'x'; choose from atari, mujoco"),
    ],
)
def test_python_mistakes(overrides, sentence):
    with pytest.raises(UsageError) as error:
        apply(Learner, overrides, Learner.presets)
    assert str(error.value) == sentence


def test_python_overrides_of_two_configs_start_from_given_defaults():
    configs, preset = apply_many({"run": Run(seed=5), "method": Learner}, {"lr": 1.0, "steps": 10})
    assert configs == {"run": Run(seed=5, steps=10), "method": Learner(lr=1.0)}
    assert preset is None


@given(st.lists(st.text(alphabet="-ab. =1epolicyx", max_size=12), max_size=4))
def test_nothing_but_usage_errors(argv):
    with contextlib.suppress(UsageError, SystemExit):
        parse(Learner, argv, presets=Learner.presets)


@given(st.floats(allow_nan=False), st.lists(st.integers(1, 1000), min_size=1, max_size=4), st.booleans())
def test_what_is_typed_is_what_python_gives(shift, sizes, double):
    argv = ["--shift", repr(shift), "--network.sizes", *map(str, sizes), "--double" if double else "--no-double"]
    assert parse(Learner, argv)[0] == apply(Learner, {"shift": shift, "network": {"sizes": sizes}, "double": double})
