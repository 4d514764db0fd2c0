from __future__ import annotations

from typing import Any

import pytest
import torch
from tensordict import TensorDict

from polopt.data import minibatches
from polopt.losses.estimator import token_weights
from polopt.values.returns import standardize


def batch(rows: int = 4, steps: int = 5, mask: torch.Tensor | None = None) -> TensorDict:
    number = torch.arange(rows * steps).reshape(rows, steps)
    items: dict[str, Any] = {"action": number, "obs": {"x": number.unsqueeze(-1) * 1.0}}
    if mask is not None:
        items["mask"] = mask
    return TensorDict(items, batch_size=[rows, steps])


def test_every_decision_once_per_epoch_and_a_ragged_end() -> None:
    generator = torch.Generator().manual_seed(0)
    parts = list(minibatches(batch(), 6, epochs=2, generator=generator))
    assert [len(part) for part in parts] == [6, 6, 6, 2] * 2
    epochs = [torch.cat([part["action"] for part in parts[i : i + 4]]) for i in (0, 4)]
    for order in epochs:
        assert sorted(order.tolist()) == list(range(20))
    assert epochs[0].tolist() != epochs[1].tolist()
    for part in parts:
        assert torch.equal(part["obs", "x"].squeeze(-1), part["action"].float())
        torch.testing.assert_close(part["weight"], torch.full((len(part),), 1 / len(part)))
    again = list(minibatches(batch(), 6, epochs=2, generator=torch.Generator().manual_seed(0)))
    assert all(torch.equal(a["action"], b["action"]) for a, b in zip(parts, again))


def test_rows_stay_whole_for_recurrent_policies() -> None:
    parts = list(minibatches(batch(), 10, generator=torch.Generator(), recurrent=True))
    assert [tuple(part.batch_size) for part in parts] == [(2, 5), (2, 5)]
    rows = torch.cat([part["action"] for part in parts])
    assert sorted(rows[:, 0].tolist()) == [0, 5, 10, 15]
    assert torch.equal(rows, rows[:, :1] + torch.arange(5))
    parts = list(minibatches(batch(), 2, recurrent=True))  # fewer than a row: one row
    assert [len(part) for part in parts] == [1] * 4


@pytest.mark.parametrize("recurrent", [False, True])
def test_weights_sum_to_one_and_ignore_what_is_masked(recurrent: bool) -> None:
    mask = torch.arange(5) < torch.tensor([[5], [2], [1], [4]])
    for part in minibatches(batch(mask=mask), 5, epochs=3, recurrent=recurrent):
        torch.testing.assert_close(part["weight"].sum(), torch.tensor(1.0))
        if recurrent:
            assert not part["weight"][~part["mask"]].any()
        else:
            assert mask.flatten()[part["action"]].all()
            assert len(part) in (5, 2)


def test_given_weights_keep_their_proportions() -> None:
    data = batch().clone()
    data["weight"] = (data["action"] + 1.0) / 210
    for part in minibatches(data, 8):
        number = part["action"] + 1.0
        torch.testing.assert_close(part["weight"], number / number.sum())
    assert data["weight"].sum().item() == pytest.approx(1.0)  # the batch itself is untouched


@pytest.mark.parametrize("size", [1, 4, 7, 20, 50])
@pytest.mark.parametrize("recurrent", [False, True])
def test_given_weights_are_those_of_each_minibatch_by_itself(size: int, recurrent: bool, float64: None) -> None:
    data = batch()
    data["weight"] = (data["action"] % 7).double() * (data["action"] > 4)  # also a minibatch without any
    for part in minibatches(data, size, generator=torch.Generator().manual_seed(2), recurrent=recurrent):
        number = (part["action"] % 7).double() * (part["action"] > 4)
        torch.testing.assert_close(part["weight"], number / number.sum().clamp_min(1e-300))


@pytest.mark.parametrize("size", [1, 4, 7, 50])
@pytest.mark.parametrize("recurrent", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_columns_are_standardized_over_each_minibatch(size: int, recurrent: bool, masked: bool, float64: None) -> None:
    data = batch(mask=torch.arange(5) < torch.tensor([[5], [2], [1], [4]]) if masked else None)
    data["advantage"] = (data["action"] % 7).double().square()
    for part in minibatches(data, size, 2, torch.Generator().manual_seed(2), recurrent, ("advantage",)):
        before, exists = (part["action"] % 7).double().square(), part.get("mask", None)
        torch.testing.assert_close(part["advantage"], standardize(before, exists))
        if exists is None or exists.sum() > 1:
            spread = part["advantage"] if exists is None else part["advantage"][exists]
            assert float(spread.mean()) == pytest.approx(0.0, abs=1e-12)
            assert len(spread) == 1 or float(spread.std()) in (pytest.approx(1.0, abs=1e-6), 0.0)
    assert float(data["advantage"].max()) == 36.0  # the batch itself is untouched


def completions(rows: int = 6, width: int = 5) -> TensorDict:
    number = torch.arange(rows)
    mask = torch.arange(width) < torch.tensor([3, 1, 5, 0, 2, 4]).unsqueeze(1)
    tokens = {"completion": number.unsqueeze(1) * mask, "mask": mask, "reward": number}
    return TensorDict(tokens, batch_size=[rows])


def test_rows_of_tokens_stay_whole() -> None:
    parts = list(minibatches(completions(), 4, epochs=2, generator=torch.Generator().manual_seed(0)))
    assert [len(part) for part in parts] == [4, 2, 4, 2]
    assert sorted(torch.cat([part["reward"] for part in parts[:2]]).tolist()) == list(range(6))
    for part in parts:
        assert torch.equal(part["completion"], part["reward"].unsqueeze(1) * part["mask"])
        torch.testing.assert_close(part["weight"], part["mask"] / part["mask"].sum())


@pytest.mark.parametrize("kind", ["token", "sequence", "constant", "sum"])
def test_weights_of_tokens_keep_their_scale(kind: str) -> None:
    data = completions()
    data["weight"] = token_weights(data["mask"], kind)
    (whole,) = minibatches(data, 6)
    order = whole["reward"]
    assert torch.equal(whole["weight"], data["weight"][order])
    parts = list(minibatches(data, 3))
    summed = torch.zeros_like(data["weight"])
    for part in parts:
        summed[part["reward"]] = part["weight"] / len(parts)
    torch.testing.assert_close(summed, data["weight"])
    assert torch.equal(data["weight"], token_weights(data["mask"], kind))  # the batch itself is untouched
