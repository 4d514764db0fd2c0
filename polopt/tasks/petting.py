"""PettingZoo's parallel environments as environments of a whole team. Imports no torch (workers run this).

Terry et al., "PettingZoo: Gym for Multi-Agent Reinforcement Learning", 2021, arXiv 2009.14471.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import re
import sys
from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from polopt.core.errors import UsageError, nearest

PREFIX = "pz/"
MPE = "mpe/"  # these have left PettingZoo for a package of their own
OPTIONS = ("agent_id", "pad", "state")
MASK = "action_mask"
FLAGS = ("alive", "terminations", "truncations")
STATE = ("state", "next_state")
BOUNDS = ((np.min, "low"), (np.max, "high"))


class TeamEnv(gymnasium.Env):
    """A parallel environment of PettingZoo as one Gymnasium environment, whose spaces have an axis [V] in front.

    The V agents are `env.possible_agents`, in this order. `reward` is the sum of the agents' rewards; the info has
    those of each, `rewards` [V], and bools [V]: `alive` (it acted in this step), `terminations` and `truncations`. The
    episode is over when no agent is left: truncated if one of the last was, else terminated. An agent that is gone
    observes zeros, and its action is ignored. An environment of one agent has no such axis and infos.

    Args:
        env: the parallel environment.
        name: in messages.
        agent_id: agents also observe which one they are: a one-hot vector at the end of vectors, otherwise under the
            key "agent_id".
        pad: agents may have vectors and Discrete actions of different sizes: zeros fill up the vectors, and a mask,
            "action_mask" beside "obs", says which actions an agent has.
        state: the info also has `state` and `next_state`, the environment's own view of everything.

    Raises UsageError when the agents' spaces differ otherwise, or are not served, and when there is no state.
    """

    def __init__(
        self, env: Any, name: str = "this task", agent_id: bool = False, pad: bool = False, state: bool = False
    ) -> None:
        self.env = env
        self.names = list(env.possible_agents)
        self.metadata = dict(getattr(env, "metadata", {}))
        self.render_mode = getattr(env, "render_mode", None)
        observed = [env.observation_space(agent) for agent in self.names]
        actions = [env.action_space(agent) for agent in self.names]
        one = _common(observed, "observation", self.names, name, pad)
        action = _common(actions, "action", self.names, name, pad)
        self._length = 0 if all(space.shape == one.shape for space in observed) else one.shape[0]
        self._legal: np.ndarray | None = None  # [V, actions], where agents have different numbers of them
        if any(space != action for space in actions):
            self._legal = np.array([np.arange(action.n) < space.n for space in actions], np.int8)
        self._agent_id = agent_id
        self._one = self._dressed_space(one, action)
        self._single = len(self.names) == 1
        self.observation_space = self._one if self._single else _joint(self._one, len(self.names), name)
        self.action_space = action if self._single else _joint(action, len(self.names), name)
        self.state_space = self._state_space(name) if state else None
        self._alive = np.ones(len(self.names), bool)
        self._state: Any = None

    @property
    def facts(self) -> dict[str, tuple[int, ...]]:
        """The entries of the info, and their shapes."""
        size: tuple[int, ...] = (len(self.names),)
        own = {} if self._single else dict.fromkeys(("rewards", *FLAGS), size)
        return own if self.state_space is None else own | dict.fromkeys(STATE, self.state_space.shape)

    @property
    def team(self) -> dict[str, Any]:
        """What the task's `Spec` says of the team."""
        return {"agents": len(self.names), "shared": STATE, "state": self.state_space}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        obs, _ = self.env.reset(seed=seed, options=options)
        self._alive = self._present()
        self._state = self._view()
        return self._observed(obs, self._alive), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        alive = self._alive
        actions = [action] if self._single else action
        given = {name: actions[number] for number, name in enumerate(self.names) if alive[number]}
        obs, rewards, terminations, truncations, _ = self.env.step(given)
        self._alive = self._present()
        if (self._alive & ~alive).any():
            late = self.names[int((self._alive & ~alive).argmax())]
            raise ValueError(f"{late} came in during an episode; a team is complete from the start")
        own = np.array([float(rewards.get(name, 0.0)) for name in self.names]) * alive
        ended = np.array([bool(terminations.get(name, False)) for name in self.names]) & alive
        cut = np.array([bool(truncations.get(name, False)) for name in self.names]) & alive
        over = not self._alive.any()
        info = {"rewards": own, "alive": alive, "terminations": ended, "truncations": cut}
        info |= {"state": self._state, "next_state": self._view()}
        self._state = info["next_state"]
        return self._observed(obs, alive), float(own.sum()), over and not cut.any(), over and bool(cut.any()), info

    def render(self) -> Any:
        return self.env.render()

    def close(self) -> None:
        self.env.close()

    def _present(self) -> np.ndarray:
        present = set(self.env.agents)
        return np.array([name in present for name in self.names])

    def _view(self) -> Any:
        return None if self.state_space is None else np.array(self.env.state())

    def _observed(self, obs: Any, alive: np.ndarray) -> Any:
        """The observation of the team; zeros, and every action legal, for who was gone before."""
        each = []
        for number, name in enumerate(self.names):
            if alive[number] and name not in obs:
                raise ValueError(f"there is no observation of {name}")
            each.append(self._dressed(number, obs[name]) if alive[number] else _absent(self._one))
        return each[0] if self._single else _stacked(self._one, each)

    def _dressed_space(self, space: Any, actions: Any) -> Any:
        """The observation space of one agent, with its mask and its number."""
        if self._legal is not None:
            space = spaces.Dict({**_entries(space), MASK: spaces.MultiBinary(int(actions.n))})
        if not self._agent_id:
            return space
        marks = spaces.Box(0.0, 1.0, (len(self.names),), np.float32)
        if not _is_vector(space):
            return spaces.Dict({**_entries(space), "agent_id": marks})
        low, high = np.append(space.low, marks.low), np.append(space.high, marks.high)
        return spaces.Box(low.astype(space.dtype), high.astype(space.dtype), dtype=space.dtype)

    def _dressed(self, number: int, obs: Any) -> Any:
        """What agent `number` observes, as `_dressed_space` says."""
        if self._length:
            obs = np.pad(np.asarray(obs, np.float32), (0, self._length - len(obs)))
        if self._legal is not None:
            obs = {**_entries(obs), MASK: self._legal[number]}
        if not self._agent_id:
            return obs
        mark = np.eye(len(self.names), dtype=np.float32)[number]
        if isinstance(self._one, spaces.Dict):
            return {**_entries(obs), "agent_id": mark}
        return np.append(obs, mark).astype(self._one.dtype)

    def _state_space(self, name: str) -> spaces.Box:
        try:
            self.env.reset(seed=0)
            return spaces.Box(-np.inf, np.inf, np.shape(self.env.state()), np.float32)
        except (NotImplementedError, AttributeError):
            raise UsageError(f"{name} has no view of the whole state: leave out --task.state") from None


