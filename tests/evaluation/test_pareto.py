"""Fronts, against numbers worked out by hand and by counting."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from polopt.core.snapshot import give
from polopt.core.state import gather, restore
from polopt.evaluation.pareto import (
    Front,
    crowding_distance,
    dense_grid,
    expected_utility,
    front_figures,
    front_scores,
    hypervolume,
    nondominated,
    sparsity,
    weight_grid,
)

POINTS = [[1.0, 5.0], [3.0, 3.0], [1.0, 5.0], [2.0, 3.0], [4.0, 0.0], [0.0, 4.0]]


def test_of_equal_points_the_first_is_on_the_front():
    assert nondominated(POINTS).tolist() == [True, True, False, False, True, False]
    assert nondominated(np.zeros((0, 3))).tolist() == []


def test_domination_in_three_objectives_is_what_pairs_say():
    points = np.random.default_rng(0).integers(0, 5, (60, 3)).astype(float)
    points = np.unique(points, axis=0)
    beaten = [any((other >= one).all() and (other > one).any() for other in points) for one in points]
    assert nondominated(points).tolist() == [not each for each in beaten]


def test_hypervolume_of_rectangles():
    assert hypervolume(POINTS, [0, 0]) == pytest.approx(1 * 5 + 2 * 3 + 0)
    assert hypervolume(POINTS, [0, -1]) == pytest.approx(1 * 6 + 2 * 4 + 1 * 1)
    assert hypervolume(POINTS, [2, 2]) == pytest.approx(1.0)
    assert hypervolume(POINTS, [9, 9]) == 0.0


def test_hypervolume_in_four_objectives_counts_cells():
    points = np.random.default_rng(1).integers(1, 5, (12, 4))
    cells = sum(any((point > cell).all() for point in points) for cell in itertools.product(range(5), repeat=4))
    assert hypervolume(points, np.zeros(4)) == pytest.approx(cells)


def test_expected_utility_takes_the_best_of_each_preference():
    weights = [[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]]
    assert expected_utility(POINTS, weights) == pytest.approx((4.0 + 3.0 + 5.0) / 3)


def test_scores_of_a_front_leave_out_what_is_dominated():
    found = front_scores(POINTS, [0, 0])
    assert found["hypervolume"] == pytest.approx(11.0)
    assert found["sparsity"] == pytest.approx((4 + 1 + 4 + 9) / 2)  # of (1, 5), (3, 3) and (4, 0)
    assert found["expected_utility"] == pytest.approx(expected_utility(POINTS, dense_grid(2)))


def test_a_front_is_drawn_in_its_first_two_objectives():
    (figure,) = front_figures(POINTS, ("speed", "thrift")).values()
    assert (figure.x_label, figure.y_label, figure.front) == ("speed", "thrift", True)
    assert [*zip(figure.x, figure.y)] == [*map(tuple, POINTS)]
    (figure,) = front_figures([[1.0, 2.0, 3.0]], ("a", "b", "c")).values()
    assert not figure.front  # in three objectives two do not say what is on it
    assert front_figures(np.zeros((0, 2)), ("a", "b")) == front_figures([[1.0]], ("a",)) == {}


def test_sparsity_is_of_neighbors_in_each_objective():
    assert sparsity([[0.0, 4.0], [1.0, 1.0], [3.0, 0.0]]) == pytest.approx((1 + 4 + 1 + 9) / 2)
    assert sparsity([[0.0, 4.0]]) == 0.0


def test_crowding_distance_is_the_gap_of_both_neighbors_over_the_range():
    distance = crowding_distance([[0.0, 8.0], [3.0, 2.0], [1.0, 6.0], [4.0, 0.0]])
    assert distance.tolist() == [np.inf, 3 / 4 + 6 / 8, 3 / 4 + 6 / 8, np.inf]
    assert crowding_distance([[0.0, 1.0], [1.0, 1.0], [4.0, 1.0]])[1] == 1.0
    assert crowding_distance([[2.0, 1.0]]).tolist() == [np.inf]


def test_the_weights_are_all_that_sum_to_one():
    grid = weight_grid(3, 4)
    assert len(grid) == 15
    assert len(np.unique(grid, axis=0)) == 15
    assert grid.sum(1) == pytest.approx(np.ones(15))
    assert weight_grid(2, 2).tolist() == [[0.0, 1.0], [0.5, 0.5], [1.0, 0.0]]
    assert weight_grid(4, 1).tolist() == np.eye(4)[::-1].tolist()


class Learner(nn.Module):
    """One number, which is what it has learned."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("value", torch.zeros(()))


def filled(points, **options):
    front, learner = Front([0.0, 0.0], **options), Learner()
    taken = []
    for number, point in enumerate(points):
        learner.value.fill_(number)
        taken.append(front.offer(learner, point))
    return front, taken


def test_a_front_keeps_what_is_not_dominated_with_what_it_had_learned():
    front, taken = filled([[1, 1], [0, 3], [2, 2], [1, 2], [3, 0], [2, 2]])
    assert taken == [True, True, True, False, True, False]
    assert front.returns.tolist() == [[0, 3], [2, 2], [3, 0]]
    learner = Learner()
    give(learner, front[1].snapshot)
    assert learner.value == 2
    assert [front.best(weights) for weights in ([1, 0], [0, 1], [0.5, 0.5])] == [2, 0, 1]


def test_what_is_below_the_reference_stays_only_until_something_is_above():
    front, taken = filled([[-1, 9], [9, -1], [1, 1], [-1, 99]])
    assert taken == [True, True, True, False]
    assert front.returns.tolist() == [[1, 1]]


def test_a_full_front_loses_the_most_crowded():
    front, _ = filled([[0, 8], [8, 0], [4, 4], [4.5, 3.9], [1, 7]], capacity=4)
    assert front.returns.tolist() == [[0, 8], [8, 0], [4.5, 3.9], [1, 7]]


def test_a_front_is_saved_with_its_notes():
    front, _ = filled([[0, 3], [2, 2]])
    other = Front([0.0, 0.0])
    restore(other, gather(front))
    assert other.returns.tolist() == front.returns.tolist()
    assert [entry.note for entry in other] == [entry.note for entry in front]


def test_points_are_rows():
    with pytest.raises(ValueError, match="a row for each policy"):
        nondominated([1.0, 2.0])
