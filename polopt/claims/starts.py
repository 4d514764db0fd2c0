"""Models with which several claims begin, and what is measured of them exactly. Importing this imports no torch.

Claims that were recorded depend on these numbers, though the hashes of their lines do not know: leave them as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

ORBIT: dict[str, Any] = {"maps": 4, "states": 16, "levels": 16, "heldout": False}
"""Options of the task `orbit` in the claims about problems that are too hard to be ever solved by luck."""
SMALL = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 224}
NOISE, TOKENS = 0.55, 17


def orbit_start(seed: int, updates: int = 400) -> Path:
    """A model of 0.1 million parameters that takes about every second step of `orbit` right, after any beginning.

    It is taught on solutions of which `NOISE` of the letters are random, one half of them whole, the other half from
    where a beginning of random length leaves them. So it can go on from a beginning, and a whole answer of 16 letters
    is right about once in 100,000 times.
    """
    from polopt.training.warm_start import warm_start

    options = ORBIT | {"noise": NOISE, "shown": (0.0, 1.0)}
    settings: dict[str, Any] = {"batch_size": 64, "lr": 2e-3, "policy.max_tokens": TOKENS}
    made: dict[str, Any] = {"updates": updates, "seed": seed, "task_options": options}
    return warm_start("orbit", accuracy=None, size=SMALL, **made, **settings)


def solution_probability(policy: Any, task: Any, ids: Sequence[int]) -> float:
    """The mean probability, over the problems `ids`, that `policy` answers with the worked solution and then ends."""
    import torch

    from polopt.data.demonstrated import demonstrated

    with torch.no_grad():
        rows = demonstrated(task, policy, list(ids))
        return float((policy.log_prob(rows) * rows["mask"]).double().sum(1).exp().mean())
