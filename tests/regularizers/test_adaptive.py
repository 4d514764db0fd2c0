import pytest
import torch

from polopt.core.errors import UsageError
from polopt.core.state import gather, restore
from polopt.regularizers import AdaptiveKL, KLPenalty

torch.set_num_threads(1)


def test_learning_rate_rule_by_hand():
    rate = AdaptiveKL(target=0.01).build(1e-3)
    assert rate.value.item() == 1e-3
    steps = [(0.0, 1e-3), (0.021, 1e-3 / 1.5), (0.02, 1e-3 / 1.5), (0.005, 1e-3 / 1.5), (0.004, 1e-3), (0.004, 1.5e-3)]
    for kl, expected in steps:
        assert rate.update(torch.tensor(kl, dtype=torch.float64)).item() == pytest.approx(expected, rel=1e-12)
    for kl, bound in ((1.0, 1e-5), (1e-3, 1e-2)):
        for _ in range(40):
            rate.update(torch.tensor(kl))
        assert rate.value.item() == bound


def test_learning_rate_is_saved():
    rate = AdaptiveKL().build(1e-3)
    rate.update(torch.tensor(1.0))
    other = AdaptiveKL().build(1e-3)
    restore(other, gather(rate))
    assert other.value.item() == pytest.approx(1e-3 / 1.5, rel=1e-12)


def test_penalty_rule_by_hand():
    penalty = KLPenalty(initial=1.0, target=0.01).build()
    for kl, expected in ((0.016, 2.0), (0.015, 2.0), (0.0067, 2.0), (0.0066, 1.0), (0.0, 0.5)):
        assert penalty.update(torch.tensor(kl)).item() == expected
    fixed = KLPenalty(initial=3.0, target=None).build()
    assert fixed.update(torch.tensor(9.0)).item() == 3.0


def test_bounds_in_order():
    with pytest.raises(UsageError, match="low"):
        AdaptiveKL(low=1e-1, high=1e-2)
