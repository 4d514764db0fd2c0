"""One seed, separate streams: environments for training and for evaluation, and the global generators."""

from __future__ import annotations

import random

import numpy as np
import torch

TRAIN_TASK, EVAL_TASK, TEST_TASK, GLOBAL = range(4)


def derive(seed: int, stream: int) -> int:
    """A seed for one stream, independent of the others (NumPy's SeedSequence)."""
    return int(np.random.SeedSequence([seed, stream]).generate_state(1)[0])


def seed_everything(seed: int) -> None:
    """Seeds torch (all devices), NumPy's and Python's global generators for this run."""
    value = derive(seed, GLOBAL)
    torch.manual_seed(value)
    np.random.seed(value)  # noqa: NPY002  users' environments may draw from it
    random.seed(value)
