"""Losses whose minimizer is a value near the best of what the data did, without asking about any other action.

Each is a function of single numbers that keeps their shape; the caller weighs and adds. `residual` is what was found,
Q(s, a) or r + discount V(s'), minus the value: with w = max(x / 2 + 1, 0),

| function | loss of the residual x | minimizer |
|---|---|---|
| `expectile` (losses/regression.py) | abs(tau - 1(x < 0)) x^2 | the expectile tau |
| `quantile` | abs(tau - 1(x < 0)) abs(x) | the quantile tau |
| `implicit_maximum` "chi2" | strength max(x + x^2 / 4, 0) - (1 - strength) x | see there |
| `implicit_maximum` "chi2-exact" | strength (x w - (w - 1)^2) - (1 - strength) x | see there |
| `implicit_maximum` "tv" | strength max(x, 0) - (1 - strength) x | the quantile (2 strength - 1) / strength |
| `gumbel` | (exp z - z - 1) exp(-peak), z = x / temperature | temperature log E exp(Q / temperature) |

`conjugate` is what DICE minimizes over the residuals of V, and `density_ratio`, its slope, what the policy weighs
decisions with. `logit_expectile` and `logit_quantile` are for values that are probabilities, given by their logits.

Sources: f-DVL, arXiv 2302.08560, in the form of its official code; XQL, arXiv 2301.02328 (`gumbel`); O-DICE, arXiv
2402.00348 (`conjugate`); Decoupled Q-Chunking, arXiv 2512.10926 (logits).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from polopt.core.batch import same_shape
from polopt.core.numeric import bounded_exp

MAXIMA = ("chi2", "chi2-exact", "tv")
DIVERGENCES = ("chi2", "reverse-kl")
EDGE = 1e-5  # how near to 0 and 1 a probability comes before its logit is taken


def conjugate(residual: Tensor, divergence: str = "chi2") -> Tensor:
    """f*(x) = max over w >= 0 of w x - f(w), for Pearson's f(w) = (w - 1)^2 or, "reverse-kl", f(w) = w log w.

    chi2: x + x^2 / 4 down to x = -2 and -1 below; reverse-kl: exp(x - 1), beyond x = 21 its tangent.
    """
    _check(divergence, DIVERGENCES)
    if divergence == "reverse-kl":
        return bounded_exp(residual - 1)
    ratio = density_ratio(residual)
    return residual * ratio - (ratio - 1).square()


def density_ratio(residual: Tensor, divergence: str = "chi2") -> Tensor:
    """The w >= 0 that attains `conjugate`, its slope: max(x / 2 + 1, 0) or exp(x - 1)."""
    _check(divergence, DIVERGENCES)
    return bounded_exp(residual - 1) if divergence == "reverse-kl" else (residual / 2 + 1).clamp_min(0)


def implicit_maximum(residual: Tensor, kind: str, strength: float) -> Tensor:
    """strength * G(x) - (1 - strength) * x, with G the conjugate of a divergence whose density ratio is at least 0.

    A value below all that was found is pulled up with slope of at least 2 strength - 1, so `strength` is above 1/2; one
    above is pushed down with 1 - strength, at strength 1 not at all. The kinds, by G:

    - "chi2": max(x + x^2 / 4, 0), the released form. Where everything found is the same number, so is the minimizer.
      It is 0 between -4 and 0 and rises again below: what is more than 4 below the value pulls it down as well.
    - "chi2-exact": Pearson's conjugate. Its minimizer is above a number that all found by
      2 (1 - (1 - strength) / strength).
    - "tv": max(x, 0), total variation.

    Raises ValueError for another kind and for a strength that is not in (1/2, 1].
    """
    _check(kind, MAXIMA)
    if not 0.5 < strength <= 1:
        raise ValueError(f"the strength of an implicit maximum is in (1/2, 1], not {strength}, or it has no minimum")
    if kind == "chi2-exact":
        pull = conjugate(residual)
    else:
        pull = (residual if kind == "tv" else residual + residual.square() / 4).clamp_min(0)
    return strength * pull - (1 - strength) * residual


def gumbel_peak(residual: Tensor, temperature: float, clip: float | None = None) -> Tensor:
    """max(largest z, -1), a detached scalar, z = residual / temperature up to `clip`: what `gumbel` is scaled by.

    Of the whole batch of an optimizer step, so that its pieces add up.
    """
    return _scaled(residual.detach(), temperature, clip).max().clamp_min(-1)


def gumbel(residual: Tensor, temperature: float, peak: Tensor, clip: float | None = None) -> Tensor:
    """(exp z - z - 1) exp(-peak), z = residual / temperature up to `clip`, beyond which there is no slope.

    The reverse KL, known as Gumbel regression: one outlier above the rest outweighs all of them, and by the peak also
    scales them down.
    """
    z = _scaled(residual, temperature, clip)
    return (z - peak).exp() - (z + 1) * (-peak).exp()


def quantile(residual: Tensor, tau: float) -> Tensor:
    """abs(tau - 1(x < 0)) abs(x), the pinball loss: its minimizer is the quantile `tau`, inside (0, 1)."""
    return torch.where(residual < 0, (tau - 1) * residual, tau * residual)


def logit_expectile(logit: Tensor, target: Tensor, tau: float) -> Tensor:
    """Cross-entropy of probabilities sigmoid(logit) beside `target` in [0, 1], times tau where the target is not below
    them and 1 - tau where it is; tau 1/2 is half the cross-entropy.

    The gradient is 0 where sigmoid(logit) is the expectile tau of the targets; the value jumps where a target is
    passed. Shapes are equal; no gradient goes into the target.
    """
    same_shape(logit=logit, target=target)
    entropy = functional.binary_cross_entropy_with_logits(logit, target.detach(), reduction="none")
    return _lean(logit, target, tau) * entropy


def logit_quantile(logit: Tensor, target: Tensor, tau: float) -> Tensor:
    """The pinball loss between logits, so that sigmoid(logit) goes to the quantile `tau` of the targets in [0, 1].

    They are kept 1e-5 away from 0 and 1. Shapes are equal; no gradient goes into the target.
    """
    same_shape(logit=logit, target=target)
    gap = logit - target.detach().clamp(EDGE, 1 - EDGE).logit()
    return _lean(logit, target, tau) * gap.abs()


def _lean(logit: Tensor, target: Tensor, tau: float) -> Tensor:
    low = logit.new_full((), 1 - tau)
    return torch.where(target.detach() >= logit.detach().sigmoid(), tau, low)


def _scaled(residual: Tensor, temperature: float, clip: float | None) -> Tensor:
    z = residual / temperature
    return z if clip is None else z.clamp_max(clip)


def _check(kind: str, kinds: tuple[str, ...]) -> None:
    if kind not in kinds:
        raise ValueError(f"choose one of {', '.join(kinds)}, not '{kind}'")
