"""A run before it is built: names and values checked, and all that config.json records."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import gymnasium
import torch

from polopt import registry
from polopt.bases.method import Method
from polopt.config.parse import apply_many, parse_many
from polopt.config.serialize import AGAIN, fields_of, from_dict, to_dict
from polopt.core import memory, ranks
from polopt.core.errors import RunError, UsageError, nearest
from polopt.core.numeric import flushes_denormal
from polopt.policies.pretrained import kept_model
from polopt.tasks import make_task
from polopt.tasks.agents import AgentRows
from polopt.tasks.arrays import is_arrays
from polopt.tasks.base import Task
from polopt.tasks.described import NotHere
from polopt.tasks.gym import GymTask
from polopt.tasks.making import Maker, registered_id
from polopt.tasks.named import is_text, own_class
from polopt.tasks.rewards import own_code
from polopt.training import launch, seeding
from polopt.training.devices import named_device
from polopt.training.folder import Run
from polopt.training.loggers import check_names
from polopt.training.options import RunOptions, Until
from polopt.training.sharding import shard

ARRAYS = "<arrays>"  # the name of a task that is a dict of them
RESERVED = {"num", "seed", "workers", "evaluation"}  # what `make_task` is given here
TaskLike = str | Callable[..., gymnasium.Env] | gymnasium.Env | Mapping[str, Any]


@dataclass(frozen=True)
class OwnCode:
    """Code of one's own, to be given again wherever a run folder is read: a folder may come from anyone, so reading it
    runs nothing that it names.

    Attributes:
        task: the environment, when it was "module:function" or an object.
        network: the network's `make`, likewise.
        rewards: the reward functions of a text task, likewise.
        judge: the judge of pairs of answers, likewise.
        tables: the policies of a class, likewise.
        criterion: what weighs groups of completions, likewise.
        overseer: who is asked before every decision, likewise.
        trust_remote_code: run the code that the run's model brings.
    """

    task: TaskLike | None = None
    network: Any = None
    rewards: Any = None
    judge: Any = None
    tables: Any = None
    criterion: Any = None
    overseer: Any = None
    trust_remote_code: bool = False

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> OwnCode:
        """From keyword arguments. Raises UsageError for an unknown name."""
        known = [item.name for item in fields(cls)]
        for name in given:
            if name not in known:
                raise UsageError(f"there is no option '{name}'{nearest(name, known)}")
        return cls(**given)


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
        if self.options.eval_episodes is None:
            self.options = replace(self.options, eval_episodes=self.cls.eval_episodes)
        if "facts" in self.task_options:
            raise UsageError("--task.facts is written --facts: no environment is given it")
        launch.check(self.cls, self.config, self.options)
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
        derived = "".join(f"; {n:,} {name}" for name, n in self.cls.derived(self.config, self.steps).items())
        copies = f"{self.config.envs} environment{'s' * (self.config.envs > 1)}"
        if is_arrays(self.task):
            copies = "no environment: evaluated on held-out decisions, without a return"
        shared = f", {options.processes} processes" if options.processes > 1 else ""
        shared += ", sharded" if options.shard else ""
        return (
            f"{self.method} on {task_name(self.task)}: {self.steps:,} {self.cls.unit}, seed {options.seed}, "
            f"{copies}, {options.device}{shared}, {options.dtype}{derived} -> {folder}"
        )

    def record(self, method: Method | None = None) -> dict[str, Any]:
        """What config.json says; of the `method` that was built, also what it is judged by where that is its task's."""
        return {
            "method": self.method,
            "task": task_name(self.task),
            "task_options": self.task_options | self._reward_names(),
            "steps": self.steps,
            "unit": self.cls.unit,
            "score": self.cls.score if method is None else method.judged_by.name,
            "measured_by": {key: list(names) for key, names in self.cls.measured_by.items()},
            "seed": self.options.seed,
            "preset": self.preset,
            "init": self.init,
            "config": to_dict(self.config),
            "sources": self._sources(),
            "run": to_dict(self.options),
        }

    def _reward_names(self) -> dict[str, Any]:
        """The reward functions that are Python objects, as config.json names them."""
        rewards = rewards_of(self.task, self.task_options)
        if isinstance(rewards, (list, tuple)):
            return {"rewards": [task_name(function) for function in rewards]}
        return {"rewards": task_name(rewards)} if callable(rewards) else {}

    def _sources(self) -> dict[str, str]:
        """Where each number of the config comes from: the source of its default, or this run."""
        usual = {item.name: item.default for item in fields_of(type(self.config)) if not item.choice}
        return {
            item.name: item.source if item.default == usual.get(item.name, item.default) else "this run"
            for item in fields_of(self.config)
        }

    def make_task(self, stream: int, num: int, workers: int = 0) -> Task:
        """The task as the method takes it: of a team, every agent is a row, unless the method is one of teams."""
        task = make_task(
            self.task,
            num=num,
            seed=seeding.derive(self.options.seed, stream),
            workers=workers,
            evaluation=stream != seeding.TRAIN_TASK,
            facts=self.options.facts,
            objective_weights=self.options.objective_weights,
            **self.task_options,
        )
        if stream != seeding.TRAIN_TASK:
            task.longest = self.options.eval_length
        return task if task.spec.agents == 1 or self.cls.teams == "joint" else AgentRows(task)

    def make_renderer(self) -> Callable[..., gymnasium.Env]:
        """A function that makes one environment with pictures, as the task has it. Raises UsageError without one."""
        check_picture(task := self.task)
        options = dict(self.task_options)
        preset = options.pop("preset", None)
        if isinstance(task, Mapping):
            raise UsageError("recorded arrays have no picture")
        return lambda render_mode="rgb_array": Maker(task, options, preset, render_mode, evaluation=True)()

    def build(self, *, prepare: bool = True, kept: Path | None = None, task: Task | None = None) -> Method:
        """Builds task and method from the seed, on the device; `prepare` also opens what only training needs.

        `task` takes the place of the one that would be made.
        `kept` is the folder in which a run that is read back keeps all of its language model but the weights: a
        checkpoint is to be loaded then. Where a method has several models, each is read from where it came.
        """
        device = named_device(self.options.device)
        seeding.seed_everything(self.options.seed)
        task = task or self.make_task(seeding.TRAIN_TASK, self.config.envs, self.options.workers)
        try:
            with kept_model(kept if len(_models(to_dict(self.config))) == 1 else None):
                method = self.cls(self.config, task)
            if self.options.shard and ranks.count() > 1:
                shard(method, device)
            if device.type != "cpu":
                method.to(device)
            if prepare:
                method.prepare_all()
        except BaseException:
            task.close()
            raise
        return method


