import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

import polopt
from polopt.claims import Above, Claim, arms, keys, pages, results, runner
from polopt.core.errors import RunError, UsageError
from polopt.evaluation.score import Score
from polopt.training import loop
from tests.claims.toy import SOURCE, TRAINS, path_of, ran, write


def test_a_claim_is_run_recorded_and_judged(root):
    outcome = runner.run_claim("toy", root=root, jobs=1)
    assert outcome.verdict.name == "reproduced"
    assert outcome.ran == 8
    assert ran(root)[:3] == ["good 0 100", "poor 0 100", "good 1 100"]  # seeds outside, arms inside
    lines = [json.loads(text) for text in path_of(root).read_text().splitlines()]
    assert len(lines) == 8
    head = subprocess.run(["git", "-C", root, "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    assert {line["commit"] for line in lines} == {head}
    assert lines[0].keys() >= {"arm", "seed", "key", "expect", "commit", "seconds", "metrics", "date"}
    entry = results.recorded_verdicts(root)["toy"]
    assert entry["verdict"] == "reproduced"
    assert entry["commit"] == head
    assert results.recompute_all(root) == results.recorded_verdicts(root)
    again = runner.run_claim("toy", root=root, jobs=1)
    assert again.ran == 0
    assert len(ran(root)) == 8


def test_parallel_processes_give_the_same_lines(root):
    runner.run_claim("toy", root=root, jobs=2)
    lines = results.read_lines(path_of(root))[0]
    assert sorted((line["arm"], line["seed"]) for line in lines) == sorted(
        (arm, seed) for arm in ("good", "poor") for seed in range(4)
    )
    assert results.recorded_verdicts(root)["toy"]["verdict"] == "reproduced"


def test_killed_claim_continues_with_what_is_missing(root):
    slow = SOURCE.replace("def poor(seed, budget):\n", "def poor(seed, budget):\n    import time; time.sleep(0.2)\n")
    write(root, slow)
    code = (
        "import sys, pathlib; from polopt.claims.runner import run_claim; "
        "run_claim('toy', root=pathlib.Path(sys.argv[1]), jobs=1)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(root)])
    while not path_of(root).exists() or path_of(root).read_text().count("\n") < 3:
        assert process.poll() is None
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    kept = results.read_lines(path_of(root))[0]
    with open(path_of(root), "a") as file:
        file.write('{"arm": "good", "seed": 3, "metr')  # the line that was being written
    before = len(ran(root))
    outcome = runner.run_claim("toy", root=root, jobs=1)
    assert outcome.ran == 8 - len(kept)
    assert len(ran(root)) == before + outcome.ran
    assert outcome.torn == 1
    assert outcome.verdict.name == "reproduced"
    assert results.read_lines(path_of(root))[0][: len(kept)] == kept


def test_uncommitted_expectations_are_refused(root):
    with open(root / "claims" / "toy.py", "a") as file:
        file.write("# changed\n")
    with pytest.raises(UsageError, match="must be committed before results are recorded"):
        runner.run_claim("toy", root=root, jobs=1)
    assert not path_of(root).exists()
    assert runner.run_claim("toy", root=root, jobs=1, pilot=True).ran == 8


def test_never_committed_is_refused_too(root):
    (root / "claims" / "new.py").write_text(SOURCE)
    with pytest.raises(UsageError, match="must be committed"):
        runner.run_claim("new", root=root, jobs=1)


def test_quick_and_pilot_record_nothing(root):
    quick = runner.run_claim("toy", root=root, jobs=1, quick=True)
    assert quick.verdict is None
    assert ran(root) == ["good 2000 10", "poor 2000 10"]
    assert pages.notes(quick) == ["Quick run: a fraction of the budget on one seed, not recorded, no verdict."]
    pilot = runner.run_claim("toy", root=root, jobs=1, pilot=True)
    assert pilot.verdict is None
    assert ran(root)[2] == "good 1000 100"
    assert [item.holds for item in pilot.checks] == [False, True]  # 1010 against 2001: shown, without a verdict
    assert not (root / "claims" / "results").exists()


def test_changed_code_makes_lines_stale_but_not_void(root):
    runner.run_claim("toy", root=root, jobs=1)
    lines = results.read_lines(path_of(root))[0]
    write(root, SOURCE.replace('"""A claim in numbers."""', '"""Another docstring."""  # and a comment'))
    assert freshness(root) == (0, 0)
    write(root, SOURCE.replace("LOG = ", "UNUSED = 1\nLOG = "))
    assert freshness(root) == (8, 0)
    assert results.recompute_all(root) == results.recorded_verdicts(root)  # the published verdict stands
    outcome = runner.run_claim("toy", root=root, jobs=1)
    assert (outcome.ran, outcome.stale, outcome.other) == (8, 8, 8)
    assert freshness(root) == (0, 0)
    assert "8 stale results were run again: the claim's code or a method's numbers changed." in pages.notes(outcome)
    assert results.read_lines(path_of(root))[0][:8] == lines  # nothing is deleted


def freshness(root):
    claim, lines = loaded(root)
    return results.freshness(claim, root / "claims" / "toy.py", results.select(claim, lines).values())


def test_changed_numbers_of_a_method_make_lines_stale(root, tmp_path, monkeypatch):
    golden = tmp_path / "golden"
    golden.mkdir()
    monkeypatch.setattr(keys, "GOLDEN", golden)
    write(root, SOURCE.replace("LOG = ", 'BASE = "sac"\nLOG = '))  # the file names sac, so its arms may train it
    (golden / "sac.json").write_text('[{"loss": 1.5}]')
    (golden / "ppo.json").write_text('[{"loss": 1.5}]')
    runner.run_claim("toy", root=root, jobs=1)
    (golden / "sac.json").write_text('[ {"loss": 1.50} ]')  # the same numbers
    (golden / "ppo.json").write_text('[{"loss": 2.5}]')  # not named
    assert freshness(root) == (0, 0)
    (golden / "sac.json").write_text('[{"loss": 1.25}]')
    assert freshness(root) == (8, 0)
    before = results.recorded_verdicts(root)
    assert results.recompute_all(root) == before


def test_lines_of_the_old_rule_count_and_are_unknown(root):
    runner.run_claim("toy", root=root, jobs=1)
    old = [json.loads(text) for text in path_of(root).read_text().splitlines()]
    old = [line | {"key": line["key"].split(":")[0] + ":0123456789abcdef"} for line in old]
    path_of(root).write_text("".join(json.dumps(line) + "\n" for line in old))
    assert freshness(root) == (0, 8)
    assert results.recompute_all(root)["toy"]["verdict"] == "reproduced"
    outcome = runner.run_claim("toy", root=root, jobs=1)
    assert (outcome.ran, outcome.stale, outcome.unknown) == (8, 0, 8)
    assert "8 results of before freshness followed behavior were run again." in pages.notes(outcome)
    assert freshness(root) == (0, 0)


def test_changed_arms_and_budgets_are_other_experiments(root):
    runner.run_claim("toy", root=root, jobs=1)
    write(root, SOURCE.replace('"samples": 100', '"samples": 200'))
    assert str(results.verdict(*loaded(root))) == "no verdict: 0 of 8 runs recorded"
    write(root, SOURCE.replace("10.0 + seed", "11.0 + seed"))
    assert str(results.verdict(*loaded(root))) == "no verdict: 4 of 8 runs recorded"


def loaded(root):
    return results.load_claim(root / "claims" / "toy.py"), results.read_lines(path_of(root))[0]


def test_changed_expectation_is_shown(root):
    runner.run_claim("toy", root=root, jobs=1)
    write(root, SOURCE.replace("by=1", "by=0.5"))
    outcome = runner.run_claim("toy", root=root, jobs=1)
    assert outcome.ran == 0
    assert outcome.changed
    assert "The expectation was changed after results had been recorded." in pages.notes(outcome)
    assert results.recorded_verdicts(root)["toy"]["expectation_changed"]
    assert "expectation was changed" in pages.claims_page(root)


def test_raising_arms_give_no_verdict_and_are_tried_again(root):
    write(root, SOURCE.replace("    return {\"score\": 1.0", "    if not Path(LOG.parent / 'ok').exists():\n"
                                                            "        raise ValueError('no\\nluck')\n"
                                                            "    return {\"score\": 1.0"))  # fmt: skip
    outcome = runner.run_claim("toy", root=root, jobs=1)
    assert str(outcome.verdict) == "no verdict: 1 arm failed (poor)"
    assert outcome.failed[0]["error"] == "ValueError: no luck"
    assert results.recorded_verdicts(root)["toy"]["verdict"] is None
    (root / "claims" / "ok").touch()
    again = runner.run_claim("toy", root=root, jobs=1)
    assert (again.ran, again.verdict.name, again.failed) == (4, "reproduced", [])


def test_a_result_is_never_replaced_by_a_repetition(root):
    runner.run_claim("toy", root=root, jobs=1)
    claim, lines = loaded(root)
    better = lines[1] | {"metrics": {"score": -99.0}}
    assert results.select(claim, [*lines, better]) == results.select(claim, lines)


def test_wrong_usage_in_an_arm_stops_the_claim(root):
    write(root, SOURCE.replace("    return {\"score\": 1.0", "    from polopt.core.errors import UsageError\n"
                                                            "    raise UsageError('no such field')\n"
                                                            "    return {\"score\": 1.0"))  # fmt: skip
    for jobs in (1, 2):
        with pytest.raises(UsageError, match="no such field"):
            runner.run_claim("toy", root=root, jobs=jobs)


def test_a_job_that_always_dies_is_a_failed_line_and_the_others_are_recorded(root):
    write(
        root,
        SOURCE.replace('    return {"score": 1.0', '    import os; os.kill(os.getpid(), 9)\n    return {"score": 1.0'),
    )
    outcome = runner.run_claim("toy", root=root, jobs=2)
    assert str(outcome.verdict) == "no verdict: 1 arm failed (poor)"
    died = "its process died 3 times; at last it was killed by SIGKILL (out of memory?)"
    assert [line["error"] for line in outcome.failed] == [died] * 4
    assert sorted(set(ran(root))) == sorted(f"{arm} {seed} 100" for arm in ("good", "poor") for seed in range(4))
    assert len(ran(root)) == 4 + 3 * 4
    write(root, SOURCE)
    assert runner.run_claim("toy", root=root, jobs=2).verdict.name == "reproduced"


@pytest.fixture
def trainer(monkeypatch):
    """The claim that is killed changes the trainer; afterwards it is as it was."""
    for name in ("save", "load"):
        monkeypatch.setattr(loop.Trainer, name, getattr(loop.Trainer, name))


def metrics(outcome):
    assert outcome.failed == []
    return {(line["arm"], line["seed"]): line["metrics"] for line in outcome.lines}


def test_a_killed_run_of_a_claim_goes_on_from_its_checkpoint(root, trainer):
    write(root, TRAINS.replace("KILL = False", "KILL = True"))
    killed = root / "claims" / "killed"
    killed.touch()  # the first time nothing is
    alone = metrics(runner.run_claim("toy", root=root, jobs=1))
    killed.unlink()
    *kept, _ = path_of(root).read_text().splitlines(keepends=True)
    path_of(root).write_text("".join(kept))  # one is missing: fewer processes begin
    assert metrics(runner.run_claim("toy", root=root, jobs=2)) == alone
    assert killed.exists()
    assert [path.read_text() for path in (root / "claims").glob("again-*")] == ["16"]
    assert not (root / "claims" / "results" / ".work").exists()


def test_work_of_other_settings_is_removed_and_what_an_interrupted_claim_trained_is_used(root, trainer):
    write(root, TRAINS.replace("KILL = False", "KILL = 'raise'"))
    old = root / "claims" / "results" / ".work" / "toy" / "other-key"
    old.mkdir(parents=True)
    with pytest.raises(KeyboardInterrupt):
        runner.run_claim("toy", root=root, jobs=1)
    assert not old.exists()
    assert list(old.parent.glob("*/ppo-s0/*/config.json"))
    assert len(metrics(runner.run_claim("toy", root=root, jobs=1))) == 3
    assert [path.read_text() for path in (root / "claims").glob("again-*")] == ["16"]
    assert not old.parent.parent.exists()


def test_unknown_claims_name_the_nearest(root):
    with pytest.raises(UsageError, match="no claim for 'toi'; did you mean 'toy'"):
        runner.run_claim("toi", root=root)
    with pytest.raises(UsageError, match=r"no claim for 'ddpg': it is td3 --critics 1 --target-noise 0 --delay 1$"):
        runner.run_claim("ddpg", root=root)
    write(root, "CLAIM = 3")
    with pytest.raises(UsageError, match="defines no CLAIM"):
        runner.run_claim("toy", root=root)
    write(root, "1 / 0")
    with pytest.raises(UsageError, match="ZeroDivisionError"):
        runner.run_claim("toy", root=root)


def test_pages(root, capsys):
    assert "none: 0 of 8 runs recorded" in pages.claims_page(root)
    outcome = runner.run_claim("toy", root=root, jobs=1)
    pages.print_outcome(outcome)
    printed = capsys.readouterr().out
    assert "Verdict: reproduced" in printed
    assert "worst seed 3" in printed
    page = pages.write_claims_page(root)
    assert page == root / "docs" / "claims.md"
    assert page.read_text() == pages.claims_page(root)
    assert "| good | " not in page.read_text()
    assert "| `good` | 11.5 (10 to 13) |" in page.read_text()
    assert "**reproduced**" in page.read_text()


class FakeRun:
    score = Score()

    def __init__(self):
        self.evaluations = [{"env_steps": 10 * i, "eval/return": float(i)} for i in range(6)]
        self.rows = [{"entropy": float(i)} if i % 2 else {} for i in range(20)]
        self.config = {"unit": "env_steps"}


def test_measure():
    found = arms.measure(FakeRun(), ("entropy", "entropy:max"))
    assert (found["return"], found["area"], found["best"]) == (4, 2.5, 5)
    assert (found["entropy"], found["entropy:max"]) == (18, 19)
    assert found["curve"][1] == [10, 1.0]
    assert arms.measure(FakeRun(), {"low": "entropy:min", "own": len_of_rows})["own"] == 20
    with pytest.raises(RunError, match="no 'entropi'; did you mean 'entropy'"):
        arms.measure(FakeRun(), ("entropi",))
    with pytest.raises(UsageError, match="':maxx'; did you mean 'max'"):
        arms.measure(FakeRun(), ("entropy:maxx",))


def len_of_rows(run):
    return len(run.rows)


def test_train_arm_describes_and_trains(monkeypatch, tmp_path):
    seen = {}

    def train(method, task, *, steps, seed, out, progress=False, **config):
        seen.update(method=method, task=task, steps=steps, seed=seed, config=config)
        assert isinstance(out, Path)
        return FakeRun()

    module = type(sys)("polopt.training.api")
    module.train = train
    monkeypatch.setitem(sys.modules, "polopt.training.api", module)
    arm = arms.train_arm("sac", "Pendulum-v1", metrics=("entropy",), reward_scale=10, policy={"std": "x"})
    assert arm(3, {"env_steps": 500})["return"] == 4
    assert (seen["steps"], seen["seed"], seen["config"]["reward_scale"]) == (500, 3, 10)
    assert json.dumps(arm.describe())
    other = arms.train_arm("sac", "Pendulum-v1", metrics=("entropy",), reward_scale=1, policy={"std": "x"})
    assert arm.describe() != other.describe()
    with pytest.raises(UsageError, match="counts env_steps"):
        arm(0, {"episodes": 5})
    with pytest.raises(UsageError, match="several units"):
        arm(0, {"episodes": 5, "env_steps": 3})


def test_an_arm_follows_the_methods_that_it_trains(tmp_path, monkeypatch):
    monkeypatch.setattr(keys, "GOLDEN", tmp_path)
    file = tmp_path / "two.py"
    file.write_text('NAMES = "ppo", "bc", "no-method"')
    made = {"a": arms.train_arm("sac", "Pendulum-v1"), "b": partial(other_arm, "x")}
    claim = Claim("mdpo", "s", {"env_steps": 9}, made, (Above("return", "a", 0),))

    def moved(name):
        """The arms whose key depends on the golden numbers of a method."""
        before = {arm: keys.behavior_key(claim, file, arm) for arm in made}
        (tmp_path / f"{name}.json").write_text("[1]")
        return {arm for arm in made if keys.behavior_key(claim, file, arm) != before[arm]}

    assert moved("sac") == {"a"}  # it says what it trains
    assert moved("ppo") == moved("bc") == moved("mdpo") == {"b"}  # what the file names, and the claim's own method
    assert moved("iql") == set()
    monkeypatch.setattr(keys, "GOLDEN", tmp_path / "absent")  # installed: a version has its numbers
    assert keys.behavior_key(claim, file, "a") == keys.behavior_key(claim, file, "b") == keys.digest(polopt.__version__)


def other_arm(name, seed, budget):
    return {"return": 0.0}


def test_two_writers_exclude_each_other(tmp_path):
    path = tmp_path / "toy.jsonl"
    with (
        results.appending(path),
        pytest.raises(UsageError, match="another process is recording"),
        results.appending(path),
    ):
        pass


def test_unwritable_results_are_one_sentence(root):
    (root / "claims" / "results").touch()
    with pytest.raises(RunError, match="could not write"):
        runner.run_claim("toy", root=root, jobs=1)


def test_arms_that_cannot_be_told_apart_are_refused():
    number = 3
    with pytest.raises(UsageError, match="the arm 'x' must be"):
        keys.describe_arm(lambda seed, budget: {"score": number}, "x")


def test_the_verb_prints_and_returns_the_exit_code(root, monkeypatch, capsys):
    place = results.find_place(root)
    monkeypatch.setattr(runner, "find_place", lambda root=None: place)
    assert pages.run_verb("toy", jobs=1) == 0
    printed = capsys.readouterr().out
    assert "8/8  poor  seed 3" in printed
    assert "Verdict: reproduced" in printed
    write(root, SOURCE.replace('return {"score": 1.0', 'raise OSError("gone")\n    return {"score": 1.0'))
    assert pages.run_verb("toy", jobs=1) == 1
    assert "no verdict: 1 arm failed (poor)" in capsys.readouterr().out
