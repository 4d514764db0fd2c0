"""Tasks: rows of environments behind one small interface. `make_task` makes any of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from polopt.core.errors import UsageError, nearest

if TYPE_CHECKING:
    from polopt.tasks.base import Task


def make_task(
    task: Any,
    num: int = 1,
    seed: int = 0,
    workers: int = 0,
    render_mode: str | None = None,
    preset: str | None = None,
    evaluation: bool = False,
    **kwargs: Any,
) -> Task:
    """Makes `num` rows of a task.

    Args:
        task: a Gymnasium id, a name of polopt's own ("random-mdp", "chain", "recall", "masked", "u-maze",
            "point-maze"), "module:function", a function or class that makes an environment, an environment (each row
            gets a copy), a TabularMDP, a dataset of Minari such as "pendulum/medium-v0" (the environment that it was
            recorded on; `spec.info` then has its name as "dataset", and "references"), a Gymnasium specification, or a
            Task, which is returned as it is. "envpool/ID" trains in EnvPool and evaluates in Gymnasium's environment of
            the same id. Text tasks are "addition", "countdown", "sorting", "lookup", "guess", "reasoning-gym/NAME",
            "PATH.jsonl" and "datasets/ID".
        num: rows N.
        seed: every start of every row derives from it; `evaluation` derives others from the same seed.
        workers: 0 steps all rows in this process; otherwise each row has a process, at most `workers` run at once
            (EnvPool: threads, 0 for its own choice).
        render_mode: as in Gymnasium, for `task.render()`.
        preset: "image" (gray, 84 x 84, 4 frames) or "atari" (the usual protocol).
        kwargs: handed to the environment.

    Raises UsageError, one sentence: an unknown name with the nearest known one, a missing package with the extra that
    brings it, a space that is not served.
    """
    from polopt.tasks.base import Task

    if isinstance(task, Task):
        return task
    for name, value, low in (("num", num, 1), ("seed", seed, 0), ("workers", workers, 0)):
        if not isinstance(value, int) or value < low:
            raise UsageError(f"{name} must be a whole number of at least {low}, not {value!r}")

    if isinstance(task, str) and task.startswith("envpool/"):
        if preset or render_mode:
            raise UsageError(f"{task} has no presets and no pictures")
        task = task.removeprefix("envpool/")
        if not evaluation:
            from polopt.tasks.pooled import PooledTask

            return PooledTask(task, num, seed, workers, **kwargs)
        workers = 0

    from polopt.tasks.making import TABULAR, Maker, is_dataset, may_be_remote, named_function, text_task
    from polopt.tasks.tabular import TabularMDP, TabularTask

    if isinstance(task, str) and (text := text_task(task)):
        if workers or preset or render_mode:
            raise UsageError(f"{task} is a text task: it has no workers, presets or pictures")
        return _make_text(text, task, num, seed, evaluation, kwargs)

    if isinstance(task, str) and may_be_remote(task):
        from polopt.tasks import recorded

        recorded.download(task)
    if isinstance(task, str) and is_dataset(task):
        from polopt.tasks import recorded

        source, options = recorded.environment(task)
        if isinstance(source, str) and text_task(source):  # its options could name reward functions, which are code
            raise UsageError(f"{task} names the text task {source}, which no dataset is recorded on")
        preset = preset or options.pop("preset", None)
        made = make_task(source, num, seed, workers, render_mode, preset, evaluation, **{**options, **kwargs})
        made.spec.info.update(dataset=task, references=recorded.references(task))
        return made

    if isinstance(task, TabularMDP) or (isinstance(task, str) and task in TABULAR):
        name = task if isinstance(task, str) else "tabular MDP"
        if workers or preset or render_mode:
            raise UsageError(f"{name} steps all rows at once: it has no workers, presets or pictures")
        if isinstance(task, str):
            function = named_function(TABULAR[task])
            assert function is not None
            try:
                task = function(**kwargs)
            except TypeError as error:
                raise UsageError(f"{name} cannot be made: {error}") from None
        elif kwargs:
            raise UsageError(f"{name} is made already: {sorted(kwargs)} cannot be set any more")
        return TabularTask(task, num=num, seed=seed, evaluation=evaluation, name=name)

    from polopt.tasks.gym import GymTask

    if not isinstance(task, str) and not callable(task) and not _is_made(task):
        raise UsageError(f"a task is a name, a function or an environment, not {type(task).__name__}")
    maker = Maker(task, kwargs, preset, render_mode, evaluation)
    return GymTask(maker, num=num, seed=seed, workers=workers, evaluation=evaluation, name=maker.name)


def _is_made(task: Any) -> bool:
    import gymnasium
    from gymnasium.envs.registration import EnvSpec

    return isinstance(task, (gymnasium.Env, EnvSpec))


def _make_text(where: str, name: str, num: int, seed: int, evaluation: bool, options: dict[str, Any]) -> Task:
    from polopt.tasks.making import named_function

    cls: Any = named_function(where)
    known = cls.options(name)
    for option in options:
        if option not in known:
            raise UsageError(f"the task {name} has no option '{option}'{nearest(option, known)}")
    return cls(num, seed, evaluation, name, **options)
