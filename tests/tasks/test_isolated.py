"""Reward functions in processes of their own: whatever they do, it costs the sample, and nothing is left behind."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import polopt
from polopt.core.errors import UsageError
from polopt.core.workers import Workers
from polopt.tasks import make_task
from polopt.tasks.rewards import Rewards, Unscored, make_rewards
from tests.tasks import calamities

pytestmark = pytest.mark.skipif(not hasattr(os, "killpg"), reason="processes of their own need Linux or macOS")
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux")
HERE = "tests.tasks.calamities"


def isolated(name: str, count: int = 1, timeout: float = 3.0, **options: Any) -> Rewards:
    rewards = make_rewards(f"{HERE}:{name}", None, timeout, isolated=count, **options)
    assert rewards is not None
    return rewards


def told(rewards: Rewards, texts: list[str], **columns: list[Any]) -> list[Any]:
    rows = [{key: values[row] for key, values in columns.items()} for row in range(len(texts))]
    parts = [part for (part,) in rewards.parts(["?"] * len(texts), texts, rows)]
    return [part.why.removeprefix("the reward function ") if isinstance(part, Unscored) else part for part in parts]


def gone(pid: int, seconds: float = 20.0) -> bool:
    """Whether the process ends (a zombie has)."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            os.kill(pid, 0)
            state = (
                Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] if os.path.isdir("/proc") else ""
            )
        except (ProcessLookupError, FileNotFoundError):
            return True
        if state == "Z":
            return True
        time.sleep(0.02)
    return False


def test_every_calamity_costs_its_sample_only() -> None:
    name = f"'{HERE}:alone'"
    texts = ["ab", "exit", "segfault", "raise", "leave", "regex", "abc", "sleep", "abcd"]
    assert told(isolated("alone", 2), texts) == [
        2.0,
        f"{name} ended its process (exit code 3)",
        f"{name} ended its process (SIGSEGV)",
        f"{name} raised ValueError: not this one",
        f"{name} raised SystemExit: 2",
        f"{name} took more than 3 seconds and was left behind",
        3.0,
        f"{name} took more than 3 seconds and was left behind",
        4.0,
    ]


def test_what_is_no_number_costs_its_sample_as_it_does_without_a_process() -> None:
    texts = ["nan", "none", "text", "list", "why", "ab"]
    inside = make_rewards(f"{HERE}:alone", None, 5.0)
    assert inside is not None
    assert told(isolated("alone"), texts)[:4] == told(inside, texts)[:4]
    assert told(isolated("alone"), [*texts, "other"])[1:] == [
        None,
        f"'{HERE}:alone' returned str for a sample, not a number",
        f"'{HERE}:alone' returned list for a sample, not a number",
        f"'{HERE}:alone' gave no number: of no use",
        2.0,
        f"'{HERE}:alone' returned str for a sample, not a number",
    ]


def test_a_batch_that_fails_together_is_asked_one_by_one() -> None:
    answers = ["ab", "?", "?"]
    assert told(isolated("together"), ["ab", "abc", "x"], answer=answers) == [3.0, 3.0, 1.0]
    given = told(isolated("together"), ["ab", "exit", "abc"], answer=answers)
    assert given == [3.0, f"'{HERE}:together' ended its process (exit code 3)", 3.0]


def test_arrays_and_coroutines() -> None:
    assert told(isolated("later"), ["a", "bc"]) == [1.0, 2.0]
    assert told(isolated("arrays"), ["a", "bc"]) == [0.5, 1.0]


@linux
def test_a_limit_of_memory() -> None:
    rewards = isolated("alone", memory_limit=1.0)
    assert told(rewards, ["memory", "ab"]) == [f"'{HERE}:alone' raised MemoryError", 2.0]


def test_processes_stay_are_shared_and_are_replaced_when_they_end() -> None:
    first, again, other = isolated("process"), isolated("process"), isolated("process", 2)
    before = told(first, ["a", "b"])
    assert before == told(again, ["c", "d"])
    assert len(set(before)) == 1
    assert before[0] != os.getpid()
    assert len(set(told(other, ["a", "b", "c", "d"]))) == 2
    os.kill(int(before[0]), signal.SIGKILL)
    assert gone(int(before[0]))
    after = told(first, ["a"])  # it had ended before it was asked: no sample pays
    assert isinstance(after[0], float)
    assert after != before[:1]


def test_a_function_may_have_a_time_limit_of_its_own() -> None:
    assert told(isolated("slow", timeout=0.01), ["a"]) == [1.0]


def test_columns_are_checked_in_the_signature() -> None:
    rewards = isolated("together")
    with pytest.raises(UsageError, match="asks for 'answer', not in the task; its columns are level"):
        rewards.check({"level"})
    rewards.check({"answer"})


