"""What the tests beside d3rlpy share: a batch, and what d3rlpy answers to it from its own environment.

d3rlpy pins another Gymnasium, so its side (`d3rlpy_side.py`) runs in an environment of its own, which
`benchmarks.environments` makes.
"""

import subprocess
from pathlib import Path

import numpy as np
import torch
from tensordict import TensorDict

from benchmarks.environments import python_of

SIDE = Path(__file__).with_name("d3rlpy_side.py")
SIZE, TOLERANCE = 64, 1e-6


def ask(algorithm, settings, folder):
    """(the batch [B], the tensors that d3rlpy answered) for settings of its config."""
    random = np.random.default_rng(0)
    batch = {
        "obs": random.normal(size=(SIZE, 3)),
        "next_obs": random.normal(size=(SIZE, 3)),
        "action": random.uniform(-1, 1, size=(SIZE, 2)),
        "reward": random.normal(size=SIZE),
        "terminated": random.uniform(size=SIZE) < 0.2,
    }
    given, answer = folder / "batch.npz", folder / "answer.npz"
    config = {f"config/{name}": value for name, value in settings.items()}
    np.savez(given, algorithm=algorithm, **batch, **config)
    subprocess.run([python_of("d3rlpy"), SIDE, given, answer], check=True, cwd=folder)
    tensors = {name: torch.from_numpy(value) for name, value in np.load(answer).items()}
    return TensorDict({name: torch.from_numpy(value) for name, value in batch.items()}, batch_size=[SIZE]), tensors


def of(tensors, kind, network):
    """The answered tensors of one network, first to last."""
    found = [name for name in tensors if name.startswith(f"{kind}/{network}/")]
    return [tensors[f"{kind}/{network}/{index}"] for index in range(len(found))]
