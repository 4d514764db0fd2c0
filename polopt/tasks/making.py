"""How an environment is made: by id, function or copy, with the image presets. Imports no torch (workers run this)."""

from __future__ import annotations

import contextlib
import copy
import importlib
import inspect
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces, wrappers
from gymnasium.envs.registration import EnvSpec

from polopt.config import peers
from polopt.core.errors import UsageError, nearest
from polopt.tasks import petting, recorded
from polopt.tasks.named import NAMED, imported, place

_EXTRAS = {"box2d": "box2d", "mujoco": None, "ale": "atari", "atari": "atari", "cv2": "atari", "opencv": "atari"}
_EXTRAS |= {"mo_gymnasium": "mo"}

# Packages that register ids with Gymnasium when they are imported, and what those ids look like.
_REGISTER = {
    "ale_py": r"ALE/|.*NoFrameskip",
    "mo_gymnasium": "mo-|deep-sea|resource-gath|four-room|fruit-tree|minecart|water-reservoir|fishwood|breakable-bott",
}


@dataclass(frozen=True)
class Maker:
    """A function without arguments that makes one environment, equal each time. Raises UsageError, one sentence.

    `source` is an id, a "module:function", a dataset of Minari (its environment), a Gymnasium specification, a
    callable, or an environment that is copied. Parallel environments of PettingZoo become a `petting.TeamEnv`.
    `evaluation` leaves out what only helps training: the signed rewards and the early episode ends of the preset
    "atari".
    """

    source: str | EnvSpec | Callable[..., Any] | gymnasium.Env
    kwargs: dict[str, Any] = field(default_factory=dict)
    preset: str | None = None
    render_mode: str | None = None
    evaluation: bool = False

    @property
    def name(self) -> str:
        if isinstance(self.source, str):
            return self.source
        if isinstance(self.source, EnvSpec):
            return self.source.id
        if isinstance(self.source, gymnasium.Env):
            return self.source.spec.id if self.source.spec else type(self.source.unwrapped).__name__
        return getattr(self.source, "__name__", type(self.source).__name__).replace("<lambda>", "the environment")

    def __call__(self) -> gymnasium.Env:
        if self.preset not in (None, *PRESETS):
            raise UsageError(f"there is no task preset '{self.preset}'{nearest(str(self.preset), PRESETS)}")
        render_mode = self.render_mode
        kwargs = dict(self.kwargs)
        if self.preset == "image":
            render_mode = render_mode or "rgb_array"  # for tasks whose observation is not an image itself
        if self.preset == "atari":
            kwargs.setdefault("frameskip", 1)
        try:
            env = self._make(kwargs, render_mode)
            if self.preset and isinstance(env, petting.TeamEnv):
                raise UsageError(f"the preset '{self.preset}' is for one agent, and {self.name} has a team")
            return PRESETS[self.preset](env, self.evaluation) if self.preset else env
        except UsageError:
            raise
        except (ImportError, gymnasium.error.DependencyNotInstalled) as error:
            raise UsageError(_missing(self.name, str(error))) from None
        except Exception as error:
            text = " ".join(str(error).split())
            raise UsageError(f"{self.name} cannot be made: {type(error).__name__}: {text}") from error

    def _make(self, kwargs: dict[str, Any], render_mode: str | None) -> gymnasium.Env:
        if isinstance(self.source, str) and self.source.startswith(petting.PREFIX):
            return petting.parallel_env(self.source, render_mode, kwargs)
        own = {}
        if isinstance(self.source, gymnasium.Env) or petting.is_parallel(self.source):
            if not isinstance(self.source, gymnasium.Env):
                own = {name: kwargs.pop(name) for name in petting.OPTIONS if name in kwargs}
            if kwargs:
                raise UsageError(f"{self.name} is an environment already: {sorted(kwargs)} cannot be set any more")
            try:
                return self._team(copy.deepcopy(self.source), own)
            except UsageError:
                raise
            except Exception as error:
                advice = "pass a function that makes it instead"
                raise UsageError(f"{self.name} cannot be copied ({type(error).__name__}): {advice}") from None
        if isinstance(self.source, EnvSpec):
            return _gym_make(self.source, render_mode, kwargs)
        if isinstance(self.source, str) and is_dataset(self.source):
            source, options = recorded.environment(self.source)
            preset = options.pop("preset", None)
            return Maker(source, {**options, **kwargs}, preset, render_mode, self.evaluation)()
        if isinstance(self.source, str):
            name = self.source.removeprefix("envpool/")  # whose single environments are Gymnasium's
            function = named_function(name)
            if function is None:
                return _registered(name, render_mode, kwargs)
        else:
            function = self.source
        if not callable(function):
            raise UsageError(f"{self.name} is {type(function).__name__}, not a function or class of environments")
        if render_mode is not None and _accepts(function, "render_mode"):
            kwargs["render_mode"] = render_mode
        free = [name for name in petting.OPTIONS if name in kwargs and not _accepts(function, name, any_name=False)]
        own = {name: kwargs.pop(name) for name in free}
        env = function(**kwargs)
        return self._team(env if petting.is_parallel(env) or not own else function(**kwargs, **own), own)

    def _team(self, env: Any, own: dict[str, Any]) -> gymnasium.Env:
        """The environment itself, or that of a team with its options."""
        if petting.is_parallel(env):
            return petting.TeamEnv(env, self.name, **own)
        if not isinstance(env, gymnasium.Env):
            raise UsageError(f"{self.name} returned {type(env).__name__}, not a gymnasium.Env{peers.vector(env)}")
        for name in ("observation_space", "action_space"):
            if not isinstance(getattr(env, name, None), spaces.Space):
                raise UsageError(f"{self.name} has no {name}: set it to a space of gymnasium.spaces when it is made")
        return env


