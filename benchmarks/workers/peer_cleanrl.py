"""CleanRL's worker: its script `sac_continuous_action.py`, with its own command line for all that this offers.

The command line has every number of the job but the widths of the layers; policy and temperature make one step for each
of the critics (`--policy-frequency 1`, where its loop that makes up for a delay runs once). The text is edited before
it runs: the widths, 256 in its classes; its main part is a generator that pauses before each step of the environment;
environments are made without Gymnasium's checker, as polopt's are, and the vector of them is a `Vector`.

Not equal, and left as it is: TensorBoard's writer and the printed lines, which the script has no switch for; Adam that
is not fused; actions with their densities and gradients; gradients of the critics in the policy's step; a second sample
of the policy for the temperature, after that step; the critics' loss without our 1/2 and the temperature's with alpha
in place of its logarithm; a log standard deviation that tanh squashes into [-5, 2]; densities in the units of the
environment's actions. It has no evaluations.
"""

import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from protocol import Job, Run, serve

SOURCE = Path(sys.prefix) / "source"
SCRIPT = "cleanrl/sac_continuous_action.py"
EDITS = {
    'if __name__ == "__main__":\n': "def steps():\n",
    "range(args.total_timesteps):\n": "range(args.total_timesteps):\n        yield\n",
    "gym.make(env_id)": "gym.make(env_id, disable_env_checker=True)",
    "gym.vector.SyncVectorEnv(": "Vector(",
}


class Vector(SyncVectorEnv):
    """Resets in the step that ends an episode, and names things, as Gymnasium 0.29 did, which the script expects."""

    def __init__(self, makers: Any) -> None:
        super().__init__(makers, autoreset_mode=AutoresetMode.SAME_STEP)

    def step(self, actions: Any) -> Any:
        *result, infos = super().step(actions)
        if "final_obs" in infos:
            episode = infos["final_info"]["episode"]
            infos["final_observation"] = infos["final_obs"]
            infos["final_info"] = [{"episode": {"r": r, "l": n}} for r, n in zip(episode["r"], episode["l"])]
        return *result, infos


def edited(text: str, width: int) -> str:
    """The script with `width` for 256, its main part a generator. Raises ValueError where a place is not found."""
    for old, new in EDITS.items():
        if text.count(old) != 1:
            raise ValueError(f"the script has {text.count(old)} times {old!r}, not once")
        text = text.replace(old, new)
    return re.sub(r"\b256\b", str(width), text)  # also the batch size's default, which the command line overrides


def sac(job: Job) -> Run:
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    width, *others = job["sizes"]
    if others != [width] or job["activation"] != "relu":
        raise ValueError(f"the script has two equal layers of relu, not {job['sizes']} of {job['activation']}")
    settings = {
        "env-id": job["task"],
        "seed": job["seed"],
        "total-timesteps": 10**9,
        "buffer-size": job["replay_size"],
        "gamma": job["discount"],
        "tau": job["tau"],
        "batch-size": job["batch_size"],
        "learning-starts": job["warmup"],
        "policy-lr": job["lr"],
        "q-lr": job["lr"],  # the temperature's too
        "policy-frequency": 1,
        "target-network-frequency": 1,
    }
    file = SOURCE / SCRIPT
    sys.path.insert(0, str(SOURCE))
    sys.argv = [str(file), "--no-cuda", "--autotune", *(f"--{name}={value}" for name, value in settings.items())]
    names: dict[str, Any] = {"__name__": "__main__", "__file__": str(file), "Vector": Vector}
    exec(compile(edited(file.read_text(), width), file, "exec"), names)
    folder = tempfile.TemporaryDirectory(prefix="polopt-speed-")
    os.chdir(folder.name)  # where it writes `runs`
    steps = names["steps"]()
    next(steps)

    def run(units: int) -> None:
        assert folder  # lives as long as the run
        for _ in range(units):
            next(steps)

    run(job["warmup"] + 500)
    return run


if __name__ == "__main__":
    serve(
        {"sac": sac},
        ("torch", "numpy", "gymnasium", "mujoco", "tensorboard"),
        cleanrl=(SOURCE / ".git" / "HEAD").read_text()[:12],
    )
