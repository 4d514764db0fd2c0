"""EnvPool's environments as a task: all rows in one call, stepped by threads that hold no Python.

Weng et al., "EnvPool: A Highly Parallel Reinforcement Learning Environment Execution Engine", 2022, arXiv 2206.10558.

They train; what evaluates and what is filmed is Gymnasium's environment of the same id. EnvPool gives no way to start
an episode from a seed of its own, so equal runs have equal episodes, and a resumed one starts its episodes anew.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv

from polopt.core.errors import UsageError
from polopt.core.observations import check_spaces
from polopt.tasks.base import TRAIN, Task, start_seed
from polopt.tasks.gym import GymTask
from polopt.tasks.making import Maker

PREFIX = "envpool/"


class Pool(VectorEnv):
    """EnvPool behind Gymnasium's interface of vectors that are told when to reset a row; it ignores seeds of starts."""

    def __init__(self, name: str, num: int, seed: int, threads: int, options: dict[str, Any]) -> None:
        try:
            import envpool
        except ImportError:
            raise UsageError(
                f"the task '{PREFIX}{name}' needs a package that is not installed: pip install \"polopt[envpool]\""
            ) from None
        if name not in envpool.list_all_envs():
            raise UsageError(f"EnvPool has no environment '{name}'")
        try:
            self.pool = envpool.make(
                name, env_type="gymnasium", num_envs=num, num_threads=threads, seed=seed, **options
            )
        except Exception as error:
            raise UsageError(f"{PREFIX}{name} cannot be made: {' '.join(str(error).split())}") from error
        space = self.pool.observation_space
        if not isinstance(space, spaces.Box):
            raise UsageError(f"{PREFIX}{name} has {type(space).__name__} observations; of EnvPool's, Box is served")
        self.num_envs = num
        self.single_observation_space = space
        self.single_action_space = self.pool.action_space
        check_spaces(space, self.single_action_space, f"{PREFIX}{name}")
        self.metadata = {"autoreset_mode": AutoresetMode.DISABLED}
        self._obs = np.zeros((num, *space.shape), space.dtype)

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        rows = np.flatnonzero(options["reset_mask"]) if options else np.arange(self.num_envs)
        obs, info = self.pool.reset(rows.astype(np.int32))
        self._obs[info["env_id"]] = obs
        return self._obs, {}

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        self._obs, reward, terminated, truncated, _ = self.pool.step(actions)
        return self._obs, reward, terminated, truncated, {}

    def close_extras(self, **kwargs: Any) -> None:
        self.pool.close()


class PooledTask(GymTask):
    """`num` rows of the environment that EnvPool has under `name`, stepped by `threads` threads (0: EnvPool's choice).

    Raises UsageError when EnvPool or the environment is missing, or its spaces are not served.
    """

    restore_note = "EnvPool cannot bring back an episode, so episodes start anew at a resume"

    def __init__(self, name: str, num: int = 1, seed: int = 0, threads: int = 0, **options: Any) -> None:
        self._pool = (name, num, start_seed(seed, [TRAIN]), threads, options)
        super().__init__(self._no_copy, num, seed, name=f"{PREFIX}{name}")

    @classmethod
    def make(cls, name: str, num: int, seed: int, evaluation: bool, workers: int = 0, **options: Any) -> Task:
        """Rows of EnvPool that train, or of Gymnasium's environment that evaluate."""
        if {"preset", "render_mode", "facts"} & options.keys():
            raise UsageError(f"{name} has no presets, pictures or info")
        name = name.removeprefix(PREFIX)
        if evaluation:
            maker = Maker(name, options, evaluation=True)
            return GymTask(maker, num=num, seed=seed, evaluation=True, name=maker.name)
        return cls(name, num, seed, workers, **options)

    def _twin(self, rows: int, seed: int) -> Task:
        name, _, _, threads, options = self._pool
        return PooledTask(name, rows, seed, threads, **options)

    def _make_vector(self, workers: int) -> tuple[VectorEnv, dict[str, Any], dict[str, Any]]:
        pool = Pool(*self._pool)
        return pool, {"horizon": pool.pool.spec.config.max_episode_steps}, {}

    def _no_copy(self) -> Any:
        raise UsageError(f"{self._name} has no single environments")
