"""`train`, `iterate`, `resume`, `load`, `evaluate`: what the command line and scripts call."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from polopt.bases.language import LanguageMethod
from polopt.bases.method import Method
from polopt.core import files, ranks
from polopt.core.errors import CheckpointError, DamagedError, Notice, UsageError
from polopt.core.locks import owned
from polopt.core.modules import device_of
from polopt.core.state import restore
from polopt.data import demonstrations
from polopt.evaluation.ope import BEHAVIOR, environment_log_prob
from polopt.evaluation.score import NO_RETURN
from polopt.policies.base import Actor
from polopt.tasks.described import NotHere
from polopt.training import beginning, launch, seeding
from polopt.training.checkpoints import unneeded
from polopt.training.devices import device_here
from polopt.training.folder import Run, check_free, new_folder, write_config, write_spaces
from polopt.training.loggers import check_installed, make_loggers
from polopt.training.loop import MODEL, Row, Trainer
from polopt.training.options import Until
from polopt.training.plan import OwnCode, Plan, TaskLike, plan, read_plan, runtime, task_name


def iterate(
    method: str,
    task: TaskLike | None = None,
    *,
    out: str | Path | None = None,
    init: str | Path | None = None,
    preset: str | None = None,
    task_options: dict[str, Any] | None = None,
    **settings: Any,
) -> Iterator[Row]:
    """Trains like `train`, yielding each logged row; `row["method"]` is the live method and `row["run"]` the folder."""
    planned = plan(method, task, preset=preset, init=init, task_options=task_options, **settings)
    place = None if out is None else Path(out)
    folder = ranks.told(lambda: new_folder(place, method, task_name(planned.task), planned.options.seed))
    yield from start(planned, folder)


def train(
    method: str,
    task: TaskLike | None = None,
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
            environment, a parallel environment of PettingZoo among them. Recorded data without an environment:
            "PATH.hdf5", "PATH.npz", or a dict of arrays (`polopt.tasks.arrays`). None: that of the preset's study.
        steps: budget in the method's unit. seed: everything random in the run follows from it.
        out: run folder; by default runs/METHOD-TASK-sSEED.
        init: a run folder whose weights to start from, wherever names and shapes agree.
        preset: a named setting of the method.
        task_options: keyword arguments of the environment; the `rewards` of text tasks may be functions.
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
    place = None if out is None else Path(out)
    folder = ranks.told(lambda: new_folder(place, method, task_name(planned.task), seed))
    return finish(start(planned, folder), folder, progress=progress)


def start(
    planned: Plan, folder: Path, *, again: bool = False, say: Callable[[str], None] = lambda said: None
) -> Iterator[Row]:
    """Runs a new plan in its folder, as the only one that writes there; `say` is told what `--init` took.

    `again`: the folder's run was stopped before its first checkpoint, and the caller owns it already.
    """
    before = set(folder.iterdir()) if ranks.first() and folder.is_dir() else None
    with runtime(planned.options), ExitStack() as owner:
        try:
            method = beginning.build(planned, say)

            def begin() -> None:
                files.make_folder(folder)
                if not again:
                    owner.enter_context(owned(folder))
                    check_free(folder)  # somebody else may have begun there in the meantime

            def write() -> None:
                write_config(folder, planned.record(method))
                write_spaces(folder, method.task)

            ranks.told(begin)
            launch.check_folder(folder)
            ranks.told(write)
        except BaseException:
            owner.close()
            if ranks.first():
                with suppress(OSError):
                    folder.rmdir()  # if it is still empty: nothing is left of a run that never began
            raise
        begun = False
        try:
            for row in _rows(planned, method, folder, None):
                begun = True
                yield row
        except UsageError:
            if not begun and not again:  # the first evaluation has refused a setting: the run never began
                ranks.told(lambda: beginning.forget(folder, before))
            raise


def resume(
    folder: str | Path,
    *,
    extend: int | None = None,
    checkpoint: int | None = None,
    until: str | None = None,
    device: str | None = None,
    shard: bool | None = None,
    progress: bool = False,
    **own: Any,
) -> Run:
    """Continues a run from its last checkpoint; on the CPU with bitwise the weights of a run never stopped.

    A run that was stopped before its first checkpoint starts again. One of several processes is continued by as many as
    torchrun has started; fewer divide its batches as before, one after the other.

    Args:
        folder: the run folder.
        extend: a new, larger total budget; schedules then run over the new total.
        checkpoint: continue from this older checkpoint instead of the latest.
        until: another early stop, such as "return>=475", or "none" for none.
        device: continue on this device; another one than before computes other last bits.
        shard: whether the processes divide the model among them from here on; None: as before. One process never does.
        own: `task`, `network`, `rewards`, `judge`, `tables`, `criterion`, `overseer`, `trust_remote_code` again: code
            of your own (`OwnCode`).

    Raises:
        UsageError: no run there, no such checkpoint, a smaller budget, or a run that another process is still writing.
        CheckpointError: the checkpoint is damaged (the sentence names the good one before it).
    """
    run = Run(Path(folder))
    launch.meet_at(run, device)  # a folder that is no run has no owner
    with ExitStack() as owner:
        ranks.told(lambda: owner.enter_context(owned(run.folder)))
        planned = read_plan(run, OwnCode.of(own))
        if extend is not None:
            if extend <= planned.steps:
                raise UsageError(f"--extend {extend} is not more than the {planned.steps:,} steps of this run")
            planned.options = replace(planned.options, steps=extend)
        if until is not None:
            planned.options = replace(planned.options, until=None if until == "none" else until)
            if planned.options.until is not None:
                Until.parse(planned.options.until)
        before = planned.options.device
        planned.options = replace(planned.options, device=device_here(before, device, resuming=True))
        moved = planned.options.device != before
        if ranks.count() > planned.options.processes:
            planned.options, moved = replace(planned.options, processes=ranks.count()), True
            said = f"{folder} is divided among {ranks.count()} processes from here on: its last bits differ"
            warnings.warn(said, Notice, stacklevel=2)
        launch.check(planned.cls, planned.config, planned.options)
        if shard is not None and shard != planned.options.shard:
            planned.options, moved = replace(planned.options, shard=shard), True
        if shard and ranks.count() == 1:
            raise UsageError("--shard divides a model among processes: say --processes 2 as well, for example")
        if planned.options.device != before:
            warnings.warn(f"{folder} was trained on {before}: on {device} its last bits differ", Notice, stacklevel=2)
        steps = run.checkpoints.steps()
        if checkpoint is not None and checkpoint not in steps:
            raise UsageError(f"{folder} has no checkpoint {checkpoint}, only {', '.join(map(str, steps)) or 'none'}")
        if not steps:
            return finish(start(planned, run.folder, again=True), run.folder, progress=progress)
        chosen = steps[-1] if checkpoint is None else checkpoint
        anew = extend is not None or until is not None
        rows = _resumed(planned, run.folder, chosen, extended=anew, changed=anew or moved)
        return finish(rows, run.folder, progress=progress)


def _resumed(planned: Plan, folder: Path, step: int, *, extended: bool, changed: bool) -> Iterator[Row]:
    check_installed(planned.options.loggers)
    with runtime(planned.options):
        method = planned.build(kept=folder / MODEL)
        yield from _rows(planned, method, folder, step, extended=extended, changed=changed)


def _rows(
    planned: Plan, method: Method, folder: Path, step: int | None, *, extended: bool = False, changed: bool = False
) -> Iterator[Row]:
    options = planned.options
    if options.compile is True:  # the loop finds out where it is "auto"
        method.compile()
    eval_task = planned.make_task(seeding.EVAL_TASK, min(options.eval_episodes or planned.cls.eval_episodes, 10))
    trainer = Trainer(method, planned.steps, options, Run(folder).checkpoints, eval_task, [])
    try:
        if step is not None:
            trainer.load(step)
            if extended:
                trainer.stopped = False
            if changed:
                ranks.told(lambda: write_config(folder, planned.record(method)))
        if step is None or not trainer.finished:  # a finished run is left as it is
            purge = 0 if step is None else step + 1
            if ranks.first():
                trainer._loggers += make_loggers(options.loggers, folder, planned.record(), trainer.rows, purge)
            if not method.task.exact_restore:
                warnings.warn(method.task.restore_note, Notice, stacklevel=2)
            for row in trainer.run():
                yield row | {"method": method, "run": Run(folder), "steps": planned.steps}
    finally:
        for logger in trainer._loggers:
            logger.close()
        beginning.close(method)
        eval_task.close()


def finish(rows: Iterator[Row], folder: Path, *, progress: bool) -> Run:
    if progress and ranks.first():
        from polopt.training.progress import show

        rows = show(rows)
    for _ in rows:
        pass
    return Run(folder)


def train_or_resume(
    method: str, task: TaskLike, seed: int, place: Path, settings: dict[str, Any], progress: bool
) -> Run:
    """Trains into the folder `place`, or goes on there. Raises UsageError when it holds another run."""
    if (place / "config.json").exists():
        planned = plan(method, task, seed=seed, **settings)
        beginning.check_same(planned, place)
        return resume(place, progress=progress, **beginning.own_code(planned))
    return train(method, task, seed=seed, out=place, progress=progress, **settings)


def load(
    folder: str | Path,
    *,
    checkpoint: str | int = "latest",
    device: str | None = None,
    **own: Any,
) -> Actor:
    """The trained actor of a run; `actor.predict(obs)` serves one numpy observation.

    The run folder is enough: the environment, its package, reward functions, judges and criteria need not be here.
    Policies of tasks that say more than their spaces, such as their model, and of runs of earlier versions are built
    with the task again.

    Args:
        device: where to; None takes the device of the run, or the CPU (with a warning) where there is none such.
        checkpoint: "latest", "best" (by the method's score, evaluated while training), or the step of one.
        own: `network`, `tables` and `trust_remote_code` again, where the policy itself is code of your own, and `task`,
            `rewards`, `judge`, `criterion`, `overseer` where the task is needed (`OwnCode`).
    """
    place, again = Path(folder), OwnCode.of(own)
    with suppress(NotHere):
        if again.task is None and Run(place).task is not None:
            return load_method(place, checkpoint, again, device, alone=True)[0].policy
    return load_method(place, checkpoint, again, device)[0].policy


def load_method(
    folder: Path,
    checkpoint: str | int = "latest",
    own: OwnCode | None = None,
    device: str | None = None,
    *,
    alone: bool = False,
) -> tuple[Method, Plan]:
    """Builds a run's method and loads what it has learned, without optimizers and without where the run stood.

    What only training needs, such as the data, is not opened. `alone`: of the spaces in the folder in place of the
    task; raises NotHere where that is not enough.
    """
    run = Run(folder)
    planned = read_plan(run, own or OwnCode(), alone=alone)
    planned.options = replace(planned.options, device=device_here(planned.options.device, device))
    step, kind = _chosen(run, checkpoint)
    state = run.checkpoints.load(step, kind, blobs=False)
    with runtime(planned.options):
        method = planned.build(prepare=False, kept=run.folder / MODEL, task=run.task if alone else None)
        beginning.close(method)
        try:
            restore(method, state, "method", skip=unneeded)
        except (DamagedError, NotHere):
            raise
        except (CheckpointError, AttributeError, KeyError, TypeError, ValueError) as error:
            where = run.checkpoints.path(step, kind)
            raise CheckpointError(f"checkpoint {where} does not fit {run.folder / 'config.json'}: {error}") from error
    return method, planned


def _chosen(run: Run, checkpoint: str | int) -> tuple[int, str]:
    """Step and kind of the "latest" or "best" checkpoint, or of the one at a step. Raises UsageError without it."""
    kinds = {"latest": "step", "best": "best"}
    there = {name: run.checkpoints.steps(kind) for name, kind in kinds.items()}
    if checkpoint in kinds:
        if not there[str(checkpoint)] and checkpoint == "best" and run.score.by_data:
            raise UsageError(f"{run.folder} keeps no best checkpoint: {NO_RETURN}")
        if not there[str(checkpoint)]:
            raise UsageError(f"{run.folder} has no {checkpoint} checkpoint yet")
        return there[str(checkpoint)][-1], kinds[str(checkpoint)]
    for name, steps in there.items():
        for step in steps:
            if str(checkpoint) == str(step):
                return step, kinds[name]
    known = ", ".join(map(str, sorted(set().union(*there.values())))) or "none yet"
    raise UsageError(f"{run.folder} has no checkpoint '{checkpoint}': choose latest, best or a step, here {known}")


def evaluate(
    folder: str | Path,
    *,
    episodes: int | None = None,
    checkpoint: str | int = "latest",
    stochastic: bool = False,
    samples: int = 1,
    device: str | None = None,
    **own: Any,
) -> dict[str, float]:
    """Returns of a saved policy over whole episodes, from starts that neither training nor its evaluations used.

    `episodes` None takes the method's own number: 10 in control, 64 for language models. Of a run on recorded data
    without an environment there are no returns: see `polopt.evaluation.recorded`. Language models give intervals over
    prompts as well, and with `samples` > 1 sampled completions of each also pass@k and maj@k: see
    `polopt.evaluation.completions`. Raises UsageError for other methods with several samples.
    """
    method, planned = load_method(Path(folder), checkpoint, OwnCode.of(own), device)
    episodes = episodes or type(method).eval_episodes
    how: dict[str, Any] = {"greedy": not stochastic and samples == 1}
    if isinstance(method, LanguageMethod):
        how |= {"samples": samples, "intervals": True}
    elif samples != 1:
        raise UsageError(f"{method.slug} is no method for language models, so no prompt has several samples")
    with runtime(planned.options):
        fresh = planned.make_task(seeding.TEST_TASK, min(episodes, 10))
        try:
            return method.evaluate(fresh, episodes, **how)
        finally:
            fresh.close()


def demonstrate(
    folder: str | Path,
    file: str | Path,
    *,
    episodes: int = 10,
    checkpoint: str | int = "latest",
    stochastic: bool = False,
    device: str | None = None,
    **own: Any,
) -> Path:
    """Records the episodes that `evaluate` scores to one safetensors file of demonstrations, which `bc` learns from.

    With sampled actions it holds their densities too, `behavior_log_prob`, where the policy has some: for `polopt eval
    --ope` (`polopt.evaluation.ope`).
    """
    method, planned = load_method(Path(folder), checkpoint, OwnCode.of(own), device)
    file = Path(file)
    demonstrations.check_file(file)
    files.make_folder(file.parent)
    with runtime(planned.options):
        fresh = planned.make_task(seeding.TEST_TASK, min(episodes, 10))
        try:
            data = demonstrations.record(method.policy, fresh, episodes, greedy=not stochastic)
            if stochastic:
                with suppress(UsageError), torch.no_grad():  # a policy without a density has nothing to keep
                    data[BEHAVIOR] = environment_log_prob(method.policy, data.to(device_of(method.policy))).cpu()
        finally:
            fresh.close()
    demonstrations.save_demonstrations(file, data, method.spec)
    return file
