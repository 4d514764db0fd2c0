"""Schedules: a factor in [0, 1] as a function of the progress of a run in [0, 1)."""

import math
from dataclasses import dataclass

from polopt.config.params import Config, param


@dataclass(frozen=True)
class Schedule(Config):
    """Base of the schedules: a linear rise from 0 over the fraction `warmup` of the run, then `shape`."""

    warmup: float = param(0.0, "polopt", low=0, below=1, help="fraction of the run over which the factor rises from 0")

    def __call__(self, progress: float) -> float:
        """Returns the factor at `progress` (fraction of the run that is done)."""
        if progress < self.warmup:
            return max(progress, 0.0) / self.warmup
        return self.shape(min((progress - self.warmup) / (1.0 - self.warmup), 1.0))

    def shape(self, fraction: float) -> float:
        """The factor at this fraction, in [0, 1], of what follows the warm-up."""
        raise NotImplementedError  # abstract


@dataclass(frozen=True)
class Constant(Schedule):
    """Factor 1 throughout (after the warm-up)."""

    def __call__(self, progress: float) -> float:
        """As its base. Without a warm-up nothing looks at `progress`, for whose first change a compiled function that
        does is compiled again."""
        return super().__call__(progress) if self.warmup else 1.0

    def shape(self, fraction: float) -> float:
        return 1.0


@dataclass(frozen=True)
class Linear(Schedule):
    """A straight line from 1 (after the warm-up) to `end` at the end of the run."""

    end: float = param(0.0, "polopt", low=0, high=1, help="the factor at the end of the run")

    def shape(self, fraction: float) -> float:
        return 1.0 + (self.end - 1.0) * fraction


@dataclass(frozen=True)
class Cosine(Schedule):
    """Half a cosine from 1 (after the warm-up) to `end`: SGDR (arXiv 1608.03983, equation 5) without restarts."""

    end: float = param(0.0, "polopt", low=0, high=1, help="the factor at the end of the run")

    def shape(self, fraction: float) -> float:
        return self.end + (1.0 - self.end) * 0.5 * (1.0 + math.cos(math.pi * fraction))
