"""Returns of a policy: whole episodes, separate environments, nothing of the training run disturbed."""

from __future__ import annotations

import torch

from polopt.data.episodes import Episodes
from polopt.policies.base import Actor
from polopt.tasks.base import Task


def evaluate_returns(actor: Actor, task: Task, episodes: int = 10, *, greedy: bool = True) -> dict[str, float]:
    """Runs `episodes` whole episodes from the same start seeds at every call.

    Returns `return` (mean undiscounted return), `return_std` (over episodes) and `length` (mean number of decisions).
    The global random state is put back afterwards, so that evaluating more often trains the same policy.
    """
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(0)
        batch = Episodes(task, starts=range(episodes), greedy=greedy, keep=("reward",)).next(actor)
    returns = (batch["reward"] * batch["mask"]).sum(-1).double()
    lengths = batch["mask"].sum(-1).double()
    return {
        "return": returns.mean().item(),
        "return_std": returns.std(correction=0).item(),
        "length": lengths.mean().item(),
    }
