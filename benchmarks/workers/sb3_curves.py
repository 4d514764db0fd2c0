"""Learning curves of Stable-Baselines3 and sb3-contrib on MuJoCo, of DQN on small tasks: `model.learn` with a callback
that evaluates, off the clock.

The settings of a job are its own parameters by name. Its environments are made without Gymnasium's checker, as
polopt's are, and stepped in this process (`DummyVecEnv`, the faster one for these on one core); nothing is logged. PPO
has `VecNormalize` for observations and rewards, the linear schedule of the library, and evaluates after an update
like polopt. What cannot be made equal is said in `ours_control_curves.py`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium
import numpy as np
import torch
from evaluation import Evaluations
from protocol import Job
from sb3_contrib import TRPO
from sb3_shared import exploring
from stable_baselines3 import DQN, PPO, SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecNormalize


class Evaluate(BaseCallback):
    """Rows at the start, after the update that follows each multiple of `eval_every` steps, and at the end."""

    def __init__(self, evaluations: Evaluations) -> None:
        super().__init__()
        self.evaluations = evaluations
        self.rows: list[dict] = []

    def _on_training_start(self) -> None:
        self.evaluations.start()
        self.evaluate()

    def _on_rollout_start(self) -> None:  # the update on what was collected before is done
        if self.evaluations.due(self.num_timesteps):
            self.evaluate()

    def _on_training_end(self) -> None:
        if self.rows[-1]["steps"] < self.num_timesteps:
            self.evaluate()

    def _on_step(self) -> bool:
        return True

    def evaluate(self) -> None:
        normalize = self.model.get_vec_normalize_env()

        def act(obs: np.ndarray) -> np.ndarray:
            seen = obs if normalize is None else normalize.normalize_obs(obs)
            return self.model.predict(seen, deterministic=True)[0]

        self.rows.append(self.evaluations.row(self.num_timesteps, act))


def make_sac(job: Job, settings: dict[str, Any]) -> BaseAlgorithm:
    env = gymnasium.make(job["task"], disable_env_checker=True)
    return SAC("MlpPolicy", env, **settings)


def make_td3(job: Job, settings: dict[str, Any]) -> BaseAlgorithm:
    env = gymnasium.make(job["task"], disable_env_checker=True)
    return TD3("MlpPolicy", env, action_noise=exploring(env, settings.pop("exploration_noise")), **settings)


def normalized(job: Job, settings: dict[str, Any]) -> VecNormalize:
    envs = make_vec_env(
        lambda: gymnasium.make(job["task"], disable_env_checker=True), settings.pop("n_envs"), seed=job["seed"]
    )
    return VecNormalize(envs, gamma=settings["gamma"])


def make_ppo(job: Job, settings: dict[str, Any]) -> BaseAlgorithm:
    envs = normalized(job, settings)
    settings["learning_rate"] = LinearSchedule(settings["learning_rate"], 0.0, 1.0)
    return PPO("MlpPolicy", envs, **settings)


def make_trpo(job: Job, settings: dict[str, Any]) -> BaseAlgorithm:
    return TRPO("MlpPolicy", normalized(job, settings), **settings)


def curve(make: Callable[[Job, dict[str, Any]], BaseAlgorithm]) -> Callable[[Job], Iterator[dict]]:
    def case(job: Job) -> Iterator[dict]:
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
        common = {"case", "task", "seed", "steps", "eval_every", "eval_episodes"}
        settings = {name: value for name, value in job.items() if name not in common}
        settings["policy_kwargs"] = {"net_arch": settings.pop("net_arch")}
        model = make(job, settings | {"seed": job["seed"], "device": "cpu"})
        callback = Evaluate(Evaluations(job))
        model.learn(job["steps"], callback)
        yield from callback.rows

    return case


def make_dqn(job: Job, settings: dict[str, Any]) -> BaseAlgorithm:
    return DQN("MlpPolicy", gymnasium.make(job["task"], disable_env_checker=True), **settings)


MAKERS = {"sac": make_sac, "td3": make_td3, "ppo": make_ppo, "trpo": make_trpo, "dqn": make_dqn}
CASES = {f"{name}-curve": curve(make) for name, make in MAKERS.items()}
