"""An environment whose process is killed once, when a run beside it has a checkpoint to go on from."""

import errno
import os
import signal
import time
from pathlib import Path

import gymnasium

from polopt.core import files


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


def fill(folder, number):
    """Writes a file of its number; the disk is full from the second on, which waits for the first."""
    if number:
        while not (Path(folder) / "0").exists():
            time.sleep(0.05)
        os.fsync = refuse
    files.write(Path(folder) / str(number), b"saved")


def refuse(descriptor):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
