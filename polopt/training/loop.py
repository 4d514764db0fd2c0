"""The training loop: the two verbs of a method, and around them rows, evaluations, checkpoints and stops."""

from __future__ import annotations

import gc
import json
import math
import re
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from polopt.bases.method import Method
from polopt.core import files, ranks, shards, signals
from polopt.core.errors import CheckpointError, Notice, RunError
from polopt.core.state import Leaf, Stateful, gather, restore
from polopt.data.components import Tally, added, means
from polopt.evaluation.figures import to_json
from polopt.tasks.base import Task
from polopt.training.agreement import check_agreement
from polopt.training.checkpoints import Checkpoints, random_state, restore_random_state, unneeded
from polopt.training.compile_trial import CompileTrial
from polopt.training.loggers import Logger
from polopt.training.options import RunOptions, Until
from polopt.training.sharding import export_whole

Row = dict[str, Any]
SAMPLES_KEPT = 4  # evaluations whose transcripts are kept
MODEL = "model"  # what `export` writes, beside the checkpoints
MINIMIZED = re.compile(r"(^|[/_])(loss|surrogate|grad_norm)$")  # metrics that are fatal when they are not finite


def spread(entries: list[Row], most: int) -> list[Row]:
    """At most so many of the entries, by their "step": the first, the last, and those that leave the smallest gaps."""
    entries = list(entries)
    while len(entries) > most:
        gaps = [after["step"] - before["step"] for before, after in zip(entries, entries[2:])]
        del entries[1 + gaps.index(min(gaps))]
    return entries


def heard(watch: signals.Watch) -> bool:
    """Whether a signal has come to any of the processes that share the run."""
    return bool(ranks.most(int(watch.heard)))


class Interrupted(KeyboardInterrupt):
    """Ctrl-C (or SIGTERM) while training: it says what is saved."""


