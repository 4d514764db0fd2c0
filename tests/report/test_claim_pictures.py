"""Pictures of claims: drawn from the recorded lines, and anew only when what they show has changed."""

import pytest

from polopt.claims.keys import line_key
from polopt.claims.results import load_claim, load_figures
from polopt.claims.runner import run_claim
from polopt.core.errors import UsageError
from polopt.evaluation.figures import Curves, Heatmap, Paths, Points
from polopt.report.claims import draw_claim, key_in, recorded
from polopt.report.figures import draw, put
from polopt.report.sheets import FAINT, INK, SERIES, sheet
from tests.claims.conftest import root  # noqa: F401  the fixture
from tests.claims.toy import SOURCE, write

FIGURES = """
def figures(metrics):
    from polopt.evaluation.figures import Curves

    return {"scores": Curves([0, 1, 2, 3], {arm: [line["score"] for line in lines] for arm, lines in metrics.items()})}
"""


def test_a_claim_without_results_has_no_picture(root, tmp_path):  # noqa: F811
    assert recorded(root) == []
    assert not draw_claim("toy", tmp_path / "toy.png", root)
    assert not (tmp_path / "toy.png").exists()


def test_a_picture_is_drawn_once(root, tmp_path):  # noqa: F811
    run_claim("toy", root=root, jobs=1)
    file = tmp_path / "toy.png"
    assert recorded(root) == ["toy"]
    assert draw_claim("toy", file, root)
    before, key = file.stat().st_mtime_ns, key_in(file)
    assert key
    assert draw_claim("toy", file, root)
    assert file.stat().st_mtime_ns == before


def test_what_is_drawn_makes_no_line_stale(root, tmp_path):  # noqa: F811
    run_claim("toy", root=root, jobs=1)
    path, file = root / "claims" / "toy.py", tmp_path / "toy.png"
    assert load_figures(path) is None
    draw_claim("toy", file, root)
    keys = key_in(file), line_key(load_claim(path), path, "good")
    write(root, SOURCE + FIGURES)
    assert load_figures(path)({"good": [{"score": value} for value in range(4)]}) == {
        "scores": Curves([0, 1, 2, 3], {"good": [0, 1, 2, 3]})
    }
    draw_claim("toy", file, root)
    assert line_key(load_claim(path), path, "good") == keys[1]
    assert key_in(file) != keys[0]
    write(root, SOURCE.replace("1.0 + 2", "1.5 + 2") + FIGURES)
    assert line_key(load_claim(path), path, "good") != keys[1]


def test_all_kinds_of_figures_are_put_on_a_sheet(tmp_path):
    figures = [
        Curves([1, 2], {"a": [1.0, 10.0], "bound": [2.0, 20.0]}, dashed=("bound",), log=True),
        Paths({"a": ([0.0, 1.0], [1.0, 0.0])}, {"goal": (0.5, 0.5)}),
        Points([1.0], [2.0]),
        Heatmap([[1.0, 2.0]]),
    ]
    with sheet(tmp_path / "all.png", 2, 2, 8, 6) as (_, axes):
        for panel, figure in zip(axes.flat, figures):
            put(panel, figure, SERIES, INK, FAINT)
        curves, paths, *_ = axes.flat
        assert [line.get_color() for line in curves.lines] == [SERIES[0], FAINT]
        assert curves.get_yscale() == "log"
        assert [line.get_xydata().tolist() for line in paths.lines][1:] == [[[0.0, 1.0]], [[1.0, 0.0]], [[0.5, 0.5]]]
    assert (tmp_path / "all.png").stat().st_size > 1000


def test_paths_are_drawn_in_reports():
    svg, caption = draw(Paths({"self-play": ([0.0, 1.0, 0.5], [0.0, 1.0, 0.5])}))
    assert "self-play" in svg
    assert caption == "A path begins at the ring and ends at the dot."
    with pytest.raises(UsageError, match="equally many"):
        Paths({"a": ([0.0], [])})
