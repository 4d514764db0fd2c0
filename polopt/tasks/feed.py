"""A feed of short videos into which live streams are put: what earns time now makes users leave sooner."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from polopt.core.errors import UsageError
from polopt.core.spec import Spec
from polopt.tasks.luck import normal, uniform
from polopt.tasks.options import number, share, whole
from polopt.tasks.simulated import Simulated, State

GROUP, USER, APPEAL, LIVE, VIDEO, LEAVE, RANDOM = range(7)
"""What luck is for, at one time of one start."""


class Feed(Simulated):
    """At each request of a session a live stream is inserted (1) or not (0), and short videos follow until the next.

    A session is one user's, of one of `groups` groups, equally frequent, whose mean interest in live streams goes from
    `interest` seconds to `spread` times that in equal ratios. The stream at hand has an appeal, a standard normal
    number. Times are lognormal, in seconds:

        live     inserted  interest(group) exp(appeal - 1/2), times luck of mean 1
        video    the user's mean, which is around `video`, times luck of mean 1, less the share `displaced` if inserted
        fatigue  <- decay fatigue + (1 - decay) inserted, from 0
        leaves   with probability leave (1 + tiring fatigue), which terminates; a session of `horizon` requests is cut

    Luck of live streams has the logarithmic deviation `tail`, of videos and of users' means half of 1. The reward has
    the price of an insertion: with `reference` = `displaced` times the mean of this user's earlier slots without one
    (at first also of one slot of `video`)

        reward   inserted (live - reference - skip_cost [live < skip]) + video_weight video

    without the reference where `video_weight` is above 0, since what was displaced is missing there. Nothing in it says
    that users leave. `rewards` are "app", all time spent, then "live", "displaced" (the reference, if inserted) and
    "skipped" (0 or 1); `info["weights"]` says what each counts in the reward.

    Seen: "group", and "request" with appeal, fatigue and the logarithm of the user's mean slot over `video`.

    Args:
        tiring: 0 switches fatigue off: it is seen, and does nothing.

    Behaviors: "random" inserts every second time.
    """

    behaviors = ("random",)

    def __init__(
        self,
        num: int = 1,
        seed: int = 0,
        evaluation: bool = False,
        name: str = "feed",
        *,
        groups: int = 5,
        interest: float = 4.0,
        spread: float = 100.0,
        tail: float = 1.0,
        video: float = 60.0,
        displaced: float = 0.5,
        decay: float = 0.8,
        leave: float = 0.03,
        tiring: float = 8.0,
        skip: float = 3.0,
        skip_cost: float = 3.0,
        video_weight: float = 0.0,
        horizon: int = 200,
        device: str = "cpu",
    ) -> None:
        super().__init__(num, seed, evaluation, name, horizon=horizon, device=device)
        self.groups, self.decay = whole("groups", groups, 1), share("decay", decay)
        self.tail, self.spread = number("tail", tail), number("spread", spread)
        self.interest, self.video = number("interest", interest), number("video", video)
        self.displaced, self.leave, self.tiring = share("displaced", displaced), leave, number("tiring", tiring)
        self.skip, self.skip_cost = number("skip", skip), number("skip_cost", skip_cost)
        self.video_weight = number("video_weight", video_weight)
        if min(self.tail, self.tiring, self.skip, self.skip_cost, self.video_weight) < 0 or self.spread < 1:
            raise UsageError("tail, tiring, skip, skip_cost and video_weight are at least 0, and spread is at least 1")
        if min(self.interest, self.video) <= 0:
            raise UsageError("interest and video are times, above 0")
        if not 0.0 <= share("leave", leave) * (1 + self.tiring) <= 1.0:
            raise UsageError(
                f"leave (1 + tiring) is the probability that the most fatigued leave, up to 1, not {leave!r} "
                f"(1 + {self.tiring:g})"
            )
        self.scale = self.interest * self.spread ** torch.linspace(0, 1, groups, dtype=torch.float64)
        charged = 0.0 if self.video_weight else -1.0
        weights = (self.video_weight, 1.0 - self.video_weight, charged, -self.skip_cost)
        self.weights = torch.tensor(weights, dtype=torch.float64)
        self.spec = Spec(
            spaces.Dict({"group": spaces.Discrete(groups), "request": spaces.Box(-np.inf, np.inf, (3,), np.float32)}),
            spaces.Discrete(2),
            name,
            {"weights": list(weights)},
            facts={"rewards": (4,)},
            objectives=("app", "live", "displaced", "skipped"),
        )

    def begin(self, draws: State) -> State:
        key = draws["key"]
        zeros = torch.zeros(len(key), dtype=torch.get_default_dtype(), device=self.device)
        return {
            "group": (uniform(key, 0, 1, GROUP).squeeze(-1) * self.groups).long(),
            "mean": self.video * lognormal(normal(key, 0, 1, USER), 0.5).squeeze(-1),
            "appeal": normal(key, 0, 1, APPEAL).squeeze(-1),
            "fatigue": zeros,
            "watched": zeros + self.video,  # in slots without a stream, and in one slot that was never there
            "slots": zeros + 1.0,
            "key": key,
        }

    def advance(self, state: State, time: Tensor, action: Tensor) -> tuple[State, Tensor, Tensor, State]:
        key, inserted = state["key"], action.to(torch.get_default_dtype())
        scale, weights = (table.to(self.device, inserted.dtype) for table in (self.scale, self.weights))
        luck = lognormal(normal(key, time, 1, LIVE).squeeze(-1), self.tail)
        live = inserted * scale[state["group"]] * lognormal(state["appeal"], 1.0) * luck
        slot = state["mean"] * lognormal(normal(key, time, 1, VIDEO).squeeze(-1), 0.5)
        video = slot * (1 - self.displaced * inserted)
        skipped = inserted * (live < self.skip)
        rewards = torch.stack([live + video, live, inserted * self.displaced * mean_slot(state), skipped], -1)
        fatigue = self.decay * state["fatigue"] + (1 - self.decay) * inserted
        over = uniform(key, time, 1, LEAVE).squeeze(-1) < self.leave * (1 + self.tiring * fatigue)
        after = {
            **state,
            "appeal": normal(key, time + 1, 1, APPEAL).squeeze(-1),
            "fatigue": fatigue,
            "watched": state["watched"] + (1 - inserted) * slot,
            "slots": state["slots"] + 1 - inserted,
        }
        return after, rewards @ weights, over, {"rewards": rewards}

    def observe(self, state: State, time: Tensor) -> Any:
        known = (mean_slot(state) / self.video).log()
        request = torch.stack([state["appeal"], state["fatigue"], known], -1)
        return {"group": state["group"], "request": request}

    def behave(self, behavior: str, state: State, time: Tensor) -> Tensor:
        return (uniform(state["key"], time, 1, RANDOM).squeeze(-1) < 0.5).long()


def mean_slot(state: State) -> Tensor:
    """What is known of the user's time in a slot of videos [N]: of what was, and not of what comes."""
    return state["watched"] / state["slots"]


def lognormal(luck: Tensor, deviation: float) -> Tensor:
    """Lognormal numbers of mean 1, of standard normal `luck`."""
    return torch.exp(deviation * luck - deviation**2 / 2)
