from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from tensordict import TensorDict

from polopt.core.errors import CheckpointError, RunError, UsageError
from polopt.core.state import gather, restore
from polopt.networks import Network
from polopt.policies import Auto
from polopt.tasks import make_task
from polopt.tasks.base import Task, start_seed
from polopt.tasks.gym import Rows, leaves
from polopt.tasks.tabular import random_mdp
from tests.core.test_pool import alive, until
from tests.forked import Forked
from tests.guards.spaces import VECTOR, Walk

from .envs import Counter, Drifting, Echo, FakeAtari, Faulty, Unseeded


def actions(task: Task, generator: torch.Generator) -> torch.Tensor:
    if isinstance(task.obs, TensorDict):
        return torch.multinomial(task.obs["action_mask"].float(), 1, generator=generator).squeeze(1)
    if task.spec.discrete:
        return torch.randint(task.spec.num_actions, (task.num,), generator=generator)
    space: Any = task.spec.action
    low, high = torch.as_tensor(space.low), torch.as_tensor(space.high)
    return low + (high - low) * torch.rand(task.num, task.spec.action_dim, generator=generator)


def play(task: Task, steps: int, generator: torch.Generator) -> list[torch.Tensor]:
    """Everything that `steps` steps return, rows reset as they end."""
    trace: list[torch.Tensor] = []
    if task.obs is None:
        task.reset()
    for _ in range(steps):
        obs, reward, terminated, truncated = task.step({"action": actions(task, generator)})
        trace += [leaf for _, leaf in leaves(obs)] + [reward, terminated, truncated]
        done = terminated | truncated
        if done.any():
            trace += [leaf for _, leaf in leaves(task.reset(done))]
    return trace


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b))


# Observations and actions


def test_float64_observations_come_in_the_default_dtype() -> None:
    task = make_task(Counter)
    assert task.reset().dtype == torch.float32
    obs, reward, terminated, truncated = task.step({"action": torch.zeros(1, dtype=torch.int64)})
    assert (obs.dtype, reward.dtype, terminated.dtype, truncated.dtype) == (
        torch.float32,
        torch.float32,
        torch.bool,
        torch.bool,
    )


def test_default_dtype_float64(float64: None) -> None:
    task = make_task("Pendulum-v1")
    assert task.reset().dtype == torch.float64
    assert task.step({"action": torch.zeros(1, 1)})[1].dtype == torch.float64


def test_dict_observations_and_box_actions() -> None:
    space = spaces.Box(-1.0, 1.0, (2, 2), np.float32)
    task = make_task(lambda: Echo(space), num=2)
    task.reset()
    action = torch.tensor([[0.1, 0.2, 0.3, 0.4], [-0.1, -0.2, -0.3, -0.4]])
    obs: Any = task.step({"action": action})[0]
    torch.testing.assert_close(obs["action"], action)
    assert obs["image"].dtype == torch.uint8
    assert obs["image"].shape == (2, 4, 4, 3)
    assert obs["place"].tolist() == [2, 2]  # counted from 0
    assert obs["action_mask"].tolist() == [[False, True]] * 2
    assert obs["flags"].tolist() == [[1.0, 0.0]] * 2
    assert obs["inner", "int"].tolist() == [[4.0, 9.0]] * 2
    served: Any = task.spec.obs
    assert served["place"] == spaces.Discrete(3)
    assert isinstance(served["flags"], spaces.Box)
    assert isinstance(served["action_mask"], spaces.MultiBinary)


def test_finite_actions_are_those_of_the_environment() -> None:
    """A policy counts from 0; `env_action` adds the start of the space, once."""
    for space in (spaces.Discrete(3, start=5), spaces.MultiDiscrete([3, 4], start=[0, 10])):
        task = make_task(lambda space=space: Walk(space, VECTOR), num=2)  # it refuses an action outside of its space
        policy = Auto().build(task.spec, Network((4,)))
        for _ in range(8):
            record, _ = policy.act(task.reset())
            action = policy.env_action(record["action"])
            task.step({"action": action})
            assert torch.equal(policy.own_action(action), record["action"])