def test_it_ends_when_nobody_needs_it() -> None:
    workers = Workers([f"{HERE}:process"])
    (outcome,) = workers([{"completion": ""}], 60.0)
    pid = int(outcome())
    del workers
    gc.collect()
    assert gone(pid)


@linux
def test_it_ends_with_its_parent_whatever_it_is_doing(tmp_path: Path) -> None:
    script = f"""
        import threading, time
        from polopt.core.workers import Workers
        idle, busy = Workers(["{HERE}:process"]), Workers(["{HERE}:alone"])
        print(int(idle([{{"completion": ""}}], 60.0)[0]()), busy.workers[0].process.pid, flush=True)
        threading.Timer(0.2, print, ["asked"], {{"flush": True}}).start()
        busy([{{"completion": "regex"}}], 1000.0)
    """
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", textwrap.dedent(script)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as parent:
        assert parent.stdout is not None
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert parent.stdout.readline() == "asked\n"
        parent.kill()
    assert len(pids) == 2
    assert all(gone(pid) for pid in pids)


def test_what_it_has_started_ends_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "pids"
    monkeypatch.setenv("POLOPT_TEST_PIDS", str(file))
    workers = Workers([f"{HERE}:alone"])
    (outcome,) = workers([{"completion": "child"}], 3.0)
    with pytest.raises(Exception, match="took more than 3 seconds"):
        outcome()
    assert gone(int(file.read_text()))


def test_a_script_without_a_guard_is_not_run_again(tmp_path: Path) -> None:
    script = f"""
        from polopt.core.workers import Workers
        print("ran", flush=True)
        print(Workers(["{HERE}:alone"])([{{"completion": "abc"}}], 60.0)[0]())
    """
    (tmp_path / "script.py").write_text(textwrap.dedent(script))
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, tmp_path / "script.py"], env=env, capture_output=True, text=True)
    assert done.stdout == "ran\n3.0\n"


@pytest.mark.parametrize(
    ("functions", "options", "said"),
    [
        (
            "nowhere_at_all:f",
            {},
            "cannot be called in a process of its own: ModuleNotFoundError: No module named 'nowhere",
        ),
        ("math:nope", {}, "cannot be called in a process of its own: AttributeError"),
        ("math", {}, "write it as module:function"),
        (f"{HERE}:HERE", {}, "cannot be called in a process of its own"),
        (lambda completion: 1.0, {}, "cannot be isolated: name it as module:function"),
        ("math:sin", {"isolated": -1}, "isolated must be a whole number of at least 0"),
        ("math:sin", {"isolated": "yes"}, "isolated must be a whole number"),
        ("math:sin", {"isolated": False, "memory_limit": 1.0}, "needs isolated rewards"),
        ("math:sin", {"memory_limit": 0}, "memory_limit is a number of GB above 0"),
        (None, {}, "isolated rewards are functions of yours"),
    ],
)
def test_what_cannot_be_isolated(functions: Any, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        make_rewards(functions, None, 1.0, **{"isolated": True} | options)
    assert "\n" not in str(caught.value)


def test_functions_that_are_found_by_their_name_may_be_isolated() -> None:
    rewards = make_rewards([calamities.alone, "verifier"], None, 60.0, isolated=True)
    assert rewards is not None
    assert rewards.names == ["alone", "verifier"]


@pytest.mark.parametrize("name", ["addition", "reasoning-gym/chain_sum"])
def test_tasks_take_it_as_options(name: str) -> None:
    task = make_task(name, 2, pool=2, rewards=[f"{HERE}:alone", "verifier"], isolated=2, timeout=60.0)
    task.reset(index=torch.arange(2))
    _, reward, *_ = task.step({"action": ["raise", "??"]})
    assert task.facts["component_failed"].tolist() == [[True, False], [False, False]]
    assert reward.tolist() == [0.0, 2.0]


def test_a_run_is_the_same_with_and_without_processes(tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "model": "tiny",
        "steps": 16,
        "batch_prompts": 4,
        "samples_per_prompt": 2,
        "loggers": (),
    }
    options = {"pool": 10, "score_truncated": True, "rewards": f"{HERE}:alone", "timeout": 60.0}
    settings |= {"policy.max_tokens": 4, "lr": 1e-2, "eval_episodes": 2}
    inside, outside = (
        polopt.train("rec", "vowels", out=tmp_path / str(n), task_options=options | {"isolated": n}, **settings)
        for n in (0, 1)
    )
    for row, other in zip(inside.rows, outside.rows, strict=True):
        assert row | {"seconds": 0} == other | {"seconds": 0}
    assert inside.rows[-1]["reward/alone"] == inside.rows[-1]["reward"]
