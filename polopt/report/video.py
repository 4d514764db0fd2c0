"""A video of one greedy episode: H.264 in MP4, which every browser plays. Never a reason for a run to fail."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from polopt.core import files

MAX_FPS = 30


def record_video(
    actor: Any,
    task: str | Callable[..., gymnasium.Env] | gymnasium.Env,
    path: Path,
    seed: int = 0,
    *,
    seconds: float = 20,
    fps: float | None = None,
    kwargs: Mapping[str, Any] | None = None,
    patience: float = 60,
) -> Path | str:
    """Plays one greedy episode and writes it; returns the path, or one sentence that says why there is no video.

    Args:
        actor: anything with `predict(obs) -> action` for one observation; `reset()` is called where it has one.
        task: a Gymnasium id, "module:function", a callable that takes `render_mode="rgb_array"`, or an environment
            (made again from its spec).
        path: the .mp4 file; beside it a .json keeps return, length and seed of the episode.
        seed: of the environment's reset.
        seconds: the video stops after this time, the episode's own end permitting.
        fps: frames per second; by default the environment's own, thinned to at most 30.
        kwargs: of the environment.
        patience: the video stops after this much time of work, in seconds, however slow the renderer is.
    """
    try:
        return _record(actor, task, Path(path), seed, seconds, fps, dict(kwargs or {}), patience)
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        return f"No video: {reason.rstrip('.')}."


def _record(
    actor: Any,
    task: Any,
    path: Path,
    seed: int,
    seconds: float,
    fps: float | None,
    kwargs: dict[str, Any],
    patience: float,
) -> Path | str:
    import torch

    _prepare_display()
    with torch.random.fork_rng(devices=[]):
        env = _make(task, kwargs)
        try:
            if env.render_mode != "rgb_array":
                return f"No video: {_name(task)} does not render to arrays (render_mode is {env.render_mode})."
            _lighten(env)
            env.reset(seed=seed)
            _follow(env)
            own = float(fps or env.metadata.get("render_fps") or MAX_FPS)
            every = max(1, round(own / MAX_FPS)) if fps is None else 1
            return _play(actor, env, path, seed, round(seconds * own), every, own / every, patience)
        finally:
            env.close()
            if hasattr(actor, "reset"):
                actor.reset()


def _lighten(env: gymnasium.Env) -> None:
    """Turns down what costs a software renderer most of MuJoCo's time; 5 times faster, hardly to be seen."""
    visual = getattr(getattr(env.unwrapped, "model", None), "vis", None)
    if visual is not None:
        visual.quality.shadowsize = 1024
        visual.quality.offsamples = 0
        model: Any = env.unwrapped.model  # type: ignore[attr-defined]
        model.mat_reflectance[:] = 0
        for plane in (model.geom_type == 0).nonzero()[0]:  # drawn without end, as they are felt, at the same scale
            width, material = 2 * model.geom_size[plane, :2], model.geom_matid[plane]
            if (width > 0).all() and material >= 0:
                model.mat_texrepeat[material] /= width
                model.geom_size[plane, :2] = 0


def _follow(env: gymnasium.Env) -> None:
    """Lets MuJoCo's free camera follow the robot where the model has a camera that should: robots run out of sight."""
    model: Any = getattr(env.unwrapped, "model", None)
    renderer: Any = getattr(env.unwrapped, "mujoco_renderer", None)
    if renderer is None or "track" not in [model.camera(index).name for index in range(model.ncam)]:
        return
    import mujoco

    env.render()  # makes the viewer
    camera = renderer._get_viewer("rgb_array").cam
    renderer.camera_id = None  # with a number, rendering would set the camera back
    camera.type = mujoco.mjtCamera.mjCAMERA_TRACKING
    camera.trackbodyid = max(camera.trackbodyid, 1)
    camera.elevation = max(camera.elevation, -20.0)