def test_later_observations_do_not_change_earlier_ones() -> None:
    task = make_task(Counter, num=2)
    first: Any = task.reset()
    before = first.clone()
    second = task.step({"action": torch.zeros(2, dtype=torch.int64)})[0]
    assert torch.equal(first, before)
    assert not torch.equal(first, second)


@pytest.mark.parametrize(
    ("space", "kind"), [(spaces.Sequence(VECTOR), "Sequence"), (spaces.Text(3), "Text")], ids=["sequence", "text"]
)
def test_other_observation_spaces_are_refused_in_one_sentence(space: spaces.Space, kind: str) -> None:
    class Odd(Counter):
        def __init__(self) -> None:
            super().__init__()
            self.observation_space = space

    with pytest.raises(UsageError, match=f"Odd has a {kind} observation space; polopt serves Box, Discrete"):
        make_task(Odd)


# Ends of episodes


@pytest.mark.parametrize("end", ["terminated", "truncated", "both"])
def test_ends_are_never_merged_and_show_the_true_successor(end: str) -> None:
    task = make_task(Counter, num=2, length=2, end=end)
    start: Any = task.reset()
    action = {"action": torch.zeros(2, dtype=torch.int64)}
    task.step(action)
    obs, reward, terminated, truncated = task.step(action)
    assert torch.equal(obs[:, 0], start[:, 0] + 2)  # the episode's own last observation, not that of a reset
    assert torch.equal(obs[:, 1], start[:, 1])
    assert terminated.tolist() == [end != "truncated"] * 2
    assert truncated.tolist() == [end != "terminated"] * 2
    assert reward.tolist() == [2.0, 2.0]


def test_stepping_an_ended_row_is_an_error() -> None:
    task = make_task(Counter, num=2, length=1)
    action = {"action": torch.zeros(2, dtype=torch.int64)}
    with pytest.raises(RunError, match="Counter must be reset before its first step"):
        task.step(action)
    task.reset()
    task.step(action)  # an episode of one step is legal
    task.reset(torch.tensor([True, False]))
    with pytest.raises(RunError, match="row 1 of Counter has ended: it must be reset before it is stepped"):
        task.step(action)


@pytest.mark.parametrize("workers", [0, 2])
def test_partial_resets_leave_other_rows_alone(workers: int) -> None:
    task = make_task(Counter, num=3, length=9, workers=workers)
    task.reset()
    assert task.first.all()
    obs: Any = task.step({"action": torch.zeros(3, dtype=torch.int64)})[0]
    assert not task.first.any()
    again: Any = task.reset(torch.tensor([False, True, False]))
    assert torch.equal(again[[0, 2]], obs[[0, 2]])
    assert again[1, 0] == again[1, 1] != obs[1, 1]
    assert task.first.tolist() == [False, True, False]
    assert torch.equal(task.obs, again)
    task.close()


# Seeds


@pytest.mark.parametrize("space", [spaces.Box(-1, 1, (1,), np.float32), spaces.Discrete(3, start=-1)])
def test_rows_are_stepped_as_gymnasium_steps_them(space: spaces.Space) -> None:
    """Also where some rows end, and some have something to say."""

    class Env(gymnasium.Env):
        observation_space = spaces.Dict({"place": spaces.Box(-9, 9, (2,), np.float32), "time": spaces.Discrete(99)})
        action_space = space

        def __init__(self, row: int) -> None:
            self.row = row

        def seen(self) -> dict[str, Any]:
            return {"place": np.full(2, self.total, np.float32), "time": self.time}

        def reset(self, **options: Any) -> tuple[dict[str, Any], dict[str, Any]]:
            self.time, self.total = 0, 0.0
            return self.seen(), {}

        def step(self, action: Any) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
            self.time, self.total = self.time + 1, self.total + float(np.sum(action))
            facts = {"facts": np.array([self.total])} if self.row != self.time else {}
            return self.seen(), self.total, self.time == self.row + 2, self.time == self.row, facts

    makers = [lambda row=row: Env(row) for row in range(3)]
    disabled = gymnasium.vector.AutoresetMode.DISABLED
    pair = [cls(makers, copy=False, autoreset_mode=disabled) for cls in (Rows, gymnasium.vector.SyncVectorEnv)]
    for vector in pair:
        vector.reset(seed=[0, 1, 2])
    space.seed(0)
    for _ in range(6):
        actions = np.stack([space.sample() for _ in range(3)])
        own, base = (vector.step(actions) for vector in pair)
        np.testing.assert_equal(own, base)
        assert [part.dtype for part in own[1:4]] == [part.dtype for part in base[1:4]]
        ended = own[2] | own[3]
        if ended.any():
            again = [vector.reset(seed=[None] * 3, options={"reset_mask": ended.copy()}) for vector in pair]
            np.testing.assert_equal(*again)