def registered_id(env: gymnasium.Env) -> str | None:
    """The id that makes an environment like this one; None where wrappers, arguments or changes make it another one.

    A copy is compared with a fresh one: after equal resets and a few equal steps all that they say, and every number
    that they hold, must be equal.
    """
    try:
        spec = env.spec
        registered = gymnasium.registry.get(spec.id) if spec is not None else None
        if spec is None or registered is None or spec.additional_wrappers or set(spec.kwargs) - {"render_mode"}:
            return None
        if (spec.max_episode_steps, spec.entry_point) != (registered.max_episode_steps, registered.entry_point):
            return None
        pair = copy.deepcopy(env), _gym_make(spec.id, None, {})
        told = [_told(one) for one in pair]
        pair[1].close()
    except Exception:  # what cannot be copied, made or played here cannot be compared
        return None
    return spec.id if told[0] == told[1] else None


def _told(env: gymnasium.Env) -> list[str]:
    """What an environment says in a few steps from one start, and the numbers that it holds then, as texts."""
    env.action_space.seed(0)
    told: list[Any] = [env.observation_space, env.action_space, env.reset(seed=0)]
    told += [env.step(env.action_space.sample()) for _ in range(3)]
    plain = (bool, int, float, str, np.ndarray, np.generic)
    held = {key: value for key, value in vars(env.unwrapped).items() if isinstance(value, plain)}
    return [repr(one) for one in [*told, *sorted(held.items())] if "render" not in str(one)[:12]]


def named_function(name: str) -> Callable[..., Any] | None:
    """What a name of polopt's own, or "module:function", stands for; None for a Gymnasium id."""
    where = place(name) or name
    if module := peers.code_file(name):
        raise UsageError(f"'{name}' names a file: say its module, '{module}', in the folder that holds it")
    _, colon, path = where.partition(":")
    if not colon or not all(part.isidentifier() for part in path.split(".")):
        return None
    return imported(where, name)


def is_dataset(name: str) -> bool:
    """Whether a task's name stands for a dataset: one that is here, unless Gymnasium or polopt has the name."""
    return name not in gymnasium.registry and place(name) is None and recorded.is_local(name)


def may_be_remote(name: str) -> bool:
    """Whether a task's name looks like a dataset that is not here and is nothing else, such as D4RL/door/human-v2."""
    elsewhere = name in gymnasium.registry or name.startswith("ALE/") or recorded.is_local(name)
    elsewhere = elsewhere or name.startswith(petting.PREFIX)
    return "/" in name and not elsewhere and bool(recorded.DATASET_ID.fullmatch(name))


def _registered(name: str, render_mode: str | None, kwargs: dict[str, Any]) -> gymnasium.Env:
    try:
        # polopt checks every observation itself; Gymnasium's checker would only add a call to each step.
        return _gym_make(name, render_mode, kwargs)
    except gymnasium.error.Error as error:
        if name in gymnasium.registry:
            raise
        os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")  # MO-Gymnasium imports it, and it prints a greeting
        for package, ids in _REGISTER.items():
            try:
                importlib.import_module(package)
            except ImportError:
                if re.match(ids, name):
                    raise UsageError(_missing(name, package)) from None
        if name in gymnasium.registry:
            return _gym_make(name, render_mode, kwargs)
        known = [*gymnasium.registry, *NAMED, *recorded.local_datasets(), *petting.names()]
        said = " ".join(str(error).split())
        if isinstance(error, gymnasium.error.NameNotFound):
            said = "tasks are ids of Gymnasium, names of 'polopt train --help', or module:function"
        hint = peers.dataset(name) or nearest(name, known) or f": {said}"
        raise UsageError(f"there is no task '{name}'{hint}") from None


