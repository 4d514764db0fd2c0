import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from polopt.core.errors import CheckpointError
from polopt.core.state import gather, restore
from polopt.values.tracker import BetaTracker

torch.set_num_threads(1)
pytestmark = pytest.mark.usefixtures("float64")


def test_start_by_hand():
    tracker = BetaTracker(3)
    assert tracker.value().tolist() == [0.5] * 3
    tracker.initialize(torch.tensor([0, 4, 8]), 8)
    total = 1 / (1 - 0.875)  # 8 pseudo-counts
    np.testing.assert_allclose(tracker.alpha.numpy(), total * np.array([0.5, 4.5, 8.5]) / 9)
    np.testing.assert_allclose((tracker.alpha + tracker.beta).numpy(), total)
    np.testing.assert_allclose(tracker.value().numpy(), np.array([0.5, 4.5, 8.5]) / 9)
    tracker.initialize(torch.tensor([2]), 2, index=torch.tensor([1]))
    np.testing.assert_allclose(tracker.value(torch.tensor([[1, 2]])).numpy(), [[2.5 / 3, 8.5 / 9]])
    tracker.initialize(torch.zeros(3), 0)
    assert tracker.alpha.tolist() == tracker.beta.tolist() == [0.5] * 3


def test_memory_by_hand():
    tracker = BetaTracker(1)
    drift = torch.tensor([0.0, 0.06 * math.log2(1 / 0.9), 0.06, 10.0])
    np.testing.assert_allclose(tracker.forget(drift).numpy(), [0.96, 0.9, 0.875, 0.875])  # 2^-1 is below the range
    wide = BetaTracker(1, rho_low=0.1, rho_high=0.99)
    np.testing.assert_allclose(wide.forget(torch.tensor([0.06, 0.12])).numpy(), [0.5, 0.25])


def test_update_by_hand():
    tracker = BetaTracker(2)
    tracker.initialize(torch.tensor([4.0, 4.0]), 8)
    tracker.update(torch.tensor([0, 1]), torch.tensor([1.0, 0.0]), torch.tensor([0.9, 0.96]))
    np.testing.assert_allclose(tracker.alpha.numpy(), [0.9 * 4 + 1, 0.96 * 4])
    np.testing.assert_allclose(tracker.beta.numpy(), [0.9 * 4, 0.96 * 4 + 1])
    np.testing.assert_allclose(tracker.value().numpy(), [4.6 / 8.2, 3.84 / 8.68])
    tracker.update(torch.zeros(0, dtype=torch.int64), torch.zeros(0), torch.zeros(0))
    with pytest.raises(ValueError, match="equal"):
        tracker.update(torch.tensor([0]), torch.zeros(1, 1), torch.ones(1))


@given(
    st.lists(st.tuples(st.integers(0, 4), st.floats(-2, 3), st.floats(0.875, 0.96)), min_size=1, max_size=30),
)
def test_any_batch_is_its_rows_one_after_the_other(visits):
    """Repeated problems are updated in order, and the value moves as an exponential average, whatever the reward."""
    tracker = BetaTracker(5)
    tracker.initialize(torch.arange(5), 8)
    alpha, beta = tracker.alpha.tolist(), tracker.beta.tolist()
    for index, reward, rho in visits:
        value = alpha[index] / (alpha[index] + beta[index])
        eta = 1 / (rho * (alpha[index] + beta[index]) + 1)
        alpha[index], beta[index] = rho * alpha[index] + reward, rho * beta[index] + 1 - reward
        moved = value + eta * (reward - value)
        assert alpha[index] / (alpha[index] + beta[index]) == pytest.approx(moved, abs=1e-9)
    columns = [torch.tensor(column) for column in zip(*visits)]
    tracker.update(columns[0], columns[1].double(), columns[2].double())
    np.testing.assert_allclose(tracker.alpha.numpy(), alpha, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(tracker.beta.numpy(), beta, rtol=1e-12, atol=1e-12)


def test_rows_of_different_problems_may_come_in_any_order():
    generator = torch.Generator().manual_seed(0)
    index, reward = torch.randperm(40, generator=generator)[:16], torch.rand(16, generator=generator)
    rho, order = torch.rand(16, generator=generator), torch.randperm(16, generator=generator)
    trackers = BetaTracker(40), BetaTracker(40)
    trackers[0].update(index, reward, rho)
    trackers[1].update(index[order], reward[order], rho[order])
    assert torch.equal(trackers[0].alpha, trackers[1].alpha)
    untouched = [i for i in range(40) if i not in index.tolist()]
    assert trackers[0].alpha[untouched].tolist() == [0.5] * len(untouched)


def test_weights_by_hand():
    tracker = BetaTracker(3)
    tracker.alpha, tracker.beta = torch.tensor([1.0, 9.0, 3.0]), torch.tensor([1.0, 1.0, -1.0])
    np.testing.assert_allclose(tracker.weight().numpy(), [0.55, 0.35, 0.05])


def test_the_mean_of_a_steady_stream_is_found():
    """With a fixed rho the tracker forgets its start and its expected value is the success rate."""
    tracker = BetaTracker(2000)
    generator = torch.Generator().manual_seed(0)
    everything, rho = torch.arange(2000), torch.full((2000,), 0.9)
    for _ in range(100):
        tracker.update(everything, (torch.rand(2000, generator=generator) < 0.3).double(), rho)
    assert tracker.value().mean().item() == pytest.approx(0.3, abs=0.01)
    np.testing.assert_allclose((tracker.alpha + tracker.beta).numpy(), 10, rtol=1e-3)  # 1 / (1 - rho)


def test_state_is_saved():
    tracker, other = BetaTracker(4), BetaTracker(4)
    tracker.update(torch.tensor([1, 1, 3]), torch.tensor([1.0, 1.0, 0.0]), torch.full((3,), 0.9))
    restore(other, {name: leaf.clone() for name, leaf in gather(tracker).items()})
    assert torch.equal(other.value(), tracker.value())
    with pytest.raises(CheckpointError, match="its tracker has 4 problems, this run 5"):
        restore(BetaTracker(5), gather(tracker))
    with pytest.raises(ValueError, match="rho must be inside"):
        BetaTracker(4, rho_high=1.0)
