"""A method is two verbs: `collect` experience, and `update` from it.

    while not budget.spent():
        metrics = method.update(method.collect())

There are no hooks: "before collecting" is the first line of `collect`, "after the step" the last line of `update`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from polopt import config as configs
from polopt.bases.learner import Learner
from polopt.bases.settings import Limit as Limit
from polopt.bases.settings import Settings as Settings
from polopt.bases.settings import Smoke as Smoke
from polopt.bases.settings import Study as Study
from polopt.config import param
from polopt.config.params import kind
from polopt.core.batch import Batch
from polopt.core.errors import UsageError
from polopt.core.ledger import Ledger
from polopt.evaluation.figures import Figure
from polopt.evaluation.returns import evaluate_returns
from polopt.evaluation.score import BY_DATA, Score
from polopt.optim import Optimizer, copies, renew
from polopt.policies.base import Actor, require, require_legal
from polopt.tasks.base import Task
from polopt.tasks.unplayed import Unplayed

P = TypeVar("P")
C = TypeVar("C", bound=configs.Config)


RESERVED = (
    *("method", "task", "task_options", "out", "init", "preset", "progress", "seeds", "jobs", "score"),
    *("name", "each", "ranges", "processes", "over", "random", "tuning_seeds", "top", "ray", "gpus_per_job", "shard"),
    *("steps", "seed", "device", "dtype", "workers", "facts", "objective_weights", "threads", "compile", "eval_every"),
    *("eval_episodes", "eval_length", "log_every", "checkpoint_every", "until", "loggers", "video"),
)
"""What a method's config may not call a field: the options of every run, and what the verbs take beside them."""

HELD = ("envs", "micro_batch")
"""What the config of a learner that a method holds does not offer: the holder's count for both."""


def learner_param(default: configs.Config, source: str, *, without: tuple[str, ...] = (), help: str = "") -> Any:
    """A field of a method's config for the config of a learner that it holds: see `Method.learner_config`.

    `without` names further fields that the holder decides, such as those of parts that it hands to the learner: they
    are no options, and a config that changes one is refused.
    """
    return param(default, source, without=(*HELD, *without), help=help)


class _ClassName:
    """The name in messages of a class without a slug, such as the learner of a stage: that of the class."""

    def __get__(self, instance: object, owner: type) -> str:
        return kind(owner)


