from polopt.cli.describe import _changes
from polopt.config import Linear, apply
from tests.config.example import FlowPolicy, Gaussian, Learner


def options(**overrides):
    return _changes(Learner(), apply(Learner, overrides, Learner.presets))


def test_a_preset_is_shown_as_the_options_that_it_stands_for():
    assert options() == {}
    assert options(preset="mujoco") == {"lr": "0.001", "policy": "flow-policy", "policy.steps": "3"}
    assert options(preset="atari") == {"surrogate": "gspo", "network.sizes": "512"}
    assert options(policy=FlowPolicy()) == {"policy": "flow-policy"}
    assert options(policy=Gaussian()) == {"policy.low": "-20"}
    assert options(policy=None, double=False) == {"double": "false", "policy": "none"}
    assert options(decay=Linear(end=0.5)) == {"decay": "linear", "decay.end": "0.5"}
    assert options(surrogate={"clip_high": 0.3}) == {"surrogate.clip-high": "0.3"}
