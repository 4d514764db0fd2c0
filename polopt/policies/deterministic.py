"""A deterministic policy, for TD3 and its relatives."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from polopt.core.batch import Batch
from polopt.core.spec import Spec
from polopt.networks.encoders import Obs
from polopt.policies.base import Imitates, Record, Reparameterized
from polopt.policies.boxes import BoxActor


class DeterministicPolicy(BoxActor, Reparameterized, Imitates):
    """tanh(network(obs)), in units of [-1, 1]; reads `obs` and `action` [..., A] and records `action`.

    It explores only inside a `Noisy` wrapper. It has no density: `rsample` returns None for the log-density.
    """

    family = "deterministic policy"
    unit = True

    def __init__(self, spec: Spec, net: nn.Module) -> None:
        super().__init__(spec, net)

    @torch.no_grad()
    def act(self, obs: Obs, carry: Record | None = None, *, greedy: bool = False) -> tuple[Record, Record]:
        outputs, record, carry = self.step(obs, carry)
        return {"action": outputs.tanh(), **record}, carry

    def rsample(self, obs: Obs, n: int | None = None) -> tuple[Tensor, None]:
        action = self.memoryless(obs).tanh()
        return (action if n is None else action.expand(n, *action.shape)), None

    def imitation_loss(self, batch: Batch, noise: Batch | None = None) -> Tensor:
        """Squared error [...], averaged over the coordinates of the action as in TD3+BC (arXiv 2106.06860, eq. 3)."""
        return (self.outputs(batch).tanh() - batch["action"]).square().mean(-1)