def parallel_env(name: str, render_mode: str | None, kwargs: dict[str, Any]) -> TeamEnv:
    """The environment "pz/ID" of PettingZoo's registry, or "pz/mpe/NAME" of MPE2, which was a part of it; versions may
    be written "_v3" or "-v3".

    Raises UsageError for an unknown name, with the nearest known one, and for a missing package.
    """
    own = {option: kwargs.pop(option) for option in OPTIONS if option in kwargs}
    short = re.sub(r"-v(\d+)$", r"_v\1", name).removeprefix(PREFIX)
    needed = "mpe2" if short.startswith(MPE) else "pettingzoo"
    if importlib.util.find_spec(needed) is None:
        raise UsageError(f"the task '{name}' needs a package that is not installed: pip install \"polopt[pz]\"")
    known = names()
    if f"{PREFIX}{short}" not in known:
        raise UsageError(f"there is no task '{name}'{nearest(name, known) or ': PettingZoo has no such parallel one'}")
    options = kwargs if render_mode is None else {**kwargs, "render_mode": render_mode}
    try:
        if needed == "mpe2":
            env = importlib.import_module(f"mpe2.{short.removeprefix(MPE)}").parallel_env(**options)
        else:
            env = importlib.import_module("pettingzoo").make("parallel", short, **options)
    except Exception as error:  # PettingZoo's own error of a failed import has the true one as its cause
        missing = error if isinstance(error, ImportError) else error.__cause__
        if not isinstance(missing, ImportError):
            raise
        extra = short.partition("/")[0]
        raise UsageError(
            f"the task '{name}' needs '{missing.name}', which is not installed: pip install \"pettingzoo[{extra}]\""
        ) from None
    return TeamEnv(env, name, **own)


