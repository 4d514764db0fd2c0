"""Actions that are taken open loop: sequences decoded from one observation, and actors that are asked now and then."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from polopt.core.batch import align_left
from polopt.core.errors import UsageError
from polopt.core.spec import Spec
from polopt.data.base import DONE_BEFORE
from polopt.networks.build import GRU
from polopt.networks.encoders import Obs, leading_shape
from polopt.networks.layers import initialize
from polopt.policies.base import Record
from polopt.policies.boxes import BoxActor
from polopt.policies.gaussian import HALF_LOG_TWO_PI, tanh_log_slope
from polopt.policies.wrappers import Wrapper


class SequencePolicy(BoxActor):
    """`length` actions from one observation, taken one after the other without another look.

        x_0 = net(obs),   x_(k+1) = GRU(a_(k-1), x_k),   a_k = tanh(u_k),   u_k ~ N(mean(x_(k+1)), std(x_(k+1)))

    a_(-1) is the action that was done before, 0 at the start of an episode. Acts in [-1, 1]; densities are in these
    units. Greedy acting takes tanh(mean) and feeds that back. Records `action` and `previous_action` [N, A]; the carry
    has what is left of the sequence, so that a new episode drops it.
    """

    family = "sequence decoder"
    unit = True

    def __init__(
        self,
        spec: Spec,
        net: nn.Module,
        size: int,
        *,
        length: int,
        init: str = "default",
        head_gain: float = 1.0,
        log_std_low: float = -20.0,
        log_std_high: float = 2.0,
    ) -> None:
        super().__init__(spec, net)
        self.length = length
        self.cell = GRU(self.size, size, init)
        self.head = nn.Linear(size, 2 * self.size)
        initialize(self.head, init, head_gain)
        self.log_std_low, self.log_std_high = log_std_low, log_std_high

    def decode(self, obs: Obs, previous: Tensor, length: int, noise: Tensor | None) -> tuple[Tensor, Tensor]:
        """u and log std, each [B, length, A], at `obs` [B, ...] after the actions `previous` [B, A]; `noise`, standard
        normal [B, length, A], makes samples, and None the modes."""
        state, values, log_stds = self.net(obs), [], []
        for place in range(length):
            state = self.cell.step(previous, state)
            mean, log_std = self.head(state).chunk(2, -1)
            log_std = log_std.clamp(self.log_std_low, self.log_std_high)
            value = mean if noise is None else mean + log_std.exp() * noise[:, place]
            previous = value.tanh()
            values.append(value)
            log_stds.append(log_std)
        return torch.stack(values, 1), torch.stack(log_stds, 1)

    def rsample(self, obs: Obs, previous: Tensor, length: int | None = None) -> tuple[Tensor, Tensor]:
        """Actions [B, length, A] at `obs` [B, ...] after `previous` [B, A], and the log-density [B, length] of each
        given those before it. Gradients flow through all of them. `length` is the policy's own by default."""
        length = length or self.length
        noise = torch.randn(len(previous), length, self.size, dtype=previous.dtype, device=previous.device)
        value, log_std = self.decode(obs, previous, length, noise)
        log_prob = -0.5 * noise.square() - log_std - HALF_LOG_TWO_PI - tanh_log_slope(value)
        return value.tanh(), log_prob.sum(-1)

    @torch.no_grad()
    def plan(self, obs: Obs, previous: Tensor | None, length: int, *, greedy: bool = False) -> Tensor:
        """Actions [N, length, A] for `obs` [N, ...], as many as are asked for; `previous` None: all rows are new."""
        if previous is None:
            previous = self.low.new_zeros(leading_shape(self.spec.obs, obs)[0], self.size)
        if greedy:
            return self.decode(obs, previous, length, None)[0].tanh()
        return self.rsample(obs, previous, length)[0]

    def act(self, obs: Obs, carry: Record | None = None, *, greedy: bool = False) -> tuple[Record, Record]:
        return open_loop(lambda previous: self.plan(obs, previous, self.length, greedy=greedy), carry)


def open_loop(plan: Callable[[Tensor | None], Tensor], carry: Record | None) -> tuple[Record, Record]:
    """The next action [N, ...] of a sequence, and of a new one where the last is at its end.

    `plan(previous) -> [N, length, ...]` makes new sequences from the actions done before [N, ...], which are 0 in new
    episodes, or None if all rows are new. It is called only when some row needs one, and then for all.
    """
    carry = carry or {}
    previous = carry.get(DONE_BEFORE)
    if "plan" in carry:
        place, actions = carry["place"], carry["plan"]
        asks = place == 0
        if asks.any():
            actions = torch.where(align_left(asks, actions), plan(previous), actions)
        row = torch.arange(len(actions), device=actions.device)
    else:  # also where another actor has begun the episode
        actions = plan(previous)
        row = torch.arange(len(actions), device=actions.device)
        place = torch.zeros_like(row)
    action = actions[row, place]
    previous = torch.zeros_like(action) if previous is None else previous
    after = {"place": (place + 1) % actions.shape[1], "plan": actions, DONE_BEFORE: action}
    return {"action": action, "previous_action": previous}, after


class Infrequent(Wrapper):
    """Asks `actor` in every `interval`-th decision only, and at the start of an episode.

    Between, a `SequencePolicy` goes on by itself, also beyond its own length; of any other actor the action is held.
    The record has nothing but the action. Raises UsageError for a recurrent actor, whose memory would miss decisions.
    """

    def __init__(self, actor: Any, interval: int) -> None:
        super().__init__(actor)
        if interval < 1:
            raise UsageError(f"an actor is asked at every decision or at every so many, not {interval}")
        if actor.recurrent:
            raise UsageError(
                "a recurrent policy must see every observation: to ask it now and then, it needs no memory"
            )
        self.interval = interval

    @torch.no_grad()
    def act(self, obs: Obs, carry: Record | None = None, *, greedy: bool = False) -> tuple[Record, Record]:
        def plan(previous: Tensor | None) -> Tensor:
            if isinstance(self.actor, SequencePolicy):
                return self.actor.plan(obs, previous, self.interval, greedy=greedy)
            action = self.actor.act(obs, greedy=greedy)[0]["action"]
            return action.unsqueeze(1).expand(-1, self.interval, *action.shape[1:])

        record, after = open_loop(plan, carry)
        return {"action": record["action"]}, after


class Recalling(Wrapper):
    """Records beside the action of `actor` the one that was done before, `previous_action` [N, A]: zeros at the start
    of an episode. Replaces what the actor itself says of it."""

    @torch.no_grad()
    def act(self, obs: Obs, carry: Record | None = None, *, greedy: bool = False) -> tuple[Record, Record]:
        rest = dict(carry or {})
        previous = rest.pop(DONE_BEFORE, None)
        record, after = self.actor.act(obs, rest or None, greedy=greedy)
        previous = torch.zeros_like(record["action"]) if previous is None else previous
        return {**record, "previous_action": previous}, {**after, DONE_BEFORE: record["action"]}
