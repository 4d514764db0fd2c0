"""Numbers at the ends of their range: exponentials of log-probability ratios that stay finite, and the smallest."""

from __future__ import annotations

import torch
from torch import Tensor

BOUND = 20.0  # exp(20) is 5e8: no update can mean a larger ratio, and its square still fits a float32


def bounded_exp(x: Tensor) -> Tensor:
    """exp(x) up to x = 20 and its tangent beyond, so that value and slope are finite and keep their signs."""
    value = x.clamp_max(BOUND).exp()
    return torch.addcmul(value, value, (x - BOUND).clamp_min(0))


def bounded_expm1(x: Tensor) -> Tensor:
    """exp(x) - 1, exact near 0, with the tangent beyond x = 20 as in `bounded_exp`."""
    low = x.clamp_max(BOUND)
    return torch.addcmul(torch.expm1(low), low.exp(), (x - BOUND).clamp_min(0))


def bounded_exps(x: Tensor) -> tuple[Tensor, Tensor]:
    """`bounded_exp` and `bounded_expm1` of the same numbers, to the bit, in fewer operations than the two."""
    low, beyond = x.clamp_max(BOUND), (x - BOUND).clamp_min(0)
    value = low.exp()
    return torch.addcmul(value, value, beyond), torch.addcmul(torch.expm1(low), value, beyond)


def flushes_denormal() -> bool:
    """Whether this thread computes with 0 in the place of numbers too small for the normal form
    (`torch.set_flush_denormal`)."""
    return float(torch.full((), 1e-39, dtype=torch.float32).mul(1e3)) == 0.0
