from __future__ import annotations

import pytest
import torch

from polopt.core.random import paired
from polopt.networks import Network
from polopt.policies import Gaussian
from polopt.tasks import make_task


def test_equal_seeds_draw_equal_numbers_whoever_drew_before():
    draws = []
    for before in range(3):
        torch.rand(before)
        with paired(5):
            draws.append(torch.rand(4))
    assert torch.equal(draws[0], draws[1])
    assert torch.equal(draws[1], draws[2])
    assert torch.equal(draws[0], torch.rand(4, generator=torch.Generator().manual_seed(5)))
    with paired(6):
        assert not torch.equal(draws[0], torch.rand(4))


def test_the_run_around_it_does_not_notice():
    torch.manual_seed(3)
    expected = torch.rand(6)
    torch.manual_seed(3)
    first = torch.rand(3)
    with pytest.raises(RuntimeError, match="shape"), paired(0):
        torch.rand(9).reshape(2)
    with paired(1):
        torch.rand(9)
        with paired(2):
            torch.rand(2)
    assert torch.equal(torch.cat([first, torch.rand(3)]), expected)


def test_two_arms_share_their_noise():
    """What differs between two policies that are compared so is what differs in them: here their means."""
    spec = make_task("Pendulum-v1").spec
    arms = []
    for seed in range(2):
        torch.manual_seed(seed)
        arms.append(Gaussian().build(spec, network=Network((4,))))
    obs, noise = torch.randn(50, 3), []
    for arm in arms:
        with paired(0):
            noise.append(arm.act(obs)[0]["action"] - arm.net(obs).detach())
    torch.testing.assert_close(noise[0], noise[1])
    assert not torch.equal(arms[0].net(obs), arms[1].net(obs))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_cuda_device():
    with paired(4, "cuda"):
        one = torch.rand(3, device="cuda")
    torch.rand(5, device="cuda")
    with paired(4, torch.device("cuda", 0)):
        assert torch.equal(one, torch.rand(3, device="cuda"))
    before = torch.cuda.get_rng_state()
    with paired(4, "cpu"):
        pass
    assert torch.equal(before, torch.cuda.get_rng_state())
