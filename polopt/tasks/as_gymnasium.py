"""Any world of polopt as an environment of Gymnasium: one row as an `Env`, all rows as a `VectorEnv`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor

from polopt.core.errors import UsageError
from polopt.tasks import make_task
from polopt.tasks.base import Obs
from polopt.tasks.luck import scrambled_keys
from polopt.tasks.options import choice
from polopt.tasks.simulated import Simulated

SEEDS = 1 << 40
"""Seeds are taken modulo this."""
MODES = {mode.name.lower().replace("_", "-"): mode for mode in AutoresetMode}


def env_spec(task: str, **options: Any) -> EnvSpec:
    """What `gymnasium.make` and `gymnasium.make_vec` take for a world by its name: `gymnasium.make(env_spec("lock"))`.

    Its id is "polopt/NAME", with "-" for "/"; nothing is registered.
    """
    return EnvSpec(
        id=f"polopt/{task.replace('/', '-').replace(':', '-')}",
        entry_point=f"{__name__}:WorldEnv",
        vector_entry_point=f"{__name__}:WorldVectorEnv",
        kwargs={"task": task, **options},
    )


class WorldEnv(gymnasium.Env):
    """One row of a world, with the facts of each step in the info.

    An episode follows from the seed of the last `reset(seed=...)` and the number of resets since then. A team is one
    environment: its observations and actions have an axis of agents in front, the reward is their sum.

    Args:
        task: a name, a class of `Simulated`, or a world of one row. options: as `make_task` takes them.
    """

    metadata: dict[str, Any] = {"render_modes": []}

    def __init__(self, task: Any, render_mode: None = None, **options: Any) -> None:
        self.world = world_of(task, 1, options)
        self.observation_space, self.action_space = self.world.spec.obs, self.world.spec.action
        self.render_mode = render_mode
        self._episode = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._episode = 0 if seed is not None else self._episode + 1
        number = start_numbers(np.array([self.np_random_seed % SEEDS]), np.array([self._episode]))
        return self._seen(self.world.reset(index=number)), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated = self.world.step({"action": torch.as_tensor(np.array(action))[None]})
        info = {name: fact[0].cpu().numpy().copy() for name, fact in self.world.facts.items()}
        return self._seen(obs), float(reward[0]), bool(terminated[0]), bool(truncated[0]), info

    def _seen(self, obs: Any) -> Any:
        return numbers_of(obs, self.observation_space, 0)


class WorldVectorEnv(VectorEnv):
    """All rows of a world at once, in each mode of resetting that Gymnasium has.

    Row i is the `WorldEnv` with seed s + i after `reset(seed=s)`; a list seeds each row. With the mode "disabled",
    `reset(options={"reset_mask": mask})` begins some rows anew.

    Args:
        task: a name, a class of `Simulated`, or a world of any number of rows. num_envs: rows, unless it is a world.
        autoreset_mode: "next-step", "same-step" or "disabled". options: as `make_task` takes them.
    """

    def __init__(
        self, task: Any, num_envs: int = 1, autoreset_mode: str | AutoresetMode = "next-step", **options: Any
    ) -> None:
        self.world = world_of(task, num_envs, options)
        self.num_envs = self.world.num
        named = not isinstance(autoreset_mode, AutoresetMode)
        self.mode = MODES[choice("autoreset_mode", autoreset_mode, [*MODES])] if named else autoreset_mode
        self.metadata = {"render_modes": [], "autoreset_mode": self.mode}
        self.single_observation_space, self.single_action_space = self.world.spec.obs, self.world.spec.action
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._seeds = np.zeros(self.num_envs, np.int64)
        self._episodes = np.full(self.num_envs, -1)
        self._over = np.zeros(self.num_envs, bool)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        mask = (options or {}).get("reset_mask", np.ones(self.num_envs, bool))
        if not isinstance(mask, np.ndarray) or mask.shape != (self.num_envs,) or mask.dtype != bool or not mask.any():
            raise ValueError(f"a reset_mask is an array of {self.num_envs} bools, one of them True, not {mask!r}")
        if seed is None and (self._episodes < 0).any():
            seed = int(np.random.SeedSequence().generate_state(1)[0])
        if seed is not None:
            super().reset(seed=seed if isinstance(seed, int) else None)
            seeds = [seed + row for row in range(self.num_envs)] if isinstance(seed, int) else [*seed]
            if len(seeds) != self.num_envs:
                raise ValueError(f"there are {len(seeds)} seeds for {self.num_envs} environments")
            for row, one in enumerate(seeds):
                if mask[row] and one is not None:
                    self._seeds[row], self._episodes[row] = one % SEEDS, -1
        return self._seen(self._begin(mask)), {}

    def _begin(self, mask: np.ndarray) -> Obs:
        """New episodes in these rows; the observations of all."""
        self._episodes[mask] += 1
        self._over = self._over & ~mask
        return self.world.reset(torch.from_numpy(mask), start_numbers(self._seeds, self._episodes))

    def step(self, actions: Any) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        world, begun = self.world, self._over & (self.mode == AutoresetMode.NEXT_STEP)
        if begun.any():
            self._begin(begun)
        first = world.state
        obs, *flags = world.step({"action": torch.from_numpy(np.array(actions))})
        facts = {name: fact.cpu().numpy().copy() for name, fact in world.facts.items()}
        if begun.any():  # those rows begin with this step, and do not act in it
            obs = world.put_back(torch.from_numpy(begun), first)
        reward, terminated, truncated = (np.where(begun, 0, flag.numpy().copy()) for flag in flags)
        terminated, truncated = terminated.astype(bool), truncated.astype(bool)
        info = _masked(facts, ~begun)
        self._over = terminated | truncated
        if self.mode == AutoresetMode.SAME_STEP and self._over.any():
            over, seen = self._over, self._seen(obs)
            final = np.full(self.num_envs, None, dtype=object)
            for row in np.flatnonzero(over):
                final[row] = _row(seen, int(row))
            obs = self._begin(over)
            info = _masked(facts, ~over) | {"final_obs": final, "_final_obs": over}
            info |= {"final_info": _masked(facts, over), "_final_info": over.copy()}
        return self._seen(obs), reward.astype(np.float64), terminated, truncated, info

    def _seen(self, obs: Any) -> Any:
        return numbers_of(obs, self.observation_space)


def world_of(task: Any, num: int, options: dict[str, Any]) -> Simulated:
    """The world that an environment is made of. Raises UsageError, one sentence, for a task that is no such world."""
    found = make_task(task, num, **(options if not isinstance(task, Simulated) else {}))
    if not isinstance(found, Simulated):
        found.close()
        raise UsageError(
            f"{found.spec.name} is no world whose rows are tensors, and only those are offered to Gymnasium"
        )
    if isinstance(task, Simulated) and options:
        raise UsageError(f"{found.spec.name} is made already: {sorted(options)} cannot be set any more")
    return found


def start_numbers(seeds: np.ndarray, episodes: np.ndarray) -> Tensor:
    """The numbers int64 [N], of 31 bits, of the starts of these episodes, which have these seeds, both int64 [N]."""
    return (scrambled_keys(torch.from_numpy(seeds * (1 << 20) + episodes)) >> 33) & ((1 << 31) - 1)


def numbers_of(obs: Any, space: spaces.Space, row: int | None = None) -> Any:
    """Observations in arrays of their own, of the types of the space; those of one row, if it is named."""
    if isinstance(space, spaces.Dict):
        return {name: numbers_of(obs[name], part, row) for name, part in space.spaces.items()}
    value = (obs if row is None else obs[row]).cpu().numpy()
    found = np.array(value, dtype=space.dtype)
    return np.int64(found) if isinstance(space, spaces.Discrete) else found


def _row(obs: Any, row: int) -> Any:
    return {name: _row(part, row) for name, part in obs.items()} if isinstance(obs, dict) else obs[row]


def _masked(facts: dict[str, np.ndarray], there: np.ndarray) -> dict[str, Any]:
    """Facts of the rows that are `there`, as Gymnasium's vectors have them: zeros elsewhere, and a mask "_NAME"."""
    found: dict[str, Any] = {}
    for name, fact in facts.items():
        found[name] = np.where(there.reshape(-1, *[1] * (fact.ndim - 1)), fact, 0).astype(fact.dtype)
        found[f"_{name}"] = there.copy()
    return found
