"""Dynamic programming for points: values on a lattice of places, linear in between."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from polopt.core.errors import UsageError
from polopt.tasks.point import walls as solid
from polopt.tasks.point.world import Point
from polopt.tasks.simulated import State


class Lattice:
    """S = cells^D places in the bounds of a world, and A = actions^D actions in each, evenly spaced from edge to edge.

    Rewards are what is to be expected; the noise of a step is replaced by two values along each axis with its variance.
    The value of a place between lattice points is linear in its coordinates (points behind a wall do not count), so
    values are those of the world up to an error that falls as cells and actions grow. Everything is float64.

    Args:
        world: any that moves by steps in bounds, without objectives and without zones that end by chance.
        index: of the start, where a goal is drawn.

    Raises UsageError, one sentence, for another world, or one that is too large.

    Attributes:
        places, actions: [S, D] and [A, D].
        next, weight: int64 and float [S, A, B]: what each of B branches leads to, with which probability.
        reward: [S, A]. over: bool [S, A], where the episode ends with this decision: 0 or 1, the share of the noise.
    """

    def __init__(self, world: Point, cells: int = 41, actions: int = 9, index: int = 0) -> None:
        name = world.spec.name
        if world.forces or world.bounds is None or world.objectives:
            raise UsageError(f"{name} has no lattice: that is of one reward, and of places in bounds, moved by steps")
        if world.zones.chancy and world.zones.ends.any():
            raise UsageError(f"{name} has no lattice: whether a zone ends an episode must not be luck")
        nodes = 2**world.dims if world.noise else 1
        size = (cells * actions) ** world.dims * nodes * 2**world.dims
        if size > 4e7:
            raise UsageError(
                f"{name} with {cells} cells and {actions} actions along each axis is too large: {size:.0e}"
            )
        self.world, self.cells, self.horizon = world, cells, world.horizon
        self.low, self.high = (edge.double().cpu() for edge in world.bounds)
        line = torch.linspace(0, 1, cells, dtype=torch.float64)
        self.places = self.low + _product(line, world.dims) * (self.high - self.low)
        self.actions = _product(torch.linspace(-1, 1, actions, dtype=torch.float64), world.dims)
        first = world.start_of(index)
        self._fixed = {key: value for key, value in first.items() if key != "place"}
        self._branches()

    def _branches(self) -> None:
        world, count = self.world, len(self.actions)
        spread = world.noise / 3**0.5 if world.noise_kind == "uniform" else world.noise
        signs = _product(torch.tensor([-1.0, 1.0]), world.dims) if world.noise else torch.zeros(1, world.dims)
        place = self.places.repeat_interleave(count, 0)
        action = self.actions.repeat(len(self.places), 1)
        parts = []
        for sign in signs.double():
            after, reward, over = self.step(place, action, spread * sign)
            where, weight = self.between(after)
            parts.append((where, weight / len(signs), reward, over.double()))
        shape = (len(self.places), count)
        self.next = torch.cat([where for where, *_ in parts], 1).view(*shape, -1)
        self.weight = torch.cat([weight * (1 - over).unsqueeze(1) for _, weight, _, over in parts], 1).view(*shape, -1)
        self.reward = torch.stack([reward for *_, reward, _ in parts]).mean(0).view(shape)
        self.over = torch.stack([over for *_, over in parts]).mean(0).view(shape)

    def step(self, place: Tensor, action: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(place after [N, D], expected reward [N], bool [N]) of decisions at places [N, D], with this noise [D]."""
        world = self.world
        real = world.bonus.dtype
        state: State = {key: value.expand(len(place), *value.shape[1:]) for key, value in self._fixed.items()}
        state["place"] = place.to(world.device, real)
        luck = {"noise": noise.to(world.device, real).expand(len(place), -1)} if world.noise else {}
        time = torch.zeros(len(place), dtype=torch.int64, device=world.device)
        after, reward, over, _ = world.outcome(state, time, action.to(world.device, real), luck)
        return after["place"].double().cpu(), reward.double().cpu(), over.cpu()

    def between(self, place: Tensor) -> tuple[Tensor, Tensor]:
        """The numbers [N, 2^D] of the lattice points around places [N, D], and their weights."""
        at = ((place - self.low) / (self.high - self.low) * (self.cells - 1)).clamp(0, self.cells - 1)
        base = at.floor().clamp(max=self.cells - 2)
        part = at - base
        numbers, weights = [], []
        for corner in itertools.product((0, 1), repeat=place.shape[1]):
            step = torch.tensor(corner, dtype=torch.float64)
            number = torch.zeros(len(place), dtype=torch.int64)
            for axis in (base + step).long().unbind(1):
                number = number * self.cells + axis
            numbers.append(number)
            weights.append(torch.where(step > 0, part, 1 - part).prod(1))
        number, weight = torch.stack(numbers, 1), torch.stack(weights, 1)
        if len(self.world.walls[0]):
            low, high = (edge.double().cpu() for edge in self.world.walls)
            way = self.places[number] - place.unsqueeze(1)
            share = solid.reach(place.repeat_interleave(number.shape[1], 0), way.flatten(0, 1), low, high)
            seen = weight * (share.view_as(weight) == 1)
            total = seen.sum(1, keepdim=True)
            weight = torch.where(total > 0, seen / total, weight)
        return number, weight

    def q(self, value: Tensor) -> Tensor:
        """Action values [S, A], given the values [S] of the step after, discounted."""
        return self.reward + (self.weight * value[self.next]).sum(-1)

    def optimal(self, discount: float = 1.0) -> tuple[Tensor, Tensor]:
        """An optimal policy [H, S], numbers of actions, and its values [H + 1, S]; 0 where the horizon is over."""
        value = torch.zeros(self.horizon + 1, len(self.places), dtype=torch.float64)
        policy = torch.zeros(self.horizon, len(self.places), dtype=torch.int64)
        for step in reversed(range(self.horizon)):
            best = self.q(discount * value[step + 1]).max(-1)
            value[step], policy[step] = best.values, best.indices
        return policy, value

    def at(self, value: Tensor, place: Tensor) -> Tensor:
        """The values [N] of places [N, D], of those of the lattice [S]."""
        number, weight = self.between(place.double().cpu())
        return (weight * value[number]).sum(-1)

    def best(self, value: Tensor, place: Tensor, discount: float = 1.0) -> Tensor:
        """The best actions [N, D] at places [N, D] where the values [S] are those of the step after."""
        place, count = place.double().cpu(), len(self.actions)
        at = place.repeat_interleave(count, 0)
        action = self.actions.repeat(len(place), 1)
        after, reward, over = self.step(at, action, torch.zeros(place.shape[1]))
        worth = reward + torch.where(over, 0.0, discount * self.at(value, after))
        return self.actions[worth.view(len(place), count).argmax(1)]


def _product(line: Tensor, dims: int) -> Tensor:
    return torch.cartesian_prod(*[line] * dims).view(-1, dims)
