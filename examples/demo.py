"""`make demo`: trains SAC on a MuJoCo task in about four minutes on two cores, and shows it in one HTML page.

By hand it is the same as

    polopt train sac --task HalfCheetah-v5 --steps 25000 --warmup 1000 --lr 1e-3 --entropy.initial 0.2 \
        --network.sizes 128 128 --video

Exits 1 unless the trained policy beats both its own start and a random policy by the margin that it prints.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import polopt
from polopt.evaluation.returns import evaluate_returns
from polopt.policies.wrappers import Uniform
from polopt.tasks import make_task

TASK = "HalfCheetah-v5"
STEPS = int(os.environ.get("POLOPT_DEMO_STEPS", 25_000))
MARGIN = float(os.environ.get("POLOPT_DEMO_MARGIN", 500.0))  # in return; a random policy reaches about -280
FOLDER = Path(os.environ.get("POLOPT_DEMO_OUT", "demo"))
SETTINGS = {  # a small, quick learner that starts with little entropy: a demo has no time for what the paper has
    "warmup": 1_000,
    "lr": 1e-3,
    "entropy.initial": 0.2,
    "network.sizes": (128, 128),
    "eval_every": STEPS // 10,
    "eval_episodes": 5,
}


def main() -> int:
    shutil.rmtree(FOLDER, ignore_errors=True)
    run = polopt.train("sac", TASK, steps=STEPS, seed=0, out=FOLDER, progress=True, **SETTINGS)
    print("recording a video and writing the report ...")
    page = polopt.report([run.folder])

    task = make_task(TASK, num=5, seed=1, evaluation=True)
    random = evaluate_returns(Uniform(task.spec), task, 10, greedy=False)["return"]
    task.close()
    first, last = run.evaluations[0]["eval/return"], run.evaluations[-1]["eval/return"]
    print(f"return: {last:.0f} after training, {first:.0f} before, {random:.0f} for random actions")
    print(f"margin over the better of the two: {last - max(first, random):.0f} (asked for: {MARGIN:.0f})")
    print(page.resolve())
    return 0 if last - max(first, random) >= MARGIN else 1


if __name__ == "__main__":
    sys.exit(main())
