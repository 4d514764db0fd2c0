"""Parameters of a world that nobody knows exactly: a box of models."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from polopt.core.errors import UsageError
from polopt.core.spec import Spec


@dataclass(frozen=True)
class Parameters:
    """The box of models of a world: each parameter has a range, and a name under which it is in the state of every row
    and may be given by `levels`. `spec.info["parameters"]` is {name: [low, high]}.

    Points psi [..., P] of the box are normalized: -1 and 1 are the ends of the ranges, 0 is their middle.
    """

    names: tuple[str, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]

    @classmethod
    def of(cls, spec: Spec) -> Parameters:
        """Those of a task. Raises UsageError, one sentence, for one that has none."""
        box = spec.info.get("parameters")
        if not box:
            raise UsageError(f"{spec.name} has no parameters that differ between models, as the task pendulum has")
        low, high = zip(*box.values(), strict=True)
        return cls(tuple(box), low, high)

    def described(self) -> dict[str, list[float]]:
        """As a spec has them."""
        return {name: list(ends) for name, *ends in zip(self.names, self.low, self.high, strict=True)}

    def values(self, psi: Tensor) -> dict[str, Tensor]:
        """The parameters [...] of models psi [..., P], by name, in their own units."""
        low, high = (torch.tensor(ends, dtype=psi.dtype, device=psi.device) for ends in (self.low, self.high))
        return dict(zip(self.names, (low + (high - low) * (psi + 1) / 2).unbind(-1), strict=True))

    def grid(self, points: int) -> Tensor:
        """All models [points^P, P] of a grid that reaches the ends, the last parameter changing fastest; the middle
        where it has one point."""
        line = torch.linspace(-1, 1, points) if points > 1 else torch.zeros(1)
        return torch.cartesian_prod(*[line] * len(self.names)).reshape(-1, len(self.names))
