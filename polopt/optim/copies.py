"""Copies of modules: targets, old and reference policies."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import nn

from polopt.core.modules import parameters_of
from polopt.core.shards import local
from polopt.core.state import find
from polopt.networks.normalizer import Normalizer

M = TypeVar("M", bound=nn.Module)

MARK = "_copy_of"  # the attribute of a copy that holds its source


def frozen_copy(module: M) -> M:
    """A copy in evaluation mode without gradients, for targets, old and reference policies.

    Observation normalizers are shared, not copied: all copies must see observations on the same scale. The copy knows
    what it was made of (`source_of`), so that it is renewed when other weights are loaded.
    """
    shared = {id(part): part for part in module.modules() if isinstance(part, Normalizer)}
    learning = [(part, part.training) for part in shared.values()]
    twin = duplicate(module, shared)
    twin.requires_grad_(False).eval()
    for part, training in learning:
        part.train(training)  # a shared one goes on learning
    return twin


def duplicate(module: M, shared: Mapping[int, nn.Module] | None = None) -> M:
    """A deep copy that knows what it was made of, with its own parameters and buffers; `shared` maps the ids of parts
    that it shares with the module to these parts."""
    memo: dict[int, Any] = dict(shared or {})
    inside = set(map(id, module.modules()))
    for part in module.modules():  # the source of a part that is a copy itself is not copied along
        source = source_of(part)
        if source is not None and id(source) not in inside:
            memo[id(source)] = source
    twin = copy.deepcopy(module, memo)  # deepcopy takes its memo as "already copied"
    object.__setattr__(twin, MARK, (module,))  # in a tuple, so that it is no submodule
    return twin


def source_of(module: nn.Module) -> nn.Module | None:
    """What `module` is a copy of; None if it is no copy."""
    return vars(module).get(MARK, (None,))[0]


@torch.no_grad()
def renew(twin: nn.Module) -> None:
    """Makes a copy equal to its source again, parameters and buffers; of a copy of a copy, the other one first."""
    source = source_of(twin)
    if source is None:
        raise ValueError(f"this {type(twin).__name__} is no copy")
    if source_of(source) is not None:
        renew(source)
    for mine, its in zip(_tensors(twin), _tensors(source), strict=True):
        if mine is not its:
            mine.copy_(its)


def copies(root: object) -> Iterator[tuple[str, nn.Module, nn.Module]]:
    """Every copy anywhere below `root`, a method for one: (path, copy, its source)."""
    for path, module in find(root, nn.Module):
        source = source_of(module)
        if source is not None:
            yield path, module, source


def _tensors(module: nn.Module) -> list[torch.Tensor]:
    return [*module.parameters(), *module.buffers()]


def polyak_update(target: nn.Module, source: nn.Module, tau: float) -> None:
    """target <- tau * source + (1 - tau) * target for every parameter; `tau=1` copies.  One fused operation."""
    targets, sources = ([*map(local, dict.fromkeys(parameters_of(module)))] for module in (target, source))
    with torch.no_grad():
        torch._foreach_lerp_(targets, sources, tau)
