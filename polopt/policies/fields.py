"""Denoised estimates and what is made of them: noise, velocity and score, mixtures, guidance, sampling.

A noisy sample at time t is x = alpha(t) x0 + sigma(t) e with e ~ N(0, I); t is in [0, 1], 0 is data and 1 is noise. A
field is E[x0 | x, t], the denoised estimate: it is finite everywhere, and the noise, the velocity and the score follow
from it by the path (alpha, sigma). Fields of one state of knowledge can so be mixed and guided whatever their networks
predict and whatever path they were trained on.

`time` has a trailing dimension of 1, [..., 1] beside x [..., A], and broadcasts: [1] is one time for all rows. A field
may have a time for each coordinate, [..., A]: a coordinate at time 1 says nothing, one at time 0 is given. One field of
several things is so the conditional of any of them given others, by the schedule that `sample` follows.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from polopt.core.errors import UsageError
from polopt.networks.encoders import Obs

Gradient = Callable[[Obs, Tensor, Tensor], Tensor]
Edit = Callable[[int, Tensor], Tensor]


class Path(ABC):
    """How data becomes noise: x = alpha(t) x0 + sigma(t) e. alpha falls from 1, sigma rises from 0."""

    @abstractmethod
    def alpha(self, time: Tensor) -> Tensor: ...

    @abstractmethod
    def sigma(self, time: Tensor) -> Tensor: ...

    @abstractmethod
    def slopes(self, time: Tensor) -> tuple[Tensor, Tensor]:
        """The derivatives of alpha and sigma with respect to time."""

    @abstractmethod
    def time_at(self, ratio: Tensor) -> Tensor:
        """The time at which alpha / sigma, the root of the signal-to-noise ratio, is `ratio`; at most 1."""

    def ratio(self, time: Tensor) -> Tensor:
        """alpha / sigma."""
        return self.alpha(time) / self.sigma(time)

    def noised(self, x0: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        """x = alpha x0 + sigma noise."""
        return self.alpha(time) * x0 + self.sigma(time) * noise

    def noise(self, x: Tensor, x0: Tensor, time: Tensor) -> Tensor:
        """The noise that made x out of x0; not defined at t = 0."""
        return (x - self.alpha(time) * x0) / self.sigma(time)

    def velocity(self, x: Tensor, x0: Tensor, time: Tensor) -> Tensor:
        """dx/dt = alpha' x0 + sigma' noise."""
        alpha_slope, sigma_slope = self.slopes(time)
        return alpha_slope * x0 + sigma_slope * self.noise(x, x0, time)

    def score(self, x: Tensor, x0: Tensor, time: Tensor) -> Tensor:
        """The gradient of log p_t(x), -noise / sigma (Tweedie's formula)."""
        return -self.noise(x, x0, time) / self.sigma(time)

    def from_noise(self, x: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        """x0 from the noise; not defined where alpha is 0."""
        return (x - self.sigma(time) * noise) / self.alpha(time)

    def from_velocity(self, x: Tensor, velocity: Tensor, time: Tensor) -> Tensor:
        """x0 from the velocity."""
        alpha, sigma = self.alpha(time), self.sigma(time)
        alpha_slope, sigma_slope = self.slopes(time)
        return (sigma_slope * x - sigma * velocity) / (alpha * sigma_slope - sigma * alpha_slope)

    def step(self, x: Tensor, x0: Tensor, time: Tensor, to: Tensor) -> Tensor:
        """x at the earlier time `to`, with the same noise: DDIM (arXiv 2010.02502, equation 12); a step of Euler's
        method on the linear path."""
        return self.noised(x0, self.noise(x, x0, time), to)

    def posterior(self, x: Tensor, x0: Tensor, time: Tensor, to: Tensor) -> Tensor:
        """Mean of q(x_to | x_time = x, x0) at an earlier time `to`: a step of DDPM (arXiv 2006.11239, equation 7)."""
        direction = self.sigma(to) * self._kept(time, to)
        return self.alpha(to) * x0 + direction * self.noise(x, x0, time)

    def posterior_std(self, time: Tensor, to: Tensor) -> Tensor:
        """Standard deviation of q(x_to | x_time, x0); 0 at `to` = 0."""
        return self.sigma(to) * (1.0 - self._kept(time, to).square()).clamp_min(0.0).sqrt()

    def _kept(self, time: Tensor, to: Tensor) -> Tensor:
        """(alpha / sigma at `time`) / (alpha / sigma at `to`), which is 0 at `to` = 0."""
        return self.alpha(time) * self.sigma(to) / (self.alpha(to) * self.sigma(time))


class Linear(Path):
    """x = (1 - t) x0 + t noise: straight lines, the path of rectified flow (arXiv 2209.03003)."""

    def alpha(self, time: Tensor) -> Tensor:
        return 1.0 - time

    def sigma(self, time: Tensor) -> Tensor:
        return time

    def slopes(self, time: Tensor) -> tuple[Tensor, Tensor]:
        return -torch.ones_like(time), torch.ones_like(time)

    def time_at(self, ratio: Tensor) -> Tensor:
        return 1.0 / (1.0 + ratio)


class VariancePreserving(Path):
    """alpha^2 + sigma^2 = 1 and -log alpha^2 = low t + (high - low) t^2 / 2: a rate of noise that rises from `low` to
    `high` (arXiv 2011.13456, appendix C)."""

    def __init__(self, low: float = 0.1, high: float = 10.0) -> None:
        self.low = low
        self.high = high

    def decay(self, time: Tensor) -> Tensor:
        """-log alpha^2."""
        return self.low * time + 0.5 * (self.high - self.low) * time.square()

    def alpha(self, time: Tensor) -> Tensor:
        return (-0.5 * self.decay(time)).exp()

    def sigma(self, time: Tensor) -> Tensor:
        return (-torch.expm1(-self.decay(time))).sqrt()

    def slopes(self, time: Tensor) -> tuple[Tensor, Tensor]:
        half = 0.5 * (self.low + (self.high - self.low) * time)
        alpha = self.alpha(time)
        return -half * alpha, half * alpha.square() / self.sigma(time)

    def time_at(self, ratio: Tensor) -> Tensor:
        decay = torch.log1p(ratio.clamp_min(torch.finfo(ratio.dtype).tiny ** 0.25) ** -2)
        root = (self.low**2 + 2.0 * (self.high - self.low) * decay).sqrt()
        return (2.0 * decay / (self.low + root)).clamp_max(1.0)


class Cosine(Path):
    """alpha = cos(angle) / cos(offset), sigma^2 = 1 - alpha^2, with an angle that grows linearly in time (arXiv
    2102.09672, section 3.2). It ends at alpha = `end`, where the released code limits the rate of noise."""

    def __init__(self, offset: float = 0.008, end: float = 0.01) -> None:
        self.start = 0.5 * math.pi * offset / (1.0 + offset)
        self.width = math.acos(end * math.cos(self.start)) - self.start

    def alpha(self, time: Tensor) -> Tensor:
        return (self.start + self.width * time).cos() / math.cos(self.start)

    def sigma(self, time: Tensor) -> Tensor:
        # 1 - alpha^2 by the addition theorem, exact also near t = 0.
        angle = self.width * time
        return (angle.sin() * (angle + 2.0 * self.start).sin()).sqrt() / math.cos(self.start)

    def slopes(self, time: Tensor) -> tuple[Tensor, Tensor]:
        slope = -self.width * (self.start + self.width * time).sin() / math.cos(self.start)
        return slope, -slope * self.alpha(time) / self.sigma(time)

    def time_at(self, ratio: Tensor) -> Tensor:
        alpha = ratio / (1.0 + ratio.square()).sqrt()
        return (((alpha * math.cos(self.start)).acos() - self.start) / self.width).clamp(0.0, 1.0)


class Denoises(Protocol):
    """What is needed of a field: a policy with the capability `Field`, or anything made here."""

    @property
    def path(self) -> Path: ...

    def field(self, obs: Obs, x: Tensor, time: Tensor) -> Tensor: ...


class Composed:
    """A field given by a function."""

    def __init__(self, path: Path, function: Callable[[Obs, Tensor, Tensor], Tensor]) -> None:
        self.path = path
        self.function = function

    def field(self, obs: Obs, x: Tensor, time: Tensor) -> Tensor:
        return self.function(obs, x, time)


def mix_fields(fields: Sequence[Denoises], weights: Sequence[float]) -> Composed:
    """The field of prod_k p_k^w_k at every noise level: sum_k w_k x0_k + (1 - sum_k w_k) x / alpha.

    Weights that sum to 1 mix scores convexly; with others (each 1 is the "and" of compositional diffusion, arXiv
    2206.01714) the last term keeps the scores, not the estimates, adding up. It is not finite where alpha is 0, so do
    not begin at t = 1 of the linear path there. The result is on the path of the first field. A field on another path
    is asked at its own time of equal alpha / sigma, with x rescaled; if its path never gets so noisy, at t = 1.
    Raises UsageError unless there is one weight for each field, and if policies normalize observations differently.
    """
    if len(fields) != len(weights) or not fields:
        raise UsageError(f"mixing needs one weight for each field, not {len(weights)} for {len(fields)}")
    normalizers = [getattr(each, "normalizer", None) for each in fields]
    if any(_statistics(each) != _statistics(normalizers[0]) for each in normalizers[1:]):
        raise UsageError("policies that are mixed must normalize observations with the same statistics")
    path = fields[0].path
    rest = 1.0 - sum(weights)

    def field(obs: Obs, x: Tensor, time: Tensor) -> Tensor:
        total = x * (rest / path.alpha(time)) if abs(rest) > 1e-9 else torch.zeros_like(x)
        for each, weight in zip(fields, weights):
            if each.path is path:
                total = total + weight * each.field(obs, x, time)
                continue
            # At equal alpha / sigma the two x differ by the ratio of the sigmas; at time 0 they are the same.
            given = time == 0
            noisy = torch.where(given, 1.0, time)
            own = torch.where(given, 0.0, each.path.time_at(path.ratio(noisy)))
            scale = torch.where(given, 1.0, each.path.sigma(own) / path.sigma(noisy))
            total = total + weight * each.field(obs, x * scale, own)
        return total

    return Composed(path, field)


def guide(field: Denoises, gradient: Gradient, scale: float) -> Composed:
    """Tilts p_t by exp(scale * f_t): x0 + scale * sigma^2 / alpha * gradient, with gradient(obs, x, time) = grad_x f_t.

    Sampling runs without gradients: `gradient_of` turns a function f into its gradient anyway. The factor is not
    finite where alpha is 0, at t = 1 of the linear path.
    """
    path = field.path

    def guided(obs: Obs, x: Tensor, time: Tensor) -> Tensor:
        factor = scale * path.sigma(time).square() / path.alpha(time)
        return field.field(obs, x, time) + factor * gradient(obs, x, time)

    return Composed(path, guided)


def gradient_of(function: Callable[[Obs, Tensor, Tensor], Tensor]) -> Gradient:
    """grad_x of `function(obs, x, time)` [...], detached, also inside of `torch.no_grad()`."""

    def gradient(obs: Obs, x: Tensor, time: Tensor) -> Tensor:
        with torch.enable_grad():
            inputs = x.detach().requires_grad_()
            (slope,) = torch.autograd.grad(function(obs, inputs, time).sum(), inputs)
        return slope

    return gradient


def sample(field: Denoises, obs: Obs, x: Tensor, times: Tensor | Sequence[float], edit: Edit | None = None) -> Tensor:
    """Follows the field from noise x [..., A] at times[0] down to times[-1], deterministically; returns x there.

    `times` is [K], or [K, A] with a time for each coordinate. No time rises, one falls in every step, and a coordinate
    whose time does not fall stays as it is, to the bit: held at 0 it is given, held at 1 unknown. `edit(i, x)`, if any,
    replaces x before step i: nudges, which no field can express. Gradients flow through, unless the caller forbids
    them. Raises ValueError for other times.
    """
    times = torch.as_tensor(times, dtype=x.dtype, device=x.device)
    times = times.unsqueeze(-1) if times.dim() == 1 else times
    falls = times[1:] < times[:-1]
    if len(times) < 2 or not bool((times[1:] <= times[:-1]).all() and falls.any(-1).all()):
        raise ValueError("times must not rise, one of them must fall in every step, and there must be two at least")
    for index, (time, to, fall) in enumerate(zip(times, times[1:], falls)):
        if edit is not None:
            x = edit(index, x)
        x0 = field.field(obs, x, time)
        # What stays is not computed at its own time: at 0 a path has no noise to speak of.
        after = field.path.step(x, x0, torch.where(fall, time, 1.0), torch.where(fall, to, 0.0))
        x = torch.where(fall, after, x)
    return x


def _statistics(normalizer: Any) -> list[list[float]]:
    return [] if normalizer is None else [value.flatten().tolist() for value in normalizer.buffers()]
