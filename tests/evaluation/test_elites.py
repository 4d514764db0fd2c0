"""Archives of elites against a loop over solutions, and numbers by hand."""

from __future__ import annotations

import math

import pytest
import torch

from polopt.core.state import gather, restore
from polopt.evaluation.elites import Elites, centroids, iso_line


def test_centroids_fill_the_box_evenly():
    middles = centroids(64, (0.0, -2.0), (1.0, 2.0), samples=5_000, seed=3)
    assert torch.equal(middles, centroids(64, (0.0, -2.0), (1.0, 2.0), samples=5_000, seed=3))
    assert middles.shape == (64, 2)
    points = torch.rand(20_000, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 4.0])
    points -= torch.tensor([0.0, 2.0])
    unit = torch.tensor([1.0, 4.0])
    shares = torch.cdist(points / unit, middles / unit).argmin(1).bincount(minlength=64) / len(points)
    assert shares.min() > 0.4 / 64
    assert shares.max() < 2.2 / 64


def test_a_cell_keeps_the_fittest_whatever_the_order():
    generator = torch.Generator().manual_seed(1)
    middles = torch.rand(9, 2, generator=generator)
    archive = Elites(middles, 3)
    kept: dict[int, tuple[float, list[float]]] = {}
    for _ in range(5):
        genotype = torch.randn(40, 3, generator=generator)
        fitness = torch.randint(6, (40,), generator=generator).float()
        descriptor = torch.rand(40, 2, generator=generator)
        taken = archive.add(genotype, fitness, descriptor)
        cells = [min(range(9), key=lambda c, d=d: float((middles[c] - d).square().sum())) for d in descriptor]
        winners = {}
        for number, cell in enumerate(cells):
            if fitness[number] > kept.get(cell, (-math.inf, []))[0]:
                kept[cell] = (float(fitness[number]), genotype[number].tolist(), descriptor[number].tolist())
                winners[cell] = number
        assert taken.nonzero().flatten().tolist() == sorted(winners.values())
    for cell, (fitness, genotype, descriptor) in kept.items():
        assert archive.fitness[cell] == fitness
        assert archive.genotype[cell].tolist() == genotype
        assert archive.descriptor[cell].tolist() == descriptor
    assert archive.filled.tolist() == sorted(kept)


def small():
    archive = Elites(torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]), 1)
    archive.add(torch.ones(2, 1), torch.tensor([-3.0, 5.0]), torch.tensor([[0.1, 0.2], [0.9, 0.8]]))
    return archive


def test_scores():
    archive = small()
    assert archive.coverage == 0.5
    assert archive.qd_score() == 2.0
    assert archive.qd_score(-10.0) == 7.0 + 15.0
    assert Elites(torch.zeros(3, 2), 1).qd_score() == 0.0


def test_draws_are_of_filled_cells_and_even():
    drawn = small().draw(4_000, torch.Generator().manual_seed(0))
    assert set(drawn.tolist()) == {0, 3}
    assert (drawn == 0).float().mean().item() == pytest.approx(0.5, abs=0.05)


def test_a_picture_has_its_first_row_at_the_bottom():
    (a, b), (c, d) = small().picture((0.0, 0.0), (1.0, 1.0), size=2)
    assert a == -3.0
    assert math.isnan(b)
    assert math.isnan(c)
    assert d == 5.0
    with pytest.raises(ValueError, match="descriptors have 3"):
        Elites(torch.zeros(1, 3), 1).picture((0.0,) * 3, (1.0,) * 3)


def test_an_archive_is_saved():
    archive, other = small(), Elites(torch.zeros(4, 2), 1)
    restore(other, gather(archive))
    assert torch.equal(other.fitness, archive.fitness)
    assert other.filled.tolist() == [0, 3]


def test_children_lie_around_the_line_between_their_parents():
    generator = torch.Generator().manual_seed(0)
    one, other = torch.zeros(20_000, 2), torch.tensor([3.0, 4.0]).expand(20_000, 2)
    children = iso_line(one, other, 0.1, 0.5, generator)
    along, across = children @ torch.tensor([0.6, 0.8]), children @ torch.tensor([-0.8, 0.6])
    assert across.std().item() == pytest.approx(0.1, rel=0.05)
    assert along.std().item() == pytest.approx(math.hypot(0.1, 0.5 * 5.0), rel=0.05)
    assert abs(children.mean()) < 0.05
    assert torch.equal(iso_line(one, other, 0.0, 0.0, generator), one)
