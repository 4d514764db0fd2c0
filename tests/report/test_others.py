"""What evaluations give besides the score: over seeds, in pairs, and only where it is measured alike."""

import csv
import json

import pytest

import polopt
from polopt import registry
from polopt.bases.method import Method
from polopt.core.errors import UsageError
from polopt.evaluation.figures import Heatmap, Points, to_json
from polopt.evaluation.score import measured_apart
from polopt.report import compare_table, comparison, write_report
from polopt.report.compared import write_figures
from polopt.report.runs import read_runs
from polopt.training import api
from tests.report.test_report import check_page, make_run

SMALL = {"envs": 2, "eval_episodes": 1, "loggers": (), "ppo.window": 8, "ppo.minibatches": 1}


def front_run(folder, method, seed, volume, config=(), **others):
    """A run with two evaluations of a front: of half of each number, and of a half more."""
    make_run(folder, method, "point/front", seed, rows=0, config={"kind": "config", **dict(config)})
    record = json.loads((folder / "config.json").read_text())
    said = {"score": "hypervolume", "measured_by": {"hypervolume": ["reference"]}}
    (folder / "config.json").write_text(json.dumps(record | said))
    numbers = {"hypervolume": volume, "hypervolume_std": 1.0, **others}
    with open(folder / "metrics.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["env_steps", *(f"eval/{name}" for name in numbers), "loss"])
        for steps, share in ((500, 0.5), (1000, 1.5)):
            writer.writerow([steps, *(share * value for value in numbers.values()), 3.0])
    figures = {"front": Points([volume, 0], [0, volume], front=True), "archive": Heatmap([[volume, None]])}
    (folder / "figures.json").write_text(json.dumps({"step": 5, "figures": to_json(figures)}))
    return folder


def fronts(place, there=(), here=()):
    runs = []
    for seed in range(5):
        one = {"expected_utility": 10.0 + seed, "policies": 4.0, "held_out": 2.0}
        runs.append(front_run(place / f"c{seed}", "c-morl", seed, 3.0 + seed, there, **one))
        other = {"expected_utility": 11.5 + seed, "utility": 1.0, "held_out": 2.0}
        runs.append(front_run(place / f"g{seed}", "gmorl", seed, 1.0 + seed, here, **other))
    return runs


def test_what_both_evaluate_has_intervals_and_pairs(tmp_path):
    runs = fronts(tmp_path)
    facts = comparison(runs)["tasks"]["point/front"]
    assert list(facts["methods"]) == ["c-morl", "gmorl"]  # the best first, by the score
    assert list(facts["others"]) == ["expected_utility"]
    other = facts["others"]["expected_utility"]
    assert list(other["methods"]) == ["c-morl", "gmorl"]
    assert other["methods"]["gmorl"]["scores"] == [11.5, 12.5, 13.5, 14.5, 15.5]
    assert other["methods"]["c-morl"]["iqm"]["estimate"] == pytest.approx(12.0)  # of 11, 12, 13
    pair = next(item for item in other["improvement"] if item["a"] == "gmorl")
    above = sum(11.5 + one > 10 + two for one in range(5) for two in range(5)) / 25
    assert pair["probability"]["estimate"] == pytest.approx(above)
    assert (pair["difference"]["estimate"], pair["seeds"]) == (pytest.approx(1.5), [0, 1, 2, 3, 4])
    text, page = compare_table(runs), check_page(write_report(runs, tmp_path / "page.html"))
    interval = other["methods"]["c-morl"]["iqm"]["text"]
    assert interval in text
    assert pair["probability"]["text"] in text
    assert "probability of more than c-morl" in text
    assert page.count("probability of more than c-morl") == 1
    assert page.count("<td>expected_utility</td>") == 1
    by_utility = comparison(runs, "expected_utility")["tasks"]["point/front"]
    assert list(by_utility["methods"]) == ["gmorl", "c-morl"]
    assert by_utility["others"]["hypervolume"]["methods"]["gmorl"]["scores"] == [1, 2, 3, 4, 5]


def test_one_method_has_its_numbers_too(tmp_path):
    runs = [front_run(tmp_path / f"{seed}", "dcg-me", seed, 5.0, coverage=seed / 10) for seed in range(5)]
    facts = comparison(runs)["tasks"]["point/front"]
    assert facts["others"]["coverage"]["methods"]["dcg-me"]["iqm"]["estimate"] == pytest.approx(0.2)
    assert "coverage" in compare_table(runs)
    assert "probability of more than" not in write_report(runs, tmp_path / "page.html").read_text()


def test_volumes_above_other_points_are_told_and_not_compared(tmp_path):
    runs = fronts(tmp_path, {"reference": [0.0, 0.0]}, {"reference": [-60.0, -250.0]})
    said = "'hypervolume' is not measured alike by c-morl (reference ()) and gmorl (reference (-60.0, -250.0))"
    facts = comparison(runs)["tasks"]["point/front"]
    assert facts["warnings"][0] == f"{said}, and cannot be compared."
    assert "reference (-60.0" in check_page(write_report(runs, tmp_path / "page.html"))
    by_utility = comparison(runs, "expected_utility")["tasks"]["point/front"]
    assert by_utility["others"] == {}
    assert said in " ".join(by_utility["warnings"])
    alike = comparison(fronts(tmp_path / "alike", {"reference": [0.0, 0.0]}, {"reference": []}), "expected_utility")
    assert list(alike["tasks"]["point/front"]["others"]) == ["hypervolume"]


@pytest.mark.parametrize(
    ("method", "key", "one", "other", "apart"),
    [
        ("dcg-me", "qd_score", {"cells": 9, "reward_offset": 0.0}, {"cells": 9, "reward_offset": 1.0}, "reward_offset"),
        ("dcg-me", "coverage", {"cells": 9, "reward_offset": 0.0}, {"cells": 9, "reward_offset": 1.0}, ""),
        ("dcg-me", "coverage", {"cells": 9}, {"cells": 16}, "cells"),
        ("iwocs", "worst", {"grid": 5}, {"grid": 10}, "grid"),
        ("iwocs", "grid_mean", {"grid": 5}, {"grid": 10}, "grid"),
        ("gmorl", "hypervolume", {"reference": (0.0, 0.0)}, {"reference": []}, ""),
        ("c-morl", "hypervolume", {"reference": (0.0, 1.0)}, {"reference": [0.0, 1.0], "lr": 3.0}, ""),
        ("sac", "return", {"lr": 1.0}, {"lr": 2.0}, ""),
    ],
)
def test_what_is_measured_alike(method, key, one, other, apart):
    by = registry.load(method).measured_by
    records = [(label, {"config": config, "measured_by": by}) for label, config in (("a", one), ("b", other))]
    said = measured_apart(key, records)
    assert (f"a ({apart} " in said and f"b ({apart} " in said) if apart else said == ""


def test_it_is_measured_by_what_either_says():
    """A number of one method, and another's of that name."""
    said = {"config": {"cells": 9}, "measured_by": {"coverage": ["cells"]}}
    for records in ([("a", said), ("b", {"config": {}})], [("b", {}), ("a", said)]):
        assert "a (cells 9)" in measured_apart("coverage", records)
    assert measured_apart("coverage", [("a", said), ("b", said)]) == ""


def test_a_method_is_measured_by_options_that_it_has():
    with pytest.raises(TypeError, match="Other measures by 'cells', which its Config does not have"):
        type("Other", (Method,), {"measured_by": {"coverage": ("cells",)}})


def test_other_reference_points_are_refused_before_the_first_run(tmp_path, monkeypatch):
    monkeypatch.setattr(api, "start", lambda *parts, **rest: pytest.fail("a run began"))
    with pytest.raises(UsageError, match=r"a \(reference \(\)\) and b \(reference \(-1.0, -1.0\)\).*with --score"):
        polopt.compare(
            ["a=c-morl", "b=c-morl"],
            "point/front",
            steps=64,
            seeds=1,
            out=tmp_path / "out",
            each={"b": {"reference": (-1.0, -1.0)}},
            **SMALL,
        )
    assert not (tmp_path / "out").exists()


def test_fronts_together_and_archives_are_files(tmp_path):
    runs = read_runs(fronts(tmp_path / "runs"))
    files = {path.name for path in write_figures(comparison(runs), runs, tmp_path / "out")}
    fronts_of, archive = "point_front-front", "point_front-archive_{}_seed_0"
    for stem in (fronts_of, archive.format("c-morl"), archive.format("gmorl")):
        assert {f"{stem}.svg", f"{stem}.pdf"} <= files
    text = (tmp_path / "out" / f"{fronts_of}.svg").read_text()
    assert ">c-morl<" in text
    assert ">gmorl<" in text
