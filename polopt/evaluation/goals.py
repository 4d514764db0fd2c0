"""Where the episodes of a policy end, on tasks whose fact `reached` says which goal was: one way, or several?"""

from __future__ import annotations

from polopt.core.errors import UsageError
from polopt.core.random import paired
from polopt.data.episodes import Episodes
from polopt.evaluation.measures import Array, entropy, modes_held
from polopt.policies.base import Actor
from polopt.tasks.base import Task


def goal_shares(actor: Actor, task: Task, episodes: int = 256, *, greedy: bool = False) -> tuple[Array, float]:
    """The share of episodes that reach each goal [M], and their mean undiscounted return.

    Starts are the same at every call, and the global random state is put back afterwards. By default actions are
    sampled. Raises UsageError where the task has no fact `reached`.
    """
    if "reached" not in task.spec.facts:
        raise UsageError(f"{task.spec.name} does not say which goal was reached")
    with paired():
        source = Episodes(task, starts=range(episodes), greedy=greedy, keep=("reward", "reached"))
        batch = source.next(actor)
    there = batch["mask"].unsqueeze(-1)
    reached = (batch["reached"].bool() & there).any(1).double().mean(0)
    returns = (batch["reward"] * batch["mask"]).sum(-1).double().mean()
    return reached.numpy(), returns.item()


def goal_scores(
    actor: Actor, task: Task, episodes: int = 256, *, least: float = 0.05, greedy: bool = False
) -> dict[str, float]:
    """`return`; `goals`, how many of them at least the share `least` of episodes reach; `goal_entropy` of these shares
    in nats, episodes that reach none left out; `missed`, the share of these."""
    shares, returns = goal_shares(actor, task, episodes, greedy=greedy)
    return {
        "return": returns,
        "goals": float(modes_held(shares, least)),
        "goal_entropy": entropy(shares),
        "missed": 1.0 - float(shares.sum()),
    }
