"""Offloading at the edge of a network: tasks go to a cloud or to one of several edge servers, which share themselves
among all the tasks that they have.

After Yang et al. 2023 and 2025, arXiv 2509.10474, and the released environment of the former,
gracefulning/mec_morl_multipolicy. Sizes are in Mbit, times in seconds, data rates in Mbit/s. A task takes 1,000 cycles
a bit, so that a processor of 1 GHz works off 1 Mbit/s.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from polopt.core.errors import UsageError
from polopt.core.observations import MASK_KEY
from polopt.core.spec import Spec
from polopt.tasks.luck import even, exponential, poisson, uniform
from polopt.tasks.options import choice, levels_of, number, share, whole
from polopt.tasks.simulated import Simulated, State

COUNT, SPEED, PLACE, FADING, ARRIVAL, SIZE, USER, RANDOM = range(8)
"""What luck is for, at one time of one start."""

BAND = 16.6  # MHz of each link
NOISE = 10.0 ** ((-174.0 - 30.0) / 10.0) * BAND * 1e6  # watts in the band
LOSS, LOSS_PER_DECADE = 133.6 + 8.0, 35.0  # dB at 1 km with shadowing, and of ten times the distance
POWER = {"squared": 0.01, "textbook": 10.0}  # watts of a user
ENERGY = 5e-31 * 1e3 * 1e6 * 1e18  # joules to work off 1 Mbit at 1 GHz; it grows with the square of the frequency
DELAY_WEIGHT, ENERGY_WEIGHT = 0.01, 50.0  # of seconds and joules in the rewards
SMALLEST, LARGEST = 0.1, 100.0  # Mbit of a task
BIT = 1e-6
CLOUD_DISTANCE, EDGE_DISTANCE = (1.0, 2.0), (0.05, 0.5)  # km


def attained(remain: Tensor, own: Tensor, budget: Tensor) -> Tensor:
    """How much each task of a server is served while the server works off `budget` [N, S], shared evenly among those
    that are not finished: [N, S], infinite where all of them are.

    `remain` [N, T] is what is left of each task, `own` bool [N, S, T] which tasks a server has. A task with x left has
    max(x - attained, 0) left then.
    """
    work, order = remain.sort(-1)
    own = own.gather(-1, order.unsqueeze(-2).expand_as(own))
    work = work.unsqueeze(-2) * own
    rank = own.cumsum(-1)
    longer = rank[..., -1:] - rank  # how many tasks of the server have more left than this one
    done = own & (work.cumsum(-1) + longer * work <= budget.unsqueeze(-1))
    unfinished = rank[..., -1] - done.sum(-1)
    rest = (budget - (work * done).sum(-1)) / unfinished.clamp_min(1)
    return torch.where(unfinished > 0, rest, math.inf)


def marginal_delay(remain: Tensor, own: Tensor, size: Tensor, speed: Tensor, offload: Tensor) -> Tensor:
    """By how much one more task raises the sum of the times at which the tasks of a server are finished: [N, S], with
    `size` [N], `speed` [N, S], and `offload` [N, S], the time until it is there, which is not in the sum.

    By then each task of the server has y left. Two tasks delay each other by what the smaller one needs, so that the
    rise is (size + 2 sum min(y, size)) / speed.
    """
    left = (remain.unsqueeze(-2) - attained(remain, own, speed * offload).unsqueeze(-1)).clamp_min(0.0) * own
    shared = torch.minimum(left, size[:, None, None]).sum(-1)
    return (size.unsqueeze(-1) + 2.0 * shared) / speed


class Edge(Simulated):
    """In each second one task, of those that wait, is sent to the cloud, action 0, or to the edge server of its number.

    A link carries the task there at the data rate of its user. Then it shares the server with all others that are
    there: n of them get a part of 1/n each, exactly and in continuous time, whatever happens within a second. How many
    edge servers there are, how fast they and the cloud are, where the users are and how their links fade is drawn at
    each start and stays for the episode. `arrivals` tasks a second come on average, and wait in order. Sizes are
    exponential, `load` times what all servers can work off in 1 / `arrivals` seconds, cut to [0.1, 100] Mbit.

    `rewards` are minus 0.01 times the rise in the sum of the times at which the tasks of that server are finished
    ("delay", `marginal_delay`), and minus 50 times the joules for sending the task and working it off, which grow with
    the square of the frequency ("energy"). The reward is their sum with weights `weight` and 1 - `weight`.

    Observation: a Dict of "servers", a Box [1 + slots, 6 + bins]: 1, the frequency in GHz, the number of edge servers,
    the task's size, its data rate / 100, how many tasks are there, and how many have 0 to 1, 1 to 2, ... Mbit left, the
    last bin those with more. Rows of servers that are absent are 0. Beside it "action_mask"; where no task waits, which
    is a size of 0, the cloud is the only legal action, and nothing happens. A task for an absent server goes to the
    cloud.

    Behaviors: "random", any server that is there; "greedy", the one with the largest reward, which the simulator tells.

    Args:
        edges: how many edge servers, as "1-10" or one number: drawn evenly at each start. slots: rows for them in the
            observation; none: as many as there may be.
        cloud, edge: GHz, in the middle of the range; cloud_spread, edge_spread: how far it reaches on both sides.
        users, arrivals, load, weight: see above. bins: of the histogram.
        channel: the signal of the link. "squared", of 10 mW, as released: the gain is divided by the noise twice and
            squared, which gives about 440 Mbit/s at 1.5 km; "textbook", of 10 W: power times gain over noise, 5 Mbit/s
            there, so that tasks are on their way for seconds.
    """

    behaviors = ("random", "greedy")

    def __init__(
        self,
        num: int = 1,
        seed: int = 0,
        evaluation: bool = False,
        name: str = "edge",
        *,
        edges: Any = (1, 10),
        slots: int | None = None,
        cloud: float = 4.0,
        cloud_spread: float = 1.0,
        edge: float = 2.0,
        edge_spread: float = 0.5,
        users: int = 10,
        arrivals: float = 1.0,
        load: float = 1.0,
        weight: float = 0.95,
        bins: int = 60,
        channel: str = "squared",
        horizon: int = 100,
        device: str = "cpu",
    ) -> None:
        super().__init__(num, seed, evaluation, name, horizon=horizon, device=device)
        self.edges = levels_of("edges", edges, (1, 1_000))
        self.servers = 1 + (self.edges[1] if slots is None else whole("slots", slots, self.edges[1]))
        middle, spread = (number("cloud", cloud), number("edge", edge)), (cloud_spread, edge_spread)
        for each, around in zip(middle, spread, strict=True):
            if not 0.0 <= number("a spread of frequencies", around) < each:
                raise UsageError("frequencies are above 0, with a spread of at least 0 that is less than they are")
        self.users, self.bins = whole("users", users, 1), whole("bins", bins, 1)
        self.arrivals, self.load = number("arrivals", arrivals), number("load", load)
        if min(self.arrivals, self.load) <= 0.0:
            raise UsageError("arrivals and load are above 0")
        self.weights = (share("weight", weight), 1.0 - weight)
        self.channel = choice("channel", channel, tuple(POWER))
        ranges = (*middle, *spread, *CLOUD_DISTANCE, *EDGE_DISTANCE)
        first = torch.arange(self.servers) == 0
        self.table = torch.stack([torch.where(first, ranges[place], ranges[place + 1]) for place in (0, 2)])
        self.reach = torch.stack([torch.where(first, ranges[place], ranges[place + 2]) for place in (4, 5)])
        seen = spaces.Box(0.0, np.inf, (self.servers, 6 + self.bins), np.float32)
        obs = spaces.Dict({"servers": seen, MASK_KEY: spaces.MultiBinary(self.servers)})
        info, facts, objectives = {"horizon": horizon}, {"rewards": (2,)}, ("delay", "energy")
        self.spec = Spec(obs, spaces.Discrete(self.servers), name, info, facts, objectives)

    def begin(self, draws: State) -> State:
        key, servers, dtype = draws["key"], self.servers, torch.get_default_dtype()
        (low, high), every = self.edges, torch.arange(servers, device=key.device)
        count = low + (uniform(key, 0, 1, COUNT) * (high - low + 1)).long()
        middle, spread = self.table.to(key.device, dtype)
        speed = torch.where(every <= count, middle + spread * even(key, 0, servers, SPEED), 0.0)
        near, far = self.reach.to(key.device, dtype).unsqueeze(-1)
        links = (servers, self.users)
        distance = near + (far - near) * uniform(key, 0, servers * self.users, PLACE).unflatten(-1, links)
        fading = exponential(key, 0, servers * self.users, FADING).unflatten(-1, links)
        nothing = speed.new_zeros(len(key), self.horizon)
        state = {"key": key, "speed": speed, "rate": self.data_rate(distance, fading)}
        state |= {"remain": nothing, "wait": nothing.clone(), "server": nothing.long()}
        return state | self.arrive(state, 0, torch.zeros_like(key))

    def data_rate(self, distance: Tensor, fading: Tensor) -> Tensor:
        """Mbit/s of links over `distance` km whose signal is `fading` times as strong as without."""
        gain = 10.0 ** (-(LOSS + LOSS_PER_DECADE * distance.log10()) / 10.0) * fading / NOISE
        signal = gain.square() / NOISE if self.channel == "squared" else gain
        return BAND / math.log(2.0) * (POWER[self.channel] * signal).log1p()

    def arrive(self, state: State, number: Tensor | int, waiting: Tensor) -> State:
        """The next task: its size [N], 0 without one, its user [N], and how many wait behind it [N]."""
        key = state["key"]
        waiting = waiting + poisson(key, number, self.arrivals, ARRIVAL)
        mean = self.load / self.arrivals * state["speed"].sum(-1)
        size = (mean * exponential(key, number, 1, SIZE).squeeze(-1)).clamp(SMALLEST, LARGEST)
        user = (uniform(key, number, 1, USER).squeeze(-1) * self.users).long()
        size = torch.where(waiting > 0, size, 0.0)
        return {"size": size, "user": user, "waiting": (waiting - 1).clamp_min(0)}

    def links(self, state: State) -> Tensor:
        """Data rates [N, S] of the user whose task is next."""
        user = state["user"][:, None, None].expand(-1, self.servers, 1)
        return state["rate"].gather(-1, user).squeeze(-1)

    def owned(self, state: State) -> Tensor:
        """Which tasks each server has or will have: bool [N, S, T]."""
        return state["server"].unsqueeze(-2) == torch.arange(self.servers, device=self.device).unsqueeze(-1)

    def rewards(self, state: State) -> Tensor:
        """Both rewards [N, S, 2] of every action for the task that is next; those of absent servers mean nothing."""
        size, speed, rate = state["size"], state["speed"], self.links(state)
        here = self.owned(state) & (state["wait"] == 0.0).unsqueeze(-2)
        offload = size.unsqueeze(-1) / rate
        delay = marginal_delay(state["remain"], here, size, torch.where(speed > 0, speed, 1.0), offload)
        energy = POWER[self.channel] * offload + ENERGY * size.unsqueeze(-1) * speed.square()
        return torch.stack([-DELAY_WEIGHT * delay, -ENERGY_WEIGHT * energy], -1)

    def weighted(self, rewards: Tensor) -> Tensor:
        """The reward [...] of both rewards [..., 2]."""
        return (rewards * rewards.new_tensor(self.weights)).sum(-1)

    def advance(self, state: State, time: Tensor, action: Tensor) -> tuple[State, Tensor, Tensor, State]:
        there = state["speed"].gather(-1, action.unsqueeze(-1)) > 0
        action = torch.where(there, action.unsqueeze(-1), 0)  # [N, 1]
        rewards = self.rewards(state).take_along_dim(action.unsqueeze(-1), 1).squeeze(1)
        size, slot = state["size"].unsqueeze(-1), time.unsqueeze(-1)  # each decision has a slot for its task
        tasks = {
            "remain": state["remain"].scatter(-1, slot, size),
            "wait": state["wait"].scatter(-1, slot, size / self.links(state).gather(-1, action)),
            "server": state["server"].scatter(-1, slot, action),
        }
        after = self.work({**state, **tasks})
        after |= self.arrive(state, time + 1, state["waiting"])
        return after, self.weighted(rewards), torch.zeros_like(time, dtype=torch.bool), {"rewards": rewards}

    def work(self, state: State, seconds: float = 1.0) -> State:
        """What is left of every task after so many seconds: from one arrival at a server to the next there. On an
        accelerator each round asks whether there is another one."""
        remain, wait, speed, own = state["remain"], state["wait"], state["speed"], self.owned(state)
        left = torch.full_like(speed, seconds)
        while bool((left > 0.0).any()):
            here = wait == 0.0
            coming = torch.where(own & ~here.unsqueeze(-2), wait.unsqueeze(-2), math.inf).amin(-1)
            step = torch.minimum(left, coming)
            served = attained(remain, own & here.unsqueeze(-2), speed * step)
            remain = torch.where(here, (remain - served.gather(-1, state["server"])).clamp_min(0.0), remain)
            wait = (wait - step.gather(-1, state["server"])).clamp_min(0.0)
            left = left - step
        return {**state, "remain": torch.where(remain < BIT, 0.0, remain), "wait": wait}

    def observe(self, state: State, time: Tensor) -> Any:
        speed, remain = state["speed"], state["remain"]
        here = (remain > 0.0) & (state["wait"] == 0.0)
        place = state["server"] * self.bins + remain.long().clamp_max(self.bins - 1)
        empty = speed.new_zeros(len(speed), self.servers * self.bins)
        histogram = empty.scatter_add(-1, place, here.to(speed.dtype)).unflatten(-1, (self.servers, self.bins))
        there = speed > 0.0
        size = state["size"].unsqueeze(-1)
        edges = (there.sum(-1, keepdim=True) - 1).to(speed.dtype)
        alike = (torch.ones_like(speed), speed, edges.expand_as(speed), size.expand_as(speed))
        numbers = torch.stack([*alike, self.links(state) / 100.0, histogram.sum(-1)], -1)
        servers = torch.cat([numbers, histogram], -1) * there.unsqueeze(-1)
        nothing = torch.arange(self.servers, device=speed.device) > 0
        seen: Any = {"servers": servers, MASK_KEY: there & ~((size == 0.0) & nothing)}
        return seen

    def behave(self, behavior: str, state: State, time: Tensor) -> Tensor:
        if behavior == "random":
            worth = uniform(state["key"], time, self.servers, RANDOM)
        else:
            worth = self.weighted(self.rewards(state))
        legal = (state["speed"] > 0.0) & ((state["size"] > 0.0).unsqueeze(-1))
        legal[:, 0] = True
        return torch.where(legal, worth, -math.inf).argmax(-1)
