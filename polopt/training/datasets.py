"""Recorded datasets of a task, made with the library's own loop, and what is in them: `polopt dataset`.

The recipe is D4RL's (Fu et al., "D4RL: Datasets for Deep Data-Driven Reinforcement Learning", 2020, arXiv 2004.07219,
section 5): a behavior policy is trained, and

    random          uniform random actions
    medium          the policy at the first evaluation whose return is at least random + share (expert - random)
    medium-replay   everything that was collected until then, in order
    expert          the policy at the end of training
    medium-expert   the first halves of medium and of expert

Policies are sampled, not greedy. A set has whole episodes, as many as reach the wanted number of decisions.

Those of Schweighofer et al., "A Dataset Perspective on Offline Reinforcement Learning", 2021, arXiv 2111.04714, which
`polopt.evaluation.dataset_measures` compares, are random and expert, and for discrete actions

    replay          everything that was collected in the whole training, in order
    noisy           the policy at the end, greedy, with one action in five uniform
    mixed           four fifths of random and one fifth of expert
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from gymnasium import spaces
from tensordict import TensorDict

from polopt import registry
from polopt.bases.method import Method
from polopt.core import files
from polopt.core.batch import Batch
from polopt.core.errors import RunError, UsageError, nearest
from polopt.core.random import paired
from polopt.core.spec import Spec
from polopt.data.base import Acts
from polopt.data.datasets import lengths
from polopt.data.demonstrations import KEYS, joined
from polopt.data.episodes import Episodes
from polopt.data.rollouts import Rollouts
from polopt.data.storing import write_dataset
from polopt.evaluation.returns import evaluate_returns
from polopt.policies.greedy import EpsilonGreedy
from polopt.policies.wrappers import Greedy, Uniform
from polopt.tasks import make_task, recorded
from polopt.tasks.base import Task
from polopt.tasks.making import Maker
from polopt.training import api, seeding
from polopt.training.api import train_or_resume
from polopt.training.plan import Plan, TaskLike, plan, runtime, task_name

KINDS = ("random", "medium", "medium-replay", "medium-expert", "expert")
EVERY = (*KINDS, "replay", "noisy", "mixed")
STREAMS = {kind: 16 + number for number, kind in enumerate(("references", *EVERY))}
NOISE, RANDOM = 0.2, 0.8  # of the actions of noisy, of the decisions of mixed
ROWS = 10  # copies of the environment that record together


def make_datasets(
    task: TaskLike,
    kinds: Sequence[str] = KINDS,
    *,
    name: str | None = None,
    method: str | None = None,
    steps: int | None = None,
    seed: int = 0,
    transitions: int = 100_000,
    medium: float = 1 / 3,
    reference_episodes: int = 50,
    out: str | Path | None = None,
    preset: str | None = None,
    task_options: Mapping[str, Any] | None = None,
    argv: Sequence[str] | None = None,
    progress: bool = False,
    **settings: Any,
) -> list[str]:
    """Trains a behavior policy and records datasets of a task; returns their ids, "NAME/KIND-v0".

    What is there already from the same recipe is not made again, and the training goes on where it was stopped; the
    numbers follow from the seed. The references in the metadata are mean returns of uniform random actions and of the
    final policy, greedy.

    Args:
        kinds: which ones, of `EVERY`.
        name: the first part of the ids; by default the name of the task without its version, "pendulum".
        method: what trains the behavior policy; by default sac, and ppo for discrete actions.
        steps: its budget, in its own unit.
        transitions: decisions in a set, at least; replays have as many as there were.
        medium: the share of the way from random to expert.
        reference_episodes: episodes behind each reference.
        out: the run folder of the training.
        argv: further settings, spelled as on the command line.
        settings: further settings of the run and of the method, as for `polopt.train`.

    Raises:
        UsageError: wrong names or values, or a dataset of that name from another recipe.
        RunError: the behavior policy is no better than random actions.
    """
    for kind in kinds:
        if kind not in EVERY:
            raise UsageError(f"there is no kind of dataset '{kind}'{nearest(kind, EVERY)}")
    if transitions < 1 or reference_episodes < 1 or not 0.0 < medium < 1.0:
        raise UsageError("--transitions and --reference-episodes are at least 1, and --medium is between 0 and 1")
    options = dict(task_options or {})
    spec = _spec(task, options)
    if "noisy" in kinds and not isinstance(spec.action, spaces.Discrete):
        raise UsageError(f"noisy sets are of discrete actions, and {spec.name} has {spec.action}")
    if spec.agents > 1:
        raise UsageError(f"datasets are recorded of single agents, and {spec.name} has a team of {spec.agents}")
    method = method or ("ppo" if isinstance(spec.action, (spaces.Discrete, spaces.MultiDiscrete)) else "sac")
    steps = steps or registry.load(method).default_steps
    settings = {"steps": steps, "eval_every": max(1, steps // 40)} | settings
    planned = plan(method, task, preset=preset, task_options=options, seed=seed, argv=argv, **settings)
    name = name or _namespace(task_name(task))
    wanted = {f"{name}/{kind}-v0": kind for kind in EVERY if kind in kinds}
    recipe = json.loads(
        json.dumps({key: planned.record()[key] for key in ("method", "task", "task_options", "config")})
    )
    recipe |= {"steps": planned.steps, "seed": seed, "transitions": transitions, "medium": medium}
    recipe |= {"reference_episodes": reference_episodes}
    recipe |= {"facts": list(planned.options.facts)} if planned.options.facts else {}
    missing = [dataset for dataset in wanted if not _is_there(dataset, recipe)]
    if not missing:
        return list(wanted)

    folder = Path(out) if out is not None else Path("runs") / f"dataset-{name.replace('/', '_')}-s{seed}"
    with runtime(planned.options):
        recorder = _Recorder(planned, transitions, reference_episodes, medium)
        if any(wanted[dataset] != "random" for dataset in missing):
            given = {"preset": preset, "task_options": options, "argv": argv, **settings}
            train_or_resume(method, task, seed, folder, given, progress)
            recorder.expert = api.load(folder, task=task, network=_own_network(settings))
            recorder.check_learned(folder)
        for dataset in missing:
            write_dataset(
                dataset,
                recorder.data(wanted[dataset]),
                recorder.spec,
                task=task_name(task),
                task_options=options,
                env_spec=_env_spec(task, options),
                references=recorder.references,
                metadata={
                    "polopt_recipe": recipe,
                    "algorithm_name": "uniform random actions" if wanted[dataset] == "random" else method,
                    "description": f"{wanted[dataset]} of {task_name(task)}, {origin(wanted[dataset])}",
                },
            )
    return list(wanted)


class _Recorder:
    """The data of each kind; what several of them need is made once."""

    def __init__(self, planned: Plan, transitions: int, reference_episodes: int, share: float) -> None:
        self.planned, self.transitions, self.share = planned, transitions, share
        self.reference_episodes = reference_episodes
        self.expert: Any = None
        self.references: tuple[float, float] | None = None
        self.medium: Any = None
        self.replay: Batch | None = None
        with self.task("references") as task:
            self.spec = task.spec

    @contextlib.contextmanager
    def task(self, kind: str) -> Iterator[Task]:
        with closing(self.planned.make_task(STREAMS[kind], ROWS)) as task:
            yield task

    def check_learned(self, folder: Path) -> None:
        """Measures the references. Raises RunError when the expert is no better than random actions."""
        with self.task("references") as task:
            low = evaluate_returns(Uniform(self.spec), task, self.reference_episodes, greedy=False)["return"]
            high = evaluate_returns(self.expert, task, self.reference_episodes)["return"]
        problem = least_progress(low, high)
        if problem:
            raise RunError(f"the behavior policy in {folder} {problem}: raise --steps")
        self.references = low, high

    def data(self, kind: str) -> Batch:
        if kind == "random":
            return self.sampled("random", Uniform(self.spec), self.transitions)
        if kind == "expert":
            return self.sampled("expert", self.expert, self.transitions)
        if kind == "noisy":
            return self.sampled(kind, EpsilonGreedy(Greedy(self.expert), NOISE), self.transitions)
        if kind == "mixed":
            most = round(RANDOM * self.transitions)
            rest = max(self.transitions - most, 1)
            return _cat([self.sampled("random", Uniform(self.spec), most), self.sampled("expert", self.expert, rest)])
        if kind == "replay":
            return self.collected(float("inf"))[1]
        if self.medium is None:
            assert self.references is not None
            low, high = self.references
            self.medium, self.replay = self.collected(low + self.share * (high - low))
        if kind == "medium":
            return self.sampled("medium", self.medium, self.transitions)
        if kind == "medium-replay":
            assert self.replay is not None
            return self.replay
        half = -(-self.transitions // 2)
        parts = [self.sampled("medium", self.medium, half), self.sampled("expert", self.expert, half)]
        return _cat(parts)

    def sampled(self, kind: str, actor: Acts, count: int) -> Batch:
        """Whole episodes of a sampling actor, until there are `count` decisions."""
        parts, size = [], 0
        seed = seeding.derive(self.planned.options.seed, STREAMS[kind])
        with self.task(kind) as task, paired(seed):
            source = Episodes(task, ROWS)
            while size < count:
                parts.append(joined(source.next(actor), actor, task.spec).cpu())
                size += len(parts[-1])
        data = _cat(parts)
        ends = lengths(data).cumsum(0)
        return data[: int(ends[(ends < count).sum()])]

    def collected(self, wanted: float) -> tuple[Any, Batch]:
        """The policy at the first evaluation with the wanted return, or at the end, and what was collected until then.

        The training runs once more, the same from the seed, and stops there: nothing needs to be kept of every moment.
        """
        watched: Watch | None = None
        with files.temporary_folder("polopt-dataset-") as folder:
            planned = plan_again(self.planned)
            with closing(api.start(planned, folder / "run")) as rows:  # type: ignore[type-var]
                for row in rows:
                    method: Method = row["method"]
                    if watched is None:  # the first row, before anything is collected
                        if "eval/return" not in row:
                            raise UsageError(f"{method.slug} evaluates no return: no policy of it is halfway")
                        watched = Watch(method)
                        continue
                    if row.get("eval/return", -float("inf")) >= wanted or method.ledger[method.unit] >= planned.steps:
                        break
        assert watched is not None
        return method.policy, in_order(watched.windows())


def origin(kind: str) -> str:
    """Whose recipe a kind is."""
    return "D4RL's recipe" if kind in KINDS else "the recipe of arXiv 2111.04714"


def least_progress(low: float, high: float) -> str | None:
    """What is wrong with an expert's return `high` beside a random policy's `low`, or None."""
    if high > low:
        return None
    return f"ended with a return of {high:.6g}, and random actions have {low:.6g}"


def plan_again(planned: Plan) -> Plan:
    """The same plan, for a run that is not kept."""
    return replace(planned, options=replace(planned.options, loggers=(), checkpoint_every=2**40))


class Watch:
    """Keeps all that a method collects from now on, in the environment's units.

    Raises UsageError for methods that do not collect step by step.
    """

    def __init__(self, method: Method) -> None:
        source = getattr(method.source, "rollouts", method.source)
        if not isinstance(source, Rollouts):
            raise UsageError(f"{method.slug} does not collect window by window: medium sets need another --method")
        self.each: Callable[[Acts], Iterator[dict[str, Any]]] = source.each
        self.facts = tuple(source.task.spec.facts)
        self.long: list[Batch] = []
        self.short: list[Batch] = []  # steps are many: they are joined now and then
        source.each = self  # type: ignore[method-assign]

    def __call__(self, actor: Acts) -> Iterator[dict[str, Any]]:
        for step in self.each(actor):
            seen = step | {"next_obs": step["final_obs"], "action": actor.env_action(step["action"])}
            window = {name: seen[name].unsqueeze(1) for name in (*KEYS, *self.facts)}
            self.short.append(TensorDict(window, batch_size=[len(step["reward"]), 1]).cpu())
            if len(self.short) == 1_000:
                self.long, self.short = [*self.long, _cat(self.short, 1)], []
            yield step

    def windows(self) -> list[Batch]:
        return [*self.long, *self.short]


def in_order(windows: Sequence[Batch]) -> Batch:
    """Windows [N, T] that follow each other -> decisions [B], row by row; broken-off episodes have no end."""
    rows = _cat(windows, 1).clone()
    rows["first"][:, 0] = True
    return rows.reshape(-1)


def _cat(parts: Sequence[Any], dim: int = 0) -> Any:
    return torch.cat(list(parts), dim)


# Names


def _is_there(dataset: str, recipe: dict[str, Any]) -> bool:
    """Whether a dataset was made by this recipe. Raises UsageError when one of this name was made otherwise."""
    folder = recorded.dataset_folder(dataset)
    if not folder.exists():
        return False
    if recorded.metadata(dataset).get("polopt_recipe") != recipe:
        raise UsageError(f"there is a dataset {dataset} with another recipe: choose another --name, or remove {folder}")
    return True


def _namespace(task: str) -> str:
    """ "Pendulum-v1" -> "pendulum"."""
    plain = re.sub(r"-v\d+$", "", task.rpartition(":")[2]).lower()
    return re.sub(r"[^-\w/]+", "-", plain).strip("-/") or "task"


def _spec(task: TaskLike, options: dict[str, Any]) -> Spec:
    with closing(make_task(task, **options)) as made:
        made.check_played()
        return made.spec


def _env_spec(task: TaskLike, options: Mapping[str, Any]) -> Any:
    """Gymnasium's specification of the environment, where it has one that can be written down."""
    options = dict(options)
    preset = options.pop("preset", None)
    if isinstance(task, Mapping):
        return None
    with contextlib.suppress(Exception):
        with closing(Maker(task, options, preset)()) as env:
            spec = env.spec
        spec.to_json()  # type: ignore[union-attr]
        return spec
    return None


def _own_network(settings: Mapping[str, Any]) -> Any:
    network = settings.get("network")
    return network if callable(network) and not isinstance(network, type) else None
