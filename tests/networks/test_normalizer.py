import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from tensordict import TensorDict

from polopt.core.state import gather, restore
from polopt.networks.normalizer import Normalizer

SPACE = spaces.Box(-np.inf, np.inf, (3,), np.float32)


@given(chunks=st.lists(st.integers(1, 7), min_size=1, max_size=6), seed=st.integers(0, 1000))
def test_statistics_equal_numpy_over_everything_seen(chunks, seed):
    generator = np.random.default_rng(seed)
    data = [generator.normal(5.0, 3.0, (n, 3)) for n in chunks]
    normalizer = Normalizer(SPACE)
    for chunk in data:
        normalizer.update(torch.as_tensor(chunk))
    everything = np.concatenate(data)
    np.testing.assert_allclose(normalizer.mean.numpy(), everything.mean(0), rtol=1e-12)
    np.testing.assert_allclose(normalizer.variance.numpy(), everything.var(0), rtol=1e-10, atol=1e-12)
    assert normalizer.count.item() == len(everything)


def test_output_is_standardized_and_clipped():
    data = np.random.default_rng(0).normal(-2.0, 4.0, (500, 3))
    normalizer = Normalizer(SPACE)
    normalizer.update(torch.as_tensor(data).reshape(5, 100, 3))
    out = normalizer(torch.as_tensor(data)).numpy()
    np.testing.assert_allclose(out, (data - data.mean(0)) / data.std(0), rtol=1e-6)
    assert normalizer(torch.full((1, 3), 1e9)).tolist() == [[10.0] * 3]


def test_a_floor_is_added_to_the_deviation_and_clipping_may_be_off():
    data = np.random.default_rng(0).normal(-2.0, [4.0, 0.1, 0.0], (500, 3))
    normalizer = Normalizer(SPACE, clip=np.inf, epsilon=0.0, floor=1e-3)
    normalizer.update(torch.as_tensor(data))
    rows = np.vstack([data, data + 1e3])
    out = normalizer(torch.as_tensor(rows)).numpy()
    np.testing.assert_allclose(out, (rows - data.mean(0)) / (data.std(0) + 1e-3), rtol=1e-6, atol=1e-9)
    assert out.max() == pytest.approx(1e6)


def test_before_the_first_update_it_only_clips():
    obs = torch.tensor([[0.5, -2.0, 30.0]])
    torch.testing.assert_close(Normalizer(SPACE)(obs), torch.tensor([[0.5, -2.0, 10.0]]))


def test_masked_rows_do_not_count_whatever_they_hold():
    data = torch.randn(4, 6, 3, dtype=torch.float64)
    mask = torch.rand(4, 6) < 0.5
    one, other = Normalizer(SPACE), Normalizer(SPACE)
    one.update(torch.where(mask[..., None], data, float("nan")), mask)
    other.update(data[mask])
    torch.testing.assert_close(one.mean, other.mean)
    torch.testing.assert_close(one.variance, other.variance)
    before = one.mean.clone()
    one.update(data, torch.zeros(4, 6, dtype=torch.bool))
    assert torch.equal(before, one.mean)


def test_large_offsets_keep_their_digits():
    data = 1e6 + np.random.default_rng(1).normal(size=(4096, 3))
    normalizer = Normalizer(SPACE)
    for chunk in np.split(data, 8):
        normalizer.update(torch.as_tensor(chunk))
    np.testing.assert_allclose(normalizer.variance.numpy(), data.var(0), rtol=1e-6)


def test_frozen_in_eval_mode():
    normalizer = Normalizer(SPACE).eval()
    normalizer.update(torch.ones(2, 3))
    assert normalizer.count == 0


def test_dict_spaces_have_statistics_for_each_real_entry():
    space = spaces.Dict(
        {
            "x": SPACE,
            "image": spaces.Box(0, 255, (8, 8), np.uint8),
            "mode": spaces.Discrete(3),
            "inner": spaces.Dict({"y": spaces.Box(-1.0, 1.0, (), np.float32)}),
            "action_mask": spaces.MultiBinary(2),
        }
    )
    obs = TensorDict(
        {
            "x": 3.0 + torch.randn(50, 3),
            "image": torch.randint(256, (50, 8, 8), dtype=torch.uint8),
            "mode": torch.randint(3, (50,)),
            "inner": {"y": torch.randn(50) * 4.0},
            "action_mask": torch.ones(50, 2, dtype=torch.bool),
        },
        batch_size=(50,),
    )
    normalizer = Normalizer(space)
    normalizer.update(obs)
    out = normalizer(obs)
    assert out["x"].mean(0).abs().max() < 1e-5
    assert out["inner"]["y"].std(correction=0).item() == pytest.approx(1.0, abs=1e-5)
    for key in ("image", "mode", "action_mask"):
        assert torch.equal(out[key], obs[key])


def test_statistics_are_saved_and_keep_their_precision():
    one, other = Normalizer(SPACE), Normalizer(SPACE)
    one.update(torch.randn(10, 3))
    restore(other, gather(one))
    assert torch.equal(one.mean, other.mean)
    assert other.mean.dtype == torch.float64
