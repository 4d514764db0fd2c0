"""Trees of trajectories: of every start, all the ways that policies of a list go, each decision simulated once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from tensordict import TensorDict
from torch import Tensor

from polopt.core import signals
from polopt.core.batch import Batch
from polopt.core.ledger import Ledger
from polopt.data.base import Acts, Source
from polopt.tasks.base import Task


class Chooses(Protocol):
    """The part of a list of policies that trees need."""

    def __len__(self) -> int: ...

    def split(self, which: Tensor, step: int, state: int) -> dict[int, Tensor]: ...


@dataclass(frozen=True)
class Node:
    """A place in a tree: its snapshot and state, the policies that come there, and how they came."""

    tree: int
    snapshot: Any
    state: int
    which: Tensor
    way: tuple[tuple[int, int, float], ...] = ()  # state, action, reward of each decision


class Trees(Source):
    """Batches [L, T] of the L leaves of `trees` trees: exactly one leaf of a tree is what a given policy does there.

    Keys: obs ("state", "step"), action, reward, mask, and group (int64, 0 .. trees - 1: the tree). The ledger counts
    the decisions that were simulated, and a tree as an episode. The actor does not act: the policies of the list do.

    Raises UsageError, one sentence, for a task that cannot be taken back to where it was.
    """

    saved = ("taken",)

    def __init__(self, task: Task, policies: Chooses, trees: int, *, ledger: Ledger | None = None) -> None:
        self.task, self.trees = task, trees
        self.ledger = ledger if ledger is not None else Ledger()
        self.taken = 0  # starts used so far
        self._policies = policies
        twin = task.twin(1)
        twin.reset()
        twin.restore(twin.snapshot())

    def next(self, actor: Acts) -> Batch:
        self.task.player = self
        nodes, leaves = self._roots(), list[Node]()
        for step in range(self.task.longest):
            nodes = self._after([pair for node in nodes for pair in self._splits(node, step)], leaves)
            if not nodes:
                break
        leaves.sort(key=lambda leaf: leaf.tree)
        self.ledger.episodes += self.trees
        return collated(leaves)

    def _roots(self) -> list[Node]:
        """The starts, with all policies at each."""
        everyone, roots, num = torch.arange(len(self._policies)), list[Node](), self.task.num
        for first in range(0, self.trees, num):
            obs: Any = self.task.reset(index=self.taken + (first + torch.arange(num)).clamp_max(self.trees - 1))
            found = zip(range(first, self.trees), self.task.snapshot(), obs["state"].tolist())
            roots += [Node(tree, snapshot, state, everyone) for tree, snapshot, state in found]
        self.taken += self.trees
        return roots

    def _splits(self, node: Node, step: int) -> list[tuple[Node, int]]:
        """For each action that a policy takes here, the node with these policies only, and the action."""
        found = self._policies.split(node.which, step, node.state)
        return [
            (Node(node.tree, node.snapshot, node.state, which, node.way), action) for action, which in found.items()
        ]

    def _after(self, pairs: list[tuple[Node, int]], leaves: list[Node]) -> list[Node]:
        """Simulates each pair once; returns where episodes go on, and adds to `leaves` where they ended."""
        going, num = list[Node](), self.task.num
        for first in range(0, len(pairs), num):
            signals.check()
            some = pairs[first : first + num]
            rows = some + some[:1] * (num - len(some))  # rows without work do what the first one does
            self.task.restore([node.snapshot for node, _ in rows])
            obs: Any
            obs, reward, terminated, truncated = self.task.step(
                {"action": torch.tensor([action for _, action in rows])}
            )
            self.ledger.env_steps += len(some)
            found = zip(
                some, self.task.snapshot(), obs["state"].tolist(), reward.tolist(), (terminated | truncated).tolist()
            )
            for (node, action), snapshot, state, gain, over in found:
                way = (*node.way, (node.state, action, gain))
                (leaves if over else going).append(Node(node.tree, snapshot, state, node.which, way))
        return going


def collated(leaves: list[Node]) -> Batch:
    """The batch [L, T] of the ways to the leaves."""
    length = torch.tensor([len(leaf.way) for leaf in leaves])
    step = torch.arange(int(length.max()))
    mask = step < length.unsqueeze(1)
    state, action, reward = torch.zeros(3, *mask.shape, dtype=torch.float64)
    ways = torch.tensor([decision for leaf in leaves for decision in leaf.way], dtype=torch.float64)
    state[mask], action[mask], reward[mask] = ways.unbind(1)
    batch = {
        "obs": TensorDict({"state": state.long(), "step": step * mask}, mask.shape),
        "action": action.long(),
        "reward": reward.to(torch.get_default_dtype()),
        "mask": mask,
        "group": torch.tensor([leaf.tree for leaf in leaves]).unsqueeze(1).expand(mask.shape),
    }
    return TensorDict(batch, mask.shape)
