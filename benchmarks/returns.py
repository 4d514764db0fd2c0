"""Learning curves of polopt and its peers, run by run, spread over as many days as wanted.

    python -m benchmarks returns --list                        what is there, what is missing, and how long that takes
    python -m benchmarks returns                               all that is missing
    python -m benchmarks returns sac ppo --jobs 2 --limit-minutes 120
    python -m benchmarks returns sac ppo --full                1M steps and 5 seeds, in files of their own

A run is one seed of one arm: a worker process with one thread. When it is done, and only then, its line is added to
`benchmarks/results/returns/EXPERIMENT.jsonl`, with the job that repeats it; so whatever was stopped is run again, and
what has a line is not.

Runs go seed by seed, and those of one task and seed stand next to each other. With `--jobs 2` the two sides then run at
the same time: each has one neighbour that takes its share of caches, memory and clock rate, where one by one they would
meet a machine that does now this and now that. The next run begins as soon as a core is free, so that the slower side
does not have the machine to itself in the end. The load of the machine is in every line.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.environments import ROOT, SCRIPTS, WORKERS, environment, last_line, python_of

RESULTS = ROOT / "benchmarks" / "results" / "returns"
SEEDS, FULL_SEEDS, PILOT = 3, 5, 1000
MANY = range(10)  # seeds, of short runs
Line = dict[str, Any]


@dataclass(frozen=True)
class Arm:
    """One curve of an experiment.

    Attributes:
        experiment: the file that its lines are in.
        name: "ours", a peer, or a method.
        library: whose worker runs it; see `environments.SCRIPTS`.
        task: environment, data set or problems.
        settings: the job, without the seed.
        minutes: what a run may take; only used until there are lines.
        full: settings with `--full`.
        wants: what has to be made before: the "data" of the offline benchmarks, or the "model" of the language ones
            for its task.
        own: its seeds, whatever is asked for; such arms have no full size. Pilots have one that no other arm has.
    """

    experiment: str
    name: str
    library: str
    task: str
    settings: dict[str, Any]
    minutes: float
    full: dict[str, Any] = field(default_factory=dict)
    wants: str = ""
    own: range | None = None

    def seeds(self, count: int) -> range:
        return range(count) if self.own is None else self.own

    @property
    def preparation(self) -> str:
        """Name of its `Preparation`, or nothing."""
        return f"model {self.task}" if self.wants == "model" else self.wants

    def job(self, seed: int, full: bool = False, **override: Any) -> dict[str, Any]:
        return self.settings | (self.full if full else {}) | override | {"seed": seed}


EVALUATION = {"eval_episodes": 10}
MILLION = {"steps": 1_000_000, "eval_every": 50_000}
# Stable-Baselines3's defaults for SAC, and the random steps of the paper
SAC = EVALUATION | {
    "steps": 100_000,
    "eval_every": 5_000,
    "learning_starts": 10_000,
    "batch_size": 256,
    "learning_rate": 3e-4,
    "tau": 0.005,
    "gamma": 0.99,
    "buffer_size": 1_000_000,
    "net_arch": [256, 256],
}
# Small enough for as many seeds as tell whether the two sides differ, which three seeds cannot
SAC_SHORT = SAC | {"steps": 15_000, "learning_starts": 1_000, "batch_size": 64, "net_arch": [64, 64]}
# As short; noise and delays as in the paper
TD3_SHORT = SAC_SHORT | {
    "steps": 30_000,
    "eval_every": 2_500,
    "exploration_noise": 0.1,
    "policy_delay": 2,
    "target_policy_noise": 0.2,
    "target_noise_clip": 0.5,
}
# PPO's own settings for MuJoCo (its paper, table 3) with 2048 steps of 8 environments; observations and rewards are
# normalized and the learning rate falls linearly to 0 on both sides
SHARED_WITH_PPO = EVALUATION | {
    "steps": 500_000,
    "eval_every": 25_000,
    "n_envs": 8,
    "n_steps": 256,
    "learning_rate": 3e-4,
    "gamma": 0.99,
    "gae_lambda": 0.95,
    "max_grad_norm": 0.5,
    "net_arch": [64, 64],
}
PPO = SHARED_WITH_PPO | {"batch_size": 64, "n_epochs": 10, "clip_range": 0.2, "ent_coef": 0.0, "vf_coef": 0.5}
# The settings of RL Baselines3 Zoo for MuJoCo; observations and rewards are normalized on both sides
TRPO = EVALUATION | {
    "steps": 60_000,
    "eval_every": 5_000,
    "n_envs": 2,
    "n_steps": 1024,
    "batch_size": 128,
    "learning_rate": 1e-3,
    "gamma": 0.99,
    "gae_lambda": 0.95,
    "cg_max_steps": 25,
    "cg_damping": 0.1,
    "line_search_shrinking_factor": 0.8,
    "n_critic_updates": 20,
    "target_kl": 0.01,
    "net_arch": [64, 64],
}
# Those of RL Baselines3 Zoo for each task; of Acrobot's 100,000 steps the first 30,000, with its epsilon of each step
DQN_COMMON = EVALUATION | {"steps": 50_000, "eval_every": 2_500, "gamma": 0.99, "net_arch": [256, 256]}
DQN = {
    "CartPole-v1": DQN_COMMON
    | {
        "learning_starts": 1_000,
        "batch_size": 64,
        "learning_rate": 2.3e-3,
        "buffer_size": 100_000,
        "target_update_interval": 10,
        "train_freq": 256,
        "gradient_steps": 128,
        "exploration_fraction": 0.16,
        "exploration_final_eps": 0.04,
    },
    "Acrobot-v1": DQN_COMMON
    | {
        "steps": 30_000,
        "learning_starts": 0,
        "batch_size": 128,
        "learning_rate": 6.3e-4,
        "buffer_size": 50_000,
        "target_update_interval": 250,
        "train_freq": 4,
        "gradient_steps": 4,
        "exploration_fraction": 0.4,
        "exploration_final_eps": 0.1,
    },
}
IQL = EVALUATION | {"case": "iql-curve", "updates": 50_000, "eval_every": 2_500}
TD3_BC = EVALUATION | {"case": "td3-bc-curve", "sizes": [64, 64], "updates": 10_000, "eval_every": 1_000}
GENERATIVE = EVALUATION | {"dataset": "medium", "updates": 20_000, "eval_every": 2_000}
# The weight of Q: with those of their presets (0.1 and 1) neither learns anything on this set. So each gets the same
# tries on a seed of its own, and the one with the best `pilot_scores`. One more each, with the other's number of
# candidates, tells what the policy does from what the choice among its samples does.
ETAS = (0.001, 0.01, 0.1, 1.0)
CHOSEN = {"ofql": 0.01, "dql": 0.01}
CANDIDATES = {"ofql": 50, "dql": 1}
GRPO = {"case": "grpo-curve", "minutes": 5, "every": 20, "prompts": 16, "lr": 3e-4}


def _control(experiment: str, name: str, library: str, task: str, settings: Line, minutes: float) -> Arm:
    case = f"{experiment}-curve"
    return Arm(experiment, name, library, task, {"case": case, "task": task} | settings, minutes, MILLION)


def _arms() -> Iterator[Arm]:
    sides = (("ours", "polopt"), ("stable-baselines3", "stable-baselines3"))
    for task in ("HalfCheetah-v5", "Hopper-v5"):
        for side, minutes in zip(sides, (20, 28)):
            yield _control("sac", *side, task, SAC, minutes)
    for task in ("HalfCheetah-v5", "Hopper-v5", "InvertedDoublePendulum-v5"):
        for side in sides:
            yield Arm("sac-short", *side, task, SAC_SHORT | {"case": "sac-curve", "task": task}, 2, own=MANY)
    short = {"steps": 15_000}
    for task, own, changed in (
        ("HalfCheetah-v5", range(7), {}),  # where returns differ most from seed to seed
        ("Hopper-v5", range(SEEDS), {}),
        ("InvertedDoublePendulum-v5", range(SEEDS), short),
    ):
        for side in sides:
            job = TD3_SHORT | {"case": "td3-curve", "task": task} | changed
            yield Arm("td3", *side, task, job, 3, own=own)
    for task in ("HalfCheetah-v5", "Hopper-v5", "Walker2d-v5"):
        for side, minutes in zip(sides, (5, 6)):
            yield _control("ppo", *side, task, PPO, minutes)
    for task in ("HalfCheetah-v5", "Hopper-v5"):
        for side in sides:
            yield Arm("trpo", *side, task, TRPO | {"case": "trpo-curve", "task": task}, 4, own=range(SEEDS))
    for task, settings in DQN.items():
        for side in sides:
            yield Arm("dqn", *side, task, settings | {"case": "dqn-curve", "task": task}, 2, own=range(SEEDS))
    yield _control("dsac-t", "ours", "polopt", "HalfCheetah-v5", SAC, 30)
    yield _control("mdpo-off", "ours", "polopt", "HalfCheetah-v5", SAC, 25)
    yield _control("mdpo", "ours", "polopt", "HalfCheetah-v5", SHARED_WITH_PPO, 5)
    for data in ("medium", "medium-replay"):
        for name, library, minutes in (("ours", "polopt", 10), ("d3rlpy", "d3rlpy", 20)):
            yield Arm("iql", name, library, data, IQL | {"dataset": data}, minutes, {"updates": 500_000}, "data")
        for name, library, minutes in (("ours", "polopt", 4), ("d3rlpy", "d3rlpy", 6)):
            job = TD3_BC | {"dataset": data}
            yield Arm("td3-bc", name, library, data, job, minutes, {"updates": 500_000}, "data")
    start = IQL | {"dataset": "medium-replay", "start": "d3rlpy"}
    yield Arm("iql-start", "ours", "polopt", "medium-replay", start, 10, {"updates": 500_000}, "data")
    for name, minutes in (("ofql", 20), ("dql", 35)):
        settings = {"case": f"{name}-curve"} | GENERATIVE
        chosen, many = {"eta": CHOSEN[name]}, CANDIDATES[name]
        pilots = {f"{name}, eta {eta}": {"eta": eta} for eta in ETAS}
        pilots[f"{name}, eta {CHOSEN[name]}, candidates {many}"] = chosen | {"candidates": many}
        for title, tried in pilots.items():
            pilot = settings | {"updates": 5_000, "eval_every": 1_000} | tried
            yield Arm("ofql-pilots", title, "polopt", "medium", pilot, minutes / 4, {}, "data", range(PILOT, PILOT + 1))
        settings |= chosen
        yield Arm("ofql", name, "polopt", "medium", settings, minutes, {"updates": 200_000}, "data")
    for task in ("addition", "countdown"):
        for name, library in (("ours", "polopt"), ("trl", "trl")):
            yield Arm("grpo", name, library, task, GRPO | {"task": task}, 7, {"minutes": 30}, "model")


ARMS = tuple(_arms())
EXPERIMENTS = tuple(dict.fromkeys(arm.experiment for arm in ARMS))


# What is there


def file_of(experiment: str, full: bool = False, folder: Path = RESULTS) -> Path:
    return folder / f"{experiment}{'-full' * full}.jsonl"


def read(file: Path) -> list[Line]:
    """The lines of a file, oldest first; none when there is no such file."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


