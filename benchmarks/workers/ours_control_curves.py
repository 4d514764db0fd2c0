"""polopt's learning curves on MuJoCo, of DQN on small tasks: SAC, TD3, PPO, TRPO and DQN as Stable-Baselines3 and
sb3-contrib are run beside them, and three on top.

A job names settings as Stable-Baselines3 does (`net_arch`, `n_steps`, `vf_coef`, ...); `SETTINGS` and `translated` say
what they are here. Training is the ordinary `Trainer`: losses eager, environments in this process, no logger, and no
checkpoints but at the start and the end and the best policy's, whose time counts.

Equal on both sides: everything in the job, Adam and its epsilon, networks and their initial weights, the temperature's
loss on log alpha, PPO's unclipped value loss, advantages standardized per minibatch, gradient clipping over policy and
critic together, the budget, the evaluation episodes.

Not equal: random numbers. PPO's observation statistics are updated after each window here and at each step there, so
the first window is raw here (those of rewards agree). Its linear learning rate is read before a window is collected
here and after it there: one update of 244 apart. SAC has no row within its random steps here, as they are collected at
once, and has its first one update after them.

sb3-contrib takes the mean of a Gaussian's divergence over the coordinates of an action where ours is the sum, so its
radius and damping are here times their number; of its steps it bounds the other divergence, KL(new || old).

DQN's random steps fill whole collections here, and its first updates come one collection after them: one block of
updates later than there. Epsilon falls with each collection here and with each step there. A target that is copied
every so many steps is copied here after as many updates, and after each block where the copies are closer than that:
between two blocks there is nothing new to copy.

What DSAC-T and MDPO share with SAC and PPO has the job's value; the rest is the method's own default. For DSAC-T that
leaves its delay of 2 and its bounds; its temperature starts at 1 like SAC's and, as it moves at every second update,
with twice the learning rate. MDPO's learning rate stays constant (its step size t_k falls instead) and its critic has
its own 5 passes of 16 minibatches; off-policy MDPO keeps its fixed temperature of 0.2 and its value network.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from evaluation import Evaluations
from protocol import Job

from polopt.training import api
from polopt.training.checkpoints import Checkpoints
from polopt.training.loop import Trainer
from polopt.training.plan import runtime

NEVER = 2**40
NAMES = {
    "buffer_size": "replay_size",
    "cg_damping": "damping",
    "cg_max_steps": "solver_steps",
    "ent_coef": "entropy_coefficient",
    "exploration_final_eps": "epsilon",
    "exploration_fraction": "exploration",
    "gamma": "discount",
    "gradient_steps": "updates_per_step",
    "learning_rate": "lr",
    "learning_starts": "warmup",
    "line_search_shrinking_factor": "shrink",
    "n_critic_updates": "epochs",
    "n_envs": "envs",
    "n_epochs": "epochs",
    "n_steps": "window",
    "net_arch": "network.sizes",
    "policy_delay": "delay",
    "target_kl": "max_kl",
    "target_policy_noise": "target_noise",
    "target_update_interval": "target_every",
    "train_freq": "steps_per_update",
}
SETTINGS: dict[str, dict[str, Any]] = {
    "sac": {"entropy.form": "log-alpha"},
    "dsac-t": {
        "steps_per_update": 1,
        "entropy.initial": 1.0,
        "network.activation": "relu",
        "policy.log_std_high": 2.0,
    },
    "mdpo-off": {},
    "td3": {},
    "ppo": {"preset": "mujoco", "value_clip": None},
    "mdpo": {},
    "trpo": {"normalize_obs": True, "normalize_reward": True},
    "dqn": {},
}


def translated(method: str, task: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Stable-Baselines3's names and conventions -> polopt's."""
    known = {NAMES.get(name, name): value for name, value in settings.items()}
    if "clip_range" in known:
        known["surrogate.clip_low"] = known["surrogate.clip_high"] = known.pop("clip_range")
    if "vf_coef" in known:  # there on the mean squared error, here on half of it
        known["value_coefficient"] = 2 * known.pop("vf_coef")
    if method in ("ppo", "trpo"):  # `batch_size` is that of a minibatch
        known["minibatches"] = known["envs"] * known["window"] // known.pop("batch_size")
    if method == "trpo":
        with gymnasium.make(task) as env:
            coordinates = gymnasium.spaces.flatdim(env.action_space)
        known["max_kl"], known["damping"] = coordinates * known["max_kl"], coordinates * known["damping"]
    if method == "dqn":  # counted in steps there, in updates here, and none falls between the steps of one collection
        block = known["updates_per_step"]
        known["target_every"] = max(known["target_every"] * block // known["steps_per_update"], block)
        known["warmup"] = max(known["warmup"], 1)
    if method == "dsac-t":
        known["entropy.lr"] = 2 * known["lr"]
    return known


def curve(method: str) -> Callable[[Job], Iterator[dict]]:
    def case(job: Job) -> Iterator[dict]:
        common = {"case", "task", "seed", "steps", "eval_every", "eval_episodes"}
        given = {name: value for name, value in job.items() if name not in common}
        settings = SETTINGS[method] | translated(method, job["task"], given)
        planned = api.plan(
            method,
            job["task"],
            steps=job["steps"],
            seed=job["seed"],
            eval_every=job["eval_every"],
            checkpoint_every=NEVER,
            loggers=(),
            threads=int(os.environ.get("OMP_NUM_THREADS", "1")),
            **settings,
        )
        with runtime(planned.options), tempfile.TemporaryDirectory() as folder:
            learner: Any = planned.build()
            evaluations = Evaluations(job)
            rows: list[dict] = []

            def act(obs: np.ndarray) -> np.ndarray:
                policy = learner.policy
                record, _ = policy.act(torch.as_tensor(obs, dtype=torch.float32), greedy=True)
                return policy.env_action(record["action"]).numpy()

            def evaluate(*_: Any, **__: Any) -> dict[str, float]:
                rows.append(evaluations.row(learner.ledger.env_steps, act))
                return {"return": rows[-1]["return"]}

            learner.evaluate = evaluate  # what the trainer calls when an evaluation is due
            trainer = Trainer(learner, planned.steps, planned.options, Checkpoints(Path(folder)), learner.task, [])
            evaluations.start()
            for _ in trainer.run():
                yield from rows
                rows.clear()

    return case


CASES = {f"{method}-curve": curve(method) for method in SETTINGS}
