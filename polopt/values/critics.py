"""Critics: an ensemble of action values, and a state value with what windows of experience ask of it."""

from __future__ import annotations

import torch
from gymnasium import spaces
from torch import Tensor, nn
from torch.nn import functional

from polopt.core.batch import Batch
from polopt.core.errors import UsageError
from polopt.core.spec import Spec
from polopt.networks import Network
from polopt.networks.build import FeedForward
from polopt.networks.encoders import Obs
from polopt.networks.normalizer import Normalizer

HEADS = {"scalar": 1, "gaussian": 2, "generalized": 3}  # and their outputs


class QEnsemble(nn.Module):
    """Q(obs, action) of `members` critics with trunks of their own, computed together.

    `forward(obs, action)` takes actions as the policy acts (not as the environment gets them), [..., A], or int64 [...]
    of a Discrete and [..., D] of a MultiDiscrete space, which become one-hot inputs, and returns [E, ...] with head
    "scalar"; with head "gaussian" the pair (mean, std), each [E, ...], std = softplus of the second output, of the
    return's distribution; with head "generalized" three such, (mean, shape, scale), of the last two softplus. Actions
    [n, B, A] may stand beside observations [B, ...].
    `members` of `forward` asks the first so many alone, at their cost. Raises UsageError for other action spaces and
    for recurrent networks.
    """

    def __init__(
        self,
        spec: Spec,
        network: Network,
        members: int = 2,
        head: str = "scalar",
        normalizer: Normalizer | None = None,
    ) -> None:
        super().__init__()
        space = spec.action
        self.counts: list[int] = []  # values of each factor of a discrete action
        if isinstance(space, spaces.Discrete):
            self.counts = [int(space.n)]
        elif isinstance(space, spaces.MultiDiscrete):
            self.counts = space.nvec.reshape(-1).tolist()
        elif not isinstance(space, spaces.Box):
            raise UsageError(f"a Q function needs Box or discrete actions; {spec.name} has {spec.action}")
        self.factors = isinstance(space, spaces.MultiDiscrete)
        if network.recurrent != "none":
            raise UsageError("a Q function is feed-forward: set the network's recurrent to none")
        if head not in HEADS:
            raise ValueError(f"the head of a Q function is one of {', '.join(HEADS)}, not '{head}'")
        self.members = members
        self.head = head
        self.network = network.build(
            spec.obs,
            HEADS[head],
            inputs_extra=sum(self.counts) or spec.action_dim,
            ensemble=members,
            head_gain=1.0,
            normalizer=normalizer,
        )

    def forward(self, obs: Obs, action: Tensor, members: int | None = None) -> Tensor | tuple[Tensor, ...]:
        inputs = (obs, self.inputs(action))
        outputs = self.network(*inputs) if members is None else self.network(*inputs, members)
        if self.head == "scalar":
            return outputs.squeeze(-1)
        mean, *raw = outputs.unbind(-1)
        return mean, *map(functional.softplus, raw)

    def inputs(self, action: Tensor) -> Tensor:
        """What the network reads of actions: one-hot vectors of discrete ones, [..., inputs]."""
        if not self.counts:
            return action
        parts = action.unbind(-1) if self.factors else (action,)
        hot = [functional.one_hot(part, count) for part, count in zip(parts, self.counts, strict=True)]
        return torch.cat(hot, -1).to(torch.get_default_dtype())


class StateValue(nn.Module):
    """V(obs), feed-forward or recurrent.

    `value(batch)` is differentiable and has the batch's shape. A recurrent critic reads whole rows of a window: `first`
    [..., T] and `critic_hidden` [..., T, H], the hidden state BEFORE each step, of which it takes the first column;
    an actor that carries the critic's memory records it by `step`.

    With `outputs` there are so many values of each observation (of objectives, of members), and they stand in front:
    wherever a shape is said below, it is [outputs, ...].
    """

    def __init__(
        self, spec: Spec, network: Network, normalizer: Normalizer | None = None, outputs: int | None = None
    ) -> None:
        super().__init__()
        self.outputs = outputs
        self.network = network.build(spec.obs, outputs or 1, head_gain=1.0, normalizer=normalizer)

    @property
    def recurrent(self) -> bool:
        return not isinstance(self.network, FeedForward)

    def forward(self, obs: Obs, hidden: Tensor | None = None, first: Tensor | None = None) -> Tensor:
        """Values [...] of `obs`; a recurrent critic also needs `hidden` [..., H] before the window and `first`."""
        return self._unroll(obs, hidden, first)[0]

    def value(self, batch: Batch) -> Tensor:
        """Values of `batch["obs"]`, shaped like the batch, with gradient."""
        return self._unroll(*self._window(batch))[0]

    @torch.no_grad()
    def values(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(value, next_value) of a window, both [..., T], detached.

        next_value is the value of the true successor: of `final_obs` where the decision ends its episode and in the
        last column, elsewhere the value of the next column. It is not zeroed at terminations: that is for `gae`.
        """
        value, states = self._unroll(*self._window(batch))
        ends = batch["terminated"] | batch["truncated"]
        ends[..., -1] = True  # `|` made a new tensor: the batch is not written
        next_value = value.roll(-1, -1)
        final_obs = batch["final_obs"][ends]
        if states is None:
            next_value[..., ends] = self._unroll(final_obs)[0]
        else:
            next_value[..., ends] = self.step(final_obs, states[ends])[0]
        return value, next_value

    def step(self, obs: Obs, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """One step of a recurrent critic: `hidden` [..., H] before -> value [...], hidden state after."""
        if isinstance(self.network, FeedForward):
            raise TypeError("this critic has no memory")
        outputs, hidden = self.network.step(obs, hidden)
        return self._in_front(outputs), hidden

    def new_hidden(self, obs: Obs) -> Tensor:
        """The hidden state [..., H] with which an episode begins: zeros."""
        if isinstance(self.network, FeedForward):
            raise TypeError("this critic has no memory")
        return self.network.new_hidden(obs)

    def _window(self, batch: Batch) -> tuple[Obs, Tensor | None, Tensor | None]:
        if isinstance(self.network, FeedForward):
            return batch["obs"], None, None
        return batch["obs"], batch["critic_hidden"][..., 0, :], batch["first"]

    def _unroll(
        self, obs: Obs, hidden: Tensor | None = None, first: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        if isinstance(self.network, FeedForward):
            return self._in_front(self.network(obs)), None
        if hidden is None or first is None:
            raise ValueError("a recurrent critic needs the hidden state before the window, and `first`")
        outputs, states = self.network.unroll(obs, hidden, first)
        return self._in_front(outputs), states

    def _in_front(self, outputs: Tensor) -> Tensor:
        return outputs.squeeze(-1) if self.outputs is None else outputs.movedim(-1, 0)
