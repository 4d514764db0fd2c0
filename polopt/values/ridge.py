"""Ridge regression on features, with how far it may be wrong: what methods with linear values share.

    Lambda = regularizer I + sum phi phi^T          weights w = Lambda^-1 sum phi y
    width(phi) = sqrt(phi^T Lambda^-1 phi)          of coordinates: sum_i phi_i sqrt((Lambda^-1)_ii)

LSVI-UCB (Jin et al. 2020, arXiv 1907.05388) adds a multiple of the width to values, PEVI (Jin, Yang and Wang 2021,
arXiv 2012.15085) subtracts one; that of coordinates serves sets of models with a factor for each coordinate (Liu and Xu
2024, arXiv 2402.15399). Everything is float64.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from polopt.core.errors import RunError, UsageError


class Ridge(nn.Module):
    """Regressions of `outputs` targets on `dim` features, independent ones side by side: (seeds, H), say.

    Buffers, so checkpoints have them: `covariance` [*batch, d, d], which is Lambda, and `moment` [*batch, d, m], the
    sum of phi y. Where the targets are the indicators of m successors, the weights are the transitions of a linear
    model, and `weights @ V` [d] the regression of any V on the features: LSVI need not go through its data again.

    Args:
        dim: d, number of features.
        outputs: m, number of targets that are known when a row is seen; 0 where they change, as with `solve`.
        batch: shape of the regressions side by side.
        regularizer: at least 0; at 0 there is no solution before the features have spanned all dimensions.

    Raises UsageError for a negative regularizer.
    """

    covariance: Tensor
    moment: Tensor

    def __init__(self, dim: int, outputs: int = 0, batch: tuple[int, ...] = (), regularizer: float = 1.0) -> None:
        super().__init__()
        if regularizer < 0:
            raise UsageError(f"the regularizer of a ridge must be at least 0, not {regularizer}")
        self.regularizer = regularizer
        start = regularizer * torch.eye(dim, dtype=torch.float64)
        self.register_buffer("covariance", start.repeat(*batch, 1, 1))
        self.register_buffer("moment", torch.zeros(*batch, dim, outputs, dtype=torch.float64))

    def add(self, features: Tensor, targets: Tensor | None = None, weight: Tensor | None = None) -> None:
        """Takes in n rows of each regression: features [*batch, n, d], targets [*batch, n, m], weight [*batch, n].

        A row of weight 0 might as well not be there. Raises ValueError for other shapes, and for targets that are
        missing where the constructor named some.
        """
        features = features.to(self.covariance)
        rows, outputs = features.shape[:-1], self.moment.shape[-1]
        if features.shape != (*self.covariance.shape[:-2], *rows[-1:], self.covariance.shape[-1]):
            raise ValueError(f"features {tuple(features.shape)} do not fit a ridge {tuple(self.covariance.shape)}")
        if (targets is None) != (outputs == 0) or (targets is not None and targets.shape != (*rows, outputs)):
            given = None if targets is None else tuple(targets.shape)
            raise ValueError(f"{outputs} targets of {tuple(rows)} rows, not {given}")
        if weight is not None and weight.shape != rows:
            raise ValueError(f"a weight of {tuple(rows)} rows, not {tuple(weight.shape)}")
        weighted = features if weight is None else features * weight.to(features).unsqueeze(-1)
        self.covariance += weighted.mT @ features
        if targets is not None:
            self.moment += weighted.mT @ targets.to(features)

    def weights(self) -> Tensor:
        """[*batch, d, m]: the regression of the targets that were seen. Raises RunError as `factor` does."""
        return self.solve(self.moment)

    def solve(self, moment: Tensor) -> Tensor:
        """Lambda^-1 moment, [*batch, d, k] like `moment`: the regression of targets whose sum of phi y is `moment`."""
        return torch.cholesky_solve(moment.to(self.covariance), self.factor())

    def width(self, features: Tensor) -> Tensor:
        """sqrt(phi^T Lambda^-1 phi) [*batch, n] of features [..., n, d], whose leading dimensions may be fewer."""
        rows = features.to(self.covariance)
        return torch.linalg.solve_triangular(self.factor(), rows.mT, upper=False).norm(dim=-2)

    def coordinate_width(self, features: Tensor) -> Tensor:
        """sum_i phi_i sqrt((Lambda^-1)_ii) [*batch, n] of features [..., n, d] that are at least 0."""
        rows = features.to(self.covariance)
        deviation = torch.cholesky_inverse(self.factor()).diagonal(dim1=-2, dim2=-1).sqrt()
        return (rows @ deviation.unsqueeze(-1)).squeeze(-1)

    def log_det(self) -> Tensor:
        """log det Lambda [*batch]: where it has grown by log 2, there is much that an older plan does not know.

        Plans made anew at doublings of it are few, O(d log n) for n rows (Abbasi-Yadkori et al. 2011, NeurIPS).
        """
        return 2 * self.factor().diagonal(dim1=-2, dim2=-1).log().sum(-1)

    def factor(self) -> Tensor:
        """The Cholesky factor [*batch, d, d] of Lambda, lower.

        Raises RunError, one sentence, when Lambda is singular, up to rounding, or not finite.
        """
        factor, failed = torch.linalg.cholesky_ex(self.covariance)
        if not self.covariance.isfinite().all():
            raise RunError("the features of a ridge are not all finite")
        pivots = factor.diagonal(dim1=-2, dim2=-1).square()
        dim = pivots.shape[-1]
        lost = (failed > 0) | (pivots.amin(-1) <= dim * torch.finfo(pivots.dtype).eps * pivots.amax(-1))
        if lost.any():
            raise RunError(
                f"a ridge with regularizer {self.regularizer:g} is singular: what it has seen does not span all {dim} "
                "features; a larger regularizer makes it solvable"
            )
        return factor


def greedy(q: Tensor) -> Tensor:
    """The value of the best action: [..., A] -> [...]."""
    return q.amax(-1)


def linear_values(
    features: Tensor,
    reward: Tensor,
    successors: Tensor,
    width: Tensor | float,
    high: Tensor | float,
    *,
    low: Tensor | float = 0.0,
    expected: Callable[[Tensor, Tensor], Tensor] = lambda model, value: (model @ value.unsqueeze(-1)).squeeze(-1),
    improve: Callable[[Tensor], Tensor] = greedy,
) -> tuple[Tensor, Tensor]:
    """Backward induction in a linear model of finitely many states: q [*batch, H, S, A] and V [*batch, H + 1, S].

        q_h = clip(phi^T (reward_h + expected(successors_h, V_{h+1})) + width_h, low_h, high_h),   V_h = improve(q_h)

    with V_H = 0. `width` is +beta Ridge.width for LSVI-UCB, -beta Ridge.width for PEVI, 0 for the model itself.

    Args:
        features: [S, A, d], or [H, S, A, d] where they depend on the step.
        reward: [*batch, H, d]; successors: [*batch, H, d, S], such as `Ridge.weights` of indicators.
        width: [*batch, H, S, A]. low, high: [H], or one number for all steps.
        expected: what V [*batch, S] is worth to each coordinate of successors [*batch, d, S], [*batch, d]; robust
            methods take the worst of a set here.
        improve: V of q [*batch, S, A]; regularized methods take a soft maximum.
    """
    horizon, states = reward.shape[-2], successors.shape[-1]
    features = features.to(reward).expand(horizon, *features.shape[-3:])
    width, low, high = (torch.as_tensor(part).to(reward) for part in (width, low, high))
    width = width.expand(*reward.shape[:-2], *features.shape[:-1])
    low, high = low.expand(horizon), high.expand(horizon)
    values, tables = [reward.new_zeros(*reward.shape[:-2], states)], []
    for h in reversed(range(horizon)):
        weight = reward[..., h, :] + expected(successors[..., h, :, :], values[-1])
        table = torch.einsum("sad,...d->...sa", features[h], weight) + width[..., h, :, :]
        tables.append(table.clamp(low[h], high[h]))
        values.append(improve(tables[-1]))
    return torch.stack(tables[::-1], -3), torch.stack(values[::-1], -2)
