import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from polopt.values.returns import (
    discounted_returns,
    explained_variance,
    gae,
    lambda_returns,
    n_step_returns,
    standardize,
)

torch.set_num_threads(1)


def window(shape=(3, 12), seed=0, ends=0.2):
    """Random reward, value, next_value, terminated, truncated; next_value is the next value, except at ends."""
    rng = np.random.default_rng(seed)
    reward, value, final = (rng.normal(size=shape) for _ in range(3))
    terminated, truncated = rng.random(shape) < ends / 2, rng.random(shape) < ends / 2
    stop = terminated | truncated
    stop[..., -1] = True
    next_value = np.where(stop, final, np.roll(value, -1, -1))
    return reward, value, next_value, terminated, truncated


def tensors(arrays):
    return [torch.tensor(x) for x in arrays]


def brute_force_gae(reward, value, next_value, terminated, truncated, discount, trace):
    """The definition: sum over l of (discount * lambda)^l delta_{t+l}, up to the end of the episode or row."""
    discount = np.broadcast_to(discount, reward.shape)
    delta = reward + discount * np.where(terminated, 0, next_value) - value
    advantage = np.zeros_like(reward)
    for row in np.ndindex(reward.shape[:-1]):
        for t in range(reward.shape[-1]):
            factor = 1.0
            for k in range(t, reward.shape[-1]):
                advantage[row][t] += factor * delta[row][k]
                factor *= discount[row][k] * trace
                if terminated[row][k] or truncated[row][k]:
                    break
    return advantage