def test_same_seed_same_data_in_process_and_in_workers() -> None:
    runs = []
    for workers in (0, 0, 3, 2):  # two of three rows at once at the end
        task = make_task("CartPole-v1", num=3, seed=5, workers=workers)
        runs.append(play(task, 60, torch.Generator().manual_seed(0)))
        task.close()
    assert all(same(runs[0], run) for run in runs[1:])


def test_rows_seeds_and_purposes_start_differently() -> None:
    starts = [
        make_task(Counter, num=4, seed=seed, evaluation=evaluation).reset()[:, 1]
        for seed, evaluation in [(0, False), (1, False), (0, True)]
    ]
    values = torch.cat(starts).tolist()
    assert len(set(values)) > 10  # 12 draws out of 1000
    keys = {start_seed(0, (purpose, row, episode)) for purpose in (0, 1) for row in range(50) for episode in range(50)}
    assert len(keys) == 5000
    assert max(keys) < 2**31


def test_equal_indices_start_equally() -> None:
    task = make_task(Counter, num=4)
    starts: Any = task.reset(index=torch.tensor([7, 8, 7, 8]))
    assert starts[0].equal(starts[2])
    assert starts[1].equal(starts[3])
    assert not starts[0].equal(starts[1])
    again: Any = task.reset(torch.tensor([False, True, False, False]), index=torch.tensor([0, 7, 0, 0]))
    assert again[1].equal(starts[0])


# Restoring

RESTORED = [("Pendulum-v1", 0), ("CartPole-v1", 0), ("Hopper-v5", 0), ("HalfCheetah-v5", 0), ("masked", 0)]


@pytest.mark.parametrize(("name", "workers"), [*RESTORED, ("CartPole-v1", 2), ("Hopper-v5", 2), ("Pendulum-v1", 2)])
def test_a_restored_task_goes_on_bitwise(name: str, workers: int) -> None:
    task = make_task(name, num=2, seed=3, workers=workers)
    assert task.exact_restore
    assert task.restore_note == ""
    generator = torch.Generator().manual_seed(0)
    play(task, 130, generator)
    saved = gather(task)
    position = generator.get_state()
    expected = play(task, 250, generator)
    task.close()

    other = make_task(name, num=2, seed=3, workers=workers)
    play(other, 7, torch.Generator().manual_seed(9))  # it may have been used
    restore(other, saved)
    generator.set_state(position)
    assert same(expected, play(other, 250, generator))
    other.close()


def test_a_state_can_be_saved_before_the_first_step_and_right_after_a_restore() -> None:
    task = make_task("CartPole-v1", num=2)
    other = make_task("CartPole-v1", num=2)
    restore(other, gather(task))
    assert other.obs is None
    play(task, 30, torch.Generator().manual_seed(0))
    for _ in range(2):  # the second time a restored state is saved again
        restore(other, gather(task))
        task, other = other, make_task("CartPole-v1", num=2)
    restore(other, gather(task))
    assert same(play(task, 50, torch.Generator().manual_seed(1)), play(other, 50, torch.Generator().manual_seed(1)))


def test_ended_rows_are_restored_as_ended() -> None:
    task = make_task(Counter, num=1, length=2)
    play_all = {"action": torch.zeros(1, dtype=torch.int64)}
    task.reset()
    task.step(play_all)
    task.step(play_all)
    other = make_task(Counter, num=1, length=2)
    restore(other, gather(task))
    with pytest.raises(RunError, match="has ended"):
        other.step(play_all)