def _play(
    actor: Any, env: gymnasium.Env, path: Path, seed: int, limit: int, every: int, fps: float, patience: float
) -> Path | str:
    import imageio.v2 as imageio

    files.make_folder(path.parent)
    partial = path.with_name(f".{path.stem}.partial.mp4")
    if hasattr(actor, "reset"):
        actor.reset()
    obs, _ = env.reset(seed=seed)
    total, length, over = 0.0, 0, False
    end = time.monotonic() + patience
    writer = imageio.get_writer(
        partial, format="FFMPEG", fps=fps, codec="libx264", pixelformat="yuv420p", macro_block_size=1,
        ffmpeg_log_level="error", output_params=["-crf", "26", "-movflags", "+faststart"],
    )  # fmt: skip
    try:
        try:
            writer.append_data(_frame(env))
            while not over and length < limit and time.monotonic() < end:
                obs, reward, terminated, truncated, _ = env.step(actor.predict(obs))
                total, length, over = total + float(reward), length + 1, bool(terminated or truncated)
                if length % every == 0 or over:
                    writer.append_data(_frame(env))
        except BaseException:
            with suppress(Exception):  # what ffmpeg says to half a video must not take the place of a Ctrl-C
                writer.close()  # as a context manager it would leave ffmpeg running after an error
            raise
        writer.close()
        files.rename(partial, path)
    finally:
        files.remove(partial)
    facts = {"seed": seed, "return": total, "length": length, "whole_episode": over}
    files.replace(path.with_suffix(".json"), json.dumps(facts).encode())
    return path


def _frame(env: gymnasium.Env) -> np.ndarray:
    """One RGB frame with even sides, which yuv420p asks for."""
    frame = np.asarray(env.render())
    if frame.ndim != 3 or frame.shape[-1] != 3:
        raise ValueError(f"a frame has shape {frame.shape}, not [height, width, 3]")
    return np.pad(frame, ((0, frame.shape[0] % 2), (0, frame.shape[1] % 2), (0, 0)), mode="edge").astype(np.uint8)


def _make(task: Any, kwargs: dict[str, Any]) -> gymnasium.Env:
    if isinstance(task, gymnasium.Env):
        if task.spec is None:
            raise ValueError("this environment has no spec to make a second one from")
        return gymnasium.make(task.spec, render_mode="rgb_array", **kwargs)
    if isinstance(task, str) and ":" in task and task not in gymnasium.registry:
        module, _, function = task.partition(":")
        found = getattr(importlib.import_module(module), function, None)
        if found is None:  # "module:EnvironmentId-v0", Gymnasium's own way to import a plug-in first
            return gymnasium.make(task, render_mode="rgb_array", **kwargs)
        task = found
    if isinstance(task, str):
        return gymnasium.make(task, render_mode="rgb_array", **kwargs)
    try:
        return task(render_mode="rgb_array", **kwargs)
    except TypeError:
        return task(**kwargs)


def _name(task: Any) -> str:
    return task if isinstance(task, str) else getattr(task, "__name__", type(task).__name__)


def _prepare_display() -> None:
    """Without a display: MuJoCo renders by EGL, else OSMesa; SDL draws to memory."""
    if not sys.platform.startswith("linux") or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"):
        return
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    os.environ.setdefault("SDL_AUDIODRIVER", "dummy")
    if "MUJOCO_GL" not in os.environ and importlib.util.find_spec("mujoco") is not None:
        backend = _mujoco_backend()
        if backend is not None:
            os.environ["MUJOCO_GL"] = backend


@functools.cache
def _mujoco_backend() -> str | None:
    """The first that works, tried in a process of its own: a GL library that fails may take its process with it."""
    for backend in ("egl", "osmesa"):
        code = f"import mujoco.{backend} as gl; c = gl.GLContext(64, 64); c.make_current(); c.free()"
        try:
            done = subprocess.run(
                [sys.executable, "-c", code], env=os.environ | {"MUJOCO_GL": backend}, capture_output=True, timeout=60
            )
        except (OSError, subprocess.SubprocessError):
            continue
        if done.returncode == 0:
            return backend
    return None
