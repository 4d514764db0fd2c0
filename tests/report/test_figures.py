import json
import math
import re

import numpy as np
import pytest

from polopt.evaluation.figures import Curves, Heatmap, Points, to_json
from polopt.report import read_run, write_report
from polopt.report.figures import draw, shown_together, undominated
from tests.report.test_report import check_page, make_run


def show(folder, **figures):
    (folder / "figures.json").write_text(json.dumps({"step": 5, "figures": to_json(figures)}))
    return folder


def test_undominated():
    x = np.array([1.0, 4.0, 3.0, 2.0, 4.0, 2.0, math.nan])
    y = np.array([5.0, 1.0, 3.0, 3.0, 0.5, 4.0, 9.0])
    brute = [
        i for i in range(6) if not any(x[j] >= x[i] and y[j] >= y[i] and (x[j], y[j]) != (x[i], y[i]) for j in range(6))
    ]
    assert sorted(undominated(x, y)) == brute == [0, 1, 2, 5]
    assert list(undominated(x, y)) == [0, 5, 2, 1]  # from left to right
    assert list(undominated(np.array([2.0, 2.0]), np.array([1.0, 1.0]))) in ([0], [1])  # of equal points one
    assert list(undominated(np.empty(0), np.empty(0))) == []


def test_captions_count():
    _, caption = draw(Heatmap([[0.5, None, 2.0], [None, None, -1.25]]))
    assert caption == "3 of 6 cells, from -1.25 (pale) to 2 (strong)."
    assert draw(Heatmap([[None]]))[1] == "0 of 1 cells, from 0 (pale) to 0 (strong)."
    assert draw(Points([1, 2], [3, 4]))[1] == "2 points."


def test_a_heatmap_draws_its_cells():
    svg, _ = draw(Heatmap([[0.0, None], [1.0, 2.0]]))
    cells = re.findall(r'fill: var\(--c0\)(?:; opacity: ([\d.]+))?"', svg)
    assert cells == ["0.15", "0.575", ""]  # paler for less; the empty cell is not drawn


def test_figures_of_one_run(tmp_path):
    run = make_run(tmp_path / "run")
    show(
        run,
        archive=Heatmap([[0.0, 1.0], [None, 2.0]], x_label="speed <m/s>"),
        regret=Curves([1, 2, 3], {"leader": [1, 2, None], "student": [3, 2, 1]}),
    )
    page = check_page(write_report([run], tmp_path / "page.html"))
    for text in ("<h3>archive</h3>", "speed &lt;m/s&gt;", ">leader<", ">student<", "3 of 4 cells"):
        assert text in page
    assert write_report([run], tmp_path / "again.html").read_text() == page


@pytest.mark.parametrize(
    "text",
    ["{", "[]", '{"figures": {"a": {"kind": "cake"}}}', '{"figures": {"a": {"kind": "points", "x": [1], "y": []}}}'],
)
def test_damaged_figures_are_none(tmp_path, text):
    run = make_run(tmp_path / "run")
    (run / "figures.json").write_text(text)
    assert read_run(run).figures == {}
    check_page(write_report([run], tmp_path / "page.html"))


def test_figures_of_several_runs(tmp_path):
    groups = {}
    for method, shift in (("sac", 0.0), ("ppo", 1.0)):
        for seed in range(2):
            run = show(
                make_run(tmp_path / f"{method}{seed}", method, seed=seed),
                front=Points([1 + shift, 2, 3], [3, 2, 1], front=True, x_label="speed"),
                archive=Heatmap([[shift, seed]]),
            )
            groups.setdefault(method, []).append(read_run(run))
    found = shown_together(groups)
    assert [title for title, _, _ in found] == ["front", "archive: sac, seed 0", "archive: ppo, seed 0"]
    assert found[0][2] == "More is better on both axes; joined: what no other point dominates. All 2 seeds."
    assert found[0][1].count(">sac<") == found[0][1].count(">ppo<") == 1  # one entry of the legend for two seeds
    # Maps of one name have one scale, here 0 to 1: [0, 0] of sac is pale on it, and of [1, 0] one cell is.
    assert [caption for _, _, caption in found[1:]] == ["2 of 2 cells, from 0 (pale) to 1 (strong)."] * 2
    assert re.findall(r"opacity: ([\d.]+)", found[1][1])[:1] == ["0.15"]
    assert len(re.findall(r'fill: var\(--c0\)"', found[2][1])) == 1
    page = check_page(write_report([run for runs in groups.values() for run in runs], tmp_path / "page.html"))
    assert page.count("<h3>archive: ") == 2
    assert "<h3>front</h3>" in page
