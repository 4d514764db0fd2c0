"""Actors, and the capabilities that methods ask of them.

A capability is a base class with a promise. A method asks for capabilities, never for a class of policy, so it runs
with every policy that can serve it; `require` says in one sentence what is missing.

Batches are read by key: `obs`, `action`, and, where a policy says so, `action_mask`, `pre_action`, and for recurrent
policies `hidden` and `first`. [...] stands for the leading dimensions of the batch, [N, T] for rollouts.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from gymnasium import spaces
from torch import Tensor, nn

from polopt.core.batch import Batch
from polopt.core.errors import UsageError
from polopt.core.modules import default_dtype, device_of, dtype_of
from polopt.core.observations import MASK_KEY
from polopt.core.spec import Spec
from polopt.networks.encoders import Obs, first_leaf, is_dict
from polopt.networks.normalizer import Normalizer
from polopt.policies.fields import Path
from polopt.tasks.spaces import check_followed, read_given, without_choice, writer

Record = dict[str, Tensor]


class Actor(nn.Module, ABC):
    """Samples actions.

    `recurrent` policies carry a hidden state, so minibatches split rows, never time. `unit` policies act in [-1, 1];
    `env_action` rescales at the environment, and the batch stores the action as sampled.
    """

    spec: Spec
    recurrent: bool = False
    unit: bool = False
    masks: bool = False  # True: never takes an action that `action_mask` forbids
    family: str = "policy"

    def __init__(self) -> None:
        super().__init__()
        self._carry: Record | None = None

    @abstractmethod
    def act(self, obs: Obs, carry: Record | None = None, *, greedy: bool = False) -> tuple[Record, Record]:
        """Acts on `obs` [N, ...] and returns (record, carry), without gradients.

        Everything in the record [N, ...] is stored in the batch; `action` is always there. The carry [N, ...] is
        given back at the next step; None means that all rows are new, a row of zeros that this row is. Policies
        without memory return an empty one. `greedy` takes the mode in place of a sample.
        """

    def env_action(self, action: Tensor) -> Tensor:
        """What the environment gets for the stored `action` [..., A]: within the bounds and with the space's shape."""
        return action

    def own_action(self, action: Tensor) -> Tensor:
        """The stored action for an action of the environment [..., *space.shape]: the inverse of `env_action`."""
        return action

    def update_normalizer(self, batch: Batch) -> None:
        """Takes the observations of `batch` into the running statistics, if there are any.

        Methods call it at the end of `update`. Reads `obs` and, if present, `mask`.
        """

    def predict(self, obs: Any, *, greedy: bool = True) -> Any:
        """Acts on one numpy observation and returns the action for `env.step`; or on a batch of N, with one more
        dimension in front of every array, and returns N actions, as vector environments take them.

        Observations are read as those of a training environment are, and the parameters say in which precision.
        Recurrent policies remember the episodes so far; call `reset` when new ones begin. Raises UsageError for an
        observation that is not in the environment's space or not finite, or that allows no action.
        """
        spec = self.spec
        with default_dtype(dtype_of(self)):
            seen, single = self._read(obs)
            check_followed(self._carry, len(first_leaf(seen)))
            record, carry = self.act(seen, self._carry, greedy=greedy)
            action = self.env_action(record["action"])
        self._carry = carry if carry else None
        written = writer(spec.action)(action)
        return written[0] if single else written

    def _read(self, obs: Any) -> tuple[Any, bool]:
        """What `predict` was given as a batch on the device of the policy, and whether it is one observation."""
        seen, single = read_given(self.spec, obs)
        mask = legal_actions(seen)
        if mask is not None and (none := without_choice(mask, self.spec.action)).any():
            place = "" if single else f" (row {int(none.int().argmax())})"
            raise UsageError(f"predict was given an observation whose {MASK_KEY} forbids every action{place}")
        return seen.to(device_of(self)), single

    def reset(self) -> None:
        """Forgets the episode that `predict` has followed."""
        self._carry = None


