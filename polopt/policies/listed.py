"""A finite class of deterministic policies, as a list: centres, and the few states in which each policy differs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import comb

import torch
from torch import Tensor
from torch.nn.functional import one_hot, pad

from polopt.core.errors import UsageError
from polopt.core.spec import Spec
from polopt.policies.tabular import tabular_spaces

MOST = 2_000_000  # policies of a list: an estimate of each is kept


@dataclass(frozen=True)
class PolicyList:
    """P deterministic policies for tasks with a step, each of which does what one of M centres does but in D states.

    So its petals are the states in which it differs, and `core` are policies with which these are a sunflower: every
    piece of a trajectory that a policy could have made, from one of its petals or the beginning on, and without another
    petal after its first state, could have been made by a policy of the core. That holds for every list, because until
    a petal the policy does what its centre does, and at one it does what the core has for the step of the petal.

    Attributes:
        centres: actions int64 [M, H, S].
        follows: int64 [P], the centre of each policy.
        states: int64 [P, D], where it differs, as step * S + state, ascending; H * S fills up.
        actions: int64 [P, D], what it does there.
    """

    centres: Tensor
    follows: Tensor
    states: Tensor
    actions: Tensor

    def __len__(self) -> int:
        return len(self.follows)

    @property
    def petals(self) -> int:
        """D, the most petals of a policy."""
        return self.states.shape[1]

    def number(self, step: Tensor | int, state: Tensor) -> Tensor:
        """step * S + state, as `states` has it."""
        return step * self.centres.shape[-1] + state

    def step(self, number: Tensor) -> Tensor:
        """The step of states that are given as numbers."""
        return number // self.centres.shape[-1]

    def act(self, which: Tensor, step: Tensor | int, state: Tensor) -> Tensor:
        """Actions [...] of the policies `which` [...]; the three broadcast."""
        usual = self.centres[self.follows[which], step, state]
        here = self.states[which] == self.number(step, state).unsqueeze(-1)
        return torch.where(here.any(-1), (here * self.actions[which]).sum(-1), usual)

    def table(self, which: int) -> Tensor:
        """All actions [H, S] of one policy."""
        step, state = (torch.arange(size) for size in self.centres.shape[1:])
        return self.act(torch.tensor(which), step.unsqueeze(1), state)

    def core(self) -> Tensor:
        """Actions [K, H, S]: the centres, and each centre with one action in all states of a step, for every step and
        action in which a policy that follows it differs."""
        real = self.states < self.centres[0].numel()
        used = torch.stack((self.follows.unsqueeze(1).expand_as(real), self.step(self.states), self.actions), -1)
        found = list(self.centres)
        for centre, step, action in used[real].unique(dim=0).tolist():
            found.append(self.centres[centre].index_fill(0, torch.tensor(step), action))
        return torch.stack(found)

    @cached_property
    def _places(self) -> tuple[Tensor, Tensor]:
        """All of `states` in ascending order [P D], and which policy each is of."""
        ordered, order = self.states.flatten().sort(stable=True)
        return ordered, order // max(self.petals, 1)

    def differing(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """All pairs (policy [n], index [n] into `numbers` [m]) in which the policy differs in the state; by index."""
        ordered, policy = self._places
        begin, end = torch.searchsorted(ordered, numbers), torch.searchsorted(ordered, numbers, right=True)
        count = end - begin
        index = torch.arange(len(numbers)).repeat_interleave(count)
        place = torch.arange(len(index)) - (count.cumsum(0) - count)[index]
        return policy[begin[index] + place], index

    def passing(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """The pairs (policy [n], row [n]), each once, of which the row passes a state in which the policy differs.

        `numbers` [R, T] are the states of trajectories, -1 where there is none. In all other rows a policy acts as its
        centre.
        """
        which, place = self.differing(numbers.flatten())
        once = (which * len(numbers) + place // numbers.shape[1]).unique()
        return once // len(numbers), once % len(numbers)

    def split(self, which: Tensor, step: int, state: int) -> dict[int, Tensor]:
        """Policies `which` [n], ascending, by what they do in a state: action -> policies, ascending.

        It costs as much as there are policies that differ there, and no more where all follow one centre.
        """
        differing, _ = self.differing(torch.tensor([step * self.centres.shape[-1] + state]))
        place = torch.searchsorted(which, differing).clamp_max(len(which) - 1)
        here = place[which[place] == differing]
        found: dict[int, list[Tensor]] = {}
        for one in here.tolist():
            found.setdefault(int(self.act(which[one], step, torch.tensor(state))), []).append(which[one : one + 1])
        rest = which
        if len(here):
            stays = torch.ones(len(which), dtype=torch.bool)
            stays[here] = False
            rest = which[stays]
        usual = self.centres[:, step, state].tolist()
        for action in set(usual) if len(rest) else ():
            same = rest if len(set(usual)) == 1 else rest[self.centres[:, step, state][self.follows[rest]] == action]
            if len(same):
                found.setdefault(action, []).append(same)
        return {
            action: torch.cat(parts).sort().values if len(parts) > 1 else parts[0] for action, parts in found.items()
        }


def sizes(spec: Spec) -> tuple[int, int, int]:
    """Horizon, states and actions of a task with a step. Raises UsageError, one sentence, for any other task."""
    found = tabular_spaces(spec)
    if found is None or not spec.discrete:
        raise UsageError(f"a list of policies is over 'state' and 'step' of a tabular task; {spec.name} has none")
    step, state = found
    return int(step.n) - 1, int(state.n), spec.num_actions


def tons(spec: Spec, size: int = 1, usual: int = 0) -> PolicyList:
    """All policies that do something else than the action `usual` in at most `size` states; the first never does.

    With `size` 1 these are the singletons, and it. Raises UsageError for an action that the task lacks and for more
    than `MOST` policies.
    """
    horizon, states, actions = sizes(spec)
    if usual >= actions:
        raise UsageError(f"the usual action {usual} is none of the {actions} actions of {spec.name}")
    total = sum(comb(horizon * states, count) * (actions - 1) ** count for count in range(size + 1))
    if total > MOST:
        raise UsageError(
            f"{total:,} policies act unusually in at most {size} of {horizon * states:,} states, and {MOST:,} are the "
            f"most that are served"
        )
    others = torch.tensor([action for action in range(actions) if action != usual])
    size = min(size, horizon * states)
    where, what = [torch.full((1, size), horizon * states)], [torch.zeros(1, size, dtype=torch.int64)]
    for count in range(1, size + 1):
        places = torch.combinations(torch.arange(horizon * states), count)
        acts = torch.cartesian_prod(*[others] * count).reshape(-1, count)
        fill = (0, size - count)
        where.append(pad(places.repeat_interleave(len(acts), 0), fill, value=horizon * states))
        what.append(pad(acts.repeat(len(places), 1), fill))
    centres = torch.full((1, horizon, states), usual)
    return PolicyList(centres, torch.zeros(total, dtype=torch.int64), torch.cat(where), torch.cat(what))


def from_tables(spec: Spec, tables: Tensor, centres: int = 1) -> PolicyList:
    """The list of the policies with actions `tables` int64 [P, H, S], with so many of them as centres.

    Centres are chosen greedily: each so that the most that a policy differs from the nearest one is least, and among
    equals the sum of all. Raises UsageError for tables that do not fit the task.
    """
    horizon, states, actions = sizes(spec)
    tables = torch.as_tensor(tables)
    shape = list(tables.shape)
    if len(shape) != 3 or shape[1:] != [horizon, states] or not shape[0] or tables.is_floating_point():
        raise UsageError(f"policies of {spec.name} are integers [P, {horizon}, {states}], not {tables.dtype} {shape}")
    low, high = int(tables.min()), int(tables.max())
    if low < 0 or high >= actions:
        wrong = low if low < 0 else high
        raise UsageError(f"actions of {spec.name} are 0 to {actions - 1}, and a policy has {wrong}")
    if not 1 <= centres <= len(tables):
        raise UsageError(f"{centres} centres cannot be chosen among {len(tables)} policies")
    flat = tables.long().flatten(1)
    apart = torch.cdist(flat.double(), flat.double(), p=0)  # in how many states they differ
    nearest, chosen = torch.full((len(flat),), float("inf"), dtype=torch.float64), list[int]()
    for _ in range(centres):
        left = torch.minimum(nearest, apart)
        chosen.append(int((left.amax(1) * flat.numel() + left.sum(1)).argmin()))
        nearest = torch.minimum(nearest, apart[chosen[-1]])
    follows = apart[chosen].argmin(0)
    differs = flat != flat[chosen][follows]
    size = int(differs.sum(1).max())
    numbers = torch.where(differs, torch.arange(flat.shape[1]), flat.shape[1]).sort(1).values[:, :size]
    acts = pad(flat, (0, 1)).gather(1, numbers)
    return PolicyList(tables.long()[chosen], follows, numbers, acts)


def sequences(spec: Spec) -> Tensor:
    """All sequences of actions, whatever the states are: int64 [A^H, H, S]. Raises UsageError for more than 4096."""
    horizon, states, actions = sizes(spec)
    if actions**horizon > 4096:
        raise UsageError(f"{spec.name} has {actions}^{horizon} sequences of actions, and 4,096 are the most served")
    digits = actions ** torch.arange(horizon).flip(0)
    rows = torch.arange(actions**horizon).unsqueeze(1) // digits % actions
    return rows.unsqueeze(-1).expand(-1, -1, states)


def probabilities(tables: Tensor, actions: int) -> Tensor:
    """Actions [..., H, S] as probabilities [..., H, S, A], float64."""
    return one_hot(tables, actions).double()
