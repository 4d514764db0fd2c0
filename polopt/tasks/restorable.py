"""The wrapper around each environment, in process or in a worker. Imports no torch: worker processes start lean.

It checks what the environment returns where it is returned, reports faults as text (an exception that crosses a pipe
may not be picklable, and would end the worker), and replays actions so that an episode can be restored.
"""

from __future__ import annotations

import contextlib
import copy
import os
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from polopt.core import signals
from polopt.core.observations import check_spaces, checker
from polopt.core.workers import end_with_maker
from polopt.tasks.facts import Shapes, legal, objectives, pack
from polopt.tasks.petting import TeamEnv

PROBE_STEPS = 12
STEP = "(observation, reward, terminated, truncated, info)"


class Restorable(gymnasium.Wrapper):
    """Row `row` of a vector environment.

    `info` is empty, {"facts": one array} when entries of the info are kept (`facts`: their shapes), or {"fault": one
    clause} when something went wrong. The parts of a vector reward are the first fact, "rewards", and its sum is the
    reward; what a team says of its agents is kept too.
    """

    def __init__(self, env: gymnasium.Env, row: int, facts: Shapes) -> None:
        super().__init__(env)
        self.row = row
        self.objectives = objectives(env)
        self.facts = {"rewards": (len(self.objectives),)} | facts if self.objectives else facts
        if isinstance(env.unwrapped, TeamEnv):
            self.facts = env.unwrapped.facts | facts
        self.plan: list[Any] = []  # set by the task before it calls `replay`
        self._check = checker(env.observation_space)
        self._blank = blank(env.observation_space)
        self._steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self._steps = 0
        try:
            result = self.env.reset(seed=seed, options=options or None)
        except Exception as error:
            return self._fault(f"its reset raised {_said(error)}")
        if not isinstance(result, tuple) or len(result) != 2:
            return self._fault("its reset did not return the pair (observation, info)")
        problem = self._check(result[0])
        return self._fault(f"its reset returned {problem}") if problem else (result[0], {})

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self._steps += 1
        try:
            result: Any = self.env.step(action)
            if len(result) != 5:
                return self._failed_step(f"its step returned {len(result)} values, not {STEP}")
            obs, given, terminated, truncated, info = result
            reward: Any = given
            if self.objectives:
                info = {**info, "rewards": reward}
            if not isinstance(reward, float):
                if not self.objectives and (said := no_number(reward)):
                    return self._failed_step(f"its step returned a reward of {said}, not a number")
                reward = np.sum(reward)
            reward = float(reward)
        except Exception as error:
            return self._failed_step(f"its step raised {_said(error)}")
        problem = self._check(obs)
        if problem:
            return self._failed_step(f"its step returned {problem}")
        kept = {}
        if self.facts:
            try:
                kept = {"facts": pack(info, self.facts)}
            except ValueError as error:
                return self._failed_step(f"its step returned {error}")
        return obs, reward, bool(terminated), bool(truncated), kept

    def replay(self) -> tuple[Any, str]:
        """Steps through `plan`; returns the last observation (None for an empty plan) and a fault or ""."""
        obs = None
        for action in self.plan:
            obs, _, _, _, info = self.step(action)
            if "fault" in info:
                return obs, info["fault"]
        self.plan = []
        return obs, ""

    def _failed_step(self, what: str) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        obs, fault = self._fault(what)
        return obs, 0.0, True, False, fault

    def _fault(self, what: str) -> tuple[Any, dict[str, str]]:
        return self._blank, {"fault": f"{what} (row {self.row}, step {self._steps} of the episode)"}


class Row:
    """Makes one row: what a worker process is sent. Workers leave signals to the run, which saves before it stops, and
    end with it, whatever the environment is doing then.

    `info` holds what is registered about the environment, and `said` what else the task's spec says of it (its facts,
    objectives and team), once a row was made in this process. Raises UsageError for spaces that are not served.
    """

    def __init__(self, make: Callable[[], gymnasium.Env], row: int, facts: Shapes, name: str) -> None:
        self.name = name
        self.make = make
        self.row = row
        self.facts = facts
        self.parent = os.getpid()
        self.info: dict[str, Any] = {}
        self.said: dict[str, Any] = {}

    def __call__(self) -> Restorable:
        if os.getpid() != self.parent:
            signals.leave_to_parent()
            end_with_maker()
        env = self.make()
        check_spaces(env.observation_space, env.action_space, self.name)
        if env.spec is not None:
            self.info = {"horizon": env.spec.max_episode_steps, "reward_threshold": env.spec.reward_threshold}
        row = Restorable(env, self.row, self.facts)
        self.said = {"facts": row.facts, "objectives": row.objectives, "scalar": not row.objectives}
        if isinstance(env.unwrapped, TeamEnv):
            self.said |= env.unwrapped.team
            self.info["agent_names"] = env.unwrapped.names
        return row


def no_number(reward: Any) -> str:
    """What a reward is that is not one number: "shape (2,)" or "type str"; else ""."""
    array = np.asarray(reward)
    if array.dtype.kind not in "biuf":
        return f"type {type(reward).__name__}"
    return "" if array.size == 1 else f"shape {array.shape}"


def blank(space: spaces.Space) -> Any:
    """An observation of the right structure, sent beside a fault."""
    if isinstance(space, spaces.Dict):
        return {key: blank(part) for key, part in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(map(blank, space.spaces))
    if isinstance(space, spaces.Discrete):
        return np.int64(space.start)
    return np.zeros(space.shape or (), dtype=space.dtype)


def _said(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


# The self-test


def restores(make: Callable[[], gymnasium.Env], name: str) -> str:
    """ "" if a seed and actions bring an environment back bitwise, else one sentence.

    One copy plays a first episode for some steps and then a second one; another copy plays only the second.
    """
    tail = ", so its episodes start anew at a resume"
    envs: list[gymnasium.Env] = []
    try:
        envs = [make(), make()]
        env: Any = envs[0]
        while env is not env.unwrapped:
            if getattr(env, "across_resets", False):
                return f"an episode of {name} depends on the one before{tail}"
            env = env.env
        rng = np.random.default_rng(0)
        _play(envs[0], 1, rng, None)
        trace, actions = _play(envs[0], 2, rng, None)
        again, _ = _play(envs[1], 2, rng, actions)
        same = len(trace) == len(again) and all(map(_equal, trace, again))
        return "" if same else f"{name} does not repeat itself from a seed and the same actions{tail}"
    except Exception as error:
        return f"{name} could not be tested for exact restoring ({type(error).__name__}){tail}"
    finally:
        for env in envs:
            with contextlib.suppress(Exception):
                env.close()


def _play(env: gymnasium.Env, seed: int, rng: np.random.Generator, actions: list[Any] | None) -> tuple[list, list]:
    obs, _ = env.reset(seed=seed)
    trace, played = [copy.deepcopy(obs)], []
    for step in range(PROBE_STEPS if actions is None else len(actions)):
        action = legal(env.action_space, trace[-1], rng) if actions is None else actions[step]
        obs, reward, terminated, truncated, _ = env.step(action)
        trace += [reward, terminated, truncated, copy.deepcopy(obs)]  # which it may write into at the next step
        played.append(action)
        if terminated or truncated:
            break
    return trace, played


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_equal(a[key], b[key]) for key in a)
    if isinstance(a, tuple):
        return len(a) == len(b) and all(map(_equal, a, b))
    return np.array_equal(np.asarray(a), np.asarray(b))
