"""An environment whose process is killed once, when it has a checkpoint to go on from and a run beside it has ended."""

import errno
import os
import signal
import time
from pathlib import Path

import gymnasium

from polopt.core import files


class Killing(gymnasium.Wrapper):
    """Of two runs of 48 steps the first that steps on when both have saved some survives; the other waits until it
    has ended, so that the process of the survivor is free to go on with its work."""

    survives = False

    def __init__(self, folder):
        super().__init__(gymnasium.make("CartPole-v1"))
        self.folder = Path(folder)

    def step(self, action):
        mark = self.folder / "killed"
        if not Killing.survives and not mark.exists():
            saved = [path for path in self.folder.glob("*/checkpoints/step-*") if not path.name.endswith("-000000000")]
            if len({path.parent for path in saved}) == 2:
                Killing.survives = not self._ended() and self._first()
                if not Killing.survives:
                    while not self._ended():
                        time.sleep(0.02)
                    time.sleep(0.5)
                    mark.touch()
                    os.kill(os.getpid(), signal.SIGKILL)
        return self.env.step(action)

    def _ended(self):
        return bool(list(self.folder.glob("*/checkpoints/step-000000048")))

    def _first(self):
        try:
            (self.folder / "first").mkdir()
        except FileExistsError:
            return False
        return True


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