class Method(Settings, Learner):
    """Base of all methods: holds the parts, and names what differs from method to method.

    Subclasses define `Config`, `build(task)` (makes the parts as attributes), `update(batch)` and, where the paper
    collects differently, `collect()`. Losses are methods named `*_loss(batch)` that return a weighted sum over
    decisions and a dict of metrics that are weighted sums as well. State is attributes: see `polopt.core.state`.

    Args:
        config: an instance of this class's `Config`.
        task: what it learns on; the rows of the task are the copies that it collects from.
        ledger: where experience is counted; a fresh one by default.
        parts: modules to use in place of building them, by name: {"policy": ..., "critic": ...}. A policy or a critic
            can so be trained by several learners, one after the other (`polopt.bases.staged`).

    Raises:
        UsageError: when the policy cannot serve the method, the task's spaces do not fit, or it has a team that the
            method does not take as one.
        TypeError: when a part is given that the method does not ask for.
    """

    @dataclass(frozen=True)
    class Config(configs.Config):
        envs: int = param(1, "polopt", low=1, help="copies of the task that are stepped together")
        micro_batch: int | None = param(
            None, "polopt", low=1, help="rows per backward pass; smaller needs less memory and changes nothing else"
        )

        inert = {"micro_batch": "the pieces of a batch add up to the whole"}

    slug: ClassVar[str] = _ClassName()  # type: ignore[assignment]
    entry: ClassVar[bool] = True  # False of a class in a method file that nobody trains by name; not inherited
    unit: ClassVar[str] = "env_steps"  # what --steps counts
    requires: ClassVar[tuple[type, ...]] = ()  # capabilities of the policy
    objectives: ClassVar[str] = "one"  # what it learns from: "one" reward, "several" (`rewards` of a batch), or "any"
    facts: ClassVar[tuple[str, ...]] = ()  # facts of the task that it learns from, such as "cost"
    teams: ClassVar[str] = "rows"  # how it takes a team: "rows", every agent is one, or "joint", [N, T, V, ...]
    learns: ClassVar[str] = "policy"  # the attribute with the actor that is trained; `policy` may be made of it
    keeps: ClassVar[bool] = False  # whether it leaves the policy that --init brings as it is: then all of it must fit
    compile_seconds: ClassVar[float] = 30.0  # that compiling takes, about: for `--compile auto`
    score: ClassVar[str] = "return"  # which number of `evaluate` says how good it is: see polopt.evaluation.score

    imitates: ClassVar[bool] = False  # to repeat its data is all that it is for

    policy: Any  # an Actor; what it promises is in `requires`
    stage_name: str = ""
    done: bool = False  # whether nothing is left to learn: then a run ends before its budget is spent

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.entry = cls.__dict__.get("entry", True)
        for item in fields(cls.Config):
            if item.name in RESERVED:
                raise TypeError(f"{cls.__name__}.Config cannot have a field '{item.name}': every run has that option")
        for name in {name for names in cls.measured_by.values() for name in names}:
            if name not in cls.Config.__dataclass_fields__:
                raise TypeError(f"{cls.__name__} measures by '{name}', which its Config does not have")

    def __init__(
        self, config: Any, task: Task, *, ledger: Ledger | None = None, parts: Mapping[str, Any] | None = None
    ) -> None:
        self.config = config
        self.task = task
        self.spec = task.spec
        self.ledger = ledger or Ledger()
        self.generator = torch.Generator().manual_seed(int(torch.randint(2**31, ())))
        self._given = dict(parts or {})
        self.check_rewards()
        self.check_team()
        self.build(task)
        if self._given:
            raise TypeError(f"{self.slug} has no part '{next(iter(self._given))}' that could be given to it")
        self.check_policy()
        require_legal(self.policy, self.spec)

    def build(self, task: Task) -> None:
        """Makes the parts as attributes."""
        raise NotImplementedError  # abstract

    def initialized(self) -> None:
        """Called when the weights of another run were loaded (`--init`): all copies (targets, lagged, old and reference
        policies) are made of them. Learners that it holds are told likewise."""
        for _, twin, _ in copies(self):
            renew(twin)

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """Evaluates, improves, restrains; returns 0-d tensors. Runs for seconds at most and never syncs the device."""
        raise NotImplementedError  # abstract

    def collect(self) -> Batch:
        """The next batch of experience."""
        return self.source.next(self.behavior)

    @property
    def judged_by(self) -> Score:
        """The number that says how good it is: `score`, and what there is on recorded data without an environment."""
        return Score(BY_DATA if isinstance(self.task, Unplayed) else self.score)

    @property
    def behavior(self) -> Actor:
        """The actor that collects: the policy, unless the method says otherwise."""
        return self.policy

    def evaluate(self, task: Task, episodes: int = 10, *, greedy: bool = True) -> dict[str, float]:
        """Undiscounted returns of the policy: `return`, `return_std`, `length`. Whatever overrides it gives `score`."""
        return evaluate_returns(self.policy, task, episodes, greedy=greedy)

    def figures(self) -> dict[str, Figure]:
        """What there is to see of what was learned, by title: drawn by reports as the last evaluation left it."""
        return {}

    def part(self, name: str, make: Callable[..., P], *args: Any, **options: Any) -> P:
        """The part that was given to the constructor under this name, or else `make(*args, **options)`."""
        return self._given.pop(name) if name in self._given else make(*args, **options)

    def learner_config(self, config: C, **given: Any) -> C:
        """The config of a learner that this method holds, made whole: with this method's `HELD`, and what is given."""
        return replace(config, **{name: getattr(self.config, name) for name in HELD}, **given)

    def compile(self, **options: Any) -> None:
        super().compile(**options)
        self.task.compile(**options)

    def make_policy(self, config: Any, **options: Any) -> Actor:
        """The policy that was given to the constructor, or else `config.build(spec, **options)`."""
        return self.part("policy", config.build, self.spec, **options)

    def make_optimizer(self, *modules: nn.Module | nn.Parameter, **options: Any) -> Optimizer:
        """An `Optimizer` over these modules that splits batches into the config's micro-batches."""
        return Optimizer(*modules, micro_batch=self.config.micro_batch, **options)

    def check_rewards(self) -> None:
        """Raises UsageError, in one sentence, when the task has several objectives and the method learns from one
        reward, or the other way round, and when it lacks one of `facts`."""
        spec = self.spec
        for name in self.facts:
            if name not in spec.facts:
                raise UsageError(
                    f"{self.slug} learns from the fact '{name}', which {spec.name} does not give: --facts names "
                    "entries of an environment's info"
                )
        if self.objectives == "one" and not spec.scalar:
            raise UsageError(
                f"{self.slug} learns from one reward, and {spec.name} has {len(spec.objectives)} objectives "
                f"({', '.join(spec.objectives)}): weigh them with --objective-weights"
            )
        if self.objectives == "several" and not spec.objectives:
            raise UsageError(f"{self.slug} learns from several objectives, and {spec.name} has one reward")

    def check_team(self) -> None:
        """Raises UsageError, in one sentence, when the task has a whole team and the method takes rows."""
        if self.spec.agents > 1 and self.teams != "joint":
            raise UsageError(
                f"{self.slug} learns for single agents, and {self.spec.name} has a team of {self.spec.agents}: give it "
                "AgentRows(task)"
            )

    def check_policy(self) -> None:
        """Raises UsageError, in one sentence, when the policy lacks a capability of `requires`."""
        require(self.policy, *self.requires, by=self.slug)
