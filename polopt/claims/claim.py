"""What a paper claims, small, and stated before it is tested. Torch-free.

    CLAIM = Claim(
        method="sac",
        statement="a learned temperature makes the return insensitive to the reward scale",
        budget={"env_steps": 12_000}, seeds=5, minutes=40,
        arms={"learned@10": train_arm("sac", "Pendulum-v1", reward_scale=10), ...},
        expect=(Greater("return", "learned@10", "fixed@10", by=200), Within("return", "learned@*", spread=150)),
    )

An arm is any callable `(seed, budget) -> {metric: number or list}`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, ClassVar

import numpy as np

from polopt.core.errors import UsageError

Metrics = Mapping[str, Any]
Budget = Mapping[str, int]
Arm = Callable[[int, dict[str, int]], Metrics]

ARM_NAME = re.compile(r"[a-z0-9@.,=_-]+")
MINIMUM_SEEDS = 3
MOST_REVISIONS = 3
PILOT_SEED = 1000  # seeds from here on are for finding settings, never for what counts


@dataclass(frozen=True)
class Claim:
    """One experiment of a paper, made small, with what is expected of it.

    `budget` is what each arm may spend, in Ledger units, the same for all. `minutes` documents the wall time on two
    cores for all arms and seeds. `deterministic` arms (patterns) give the same numbers for every seed and run once.
    `quick` overrides the small budget of `--quick`.

    A claim may be registered again where the experiment was at fault, not the method: with `revision` 2 (or 3), a
    `diagnosis` that says what was wrong, and seeds from `first_seed` on that no earlier registration used. The earlier
    verdict stays on the page.

    Raises UsageError when it is not well formed.
    """

    method: str
    statement: str
    budget: Mapping[str, int]
    arms: Mapping[str, Arm]
    expect: tuple[Any, ...]
    seeds: int = 5
    minutes: float = 15
    deterministic: tuple[str, ...] = ()
    quick: Mapping[str, int] | None = None
    revision: int = 1
    diagnosis: str = ""
    first_seed: int = 0
    MAX_MINUTES: ClassVar[float] = 60

    def __post_init__(self) -> None:
        if not self.arms:
            raise UsageError(f"the claim of {self.method} has no arms")
        for name in self.arms:
            if not ARM_NAME.fullmatch(name):
                raise UsageError(f"the arm name '{name}' may only hold a-z 0-9 @ . , = _ -")
        for value in self.budget.values():
            if value <= 0:
                raise UsageError(f"the budget of the claim of {self.method} must be above 0, not {value}")
        single = self.single()
        if self.seeds < MINIMUM_SEEDS and len(single) < len(self.arms):
            raise UsageError(f"the claim of {self.method} has {self.seeds} seeds; {MINIMUM_SEEDS} is the least")
        if self.minutes > self.MAX_MINUTES:
            raise UsageError(f"the claim of {self.method} takes {self.minutes:g} minutes; cut it to {self.MAX_MINUTES}")
        self._check_registration()
        if not any(not expectation.control for expectation in self.expect):
            raise UsageError(f"the claim of {self.method} expects nothing beyond its controls")
        for expectation in self.expect:
            expectation.arms(tuple(self.arms))
            if not expectation.contrasts(tuple(self.arms), lambda arm: np.zeros(1)):
                raise UsageError(f"'{expectation.text()}' compares an arm with itself only")

    def _check_registration(self) -> None:
        if not 1 <= self.revision <= MOST_REVISIONS:
            raise UsageError(f"revision {self.revision} of the claim of {self.method}: from 1 to {MOST_REVISIONS}")
        if (self.revision > 1) != bool(self.diagnosis.strip()):
            raise UsageError(
                f"the claim of {self.method} has revision {self.revision}: from 2 on, and only then, its diagnosis "
                f"says what was wrong with the experiment before"
            )
        if self.revision > 1 and not self.first_seed:
            raise UsageError(f"the claim of {self.method} is registered again: first_seed= begins at seeds never used")
        if self.first_seed < 0 or self.first_seed + self.seeds > PILOT_SEED:
            raise UsageError(f"the seeds of the claim of {self.method} lie between 0 and {PILOT_SEED - 1}")

    @property
    def recorded_seeds(self) -> range:
        """The seeds whose runs count."""
        return range(self.first_seed, self.first_seed + self.seeds)

    def single(self) -> tuple[str, ...]:
        """The deterministic arms."""
        return tuple(name for name in self.arms if any(fnmatchcase(name, pattern) for pattern in self.deterministic))

    def jobs(self, seeds: Iterable[int] | None = None) -> list[tuple[str, int]]:
        """All (arm, seed) of the claim, seeds outside and arms inside: an interrupted claim stays paired."""
        single = self.single()
        chosen = list(self.recorded_seeds if seeds is None else seeds)
        return [
            (arm, seed)
            for position, seed in enumerate(chosen)
            for arm in self.arms
            if position == 0 or arm not in single
        ]
