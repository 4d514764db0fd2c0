import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from gymnasium import spaces

from polopt.core.errors import UsageError
from polopt.core.spec import Spec
from polopt.core.state import gather
from polopt.regularizers import Fixed, Learned
from polopt.regularizers.entropy import EntropyTemperature

torch.set_num_threads(1)
SPEC = Spec(spaces.Box(-1, 1, (3,)), spaces.Box(-1, 1, (2, 3)))


def test_configs_import_no_torch():
    code = "import sys, polopt.regularizers, polopt.losses; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_configs_build_temperatures():
    learned = Learned().build(SPEC)
    assert learned.target_entropy.item() == -6.0
    assert learned.value.item() == 1.0
    assert [name for name, _ in learned.named_parameters()] == ["log_alpha"]
    assert Learned(initial=math.e, target_entropy=0.5).build(SPEC).target_entropy.item() == 0.5
    fixed = Fixed(0.25).build(SPEC)
    assert fixed.value.item() == pytest.approx(0.25)
    assert not fixed.learned
    assert list(fixed.parameters()) == []
    assert Fixed(0.0).build(SPEC).value.item() == 0.0
    with pytest.raises(UsageError, match="initial"):
        Learned(initial=0.0)
    with pytest.raises(RuntimeError, match="fixed"):
        fixed.loss(torch.zeros(2), torch.ones(2))


@pytest.mark.parametrize("form", ["alpha", "log-alpha"])
def test_loss_and_gradient_by_hand(form):
    temperature = EntropyTemperature(2.0, -1.0, form=form).double()
    entropy = torch.tensor([0.5, -3.0], dtype=torch.float64, requires_grad=True)
    weight = torch.tensor([0.25, 0.75], dtype=torch.float64)
    gap = 0.25 * 1.5 + 0.75 * -2.0
    alpha = math.exp(temperature.log_alpha.item())
    loss = temperature.loss(entropy, weight)
    assert loss.item() == pytest.approx((alpha if form == "alpha" else math.log(alpha)) * gap)
    loss.backward()
    assert temperature.log_alpha.grad.item() == pytest.approx((alpha if form == "alpha" else 1.0) * gap)
    assert temperature.log_alpha.grad.item() < 0  # entropy is below the target: a descent step raises the temperature
    assert entropy.grad is None
    mean = (weight * entropy).sum()
    torch.testing.assert_close(temperature.loss(mean), loss)
    with pytest.raises(ValueError, match="equal"):
        temperature.loss(entropy)


def test_micro_batches_add_up():
    temperature = EntropyTemperature(0.7, -2.0).double()
    entropy, weight = torch.randn(8, dtype=torch.float64), torch.full((8,), 1 / 8, dtype=torch.float64)
    pieces = sum(temperature.loss(e, w) for e, w in zip(entropy.split(3), weight.split(3)))
    torch.testing.assert_close(pieces, temperature.loss(entropy, weight))


def test_temperature_reaches_the_dual_optimum():
    """A Gaussian bandit with fixed policy: entropy below target raises alpha, above lowers it."""
    for entropy, direction in ((-5.0, 1), (5.0, -1)):
        temperature = EntropyTemperature(1.0, 0.0)
        optimizer = torch.optim.Adam(temperature.parameters(), lr=0.1)
        for _ in range(5):
            optimizer.zero_grad()
            temperature.loss(torch.full((4,), entropy), torch.full((4,), 0.25)).backward()
            optimizer.step()
        assert np.sign(temperature.value.item() - 1) == direction
    assert list(gather(temperature)) == ["log_alpha"]


def test_what_a_temperature_refuses():
    with pytest.raises(ValueError, match="equal"):
        EntropyTemperature(1.0, 0.0).loss(torch.zeros(4, 1), torch.zeros(4))
    with pytest.raises(ValueError, match="form"):
        EntropyTemperature(1.0, 0.0, form="beta")
