"""Many policies of one network at once, each with parameters of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from polopt.core.errors import UsageError
from polopt.core.functional import assign
from polopt.networks.encoders import Obs
from polopt.policies.base import Record
from polopt.policies.deterministic import DeterministicPolicy
from polopt.policies.wrappers import Wrapper


def outputs_of(net: nn.Module, genotypes: Tensor, obs: Tensor) -> Tensor:
    """The outputs [P, B, outputs] of a network with the parameters of each of `genotypes` [P, G], for observations
    [P, B, O], or [B, O] that all of them see; differentiable in both.

    The G numbers are the network's parameters in their order, as `polopt.core.functional.flatten` gives them.
    """
    named = dict(net.named_parameters())
    pieces = genotypes.split([value.numel() for value in named.values()], 1)
    stacked = {name: piece.view(-1, *named[name].shape) for name, piece in zip(named, pieces, strict=True)}
    each = vmap(lambda parameters, seen: functional_call(net, parameters, (seen,)), (0, 0 if obs.dim() == 3 else None))
    return each(stacked, obs)


class Population(Wrapper):
    """Row i of a task acts with the parameters `genotypes[i]`, in the network of `actor`, which gives no more than its
    shape. Set `genotypes` [N, G] before the episodes that they are to play.

    Raises UsageError for a recurrent policy.
    """

    actor: DeterministicPolicy

    def __init__(self, actor: DeterministicPolicy) -> None:
        super().__init__(actor)
        if actor.recurrent:
            raise UsageError("a population acts on single observations: use a feed-forward network")
        self.genotypes = torch.zeros(0)

    @property
    def net(self) -> nn.Module:
        return self.actor.net

    def actions(self, genotypes: Tensor, obs: Tensor) -> Tensor:
        """What each of `genotypes` [P, G] does, [P, B, A], as `outputs_of` has it."""
        return outputs_of(self.net, genotypes, obs).tanh()

    @torch.no_grad()
    def act(self, obs: Obs, carry: Record | None = None, *, greedy: bool = False) -> tuple[Record, Record]:
        if len(obs) != len(self.genotypes):
            raise UsageError(f"a population of {len(self.genotypes)} acts in as many rows, not in {len(obs)}")
        return {"action": self.actions(self.genotypes, obs.unsqueeze(1)).squeeze(1)}, {}


class Chosen(Wrapper):
    """Acts with the parameters [G] that `choose(descriptor [D])` gives, in the network of `actor`; before `given` was
    called, with those of `actor`."""

    def __init__(self, actor: DeterministicPolicy, choose: Callable[[Tensor], Tensor]) -> None:
        super().__init__(actor)
        self._choose = choose

    def given(self, descriptor: Sequence[float]) -> Chosen:
        """Acts from here on for this descriptor; returns itself."""
        genotype = self._choose(torch.as_tensor(descriptor, dtype=torch.get_default_dtype()))
        assign(list(self.actor.parameters()), genotype)
        self.reset()
        return self
