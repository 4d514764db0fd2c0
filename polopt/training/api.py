"""`train`, `iterate`, `resume`, `load`, `evaluate`, `compare`: what the command line and scripts call."""

from __future__ import annotations

import inspect
import multiprocessing
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gymnasium
import torch

from polopt import registry
from polopt.config.parse import apply_many, parse_many
from polopt.config.serialize import fields_of, from_dict, to_dict
from polopt.core.errors import CheckpointError, RunError, UsageError
from polopt.core.state import gather, restore
from polopt.data import demonstrations
from polopt.method import Method
from polopt.policies.base import Actor
from polopt.tasks import make_task
from polopt.tasks.base import Task
from polopt.tasks.making import TABULAR, Maker
from polopt.training import files, seeding
from polopt.training.folder import Run, new_folder, write_config
from polopt.training.loggers import check_names, make_loggers
from polopt.training.loop import Row, Trainer
from polopt.training.options import RunOptions, Until

RESERVED = {"num", "seed", "workers", "evaluation"}  # what `make_task` is given here
TaskLike = str | Callable[..., gymnasium.Env] | gymnasium.Env


@dataclass
class Plan:
    """A run before it is built: everything that config.json records."""

    method: str
    task: TaskLike
    config: Any
    options: RunOptions
    task_options: dict[str, Any]
    preset: str | None = None
    init: str | None = None

    def __post_init__(self) -> None:
        if self.options.until:
            Until.parse(self.options.until)
        check_names(self.options.loggers)
        for name in RESERVED & self.task_options.keys():
            raise UsageError(f"--task.{name} cannot be set: polopt chooses it for every environment")

    @property
    def cls(self) -> type[Method]:
        return registry.load(self.method)

    @property
    def steps(self) -> int:
        return self.options.steps or self.cls.default_steps

    def summary(self, folder: Path) -> str:
        """What is about to happen, in one line, before the first step."""
        options = self.options
        return (
            f"{self.method} on {task_name(self.task)}: {self.steps:,} {self.cls.unit}, seed {options.seed}, "
            f"{self.config.envs} environment{'s' * (self.config.envs > 1)}, {options.device}, {options.dtype} "
            f"-> {folder}"
        )

    def record(self) -> dict[str, Any]:
        return {
            "method": self.method,
            "task": task_name(self.task),
            "task_options": self.task_options,
            "steps": self.steps,
            "unit": self.cls.unit,
            "seed": self.options.seed,
            "preset": self.preset,
            "init": self.init,
            "config": to_dict(self.config),
            "sources": {item.name: item.source for item in fields_of(self.config)},
            "run": to_dict(self.options),
        }

    def make_task(self, stream: int, num: int, workers: int = 0) -> Task:
        return make_task(
            self.task,
            num=num,
            seed=seeding.derive(self.options.seed, stream),
            workers=workers,
            evaluation=stream != seeding.TRAIN_TASK,
            **self.task_options,
        )

    def make_renderer(self) -> Callable[..., gymnasium.Env]:
        """A function that makes one environment with pictures, as the task has it. Raises UsageError without one."""
        if isinstance(self.task, str) and self.task in TABULAR:
            raise UsageError(f"{self.task} has no picture")
        options = dict(self.task_options)
        preset = options.pop("preset", None)
        return lambda render_mode="rgb_array": Maker(self.task, options, preset, render_mode, evaluation=True)()

    def build(self, *, prepare: bool = True) -> Method:
        """Builds task and method from the seed, on the device; `prepare` also opens what only training needs."""
        device = _device(self.options.device)
        seeding.seed_everything(self.options.seed)
        task = self.make_task(seeding.TRAIN_TASK, self.config.envs, self.options.workers)
        try:
            method = self.cls(self.config, task)
            if device.type != "cpu":
                method.to(device)
            if prepare:
                method.prepare()
        except BaseException:
            task.close()
            raise
        return method


