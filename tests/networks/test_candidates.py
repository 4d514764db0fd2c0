"""Networks of candidates: what they compute, by hand, and that order and absent rows do not matter."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium import spaces

from polopt.core.errors import UsageError
from polopt.networks.normalizer import Normalizer
from polopt.networks.sets import Sets


def space(count: int = 3, features: int = 2) -> spaces.Dict:
    parts = {
        "rows": spaces.Box(-1.0, 1.0, (count, features)),
        "context": spaces.Box(-1.0, 1.0, (2,)),
        "action_mask": spaces.MultiBinary(count),
    }
    return spaces.Dict(parts)


def drawn(*lead: int, count: int = 3, features: int = 2) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    rows = torch.randn(*lead, count, features, generator=generator)
    return {"rows": rows, "context": torch.randn(*lead, 2, generator=generator)}


def test_the_outputs_by_hand(float64: None) -> None:
    torch.manual_seed(0)
    net = Sets(sizes=(4,), head=(5,), activation="tanh").build(space(), 3, ensemble=2)
    obs = drawn(1)
    obs["rows"][0, 1] = 0.0
    found = net(obs).detach().numpy()
    assert found.shape == (2, 1, 3)
    weights = {name: value.detach().numpy() for name, value in net.named_parameters()}
    rows, context = obs["rows"][0].numpy(), obs["context"][0].numpy()
    for member in range(2):

        def layer(x: np.ndarray, name: str, member: int = member) -> np.ndarray:
            return x @ weights[f"{name}.weight"][member] + weights[f"{name}.bias"][member, 0]

        each = np.tanh(layer(rows, "encoder.layers.0"))
        there = each[[0, 2]]
        whole = np.concatenate([there.mean(0), there.max(0), context])
        hidden = np.tanh(layer(each, "own") + layer(whole, "whole"))
        output = layer(hidden, "head.layers.0")[:, 0]
        np.testing.assert_allclose(found[member, 0], output, rtol=1e-10)


@pytest.mark.parametrize("ensemble", [None, 2])
def test_outputs_change_places_as_the_rows_do(ensemble: int | None, float64: None) -> None:
    torch.manual_seed(0)
    net = Sets(sizes=(6, 6), head=(5, 5)).build(space(4), 4, ensemble=ensemble)
    obs = drawn(7, count=4)
    order = torch.tensor([2, 0, 3, 1])
    moved = {**obs, "rows": obs["rows"][:, order]}
    found = net(obs)
    torch.testing.assert_close(net(moved), found[..., order])
    assert (found - found[..., order]).abs().max() > 1e-3
    other = {**obs, "rows": obs["rows"].clone()}
    other["rows"][:, 3] *= 2.0  # a candidate that has changed is seen by the others
    assert ((net(other) - found)[..., :3].abs().amax(-1) > 1e-6).all()
    assert not torch.equal(net({**obs, "context": -obs["context"]}), found)


def test_absent_candidates_are_not_seen_and_may_be_more(float64: None) -> None:
    torch.manual_seed(0)
    net = Sets(activation="tanh").build(space(3), 3)
    obs = drawn(5)
    longer = {**obs, "rows": torch.cat([obs["rows"], torch.zeros(5, 4, 2)], 1)}
    torch.testing.assert_close(net(longer)[:, :3], net(obs))
    nobody = net({**obs, "rows": torch.zeros(5, 3, 2)})
    assert nobody.isfinite().all()
    lead = {name: value.unsqueeze(0).expand(2, *value.shape) for name, value in obs.items()}
    torch.testing.assert_close(net(lead), net(obs).expand(2, 5, 3))
    assert net({name: value[0] for name, value in obs.items()}).shape == (3,)


def test_a_box_of_rows_needs_nothing_beside_it() -> None:
    net = Sets(sizes=(4,), head=(4,)).build(spaces.Box(-1.0, 1.0, (3, 2)), 3)
    assert net(torch.randn(5, 3, 2)).shape == (5, 3)


def test_the_last_layer_of_a_policy_may_begin_small() -> None:
    net = Sets(head_gain=0.0).build(space(), 3)
    assert not net(drawn(5)).any()
    assert net(drawn(5)).shape == (5, 3)
    assert Sets(head_gain=0.0).build(space(), 3, head_gain=1.0)(drawn(5)).any()


def test_refusals() -> None:
    with pytest.raises(UsageError, match="needs a Box with a row for each of the 4 actions"):
        Sets().build(space(), 4)
    twice = spaces.Dict({"one": spaces.Box(0, 1, (3, 2)), "other": spaces.Box(0, 1, (3, 5))})
    with pytest.raises(UsageError, match="has several boxes of them: take --network network"):
        Sets().build(twice, 3)
    for empty in ({"sizes": ()}, {"head": ()}):
        with pytest.raises(UsageError, match="one width at least"):
            Sets(**empty)


def test_absent_candidates_are_not_seen_behind_a_normalizer(float64: None) -> None:
    normalizer = Normalizer(space(3))
    normalizer.update(drawn(50))
    torch.manual_seed(0)
    net = Sets(activation="tanh").build(space(3), 3, normalizer=normalizer)
    obs = drawn(5)
    obs["rows"][:, 2] = 0.0
    before = net(obs)[:, :2]
    normalizer.normalizers[normalizer.parts["rows"]].mean[2] += 5.0  # of the row of nobody
    torch.testing.assert_close(net(obs)[:, :2], before)
