import numpy as np
import pytest
import torch
from scipy.spatial import KDTree

from polopt.data.nearest import Nearest


@pytest.mark.parametrize("chunk", [7, 100, 1000])
@pytest.mark.parametrize("scale", [1.0, 1e3])
def test_it_finds_what_a_tree_finds(chunk, scale):
    random = np.random.default_rng(0)
    points, query = random.normal(size=(230, 5)), random.normal(size=(40, 5))
    points[:, :3] *= scale
    query[:, :3] *= scale
    points[:, :3] += 50.0 * scale  # far from 0: differences of large numbers
    query[:, :3] += 50.0 * scale
    _, expected = KDTree(points).query(query)
    assert Nearest(torch.from_numpy(points), chunk)(torch.from_numpy(query)).tolist() == expected.tolist()


def test_of_equal_points_it_is_the_first():
    points = torch.tensor([[3.0], [1.0], [1.0], [-1.0], [1.0]])
    assert Nearest(points, 2)(torch.tensor([[1.2], [0.0], [9.0]])).tolist() == [1, 1, 0]


def test_no_gradient_passes():
    query = torch.ones(2, 1, requires_grad=True)
    assert not Nearest(torch.zeros(3, 1, requires_grad=True))(query).requires_grad
