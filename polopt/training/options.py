"""What belongs to a run and not to a method. Torch-free."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from polopt.config import Config, param
from polopt.core.errors import UsageError


@dataclass(frozen=True)
class RunOptions(Config):
    """Options of `polopt train` that every method shares."""

    steps: int | None = param(
        None, "polopt", low=1, help="budget, in the method's own unit; a method says what is enough by default"
    )
    seed: int = param(0, "polopt", low=0)
    device: str = param("cpu", "polopt", help="cpu, cuda, cuda:1, ... or auto")
    dtype: str = param("float32", "polopt", choices=("float32", "float64"))
    workers: int = param(0, "polopt", low=0, help="worker processes for the environments; 0 steps them in process")
    facts: tuple[str, ...] = param((), "polopt", help="entries of the environment's info to keep beside the reward")
    objective_weights: tuple[float, ...] = param(
        (), "polopt", help="for tasks of several objectives: the reward is their sum with these weights"
    )
    threads: int | None = param(None, "polopt", low=1, help="torch threads; by default torch's own choice")
    processes: int = param(
        1, "polopt", low=1, help="processes that share the run, each with rows of its own: of language models"
    )
    shard: bool = param(
        False, "polopt", help="divide language models among the processes: less memory, more traffic (FSDP2)"
    )
    compile: bool | Literal["auto"] = param(
        False, "polopt", help="compile updates, optimizer steps, or passes through a language model; auto: if it pays"
    )
    eval_every: int | None = param(None, "polopt", low=1, help="steps between evaluations; default: 20 in the run")
    eval_episodes: int | None = param(None, "polopt", low=1, help="default: the method's own, 10 in control")
    eval_length: int = param(
        100_000, "polopt", low=1, help="decisions after which an episode of an evaluation is cut, which it then says"
    )
    log_every: int | None = param(None, "polopt", low=1, help="steps between rows; default: 100 in the run")
    checkpoint_every: int | None = param(None, "polopt", low=1, help="steps between checkpoints; default: eval_every")
    until: str | None = param(None, "polopt", help="stop early once an evaluation says so, e.g. 'return>=475'")
    loggers: tuple[str, ...] = param(("tensorboard",), "polopt", help="besides metrics.csv: tensorboard, wandb")
    name: str | None = param(None, "polopt", help="what reports call the run; default: the method and what differs")
    video: bool = param(False, "polopt", help="record a video of the policy at the end, and show it in report.html")


@dataclass(frozen=True)
class Until:
    """An early stop: `name` of an evaluation metric, compared with `value`."""

    name: str
    sign: str
    value: float

    @classmethod
    def parse(cls, text: str) -> Until:
        """Reads 'return>=475'. Raises UsageError for anything else."""
        match = re.fullmatch(r"\s*([\w/]+)\s*(>=|<=|>|<)\s*([-+]?[\d.]+(?:[eE][-+]?\d+)?)\s*", text)
        if not match:
            raise UsageError(f"--until '{text}' is not of the form METRIC>=NUMBER, for example return>=475")
        return cls(match[1], match[2], float(match[3]))

    def met(self, metrics: dict[str, float]) -> bool:
        name = self.name if self.name in metrics else f"eval/{self.name}"
        if name not in metrics:
            raise UsageError(f"--until: evaluations have no '{self.name}', only {', '.join(sorted(metrics))}")
        value = metrics[name]
        return {
            ">=": value >= self.value,
            "<=": value <= self.value,
            ">": value > self.value,
            "<": value < self.value,
        }[self.sign]
