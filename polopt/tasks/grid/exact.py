"""Exact values of a small grid: its states are enumerated from one start, with the probability of each successor."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from polopt.core.errors import UsageError
from polopt.tasks.base import Obs
from polopt.tasks.grid.world import NEVER, Grid
from polopt.tasks.simulated import State
from polopt.tasks.tabular import TabularMDP

UNSEEN = ("did", "got")  # observed, and without effect
MOST_BRANCHES = 4096


class Exact:
    """The S states that a start of a grid leads to, and what all A^V joint actions do in each.

    A joint action is one number, that of the first agent in front: with two agents a = a_1 A + a_2. Rewards are the
    sum over agents. Everything is float64.

    Args:
        grid: any grid without coverage, in which no thing returns.
        index: the number of the start; with levels, of the level too.
        limit: of the states that are enumerated.

    Raises UsageError, one sentence, for a grid that has too many states, or luck that is not enumerated.

    Attributes:
        state: where everything is, tensors [S, ...] by name; the start is state 0.
        next: int64 [S, A^V, B], what each of B branches of luck leads to; probability [B] is theirs.
        reward, over: [S, A^V, B], what is paid, and whether the episode ends.
        horizon: decisions of an episode, at most.
    """

    def __init__(self, grid: Grid, index: int = 0, limit: int = 20_000) -> None:
        if grid.near is not None:
            raise UsageError(f"{grid.spec.name} has too many states: one for each set of cells that may be covered")
        if grid.returning:
            raise UsageError(f"{grid.spec.name} has no exact values: its things return to random cells")
        self.grid = grid
        first = grid.start_of(index)
        self.horizon = int(min(grid.horizon, first["limit"].item()))
        self._fixed = {name: value for name, value in first.items() if name not in grid.changing}
        self._fixed["limit"] = torch.full_like(first["limit"], NEVER)
        self._lucks = self._branches(first)
        self._enumerate({name: first[name] for name in grid.changing}, limit)

    def _branches(self, first: State) -> list[tuple[State, float]]:
        """Each combination of what luck may do in a step, and its probability."""
        grid = self.grid
        slips = [(-1, 1.0 - grid.slip), *((action, grid.slip / grid.actions) for action in range(grid.actions))]
        choices: list[list[tuple[Any, float]]] = [slips if grid.slip else [(-1, 1.0)] for _ in range(grid.agents)]
        choices += [[(True, p), (False, 1.0 - p)] if 0 < p < 1 else [(p > 0, 1.0)] for p in first["ends"][0].tolist()]
        count = 1
        for each in choices:
            count *= len(each)
        if count > MOST_BRANCHES:
            raise UsageError(f"{grid.spec.name} has {count} branches of luck in each step, which is too many")
        found = []
        for branch in itertools.product(*choices):
            values, probability = [value for value, _ in branch], 1.0
            for _, p in branch:
                probability *= p
            slip = torch.tensor([values[: grid.agents]], dtype=torch.int64, device=grid.device)
            ends = torch.tensor([values[grid.agents :]], dtype=torch.bool, device=grid.device)
            found.append(({"slip": slip, "ends": ends}, probability))
        return found

    def _enumerate(self, first: State, limit: int) -> None:
        grid = self.grid
        joint = torch.cartesian_prod(*[torch.arange(grid.actions, device=grid.device)] * grid.agents)
        joint = joint.view(-1, grid.agents)
        known: dict[bytes, int] = {}
        rows: list[State] = []
        nexts, rewards, overs = [], [], []

        def numbers(state: State) -> list[int]:
            """The number of each row, a new one for a state that was not met before."""
            count = len(state["agents"])
            parts = [value.reshape(count, -1).long() for name, value in state.items() if name not in UNSEEN]
            code = torch.cat(parts, 1).cpu().numpy()
            found = []
            for row, key in enumerate(code):
                number = known.setdefault(key.tobytes(), len(known))
                if number == len(rows):
                    rows.append({name: value[row : row + 1] for name, value in state.items()})
                found.append(number)
            return found

        numbers(first)
        done = 0
        while done < len(rows):
            if len(rows) > limit:
                raise UsageError(f"{grid.spec.name} has more than {limit} states")
            batch = {name: torch.cat([row[name] for row in rows[done:]]) for name in first}
            size, count = len(batch["agents"]), len(joint)
            state = {name: value.repeat_interleave(count, 0) for name, value in batch.items()}
            state |= {name: value.expand(size * count, *value.shape[1:]) for name, value in self._fixed.items()}
            time = torch.zeros(size * count, dtype=torch.int64, device=grid.device)
            branches = []
            for luck, _ in self._lucks:
                after, reward, over, _ = grid.outcome(state, time, joint.repeat(size, 1), luck)
                branches.append((numbers({name: after[name] for name in first}), reward, over))
            done += size
            nexts.append(torch.tensor([found for found, _, _ in branches]).T.reshape(size, count, -1))
            rewards.append(torch.stack([reward for _, reward, _ in branches], -1).view(size, count, -1))
            overs.append(torch.stack([over for _, _, over in branches], -1).view(size, count, -1))
        self.state = {name: torch.cat([row[name] for row in rows]) for name in first}
        self.next, self.over = torch.cat(nexts), torch.cat(overs).cpu()
        self.reward = torch.cat(rewards).cpu().double()
        self.probability = torch.tensor([p for _, p in self._lucks], dtype=torch.float64)

    @property
    def states(self) -> int:
        return len(self.next)

    def observations(self, step: int = 0) -> Obs:
        """What is seen in each state at this step, [S, ...]: what a policy must be asked to get its table [S, A]."""
        count = self.states
        state = {**self.state, **{name: value.expand(count, *value.shape[1:]) for name, value in self._fixed.items()}}
        return self.grid.observe(state, torch.full((count,), step, dtype=torch.int64, device=self.grid.device))

    def q(self, value: Tensor) -> Tensor:
        """Action values [S, A], given the values [S] of the step after."""
        after = torch.where(self.over, 0.0, value[self.next])
        return (self.reward + after) @ self.probability

    def optimal(self, discount: float = 1.0) -> tuple[Tensor, Tensor]:
        """An optimal policy [H, S] (the first of equal actions) and its values [H + 1, S]."""
        value = torch.zeros(self.horizon + 1, self.states, dtype=torch.float64)
        policy = torch.zeros(self.horizon, self.states, dtype=torch.int64)
        for step in reversed(range(self.horizon)):
            best = self.q(discount * value[step + 1]).max(-1)
            value[step], policy[step] = best.values, best.indices
        return policy, value

    def value(self, policy: Tensor, discount: float = 1.0) -> Tensor:
        """Values [H + 1, S] of probabilities of joint actions [S, A], or [H, S, A] where they depend on the step.

        Raises ValueError for another shape.
        """
        policy = policy.detach().to("cpu", torch.float64)
        policy = policy.expand(self.horizon, *policy.shape) if policy.dim() == 2 else policy
        if policy.shape != (self.horizon, *self.next.shape[:2]):
            raise ValueError(f"a policy here is {[self.horizon, *self.next.shape[:2]]}, not {list(policy.shape)}")
        value = torch.zeros(self.horizon + 1, self.states, dtype=torch.float64)
        for step in reversed(range(self.horizon)):
            value[step] = (policy[step] * self.q(discount * value[step + 1])).sum(-1)
        return value

    def mdp(self) -> TabularMDP:
        """The same as a dense model; its last state is the end of an episode. Raises UsageError for a large one."""
        size, actions, _ = self.next.shape
        if self.horizon * actions * (size + 1) ** 2 > 5e7:
            raise UsageError(f"{self.grid.spec.name} has {size} states, which is too many for a dense model")
        transition = torch.zeros(size + 1, actions, size + 1, dtype=torch.float64)
        target = torch.where(self.over, size, self.next)
        transition[:size].scatter_add_(2, target, self.probability.expand(target.shape))
        transition[size, :, size] = 1.0
        reward = torch.zeros(size + 1, actions, dtype=torch.float64)
        reward[:size] = self.reward @ self.probability
        return TabularMDP(transition, reward, self.horizon)
