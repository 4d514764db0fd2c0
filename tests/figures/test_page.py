"""The page of figures: numbers worked by hand, and places that must exist."""

import json

import pytest

from benchmarks import page
from polopt.evaluation.statistics import Interval


def run(arm, seed, scores, seconds, task="Toy-v0", **job):
    rows = [
        {"steps": 10 * index, "seconds": second, "cpu_seconds": second / 2, "return": score}
        for index, (score, second) in enumerate(zip(scores, seconds))
    ]
    about = {"cpu": "chip", "cores": 2, "memory_gb": 1}
    return {
        "arm": arm,
        "task": task,
        "seed": seed,
        "job": {"steps": 20, "seed": seed} | job,
        "rows": rows,
        "minutes": 3.0,
        "peak_mb": 100.0,
        "jobs": 1.0,
        "load": [1.0, 1.0],
        "commit": "abc",
        "date": "2026-01-02T00:00:00",
        "machine": about,
        "versions": {"python": "3", "torch": ""},
    }


def test_sides_are_compared_at_equal_steps_and_at_equal_time():
    ours = page.Curves(
        "polopt", (run("ours", 0, (0, 100, 200), (0, 60, 120)), run("ours", 1, (0, 120, 240), (0, 60, 120)))
    )
    theirs = page.Curves("peer", (run("p", 0, (0, 50, 150), (0, 120, 240)), run("p", 1, (0, 60, 160), (0, 120, 240))))
    (first, second), until, seconds = page.summary([ours, theirs])
    assert (until, seconds) == (20, 120)
    assert first.final.estimate == 220
    assert first.area.estimate == pytest.approx(110)  # (100 + 120) / 2: triangles
    assert first.at_time.estimate == 220
    assert second.at_time.estimate == 55
    assert (first.minutes.estimate, second.cpu_minutes.estimate) == (2, 2)
    assert page.verdict(first.final, second.final) == "above"
    assert page.verdict(second.final, first.final) == "below"
    assert page.verdict(Interval(1, 0, 2, 3), Interval(3, 2, 4, 3)) == "overlap"
    assert page.verdict(Interval(1, None, None, 1), Interval(3, 2, 4, 3)) == "one seed"


def test_an_arm_has_the_runs_of_its_newest_job_and_the_newest_of_each_seed():
    lines = [
        run("ours", 0, (0, 1, 1), (0, 1, 2), lr=0.1),
        run("ours", 0, (0, 2, 2), (0, 1, 2), lr=0.2),
        run("ours", 1, (0, 3, 3), (0, 1, 2), lr=0.2),
        run("ours", 0, (0, 4, 4), (0, 1, 2), lr=0.2),
        run("theirs", 0, (0, 5, 5), (0, 1, 2)),
    ]
    ((group, runs),) = page.arm_runs(lines, "ours").items()
    assert group == ("Toy-v0", 20)
    assert [(each["seed"], each["rows"][-1]["return"]) for each in runs] == [(0, 4), (1, 3)]


def side(name, rates, library="polopt"):
    slices = [{"units": 10, "seconds": 10 / rate, "parts": {"update": 6 / rate}} for rate in rates]
    return {
        "name": name,
        "library": library,
        "versions": {"python": "3"} if library == "polopt" else {"python": "3", library: "9"},
        "threads": 2,
        "rate": sorted(rates)[1],
        "rates": rates,
        "peak_mb": 100.0,
        "slices": slices,
    }


def speed_line():
    sides = [side("polopt", [20, 22, 24]), side("polopt --compile", [40, 44, 48]), side("sbx", [10, 11, 24], "sbx")]
    return {
        "case": "sac",
        "unit": "environment steps",
        "date": "2026-01-02T00:00:00",
        "machine": {"cpu": "chip", "cores": 2, "memory_gb": 1, "system": "Linux", "commit": "abc"},
        "sides": sides,
        "ratios": {"polopt --compile": [0.5] * 3, "sbx": [2.0, 2.0, 1.0]},
        "arithmetic": {"sbx": 1.0},
        "limit": None,
        "failures": [],
    }


