"""Before the first step of a run: what can be wrong is found, and nothing is left of a run that never began."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from polopt import registry
from polopt.bases.method import Method
from polopt.config import to_dict
from polopt.config.params import spell
from polopt.core import files
from polopt.core.errors import Notice, UsageError
from polopt.core.locks import OWNER
from polopt.core.state import find, gather, restore
from polopt.data.ahead import Ahead
from polopt.evaluation.score import Score
from polopt.tasks.base import Task
from polopt.training import seeding
from polopt.training.folder import Run
from polopt.training.loggers import check_installed
from polopt.training.options import Until
from polopt.training.plan import Plan, rewards_of, runtime, task_name

PLANNED = ("method", "task", "task_options", "steps", "seed", "init", "config")  # of config.json, and of its "run":
INITIAL = (".init", "_init", ".head_gain")  # settings that matter for new weights only
MEASURED = ("dtype", "facts", "objective_weights", "eval_every", "eval_episodes", "eval_length", "until")


def build(planned: Plan, say: Callable[[str], None]) -> Method:
    """The method of a new run, with all found that can be wrong before it begins. Raises UsageError."""
    check_installed(planned.options.loggers)
    method = planned.build()
    try:
        _check_budget(method, planned.steps)
        if planned.init is not None:
            _initialize(method, Path(planned.init), say)
    except BaseException:
        close(method)
        raise
    return method


def own_code(planned: Plan) -> dict[str, Any]:
    """The code of one's own in a run, as `resume`, `load` and the rest take it again (`OwnCode`)."""
    config = planned.config
    return {
        "task": planned.task,
        "network": getattr(getattr(config, "network", None), "make", None),
        "rewards": rewards_of(planned.task, planned.task_options),
        **{name: getattr(config, name, None) for name in ("judge", "tables", "criterion")},
        "overseer": getattr(getattr(config, "overseer", None), "ask", None),
        "trust_remote_code": True,  # only where the run's own settings say so
    }


def check(planned: Plan, score: str | None = None) -> Score:
    """Builds a new run, and evaluates it once where `until` or `score` names a metric, or what it is judged by follows
    from its data; nothing is written. Returns what it is judged by, `score` if that is given. Raises UsageError."""
    with runtime(planned.options):
        method = build(planned, say=lambda said: None)
        try:
            judged = method.judged_by if score is None else Score(score)
            if planned.options.until is not None or score is not None or judged.name != method.score:
                with closing(planned.make_task(seeding.EVAL_TASK, 1)) as task:
                    scores = method.evaluate(task, 1)
                if planned.options.until is not None:
                    Until.parse(planned.options.until).met(scores)
                judged.of(scores, f"{planned.method} on {task_name(planned.task)}")
            return judged
        finally:
            close(method)


def check_same(planned: Plan, place: Path) -> None:
    """Raises UsageError when the folder holds a run with other settings, where they matter for its results."""
    before, now = Run(place).config, json.loads(json.dumps(planned.record()))
    differing = [key for key in PLANNED if before.get(key) != now[key]]
    options, planned_options = before.get("run") or {}, now["run"]
    differing += [key for key in MEASURED if key in options and options[key] != planned_options[key]]
    if differing:
        name = differing[0].replace("_", " ")
        raise UsageError(f"{place} holds a run with another {name}: choose another --out, or remove it")


def forget(folder: Path, before: set[Path] | None) -> None:
    """Removes what a run has written to its folder, and the folder unless it was there `before`."""
    for path in set(folder.iterdir()) - (before or set()) - {folder / OWNER}:
        files.remove(path)
    if before is None:
        files.remove(folder)


def close(method: Method) -> None:
    """Closes its task, and those of its learners and sources, and ends what samples ahead."""
    for _, each in find(method, Task, Ahead):
        each.close()