def names() -> list[str]:
    """The names of the parallel environments of PettingZoo and MPE2, as far as these are installed."""
    found: list[str] = []
    if importlib.util.find_spec("pettingzoo") is not None:
        found += [re.sub(r"-v(\d+)$", r"_v\1", id) for id in importlib.import_module("pettingzoo").parallel_registry]
    if importlib.util.find_spec("mpe2") is not None:
        modules = pkgutil.iter_modules(importlib.import_module("mpe2").__path__)
        found += [f"{MPE}{module.name}" for module in modules if re.fullmatch(r".*_v\d+", module.name)]
    return [f"{PREFIX}{name}" for name in found]


def is_parallel(env: Any) -> bool:
    """Whether an object is a parallel environment. Raises UsageError for one whose agents take turns."""
    pettingzoo = sys.modules.get("pettingzoo")
    if pettingzoo is None:
        return False
    if isinstance(env, pettingzoo.AECEnv):
        raise UsageError(f"the agents of {env} take turns; polopt serves PettingZoo's parallel environments")
    return isinstance(env, pettingzoo.ParallelEnv)


# Spaces and observations


def _common(each: Sequence[Any], what: str, names: Sequence[Any], task: str, pad: bool) -> Any:
    """The space that all agents have, or that theirs are filled up to. Raises UsageError if there is none."""
    first, kinds = each[0], {type(space) for space in each}
    vectors = what == "observation" and kinds == {spaces.Box} and {len(space.shape) for space in each} == {1}
    sets = what == "action" and kinds == {spaces.Discrete} and {int(space.start) for space in each} == {0}
    other = next((number for number, space in enumerate(each) if space != first), None)
    if other is None:
        return first
    if what == "observation" and kinds == {spaces.Box} and len({(space.shape, space.dtype) for space in each}) == 1:
        low, high = (function([getattr(space, bound) for space in each], axis=0) for function, bound in BOUNDS)
        return spaces.Box(low, high, dtype=first.dtype)
    if pad and vectors:
        return spaces.Box(-np.inf, np.inf, (max(space.shape[0] for space in each),), np.float32)
    if pad and sets:
        return spaces.Discrete(max(int(space.n) for space in each))
    advice = ": --task.pad true fills up the smaller ones" if vectors or sets else ", which no shared policy can have"
    example = f"{names[0]} {first} and {names[other]} {each[other]}"
    raise UsageError(f"the agents of {task} have different {what} spaces, {example}{advice}")


def _joint(space: Any, size: int, name: str) -> Any:
    """The space of `size` agents with this space each."""
    if isinstance(space, spaces.Dict):
        return spaces.Dict({key: _joint(part, size, name) for key, part in space.spaces.items()})
    if isinstance(space, spaces.Box):
        return spaces.Box(np.stack([space.low] * size), np.stack([space.high] * size), dtype=space.dtype)
    if isinstance(space, spaces.MultiBinary):
        return spaces.MultiBinary((size, *space.shape))
    if isinstance(space, spaces.Discrete):
        return spaces.MultiDiscrete([int(space.n)] * size, start=[int(space.start)] * size)
    if isinstance(space, spaces.MultiDiscrete):
        return spaces.MultiDiscrete(np.stack([space.nvec] * size), start=np.stack([space.start] * size))
    raise UsageError(
        f"the agents of {name} have a {type(space).__name__} space; polopt serves Box, Discrete, MultiDiscrete, "
        "MultiBinary and Dict of these: wrap the environment"
    )


def _stacked(space: Any, each: Sequence[Any]) -> Any:
    if isinstance(space, spaces.Dict):
        return {key: _stacked(part, [obs[key] for obs in each]) for key, part in space.spaces.items()}
    return np.stack([np.asarray(obs, dtype=space.dtype) for obs in each])


def _absent(space: Any) -> Any:
    """What an agent observes that is gone: nothing, and all its actions are legal."""
    if isinstance(space, spaces.Dict):
        parts = space.spaces.items()
        return {key: np.ones(part.shape, part.dtype) if key == MASK else _absent(part) for key, part in parts}
    return np.int64(space.start) if isinstance(space, spaces.Discrete) else np.zeros(space.shape, space.dtype)


def _entries(value: Any) -> dict[str, Any]:
    """A dict space or observation as a dict; another one under the key "obs"."""
    if isinstance(value, spaces.Dict):
        return dict(value.spaces)
    return value if isinstance(value, dict) else {"obs": value}


def _is_vector(space: Any) -> bool:
    return isinstance(space, spaces.Box) and len(space.shape) == 1 and np.issubdtype(space.dtype, np.floating)
