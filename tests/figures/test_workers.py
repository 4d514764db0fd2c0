"""polopt's own workers take the jobs of the benchmarks, made small; those that need data or a model are left out."""

import json
import subprocess
import sys

import pytest

from benchmarks import returns, speed
from benchmarks.environments import ROOT, WORKERS, environment

RATE = {"sizes": [8], "warmup": 100, "log_every": 50, "transitions": 3000, "batch_size": 16, "replay_size": 1000}
SMALLER = {"ppo": {"envs": 2, "window": 64}, "many-return": {"rows": 8, "reward": -100.0}}
UNITS = {"ppo": 128, "many-return": 2}
CURVE = {"eval_every": 192, "eval_episodes": 1, "net_arch": [8], "batch_size": 16}
STEPS = {"learning_starts": 64, "steps": 192, "buffer_size": 1000, "n_envs": 2, "n_steps": 64}
BLOCKS = {"train_freq": 16, "gradient_steps": 8}
TASKS = {"HalfCheetah-v5": "InvertedDoublePendulum-v5", "CartPole-v1": "CartPole-v1"}  # with short episodes
SCRIPT = """
import json, sys
sys.path.insert(0, sys.argv[1])
from ours import Cases
from protocol import counting
for line in sys.stdin:
    job = json.loads(line)
    units = job.pop("units")
    run = Cases()[job["case"]](job)
    answer = run(units) if units else list(run)
    if job["case"] == "sac":
        with counting(answer):
            run(units)
    print(json.dumps(answer))
"""


def rates():
    """One job for each of the workers' cases, neither compiled nor with EnvPool."""
    found = {}
    for case in speed.CASES:
        for side in case.sides:
            other = side.command or side.job.get("compile") or "task" in side.job
            if side.library == "polopt" and not other and case.prepare is None:
                job = {"case": case.name} | case.job | side.job
                small = RATE | SMALLER.get(case.name, {})
                found.setdefault(job["case"], {"units": UNITS.get(case.name, 50)} | job | small)
    return found.values()


def curves():
    """One job for each of the workers' curves."""
    found = {}
    for arm in returns.ARMS:
        if arm.library == "polopt" and not arm.wants and arm.task in TASKS:
            small = {name: value for name, value in (CURVE | STEPS | BLOCKS).items() if name in arm.settings}
            found.setdefault(arm.settings["case"], {"units": 0} | arm.job(0, task=TASKS[arm.task], **small))
    return found.values()


@pytest.fixture(scope="module")
def answers():
    """What every job was answered with, all from one process."""
    jobs = [*rates(), *curves()]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(WORKERS)],
        input="\n".join(map(json.dumps, jobs)),
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment(1),
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return list(zip(jobs, map(json.loads, done.stdout.splitlines()), strict=True))


def test_arithmetic_is_counted(answers):
    """Of SAC's update with one hidden layer of 8: heads of one output are sums, not products of matrices."""
    (gflop,) = (answer["gflop"] for job, answer in answers if job["case"] == "sac")
    policy, critics, rows = [17 * 8, 8 * 12], 2 * 23 * 8, 16  # multiplications of a row, each with an addition
    targets = sum(policy) + critics
    critic_loss = 2 * critics  # forward, and the gradient of the weights
    policy_loss = 2 * sum(policy) + policy[1] + 2 * critics  # those of the second layer's and the critics' inputs too
    update = rows * (targets + critic_loss + policy_loss) + sum(policy)  # and the action of the step
    assert gflop * 1e9 == pytest.approx(50 * 2 * update)


def test_rates(answers):
    parts = {job["case"]: answer for job, answer in answers if job["units"]}
    assert {"sac", "dsac-t", "td3", "ppo", "iql", "td3-bc", "ofql", "dql", "ofql-act", "dql-act"} <= {*parts}
    assert all(parts[case]["processor"] > 0 for case in ("world", "points", "many", "many-return"))
    assert all(seconds > 0 for case in ("sac", "dsac-t", "td3", "ppo") for seconds in parts[case].values())


def test_curves(answers):
    found = {job["case"]: answer for job, answer in answers if not job["units"]}
    names = ("sac", "td3", "ppo", "trpo", "dqn", "dsac-t", "mdpo-off", "mdpo")
    assert {*found} == {f"{name}-curve" for name in names}
    for rows in found.values():
        assert rows[0]["steps"] == 0
        assert rows[-1]["steps"] >= 192
        assert [row["seconds"] for row in rows] == sorted(row["seconds"] for row in rows)
        assert all(row["return"] == pytest.approx(sum(row["returns"]), abs=1e-3) for row in rows)  # one episode


def test_dqn_copies_as_often_as_its_peer(monkeypatch):
    """After 250 steps, with an update for each; and, where that would be every 5 updates, after each block of 128."""
    monkeypatch.syspath_prepend(WORKERS)
    monkeypatch.delitem(sys.modules, "evaluation", raising=False)  # the tests have one of this name
    from ours_control_curves import translated

    known = {task: translated("dqn", task, settings) for task, settings in returns.DQN.items()}
    assert [known[task]["target_every"] for task in ("CartPole-v1", "Acrobot-v1")] == [128, 250]
    assert [known[task]["warmup"] for task in ("CartPole-v1", "Acrobot-v1")] == [1_000, 1]