def pilot_scores(lines: Sequence[Line]) -> dict[str, float]:
    """What a setting is chosen by: the mean of the last two evaluations of each pilot."""
    return {line["arm"]: sum(row["return"] for row in line["rows"][-2:]) / 2 for line in lines}


def key(line: Line) -> tuple[str, str, str]:
    """What makes two lines the same run."""
    return line["arm"], line["task"], json.dumps(line["job"], sort_keys=True)


class Plan:
    """Which runs of which arms there are to be, and which of them are done.

    `override` changes every job (smaller budgets, for tests).
    """

    def __init__(
        self, experiments: Sequence[str], seeds: int, full: bool, folder: Path = RESULTS, **override: Any
    ) -> None:
        self.full, self.folder, self.override = full, folder, override
        chosen = [arm for arm in ARMS if arm.experiment in (experiments or EXPERIMENTS)]
        self.arms = [arm for arm in chosen if not full or arm.own is None]
        self.seeds = seeds
        names = dict.fromkeys(arm.experiment for arm in self.arms)
        self.lines = {name: read(file_of(name, full, folder)) for name in names}

    def job(self, arm: Arm, seed: int) -> dict[str, Any]:
        return arm.job(seed, self.full, **self.override)

    def done(self, arm: Arm, seed: int) -> bool:
        wanted = key({"arm": arm.name, "task": arm.task, "job": self.job(arm, seed)})
        return any(key(line) == wanted for line in self.lines[arm.experiment])

    def missing(self) -> list[tuple[Arm, int]]:
        """Seed by seed, the arms of one task next to each other."""
        every = [(arm, seed) for arm in self.arms for seed in arm.seeds(self.seeds) if not self.done(arm, seed)]
        return sorted(every, key=lambda run: run[1] % PILOT)  # stable: arms stay in their order

    def minutes(self, arm: Arm) -> float:
        """Expected of one run: the longest one so far of this arm and budget, else of another task, else a guess."""
        unit = next(unit for unit in ("steps", "updates", "minutes") if unit in arm.settings)
        budget = self.job(arm, 0)[unit]
        lines = [line for line in self.lines[arm.experiment] if line["arm"] == arm.name and line["job"][unit] == budget]
        same = [line for line in lines if line["task"] == arm.task]
        if lines:
            return max(line["minutes"] for line in same or lines)
        return arm.minutes * budget / arm.settings[unit]

    def add(self, arm: Arm, line: Line) -> None:
        """Writes a line, whole or not at all."""
        self.lines[arm.experiment].append(line)
        self.folder.mkdir(parents=True, exist_ok=True)
        with file_of(arm.experiment, self.full, self.folder).open("a") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def show(self) -> None:
        wide = max(len(arm.name) for arm in self.arms)
        print(f"{'experiment':<11} {'task':<15} {'arm':<{wide}} {'done':>5} {'missing':>8} {'minutes each':>13}")
        total = 0.0
        for arm in self.arms:
            missing = sum(not self.done(arm, seed) for seed in arm.seeds(self.seeds))
            minutes = self.minutes(arm)
            total += missing * minutes
            done = len(arm.seeds(self.seeds)) - missing
            print(f"{arm.experiment:<11} {arm.task:<15} {arm.name:<{wide}} {done:>5} {missing:>8} {minutes:>13.1f}")
        print(f"missing in all: about {total / 60:.1f} hours of one core")


