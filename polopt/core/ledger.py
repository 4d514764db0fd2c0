"""One place where experience is counted; budgets, schedules and triggers all read it."""

from __future__ import annotations

from polopt.core.errors import UsageError, nearest
from polopt.core.state import Stateful


class Ledger(Stateful):
    """What has been spent: `env_steps`, `episodes`, `completions`, `tokens` and `updates` (calls of `update`)."""

    learned = False
    UNITS = ("env_steps", "episodes", "completions", "tokens", "updates")
    saved = UNITS

    def __init__(self) -> None:
        self.env_steps = 0
        self.episodes = 0
        self.completions = 0
        self.tokens = 0
        self.updates = 0

    def __getitem__(self, unit: str) -> int:
        if unit not in self.UNITS:
            raise UsageError(f"'{unit}' is not counted by the ledger{nearest(unit, self.UNITS)}")
        return getattr(self, unit)

    def counts(self) -> dict[str, int]:
        return {unit: getattr(self, unit) for unit in self.UNITS}
