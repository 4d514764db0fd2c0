"""What a method says of itself besides its mathematics: limit cases, presets, numbers, the smallest run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal


@dataclass(frozen=True)
class Limit:
    """A setting at which a method *is* another one, proved by a test that the registry generates.

    With `at`, three updates on the same batches give bitwise the base's policy; with `at` changed by `apart` they must
    not, or the mechanism is not wired in.

    Attributes:
        base: name of the other method.
        at: settings of this method; `base_at`: settings of the base.
        because: why the two are equal there.
        tolerance: largest difference of a parameter; above 0 only with a reason in `because`.
        task: where it holds, if the base's smoke task has other spaces.
        learner: path of the learner that is the base, of those that the method holds (`Method.learners`); "" is the
            method itself.
        collects: whose batches these are, "base" or "method"; what the method collects reaches the base as the
            learner's `update` gets it. With "each" they collect for themselves, with the same luck.
    """

    base: str
    at: dict[str, Any]
    apart: dict[str, Any]
    because: str
    base_at: dict[str, Any] = field(default_factory=dict)
    tolerance: float = 0.0
    task: str | None = None
    learner: str = ""
    collects: Literal["base", "method", "each"] = "base"


@dataclass(frozen=True)
class Smoke:
    """The smallest run of a method that exercises all of it: what the registry's guards train, in seconds.

    Attributes:
        task: a task that needs no optional package.
        steps: budget in the method's unit, long enough for the longest delay of the method to have passed.
        config: settings that make it small.
        task_options: keyword arguments of the task.
    """

    task: str
    steps: int
    config: dict[str, Any] = field(default_factory=dict)
    task_options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Study:
    """The task and the budget of an experiment, for a run with the preset of that name that is given no task.

    Attributes:
        task: its name, such as "datasets/openai/gsm8k"; `task_options` are keyword arguments of it.
        steps: budget in the method's unit; None takes the method's own default.
    """

    task: str
    steps: int | None = None
    task_options: dict[str, Any] = field(default_factory=dict)


class Settings:
    """What a method says of itself besides its mathematics.

    Where that is long, it stands in a file beside the method's, `NAME_settings.py`, as a class that the method's
    inherits from: `class PPO(PPOSettings, Method)`.
    """

    default_steps: ClassVar[int] = 100_000
    eval_episodes: ClassVar[int] = 10
    headline: ClassVar[tuple[str, ...]] = ()  # the metrics to watch
    trains_on: ClassVar[str] = ""  # in a few words, for the list of methods
    metrics: ClassVar[dict[str, str]] = {}  # what each number means | what to look for; those of its bases are added
    metrics_of: ClassVar[tuple[type[Settings], ...]] = ()  # other methods whose numbers it logs too
    metrics_without: ClassVar[tuple[str, ...]] = ()  # those of its bases that it never logs
    measured_by: ClassVar[dict[str, tuple[str, ...]]] = {}
    """Of numbers that `evaluate` gives: the options they are measured by. Where these differ between runs, such a
    number is not compared."""
    presets: ClassVar[dict[str, dict[str, Any]]] = {}
    studies: ClassVar[dict[str, Study]] = {}  # what presets were trained on, by their names
    limits: ClassVar[tuple[Limit, ...]] = ()
    no_limit: ClassVar[str] = ""  # the reason why there is no limit case
    smoke: ClassVar[Smoke]
    probes: ClassVar[dict[str, dict[str, Any]]] = {}
    """Of options that the smoke run does not show, as nothing is clipped in it, say: settings under which they act."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "presets" in vars(cls) and "studies" not in vars(cls):  # those of a base are of the base's presets
            cls.studies = {}

    @classmethod
    def explained(cls) -> dict[str, str]:
        """`metrics` of this class, of its bases but for `metrics_without`, and of `metrics_of`."""
        found: dict[str, str] = {}
        for base in reversed(cls.__mro__):
            for other in base.__dict__.get("metrics_of", ()):
                found |= other.explained()
            for name in base.__dict__.get("metrics_without", ()):
                del found[name]
            found |= base.__dict__.get("metrics", {})
        return found

    @classmethod
    def derived(cls, config: Any, steps: int) -> dict[str, int]:
        """Numbers that follow from the config and the budget; printed before a run, so that nobody has to guess."""
        return {}