# Running


class Process:
    """One that this process looks after."""

    process: subprocess.Popen

    def look(self, running: int) -> bool:
        """Whether it has ended; `running` are there at this moment."""
        return self.process.poll() is not None

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


class Preparation(Process):
    """A process that makes what some arms learn from; what is there already is left as it is.

    Attributes:
        name: "data" or "model TASK". minutes: it may take, where nothing is there.
    """

    MINUTES = {"data": 25.0, "model": 5.0}

    def __init__(self, name: str) -> None:
        self.name = name
        kind, *tasks = name.split()
        module = {"data": "offline_data", "model": "language_model"}[kind]
        self.folder = tempfile.TemporaryDirectory(prefix="polopt-returns-")
        self.errors = Path(self.folder.name) / "errors"
        command = [sys.executable, "-m", f"benchmarks.{module}", *tasks]
        with self.errors.open("w") as errors:
            self.process = subprocess.Popen(
                command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=errors, env=environment(1)
            )

    @property
    def failure(self) -> str:
        """Why it has failed, if it has."""
        return last_line(self.errors.read_text()) if self.process.returncode else ""


class Run(Process):
    """A worker process that makes one curve.

    What it prints goes to files, so that nothing has to be read while it runs.
    """

    def __init__(self, arm: Arm, seed: int, job: dict[str, Any]) -> None:
        self.arm, self.seed, self.job = arm, seed, job
        extra, self.made = prepare(arm)
        python = python_of(arm.library)
        self.folder = tempfile.TemporaryDirectory(prefix="polopt-returns-")
        self.out, self.errors = (Path(self.folder.name) / name for name in ("out", "errors"))
        self.about = machine.about() | {"date": machine.now()}
        self.load = os.getloadavg()[0]  # the last minute's average at the start
        self.running: list[int] = []  # runs at each look
        self.begin = time.monotonic()
        with self.out.open("w") as out, self.errors.open("w") as errors:
            self.process = subprocess.Popen(
                [python, WORKERS / SCRIPTS[arm.library]],
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=errors,
                text=True,
                env=environment(1),
            )
        self.process.stdin.write(json.dumps(job | extra) + "\n")  # type: ignore[union-attr]
        self.process.stdin.flush()  # type: ignore[union-attr]

    def __str__(self) -> str:
        return f"{self.arm.experiment} {self.arm.task} {self.arm.name} seed {self.seed}"

    def look(self, running: int) -> bool:
        self.running.append(running)
        return super().look(running)

    def line(self) -> Line:
        """The line of a run that has ended. Raises RuntimeError when it failed."""
        said = [json.loads(line) for line in self.out.read_text().splitlines()]
        last = said[-1] if said else {}
        if "done" not in last:
            raise RuntimeError(last_line(last.get("error") or self.errors.read_text()))
        parts = ("cpu", "cores", "memory_gb", "system")
        return {
            "arm": self.arm.name,
            "task": self.arm.task,
            "seed": self.seed,
            "job": self.job,
            **self.made,
            "rows": [message["row"] for message in said[:-1]],
            "minutes": round((time.monotonic() - self.begin) / 60, 2),
            "peak_mb": last["peak_mb"],
            "versions": last["versions"],
            "machine": {name: self.about[name] for name in parts},
            "date": self.about["date"],
            "commit": self.about["commit"],
            "jobs": round(sum(self.running) / len(self.running), 2),
            "load": [round(value, 2) for value in (self.load, os.getloadavg()[0])],
        }


