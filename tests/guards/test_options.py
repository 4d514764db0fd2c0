"""An option that is accepted acts: away from its value a number changes, or it is refused, or its config says why not.

By default the fields that a method's own config adds; with `make test-all` those of its bases and parts, and of the
choices that the smoke run does not take.
"""

from __future__ import annotations

import pytest

from polopt import registry
from polopt.config.params import is_config
from polopt.config.serialize import fields_of
from polopt.core.errors import UsageError
from polopt.networks import Network
from polopt.optim import polyak_update
from tests.guards.harness import BUILT, plan
from tests.guards.options import Option, Run, changed, effect, options, smoke

HOW = (
    "where an option cannot act, refuse it (`Config.refuse`) or make it a field of a part that has it; where the smoke "
    "run does not show it, name settings that do in `probes`; where nothing should change, say why in `Config.inert`"
)


def silent(name: str, tried: list[Option], run: Run) -> dict[str, str]:
    """Those of the options that do nothing, or are refused although the method has them for itself."""
    found = {option.name: effect(name, option, lambda: run) for option in tried}
    own = {option.name for option in tried if option.own}
    return {
        option: said
        for option, said in found.items()
        if said.startswith("nothing") or (said.startswith("refused") and option in own)
    }


@pytest.mark.parametrize("name", BUILT)
def test_every_option_of_its_own_acts(name, float64):
    own = [option for option in options(name) if option.own]
    assert not silent(name, own, smoke(name)), HOW


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", BUILT)
def test_every_option_acts(name, float64):
    assert not silent(name, [option for option in options(name) if not option.own], smoke(name)), HOW


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", BUILT)
def test_every_option_of_a_choice_acts(name, float64):
    """Parts that the smoke run does not take, but for networks and policies, which test_capabilities.py has."""
    found = {}
    for option in options(name):
        choices = [value for value in option.others if is_config(type(value)) and type(value) is not type(option.value)]
        for choice in {type(value): value for value in choices}.values():
            try:
                run = Run(name, changed(plan(name).config, option.name, choice))
            except UsageError:
                continue
            inside = [each for each in options(name, run.plan.config) if each.name.startswith(f"{option.name}.")]
            found |= {
                f"{option.name} {type(choice).__name__} {key}": said for key, said in silent(name, inside, run).items()
            }
    assert not found, HOW


def test_declared_names_are_fields():
    for name in BUILT:
        config = plan(name).config
        for cls in type(config).__mro__:
            for path in vars(cls).get("inert", {}):
                part, field = config, path
                while "." in field:
                    head, _, field = field.partition(".")
                    part = getattr(part, head)
                assert hasattr(part, field), f"{cls.__qualname__}.inert: {path}"


def test_what_a_method_says_of_parts_is_of_fields_that_are_there():
    for name in BUILT:
        cls = registry.load(name).Config
        there = {row.name.replace("-", "_") for row in fields_of(cls)}
        assert cls.meaning.keys() <= there, name


TRACKER = "initial_samples has no effect where neither baseline nor sampling looks at the tracker"
REFUSED = [
    ("sac", {"critics": 1, "policy_critic": "mean"}, "policy_critic has no effect with one critic"),
    ("mdpo-off", {"critics": 1, "policy_critic": "min"}, "policy_critic has no effect with one critic"),
    ("mdpo", {"proximity": 0.0, "tsallis_q": 1.5}, "tsallis_q has no effect at proximity 0, without a divergence"),
    ("mdpo", {"proximity": 0, "step_schedule": "constant"}, "step_schedule has no effect at proximity 0, without"),
    ("mdpo", {"value_clip": None, "clip_schedule": "linear"}, "clip_schedule has no effect where nothing is clipped"),
    ("ppo", {"network.recurrent_size": 8}, "network.recurrent_size has no effect without a recurrent core"),
    ("ppo", {"critic_network": Network(head_gain=0.1)}, "critic_network.head_gain has no effect on a critic, whose"),
    ("iql", {"offline_updates": None, "online_steps": 2}, "online_steps has no effect without offline_updates: it"),
    ("iql", {"dataset": "x/y-v0", "random_episodes": 2}, "random_episodes has no effect without the dataset 'random'"),
    ("bc", {"demonstrations": "x", "random_episodes": 2}, "random_episodes has no effect without the demonstrations"),
    ("dql", {"candidates": 2, "policy.greedy": "center"}, "policy.greedy has no effect among candidates, which are"),
    ("rec", {"restraint": "none", "restraint_coefficient": 1.0}, "restraint_coefficient has no effect on the"),
    ("rec", {"weight_temperature": 2.0}, "weight_temperature has no effect on the data 'all'"),
    ("grpo", {"engine_cap": 3.0}, "engine_cap has no effect on the engine_correction 'none'"),
    ("sft", {"policy.engine": "vllm"}, "policy.engine has no effect where nothing is sampled to train on"),
    ("hpt", {"offline_surrogate": "srft"}, "offline_surrogate has no effect without an offline_gate above the gate"),
    ("single-stream-po", {"sampling": "shuffled", "exploration": 1.0}, "exploration has no effect on the sampling"),
    ("single-stream-po", {"forgetting": "constant", "half_drift": 1.0}, "half_drift has no effect on the forgetting"),
    ("single-stream-po", {"baseline": "batch", "sampling": "shuffled"}, TRACKER),
    ("rpo", {"imitation": "average", "imitation.eta": 1.0}, "imitation.eta belongs to imitation=sum, but imitation"),
    ("dsac-t", {"adjustment.td_bound": 1.0}, "adjustment.td_bound belongs to adjustment=fixed-bound, but adjustment"),
    ("dsac-v1", {"entropy": "fixed", "entropy.lr": 0.1}, "entropy.lr belongs to entropy=learned, but entropy is fixed"),
    ("ppo", {"video": True}, "video is an option of 'polopt train': elsewhere polopt.report"),
]


@pytest.mark.parametrize(("name", "settings", "sentence"), REFUSED, ids=[sentence[:40] for *_, sentence in REFUSED])
def test_an_option_without_effect_is_refused(name, settings, sentence):
    with pytest.raises(UsageError, match=f"^{sentence}"):
        plan(name, **settings)


def test_an_option_that_does_nothing_is_found(float64, monkeypatch):
    (tau,) = (option for option in options("sac") if option.name == "tau")
    assert effect("sac", tau, lambda: Run("sac")) == "acts"
    monkeypatch.setattr("polopt.methods.control.sac.polyak_update", lambda *copies: polyak_update(*copies[:2], 0.5))
    assert effect("sac", tau, lambda: Run("sac")) == "nothing: 0.0025, 0.01, 0.4, 0.0005, 1"
