"""The norm of a gradient, and how much it is cut."""

from __future__ import annotations

import torch
from torch import Tensor

from polopt.core import ranks, shards
from polopt.core.functional import flatten

SMALL = 1 << 17  # elements up to which one norm of a copy takes less time than a norm of each gradient


def norm_and_factor(grads: list[Tensor], bound: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """The global norm of gradients, on `device`, and what to multiply them by for one of at most `bound`.

    As in `torch.nn.utils.clip_grad_norm_`, in half of its time for small networks. Compiled it is a sum of squares,
    which becomes part of what makes the gradients, where the norms of a list stay calls.
    """
    norm = torch.zeros((), device=device)  # where nothing of the loss depends on the parameters
    if grads and torch.compiler.is_compiling():  # none is divided there: --shard refuses --compile
        norm = torch.stack([grad.square().sum() for grad in grads]).sum().sqrt()
        return norm, (bound / (norm + 1e-6)).clamp(max=1.0)
    own = [grad for grad in grads if shards.divided(grad)]
    if own:  # of the others every process holds all
        square = torch.stack(torch._foreach_norm([*map(shards.local, own)])).square().sum()
        ranks.add_([square])
        grads = [grad for grad in grads if not shards.divided(grad)]
        norm = square.sqrt()
    if grads and not own and sum(grad.numel() for grad in grads) <= SMALL:
        norm = torch.linalg.vector_norm(flatten(grads))
    elif grads:
        norm = torch.linalg.vector_norm(torch.stack([*torch._foreach_norm(grads), *([norm] if own else [])]))
    return norm, (bound / (norm + 1e-6)).clamp(max=1.0)
