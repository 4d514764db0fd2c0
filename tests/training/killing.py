"""An environment whose process is killed once, when a run beside it has a checkpoint to go on from."""

import os
import signal
from pathlib import Path

import gymnasium


class Killing(gymnasium.Wrapper):
    def __init__(self, folder):
        super().__init__(gymnasium.make("CartPole-v1"))
        self.folder = Path(folder)

    def step(self, action):
        mark = self.folder / "killed"
        if not mark.exists() and list(self.folder.glob("*/checkpoints/step-000000016")):
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return self.env.step(action)


def make(folder):
    return Killing(folder)


def die(number):
    if number:
        os.kill(os.getpid(), signal.SIGKILL)
    return number
