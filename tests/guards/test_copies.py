"""Copies of what is trained: whatever another run's weights replace, no copy of it stays what it was."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from polopt.bases.method import Method
from polopt.core.state import find, gather, restore
from polopt.optim import copies, source_of
from tests.guards.harness import BUILT, built


def disturbed(method: Method) -> dict[str, torch.Tensor]:
    """The state of a run in which every tensor is another one: also each copy differs from its source."""
    state = gather(method)
    return {
        path: another(leaf) if torch.is_tensor(leaf) and leaf.is_floating_point() else leaf
        for path, leaf in state.items()
    }


def another(leaf: torch.Tensor) -> torch.Tensor:
    """Random numbers; a square one may be a covariance, and is one."""
    value = torch.randn(leaf.shape, dtype=leaf.dtype)
    if value.dim() > 1 and value.shape[-1] == value.shape[-2]:
        return value @ value.mT + torch.eye(value.shape[-1], dtype=value.dtype)
    return value


def differing(method: Method) -> list[str]:
    """Copies that are not what they are copies of."""
    return [
        path
        for path, twin, source in copies(method)
        if any(
            not torch.equal(mine, its)
            for mine, its in zip([*twin.parameters(), *twin.buffers()], [*source.parameters(), *source.buffers()])
        )
    ]


def frozen(root: object) -> Iterator[tuple[str, nn.Module]]:
    """The outermost modules that have parameters of which none is trained."""
    inner: set[int] = set()
    for path, module in find(root, nn.Module):
        parameters = list(module.parameters())
        if id(module) not in inner and parameters and not any(p.requires_grad for p in parameters):
            inner |= set(map(id, module.modules()))
            yield path, module


BROUGHT = {"cdsa": {"clone_updates": 0}}
"""Settings with which a method takes a policy of another run, where its tiny run makes its own."""


@pytest.mark.parametrize("name", BUILT)
def test_after_init_every_copy_is_what_it_is_a_copy_of(name):
    with built(name, **BROUGHT.get(name, {})) as method:
        state = disturbed(method)
        made = [path for path, _, _ in copies(method)]
        for given in (state, {path: leaf for path, leaf in state.items() if path.startswith("policy.")}):
            before = [p.clone() for p in method.policy.parameters()] if isinstance(method.policy, nn.Module) else []
            restore(method, given, strict=False)
            for _, learner in method.learners():
                learner.initialized()
            assert differing(method) == []
            assert [path for path, _, _ in copies(method)] == made
            assert all(not torch.equal(p, q) for p, q in zip(before, method.policy.parameters())) or given is not state


@pytest.mark.parametrize("name", BUILT)
def test_whatever_looks_like_a_copy_knows_its_source(name):
    """A module that is not trained, beside one of the same shapes that is, was made by `frozen_copy` or `duplicate`."""
    with built(name) as method:
        shapes = [
            [p.shape for p in module.parameters()]
            for _, module in find(method, nn.Module)
            if any(p.requires_grad for p in module.parameters())
        ]
        for path, module in frozen(method):
            looks = [p.shape for p in module.parameters()] in shapes
            assert not looks or any(source_of(part) is not None for part in module.modules()), path
