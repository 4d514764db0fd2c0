"""Returns of a policy: whole episodes, separate environments, nothing of the training run disturbed."""

from __future__ import annotations

import warnings

from polopt.core.batch import Batch
from polopt.core.errors import Notice
from polopt.core.random import paired
from polopt.data.episodes import Episodes
from polopt.data.teams import playing
from polopt.evaluation.recorded import evaluate_recorded
from polopt.policies.base import Actor
from polopt.tasks.base import Task
from polopt.tasks.unplayed import Unplayed


def scores_of(batch: Batch) -> dict[str, float]:
    """`return`, `return_std` and `length` of whole episodes [R, T]."""
    returns = (batch["reward"] * batch["mask"]).sum(-1).double()
    return {
        "return": returns.mean().item(),
        "return_std": returns.std(correction=0).item(),
        "length": batch["mask"].sum(-1).double().mean().item(),
    }


def evaluate_returns(actor: Actor, task: Task, episodes: int = 10, *, greedy: bool = True) -> dict[str, float]:
    """Runs `episodes` whole episodes from the same start seeds at every call.

    Returns `return` (mean undiscounted return), `return_std` (over episodes) and `length` (mean number of decisions);
    of a task with objectives also `return_NAME` of each; on a dataset's task also `normalized_return`, 100 (return -
    random) / (expert - random) with the references that the dataset holds (D4RL, arXiv 2004.07219, section 6).
    Episodes that have not ended after `task.longest` decisions are cut, their returns are those of that part, and `cut`
    says how many they are; there is no `cut` where all have ended.
    Of a team (`AgentRows`) the return is that of the team, and its decisions count as one.
    Of recorded data without an environment there is no return: see `evaluate_recorded`, which is what this gives then.
    The global random state is put back afterwards, so that evaluating more often trains the same policy.
    """
    if isinstance(task, Unplayed):
        return evaluate_recorded(actor, task, episodes, greedy=greedy)
    with paired():
        joint, player = playing(task, actor)
        names = joint.spec.objectives
        keep = ("reward", "rewards") if names else ("reward",)
        source = Episodes(joint, starts=range(episodes), greedy=greedy, keep=keep)
        batch = source.next(player)
    scores = scores_of(batch)
    if names:
        sums = (batch["rewards"] * batch["mask"].unsqueeze(-1)).double().sum(1).mean(0)
        scores |= {f"return_{name}": value for name, value in zip(names, sums.tolist(), strict=True)}
    references = task.spec.info.get("references")
    if references is not None:
        low, high = references
        scores["normalized_return"] = 100.0 * (scores["return"] - low) / (high - low)
    if source.cut:
        scores["cut"] = float(source.cut)
        said = f"{joint.spec.name} had not ended after {joint.longest:,} decisions (--eval-length): they were cut there"
        warnings.warn(f"{source.cut} of {episodes} episodes of {said}, returns are of that part", Notice, stacklevel=2)
    return scores