def test_speed_is_shown_for_our_first_and_for_our_fastest_side():
    rows = page.speed_table([speed_line()]).splitlines()[2:]
    assert "**2.00** (1.00 to 2.00) | **4.00** (2.00 to 4.00)" in rows[2]
    assert "**0.50** (0.50 to 0.50) |  |" in rows[1]
    assert "update 60%, the rest 40%" in page.parts_table([speed_line()])
    assert "polopt and polopt --compile: python 3; sbx: python 3, sbx 9" in page.machine_table([speed_line()])


def test_what_compiling_costs_stands_beside_what_it_wins():
    """Ready 30 s later and 1/44 s a step faster after: 30 * 44 steps."""
    line = speed_line()
    assert "catches up" not in page.speed_table([line])
    line["sides"][0]["ready_seconds"] = 4.0
    line["sides"][1] |= {"ready_seconds": 34.0, "job": {"compile": True}}
    table = page.speed_table([line]).splitlines()
    assert table[0].endswith("| catches up with the first after |")
    assert [row.split(" | ")[-1] for row in table[2:]] == [" |", "1,320 |", " |"]
    line["sides"][1]["rate"] = 21
    assert "| never |" in page.speed_table([line])


def test_the_plot_has_every_peer_at_its_fastest():
    eager, compiled = side("trl", [1.0, 2.0], "trl"), side("trl, torch_compile", [3.0, 2.0], "trl")
    other = side("sbx", [9.0, 9.0], "sbx")
    assert page.of_peers({"sides": [side("polopt", [8.0, 8.0]), eager, other, compiled]}) == [compiled, other]


def test_many_environments_are_told_by_what_a_step_costs():
    ours, peer = side("polopt", [20.0, 20.0, 25.0]), side("jax", [40.0, 50.0, 50.0], "purejax")
    for each in (ours, peer):
        each["job"] = {"rows": 4096, "reward": -0.2}
    line = speed_line() | {"sides": [ours, peer]}
    rows = page.many_table([line, line | {"unit": "runs"}]).splitlines()[2:]
    assert rows[0] == "| 4,096 | an environment step | polopt | 5e+04 us | 20 | **0.50** (0.40 to 0.50) | 100 |"
    assert rows[1] == "|  |  | jax | 2e+04 us | 50 |  | 100 |"
    assert rows[2].startswith("| 4,096 | a run to a mean reward of -0.2 | polopt | 0.05 s |  | **0.50**")
    assert page.is_world(line | {"case": "many-64"})


def test_tables_have_places_and_places_have_tables():
    text = "before\n<!-- table: a -->\nold\n<!-- end -->\nafter"
    assert page.fill(text, {"a": "| new |"}) == "before\n<!-- table: a -->\n\n| new |\n\n<!-- end -->\nafter"
    with pytest.raises(ValueError, match="'b' is not on the page"):
        page.fill(text, {"a": "", "b": ""})
    with pytest.raises(ValueError, match="'a' is on the page, but nothing makes it"):
        page.fill(text, {})


def test_the_page_is_made_from_raw_lines_alone(tmp_path, drawn):
    results, written = tmp_path / "results", tmp_path / "docs" / "page.md"
    (results / "returns").mkdir(parents=True)
    written.parent.mkdir()
    (results / "speed.jsonl").write_text(json.dumps(speed_line()) + "\n")
    lines = [run("ours", seed, (0, 100, 200 + seed), (0, 60, 120)) for seed in (0, 1)]
    lines += [run("stable-baselines3", seed, (0, 50, 150 + seed), (0, 120, 240)) for seed in (0, 1)]
    (results / "returns" / "sac.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    files = page.write(written, results, template=page.PAGE.read_text())
    assert {file.name for file in files} == {"page.md", "bench-speed.png", "bench-sac.png"}
    assert all(file.stat().st_size > 1000 for file in files)
    text = written.read_text()
    assert "| Toy-v0, 20 environment steps | polopt | 2 | 200 [200, 201] at 20 |" in text
    assert "above; above" in text
    assert text.count(page.EMPTY) == len(page.COMPARISONS) + 3, (
        "all but this one; the pilots, the worlds, the points and the many"
    )


def test_the_page_that_is_kept_is_what_its_lines_give(tmp_path):
    written = tmp_path / "page.md"
    page.write(written, template=page.PAGE.read_text())
    assert written.read_text() == page.PAGE.read_text(), "run `python -m benchmarks page`"
