"""Losses of preferences: the chosen answer of a pair against the rejected one, by implicit rewards or win rates."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from polopt.core.batch import same_shape

KINDS = ("sigmoid", "robust", "ipo", "hinge")


def implicit_reward(log_ratio: Tensor, beta: float) -> Tensor:
    """beta * log_ratio (DPO, arXiv 2305.18290, equation 5, up to a term of the prompt that cancels within pairs).

    `log_ratio` [B] is the SUM over the tokens of an answer of log_prob - reference_log_prob.
    """
    return beta * log_ratio


def pairwise(
    chosen: Tensor,
    rejected: Tensor,
    beta: float,
    weight: Tensor,
    *,
    kind: str = "sigmoid",
    label_smoothing: float = 0.0,
) -> Tensor:
    """Sum over pairs of weight * loss(margin), margin = chosen - rejected; all tensors are [B].

    `chosen` and `rejected` are scores: log ratios against the reference summed over tokens for DPO, their means over
    tokens for IPO as its authors run it (TRL does the same), `slope(log_ratio, ...)` of another divergence for f-DPO.
    With s = label_smoothing, the probability that a label is wrong:

    - "sigmoid": -(1 - s) log sigmoid(beta margin) - s log sigmoid(-beta margin): DPO (arXiv 2305.18290, equation 7),
      with s > 0 conservative DPO.
    - "robust": ((1 - s) * -log sigmoid(beta margin) - s * -log sigmoid(-beta margin)) / (1 - 2 s): unbiased for the
      clean labels (arXiv 2403.00409).
    - "ipo": (margin - 1 / (2 beta))^2 (arXiv 2310.12036, equation 17, beta its tau).
    - "hinge": max(0, 1 - beta margin) (SLiC, arXiv 2309.06657).

    Raises ValueError when shapes differ, for another kind, and for a smoothing that the kind cannot use (it is below
    0.5 with "sigmoid" and "robust", and 0 with the others).
    """
    same_shape(chosen=chosen, rejected=rejected, weight=weight)
    if kind not in KINDS:
        raise ValueError(f"a pairwise loss is one of {', '.join(KINDS)}, not '{kind}'")
    if label_smoothing and (kind not in ("sigmoid", "robust") or not 0 < label_smoothing < 0.5):
        raise ValueError(f"label_smoothing {label_smoothing} does not fit the pairwise loss '{kind}'")
    margin = chosen - rejected
    if kind == "ipo":
        loss = (margin - 1 / (2 * beta)).square()
    elif kind == "hinge":
        loss = torch.relu(1 - beta * margin)
    else:
        sign = 1.0 if kind == "sigmoid" else -1.0
        loss = -(1 - label_smoothing) * logsigmoid(beta * margin)
        if label_smoothing:
            loss = loss - sign * label_smoothing * logsigmoid(-beta * margin)
        if kind == "robust":
            loss = loss / (1 - 2 * label_smoothing)
    return (weight * loss).sum()


def win_rates(
    chosen: Tensor, rejected: Tensor, chosen_win: Tensor, rejected_win: Tensor, beta: float, weight: Tensor
) -> Tensor:
    """Sum over pairs of weight * mean over both answers of (log_ratio - (win - 1/2) / beta)^2; all tensors are [B].

    SPPO (arXiv 2405.00675, equation 4.7, its eta 1 / beta; the mean over the sides is that of its official code):
    `win` is the probability that an answer beats one of the policy that sampled it, and the log ratio is against that
    policy, summed over tokens. Raises ValueError when shapes differ.
    """
    same_shape(chosen=chosen, rejected=rejected, chosen_win=chosen_win, rejected_win=rejected_win, weight=weight)
    errors = [ratio - (win - 0.5) / beta for ratio, win in ((chosen, chosen_win), (rejected, rejected_win))]
    return (weight * (errors[0].square() + errors[1].square()) / 2).sum()
