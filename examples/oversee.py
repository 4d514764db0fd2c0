"""A person or program that watches a learner and may take over.    python examples/oversee.py [STEPS] [--ask]

An overseer is anything that can be called with one observation and the action that the learner is about to take, both
as the environment has them. It returns an action to take over, or None to let the learner go on. RLIF learns from the
decision to take over alone: what leads there is bad. On the command line the same is `--overseer my_module:careful`.
"""

import sys

import numpy as np

import polopt


class Careful:
    """Swings a pendulum up, and takes over where the learner pushes the other way. It is no good at standing still."""

    def __call__(self, obs: np.ndarray, action: np.ndarray) -> np.ndarray | None:
        height, _, speed = obs
        push = 2.0 * np.sign(speed) if height < 0.9 else -np.clip(speed, -2.0, 2.0)
        return np.array([push]) if abs(push - float(action[0])) > 2.0 else None


class Person:
    """Asks whoever sits at the keyboard: a number takes over, an empty line lets the learner go on."""

    def __call__(self, obs: np.ndarray, action: np.ndarray) -> np.ndarray | None:
        typed = input(f"saw {np.round(obs, 2)}, would push {float(action[0]):.2f}; you (from -2 to 2, or nothing): ")
        return np.array([float(typed)]) if typed.strip() else None


words = [word for word in sys.argv[1:] if word != "--ask"]
steps = int(words[0]) if words else 4_000
overseer = Person() if "--ask" in sys.argv else Careful()

run = polopt.train(
    "rlif",
    "Pendulum-v1",
    steps=steps,
    overseer=overseer,
    hold=None,  # a takeover lasts as long as the overseer wants to
    dataset="random",  # what the replay begins with, all of reward 0
    critics=5,
    updates_per_step=2,
    network={"sizes": (64, 64)},
    critic_network={"sizes": (64, 64), "normalization": "layer"},
)
rows = [row for row in run.rows if "takeover" in row]  # the first one is an evaluation before anything was done
for row in rows[:: max(1, len(rows) // 8)]:
    print(f"{row['env_steps']:>6} steps: the overseer acts in {row['takeover']:.0%}", f"q {row['q']:.2f}", sep=", ")
print("return at the end, of which nothing was learned:", round(run.final["eval/return"], 1))
