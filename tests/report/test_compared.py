"""Reports of several runs: tasks, units, names, ranges, figures, numbers as CSV, and how wide it all is."""

import csv
import json

import pytest

from polopt.core.errors import RunError, UsageError
from polopt.report import compare_table, comparison, read_run, write_report
from polopt.report.compared import write_evaluations, write_figures
from polopt.report.runs import labels, read_runs, run_folders, tasks_of
from tests.report.test_report import check_page, make_run


def comparison_folder(place, task="Pendulum-v1", better=100, worse=50, seeds=(0, 1, 2), **rest):
    for seed in seeds:
        make_run(place / f"sac-s{seed}", "sac", task, seed, better + seed, **rest)
        make_run(place / f"ppo-s{seed}", "ppo", task, seed, worse + 2 * seed, **rest)
    return place


def told(folder, **changes):
    """Changes the record of a run."""
    path = folder / "config.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | changes | {"run": record["run"] | changes.get("run", {})}))
    return folder


def test_folders_of_comparisons_are_the_runs_in_them(tmp_path):
    one = comparison_folder(tmp_path / "one")
    (one / "figures").mkdir()
    (one / "report.html").touch()
    (one / "sac-s0" / "model").mkdir()
    (one / "sac-s0" / "model" / "config.json").write_text("{}")  # of a language model: no run
    single = make_run(tmp_path / "single", "sac", seed=9)
    found = run_folders([one, single, one / "sac-s1"])
    assert [path.name for path in found] == [
        *sorted(path.name for path in one.iterdir() if "-s" in path.name),
        "single",
    ]
    assert [run.folder for run in read_runs([one, single])] == found
    (tmp_path / "empty").mkdir()
    for wrong in ("empty", "nowhere"):
        with pytest.raises(UsageError, match=f"{wrong} is not a run folder: it has no config.json"):
            read_runs([tmp_path / wrong])


def test_tasks_together_are_on_one_scale(tmp_path):
    near = comparison_folder(tmp_path / "near", "Pendulum-v1", better=100, worse=50)
    far = comparison_folder(tmp_path / "far", "CartPole-v1", better=1000, worse=9000)
    result = comparison([near, far])
    assert list(result["tasks"]) == ["Pendulum-v1", "CartPole-v1"]
    whole = result["together"]
    assert whole["methods"].keys() == {"sac", "ppo"}
    # By hand: finals of 100, 101, 102 between 50 and 102, and of 1000, 1001, 1002 between 1000 and 9004.
    sac = [score / 52 for score in (50, 51, 52)] + [score / 8004 for score in (0, 1, 2)]
    assert whole["methods"]["sac"]["scores"] == pytest.approx(sac)
    assert whole["methods"]["sac"]["iqm"]["estimate"] == pytest.approx(sum(sorted(sac)[1:5]) / 4)
    pair = next(item for item in whole["improvement"] if item["a"] == "sac")
    assert pair["probability"]["estimate"] == pair["probability"]["low"] == pair["probability"]["high"] == 0.5
    assert whole["high"] is None
    assert "gap" not in whole["methods"]["sac"]
    assert "from the worst to the best run" in " ".join(whole["warnings"])
    assert json.dumps(result, allow_nan=False)
    page = check_page(write_report([near, far], tmp_path / "page.html"))
    assert "All 2 tasks" in page
    assert "Optimality gap" not in page
    assert "all 2 tasks: score between 0 and 1" in compare_table([near, far])
    assert comparison([near])["together"] is None
    assert "All 2 tasks" not in write_report([near], tmp_path / "one.html").read_text()