def plan(
    method: str,
    task: TaskLike | None = None,
    *,
    preset: str | None = None,
    init: str | Path | None = None,
    task_options: dict[str, Any] | None = None,
    argv: Sequence[str] | None = None,
    **settings: Any,
) -> Plan:
    """Sorts settings into those of the run and those of the method, and checks every name and value.

    `argv` are further settings, spelled as on the command line. Without a task it is that of the preset's study.
    """
    cls = registry.load(method)
    if callable(settings.get("network")) and not isinstance(settings["network"], type):
        settings["network"] = {"make": settings["network"]}
    if preset is not None:
        settings["preset"] = preset
    groups: dict[str, Any] = {"run": RunOptions, "method": cls.Config}
    typed = None  # the preset of the command line
    if argv is not None:
        groups, typed = parse_many(groups, argv, presets=cls.presets)
    configs, preset = apply_many(groups, settings, presets=cls.presets)
    if configs["run"].video:
        raise UsageError("video is an option of 'polopt train': elsewhere polopt.report(folder) records one of a run")
    options: RunOptions = launch.join(configs["run"])
    if task is None:
        task, task_options, options = studied(method, preset or typed, dict(task_options or {}), options)
    return Plan(
        method,
        task,
        configs["method"],
        options,
        dict(task_options or {}),
        preset or typed,
        None if init is None else str(init),
    )


def studied(
    method: str, preset: str | None, task_options: dict[str, Any], options: RunOptions
) -> tuple[str, dict[str, Any], RunOptions]:
    """The task, its options and those of a run that is given no task: of the study of its preset, with what was given
    in their place. Raises UsageError for a preset without a study."""
    cls = registry.load(method)
    study = cls.studies.get(preset or "")
    if study is None:
        told = f"polopt train {method} needs --task, for example --task {cls.smoke.task}"
        named = " or ".join(f"--preset {name}" for name in cls.studies)
        raise UsageError(f"{told}{f', or {named}, which brings its own' if named else ''}")
    return study.task, study.task_options | task_options, replace(options, steps=options.steps or study.steps)


def task_name(task: TaskLike) -> str:
    """A task by name, as `--task` would take it; what cannot be named again is shown in angle brackets.

    Reward functions are named likewise.
    """
    if isinstance(task, str):
        return task
    if isinstance(task, Mapping):
        return ARRAYS
    if inspect.isfunction(task) and "<" not in task.__qualname__ and task.__module__ != "__main__":
        return f"{task.__module__}:{task.__qualname__}"
    if isinstance(task, gymnasium.Env):  # wrappers and arguments are its own: the id alone would be another task
        if (known := registered_id(task)) is not None:
            return known
        return f"<{task.spec.id if task.spec else type(task.unwrapped).__name__}>"
    return f"<{getattr(task, '__qualname__', type(task).__name__)}>"


