"""Tasks: rows of environments behind one small interface. `make_task` makes any of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from polopt.config import peers
from polopt.core.errors import UsageError

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
    facts: Sequence[str] = (),
    objective_weights: Sequence[float] = (),
    **kwargs: Any,
) -> Task:
    """Makes `num` rows of a task.

    Args:
        task: a Gymnasium id, a name of polopt's own (`polopt.tasks.named`: "random-mdp", "u-maze", "addition",
            "PATH.jsonl", ...), "module:function", a function or class that makes an environment, an environment (each
            row gets a copy), a Task or a class of them, a TabularMDP, a dataset of Minari such as "pendulum/medium-v0"
            (the environment that it was recorded on; `spec.info` then has its name as "dataset", and "references"), or
            a Gymnasium specification. Recorded decisions without an environment ("PATH.hdf5", "PATH.npz", a dict of
            arrays, see `polopt.tasks.arrays`) are a task that nothing can step. A Task is returned as it is.
            "envpool/ID" trains in EnvPool and evaluates in Gymnasium's environment of the same id; "pz/ID" is a
            parallel environment of PettingZoo. Such an environment gives a task of a team (`spec.agents`), whose rows
            `AgentRows` takes apart.
        num: rows N.
        seed: every start of every row derives from it; `evaluation` derives others from the same seed.
        workers: 0 steps all rows in this process; otherwise each row has a process, at most `workers` run at once
            (EnvPool: threads, 0 for its own choice).
        render_mode: as in Gymnasium, for `task.render()`.
        preset: "image" (gray, 84 x 84, 4 frames) or "atari" (the usual protocol).
        facts: entries of a Gymnasium environment's `info` to keep beside the reward (`Task.facts`); every step must
            have them.
        objective_weights: the reward is this weighted sum of the task's objectives, so that any method can learn it.
        kwargs: options of the task, handed to the environment or to `Task.make`.

    Raises UsageError, one sentence: an unknown name with the nearest known one, a missing package with the extra that
    brings it, a space that is not served.
    """
    from polopt.tasks.base import Task

    if objective_weights:
        from polopt.tasks.weighted import Weighted

        made = make_task(task, num, seed, workers, render_mode, preset, evaluation, facts, **kwargs)
        try:
            return Weighted(made, objective_weights)
        except UsageError:
            made.close()
            raise
    if isinstance(task, Task):
        return task
    for name, value, low in (("num", num, 1), ("seed", seed, 0), ("workers", workers, 0)):
        if not isinstance(value, int) or value < low:
            raise UsageError(f"{name} must be a whole number of at least {low}, not {value!r}")

    from polopt.tasks.making import Maker, is_dataset, may_be_remote, named_function
    from polopt.tasks.named import is_text
    from polopt.tasks.tabular import TabularMDP, TabularTask
    from polopt.tasks.unplayed import Unplayed

    found = named_function(task) if isinstance(task, str) else task
    given = {"workers": workers or None, "render_mode": render_mode, "preset": preset, "facts": facts or None}
    given = {key: value for key, value in given.items() if value is not None}
    if isinstance(found, type) and issubclass(found, Task):
        name = task if isinstance(task, str) else found.__name__
        return found.make(name, num, seed, evaluation, **given, **kwargs)
    if isinstance(task, TabularMDP):
        if kwargs or workers or render_mode or preset or facts:
            raise UsageError("a tabular MDP is made already: it has no options, workers, presets or pictures")
        return TabularTask(task, num, seed, evaluation)

    if isinstance(task, Mapping):
        return Unplayed.of(task, num, seed, evaluation, **given, **kwargs)

    if isinstance(task, str) and may_be_remote(task):
        from polopt.tasks import recorded

        recorded.download(task)
    if isinstance(task, str) and is_dataset(task):
        from polopt.tasks import recorded

        if kwargs.get("environment", 0) in (None, "none") or not recorded.names_environment(task):
            kwargs.pop("environment", None)
            return Unplayed.of(task, num, seed, evaluation, **given, **kwargs)
        source, options = recorded.environment(task)
        if is_text(source):  # its options could name reward functions, which are code
            raise UsageError(f"{task} names the text task {source}, which no dataset is recorded on")
        preset = preset or options.pop("preset", None)
        options |= kwargs
        made = make_task(source, num, seed, workers, render_mode, preset, evaluation, facts, **options)
        made.spec.info.update(dataset=task, references=recorded.references(task))
        return made

    from polopt.tasks.gym import GymTask
    from polopt.tasks.petting import is_parallel

    if not isinstance(task, str) and not callable(task) and not _is_made(task) and not is_parallel(task):
        hint = peers.vector(task)
        raise UsageError(f"a task is a name, a function or an environment, not {type(task).__name__}{hint}")
    maker = Maker(task, kwargs, preset, render_mode, evaluation)
    return GymTask(maker, num, seed, workers, evaluation, maker.name, facts)


def _is_made(task: Any) -> bool:
    import gymnasium
    from gymnasium.envs.registration import EnvSpec

    return isinstance(task, (gymnasium.Env, EnvSpec))
