"""The capability matrix: every method with every policy on every kind of space updates, or refuses in one sentence."""

from __future__ import annotations

import functools
import math
from dataclasses import fields
from typing import get_args

import pytest

from polopt import registry
from polopt.bases.language import LanguageMethod
from polopt.config.params import kind
from polopt.core.errors import UsageError
from polopt.policies import AnyPolicy
from polopt.training import api
from tests.guards import spaces
from tests.guards.harness import BUILT, SEED, advance
from tests.tasks.worlds import Errands, Toll

WARMUP = 16
POLICIES = [kind(policy) for policy in get_args(AnyPolicy)]
TASKS = (spaces.box, spaces.unbounded, spaces.discrete, spaces.multi_discrete, spaces.finite, spaces.multi_binary)
TASKS += (spaces.team,)
SERVES = {
    "auto": {"box", "team", "unbounded", "discrete", "multi_discrete", "finite"},
    "gaussian": {"box", "unbounded", "team"},
    "squashed-gaussian": {"box", "team"},
    "deterministic": {"box", "team"},
    "diffusion": {"box", "team"},
    "flow": {"box", "team"},
    "mean-flow": {"box", "team"},
    "autoregressive": {"box", "team"},
    "categorical": {"discrete", "finite"},
    "multi-discrete": {"multi_discrete"},
    "tabular-softmax": {"finite"},
}
SURE = {  # what must work: a matrix of refusals alone would pass the rest
    "ppo": {("auto", task) for task in SERVES["auto"]}
    | {(policy, "box") for policy in ("squashed-gaussian", "diffusion", "autoregressive")}
    | {("tabular-softmax", "finite")},
    "bc": {("auto", task) for task in SERVES["auto"]}
    | {(policy, "box") for policy in ("deterministic", "diffusion", "flow", "mean-flow", "autoregressive")}
    | {("tabular-softmax", "finite")},
    "dql": {("diffusion", "team")}
    | {(policy, "box") for policy in ("diffusion", "flow", "mean-flow", "deterministic", "squashed-gaussian")},
    "ofql": {(policy, "box") for policy in ("diffusion", "flow", "mean-flow", "deterministic", "squashed-gaussian")},
    "sac": {
        ("gaussian", "box"),
        ("gaussian", "unbounded"),
        ("squashed-gaussian", "box"),
        ("squashed-gaussian", "team"),
    },
    "td3": {("deterministic", "team"), ("gaussian", "unbounded")}
    | {(policy, "box") for policy in ("deterministic", "squashed-gaussian", "gaussian", "diffusion", "flow")},
    "td3-bc": {("deterministic", "team"), ("gaussian", "unbounded")}
    | {(policy, "box") for policy in ("deterministic", "squashed-gaussian", "gaussian", "diffusion", "flow")},
    "prdc": {(policy, "box") for policy in ("deterministic", "squashed-gaussian", "gaussian", "diffusion", "flow")},
    "a2pr": {(policy, "box") for policy in ("deterministic", "squashed-gaussian", "gaussian", "diffusion", "flow")},
    "iql": {("auto", task) for task in SERVES["auto"]}
    | {(policy, "box") for policy in ("gaussian", "squashed-gaussian", "deterministic", "diffusion", "flow")}
    | {("tabular-softmax", "finite")},
    "pa-rl": {(policy, "box") for policy in ("gaussian", "squashed-gaussian", "diffusion", "flow", "autoregressive")}
    | {("gaussian", "unbounded")},
}


def attempt(name: str, policy: str | None, task, task_options=None, **run) -> str:
    """Two updates; "" when they work, or the sentence that refuses."""
    smoke = registry.load(name).smoke
    settings = smoke.config if policy is None else smoke.config | {"policy": policy}
    if "warmup" in settings:  # more of it shows nothing more of a pair
        settings = settings | {"warmup": min(settings["warmup"], WARMUP)}
    try:
        method = api.plan(name, task, seed=SEED, loggers=(), task_options=task_options, **run, **settings).build()
    except UsageError as error:
        return str(error)
    try:
        for metrics in advance(method, smoke.steps, updates=2):
            assert all(math.isfinite(value) for value in metrics.values()), (policy, metrics)
    except UsageError as error:
        pytest.fail(f"{name} with {policy} on {task.__name__} is refused only while it trains: {error}")
    finally:
        method.task.close()
    return ""


@functools.cache
def plainly(name: str, task) -> str:
    """`attempt` with the smoke run's policy, which several guards compare with."""
    return attempt(name, None, task)


def one_sentence(text: str) -> bool:
    return bool(text) and "\n" not in text and len(text) < 300 and ". " not in text and "Traceback" not in text