def prepare(arm: Arm) -> tuple[dict[str, Any], dict[str, str]]:
    """What an arm's job needs on this machine, and what its line says of it; at hand after its `Preparation`."""
    if arm.wants == "data":
        from benchmarks import offline_data

        return {}, {"data_sha256": offline_data.make()[arm.task]["sha256"]}
    if arm.wants == "model":
        from benchmarks import language_model

        folder = language_model.warm_started(arm.task)
        return {"model": str(folder)}, {"model": folder.name}
    return {}, {}


def run(plan: Plan, jobs: int = 1, limit: float | None = None) -> int:
    """Runs what is missing; returns how many failed. `limit` (minutes): nothing begins that would not end by then."""
    begin, waiting, failed = time.monotonic(), plan.missing(), 0
    running: list[Run | Preparation] = []
    ready = {""}

    def fail(arm: Arm, seed: int, error: Exception | str) -> None:
        nonlocal failed
        failed += 1
        print(f"FAILED {arm.experiment} {arm.task} {arm.name} seed {seed}: {error}", flush=True)

    def startable() -> tuple[Arm, int] | None:
        """The first that would end within the limit and does not wait for what is being made."""
        left = float("inf") if limit is None else limit - (time.monotonic() - begin) / 60
        made = {each.name for each in running if isinstance(each, Preparation)}
        for arm, seed in waiting:
            first = 0.0 if arm.preparation in ready else Preparation.MINUTES[arm.wants]
            if arm.preparation not in made and first + plan.minutes(arm) <= left:
                return arm, seed
        return None

    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: the workers end with this process
    try:
        while True:
            while len(running) < jobs and (chosen := startable()):
                arm, seed = chosen
                if arm.preparation not in ready:
                    running.append(Preparation(arm.preparation))
                    print(f"making {arm.preparation}", flush=True)
                    continue
                waiting.remove(chosen)
                try:
                    running.append(Run(arm, seed, plan.job(arm, seed)))
                    print(f"begun  {running[-1]}, about {plan.minutes(arm):.0f} minutes", flush=True)
                except Exception as error:  # no environment: the other arms go on
                    fail(arm, seed, error)
            if not running:
                break
            time.sleep(0.5)
            count = len(running)
            for each in [each for each in running if each.look(count)]:
                running.remove(each)
                if isinstance(each, Preparation):
                    ready.add(each.name)
                    for item in [item for item in waiting if each.failure and item[0].preparation == each.name]:
                        waiting.remove(item)
                        fail(*item, each.failure)
                    continue
                try:
                    line = each.line()
                    plan.add(each.arm, line)
                    print(f"done   {each}: {_said(line)}", flush=True)
                except (RuntimeError, ValueError) as error:  # ValueError: it ended in the middle of a row
                    fail(each.arm, each.seed, error)
    finally:
        for each in running:
            each.kill()
        signal.signal(signal.SIGTERM, before)
    if waiting:
        print(f"left for another time: {len(waiting)} runs, which would not have ended within the limit")
    return failed