def plan(
    method: str,
    task: TaskLike,
    *,
    preset: str | None = None,
    init: str | Path | None = None,
    task_options: dict[str, Any] | None = None,
    argv: Sequence[str] | None = None,
    **settings: Any,
) -> Plan:
    """Sorts settings into those of the run and those of the method, and checks every name and value.

    `argv` are further settings, spelled as on the command line.
    """
    cls = registry.load(method)
    if callable(settings.get("network")) and not isinstance(settings["network"], type):
        settings["network"] = {"make": settings["network"]}
    if preset is not None:
        settings["preset"] = preset
    groups: dict[str, Any] = {"run": RunOptions, "method": cls.Config}
    if argv is not None:
        configs, preset = parse_many(groups, argv, presets=cls.presets)
        groups, given = dict(configs), preset
    configs, preset = apply_many(groups, settings, presets=cls.presets)
    return Plan(
        method,
        task,
        configs["method"],
        configs["run"],
        dict(task_options or {}),
        preset or (given if argv is not None else None),
        None if init is None else str(init),
    )


def task_name(task: TaskLike) -> str:
    """A task by name, as `--task` would take it; what cannot be named again is shown in angle brackets."""
    if isinstance(task, str):
        return task
    if inspect.isfunction(task) and "<" not in task.__qualname__ and task.__module__ != "__main__":
        return f"{task.__module__}:{task.__qualname__}"
    if isinstance(task, gymnasium.Env):  # wrappers and arguments are its own: the id alone would be another task
        return f"<{task.spec.id if task.spec else type(task.unwrapped).__name__}>"
    return f"<{getattr(task, '__qualname__', type(task).__name__)}>"


def iterate(
    method: str,
    task: TaskLike,
    *,
    out: str | Path | None = None,
    init: str | Path | None = None,
    preset: str | None = None,
    task_options: dict[str, Any] | None = None,
    **settings: Any,
) -> Iterator[Row]:
    """Trains like `train`, yielding each logged row; `row["method"]` is the live method and `row["run"]` the folder."""
    planned = plan(method, task, preset=preset, init=init, task_options=task_options, **settings)
    folder = new_folder(None if out is None else Path(out), method, task_name(task), planned.options.seed)
    yield from start(planned, folder)


def train(
    method: str,
    task: TaskLike,
    *,
    steps: int | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    init: str | Path | None = None,
    preset: str | None = None,
    task_options: dict[str, Any] | None = None,
    progress: bool = False,
    **settings: Any,
) -> Run:
    """Trains a method on a task and returns the run.

    Args:
        method: a name of `polopt methods`.
        task: a Gymnasium id, a tabular task, "module:function", a callable that returns an environment, or an
            environment.
        steps: budget in the method's unit. seed: everything random in the run follows from it.
        out: run folder; by default runs/METHOD-TASK-sSEED.
        init: a run folder whose weights to start from, wherever names and shapes agree.
        preset: a named setting of the method.
        task_options: keyword arguments of the environment.
        progress: show a live display.
        settings: fields of the run's options (`device`, `eval_every`, `until`, ...) and of the method's config; nested
            fields as dicts, dataclasses or dotted names. `network` may be a callable (inputs, outputs) -> nn.Module.

    Raises:
        UsageError: wrong names or values, or a policy that cannot serve the method.
        RunError: the run failed; what was saved before is untouched.
    """
    if steps is not None:
        settings["steps"] = steps
    planned = plan(method, task, preset=preset, init=init, task_options=task_options, seed=seed, **settings)
    folder = new_folder(None if out is None else Path(out), method, task_name(task), seed)
    return finish(start(planned, folder), folder, progress=progress)


def start(planned: Plan, folder: Path) -> Iterator[Row]:
    """Runs a new plan in its folder."""
    with _runtime(planned.options):
        try:
            method = planned.build()
            _check_budget(method, planned.steps)
            if planned.init is not None:
                _initialize(method, Path(planned.init))
            write_config(folder, planned.record())
        except Exception:
            with suppress(OSError):
                folder.rmdir()  # if it is still empty: nothing is left of a run that never began
            raise
        yield from _rows(planned, method, folder, None)