class Trainer(Stateful):
    """Runs one method to the end of its budget.

    Args:
        method: the learner; `method.unit` says what `steps` counts.
        steps: the budget.
        options: how often to evaluate, log and save, and when to stop early.
        checkpoints: where to save.
        eval_task: separate environments with seeds of their own.
        loggers: where rows go.
    """

    saved = ("seconds", "rows", "best", "stopped")

    def __init__(
        self,
        method: Method,
        steps: int,
        options: RunOptions,
        checkpoints: Checkpoints,
        eval_task: Task,
        loggers: list[Logger],
    ) -> None:
        self.method = method
        self.steps = steps
        self.options = options
        self.score = method.judged_by
        self.keeps_best = method.imitates or not self.score.by_data
        self.until = Until.parse(options.until) if options.until else None
        self.checkpoints = checkpoints
        self._eval_task = eval_task  # the same starts at every evaluation: nothing to save
        self._loggers = loggers
        self.eval_episodes = options.eval_episodes or method.eval_episodes
        self.eval_every = options.eval_every or max(1, steps // 20)
        self.log_every = options.log_every or max(1, steps // 100)
        self.checkpoint_every = options.checkpoint_every or self.eval_every
        self.seconds = 0.0
        self.rows = 0
        self.best: float | None = None
        self.stopped = False
        self._owed: Row | None = None  # a row whose evaluation was broken off: it is made when the run goes on
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}
        self._clock = time.perf_counter()
        self._trial = CompileTrial(method, steps) if options.compile == "auto" else None

    @property
    def count(self) -> int:
        """What has been spent, in the method's unit."""
        return self.method.ledger[self.method.unit]

    @property
    def finished(self) -> bool:
        return (self.stopped or self.method.done or self.count >= self.steps) and self._owed is None

    def extra_state(self) -> dict[str, Any]:
        found = {"owed": self._owed, "compiled": self._trial and self._trial.decided}
        return {name: value for name, value in found.items() if value is not None}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        self._owed = dict(state["owed"]) if "owed" in state else None
        if self._trial is not None and "compiled" in state:
            self._trial.settle(state["compiled"])

    def run(self) -> Iterator[Row]:
        """Trains; yields every row that is logged, with the method free to be looked at in between.

        Raises Interrupted after a Ctrl-C or SIGTERM (`polopt.core.signals`), with a checkpoint of now, or where an
        update would have taken too long with those before it.
        """
        gc.freeze()  # what was built lives as long as the run: the collector need not look at it, 2 % of a small update
        self._clock = time.perf_counter()
        with signals.watched() as watch:
            try:
                yield from self._rows_together(watch)
            except (signals.Stopped, ranks.Gone) as error:
                if isinstance(error, ranks.Gone) and not watch.heard:
                    raise
                if self._owed is None:
                    raise Interrupted(f"interrupted within an update{self._last_good()}") from None
                try:
                    self.save()
                except signals.Stopped:  # it would have to wait too long for what is sampled ahead
                    raise Interrupted(f"interrupted within an update{self._last_good()}") from None
                self.export()
                raise Interrupted("interrupted; saved") from None

    def _rows_together(self, watch: signals.Watch) -> Iterator[Row]:
        """The rows. Raises Gone also where another process is missed within a pass through a divided model."""
        try:
            yield from self._rows(watch)
        except RuntimeError as error:
            if ranks.lost(error):
                raise ranks.Gone("another process of this run has ended") from error
            raise

    def _rows(self, watch: signals.Watch) -> Iterator[Row]:
        if self.rows == 0:
            self.export(weights=False)
        if self.rows == 0 or self._owed is not None:
            yield self._row(evaluate=True)
            self.save()
        while not self.finished:
            before, stage = self.count, self.method.stage_name
            self.method.progress = before / self.steps
            metrics = (self._trial or self.method).update(self.method.collect())
            self.method.ledger.updates += 1
            self._add(metrics)
            if self.count == before and not metrics:
                raise RunError(f"{self.method.slug} makes no progress: an update spent nothing and learned nothing")
            ending = self.finished or heard(watch) or self.method.stage_name != stage
            evaluate = self._crossed(self.eval_every, before) or self.finished
            save = self._crossed(self.checkpoint_every, before) or ending
            if evaluate or save or self._crossed(self.log_every, before):
                row = self._row(evaluate=evaluate)
                save = save or self.finished or heard(watch)
                if save:
                    self.save()
                yield row
            if heard(watch):
                if not save:
                    self._row(evaluate=False)
                    self.save()
                self.export()
                raise Interrupted("interrupted; saved")
        self.export()

    def save(self) -> None:
        """Writes a checkpoint of everything. Raises RunError when a parameter is not finite or the disk refuses."""
        self._check_parameters()
        self._tick()
        self._save(lambda: gather(self) | random_state())

    def _save(self, state: Callable[[], dict[str, Leaf]], **how: Any) -> None:
        """Writes a checkpoint of a gathered state; of what is divided among the processes, the first one is given all
        in its memory, a tensor at a time."""
        if self.sharded:
            whole = shards.on_first(state(), ranks.first())
            ranks.told(lambda: self.checkpoints.save(self.count, whole, **how))
        else:
            ranks.told(lambda: self.checkpoints.save(self.count, state(), **how))

    @property
    def sharded(self) -> bool:
        return self.options.shard and ranks.count() > 1

    def _check_parameters(self) -> int:
        """How many parameters there are. Raises RunError naming the first that is not finite."""
        count, wrong = 0, None
        for name, module in self.method.modules():
            for path, parameter in module.named_parameters():
                count += 1
                if wrong is None and not torch.isfinite(shards.local(parameter)).all():
                    wrong = f"{name}.{path}"
        said = ranks.each(lambda: wrong) if self.sharded else [wrong]
        if any(said):
            where = next(filter(None, said))
            raise RunError(f"{where} is not finite at {self.count:,} {self.method.unit}{self._last_good()}")
        return count

    def export(self, *, weights: bool = True) -> None:
        """Writes the policy in the format of its own library to model/, if it has one (language models do); without its
        `weights`, what checkpoints lack: then the run needs nothing but its folder from here on."""
        policy, place = self.method.policy, self.checkpoints.folder.parent / MODEL
        if getattr(policy, "export", None) is None:
            return
        if weights and self.sharded:
            state = shards.on_first(gather(policy), ranks.first())
            ranks.told(lambda: export_whole(policy, state, place))
        else:
            ranks.told(lambda: policy.export(place, weights=weights))

    def load(self, step: int) -> None:
        """Continues from the checkpoint at `step`, exactly."""
        state = self.checkpoints.load(step)
        try:
            restore(self, {name: leaf for name, leaf in state.items() if not name.startswith("random/")})
        except (CheckpointError, AttributeError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"checkpoint {self.checkpoints.path(step)} does not fit this run: {error}") from error
        ranks.told(lambda: self.checkpoints.drop_after(step))
        restore_random_state(state)

    def _crossed(self, every: int, before: int) -> bool:
        return self.count // every > before // every

    def _add(self, metrics: dict[str, Tensor]) -> None:
        """Sums stay on the device until a row is written; a NaN survives in them. Delayed steps have metrics of fewer
        updates, so each is averaged over its own number."""
        for name, value in metrics.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value
            self._counts[name] = self._counts.get(name, 0) + 1

    def _row(self, *, evaluate: bool) -> Row:
        """Logs a row. Raises Stopped when a signal breaks its evaluation off; the row is owed then. Of several
        processes none stops there, since all must."""
        check_agreement(self.method)
        row, self._owed = self._owed or self._numbers(), None
        if evaluate:
            try:
                with signals.breakable() if ranks.count() == 1 else nullcontext():
                    scores = self.method.evaluate(self._eval_task, self.eval_episodes)
            except signals.Stopped:
                self._owed = row
                raise
            row |= self._evaluated(scores)
        self.rows += 1
        for logger in self._loggers:
            logger.log(row, self.count)
        return row

    def _numbers(self) -> Row:
        """What there is to say since the row before, without an evaluation."""
        method = self.method
        self._tick()
        row: Row = dict(method.ledger.counts()) | {"seconds": round(self.seconds, 3), "stage": method.stage_name}
        names = list(self._sums)
        means = torch.stack([self._sums[n].double() / self._counts[n] for n in names]).tolist() if names else []
        for name, value in zip(names, means):
            if math.isfinite(value):
                row[name] = value
            elif MINIMIZED.search(name) or not self._check_parameters():
                raise RunError(f"{name} became {value} at {self.count:,} {method.unit}{self._last_good()}")
            else:  # the update was sound: only the number about it has overflowed
                warnings.warn(
                    f"{name} became {value} at {self.count:,} {method.unit}: left empty", Notice, stacklevel=2
                )
        self._sums, self._counts = {}, {}
        for learner, episodes in method.episodes().items():
            name = f"train/{learner}/" if learner else "train/"
            row[f"{name}return"] = sum(ret for ret, _ in episodes) / len(episodes)
            row[f"{name}length"] = sum(length for _, length in episodes) / len(episodes)
        return row | self._components()

    def _evaluated(self, scores: dict[str, float]) -> Row:
        """What an evaluation adds to a row; what is best is kept, and what was shown."""
        self.stopped = self.stopped or (self.until is not None and self.until.met(scores))
        self._keep_figures()
        self._keep_samples()
        value = self.score.of(scores, self.method.slug)
        if self.keeps_best and math.isfinite(value) and (self.best is None or value > self.best):
            self.best = value
            state = gather(self.method, "method", skip=unneeded)
            self._save(lambda: state, kind="best", keep=1)
        self._tick()
        return {f"eval/{name}": value for name, value in scores.items()} | {"seconds": round(self.seconds, 3)}

    def _components(self) -> dict[str, float]:
        """What each reward function by itself gave the completions since the row before."""
        counted: dict[str, Tally] = {}
        for path, source in self.method.sources():
            counted[path] = added(counted.get(path, {}), source.components())
        return {f"{path}/{n}" if path else n: value for path, one in counted.items() for n, value in means(one).items()}

    def _keep_figures(self) -> None:
        """Keeps what the method shows after this evaluation: figures.json."""
        figures = self.method.figures()
        if figures and ranks.first():
            entry = {"step": self.count, "figures": to_json(figures)}
            files.replace(self.checkpoints.folder.parent / "figures.json", json.dumps(entry).encode())

    def _keep_samples(self) -> None:
        """Keeps what some evaluations showed, the first and the last among them: samples.json."""
        shown = getattr(self.method, "samples", None)
        if shown and ranks.first():
            path = self.checkpoints.folder.parent / "samples.json"
            before = json.loads(path.read_text())["shown"] if path.is_file() else []
            kept = [entry for entry in before if entry["step"] < self.count]
            kept = spread([*kept, {"step": self.count, "samples": shown}], SAMPLES_KEPT)
            files.replace(path, json.dumps({"shown": kept}, indent=1).encode())

    def _tick(self) -> None:
        now = time.perf_counter()
        self.seconds += now - self._clock
        self._clock = now

    def _last_good(self) -> str:
        steps = self.checkpoints.steps()
        return f"; the last good checkpoint is {self.checkpoints.path(steps[-1])}" if steps else ""
