"""What other libraries call things, for messages: docs/moving.md has the tables. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import PurePath

OPTIONS: dict[str, tuple[str, ...]] = {
    # Stable-Baselines3, CleanRL
    "learning_rate": ("lr",),
    "gamma": ("discount",),
    "total_timesteps": ("steps",),
    "n_envs": ("envs",),
    "num_envs": ("envs",),
    "make_vec": ("envs",),
    "n_steps": ("window", "steps"),
    "num_steps": ("window",),
    "n_epochs": ("epochs",),
    "update_epochs": ("epochs",),
    "num_minibatches": ("minibatches",),
    "ent_coef": ("entropy-coefficient", "entropy.initial"),
    "vf_coef": ("value-coefficient",),
    "clip_range": ("surrogate.clip-low",),
    "clip_coef": ("surrogate.clip-low",),
    "clip_range_vf": ("value-clip",),
    "clip_vloss": ("value-clip",),
    "anneal_lr": ("lr-schedule",),
    "normalize_advantage": ("advantage-over",),
    "use_rms_prop": ("optimizer",),
    "rms_prop_eps": ("adam-eps",),
    "norm_adv": ("advantage-over",),
    "buffer_size": ("replay-size",),
    "learning_starts": ("warmup",),
    "train_freq": ("steps-per-update",),
    "gradient_steps": ("updates-per-step",),
    "policy_lr": ("lr",),
    "q_lr": ("lr",),
    "net_arch": ("network.sizes",),
    "hidden_sizes": ("network.sizes",),
    "policy_kwargs": ("network.sizes",),
    "activation_fn": ("network.activation",),
    "env": ("task",),
    "env_id": ("task",),
    "eval_freq": ("eval-every",),
    "n_eval_episodes": ("eval-episodes",),
    "save_freq": ("checkpoint-every",),
    "capture_video": ("video",),
    "track": ("loggers",),
    "cuda": ("device",),
    # d3rlpy
    "actor_learning_rate": ("lr",),
    "critic_learning_rate": ("lr",),
    "n_critics": ("critics",),
    "weight_temp": ("advantage-temperature",),
    "max_weight": ("weight-clip",),
    # TRL
    "num_generations": ("samples-per-prompt",),
    "per_device_train_batch_size": ("micro-batch",),
    "max_completion_length": ("policy.max-tokens",),
    "max_new_tokens": ("policy.max-tokens",),
    "temperature": ("policy.temperature",),
    "top_p": ("policy.top-p",),
    "top_k": ("policy.top-k",),
    "beta": ("reference-kl.coefficient",),
    "epsilon": ("surrogate.clip-low",),
    "epsilon_high": ("surrogate.clip-high",),
    "loss_type": ("loss", "aggregate"),
    "scale_rewards": ("baseline.std",),
    "lr_scheduler_type": ("lr-schedule",),
    "warmup_ratio": ("lr-schedule.warmup",),
    "use_peft": ("policy.lora",),
    "peft_config": ("policy.lora",),
    "lora_r": ("policy.lora.rank",),
    "lora_alpha": ("policy.lora.alpha",),
    "lora_target_modules": ("policy.lora.targets",),
    "bf16": ("policy.dtype",),
    "gradient_checkpointing": ("policy.gradient-checkpointing",),
    "use_vllm": ("policy.engine",),
    "torch_compile": ("compile",),
    "output_dir": ("out",),
    "train_dataset": ("task",),
    "dataset_name": ("task",),
    "reward_funcs": ("task.rewards",),
    "logging_steps": ("log-every",),
    "save_steps": ("checkpoint-every",),
    "eval_steps": ("eval-every",),
    "report_to": ("loggers",),
    "model_name_or_path": ("model",),
}
"""A name of theirs, and ours: the first one that a method has."""

VERB = ("task", "out", "init", "task.rewards")  # options that belong to the verb and to no config

METHODS: dict[str, str] = {
    "awac": "iql is the method of its kind",
    "cispo": "it is grpo --preset cispo",
    "dapo": "it is grpo --preset dapo",
    "ddpg": "it is td3 --critics 1 --target-noise 0 --delay 1",
    "dft": "it is sft --emphasis probability",
    "double-dqn": "it is dqn --double true",
    "dr-grpo": "it is grpo --preset dr-grpo",
    "gail": "dac is the method of its kind",
    "gspo": "it is grpo --preset gspo",
    "ipo": "it is dpo --loss ipo",
    "kto": "dpo is the method of its kind",
    "maskable-ppo": "it is ppo, on observations with an action_mask",
    "recurrent-ppo": "it is ppo --network.recurrent gru",
    "rloo": "it is rec --baseline rloo",
    "td3+bc": "it is td3-bc",
}
"""Methods that people look for under a name that may not be here; one that is here is found before."""


def option(name: str, known: Collection[str], *, dashes: bool = True) -> str:
    """What an option of theirs is called here, of those that are `known`, both with dashes or neither; "" for none."""
    for ours in OPTIONS.get(name.replace("-", "_").lower(), ()):
        found = ours if dashes else ours.replace("-", "_")
        if found in known or ours in VERB:
            return found
    return ""


def method(name: str) -> str:
    """What to take for a method that has another name here, or a neighbor; "" for none."""
    return METHODS.get(name.lower().replace("_", "-"), "")


D4RL: dict[str, str] = {
    r"(halfcheetah|hopper|walker2d|ant)-(medium|expert)-v\d": r"mujoco/\1/\2-v0",
    r"antmaze-(\w+(?:-\w+)?)-v\d": r"D4RL/antmaze/\1-v1",
    r"maze2d-(\w+(?:-dense)?)-v\d": r"D4RL/pointmaze/\1-v2",
    r"(pen|door|hammer|relocate)-(human|cloned|expert)-v\d": r"D4RL/\1/\2-v2",
    r"kitchen-(complete|partial|mixed)-v\d": r"D4RL/kitchen/\1-v2",
}
RECORDED = {"halfcheetah": "HalfCheetah-v5", "hopper": "Hopper-v5", "walker2d": "Walker2d-v5", "ant": "Ant-v5"}


def dataset(name: str) -> str:
    """What has become of a data set of D4RL, as the end of a sentence; "" for other names."""
    for pattern, ours in D4RL.items():
        if re.fullmatch(pattern, name):
            return f"; D4RL's data are Minari's now, this one as {re.sub(pattern, ours, name)}"
    mixed = re.fullmatch(r"(\w+)-(random|medium-replay|medium-expert|full-replay)-v\d", name)
    if mixed and mixed[1] in RECORDED:
        kind = mixed[2].replace("full", "medium")
        made = f"polopt dataset make {RECORDED[mixed[1]]} --kinds {kind}"
        return f"; D4RL's data are Minari's now, without this one: '{made}' records its like"
    return ""


def code_file(name: str) -> str:
    """What "folder/file.py:function" is as "module:function"; "" for other names."""
    file, colon, function = name.partition(":")
    path = PurePath(file)
    if not colon or path.suffix != ".py":
        return ""
    return f"{'.'.join([*path.parts[:-1], path.stem]).lstrip('./')}:{function}"


def vector(env: object) -> str:
    """What to do with a vector of environments, as the end of a sentence; "" for anything else."""
    return ": give the single environment, of which --envs N makes copies" if hasattr(env, "num_envs") else ""
