"""Hard routing: each row through the layers of its own group, and gradients for those alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from polopt.core.errors import UsageError
from polopt.networks import Network
from polopt.networks.routed import Routed

SPACE = spaces.Dict({"group": spaces.Discrete(3, start=1), "x": spaces.Box(-1.0, 1.0, (2,), np.float32)})
LAYERS = Network((4, 5), "relu", "layer")


def obs_of(group: list[int]) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(2)
    return {"group": torch.tensor(group), "x": torch.rand(len(group), 2, generator=draw)}


def layer(x: torch.Tensor, linear: Any, norm: Any, member: int | None = None) -> torch.Tensor:
    """relu(norm(linear(x))), by the parameters."""
    weight = linear.weight.T if member is None else linear.weight[member]
    bias, scale, shift = (each if member is None else each[member, 0] for each in (linear.bias, norm.weight, norm.bias))
    x = x @ weight + bias
    x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    return (x * scale + shift).relu()


def test_a_row_passes_the_layers_of_its_group(float64: None) -> None:
    net = Routed(LAYERS, SPACE, 2, sizes=(3,), group="group")
    for parameter in net.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.dim()))
    obs = obs_of([1, 3, 2, 3])
    found = net(obs)
    hot = torch.nn.functional.one_hot(obs["group"] - 1, 3).double()
    for row, group in enumerate([0, 2, 1, 2]):
        shared = torch.cat([hot[row], obs["x"][row].double()])
        for index in (0, 3):
            shared = layer(shared, *net.shared.layers[index : index + 2])
        own = layer(shared, *net.own.layers[:2], member=group)
        torch.testing.assert_close(found[row], net.head(torch.cat([shared, own])))
    torch.testing.assert_close(net({name: each[:, None] for name, each in obs.items()})[:, 0], found)


def test_gradients_are_those_of_the_groups_that_were_there() -> None:
    net = Routed(LAYERS, SPACE, 2, sizes=(3,), group="group")
    net(obs_of([1, 3, 1])).square().sum().backward()
    grads = net.own.layers[0].weight.grad
    assert [bool(each.any()) for each in grads] == [True, False, True]


def test_without_groups_all_rows_pass_the_same_layers() -> None:
    net = Routed(LAYERS, spaces.Box(-1.0, 1.0, (2,), np.float32), 2, sizes=(3,))
    x = torch.rand(4, 2)
    assert net(x).shape == (4, 2)
    torch.testing.assert_close(net(x)[2], net(x[2:3])[0])
    assert len(net.own.layers[0].weight) == 1


def test_what_cannot_be_is_refused_in_one_sentence() -> None:
    for space, group in ((SPACE, "x"), (SPACE, "kind"), (SPACE["x"], "group")):
        with pytest.raises(UsageError, match=f"told apart by the entry '{group}' of the observation, a Discrete space"):
            Routed(LAYERS, space, 2, sizes=(3,), group=group)
    with pytest.raises(UsageError, match="a network with layers for each group is plain"):
        Routed(Network(recurrent="gru"), SPACE, 2, sizes=(3,), group="group")
