"""How fast polopt is beside its peers: interleaved ratios in one run on one machine.

Every side is a worker process in its library's own environment. Each is tried at 1 and 2 threads (and, where a library
has a choice, in each of its variants) for two short slices and goes on at its best. Then rounds of slices alternate
between the sides, in the other order at every round, so that all of them see the same machine, and each round gives one
ratio ours / peer. Between them the machine's own limit is measured in the same way: products of 256 x 256 matrices, or
the simulator without a learner.

Every case appends a line to `benchmarks/results/speed.jsonl`:

    date, case, unit
    machine       what `machine.about` and `machine.limits` say
    sides[]       ours first: name, library, versions, threads, job, rate (units a second, median), rates (by round),
                  peak_mb, gflop (of a unit, counted by PyTorch, or null), slices[] (units, seconds, cpu_seconds,
                  peak_mb, parts),
                  trials[] (threads, variant, rate)
    ratios        {side: [rate of ours / rate of that side, by round]}: above 1 ours is faster
    arithmetic    {side: gflop of that side / gflop of ours}: the ratio if nothing else cost time
    limit         null, or a side as above, and fraction (of it that ours reaches)
    failures      sentences about what did not run
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.environments import (
    ROOT,
    SCRIPTS,
    WITHOUT_TORCH,
    Command,
    Worker,
    WorkerError,
    cores,
    last_line,
    python_of,
)
from benchmarks.machine import GFLOP, about, limits, now
from benchmarks.workers.language_shared import MICRO_TOKENS

RESULTS = ROOT / "benchmarks" / "results" / "speed.jsonl"
SLOWEST = "slowest process"  # the part whose seconds count in the case `simulator`
Job = dict[str, Any]


@dataclass(frozen=True)
class Side:
    """One of those compared.

    Attributes:
        name: in the table. library: whose worker it is.
        job: what differs from the case's job. variants: each is tried, on top of that.
        command: a whole process instead of a worker: arguments of the library's Python.
        compared: a ratio with the first side is taken.
    """

    name: str
    library: str = "polopt"
    job: Job = field(default_factory=dict)
    variants: tuple[Job, ...] = ({},)
    command: tuple[str, ...] = ()
    compared: bool = True


@dataclass(frozen=True)
class Case:
    """What is measured.

    Attributes:
        unit: of the rates. sides: ours first. job: sent to all workers, with the case's name.
        slice: units of one slice, some seconds long. trial: of the slice that chooses threads.
        count: the part of a slice that says how many units were done, if the worker's own units are not compared.
        clock: the part of a slice whose seconds count; without it, all of them.
        limit: what bounds the rate: `MATRICES` by the arithmetic of a unit, or another side in the case's own unit.
        limit_slice: units of its slices.
        prepare: makes what the job needs, and returns more of the job.
        threads: what is tried; by default 1 and 2.
    """

    name: str
    unit: str
    sides: tuple[Side, ...]
    job: Job = field(default_factory=dict)
    slice: int = 1
    trial: int = 1
    count: str = ""
    clock: str = ""
    limit: Side | None = None
    limit_slice: int = 10_000
    prepare: Callable[[], Job] | None = None
    threads: tuple[int, ...] = ()


# The cases

MUJOCO = {"task": "HalfCheetah-v5", "seed": 0}
SAC = MUJOCO | {
    "sizes": [256, 256],
    "activation": "relu",
    "lr": 3e-4,
    "batch_size": 256,
    "replay_size": 1_000_000,
    "tau": 0.005,
    "discount": 0.99,
    "warmup": 1_000,
    "log_every": 250,
}
SMALL = SAC | {"case": "sac", "sizes": [64, 64], "batch_size": 64}  # what is around the arithmetic costs most here
TD3 = SAC | {"delay": 2, "exploration_noise": 0.1, "target_noise": 0.2, "target_noise_clip": 0.5}
PPO: Job = MUJOCO | {  # Stable-Baselines3's own
    "envs": 8,
    "window": 2048,
    "batch_size": 64,
    "epochs": 10,
    "sizes": [64, 64],
    "activation": "tanh",
    "lr": 3e-4,
    "discount": 0.99,
    "gae_lambda": 0.95,
    "clip": 0.2,
    "value_coefficient": 0.5,
    "entropy_coefficient": 0.0,
    "max_grad_norm": 0.5,
}
OFFLINE = {"transitions": 100_000, "seed": 0, "batch_size": 256}
DQL_5 = Side("dql, 5 steps", job={"case": "dql", "steps": 5})
DQL_5_COMPILED = Side("dql, 5 steps, --compile", job=DQL_5.job | {"compile": True})
DQL_20 = Side("dql, 20 steps", job={"case": "dql", "steps": 20})
MATRICES = Side("matrix products", job={"case": "matrix"})
SIMULATOR = Side(
    "simulator alone",
    job={"case": "simulator", "task": PPO["task"], "envs": PPO["envs"]},
    variants=({"processes": 1}, {"processes": cores()}),
)
SB3, SBX, CLEANRL, D3RLPY = (Side(name, name) for name in ("stable-baselines3", "sbx", "cleanrl", "d3rlpy"))
OURS = Side("polopt")
COMPILED = Side("polopt --compile", job={"compile": True})
WORLDS = (1, 16, 256, 4096, 65_536)
JAX = ("sbx", "purejax")  # take as many threads as they may use cores
MANY: dict[str, Any] = {
    "task": "point/regulation",
    "seed": 0,
    "window": 16,
    "horizon": 16,
    "minibatch_size": 1024,
    "epochs": 4,
    "sizes": [64, 64],
    "lr": 1e-3,
    "discount": 0.95,
    "gae_lambda": 0.95,
    "clip": 0.2,
    "value_coefficient": 0.5,
    "max_grad_norm": 0.5,
}
MILLION: dict[str, Any] = {"rows": 1 << 20, "minibatch_size": 65_536, "device": "cuda"}
LANGUAGE = (OURS, COMPILED, Side("trl", "trl"), Side("trl, torch_compile", "trl", job={"compile": True}))


def language_model(kind: str = "random") -> Job:
    """The folder of the model, made in a process of its own: this one imports no language stack."""
    command = [sys.executable, "-m", "benchmarks.language_model", kind]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise WorkerError(last_line(done.stderr))
    return {"model": last_line(done.stdout)}


def ends_at_its_first_step() -> Any:
    """HalfCheetah-v5 whose first step ends the process: what the processes of the case `startup` train on.

    So a process lasts until its first environment step; polopt's is one of the evaluation that a run begins with.
    """
    import gymnasium

    class FirstStep(gymnasium.Wrapper):
        def step(self, action: Any) -> Any:
            os._exit(0)

    return FirstStep(gymnasium.make("HalfCheetah-v5"))


POLOPT = ("-c", "from polopt.cli import run; run()")  # what the console script does
FIRST_STEP_OF_SB3 = (
    "from stable_baselines3 import SAC; from benchmarks.speed import ends_at_its_first_step as env; "
    "SAC('MlpPolicy', env(), device='cpu').learn(1000)"
)
STARTUP = (
    Side("polopt train", command=(*POLOPT, "train", "sac", "--task", f"{__name__}:ends_at_its_first_step")),
    Side("polopt methods", command=(*POLOPT, "methods"), compared=False),
    Side("stable-baselines3", "stable-baselines3", command=("-c", FIRST_STEP_OF_SB3)),
)


def world(rows: int) -> Case:
    """One grid; Python's rows are left out where making them would take minutes."""
    sides = [
        Side("polopt", job={"through": "tensors"}),
        Side("polopt, vector environment", job={"through": "gymnasium"}),
        Side("numpy", "gymnasium", job={"how": "numpy"}),
        Side("python", "gymnasium", job={"how": "python"}),
    ]
    return steps_of("world", rows, sides[: 4 if rows <= 4096 else 3])