def test_a_range_gives_the_optimality_gap(tmp_path):
    near = comparison_folder(tmp_path / "near", "Pendulum-v1", better=100, worse=50)
    far = comparison_folder(tmp_path / "far", "CartPole-v1", better=1000, worse=9000)
    ranges = {"Pendulum-v1": (0.0, 80.0), "CartPole-v1": (0.0, 8000.0)}
    result = comparison([near, far], ranges=ranges)
    methods = result["tasks"]["Pendulum-v1"]["methods"]  # scores are 0.8 * (100, 101, 102) and 0.8 * (50, 52, 54)
    assert methods["sac"]["gap"]["estimate"] == 0
    assert methods["ppo"]["gap"]["estimate"] == pytest.approx(80 - 0.8 * 52)
    whole = result["together"]
    assert whole["high"] == 1
    assert whole["methods"]["sac"]["gap"]["estimate"] == pytest.approx((0 + 1 - 0.8 * 1001 / 8000) / 2)
    assert not any("worst to the best" in text for text in whole["warnings"])
    page = check_page(write_report([near, far], tmp_path / "page.html", ranges=ranges))
    assert page.count("optimality gap to") == 3
    assert "optimality gap to 80" in compare_table([near], ranges={"": (0.0, 80.0)}, width=200)
    half = comparison([near, far], ranges={"CartPole-v1": (0.0, 1.0)})
    assert "gap" in half["tasks"]["CartPole-v1"]["methods"]["sac"]
    assert "gap" not in half["tasks"]["Pendulum-v1"]["methods"]["sac"]
    for wrong, said in (({"CartPol-v1": (0, 1)}, "did you mean 'CartPole-v1'"), ({"": (1, 1)}, "must be less")):
        with pytest.raises(UsageError, match=said):
            comparison([near, far], ranges=wrong)


def test_methods_of_one_task_only_and_other_settings_are_told(tmp_path):
    near, far = comparison_folder(tmp_path / "near"), comparison_folder(tmp_path / "far", "CartPole-v1", steps=500)
    extra = make_run(tmp_path / "extra", "td3")
    whole = comparison([near, far, extra])["together"]
    assert whole["methods"].keys() == {"sac", "ppo"}
    text = " ".join(whole["warnings"])
    assert "left out of this: td3" in text
    assert "sac has other settings on other tasks: steps" in text


def test_a_task_with_other_options_is_another_task(tmp_path):
    short = told(make_run(tmp_path / "a"), task_options={"length": 5})
    long = told(make_run(tmp_path / "b"), task_options={"length": 9})
    assert tasks_of(read_runs([short, long])) == ["Pendulum-v1 (length=5)", "Pendulum-v1 (length=9)"]
    assert len(comparison([short, long])["tasks"]) == 2
    weighed = [told(make_run(tmp_path / f"w{one}"), run={"objective_weights": [1.0, one]}) for one in (0.0, 2.0)]
    assert len(comparison(weighed)["tasks"]) == 2
    assert comparison([short, long], ranges={"Pendulum-v1": (0.0, 1.0)})["together"]["high"] == 1


def test_names_tell_settings_of_one_method_apart(tmp_path):
    config = {"kind": "config", "lr": 1.0}
    fast = told(make_run(tmp_path / "a", config=config), run={"name": "fast"})
    slow = told(make_run(tmp_path / "b", config=config | {"lr": 0.1}), run={"name": "slow"})
    plain = make_run(tmp_path / "c", config=config | {"lr": 0.5})
    assert labels(read_runs([fast, slow, plain])) == ["fast", "slow", "sac"]
    other = told(make_run(tmp_path / "d", "ppo", config=config), run={"name": "fast"})
    assert labels(read_runs([fast, other])) == ["fast (method=sac)", "fast (method=ppo)"]
    assert "fast" in write_report([fast], tmp_path / "page.html").read_text()


def test_budgets_are_told_apart(tmp_path):
    runs = [make_run(tmp_path / f"{steps}", steps=steps) for steps in (1000, 500)]
    assert labels(read_runs(runs)) == ["sac (steps=1000)", "sac (steps=500)"]


def test_different_units_are_drawn_by_the_share_of_their_budget(tmp_path):
    one = make_run(tmp_path / "a", "ppo")
    other = told(make_run(tmp_path / "b", "bc"), unit="updates", steps=10)
    page = check_page(write_report([one, other], tmp_path / "page.html"))
    assert "share of the budget" in page
    assert "Budgets count env steps or updates." in page
    assert "share of the budget" not in write_report([one, make_run(tmp_path / "c")], tmp_path / "b.html").read_text()