def resume(
    folder: str | Path,
    *,
    extend: int | None = None,
    checkpoint: int | None = None,
    task: TaskLike | None = None,
    network: Any = None,
    progress: bool = False,
) -> Run:
    """Continues a run from its last checkpoint; on the CPU with bitwise the weights of a run never stopped.

    A run that was stopped before its first checkpoint starts again.

    Args:
        folder: the run folder.
        extend: a new, larger total budget; schedules then run over the new total.
        checkpoint: continue from this older checkpoint instead of the latest.
        task, network: the environment and the network again, when they were code of your own.

    Raises:
        UsageError: no run there, no such checkpoint, or a smaller budget.
        CheckpointError: the checkpoint is damaged (the sentence names the good one before it).
    """
    run = Run(Path(folder))
    planned = read_plan(run, task, network)
    if extend is not None:
        if extend <= planned.steps:
            raise UsageError(f"--extend {extend} is not more than the {planned.steps:,} steps of this run")
        planned.options = replace(planned.options, steps=extend)
    steps = run.checkpoints.steps()
    if checkpoint is not None and checkpoint not in steps:
        raise UsageError(f"{folder} has no checkpoint {checkpoint}, only {', '.join(map(str, steps)) or 'none'}")
    if not steps:
        return finish(start(planned, run.folder), run.folder, progress=progress)
    chosen = steps[-1] if checkpoint is None else checkpoint
    return finish(_resumed(planned, run.folder, chosen, extend is not None), run.folder, progress=progress)


def _resumed(planned: Plan, folder: Path, step: int, extended: bool) -> Iterator[Row]:
    with _runtime(planned.options):
        method = planned.build()
        yield from _rows(planned, method, folder, step, rewrite=extended)


def _rows(planned: Plan, method: Method, folder: Path, step: int | None, *, rewrite: bool = False) -> Iterator[Row]:
    options = planned.options
    if options.compile:
        method.compile()
    eval_task = planned.make_task(seeding.EVAL_TASK, min(options.eval_episodes, 10))
    trainer = Trainer(method, planned.steps, options, Run(folder).checkpoints, eval_task, [])
    try:
        if step is not None:
            trainer.load(step)
            if rewrite:
                trainer.stopped = False
                write_config(folder, planned.record())
        if step is None or not trainer.finished:  # a finished run is left as it is
            purge = 0 if step is None else step + 1
            trainer._loggers += make_loggers(options.loggers, folder, planned.record(), trainer.rows, purge)
            if not method.task.exact_restore:
                warnings.warn(method.task.restore_note, stacklevel=2)
            for row in trainer.run():
                yield row | {"method": method, "run": Run(folder), "steps": planned.steps}
    finally:
        for logger in trainer._loggers:
            logger.close()
        for task in (eval_task, method.task):
            task.close()


def finish(rows: Iterator[Row], folder: Path, *, progress: bool) -> Run:
    if progress:
        from polopt.training.progress import show

        rows = show(rows)
    for _ in rows:
        pass
    return Run(folder)


def read_plan(run: Run, task: TaskLike | None = None, network: Any = None) -> Plan:
    """The plan that a run folder records.

    A folder may come from anyone, so reading it imports no code that it names: a task or a network given as
    "module:function" or as an object must be given again. Raises UsageError when it is not.
    """
    record = run.config
    texts, tables = ("method", "task"), ("config", "run", "task_options")
    wrong = [key for key in texts if not isinstance(record.get(key), str)]
    wrong += [key for key in tables if not isinstance(record.get(key), dict)]
    if wrong:
        raise RunError(f"{run.folder / 'config.json'} is damaged: it has no '{wrong[0]}'")
    name = record["task"]
    if task is None and (":" in name or name.startswith("<")):
        again = f"--task {name}" if ":" in name else "task="
        raise UsageError(f"{run.folder} was trained on code of yours, {name}: say it again with {again}")
    cls = registry.load(record["method"])
    return Plan(
        record["method"],
        name if task is None else task,
        from_dict(cls.Config, record["config"], again={} if network is None else {"network.make": network}),
        from_dict(RunOptions, record["run"]),
        record["task_options"],
        record.get("preset"),
        record.get("init"),
    )


def load(folder: str | Path, *, checkpoint: str = "latest", task: TaskLike | None = None, network: Any = None) -> Actor:
    """The trained actor of a run; `actor.predict(obs)` serves one numpy observation.

    Args:
        checkpoint: "latest" or "best" (by evaluation return).
        task, network: the environment and the network again, when they were code of your own.
    """
    method, _ = load_method(Path(folder), checkpoint, task, network)
    return method.policy