def _check_budget(method: Method, steps: int) -> None:
    warmup = max((getattr(source, "warmup", 0) for _, source in method.sources()), default=0)
    if method.unit == "env_steps" and warmup >= steps:
        raise UsageError(
            f"--steps {steps:,} ends within the {warmup:,} random steps of the warm-up: nothing would be learned; "
            f"raise --steps or lower --warmup"
        )


def _initialize(method: Method, folder: Path, say: Callable[[str], None]) -> None:
    """Gives the method what fits of another run and says how much that was: in a warning, where the policy has more.
    Raises UsageError where next to nothing fits."""
    run = Run(folder)
    steps = run.checkpoints.steps() if run.config else []
    if not steps:
        raise UsageError(f"--init {folder} has no checkpoint")
    state = _renamed(_method_state(run.checkpoints.load(steps[-1])), _learns(run.config["method"]), method.learns)
    used = restore(method, state, strict=False)
    theirs, own = ({path for path in each if path.startswith(f"{method.learns}.")} for each in (state, gather(method)))
    policy = own.intersection(used)
    # A bias or two fits almost anywhere, and so does the last layer of a critic, but a whole policy may be no more.
    if not any(state[path].dim() > 1 for path in (policy if own else used)) and not (own and theirs == own == policy):
        raise UsageError(f"--init {folder}: nothing there has the names and shapes of this run")
    for path in state:
        if path.startswith(f"{method.learns}.") and ".normalizer." in path and path not in used:
            raise UsageError(f"--init {folder}: its policy normalizes observations, and that of this run does not")
    if method.keeps:
        _check_whole(method, run, own == theirs == policy)
    for _, learner in method.learners():
        learner.initialized()
    others = f", and {len(used) - len(policy)} others" if len(used) > len(policy) else ""
    said = f"--init {folder}: took {len(policy)} of the {len(own)} tensors of the policy{others}"
    if len(policy) < len(own):
        warnings.warn(f"{said}; the rest of the policy begins anew", Notice, stacklevel=2)
    else:
        say(said)


def _check_whole(method: Method, run: Run, complete: bool) -> None:
    """Raises UsageError where the policy of a run is another one here: other tensors, or another function of them."""
    said = f"--init {run.folder}: {method.slug} leaves that policy as it is, so this run needs the same"
    there, here = (_policy(config) for config in (run.config.get("config") or {}, to_dict(method.config)))
    for path in there.keys() & here.keys():
        if there[path] != here[path] and not path.endswith(INITIAL):
            value = "none" if there[path] is None else spell(there[path])
            raise UsageError(f"{said} --{path.removesuffix('.kind').replace('_', '-')}, {value}")
    if not complete:
        raise UsageError(f"{said} --policy, --network and --normalize-obs")


def _policy(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a config as JSON says of the policy, by dotted path."""
    return {path: value for key in ("policy", "network") for path, value in _leaves(config, key)}


def _leaves(config: Mapping[str, Any], key: str) -> Iterator[tuple[str, Any]]:
    """The values of a part of a config as JSON, by dotted path."""
    value = config.get(key)
    if isinstance(value, Mapping):
        for name in value:
            yield from ((f"{key}.{path}", leaf) for path, leaf in _leaves(value, name))
    elif key in config:
        yield key, value


def _learns(method: str) -> str:
    """Under which name a method keeps the actor that it trains; "policy" of one that this polopt does not know."""
    return registry.load(method).learns if method in registry.locations() else Method.learns


def _renamed(state: dict[str, Any], name: str, new: str) -> dict[str, Any]:
    """The state with the policy, which one method calls `name`, under the name that another one has for it."""
    prefix = f"{name}."
    return {f"{new}.{path[len(prefix) :]}" if path.startswith(prefix) else path: leaf for path, leaf in state.items()}


def _method_state(state: dict[str, Any]) -> dict[str, Any]:
    return {name.removeprefix("method."): leaf for name, leaf in state.items() if name.startswith("method.")}
