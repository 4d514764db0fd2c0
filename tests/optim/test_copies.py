"""Copies know their source: they are renewed from it, and are no part of it."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from polopt.core.state import gather
from polopt.optim import copies, duplicate, frozen_copy, renew, source_of


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.critic = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
        self.target_critic = frozen_copy(self.critic)


def moved(module: nn.Module) -> None:
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            tensor.add_(1)


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(one.state_dict()[name], value) for name, value in other.state_dict().items())


def test_a_copy_is_renewed_with_its_buffers():
    pair = Pair()
    moved(pair.critic)
    assert not same(pair.target_critic, pair.critic)
    renew(pair.target_critic)
    assert same(pair.target_critic, pair.critic)
    assert pair.target_critic[0].weight is not pair.critic[0].weight
    assert not any(p.requires_grad for p in pair.target_critic.parameters())
    with pytest.raises(ValueError, match="this Sequential is no copy"):
        renew(pair.critic)


def test_the_source_is_no_part_of_the_copy():
    pair = Pair()
    assert [name for name, _ in pair.target_critic.named_parameters()] == [n for n, _ in pair.critic.named_parameters()]
    assert gather(pair.target_critic).keys() == gather(pair.critic).keys()
    assert [(path, source is pair.critic) for path, _, source in copies(pair)] == [("target_critic", True)]


def test_a_copy_of_a_whole_has_copies_of_its_own():
    pair = Pair()
    for other in (copy.deepcopy(pair), frozen_copy(pair)):
        assert source_of(other.target_critic) is other.critic
        moved(pair.critic)
        moved(other.critic)
        renew(other.target_critic)
        assert same(other.target_critic, other.critic)
        assert not same(other.target_critic, pair.target_critic)


def test_a_copy_of_a_copy_is_renewed_from_the_first_source():
    pair = Pair()
    second = duplicate(pair.target_critic)
    assert source_of(second) is pair.target_critic
    assert source_of(pair.target_critic) is pair.critic
    moved(pair.critic)
    renew(second)
    assert same(second, pair.critic)
    assert same(pair.target_critic, pair.critic)
    moved(second)
    assert same(pair.target_critic, pair.critic)