def test_environments_that_cannot_be_restored_start_anew_and_say_so() -> None:
    task = make_task(Unseeded, num=2)
    assert not task.exact_restore
    assert task.restore_note == (
        "Unseeded does not repeat itself from a seed and the same actions, so its episodes start anew at a resume"
    )
    play(task, 4, torch.Generator().manual_seed(0))
    other = make_task(Unseeded, num=2)
    restore(other, gather(task))
    assert other.first.all()
    play(other, 4, torch.Generator().manual_seed(0))


def test_a_replay_that_differs_is_noticed() -> None:
    task = make_task(Drifting, length=50)
    assert task.exact_restore  # the self-test is too short to see it
    play(task, 20, torch.Generator().manual_seed(0))
    other = make_task(Drifting, length=50)
    restore(other, gather(task))
    assert other.restore_note == "Drifting did not replay to the saved observation, so its episodes start anew"
    assert other.first.all()


def test_another_number_of_rows_is_refused() -> None:
    task = make_task(Counter, num=2)
    task.reset()
    with pytest.raises(CheckpointError, match="it has 2 rows of Counter and this run has 3"):
        restore(make_task(Counter, num=3), gather(task))


# Faults

FAULTS = {
    "step raises": "its step raised ValueError: joint 3 broke (row 0, step 2 of the episode)",
    "reset raises": "its reset raised OSError: no connection (row 0, step 0 of the episode)",
    "reset shape": "its reset returned an observation of shape (3,), but its observation space has shape (2,) "
    "(row 0, step 0 of the episode)",
    "step shape": "its step returned an observation of shape (1,), but its observation space has shape (2,) "
    "(row 0, step 2 of the episode)",
    "reset nan": "its observation is not finite (row 0, step 0 of the episode)",
    "nan obs": "its observation is not finite (row 0, step 2 of the episode)",
    "nan reward": "its reward is nan (row 0, step 2 of the episode)",
    "no reward": "its step returned a reward of type NoneType, not a number (row 0, step 2 of the episode)",
    "reset old": "its reset did not return the pair (observation, info) (row 0, step 0 of the episode)",
    "step old": "its step returned 4 values, not (observation, reward, terminated, truncated, info) "
    "(row 0, step 2 of the episode)",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_one_clear_sentence(fault: str) -> None:
    task = make_task(Faulty, fault=fault)
    with pytest.raises(RunError) as error:
        play(task, 4, torch.Generator().manual_seed(0))
    assert str(error.value) == f"Faulty failed: {FAULTS[fault]}"


@pytest.mark.parametrize("fault", ["step raises", "reset shape", "nan reward", "step dies"])
def test_faults_in_workers(fault: str, capfd: pytest.CaptureFixture) -> None:
    task = make_task(Faulty, num=2, workers=2, fault=fault)
    expected = "a worker process of Faulty has ended" if fault == "step dies" else f"Faulty failed: {FAULTS[fault]}"
    with pytest.raises(RunError) as error:
        play(task, 4, torch.Generator().manual_seed(0))
    assert expected in str(error.value)
    task.close()
    assert capfd.readouterr().err == ""


def test_the_row_is_named() -> None:
    class Second(Counter):
        def observe(self) -> Any:
            return np.array([np.nan, 0.0]) if self.start == wanted else super().observe()

    wanted = float(make_task(Counter, num=3).reset()[1, 1])
    with pytest.raises(RunError, match=r"Second failed: its observation is not finite \(row 1, step 0 of"):
        make_task(Second, num=3).reset()


# Workers


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_workers_leave_signals_to_the_run(number: int) -> None:
    task: Any = make_task(Counter, num=2, workers=2)
    task.reset()
    for process in task._vector.processes:
        os.kill(process.pid, number)
    play(task, 5, torch.Generator().manual_seed(0))
    task.close()
    task.close()


STUCK = r"""
import os, signal, sys, threading, time
import gymnasium, torch
from polopt.tasks import make_task
class Mine(gymnasium.Env):
    observation_space = gymnasium.spaces.Discrete(2)
    action_space = gymnasium.spaces.Discrete(2)
    def reset(self, seed=None, options=None):
        return 0, {}
    def step(self, action):
        os.write(1, f"{os.getpid()}\n".encode())  # at once, as two do it
        time.sleep(600 * int(action))
        return 0, 1.0, False, False, {}
task = make_task(lambda: Mine(), num=2, workers=2)
task.reset()
if sys.argv[1] == "interrupted":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell ignores for what runs in the background
    threading.Timer(3.0, os.kill, [os.getpid(), signal.SIGINT]).start()
task.step({"action": torch.tensor([0, 1])})
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="looks at /proc")
@pytest.mark.parametrize("how", ["killed", "interrupted"])
def test_workers_end_with_the_run_whatever_the_environment_is_doing(how: str) -> None:
    run = Forked(STUCK, [how])
    assert until(lambda: run.poll() is None and run.out.read_text().count("\n") == 2)
    workers = [int(line) for line in run.out.read_text().split()]
    assert all(map(alive, workers))
    if how == "killed":
        run.kill()
    assert run.wait(60) != 0
    assert until(lambda: not any(map(alive, workers)))


def test_a_script_without_a_main_guard_may_use_workers_and_ends_silently(tmp_path: Any) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(
            """
            import gymnasium, torch
            from polopt.tasks import make_task
            print("started")
            class Mine(gymnasium.Env):
                observation_space = gymnasium.spaces.Discrete(2)
                action_space = gymnasium.spaces.Discrete(2)
                def reset(self, seed=None, options=None):
                    return 0, {}
                def step(self, action):
                    return int(action), 1.0, False, False, {}
            task = make_task(lambda: Mine(), num=2, workers=2)
            task.reset()
            print(task.step({"action": torch.tensor([0, 1])})[0].tolist())
            """
        )
    )
    command = [sys.executable, "-W", "error::ResourceWarning", str(script)]
    result = subprocess.run(
        command, capture_output=True, text=True, timeout=60, env={**os.environ, "PYTHONPATH": os.getcwd()}
    )
    assert result.stdout.split("\n") == ["started", "[0, 1]", ""]
    assert result.stderr == ""
    assert result.returncode == 0


def test_what_cannot_be_sent_to_workers_is_one_sentence() -> None:
    lock = threading.Lock()

    def make() -> gymnasium.Env:
        with lock:
            return Counter()

    with pytest.raises(UsageError, match="make cannot run in worker processes: TypeError: "):
        make_task(make, workers=1)


# Making tasks


def test_every_way_to_name_an_environment() -> None:
    for task in ("tasks.envs:counter", "tasks.envs:Counter", Counter, lambda length: Counter(length)):
        made = make_task(task, length=7)
        assert made.spec.obs.shape == (2,)
        made.reset()
    mine = Counter(length=4)
    task = make_task(mine, num=2)
    task.reset()
    assert not hasattr(mine, "time")  # each row is a copy
    assert task.spec.name == "Counter"
    assert task.exact_restore
    assert make_task(task) is task
    for workers in (0, 1):
        info = make_task("CartPole-v1", workers=workers).spec.info
        assert info == {"horizon": 500, "reward_threshold": 475.0}
    assert make_task("Pendulum-v1", max_episode_steps=17).spec.info["horizon"] == 17


KNOWN = "tasks are ids of Gymnasium, names of 'polopt train --help', or module:function"


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("CartPole-v2", {}, "there is no task 'CartPole-v2'; did you mean 'CartPole-v1'?"),
        ("Hoper-v5", {}, "there is no task 'Hoper-v5'; did you mean 'Hopper-v5'?"),
        ("randm-mdp", {}, "there is no task 'randm-mdp'; did you mean 'random-mdp'?"),
        ("zzz", {}, f"there is no task 'zzz': {KNOWN}"),
        ("tasks.envs:countr", {}, "the module 'tasks.envs' has no 'countr'; did you mean 'counter'?"),
        ("no_such:make", {}, "the task 'no_such:make' needs the module 'no_such', which cannot be imported"),
        ("tasks.envs:not_an_env", {}, "tasks.envs:not_an_env returned str, not a gymnasium.Env"),
        ("CartPole-v1", {"num": 0}, "num must be a whole number of at least 1, not 0"),
        ("CartPole-v1", {"seed": -1}, "seed must be a whole number of at least 0, not -1"),
        ("CartPole-v1", {"workers": -2}, "workers must be a whole number of at least 0, not -2"),
        ("CartPole-v1", {"preset": "imge"}, "there is no task preset 'imge'; did you mean 'image'?"),
        (3.5, {}, "a task is a name, a function or an environment, not float"),
        ("random-mdp", {"workers": 2}, "the task random-mdp makes and steps all its rows itself: leave out workers"),
        ("chain", {"length": 2}, "the task chain has no option 'length'; choose from horizon, slip, states"),
        ("chain", {"states": "six"}, "the states of chain must be of the type of 6, not 'six'"),
        (random_mdp(), {"states": 2}, "a tabular MDP is made already: it has no options, workers, presets or pictures"),
    ],
)  # fmt: skip
def test_wrong_tasks_are_refused_in_one_sentence(task: Any, options: dict, message: str) -> None:
    with pytest.raises(UsageError) as error:
        make_task(task, **options)
    assert str(error.value) == message


def test_wrong_keywords_are_refused() -> None:
    with pytest.raises(UsageError, match=r"CartPole-v1 cannot be made: TypeError: .*'gravty'"):
        make_task("CartPole-v1", gravty=3)


def test_missing_packages_name_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ale_py", None)
    advice = r'needs a package that is not installed: pip install "polopt\[atari\]"'
    with pytest.raises(UsageError, match=f"the task 'ALE/Pong-v5' {advice}"):
        make_task("ALE/Pong-v5")

    def no_box2d(*args: Any, **kwargs: Any) -> None:
        raise gymnasium.error.DependencyNotInstalled("Box2D is not installed, you can install it by ...")

    monkeypatch.setattr(gymnasium, "make", no_box2d)
    with pytest.raises(UsageError, match=r'the task \'LunarLander-v3\' needs .* pip install "polopt\[box2d\]"'):
        make_task("LunarLander-v3")


# Presets


def test_the_image_preset_stacks_gray_frames() -> None:
    pytest.importorskip("cv2")

    class Camera(Counter):
        def __init__(self) -> None:
            super().__init__(length=9)
            self.observation_space = spaces.Box(0, 255, (100, 120, 3), np.uint8)

        def observe(self) -> Any:
            return np.full((100, 120, 3), 10 * (self.time + 1), np.uint8)

    task = make_task(Camera, num=2, preset="image")
    obs: Any = task.reset()
    assert obs.shape == (2, 4, 84, 84)
    assert obs.dtype == torch.uint8
    for _ in range(2):
        obs = task.step({"action": torch.zeros(2, dtype=torch.int64)})[0]
    assert obs[0, :, 0, 0].tolist() == [10, 10, 20, 30]  # oldest first
    assert task.exact_restore


def test_atari_training_ends_at_lost_lives_and_evaluation_does_not() -> None:
    pytest.importorskip("cv2")
    action = {"action": torch.tensor([2])}
    task: Any = make_task(FakeAtari, preset="atari")
    assert task.reset().shape == (1, 4, 84, 84)
    env = task._vector.envs[0].unwrapped
    noops = env.pressed.index(1)
    assert 1 <= noops <= 30
    assert env.pressed[noops:] == [1] * 4  # FIRE, with the frame skip
    rewards, ends = [], []
    while not any(ends):
        _, reward, terminated, _ = task.step(action)
        rewards.append(reward.item())
        ends.append(terminated.item())
    assert set(rewards) == {1.0}  # signed
    assert 40 <= env.frame < 44  # a life was lost; the game goes on
    task.reset(torch.tensor([True]))
    assert 44 < env.frame < 60
    assert task.restore_note.startswith("an episode of FakeAtari depends on the one before")

    task = make_task(FakeAtari, preset="atari", evaluation=True)
    task.reset()
    env = task._vector.envs[0].unwrapped
    rewards = []
    terminated = torch.tensor([False])
    while not terminated.any():
        _, reward, terminated, _ = task.step(action)
        rewards.append(reward.item())
    assert env.frame == 80
    assert max(rewards) == 20.0
