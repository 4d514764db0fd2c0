"""Names of other libraries are translated, and every translation is true."""

from __future__ import annotations

import re

import gymnasium
import pytest

import polopt
from polopt import registry
from polopt.config import apply, parse_many, peers
from polopt.config.serialize import fields_of
from polopt.core.errors import UsageError
from polopt.tasks import make_task
from polopt.training.options import RunOptions

MANY = ("ppo", "a2c", "sac", "iql", "grpo", "sft", "dpo")


def options(method: str) -> set[str]:
    cls = registry.load(method)
    return {field.name for config in (RunOptions, cls.Config) for field in fields_of(config)}


def test_every_option_of_theirs_is_one_of_ours():
    known = {method: options(method) for method in MANY}
    for theirs, ours in peers.OPTIONS.items():
        for name in ours:
            assert name in peers.VERB or any(name in each for each in known.values()), (theirs, name)
        assert all(theirs.replace("_", "-") not in each for each in known.values()) or theirs in ("beta",), theirs


@pytest.mark.parametrize(
    ("method", "theirs", "ours"),
    [
        ("ppo", "learning_rate", "lr"),
        ("ppo", "total_timesteps", "steps"),
        ("ppo", "n_steps", "window"),
        ("iql", "n_steps", "steps"),
        ("ppo", "ent_coef", "entropy_coefficient"),
        ("sac", "ent_coef", "entropy.initial"),
        ("grpo", "num_generations", "samples_per_prompt"),
        ("grpo", "loss_type", "aggregate"),
        ("dpo", "loss_type", "loss"),
        ("grpo", "beta", "reference_kl.coefficient"),
        ("grpo", "use_peft", "policy.lora"),
    ],
)
def test_in_python_and_on_the_command_line(method, theirs, ours, tmp_path):
    cls = registry.load(method)
    with pytest.raises(UsageError, match=rf"^unknown option {theirs}: it is '{ours}' here$"):
        polopt.train(method, cls.smoke.task, out=tmp_path / "run", **{theirs: 1})
    flag = ours.replace("_", "-")
    for typed in (theirs, theirs.replace("_", "-")):
        with pytest.raises(UsageError, match=rf"^unknown option --{typed}: it is '--{flag}' here$"):
            parse_many({"run": RunOptions, "method": cls.Config}, [f"--{typed}", "1"])


def test_what_a_method_has_under_the_name_is_taken():
    assert apply(registry.load("dpo").Config, {"beta": 0.3}).beta == 0.3


def test_methods_are_what_they_are_called_here():
    assert not set(peers.METHODS) & set(registry.entries())
    for name, said in peers.METHODS.items():
        named = re.search(r"it is ([\w-]+)((?: --\S+ \S+)*)$", said)
        if named and named[2]:
            cls = registry.load(named[1])
            parse_many({"run": RunOptions, "method": cls.Config}, named[2].split(), presets=cls.presets)
        words = set(re.findall(r"[\w-]+", said))
        assert words & set(registry.entries()) or "docs/" in said, name
    with pytest.raises(UsageError, match="there is no method 'Dr_GRPO': it is grpo --preset dr-grpo"):
        registry.load("Dr_GRPO")


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("halfcheetah-medium-v2", "mujoco/halfcheetah/medium-v0"),
        ("antmaze-large-play-v0", "D4RL/antmaze/large-play-v1"),
        ("maze2d-umaze-v1", "D4RL/pointmaze/umaze-v2"),
        ("door-human-v1", "D4RL/door/human-v2"),
        ("kitchen-complete-v0", "D4RL/kitchen/complete-v2"),
        ("hopper-medium-replay-v2", "'polopt dataset make Hopper-v5 --kinds medium-replay'"),
    ],
)
def test_data_sets_of_d4rl(name, ours):
    with pytest.raises(UsageError, match=f"there is no task '{name}'; D4RL's data are Minari's now, .*{ours}"):
        make_task(name)
    assert peers.dataset("Hopper-v5") == ""


def test_a_vector_of_environments_is_not_one():
    many = gymnasium.make_vec("CartPole-v1", num_envs=2, vectorization_mode="sync")
    for task in (many, lambda: many):
        with pytest.raises(UsageError, match=r"VectorEnv.*: give the single environment, of which --envs N makes"):
            make_task(task)
    many.close()


def test_lora_is_switched_on():
    config = registry.load("grpo").Config
    plain = apply(config, {"policy.lora": "lo-ra"})
    for words in (["--policy.lora"], ["--policy.lora", "true"], ["--policy.lora", "lora"], ["--policy.lora", "lo-ra"]):
        assert parse_many({"method": config}, words)[0]["method"] == plain
    assert parse_many({"method": config}, ["--policy.lora", "none"])[0]["method"].policy.lora is None
    with pytest.raises(UsageError, match=r"--policy.lora must be one of lo-ra, none, not 'yes'"):
        parse_many({"method": config}, ["--policy.lora", "yes"])