@pytest.mark.parametrize("name", BUILT)
def test_every_pair_updates_or_is_refused_in_one_sentence(name):
    choices = POLICIES if any(item.name == "policy" for item in fields(registry.load(name).Config)) else [None]
    worked = set()
    for policy in choices:
        for task in TASKS:
            refusal = plainly(name, task) if policy is None else attempt(name, policy, task)
            if refusal:
                assert one_sentence(refusal), refusal
            else:
                worked.add((policy, task.__name__))
                assert policy is None or task.__name__ in SERVES[policy], f"{policy} cannot serve {task.__name__}"
    assert SURE.get(name, set()) <= worked


def test_every_policy_is_in_the_matrix():
    assert set(SERVES) == set(POLICIES)


@pytest.mark.parametrize(
    ("name", "policy", "task", "sentence"),
    [
        (
            "sac",
            "squashed-gaussian",
            spaces.discrete,
            "a squashed Gaussian needs a Box action space with finite bounds",
        ),
        (
            "sac",
            "squashed-gaussian",
            spaces.unbounded,
            "a squashed Gaussian needs a Box action space with finite bounds",
        ),
        ("sac", "deterministic", spaces.box, "sac needs a policy that"),
        ("ppo", "deterministic", spaces.box, "ppo needs a policy that scores the actions that it took"),
        ("ppo", "categorical", spaces.box, "a categorical policy needs a Discrete action space"),
        (
            "ppo",
            "auto",
            spaces.multi_binary,
            "multi_binary has a MultiBinary action space; polopt serves Box, Discrete and",
        ),
        ("bc", "tabular-softmax", spaces.discrete, "a tabular softmax needs a Discrete observation space"),
    ],
)
def test_the_sentence(name, policy, task, sentence):
    assert attempt(name, policy, task).startswith(sentence)


@pytest.mark.parametrize("name", BUILT)
def test_on_a_text_task_language_models_train_and_all_others_are_refused(name):
    smoke = registry.load(name).smoke
    refusal = attempt(name, None, "vowels", {"pool": 16, "score_truncated": True})
    if issubclass(registry.load(name), LanguageMethod):
        assert refusal == "", refusal
        assert attempt(name, None, smoke.task, smoke.task_options) == ""
    else:
        assert one_sentence(refusal), refusal


@pytest.mark.parametrize("name", BUILT)
def test_facts_beside_the_reward_change_no_method(name):
    """Numbers and arrays of the info are stored by every source, whatever the method does with its batches."""
    plain = plainly(name, spaces.box)
    assert attempt(name, None, spaces.box, facts=("effort", "parts")) == plain
    assert plain == "" or name not in SURE


@pytest.mark.parametrize("name", BUILT)
@pytest.mark.parametrize(
    ("task", "plain", "objectives"), [(spaces.several, spaces.box, "calm, soon"), (Errands, spaces.finite, "pay, rest")]
)
def test_several_objectives_are_learned_from_or_refused(name, task, plain, objectives):
    """Of an environment and of a batched world; weighed they are a task like one with one reward."""
    refusal = plainly(name, task)
    if registry.load(name).objectives == "one":
        assert refusal == (
            f"{name} learns from one reward, and {task.__name__} has 2 objectives ({objectives}): "
            "weigh them with --objective-weights"
        )
        weighed = attempt(name, None, task, objective_weights=(1.0, 0.5))
        assert weighed.replace(task.__name__, plain.__name__) == plainly(name, plain)
    elif name == "gmorl":  # of discrete actions, by default with a row of the observation for each
        assert one_sentence(refusal), refusal
        assert "take --network network" in refusal or "needs a Discrete action space" in refusal
    elif name == "sl-mgac":  # of discrete actions, and of groups that the observation names
        assert one_sentence(refusal), refusal
    else:
        assert refusal == ""


@pytest.mark.parametrize("name", BUILT)
def test_a_batched_world_with_costs_serves_every_method_for_boxes(name):
    """Dict observations, costs beside the reward, and rows that all step in one call. Models of vectors may say so."""
    refusal = attempt(name, None, Toll)
    if "vectors, and Toll has Dict" not in refusal:
        assert (refusal == "") == (plainly(name, spaces.box) == ""), refusal
    assert refusal == "" or one_sentence(refusal)


@pytest.mark.parametrize("name", BUILT)
def test_a_team_is_trained_on_or_refused_in_one_sentence(name):
    refusal = plainly(name, spaces.team)
    if issubclass(registry.load(name), LanguageMethod) or name in (
        "stepmix",
        "epsmix",
        "dcppo",
        "dr-rpo",
        "programmable-vi",
        "agnostic-rl",
        "nora",
        "marl-dse",
        "rlif",
        "dqn",
        "discrete-sac",
        "cql",
        "bcq",
        "hdpo",
        "c-morl",
        "polychromic",
        "dcg-me",
        "tscac",
        "iwocs",
        "gmorl",
        "sl-mgac",
        "lift",
    ):  # of a model, of several choices, of scripts, of discrete actions, objectives, parameters, places of one agent
        assert one_sentence(refusal), refusal
    else:
        assert refusal == ""
