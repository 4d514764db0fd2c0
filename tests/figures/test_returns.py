"""The driver of learning curves, with a worker that takes no time."""

import os
import signal
import sys

import pytest

from benchmarks import returns

WORKER = """
import json, sys, time
job = json.loads(sys.stdin.readline())
if job["seed"] == job.get("fails"):
    print(json.dumps({"error": "Traceback\\nValueError: it broke"}))
    raise SystemExit
if job.get("dies"):
    print('{"row": {"st', end="")
    raise SystemExit(3)
time.sleep(job.get("sleeps", 0))
for steps in (0, job["steps"]):
    times = {"seconds": steps / 10, "cpu_seconds": steps / 20}
    print(json.dumps({"row": {"steps": steps, "return": steps * 2.0} | times}))
print(json.dumps({"done": True, "peak_mb": 12.5, "versions": {"python": "3"}}))
"""


@pytest.fixture
def plan(tmp_path, monkeypatch):
    """Two sides and two seeds; keyword arguments change the job."""
    worker = tmp_path / "worker.py"
    worker.write_text(WORKER)
    monkeypatch.setattr(returns, "SCRIPTS", dict.fromkeys(("polopt", "stable-baselines3"), str(worker)))
    monkeypatch.setattr(returns, "python_of", lambda library: sys.executable)
    arms = [returns.Arm("toy", name, "polopt", "CartPole-v1", {"steps": 50}, 3.0) for name in ("ours", "theirs")]
    monkeypatch.setattr(returns, "ARMS", arms)
    return lambda seeds=2, full=False, **job: returns.Plan(["toy"], seeds, full, tmp_path / "results", **job)


def lines(tmp_path, name="toy"):
    return returns.read(tmp_path / "results" / f"{name}.jsonl")


def test_every_seed_of_every_arm_gets_one_line(plan, tmp_path, capsys):
    assert returns.run(plan(), jobs=2) == 0
    found = lines(tmp_path)
    assert sorted((line["arm"], line["seed"]) for line in found) == [
        ("ours", 0),
        ("ours", 1),
        ("theirs", 0),
        ("theirs", 1),
    ]
    assert found[0]["job"] == {"steps": 50, "seed": 0}
    assert [row["return"] for row in found[0]["rows"]] == [0.0, 100.0]
    assert found[0]["peak_mb"] == 12.5
    assert found[0]["jobs"] > 1.0, "the two sides of a seed run at once"
    assert capsys.readouterr().out.count("begun") == 4
    assert returns.run(plan(), jobs=2) == 0
    assert "begun" not in capsys.readouterr().out, "what has a line is not run again"
    assert returns.run(plan(seeds=3)) == 0
    assert len(lines(tmp_path)) == 6
    assert returns.run(plan(steps=70)) == 0, "another job is another run"
    assert len(lines(tmp_path)) == 10


@pytest.mark.parametrize(
    ("job", "failed", "said"), [({"fails": 1}, 2, "ValueError: it broke"), ({"dies": True}, 4, "")]
)
def test_a_run_that_fails_leaves_no_line(plan, tmp_path, capsys, job, failed, said):
    assert returns.run(plan(**job)) == failed
    assert len(lines(tmp_path)) == 4 - failed
    out = capsys.readouterr().out
    assert out.count("FAILED toy CartPole-v1") == failed
    assert said in out


def test_nothing_begins_that_would_not_end_in_time(plan, tmp_path, capsys):
    assert returns.run(plan(), limit=2.9) == 0
    assert "left for another time: 4 runs" in capsys.readouterr().out
    assert not lines(tmp_path)
    one = plan(seeds=1)
    assert returns.run(one, limit=3.5) == 0
    assert one.minutes(one.arms[0]) < 0.5, "what a run took is known now"
    assert returns.run(plan(), limit=2.9) == 0
    assert len(lines(tmp_path)) == 4


def test_the_full_size_has_a_file_of_its_own(plan, tmp_path):
    assert returns.run(plan(full=True, seeds=1)) == 0
    assert len(lines(tmp_path, "toy-full")) == 2
    assert not lines(tmp_path)


class Preparing(returns.Process):
    """What some arms wait for; it ends at the third look."""

    MINUTES = {"data": 1.0}
    failure = ""

    def __init__(self, name):
        self.name, self.looks = name, 0

    def look(self, running):
        self.looks += 1
        return self.looks == 3

    def kill(self):
        pass


@pytest.mark.parametrize("failure", ["", "no room left"])
def test_what_needs_data_waits_for_it_beside_the_others(plan, tmp_path, monkeypatch, capsys, failure):
    needy, free = returns.ARMS
    monkeypatch.setattr(returns, "ARMS", [returns.Arm(**vars(needy) | {"wants": "data"}), free])
    monkeypatch.setattr(returns, "prepare", lambda arm: ({}, {"data_sha256": "abc"} if arm.wants else {}))
    monkeypatch.setattr(Preparing, "failure", failure)
    monkeypatch.setattr(returns, "Preparation", Preparing)
    assert returns.run(plan(), jobs=2) == (2 if failure else 0)
    out = capsys.readouterr().out
    assert out.count("making data") == 1
    assert out.index("making data") < out.index("begun  toy CartPole-v1 theirs")
    if failure:
        assert "ours seed 0: no room left" in out
        assert {line["arm"] for line in lines(tmp_path)} == {"theirs"}
    else:
        assert out.index("begun  toy CartPole-v1 theirs") < out.index("begun  toy CartPole-v1 ours")
        assert all(("data_sha256" in line) == (line["arm"] == "ours") for line in lines(tmp_path))


def test_a_stopped_driver_takes_its_workers_with_it(plan, tmp_path, monkeypatch):
    seen = set()

    def look(self, running):
        seen.add(self.process)
        if len(seen) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return False

    monkeypatch.setattr(returns.Run, "look", look)
    with pytest.raises(KeyboardInterrupt):
        returns.run(plan(sleeps=600), jobs=2)
    assert [process.poll() for process in seen] == [-signal.SIGKILL] * 2
    assert not lines(tmp_path)
    assert signal.getsignal(signal.SIGTERM) is not signal.default_int_handler


def test_wrong_words_are_one_sentence(capsys):
    for words, said in ((["sak"], "there is no experiment sak"), (["--jobs", "0"], "at least 1")):
        with pytest.raises(SystemExit) as error:
            returns.main(words)
        assert error.value.code == 2
        assert said in capsys.readouterr().err
    assert returns.main(["--list"]) == 0
    assert "missing in all" in capsys.readouterr().out


def test_the_lines_that_are_kept_belong_to_runs_of_the_plan():
    for experiment in returns.EXPERIMENTS:
        known = {(arm.name, arm.task) for arm in returns.ARMS if arm.experiment == experiment}
        for line in returns.read(returns.file_of(experiment)):
            assert (line["arm"], line["task"]) in known
            assert line["job"]["seed"] == line["seed"]
            assert line["rows"][-1]["seconds"] > 0


def test_what_was_chosen_is_the_best_of_its_pilots():
    scores = returns.pilot_scores(returns.read(returns.file_of("ofql-pilots")))
    for name, eta in returns.CHOSEN.items():
        assert max(returns.ETAS, key=lambda each: scores[f"{name}, eta {each}"]) == eta
