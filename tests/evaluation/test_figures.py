import json
import math

import numpy as np
import pytest
import torch

from polopt.core.errors import UsageError
from polopt.evaluation.figures import Curves, Heatmap, Paths, Points, from_json, to_json


def test_figures_survive_json():
    figures = {
        "curves": Curves(
            [0, 1], {"a": torch.tensor([1.0, math.nan]), "b": np.array([3, 4])}, y_label="value", dashed=("b",)
        ),
        "paths": Paths({"a": (torch.arange(2), [0.5, math.nan])}, {"goal": (1.0, 2.0)}),
        "points": Points(torch.arange(2), [0.5, math.inf], labels=("one", "two"), front=True),
        "cells": Heatmap(torch.tensor([[0.25, math.nan], [1.0, 2.0]]), x_label="speed"),
    }
    text = json.dumps(to_json(figures), allow_nan=False)
    again = from_json(json.loads(text))
    assert again["curves"] == Curves([0, 1], {"a": [1.0, None], "b": [3, 4]}, y_label="value", dashed=["b"])
    assert again["paths"] == Paths({"a": [[0, 1], [0.5, None]]}, {"goal": [1.0, 2.0]})
    assert again["points"] == Points([0, 1], [0.5, None], labels=["one", "two"], front=True)
    assert again["cells"] == Heatmap([[0.25, None], [1.0, 2.0]], x_label="speed")


@pytest.mark.parametrize(
    ("make", "counts"),
    [
        (lambda: Curves([0, 1], {"a": [1.0, 2.0], "b": [1.0]}), "2, 2, 1"),
        (lambda: Paths({"a": ([0.0, 1.0], [0.0])}), "2, 1"),
        (lambda: Points(torch.zeros(3), [0.0, 1.0]), "3, 2"),
        (lambda: Points([0.0, 1.0], [0.0, 1.0], labels=("one",)), "2, 2, 1"),
        (lambda: Heatmap([[1.0], [1.0, 2.0]]), "1, 2"),
    ],
)
def test_sides_of_different_lengths_are_refused(make, counts):
    with pytest.raises(UsageError, match=f"equally many numbers on all sides, not {counts}"):
        make()