def load_method(
    folder: Path, checkpoint: str = "latest", task: TaskLike | None = None, network: Any = None
) -> tuple[Method, Plan]:
    """Builds a run's method and loads its weights (of the best checkpoint the policy only), not its replay."""
    run = Run(folder)
    planned = read_plan(run, task, network)
    kinds = {"latest": "step", "best": "best"}
    if checkpoint not in kinds:
        raise UsageError(f"there is no checkpoint '{checkpoint}'; choose latest or best")
    steps = run.checkpoints.steps(kinds[checkpoint])
    if not steps:
        raise UsageError(f"{folder} has no {checkpoint} checkpoint yet")
    state = run.checkpoints.load(steps[-1], kinds[checkpoint], blobs=False)
    with _runtime(planned.options):
        method = planned.build(prepare=False)
        method.task.close()
        try:
            if checkpoint == "best":
                restore(method.policy, state, "policy")
            else:
                _restore_weights(method, _method_state(state))
        except CheckpointError as error:
            where = run.checkpoints.path(steps[-1], kinds[checkpoint])
            raise CheckpointError(f"checkpoint {where} does not fit {run.folder / 'config.json'}: {error}") from error
    return method, planned


def _restore_weights(method: Method, state: dict[str, Any]) -> None:
    """Loads every tensor that the method has. Raises CheckpointError when one of the policy is not there."""
    used = restore(method, state, strict=False)
    for path, leaf in gather(method).items():
        if path.startswith("policy.") and isinstance(leaf, torch.Tensor) and path not in used:
            raise CheckpointError(f"it has no '{path}' of the shape {tuple(leaf.shape)}")


def _method_state(state: dict[str, Any]) -> dict[str, Any]:
    return {name.removeprefix("method."): leaf for name, leaf in state.items() if name.startswith("method.")}


def evaluate(
    folder: str | Path,
    *,
    episodes: int = 10,
    checkpoint: str = "latest",
    stochastic: bool = False,
    task: TaskLike | None = None,
    network: Any = None,
) -> dict[str, float]:
    """Returns of a saved policy over whole episodes, from starts that neither training nor its evaluations used."""
    method, planned = load_method(Path(folder), checkpoint, task, network)
    with _runtime(planned.options):
        fresh = planned.make_task(seeding.TEST_TASK, min(episodes, 10))
        try:
            return method.evaluate(fresh, episodes, greedy=not stochastic)
        finally:
            fresh.close()


@dataclass(frozen=True)
class Comparison:
    """The runs of `compare`, the table over seeds as text, and the report page."""

    runs: list[Run]
    table: str
    page: Path


def demonstrate(
    folder: str | Path,
    file: str | Path,
    *,
    episodes: int = 10,
    checkpoint: str = "latest",
    stochastic: bool = False,
    task: TaskLike | None = None,
    network: Any = None,
) -> Path:
    """Records the episodes that `evaluate` scores to one safetensors file of demonstrations, which `bc` learns from."""
    method, planned = load_method(Path(folder), checkpoint, task, network)
    with _runtime(planned.options):
        fresh = planned.make_task(seeding.TEST_TASK, min(episodes, 10))
        try:
            data = demonstrations.record(method.policy, fresh, episodes, greedy=not stochastic)
        finally:
            fresh.close()
    file = Path(file)
    files.make_folder(file.parent)
    demonstrations.save_demonstrations(file, data, method.spec)
    return file


def compare(
    methods: Sequence[str],
    task: TaskLike,
    *,
    seeds: int = 5,
    jobs: int = 1,
    out: str | Path | None = None,
    progress: bool = False,
    **settings: Any,
) -> Comparison:
    """Trains every method with the same seeds 0..seeds-1 and writes one report; what is finished is not run again.

    Args:
        jobs: runs at a time, each in a process of its own with one torch thread.
        out: the folder that holds the runs, out/METHOD-sSEED, and report.html.
        settings: as for `train`; every method must have the fields that are named.
    """
    from polopt.report import compare_table

    folder = Path(out) if out is not None else Path("runs") / f"compare-{task_name(task)}".replace(":", "_")
    for method in methods:
        plan(method, task, **settings)  # wrong names are found before hours are spent
    todo = [(method, seed, folder / f"{method}-s{seed}") for seed in range(seeds) for method in methods]
    if jobs == 1:
        for method, seed, place in todo:
            _train_or_resume(method, task, seed, place, settings, progress)
    else:
        with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
            waiting = [
                pool.submit(_train_or_resume, method, task, seed, place, {"threads": 1} | settings, False)
                for method, seed, place in todo
            ]
            for number, future in enumerate(as_completed(waiting), 1):
                future.result()
                if progress:
                    print(f"{number} of {len(todo)} runs done", file=sys.stderr)
    places = [place for _, _, place in todo]
    return Comparison([Run(place) for place in places], compare_table(places), report(places, folder / "report.html"))