def points(rows: int) -> Case:
    """One point and a strip of lava."""
    sides = [
        Side("polopt", job={"through": "tensors"}),
        Side("polopt, vector environment", job={"through": "gymnasium"}),
    ]
    return steps_of("points", rows, sides)


def steps_of(case: str, rows: int, sides: Sequence[Side]) -> Case:
    slice = min(max(rows * 40, 2_000), 1_000_000)
    job = {"case": case, "rows": rows}
    return Case(f"{case}-{rows}", "environment steps", (*sides,), job, slice, slice // 4, clock="processor")


def many(rows: int, **more: Any) -> Case:
    """PPO on so many rows, windows of whole episodes, minibatches of one size. JAX takes the accelerator by itself."""
    update = rows * MANY["window"]
    sides = (OURS, COMPILED, Side("jax", "purejax"))
    job = MANY | {"case": "many", "rows": rows} | more
    slice = update * max(1, 65_536 // update)
    return Case(f"many-{rows}", "environment steps", sides, job, slice, clock="processor", threads=(1,))


def grpo(length: int, slice: int) -> Case:
    job = {"case": "grpo", "completions": 64, "length": length, "seed": 0}
    unit = "completion tokens"
    return Case(
        f"grpo-{length}", unit, LANGUAGE, job, slice, slice // 2, "tokens", limit=MATRICES, prepare=language_model
    )


CASES = [
    Case("sac", "environment steps", (OURS, COMPILED, SB3, CLEANRL, SBX), SAC, 1_000, 500, limit=MATRICES),
    *(
        Case(
            name,
            "environment steps",
            (OURS, COMPILED, SB3, CLEANRL),
            SMALL | {"task": task},
            2_000,
            500,
            limit=MATRICES,
            threads=(1,),  # two gain nothing there, and a short trial does not always see it
        )
        for name, task in (("sac-small", "InvertedDoublePendulum-v5"), ("sac-small-pendulum", "Pendulum-v1"))
    ),
    Case("td3", "environment steps", (OURS, COMPILED, SB3), TD3, 1_000, 500, limit=MATRICES),
    Case(
        "ppo",
        "environment steps",
        (
            Side("polopt", variants=({"workers": 0}, {"workers": PPO["envs"]})),
            COMPILED,
            Side("polopt, EnvPool", job={"task": "envpool/HalfCheetah-v5"}),
            Side("polopt, EnvPool, --compile", job={"task": "envpool/HalfCheetah-v5", "compile": True}),
            Side(SB3.name, SB3.name, variants=({"vector": "DummyVecEnv"}, {"vector": "SubprocVecEnv"})),
        ),
        PPO,
        PPO["envs"] * PPO["window"],
        PPO["envs"] * PPO["window"],
        limit=SIMULATOR,
    ),
    Case(
        "dsac-t",
        "updates",
        (
            Side("dsac-t"),
            Side("dsac-t --compile", job={"compile": True}),
            Side("sac, its own network", job={"case": "sac"} | {name: SAC[name] for name in ("sizes", "activation")}),
            Side("sac, dsac-t's network", job={"case": "sac"}),
        ),
        SAC | {"sizes": [256, 256, 256], "activation": "gelu"},
        500,
        250,
        clock="update",
        limit=MATRICES,
    ),
    Case(
        "iql",
        "updates",
        (OURS, COMPILED, D3RLPY),
        OFFLINE | {"sizes": [256, 256]},
        500,
        250,
        limit=MATRICES,
    ),
    Case(
        "td3-bc",
        "updates",
        (OURS, COMPILED, D3RLPY),
        OFFLINE | {"sizes": [256, 256]},
        500,
        250,
        limit=MATRICES,
    ),
    Case("ofql", "updates", (Side("ofql"), DQL_5, DQL_5_COMPILED, DQL_20), OFFLINE, 100, 50, limit=MATRICES),
    Case(
        "ofql-act",
        "actions",
        (
            Side("ofql"),
            *(Side(side.name, job=side.job | {"case": "dql-act"}) for side in (DQL_5, DQL_20)),
            Side("dql, 5 steps, 1 candidate", job=DQL_5.job | {"case": "dql-act", "candidates": 1}),
        ),
        OFFLINE,
        300,
        100,
        limit=MATRICES,
    ),
    grpo(16, 8),
    grpo(128, 2),
    Case("sft", "updates", LANGUAGE, {"seed": 0}, 10, 5, limit=MATRICES, prepare=language_model),
    Case(
        "sft-ragged",
        "learned tokens",
        (
            Side("polopt --micro-tokens", job={"micro_tokens": MICRO_TOKENS}),
            OURS,
            Side("trl", "trl"),
            Side("trl, group_by_length", "trl", job={"by_length": True}),
        ),
        {"case": "sft", "ragged": True, "seed": 0},
        10,
        5,
        "tokens",
        limit=MATRICES,
        prepare=language_model,
    ),
    Case(
        "sft-vocabulary",
        "updates",
        LANGUAGE,
        {"case": "sft", "seed": 0},
        4,
        2,
        limit=MATRICES,
        prepare=partial(language_model, "vocabulary"),
    ),
    Case("dpo", "updates", LANGUAGE, {"seed": 0}, 10, 5, limit=MATRICES, prepare=language_model),
    Case("startup", "processes", STARTUP),
    *map(world, WORLDS),
    *map(points, WORLDS),
    *map(many, (64, 1024, 16_384, 65_536)),
    *([many(**MILLION)] if shutil.which("nvidia-smi") else []),
    Case(
        "many-return",
        "runs",
        (OURS, Side("jax", "purejax")),
        MANY | {"case": "many-return", "rows": 1024, "reward": -0.2},
        clock="processor",
        threads=(1,),
    ),
]


# Measuring


class Lane:
    """A side at its best number of threads and in its best variant, ready for slices.

    Raises WorkerError when no variant works; what did not is in `failures`.
    """

    def __init__(self, case: Case, side: Side, more: Job, python: Path | None, threads: tuple[int, ...]) -> None:
        self.case, self.side = case, side
        self.units, self.trial = (case.limit_slice,) * 2 if side is case.limit else (case.slice, case.trial)
        self.slices: list[dict[str, Any]] = []
        self.trials: list[dict[str, Any]] = []
        self.failures: list[str] = []
        self.job = {"case": case.name} | case.job | more | side.job
        python = python or python_of(side.library)
        self.gflop: float | None = None  # of a unit
        if side.command:
            self.worker: Worker | Command = Command([python, *side.command])
            return
        if side is not case.limit and not side.job.get("compile") and side.library not in WITHOUT_TORCH:
            self.gflop = self._count(python)
        self.worker = self._best(python, threads)

    def _count(self, python: Path) -> float | None:
        """The arithmetic of a unit in the first variant, not compiled; None where PyTorch does not compute."""
        job = self.job | self.side.variants[0] | {"count": True}
        with Worker(self.side.library, job, 1, python=python) as worker:  # of its own: counting needs memory
            slice = worker.run(self.trial)
        return slice["gflop"] / self._units(slice) or None

    def _best(self, python: Path, threads: tuple[int, ...]) -> Worker:
        """Tries every variant at every number of threads, one after the other; the best so far waits meanwhile."""
        best, best_rate, job = None, 0.0, self.job
        alone = len(self.side.variants) * len(threads) == 1
        for variant in self.side.variants:
            for number in threads:
                try:
                    worker = Worker(
                        self.side.library, job | variant, number, pinned=self.side.library in JAX, python=python
                    )
                    if alone:
                        self.job = job | variant
                        return worker
                    rate = max(self._rate(worker.run(self.trial)) for _ in range(2))  # the first may still warm up
                except WorkerError as error:
                    self.failures.append(f"{_named_choice(variant, number)}: {error}")
                    continue
                self.trials.append({"threads": number, "variant": variant, "rate": rate})
                if best is not None and rate <= best_rate:
                    worker.close()
                    continue
                if best is not None:
                    best.close()
                best, best_rate, self.job = worker, rate, job | variant
        if best is None:
            raise WorkerError("; ".join(self.failures))
        return best

    def run(self) -> float:
        """One slice; its rate."""
        self.slices.append(self.worker.run(self.units))
        return self._rate(self.slices[-1])

    def _rate(self, slice: dict[str, Any]) -> float:
        """Units a second."""
        if self.side is self.case.limit:
            return slice["units"] / slice["parts"].get(SLOWEST, slice["seconds"])
        return self._units(slice) / slice["parts"].get(self.case.clock, slice["seconds"])

    def _units(self, slice: dict[str, Any]) -> float:
        return slice["parts"][self.case.count] if self.case.count else slice["units"]

    def record(self) -> dict[str, Any]:
        rates = [self._rate(slice) for slice in self.slices]
        return {
            "name": self.side.name,
            "library": self.side.library,
            "versions": self.worker.versions,
            "threads": self.worker.threads,
            "job": self.job | ({"model": Path(self.job["model"]).name} if "model" in self.job else {}),
            "rate": statistics.median(rates),
            "rates": rates,
            "peak_mb": max(slice["peak_mb"] for slice in self.slices),
            "ready_seconds": self.worker.ready_seconds,
            "gflop": self.gflop,
            "slices": self.slices,
            "trials": self.trials,
        }


def measure(case: Case, rounds: int, pythons: dict[str, Path], machine: dict[str, Any]) -> dict[str, Any]:
    """All rounds of a case; returns its line. Raises WorkerError when ours fails; a peer that fails is left out."""
    more = case.prepare() if case.prepare else {}
    threads = case.threads or tuple(sorted({1, min(2, cores())}))
    lanes: list[Lane] = []
    failures: list[str] = []
    with contextlib.ExitStack() as stack:

        def enter(side: Side, threads: tuple[int, ...]) -> None:
            try:
                lane = Lane(case, side, more, pythons.get(side.library), threads)
            except WorkerError as error:
                if not lanes:
                    raise
                failures.append(f"{side.name} failed: {error}")
                return
            stack.callback(lane.worker.close)
            lanes.append(lane)
            failures.extend(f"{side.name}, {failure}" for failure in lane.failures)
            print(f"  {side.name}: {_choice(lane)}", flush=True)

        for side in case.sides:
            enter(side, threads)
        if case.limit is not None:
            enter(case.limit, (lanes[0].worker.threads,) if case.limit is MATRICES else (1,))
        for number in range(rounds):
            said = []
            for lane in lanes[:: -1 if number % 2 else 1]:
                try:
                    said.append(f"{lane.side.name} {_rate(lane.run())}")
                except WorkerError as error:
                    if lane is lanes[0]:
                        raise
                    failures.append(f"{lane.side.name} failed: {error}")
                    lanes = [other for other in lanes if other is not lane]
            print(f"  {number + 1}/{rounds}  {'   '.join(said)}", flush=True)
        records = [lane.record() for lane in lanes]
    limit = records.pop() if lanes[-1].side is case.limit else None
    ours = records[0]
    compared = [record for record, lane in zip(records[1:], lanes[1:]) if lane.side.compared]
    if limit is not None:
        unit = ours["gflop"] / GFLOP if case.limit is MATRICES else 1.0  # limit's units in one of ours
        limit["fraction"] = statistics.median(a * unit / b for a, b in zip(ours["rates"], limit["rates"]))
    return {
        "case": case.name,
        "unit": case.unit,
        "machine": machine,
        "sides": records,
        "ratios": {record["name"]: [a / b for a, b in zip(ours["rates"], record["rates"])] for record in compared},
        "arithmetic": {record["name"]: record["gflop"] / ours["gflop"] for record in compared if record["gflop"]},
        "limit": limit,
        "failures": failures,
    }


# Showing


def table(line: dict[str, Any]) -> str:
    """A line of the results, to be read."""
    limit, ours = line["limit"], line["sides"][0]
    rows = [("", "threads", "median", "ours / this", "by arithmetic", "of the limit", "peak memory")]
    for side in line["sides"]:
        ratios, arithmetic = line["ratios"].get(side["name"]), line["arithmetic"].get(side["name"])
        rows.append(
            (
                side["name"],
                str(side["threads"]),
                _rate(side["rate"]),
                f"{statistics.median(ratios):.2f} ({min(ratios):.2f}..{max(ratios):.2f})" if ratios else "",
                f"{arithmetic:.2f}" if arithmetic else "",
                f"{limit['fraction']:.0%}" if limit and side is ours else "",
                f"{side['peak_mb']:,.0f} MB",
            )
        )
    if limit:
        matrices = limit["job"]["case"] == "matrix"
        rate = f"{limit['rate'] * GFLOP:,.0f} GFLOP/s" if matrices else _rate(limit["rate"])
        rows.append((f"limit: {limit['name']}", str(limit["threads"]), rate, "", "", "", ""))
    used = [column for column in zip(*rows) if any(column[1:])]
    widths = [max(map(len, column)) for column in used]
    text = [f"{line['case']}: {line['unit']}"]
    for cells in zip(*used):
        text.append("  " + "  ".join(f"{cell:<{width}}" for cell, width in zip(cells, widths)).rstrip())
    text += [f"  where our time goes: {parts}" for parts in [_parts(ours["slices"])] if parts]
    return "\n".join(text + [f"  {failure}" for failure in line["failures"]])


def _rate(rate: float) -> str:
    return f"{rate:,.0f}/s" if rate >= 10 else f"{1 / rate:.3g} s each"


def _choice(lane: Lane) -> str:
    """What was tried, the best one first."""
    tried = sorted(lane.trials, key=lambda trial: -trial["rate"])
    names = [_named_choice(trial["variant"], trial["threads"]) for trial in tried]
    return "; ".join(f"{name}: {_rate(trial['rate'])}" for name, trial in zip(names, tried)) or "ready"


def _named_choice(variant: Job, threads: int) -> str:
    return ", ".join([*(f"{name} {value}" for name, value in variant.items()), f"threads {threads}"])


def _parts(slices: list[dict[str, Any]]) -> str:
    """The parts of all slices that are seconds, in hundredths of the whole."""
    total = sum(slice["seconds"] for slice in slices)
    names = [name for name in slices[0]["parts"] if name != "tokens"]
    shares = {name: sum(slice["parts"].get(name, 0.0) for slice in slices) / total for name in names}
    if not shares:
        return ""
    shares["the rest"] = 1 - sum(shares.values())
    return ", ".join(f"{name} {share:.0%}" for name, share in shares.items())


def main(argv: list[str]) -> int:
    """Runs the cases that are named, or all. Returns 1 when something did not run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks speed", description=(__doc__ or "").split("\n\n")[0])
    names = [case.name for case in CASES]
    parser.add_argument(
        "cases",
        nargs="*",
        metavar="CASE",
        help=f"{', '.join(names)}; grpo is both of its lengths, world and points all rows",
    )
    parser.add_argument("--rounds", type=int, default=7, help="of slices; each gives one ratio (7)")
    parser.add_argument(
        "--peer-python", action="append", default=[], metavar="NAME=PATH", help="a library's Python, instead of our own"
    )
    parser.add_argument("--plain", action="store_true", help="leave out the sides that compile, of every library")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="FILE", help="gets a line per case (%(default)s)")
    args = parser.parse_args(argv)
    for name in args.cases:
        if not any(_named(name, case) for case in CASES):
            parser.error(f"there is no case '{name}'; choose from {', '.join(names)}")
    pythons = {name: Path(path) for name, _, path in (item.partition("=") for item in args.peer_python)}
    for name, path in pythons.items():
        if name not in SCRIPTS or not path.is_file():
            parser.error(f"--peer-python {name}={path}: it takes one of {', '.join(SCRIPTS)}, and a file that exists")
    if args.rounds < 1:
        parser.error("--rounds must be at least 1")
    machine = about()
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    machine["limits"] = limits()
    print("\n".join(f"  {name}: {value:,}" for name, value in machine["limits"].items()))
    failed = False
    for case in CASES:
        if args.cases and not any(_named(name, case) for name in args.cases):
            continue
        if args.plain:
            case = replace(case, sides=tuple(side for side in case.sides if not side.job.get("compile")))
        print(f"\n{case.name}: measuring", flush=True)
        try:
            line = {"date": now(), **measure(case, args.rounds, pythons, machine)}
        except WorkerError as error:
            print(f"  {case.name} could not be measured: {error}", flush=True)
            failed = True
            continue
        failed = failed or bool(line["failures"])
        args.out.parent.mkdir(parents=True, exist_ok=True)
        with args.out.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(table(line), flush=True)
    return int(failed)


def _named(name: str, case: Case) -> bool:
    return re.fullmatch(rf"{re.escape(name)}(-\d+)?", case.name) is not None
