"""Copies of modules: targets, old and reference policies."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import nn

from polopt.core.modules import parameters_of
from polopt.networks.normalizer import Normalizer

M = TypeVar("M", bound=nn.Module)


def frozen_copy(module: M) -> M:
    """A copy in evaluation mode without gradients, for targets, old and reference policies.

    Observation normalizers are shared, not copied: all copies must see observations on the same scale.
    """
    shared = {id(part): part for part in module.modules() if isinstance(part, Normalizer)}
    learning = [(part, part.training) for part in shared.values()]
    twin = copy.deepcopy(module, shared)  # deepcopy takes its memo as "already copied"
    twin.requires_grad_(False).eval()
    for part, training in learning:
        part.train(training)  # a shared one goes on learning
    return twin


def polyak_update(target: nn.Module, source: nn.Module, tau: float) -> None:
    """target <- tau * source + (1 - tau) * target for every parameter; `tau=1` copies.  One fused operation."""
    targets, sources = (list(dict.fromkeys(parameters_of(module))) for module in (target, source))
    with torch.no_grad():
        torch._foreach_lerp_(targets, sources, tau)
