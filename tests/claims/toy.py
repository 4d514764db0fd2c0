"""A claim in numbers, in a checkout of its own."""

import subprocess

SOURCE = '''
"""A claim in numbers."""
from pathlib import Path

from polopt.claims import Above, Claim, Greater

LOG = Path(__file__).with_suffix(".log")


def good(seed, budget):
    with open(LOG, "a") as file:
        file.write(f"good {seed} {budget['samples']}\\n")
    return {"score": 10.0 + seed, "curve": [1, 2]}


def poor(seed, budget):
    with open(LOG, "a") as file:
        file.write(f"poor {seed} {budget['samples']}\\n")
    return {"score": 1.0 + 2 * seed}


CLAIM = Claim(
    method="toy", statement="good is better than poor", budget={"samples": 100}, seeds=4, minutes=1,
    arms={"good": good, "poor": poor},
    expect=(Greater("score", "good", "poor", by=1), Above("score", "good", 5, control=True)),
)
'''

TRAINS = '''
"""A claim that trains; its first job may be killed half way."""
import os
import signal
from pathlib import Path

from polopt.claims import Above, Claim, train_arm

HERE = Path(__file__).parent
KILL = False


CLAIM = Claim(
    method="toy", statement="ppo trains", budget={"env_steps": 32}, seeds=3, minutes=1,
    arms={"ppo": train_arm("ppo", "CartPole-v1", envs=1, window=8, eval_episodes=1, **{"network.sizes": (8,)})},
    expect=(Above("return", "ppo", 0),),
)


def killing():
    """Has the process of a run die, or be interrupted, behind its checkpoint at 16 steps."""
    from polopt.training import loop

    save, load = loop.Trainer.save, loop.Trainer.load

    def saved(trainer):
        save(trainer)
        mark = HERE / "killed"
        if trainer.count == 16 and not mark.exists():
            mark.touch()
            if KILL == "raise":
                raise KeyboardInterrupt
            os.kill(os.getpid(), signal.SIGKILL)

    def loaded(trainer, step):
        (HERE / f"again-{trainer.checkpoints.folder.parent.parent.name}").write_text(str(step))
        load(trainer, step)

    loop.Trainer.save, loop.Trainer.load = saved, loaded


if KILL:
    killing()
'''


def git(folder, *command):
    who = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "-C", str(folder), *who, *command], check=True, capture_output=True)


def write(root, source):
    (root / "claims" / "toy.py").write_text(source)
    git(root, "add", "claims/toy.py")
    git(root, "commit", "-q", "--allow-empty", "-m", "claim")


def ran(root):
    path = root / "claims" / "toy.log"
    return path.read_text().splitlines() if path.exists() else []


def path_of(root):
    return root / "claims" / "results" / "toy.jsonl"