def _gym_make(name: str | EnvSpec, render_mode: str | None, kwargs: dict[str, Any]) -> gymnasium.Env:
    with warnings.catch_warnings(), _quiet_mujoco(name):
        for known in (".*is out of date.*", ".*precision lowered.*"):
            warnings.filterwarnings("ignore", message=known)
        return gymnasium.make(name, render_mode=render_mode, disable_env_checker=True, **kwargs)


@contextlib.contextmanager
def _quiet_mujoco(name: str | EnvSpec) -> Iterator[None]:
    """MuJoCo 4 warns, at every start, of an attribute in Gymnasium's own models, which no user can change."""
    spec = gymnasium.registry.get(name) if isinstance(name, str) else name
    if spec is None or not str(spec.entry_point).startswith("gymnasium.envs.mujoco"):
        yield
        return
    import mujoco

    mujoco.set_mju_user_warning(lambda text: None if "deprecated" in text else print(text, file=sys.stderr))
    try:
        yield
    finally:
        mujoco.set_mju_user_warning(None)


def _missing(name: str, said: str) -> str:
    extra = next((extra for key, extra in _EXTRAS.items() if key in said.lower() or key in name.lower()), None)
    said = " ".join(said.split())
    advice = f"""pip install "polopt[{extra}]\"""" if extra else f"the import said: {said}"
    return f"the task '{name}' needs a package that is not installed: {advice}"


def _accepts(function: Callable[..., Any], name: str, *, any_name: bool = True) -> bool:
    """Whether a function has this parameter, or (with `any_name`) takes any keyword."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return False
    return name in parameters or (any_name and any(p.kind is p.VAR_KEYWORD for p in parameters.values()))


# Presets for images. Stacked frames come channels first: uint8 [4, 84, 84].


def image(env: gymnasium.Env, evaluation: bool) -> gymnasium.Env:
    """Gray 84 x 84 images, the last 4 of them; the rendered frame when the observation is no image."""
    if not (isinstance(env.observation_space, spaces.Box) and len(env.observation_space.shape) == 3):
        if env.render_mode in (None, "human"):
            name = type(env.unwrapped).__name__
            raise UsageError(f"the preset 'image' needs a picture, and {name} takes no render_mode 'rgb_array'")
        env = wrappers.AddRenderObservation(env, render_only=True)
    env = wrappers.GrayscaleObservation(env, keep_dim=False)
    env = wrappers.ResizeObservation(env, (84, 84))
    return wrappers.FrameStackObservation(env, 4)


def atari(env: gymnasium.Env, evaluation: bool) -> gymnasium.Env:
    """The usual protocol: up to 30 no-ops, 4 frames per action, gray 84 x 84, FIRE at the start, 4 frames stacked.

    Training also ends an episode at each lost life and signs the rewards; evaluation plays whole games. Sticky actions
    are the environment's own setting (`repeat_action_probability`). Mnih et al. 2015; Machado et al. 2018.
    """
    env = wrappers.AtariPreprocessing(env, noop_max=30, frame_skip=4, screen_size=84, grayscale_obs=True)
    if not evaluation:
        env = EpisodicLife(env)
    if "FIRE" in env.unwrapped.get_action_meanings():  # type: ignore[attr-defined]
        env = FireReset(env)
    if not evaluation:
        env = wrappers.TransformReward(env, lambda reward: float(np.sign(float(reward))))
    return wrappers.FrameStackObservation(env, 4)


PRESETS: dict[str, Callable[[gymnasium.Env, bool], gymnasium.Env]] = {"image": image, "atari": atari}


class EpisodicLife(gymnasium.Wrapper):
    """A lost life terminates the episode; the game itself goes on and is reset only when it is over."""

    across_resets = True  # an episode depends on the one before: the start cannot be restored from a seed

    def __init__(self, env: gymnasium.Env) -> None:
        super().__init__(env)
        self.lives = 0
        self.over = True

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        if self.over:
            obs, info = self.env.reset(**kwargs)
        else:
            obs, _, terminated, truncated, info = self.env.step(0)
            if terminated or truncated:
                obs, info = self.env.reset(**kwargs)
        self.over = False
        self.lives = self.unwrapped.ale.lives()  # type: ignore[attr-defined]
        return obs, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = self.env.step(action)
        self.over = bool(terminated or truncated)
        lives = self.unwrapped.ale.lives()  # type: ignore[attr-defined]
        terminated = bool(terminated) or 0 < lives < self.lives
        self.lives = lives
        return obs, reward, terminated, bool(truncated), info


class FireReset(gymnasium.Wrapper):
    """Presses FIRE after a reset, for games that wait for it."""

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        self.env.reset(**kwargs)
        fire = self.unwrapped.get_action_meanings().index("FIRE")  # type: ignore[attr-defined]
        started, _, terminated, truncated, info = self.env.step(fire)
        return self.env.reset(**kwargs) if terminated or truncated else (started, info)
