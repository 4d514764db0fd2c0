"""What is checked when the class of a method is made, and when a method is built."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

import polopt
from polopt import registry
from polopt.bases.method import RESERVED, Method
from polopt.config import param
from polopt.core.errors import UsageError
from polopt.core.spec import Spec
from polopt.networks import Network
from polopt.policies import Categorical, Gaussian, MultiDiscrete, SquashedGaussian
from polopt.policies.base import require_legal
from polopt.policies.wrappers import Greedy, Uniform
from polopt.training import api
from polopt.training.options import RunOptions
from tests.guards.spaces import VECTOR, Walk


def test_a_config_may_not_have_the_name_of_a_run_option():
    with pytest.raises(TypeError, match=r"Wrong.Config cannot have a field 'seed': every run has that option"):

        class Wrong(Method):
            @dataclass(frozen=True)
            class Config(Method.Config):
                seed: int = param(0, "assumed")


def test_the_reserved_names_are_all_that_a_run_takes():
    taken = {item.name for item in fields(RunOptions)}
    for function in (polopt.train, polopt.compare, polopt.sweep, api.iterate):
        taken |= {name for name in inspect.signature(function).parameters if name not in ("settings", "methods")}
    assert taken == set(RESERVED)


def masked(action: spaces.Space, size: Any) -> Spec:
    mask = spaces.MultiBinary(size)
    return Spec(spaces.Dict({"worth": VECTOR, "action_mask": mask}), action, "a task with a mask")


BOX = spaces.Box(-1.0, 1.0, (2,), np.float32)


@pytest.mark.parametrize(
    ("config", "action", "size"),
    [(Categorical(), spaces.Discrete(4), 4), (MultiDiscrete(), spaces.MultiDiscrete([2, 3]), 5)],
)
def test_policies_over_finite_actions_heed_a_mask_that_fits(config, action, size):
    policy = config.build(masked(action, size), network=Network((4,)))
    for actor in (policy, Greedy(policy), Uniform(masked(action, size))):
        require_legal(actor, masked(action, size))
        require_legal(actor, Spec(VECTOR, action))
        with pytest.raises(UsageError, match=f"is MultiBinary.3., not one flag for each of its {size} actions"):
            require_legal(actor, masked(action, 3))


@pytest.mark.parametrize("config", [Gaussian(), SquashedGaussian()])
def test_policies_that_would_ignore_a_mask_are_refused(config):
    spec = masked(BOX, 2)
    policy = config.build(spec, network=Network((4,)))
    for actor in (policy, Greedy(policy), Uniform(spec)):
        with pytest.raises(UsageError, match="a task with a mask says with action_mask which actions are legal, and a"):
            require_legal(actor, spec)
    require_legal(policy, Spec(VECTOR, BOX))


class Veiled(Walk):
    """A box of actions, and a mask that says which are legal: nothing here can heed it."""

    def __init__(self) -> None:
        super().__init__(BOX, spaces.Dict({"worth": VECTOR, "action_mask": spaces.MultiBinary(2)}))


@pytest.mark.parametrize("name", ["ppo", "sac", "bc"])
def test_it_is_refused_when_the_method_is_built(name):
    with pytest.raises(UsageError, match=r"Veiled says with action_mask which actions are legal, and a .* ignores it"):
        api.plan(name, Veiled, loggers=(), **registry.load(name).smoke.config).build()
