"""Archives of the best solution of every kind: MAP-Elites on cells of a space of descriptors.

Mouret and Clune 2015, "Illuminating search spaces by mapping elites", arXiv 1504.04909; cells by centroidal Voronoi
tessellation: Vassiliades et al. 2016, arXiv 1610.05729.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn


def centroids(
    cells: int, low: Sequence[float], high: Sequence[float], *, samples: int = 50_000, seed: int = 0
) -> Tensor:
    """The middles [cells, D] of cells of about equal size in the box from `low` to `high`: k-means of uniform points.

    The same at every call with the same arguments.
    """
    from scipy.cluster.vq import kmeans2

    lowest, highest = np.asarray(low, float), np.asarray(high, float)
    points = np.random.default_rng(seed).random((samples, len(low)))
    middles, _ = kmeans2(points, points[:cells], minit="matrix")
    return torch.as_tensor(lowest + (highest - lowest) * middles, dtype=torch.get_default_dtype())


class Elites(nn.Module):
    """The fittest solution [P] of each of C cells; a cell holds descriptors that are nearest to its centroid [C, D].

    Attributes:
        genotype [C, P], fitness [C] (-inf of an empty cell), descriptor [C, D] (that of the solution, not the middle of
        the cell): buffers, so that they are saved and moved.
    """

    centroids: Tensor
    genotype: Tensor
    fitness: Tensor
    descriptor: Tensor

    def __init__(self, centroids: Tensor, size: int) -> None:
        super().__init__()
        self.register_buffer("centroids", centroids)
        self.register_buffer("genotype", centroids.new_zeros(len(centroids), size))
        self.register_buffer("fitness", centroids.new_full((len(centroids),), -torch.inf))
        self.register_buffer("descriptor", torch.zeros_like(centroids))

    @torch.no_grad()
    def add(self, genotype: Tensor, fitness: Tensor, descriptor: Tensor) -> Tensor:
        """Offers solutions [B, P] with `fitness` [B] and `descriptor` [B, D]; returns which of them are in: bool [B].

        A solution takes its cell if it is fitter than what is there and than all others that are offered; of equally
        fit ones the first.
        """
        cell = self.cell(descriptor)
        count, order = len(self.fitness), torch.arange(len(cell), device=cell.device)
        best = self.fitness.new_full((count,), -torch.inf).scatter_reduce(0, cell, fitness, "amax")
        top = (fitness == best[cell]) & (fitness > self.fitness[cell])
        first = order.new_full((count,), len(cell)).scatter_reduce(0, cell, torch.where(top, order, len(cell)), "amin")
        taken = order == first[cell]
        where = cell[taken]
        self.genotype[where], self.fitness[where] = genotype[taken], fitness[taken]
        self.descriptor[where] = descriptor[taken]
        return taken

    def cell(self, descriptor: Tensor) -> Tensor:
        """The number int64 [...] of the cell of descriptors [..., D]."""
        return (
            torch.cdist(descriptor.reshape(-1, descriptor.shape[-1]), self.centroids)
            .argmin(-1)
            .view(descriptor.shape[:-1])
        )

    @property
    def filled(self) -> Tensor:
        """The numbers int64 [F] of the cells that hold a solution."""
        return (self.fitness > -torch.inf).nonzero().flatten()

    @property
    def coverage(self) -> Tensor:
        """The share of the cells that hold a solution, 0-d."""
        return (self.fitness > -torch.inf).to(self.fitness.dtype).mean()

    def qd_score(self, offset: float = 0.0) -> Tensor:
        """The sum of fitness less `offset` over the cells that hold a solution, 0-d; `offset` is no more than any
        fitness can be, so that a cell never costs.

        Pugh et al. 2015, "Confronting the Challenge of Quality Diversity".
        """
        return torch.where(self.fitness > -torch.inf, self.fitness - offset, 0.0).sum()

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Numbers int64 [count] of cells that hold a solution, each as likely as the others, with replacement."""
        filled = self.filled
        return filled[torch.randint(len(filled), (count,), generator=generator).to(filled.device)]

    def picture(self, low: Sequence[float], high: Sequence[float], size: int = 48) -> list[list[float]]:
        """Fitness on a grid of points of a plane of descriptors, `values[row][column]`, the first row at the bottom;
        nan in an empty cell. Raises ValueError for descriptors of another number of dimensions than 2."""
        if self.centroids.shape[1] != 2:
            raise ValueError(f"a picture is of two dimensions, and descriptors have {self.centroids.shape[1]}")
        x, y = (
            one + (other - one) * (torch.arange(size, device=self.centroids.device) + 0.5) / size
            for one, other in zip(low, high)
        )
        points = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).to(self.centroids)
        values = self.fitness[self.cell(points)]
        return torch.where(values > -torch.inf, values, torch.nan).tolist()


def iso_line(one: Tensor, other: Tensor, iso: float, line: float, generator: torch.Generator) -> Tensor:
    """Children [B, P] of two parents [B, P]: one + iso N(0, I) + line N(0, 1) (other - one).

    Vassiliades and Mouret 2018, "Discovering the Elite Hypervolume by Leveraging Interspecies Correlation",
    arXiv 1804.03906, equation 2.
    """
    noise = torch.randn(one.shape, generator=generator, dtype=one.dtype).to(one.device)
    along = torch.randn(len(one), 1, generator=generator, dtype=one.dtype).to(one.device)
    return one + iso * noise + line * along * (other - one)