def _said(line: Line) -> str:
    last = line["rows"][-1]
    score = next(name for name in ("return", "accuracy") if name in last)
    return (
        f"{score} {last[score]:.4g} after {last['seconds'] / 60:.1f} minutes of training, {line['minutes']:.1f} in all"
    )


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks returns", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("experiments", nargs="*", metavar="EXPERIMENT", help=", ".join(EXPERIMENTS))
    parser.add_argument("--seeds", type=int, help=f"runs of each arm; default: {SEEDS}, with --full {FULL_SEEDS}")
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time, at most one a core")
    parser.add_argument("--full", action="store_true", help="larger budgets, more seeds")
    parser.add_argument("--limit-minutes", type=float, help="begin nothing that is not expected to end by then")
    parser.add_argument("--list", action="store_true", help="what is there and what is missing")
    args = parser.parse_args(argv)
    unknown = [name for name in args.experiments if name not in EXPERIMENTS]
    if unknown:
        parser.error(f"there is no experiment {unknown[0]}, only {', '.join(EXPERIMENTS)}")
    if args.jobs < 1 or (args.seeds or 1) < 1:
        parser.error("--jobs and --seeds must be at least 1")
    plan = Plan(args.experiments, args.seeds or (FULL_SEEDS if args.full else SEEDS), args.full)
    if args.list:
        plan.show()
        return 0
    try:
        return int(run(plan, args.jobs, args.limit_minutes) > 0)
    except KeyboardInterrupt:
        print("stopped; what was running begins anew the next time")
        return 130