def test_gae_by_hand():
    """discount 1/2, lambda 1/2: a termination at column 1, a truncation at column 3, the window end at column 4."""
    reward = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0], dtype=torch.float64)
    value = torch.tensor([10.0, 20.0, 30.0, 40.0, 50.0], dtype=torch.float64)
    next_value = torch.tensor([20.0, 1e6, 40.0, 8.0, 6.0], dtype=torch.float64)
    terminated = torch.tensor([False, True, False, False, False])
    truncated = torch.tensor([False, False, False, True, False])
    advantage, returns = gae(reward, value, next_value, terminated, truncated, 0.5, 0.5)
    # deltas: 1+10-10=1; 2-20=-18; 3+20-30=-7; 4+4-40=-32; 5+3-50=-42
    assert advantage.tolist() == [1 - 18 / 4, -18, -7 - 32 / 4, -32, -42]
    assert torch.equal(returns, advantage + value)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(1, 3), max_size=3), st.integers(1, 9), st.integers(0, 10**6), st.sampled_from([0.0, 0.9, 1.0])
)
def test_gae_is_its_definition_for_any_leading_dims(lead, length, seed, trace):
    arrays = window((*lead, length), seed, ends=0.5)
    advantage, returns = gae(*tensors(arrays), 0.97, trace)
    expected = brute_force_gae(*arrays, 0.97, trace)
    assert advantage.dtype == torch.float64
    np.testing.assert_allclose(advantage.numpy(), expected, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(returns.numpy(), expected + arrays[1], rtol=1e-10, atol=1e-10)


def test_gae_with_a_discount_per_decision():
    arrays = window((2, 8))
    discount = np.random.default_rng(1).uniform(0.5, 1, (2, 8))
    advantage, _ = gae(*tensors(arrays), torch.tensor(discount), 0.9)
    np.testing.assert_allclose(advantage.numpy(), brute_force_gae(*arrays, discount, 0.9), atol=1e-12)
    scalar, _ = gae(*tensors(arrays), torch.tensor(0.9, dtype=torch.float64), 0.9)
    np.testing.assert_allclose(scalar.numpy(), brute_force_gae(*arrays, 0.9, 0.9), atol=1e-12)


@pytest.mark.parametrize("kind", ["terminated", "truncated"])
def test_the_next_episode_never_leaks(kind):
    """Whatever stands to the right of an end changes nothing on its left; a terminated next_value is never read."""
    arrays = window((1, 10), ends=0.0)
    arrays[3][0, 4], arrays[4][0, 4] = kind == "terminated", kind == "truncated"
    changed = [x.copy() for x in arrays]
    for x in changed[:3]:
        x[:, 5:] = 1e9
    if kind == "terminated":
        changed[2][0, 4] = np.nan
    for f in (
        lambda x: gae(*x, 0.99, 0.95)[0],
        lambda x: lambda_returns(x[0], *x[2:], 0.99, 0.95),
        lambda x: n_step_returns(x[0], *x[2:], 0.99, 4),
        lambda x: discounted_returns(x[0], x[3], x[4], 0.99, x[2]),
        lambda x: discounted_returns(x[0], x[3], x[4], 0.99),
    ):
        assert torch.equal(f(tensors(arrays))[:, :5], f(tensors(changed))[:, :5])


def test_truncation_bootstraps_and_termination_does_not():
    reward, value, next_value = (torch.tensor([[x]], dtype=torch.float64) for x in (1.0, 0.0, 10.0))
    yes, no = torch.tensor([[True]]), torch.tensor([[False]])
    for f in (
        lambda *ends: gae(reward, value, next_value, *ends, 0.5, 0.95)[1],
        lambda *ends: lambda_returns(reward, next_value, *ends, 0.5, 0.95),
        lambda *ends: n_step_returns(reward, next_value, *ends, 0.5, 3),
        lambda *ends: discounted_returns(reward, *ends, 0.5, next_value),
    ):
        assert [f(*ends).item() for ends in ((yes, no), (no, yes), (no, no))] == [1.0, 6.0, 6.0]


def with_holes(arrays, seed=2):
    """Spreads each row over twice its length: junk in the columns between."""
    rng = np.random.default_rng(seed)
    rows, length = arrays[0].shape
    mask = np.zeros((rows, 2 * length), dtype=bool)
    for row in range(rows):
        mask[row, rng.permutation(2 * length)[:length]] = True
    holes = []
    for x in arrays:
        wide = np.ones((rows, 2 * length), bool) if x.dtype == bool else np.full((rows, 2 * length), np.nan)
        wide[mask] = x.reshape(-1)
        holes.append(wide)
    return tensors(holes), torch.tensor(mask)


def test_skipping_masked_columns_is_the_packed_row_bit_for_bit():
    arrays = window((4, 9))
    holes, mask = with_holes(arrays)
    packed = tensors(arrays)
    for f in (
        lambda x, m: gae(*x, 0.99, 0.95, m)[0],
        lambda x, m: gae(*x, 0.99, 0.95, m)[1],
        lambda x, m: lambda_returns(x[0], *x[2:], 0.99, 0.95, m),
        lambda x, m: discounted_returns(x[0], x[3], x[4], 0.99, x[2], m),
        lambda x, m: discounted_returns(x[0], x[3], x[4], 0.99, None, m),
    ):
        result = f(holes, mask)
        assert torch.equal(result[mask].reshape(4, 9), f(packed, None))
        assert (result[~mask] == 0).all()


def test_lambda_returns_are_gae_plus_value():
    arrays = tensors(window((5, 20)))
    returns = lambda_returns(arrays[0], *arrays[2:], 0.99, 0.9)
    torch.testing.assert_close(returns, gae(*arrays, 0.99, 0.9)[1], rtol=1e-12, atol=1e-12)


def test_lambda_returns_at_the_ends_of_lambda():
    reward, _, next_value, terminated, truncated = arrays = tensors(window((5, 20)))
    one_step = n_step_returns(reward, *arrays[2:], 0.99, 1)
    torch.testing.assert_close(one_step, reward + 0.99 * torch.where(terminated, 0.0, next_value))
    torch.testing.assert_close(lambda_returns(reward, *arrays[2:], 0.99, 0.0), one_step)
    long = n_step_returns(reward, *arrays[2:], 0.99, 20)
    torch.testing.assert_close(lambda_returns(reward, *arrays[2:], 0.99, 1.0), long)
    torch.testing.assert_close(discounted_returns(reward, terminated, truncated, 0.99, next_value), long)


@pytest.mark.parametrize("n", [1, 2, 3, 7, 50])
def test_n_step_returns_against_loops(n):
    reward, _, next_value, terminated, truncated = arrays = window((2, 12))
    expected = np.zeros_like(reward)
    for row in range(2):
        for t in range(12):
            for k in range(t, min(t + n, 12)):
                expected[row, t] += 0.9 ** (k - t) * reward[row, k]
                last = k == min(t + n, 12) - 1 or terminated[row, k] or truncated[row, k]
                if last:
                    expected[row, t] += 0.9 ** (k - t + 1) * (0 if terminated[row, k] else next_value[row, k])
                    break
    x = tensors(arrays)
    np.testing.assert_allclose(n_step_returns(x[0], *x[2:], 0.9, n).numpy(), expected, atol=1e-12)
    with pytest.raises(ValueError, match="n >= 1"):
        n_step_returns(x[0], *x[2:], 0.9, 0)


def test_monte_carlo_by_hand():
    reward = torch.tensor([1.0, 2.0, 4.0, 8.0])
    terminated = torch.tensor([False, True, False, False])
    returns = discounted_returns(reward, terminated, torch.zeros(4, dtype=torch.bool), 0.5)
    assert returns.tolist() == [2.0, 2.0, 8.0, 8.0]


def test_lambda_returns_carry_gradients_and_gae_does_not():
    arrays = tensors(window((2, 6)))
    arrays[2].requires_grad_()
    assert lambda_returns(arrays[0], *arrays[2:], 0.9, 0.9).requires_grad
    assert not gae(*arrays, 0.9, 0.9)[0].requires_grad


def test_shapes_must_be_equal():
    x = tensors(window((4, 1)))
    for i in range(5):
        bad = [y[..., 0] if i == j else y for j, y in enumerate(x)]
        with pytest.raises(ValueError, match="equal"):
            gae(*bad, 0.9, 0.9)
    with pytest.raises(ValueError, match="equal"):
        gae(*x, torch.ones(4), 0.9)
    with pytest.raises(ValueError, match="equal"):
        gae(*x, 0.9, 0.9, torch.ones(4, dtype=torch.bool))


def test_standardize():
    x = np.random.default_rng(0).normal(3, 2, (4, 5))
    result = standardize(torch.tensor(x))
    np.testing.assert_allclose(result.numpy(), (x - x.mean()) / (x.std(ddof=1) + 1e-8), atol=1e-12)
    mask = np.random.default_rng(1).random((4, 5)) < 0.5
    x[~mask] = np.nan
    result = standardize(torch.tensor(x), torch.tensor(mask)).numpy()
    np.testing.assert_allclose(result[mask], (x[mask] - x[mask].mean()) / (x[mask].std(ddof=1) + 1e-8), atol=1e-12)
    assert (result[~mask] == 0).all()
    weighted = standardize(torch.tensor(x), torch.tensor(mask) / mask.sum())
    assert np.array_equal(weighted.numpy(), result)
    assert standardize(torch.tensor([7.0])).tolist() == [0.0]


def test_explained_variance():
    returns = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert explained_variance(returns, returns).item() == 1.0
    assert explained_variance(torch.full((4,), 9.0), returns).item() == 0.0
    assert explained_variance(-returns, returns).item() == pytest.approx(-3.0)
    assert explained_variance(returns, torch.ones(4)).item() == 0.0
    masked = explained_variance(
        torch.tensor([1.0, 2.0, 9.0]), torch.tensor([1.0, 2.0, 3.0]), torch.tensor([True, True, False])
    )
    assert masked.item() == 1.0


# Objectives in front: [m, N, T], flags [N, T]


def vector_window(objectives=3, seed=4):
    parts = [tensors(window((4, 9), seed + k)) for k in range(objectives)]
    reward, value, next_value = (torch.stack([part[k] for part in parts]) for k in range(3))
    return reward, value, next_value, *parts[0][3:], torch.rand(4, 9, generator=torch.manual_seed(0)) > 0.3


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("discount", [0.9, "per decision"])
def test_objectives_in_front_are_as_calls_of_their_own(discount, masked):
    reward, value, next_value, terminated, truncated, mask = vector_window()
    mask = mask if masked else None
    discount = torch.rand(4, 9, generator=torch.manual_seed(1), dtype=torch.float64) if discount != 0.9 else 0.9
    calls = {
        "gae": lambda r, v, n: gae(r, v, n, terminated, truncated, discount, 0.8, mask)[0],
        "returns": lambda r, v, n: gae(r, v, n, terminated, truncated, discount, 0.8, mask)[1],
        "lambda": lambda r, v, n: lambda_returns(r, n, terminated, truncated, discount, 0.8, mask),
        "bootstrapped": lambda r, v, n: discounted_returns(r, terminated, truncated, discount, n, mask),
        "monte carlo": lambda r, v, n: discounted_returns(r, terminated, truncated, discount, None, mask),
        "n-step": lambda r, v, n: n_step_returns(r, n, terminated, truncated, discount, 3),
        "standardize": lambda r, v, n: standardize(r, torch.ones(4, 9) if mask is None else mask),
        "explained": lambda r, v, n: explained_variance(v, r, torch.ones(4, 9) if mask is None else mask),
    }
    for name, call in calls.items():
        expected = torch.stack([call(reward[k], value[k], next_value[k]) for k in range(3)])
        together = call(reward, value, next_value)
        assert torch.equal(together, expected), name
        whole = [flags.expand_as(reward) for flags in (terminated, truncated)]  # flags that have the objectives too
        if name == "gae" and mask is None:
            assert torch.equal(gae(reward, value, next_value, *whole, discount, 0.8)[0], expected)
    assert explained_variance(value, reward, torch.ones(4, 9)).shape == (3,)


def test_objectives_that_trail_are_refused():
    reward, value, next_value, terminated, truncated, mask = vector_window()
    trailing = [x.movedim(0, -1) for x in (reward, value, next_value)]
    with pytest.raises(ValueError, match=r"objectives in front: rewards \(4, 9, 3\), terminated \(4, 9\)"):
        gae(*trailing, terminated, truncated, 0.9, 0.8)
    with pytest.raises(ValueError, match="mask"):
        gae(reward, value, next_value, terminated, truncated, 0.9, 0.8, mask[:, :5])
    with pytest.raises(ValueError, match="discount"):
        lambda_returns(reward, next_value, terminated, truncated, torch.ones(3, 4), 0.9)
    with pytest.raises(ValueError, match="truncated"):
        discounted_returns(reward[0], terminated, truncated.expand(3, 4, 9), 0.9)