def check_picture(task: Any) -> None:
    """Raises UsageError for a task that can only be written down."""
    found = own_class(task)
    if found is not None and issubclass(found, Task) and not issubclass(found, GymTask):
        raise UsageError(f"{task} has no picture")


def rewards_of(task: TaskLike, options: Mapping[str, Any]) -> Any:
    """The reward functions among the options of a text task; None for another task, whose options are its own."""
    return options.get("rewards") if is_text(task) else None


def read_plan(run: Run, own: OwnCode, *, alone: bool = False) -> Plan:
    """The plan that a run folder records. Raises UsageError when it needs code that `own` does not give again.

    `alone`: it is to build the policy only, of the spaces that the folder keeps. The environment, reward functions,
    judges, criteria and overseers are not asked for then.
    """
    record = run.config
    texts, tables = ("method", "task"), ("config", "run", "task_options")
    wrong = [key for key in texts if not isinstance(record.get(key), str)]
    wrong += [key for key in tables if not isinstance(record.get(key), dict)]
    if wrong:
        raise RunError(f"{run.folder / 'config.json'} is damaged: it has no '{wrong[0]}'")
    name = record["task"]
    if not alone and own.task is None and name == ARRAYS:
        raise UsageError(f"{run.folder} was trained on a dict of arrays: give it again with task=")
    if not alone and own.task is None and (":" in name or name.startswith("<")):
        how = f"--task {name}" if ":" in name else "task="
        raise UsageError(f"{run.folder} was trained on code of yours, {name}: say it again with {how}")
    chosen, options = name if own.task is None else own.task, record["task_options"]
    if own.rewards is not None:
        if not is_text(chosen):
            raise UsageError(f"{task_name(chosen)} is no text task: it takes no rewards")
        options = options | {"rewards": own.rewards}
    elif not alone and own_code(named := rewards_of(chosen, options)):
        names = ",".join(map(str, named)) if isinstance(named, list) else str(named)
        how = "rewards=" if "<" in names else f"--rewards {names}"
        raise UsageError(f"{run.folder} was trained with rewards of yours, {names}: say them again with {how}")
    if _trusts(record["config"]) and not own.trust_remote_code:
        raise UsageError(f"{run.folder} runs Python code that its model brings: say it again with --trust-remote-code")
    cls = registry.load(record["method"])
    codes = {"network.make": own.network} | {last: getattr(own, name) for last, name in AGAIN.items()}
    again = {path: code for path, code in codes.items() if code is not None}
    if alone:
        again = _placeholders(record["config"]) | again
    return Plan(
        record["method"],
        chosen,
        from_dict(cls.Config, record["config"], again=again),
        from_dict(RunOptions, record["run"]),
        options,
        record.get("preset"),
        record.get("init"),
    )


def _placeholders(config: Any, path: str = "") -> dict[str, Callable[..., Any]]:
    """For every judge, criterion and overseer of one's own in a recorded config, by its path, one that only says what
    it was."""
    if not isinstance(config, dict):
        return {}
    if config.keys() == {"callable"} and path.rpartition(".")[2] in ("judge", "criterion", "ask"):
        return {path: _Placeholder(path, config["callable"])}
    parts = (_placeholders(part, f"{path}.{key}" if path else key) for key, part in config.items())
    return {where: code for part in parts for where, code in part.items()}


@dataclass(frozen=True)
class _Placeholder:
    path: str
    name: str

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise NotHere(f"{self.path} was {self.name}, which is not here: only the policy was loaded")


def _trusts(config: Any) -> bool:
    """Whether a recorded config allows a model to bring Python code."""
    if isinstance(config, dict):
        return bool(config.get("trust_remote_code")) or any(map(_trusts, config.values()))
    return isinstance(config, list) and any(map(_trusts, config))


def _models(config: Any) -> set[str]:
    """The names of the language models in a recorded config."""
    if not isinstance(config, dict):
        return set().union(*map(_models, config)) if isinstance(config, list) else set()
    own = {config["model"]} if isinstance(config.get("model"), str) and config["model"] else set()
    return own.union(*map(_models, config.values()))


@contextmanager
def runtime(options: RunOptions) -> Iterator[None]:
    """Precision, threads, memory and parts of a run, put back afterwards.

    Numbers too small for their type's normal form count as 0: of units that are never active Adam's averages shrink to
    such numbers, with which a processor computes a hundred times as long.
    """
    before, flushed = (torch.get_default_dtype(), torch.get_num_threads()), flushes_denormal()
    try:
        torch.set_flush_denormal(True)
        torch.set_default_dtype(getattr(torch, options.dtype))
        if options.threads is not None:
            torch.set_num_threads(options.threads)
        with memory.kept(), ranks.divided(options.processes):
            yield
    finally:
        torch.set_default_dtype(before[0])
        torch.set_num_threads(before[1])
        torch.set_flush_denormal(flushed)
