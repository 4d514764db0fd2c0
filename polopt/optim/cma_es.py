"""Search without gradients: CMA-ES, by the package of its authors.

Hansen, "The CMA Evolution Strategy: A Tutorial", 2016, arXiv 1604.00772.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor


def cma_es(
    objective: Callable[[Tensor], Tensor],
    start: Tensor,
    *,
    std: float,
    population: int,
    generations: int,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Every point [n, P] that was tried, population after population, and its value [n], to be minimized.

    Points are in [-1, 1]^P, on the CPU. `objective` values the points [population, P] of one generation.

    Args:
        start: the first mean [P]. std: the first deviation along each axis.
        generator: all draws follow from one number of it; NumPy's global state is left alone.
    """
    import cma  # a fraction of a second that others can do without

    luck = np.random.default_rng(int(torch.randint(2**31, (), generator=generator)))
    options = {
        "popsize": population,
        "bounds": [-1.0, 1.0],
        "maxstd": np.inf,  # its default fails in one dimension (cma 4.5.0)
        "seed": np.nan,
        "randn": lambda *shape: luck.standard_normal(shape),
        "verbose": -9,
    }
    strategy = cma.CMAEvolutionStrategy(start.tolist(), std, options)
    points, values = [], []
    for _ in range(generations):
        asked = strategy.ask()
        points.append(torch.as_tensor(np.array(asked), dtype=torch.get_default_dtype()))
        values.append(objective(points[-1]).double().cpu())
        strategy.tell(asked, values[-1].tolist())
    return torch.cat(points), torch.cat(values)