def report(
    folders: Sequence[str | Path],
    out: str | Path | None = None,
    *,
    video: bool = True,
    task: TaskLike | None = None,
    network: Any = None,
) -> Path:
    """Writes one self-contained HTML page; of one run by default into its folder, of many into the current one.

    Args:
        video: record one of the policy for the page of a single run that has none yet.
        task, network: the environment and the network again, when they were code of your own.
    """
    from polopt.report import write_report

    places = [Path(folder) for folder in folders]
    for place in places:
        Run(place).config  # noqa: B018  a folder that is no run is refused before anything is written
    if video and len(places) == 1 and not list((places[0] / "videos").glob("*.mp4")):
        record(places[0], task=task, network=network)
    target = Path(out) if out is not None else (places[0] if len(places) == 1 else Path(".")) / "report.html"
    return write_report(places, target)


def record(folder: str | Path, *, seconds: float = 20, task: TaskLike | None = None, network: Any = None) -> Path | str:
    """Records one greedy episode of the trained policy into videos/; returns the path, or why there is no video."""
    from polopt.report.video import record_video

    run = Run(Path(folder))
    try:
        method, planned = load_method(run.folder, "latest", task, network)
        with _runtime(planned.options):
            maker = planned.make_renderer()
            name = f"step-{run.checkpoints.steps()[-1]:09d}.mp4"
            seed = seeding.derive(planned.options.seed, seeding.TEST_TASK)
            video = record_video(method.policy, maker, run.folder / "videos" / name, seed, seconds=seconds)
    except UsageError as error:
        video = f"No video: {error}."
    if isinstance(video, str):
        files.make_folder(run.folder / "videos")
        files.replace(run.folder / "videos" / "none.txt", video.encode())
    return video


def _train_or_resume(
    method: str, task: TaskLike, seed: int, place: Path, settings: dict[str, Any], progress: bool
) -> None:
    if (place / "config.json").exists():
        before, now = Run(place).config, plan(method, task, seed=seed, **settings).record()
        for key in ("method", "task", "task_options", "steps", "seed", "config"):
            if before.get(key) != now[key]:
                raise UsageError(f"{place} holds a run with another {key}: choose another --out, or remove it")
        network = settings.get("network")
        resume(place, task=task, network=network if callable(network) else None, progress=progress)
        return
    train(method, task, seed=seed, out=place, progress=progress, **settings)


@contextmanager
def _runtime(options: RunOptions) -> Iterator[None]:
    """Precision and threads of a run, put back afterwards."""
    before = torch.get_default_dtype(), torch.get_num_threads()
    try:
        torch.set_default_dtype(getattr(torch, options.dtype))
        if options.threads is not None:
            torch.set_num_threads(options.threads)
        yield
    finally:
        torch.set_default_dtype(before[0])
        torch.set_num_threads(before[1])


def _device(name: str) -> torch.device:
    """The device of this name, "auto" the best there is. Raises UsageError when this machine has none such."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise UsageError(f"--device {name} cannot be used here: {reason}") from error
    return device


def _check_budget(method: Method, steps: int) -> None:
    warmup = getattr(method.source, "warmup", 0)
    if method.unit == "env_steps" and warmup >= steps:
        raise UsageError(
            f"--steps {steps:,} ends within the {warmup:,} random steps of the warm-up: nothing would be learned; "
            f"raise --steps or lower --warmup"
        )


def _initialize(method: Method, folder: Path) -> None:
    run = Run(folder)
    steps = run.checkpoints.steps() if run.config else []
    if not steps:
        raise UsageError(f"--init {folder} has no checkpoint")
    state = _method_state(run.checkpoints.load(steps[-1]))
    used = restore(method, state, strict=False)
    if not any(state[path].dim() > 1 for path in used):  # a bias or two fits almost anywhere
        raise UsageError(f"--init {folder}: nothing there has the names and shapes of this run")
