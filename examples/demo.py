"""`make demo`: a controller and a language model through one loop, side by side, in about five minutes on two cores.

By hand it is the same as

    polopt train sac --task HalfCheetah-v5 --steps 25000 --warmup 1000 --lr 1e-3 --entropy.initial 0.2 \
        --network.sizes 128 128
    polopt train sft --model 0.5m --task addition --until 'accuracy>=0.3' --out start
    polopt train grpo --model start --task addition --preset small --steps 40000
    polopt report RUN RUN

Exits 1 unless each of the two beats its own start by the margin that is printed.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import polopt
from polopt.evaluation.returns import evaluate_returns
from polopt.policies.wrappers import Uniform
from polopt.tasks import make_task
from polopt.training.warm_start import warm_start

FOLDER = Path(os.environ.get("POLOPT_DEMO_OUT", "demo"))
STEPS = int(os.environ.get("POLOPT_DEMO_STEPS", 25_000))  # of the simulator
MARGIN = float(os.environ.get("POLOPT_DEMO_MARGIN", 250.0))  # in return; 540 to 2,200 are reached, by processor
COMPLETIONS = int(os.environ.get("POLOPT_DEMO_COMPLETIONS", 40_000))
LANGUAGE_MARGIN = float(os.environ.get("POLOPT_DEMO_LANGUAGE_MARGIN", 0.15))  # in accuracy
START = float(os.environ.get("POLOPT_DEMO_START", 0.3))  # accuracy at which learning from rewards takes over

CONTROL = "HalfCheetah-v5"
CONTROL_SETTINGS: dict[str, Any] = {  # a small, quick learner: a demo has no time for what the paper has
    "warmup": 1_000,
    "lr": 1e-3,
    "entropy.initial": 0.2,
    "network.sizes": (128, 128),
    "eval_every": max(1, STEPS // 10),
    "eval_episodes": 5,
}
LANGUAGE = "addition"
TOKENS = {"policy.max_tokens": 24}


def control() -> str:
    """Trains SAC, and returns what became of it."""
    run = polopt.train("sac", CONTROL, steps=STEPS, seed=0, out=FOLDER / "sac", threads=1, **CONTROL_SETTINGS)
    task = make_task(CONTROL, num=5, seed=1, evaluation=True)
    random = evaluate_returns(Uniform(task.spec), task, 10, greedy=False)["return"]
    task.close()
    first, last = run.evaluations[0]["eval/return"], run.evaluations[-1]["eval/return"]
    gain = last - max(first, random)
    return said(
        gain >= MARGIN,
        f"sac on {CONTROL}: return {last:.0f} after training, {first:.0f} before, {random:.0f} for random actions; "
        f"margin over the better of the two {gain:.0f} (asked for: {MARGIN:.0f})",
    )


def language() -> str:
    """Makes a small model that is sometimes right, trains it with GRPO, and returns what became of it."""
    began = time.perf_counter()
    model = warm_start(LANGUAGE, accuracy=START, size="0.5m", threads=1, lr=2e-3, **TOKENS)
    warm = time.perf_counter() - began
    run = polopt.train(
        "grpo", LANGUAGE, steps=COMPLETIONS, seed=0, out=FOLDER / "grpo", preset="small", model=str(model), threads=1,
        eval_every=max(1, COMPLETIONS // 10), eval_episodes=256, **TOKENS,
    )  # fmt: skip
    first, last = run.evaluations[0]["eval/accuracy"], run.evaluations[-1]["eval/accuracy"]
    return said(
        last - first >= LANGUAGE_MARGIN,
        f"grpo on {LANGUAGE}: accuracy {last:.2f} after training, {first:.2f} before (supervised for {warm:.0f} s); "
        f"margin {last - first:.2f} (asked for: {LANGUAGE_MARGIN:.2f})",
    )


def said(good: bool, text: str) -> str:
    return f"{'ok    ' if good else 'FAILED'} {text}"


def main() -> int:
    shutil.rmtree(FOLDER, ignore_errors=True)
    print("training sac and grpo side by side, one core each ...", flush=True)
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        results = [future.result() for future in (pool.submit(language), pool.submit(control))]
    print("recording a video and writing the reports ...", flush=True)
    for name in ("sac", "grpo"):
        polopt.report([FOLDER / name])
    page = polopt.report([FOLDER / "sac", FOLDER / "grpo"], FOLDER / "report.html")
    print(*results, page.resolve(), sep="\n")
    return 0 if all(result.startswith("ok") for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