class Scores(Actor):
    """Promise: scores the decisions that this policy recorded."""

    @abstractmethod
    def log_prob(self, batch: Batch, noise: Batch | None = None) -> Tensor:
        """log pi(action | obs) of the recorded decisions, differentiable in the parameters: [...], or with trailing
        dimensions where an action is several decisions (the steps of a chain)."""

    @abstractmethod
    def entropy(self, batch: Batch) -> Tensor:
        """Entropy at the batch's observations, in nats, shaped like `log_prob`; the class says if it is an estimate."""

    def score(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """`log_prob` and `entropy`, of one pass through the network where the family can."""
        return self.log_prob(batch), self.entropy(batch)


class Density(Scores):
    """Promise: `log_prob` of any `batch["action"]`, differentiable in the action where actions are continuous, and an
    exact divergence between two policies of the same family."""

    @abstractmethod
    def kl(self, batch: Batch, other: Any) -> Tensor:
        """KL(self || other) [...] at the batch's observations, exact, differentiable in both. Raises UsageError if
        `other` is of another family."""


class Reparameterized(Actor):
    """Promise: samples through which gradients flow to the parameters."""

    @abstractmethod
    def rsample(self, obs: Obs, n: int | None = None) -> tuple[Tensor, Tensor | None]:
        """Action [B, A] and its log-density [B] at `obs` [B, ...], or None for policies without a density; with `n`,
        that many samples each: [n, B, A] and [n, B]."""

    def decide(self, batch: Batch) -> Batch:
        """This policy's own decisions at `batch["obs"]`, through which gradients flow, for other policies to score.

        A batch of `obs`, `action`, `log_prob` (if the policy has a density) and what policies of its family read
        besides.
        """
        action, log_prob = self.rsample(batch["obs"])
        decisions = batch.select("obs").set("action", action)
        return decisions if log_prob is None else decisions.set("log_prob", log_prob)


class Imitates(Actor):
    """Promise: can be trained on given actions."""

    @abstractmethod
    def imitation_loss(self, batch: Batch, noise: Batch | None = None) -> Tensor:
        """Loss [...] of each decision that is smallest when the policy does what `batch["action"]` did.

        `noise` is what `draw_noise` drew for this batch; without it a random loss draws for itself.
        """

    def draw_noise(self, batch: Batch, times: Tensor | None = None) -> Batch | None:
        """The random numbers of `imitation_loss`, a batch like `batch`; None, and the loss is not random.

        Stored in the batch (`with_noise`) they are split with its rows and can be shared by several policies. `times`
        are the noise levels of policies that have some; by default they are drawn as well.
        """
        return None


class Field(Actor):
    """Promise: a denoised estimate of the action from a noisy one, from which noise, velocity and score follow.

    `path` (see `polopt.policies.fields`) says what a noisy action at a time is.
    """

    path: Path

    @abstractmethod
    def field(self, obs: Obs, x: Tensor, time: Tensor) -> Tensor:
        """E[action | x, time] [..., A] of the noisy action `x` [..., A] at `time` [..., 1], 0 (exclusive) to 1."""


class Enumerates(Density):
    """Promise: finitely many actions, all of them scored at once."""

    @abstractmethod
    def logits(self, batch: Batch) -> Tensor:
        """Unnormalized log-probabilities [..., K], -inf at illegal actions."""

    @abstractmethod
    def probabilities(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Probabilities and log-probabilities, each [..., K]; both are 0 at illegal actions, so that products of the
        two, and sums with a critic's values, stay finite."""


PROMISES: dict[type, str] = {
    Scores: "scores the actions that it took",
    Density: "has a density for any action",
    Reparameterized: "passes gradients through its samples",
    Imitates: "can be trained on given actions",
    Enumerates: "has finitely many actions",
    Field: "denoises actions step by step",
}


def require(actor: Actor, *capabilities: type, by: str) -> None:
    """Raises UsageError, one sentence, for the first capability that `actor` lacks; `by` names the method."""
    for capability in capabilities:
        if not isinstance(actor, capability):
            raise UsageError(f"{by} needs a policy that {PROMISES[capability]}, and a {actor.family} does not")


def require_legal(actor: Actor, spec: Spec) -> None:
    """Raises UsageError, one sentence, where observations say which actions are legal and the actor would not heed it,
    or where `action_mask` does not fit the actions."""
    mask = spec.obs.spaces.get(MASK_KEY) if isinstance(spec.obs, spaces.Dict) else None
    if mask is None:
        return
    if not actor.masks:
        how = "choose another --policy" if spec.discrete else "masks are for Discrete and MultiDiscrete actions"
        said = f"{spec.name} says with {MASK_KEY} which actions are legal, and a {actor.family} ignores it"
        raise UsageError(f"{said}: {how}")
    count = int(spec.action.nvec.sum()) if isinstance(spec.action, spaces.MultiDiscrete) else spec.num_actions
    if mask.shape is None or mask.shape[-1:] != (count,):
        raise UsageError(f"the {MASK_KEY} of {spec.name} is {mask}, not one flag for each of its {count} actions")


class NetworkActor(Actor):
    """An actor with one network, feed-forward or recurrent.

    A recurrent one records `hidden` [N, H], the state before the step, and scores a window [N, T] from its first
    column on, with a state of zero wherever `first` is True.
    """

    def __init__(self, spec: Spec, net: nn.Module) -> None:
        super().__init__()
        self.spec = spec
        self.net = net
        self.recurrent = bool(getattr(net, "recurrent", False))

    @property
    def normalizer(self) -> Normalizer | None:
        return getattr(self.net, "normalizer", None)

    def update_normalizer(self, batch: Batch) -> None:
        if self.normalizer is not None:
            self.normalizer.update(batch["obs"], batch.get("mask", None))

    def outputs(self, batch: Batch) -> Tensor:
        """The network's outputs [..., outputs] for a batch; reads `obs`, and `hidden` and `first` if recurrent."""
        if self.recurrent:
            return self.net(batch["obs"], batch["hidden"].select(-2, 0), batch["first"])
        return self.net(batch["obs"])

    def step(self, obs: Obs, carry: Record | None) -> tuple[Tensor, Record, Record]:
        """One step of acting: the outputs [N, outputs], what to record besides the action, and the next carry."""
        if not self.recurrent:
            return self.net(obs), {}, {}
        net: Any = self.net
        hidden = carry["hidden"] if carry else net.new_hidden(obs)
        outputs, after = net.step(obs, hidden)
        return outputs, {"hidden": hidden}, {"hidden": after}

    def memoryless(self, obs: Obs) -> Tensor:
        """The outputs for single observations. Raises UsageError for a recurrent policy, which needs a window."""
        if self.recurrent:
            raise UsageError("a recurrent policy cannot be sampled at single observations: use a feed-forward network")
        return self.net(obs)


def with_noise(actor: Imitates, batch: Batch) -> Batch:
    """A shallow copy of the batch with the key `noise`, where `imitation_loss` of the actor needs any."""
    batch = batch.clone(False)
    noise = actor.draw_noise(batch)
    return batch if noise is None else batch.set("noise", noise)


def same_family(one: Actor, other: Any) -> None:
    """Raises UsageError unless both are of one family, so that a divergence between them is defined here."""
    family = getattr(other, "family", type(other).__name__)
    if family != one.family:
        raise UsageError(f"the divergence between a {one.family} and a {family} has no closed form")


def legal_actions(obs: Obs) -> Tensor | None:
    """The mask of legal actions in a dict observation, or None."""
    return obs[MASK_KEY].bool() if is_dict(obs) and MASK_KEY in obs.keys() else None


def legal_in(batch: Batch) -> Tensor | None:
    """`action_mask` of a batch; without one, that of its observation; without that, None."""
    return batch[MASK_KEY].bool() if MASK_KEY in batch.keys() else legal_actions(batch["obs"])
