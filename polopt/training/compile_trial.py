"""`--compile auto`: whether compiling is worth it, found out with the first updates of a run."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable

from torch import Tensor

from polopt.bases.method import Method
from polopt.core.batch import Batch
from polopt.core.errors import Notice

BEGINNING = 3  # updates that are not counted: what happens once in a run happens in them
UPDATES = 10  # so many are looked at
SHARE = 0.5  # of an update that compiling is expected to save, before it is tried


class CompileTrial:
    """The updates of a run while it is not decided whether they are compiled; none is made for the measurement alone.

    The first ones are timed as they are. Where half of the time (`SHARE`) of all that are left of the budget is less
    than what compiling takes (`Method.compile_seconds`), it ends there. Otherwise the method is compiled, and the next
    ones say what that has brought. What is decided is told in a Notice, with the steps after which compiling pays.

    Args:
        method: the learner, not compiled.
        steps: the budget, in the method's unit.
        clock: gives seconds.

    Attributes:
        decided: whether the method is compiled, None while that is open.
    """

    def __init__(self, method: Method, steps: int, clock: Callable[[], float] = time.perf_counter) -> None:
        self.method, self.steps, self.clock = method, steps, clock
        self.decided: bool | None = None
        self._times: list[float] = []
        self._updates = 0
        self._begun = 0  # the count of the run at the end of the first update
        self._plain: float | None = None  # seconds of an update that is not compiled, once that is known

    def settle(self, compiled: bool) -> None:
        """Decides as it was decided before, in a run that goes on."""
        if compiled and not self.decided:
            self.method.compile()
        self.decided = compiled

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """One update of the method."""
        if self.decided is not None:
            return self.method.update(batch)
        begin = self.clock()
        metrics = self.method.update(batch)
        for value in metrics.values():
            float(value)  # waits for the device
        self._times.append(self.clock() - begin)
        self._updates += 1
        if self._updates == 1:
            self._begun = self._count
        seen = self._times[BEGINNING:]
        if len(seen) == UPDATES:
            self._look(typical(seen))
        return metrics

    @property
    def _count(self) -> int:
        return self.method.ledger[self.method.unit]

    def _look(self, seconds: float) -> None:
        each = max(self._count - self._begun, 1) / (self._updates - 1)  # steps of an update
        unit = self.method.unit.replace("_", " ")
        if self._plain is not None:
            cost, saved = sum(self._times) - seconds * len(self._times), self._plain - seconds
            won = f"{cost / saved * each:,.0f} {unit} win back" if saved > 0 else "is lost"
            times = f"an update takes {1e3 * seconds:,.1f} ms after {1e3 * self._plain:,.1f} ms"
            self._say(True, f"{times}, and compiling took {cost:.0f} s, which {won}")
            return
        cost, saved = self.method.compile_seconds, SHARE * seconds
        left = (self.steps - self._count) / each
        if saved * left >= cost:
            self._plain, self._times = seconds, []
            self.method.compile()
            return
        times = f"compiling takes about {cost:.0f} s, and the updates to come {seconds * left:.2g} s"
        self._say(False, f"{times}: it would begin to pay at about {cost / saved * each:,.0f} {unit}")

    def _say(self, compiled: bool, why: str) -> None:
        self.decided = compiled
        warnings.warn(f"--compile auto: {'compiled' if compiled else 'not compiled'}: {why}", Notice, stacklevel=2)


def typical(times: list[float]) -> float:
    """The mean of all but the largest tenth: updates may be of several kinds, and some are disturbed."""
    kept = sorted(times)[: len(times) - max(1, len(times) // 10)]
    return sum(kept) / len(kept)
