"""Common random numbers: what is compared meets the same draws, and the run around it does not notice."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def paired(seed: int = 0, device: torch.device | str | None = None) -> Iterator[None]:
    """Inside, torch's global generators draw the numbers of `seed`, the same at every entry; afterwards they go on as
    if nothing had been drawn here.

    Arms, copies or repeated evaluations that are each run in `paired(seed)` share their random numbers as far as they
    ask for as many, so that differences between them are theirs; other seeds give independent repetitions. Policies
    sample from the global generators, so no generator is passed around.

    Args:
        seed: 0 to 2**64 - 1.
        device: whose generator is meant besides that of the CPU; by default the present CUDA device, if there is one.
    """
    if device is None:
        index = torch.cuda.current_device() if torch.cuda.is_available() else None
    else:
        device = torch.device(device)
        index = None if device.type != "cuda" else torch.cuda.current_device() if device.index is None else device.index
    with torch.random.fork_rng([] if index is None else [index]):
        torch.default_generator.manual_seed(seed)  # `torch.manual_seed` would seed every device, forked or not
        if index is not None:
            torch.cuda.default_generators[index].manual_seed(seed)
        yield


@contextmanager
def own_luck(seed: int, device: torch.device | str | None = None) -> Iterator[None]:
    """`paired`, for the generators of NumPy and Python as well, which users' own code may draw from. `seed` is below
    2**32."""
    before = random.getstate(), np.random.get_state()  # noqa: NPY002
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    try:
        with paired(seed, device):
            yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
