"""Sessions of a recommender: what is watched long, what is liked now and then, and users who tire and leave."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from gymnasium import spaces
from torch import Tensor

from polopt.core.errors import UsageError
from polopt.core.spec import Spec
from polopt.tasks.base import Obs
from polopt.tasks.luck import normal, uniform
from polopt.tasks.options import number, share, whole
from polopt.tasks.simulated import Simulated, State

GROUP, INTEREST, MOVE, FATIGUE, LEAVE, WATCH, SIDE, RANDOM = range(8)
"""What luck is for, at one time of one start."""


class Sessions(Simulated):
    """One of A kinds of items is shown at each decision. A user has an interest, one of the kinds, and is fatigued to
    one of F degrees, from 0; both are seen, with the user's group, as one number.

    `rewards` are the time that the item was watched, which is the reward, and `sides` rare responses of 0 or 1, such as
    likes. The watch time is scale(group) mean(interest, kind) (1 - fatigue / (2 F)) times luck of mean 1, lognormal,
    whose logarithm has deviation `tail`. Means are drawn between 0 and 0.8, and are 0.4 more for the kind of the
    interest. Each response belongs to `favored` kinds, whose drawn part is `dull` times as large, and comes there with
    a chance between a third of `side_rate` and all of it, elsewhere with a tenth of it.

    After each item the interest becomes that of the item with probability `follow`. An item of the interest tires by
    one degree with probability 1/2, another one with 1/10, and refreshes by one with 1/10. Then the user leaves, which
    terminates, with probability `leave` 2^fatigue. A session of `horizon` decisions is cut.

    Args:
        kinds: A. fatigues: F. map_seed: means and chances are drawn from it, not from the seed of a run.
        groups: of users, equally frequent; their scales go from 1 to `spread` in equal ratios.

    Behaviors: "random", every kind alike.

    Attributes:
        watch, side: means [A, A] of watch times by interest and kind, chances [sides, A] of the responses, float64.
        scale: [groups], float64.
    """

    behaviors = ("random",)
    named: ClassVar[Mapping[str, Mapping[str, Any]]] = {"sessions/groups": {"groups": 5, "spread": 100.0, "tail": 1.0}}

    def __init__(
        self,
        num: int = 1,
        seed: int = 0,
        evaluation: bool = False,
        name: str = "sessions",
        *,
        kinds: int = 10,
        fatigues: int = 3,
        sides: int = 2,
        favored: int = 2,
        side_rate: float = 0.03,
        dull: float = 0.5,
        follow: float = 0.3,
        leave: float = 0.01,
        tail: float = 0.25,
        groups: int = 1,
        spread: float = 1.0,
        map_seed: int = 0,
        horizon: int = 100,
        device: str = "cpu",
    ) -> None:
        super().__init__(num, seed, evaluation, name, horizon=horizon, device=device)
        self.kinds, self.fatigues, self.groups = (
            whole("kinds", kinds, 2),
            whole("fatigues", fatigues, 1),
            whole("groups", groups, 1),
        )
        self.sides, self.favored = whole("sides", sides, 0), whole("favored", favored, 1)
        self.side_rate, self.follow, self.leave = share("side_rate", side_rate), share("follow", follow), leave
        self.dull, self.tail, self.spread = dull, number("tail", tail), number("spread", spread)
        if sides * favored > kinds:
            raise UsageError(f"{sides} responses that favor {favored} kinds each need {sides * favored} kinds")
        if not 0.0 <= share("leave", leave) * 2 ** (fatigues - 1) <= 1.0:
            raise UsageError(f"leave doubles with each degree of fatigue, up to 1 at most, not {leave!r}")
        if self.tail < 0 or self.spread < 1:
            raise UsageError("tail is at least 0, and spread at least 1")
        self._draw_map(whole("map_seed", map_seed, 0))
        objectives = ("watch", *(f"response-{number}" for number in range(1, sides + 1)))
        self.spec = Spec(
            spaces.Discrete(groups * kinds * fatigues),
            spaces.Discrete(kinds),
            name,
            facts={"rewards": (1 + sides,)},
            objectives=objectives,
        )

    def _draw_map(self, map_seed: int) -> None:
        generator = torch.Generator().manual_seed(map_seed)
        options: dict[str, Any] = {"generator": generator, "dtype": torch.float64}
        owner = torch.full((self.kinds,), -1)
        owner[torch.randperm(self.kinds, generator=generator)[: self.sides * self.favored]] = torch.arange(
            self.sides
        ).repeat(self.favored)
        mean = 0.8 * torch.rand(self.kinds, self.kinds, **options)
        self.watch = torch.where(owner < 0, mean, mean * share("dull", self.dull)) + 0.4 * torch.eye(
            self.kinds, dtype=torch.float64
        )
        chance = self.side_rate * (1 + 2 * torch.rand(self.sides, self.kinds, **options)) / 3
        own = owner == torch.arange(self.sides).unsqueeze(1)
        self.side = torch.where(own, chance, torch.full_like(chance, self.side_rate / 10))
        self.scale = self.spread ** torch.linspace(0, 1, self.groups, dtype=torch.float64)
        self.fresh = 1 - torch.arange(self.fatigues, dtype=torch.float64) / (2 * self.fatigues)
        self.leaves = self.leave * 2.0 ** torch.arange(self.fatigues, dtype=torch.float64)

    def begin(self, draws: State) -> State:
        key = draws["key"]
        group = (uniform(key, 0, 1, GROUP).squeeze(-1) * self.groups).long()
        interest = (uniform(key, 0, 1, INTEREST).squeeze(-1) * self.kinds).long()
        return {"group": group, "interest": interest, "fatigue": torch.zeros_like(group), "key": key}

    def advance(self, state: State, time: Tensor, action: Tensor) -> tuple[State, Tensor, Tensor, State]:
        key, group, interest, fatigue = (state[name] for name in ("key", "group", "interest", "fatigue"))
        dtype, tables = torch.get_default_dtype(), (self.scale, self.watch, self.fresh, self.side, self.leaves)
        scale, watch, fresh, side, leaves = (table.to(self.device, dtype) for table in tables)
        luck = torch.exp(self.tail * normal(key, time, 1, WATCH).squeeze(-1) - self.tail**2 / 2)
        watched = scale[group] * watch[interest, action] * fresh[fatigue] * luck
        responses = (uniform(key, time, self.sides, SIDE) < side.T[action]).to(dtype)
        turn = uniform(key, time, 1, FATIGUE).squeeze(-1)
        own = action == interest
        tires, refreshes = turn < torch.where(own, 0.5, 0.1), ~own & (turn >= 0.9)
        fatigue = (fatigue + tires.long() - refreshes.long()).clamp(0, self.fatigues - 1)
        interest = torch.where(uniform(key, time, 1, MOVE).squeeze(-1) < self.follow, action, interest)
        over = uniform(key, time, 1, LEAVE).squeeze(-1) < leaves[fatigue]
        rewards = torch.cat([watched.unsqueeze(-1), responses], -1)
        return {**state, "interest": interest, "fatigue": fatigue}, watched, over, {"rewards": rewards}

    def observe(self, state: State, time: Tensor) -> Obs:
        return (state["group"] * self.kinds + state["interest"]) * self.fatigues + state["fatigue"]

    def behave(self, behavior: str, state: State, time: Tensor) -> Tensor:
        return (uniform(state["key"], time, 1, RANDOM).squeeze(-1) * self.kinds).long()

    def model(self) -> tuple[Tensor, Tensor, Tensor]:
        """What is exact, float64: transition [S, A, S], whose rows lack the probability that the user leaves; mean
        rewards [1 + sides, S, A]; and how likely a session begins in each state, [S]."""
        groups, kinds, fatigues = self.groups, self.kinds, self.fatigues
        eye, shape = torch.eye(kinds, dtype=torch.float64), (groups, kinds, fatigues)
        interest = (1 - self.follow) * eye[:, None] + self.follow * eye[None]  # [interest, kind, next interest]
        ladder = torch.arange(fatigues)
        up, down = (eye_of(fatigues)[(ladder + step).clamp(0, fatigues - 1)] for step in (1, -1))  # [F, next F]
        own, other = 0.5 * (up + eye_of(fatigues)), 0.1 * up + 0.1 * down + 0.8 * eye_of(fatigues)
        fatigue = torch.where(eye.bool()[..., None, None], own, other) * (1 - self.leaves)  # [A, A, F, next F]
        moves = torch.einsum("gh,iaj,iaef->gieahjf", eye_of(groups), interest, fatigue)
        states = groups * kinds * fatigues
        transition = moves.reshape(states, kinds, states)
        watch = torch.einsum("g,ia,e->giea", self.scale, self.watch, self.fresh).reshape(states, kinds)
        reward = torch.stack([watch, *self.side.unsqueeze(1).expand(-1, states, -1)])
        start = torch.zeros(shape, dtype=torch.float64)
        start[..., 0] = 1 / (groups * kinds)
        return transition, reward, start.flatten()

    def value(self, policy: Tensor, discount: float) -> Tensor:
        """Exact discounted sums [..., 1 + sides] of the rewards of policies [..., S, A], over a session that is never
        cut."""
        transition, reward, start = self.model()
        policy = policy.to(transition)
        chain = torch.einsum("...sa,sat->...st", policy, transition)
        gains = torch.einsum("...sa,msa->...sm", policy, reward)
        values = torch.linalg.solve(torch.eye(len(start), dtype=chain.dtype) - discount * chain, gains)
        return torch.einsum("s,...sm->...m", start, values)


def eye_of(size: int) -> Tensor:
    return torch.eye(size, dtype=torch.float64)