def test_the_page_has_what_the_terminal_has(tmp_path):
    runs = [comparison_folder(tmp_path / "runs", seeds=range(5))]
    page, text = check_page(write_report(runs, tmp_path / "page.html")), compare_table(runs)
    for title in ("Performance profile", "Probability of improvement", "Paired difference"):
        assert title in page
    for words in ("share of runs above", "probability of improvement", "paired difference"):
        assert words in text
    difference = comparison(runs)["tasks"]["Pendulum-v1"]["improvement"][0]["difference"]
    assert difference["estimate"] == pytest.approx(0.8 * 48)
    assert f"{difference['low']:.4g}" in text
    assert f"{difference['low']:.1f}" in page


def test_one_method_with_many_seeds(tmp_path):
    runs = [make_run(tmp_path / f"{seed}", seed=seed, final=10 * seed) for seed in range(5)]
    page = check_page(write_report(runs, tmp_path / "page.html"))
    assert "Performance profile" in page
    assert "Probability of improvement" not in page
    assert "share of runs above" in compare_table(runs)


@pytest.mark.parametrize("width", [60, 80, 200])
def test_tables_keep_to_the_width_and_cut_no_number(tmp_path, width):
    config = {"kind": "config", "a_rather_long_name_of_a_setting": 1}
    runs = [make_run(tmp_path / f"a{seed}", seed=seed, final=100 + seed, config=config) for seed in range(5)]
    config = config | {"a_rather_long_name_of_a_setting": 2}
    runs += [make_run(tmp_path / f"b{seed}", seed=seed, final=50 + seed, config=config) for seed in range(5)]
    text = compare_table(runs, width=width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    for number in ("81.6", "41.6", "80", "83.2"):  # a cell may be several lines, but a number is in one
        assert number in text


def test_figures_are_files_for_papers(tmp_path):
    runs = read_runs([make_run(tmp_path / name, task=task) for name, task in (("a", "x:y"), ("b", "x/y"))])
    files = write_figures(comparison(runs), runs, tmp_path / "out")
    stems = [f"{task}-{what}" for task in ("x_y", "x_y-2") for what in ("curves", "scores", "profile")]
    stems += ["all-scores", "all-profile"]
    expected = {f"{stem}{suffix}" for stem in stems for suffix in (".svg", ".pdf")} | {"evaluations.csv"}
    assert {path.name for path in files} == {path.name for path in (tmp_path / "out").iterdir()} == expected
    assert "sac (1 seed)" in (tmp_path / "out" / "x_y-curves.svg").read_text()  # text stays text
    assert (tmp_path / "out" / "x_y-curves.pdf").read_bytes().startswith(b"%PDF")
    for path in write_figures(comparison(runs[:1]), runs[:1], tmp_path / "again")[:-1]:
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes()
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="could not write"):
        write_figures(comparison(runs), runs, tmp_path / "file" / "out")


def test_every_evaluation_is_in_the_csv(tmp_path):
    one = make_run(tmp_path / "one", seed=3, final=100.0)
    other = told(make_run(tmp_path / "other", "bc", rows=3, final=50.0), unit="updates")
    runs = read_runs([one, other])
    write_evaluations(runs, tmp_path / "out" / "evaluations.csv")
    with open(tmp_path / "out" / "evaluations.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    evaluated = [row for run in runs for row in range(run.rows) if row % 2 == 0]
    assert len(rows) == len(evaluated) == 6 + 2
    assert [float(row["eval/return"]) for row in rows] == [0, 20, 40, 60, 80, 100, 0, 10]
    assert {(row["task"], row["name"], row["method"], row["seed"], row["unit"], row["folder"]) for row in rows} == {
        ("Pendulum-v1", "sac", "sac", "3", "env_steps", "one"),
        ("Pendulum-v1", "bc", "bc", "0", "updates", "other"),
    }
    assert [row["steps"] for row in rows] == ["0", "200", "400", "600", "800", "1000", "0", "2"]
    assert {row["eval/return_std"] for row in rows} == {"5"}
    read = read_run(one)
    assert read.score == pytest.approx(sum(float(row["eval/return"]) for row in rows[3:6]) / 3)
