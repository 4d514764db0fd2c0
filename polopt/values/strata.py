"""Statistics over groups: each group (a prompt, a stratum, a minute) has one value, and counts once.

`group` holds dense ids and `valid` (bool) says which rows count, as in `polopt.values.groups`; everything is [B], and
every row gets the number of its own group. A group without a valid row has the value 0 and counts nowhere. Raises
ValueError when shapes differ.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from polopt.core.batch import same_shape
from polopt.values.groups import group_count, group_equal, group_sum


def group_share(group: Tensor, valid: Tensor) -> Tensor:
    """1 / number of valid rows of the group at each of them, else 0 [B]: sums of it over rows count groups."""
    ones = torch.ones(group.shape, device=group.device)
    return torch.where(valid, 1.0 / group_count(ones, group, valid).clamp_min(1.0), 0.0)


def standardize_groups(value: Tensor, group: Tensor, valid: Tensor, eps: float = 1e-6, ddof: int = 1) -> Tensor:
    """(value - mean) / (std + eps) [B], over groups: of values that the rows of a group share, each counted once.

    The deviation divides by the number of groups less `ddof`. Exactly 0 where all groups have the same value.
    """
    same_shape(value=value, group=group, valid=valid)
    share = group_share(group, valid).to(value)
    count = share.sum()
    differ = valid & ~group_equal(value, torch.zeros_like(group), valid)  # else eps would blow up what rounding leaves
    centered = torch.where(differ, value - (share * value).sum() / count.clamp_min(1.0), 0.0)
    spread = ((share * centered.square()).sum() / (count - ddof).clamp_min(1.0)).sqrt()
    return centered / (spread + eps)


def group_entropy(label: Tensor, group: Tensor, valid: Tensor, base: float = 2.0) -> Tensor:
    """Entropy [B] of the labels (int64 [B], any numbers) within the group: - sum_k p_k log p_k, p_k the share of valid
    rows with the k-th label. From 0, all alike, to log n, all different."""
    same_shape(label=label, group=group, valid=valid)
    _, kind = torch.unique(torch.stack((group, label)), dim=1, return_inverse=True)  # a label in a group
    ones = torch.ones(group.shape, device=group.device)
    share = group_share(group, valid).to(ones)
    chance = group_count(ones, kind, valid) * share
    surprise = torch.where(valid, -chance.clamp_min(1e-12).log() / math.log(base), 0.0)
    return group_sum(share * surprise, group, valid).clamp_min(0.0)
