"""Perturbed flows: where the flow ends, what is recorded, and the Gaussian around the end."""

import math

import pytest
import torch
from gymnasium import spaces
from scipy import stats
from tensordict import TensorDict

from polopt.core.errors import UsageError
from polopt.core.spec import Spec
from polopt.networks import Network
from polopt.policies.perturbed import Blind, PerturbedFlow

BOX = spaces.Box(-2.0, 2.0, (2,))
SPEC = Spec(spaces.Box(-1.0, 1.0, (3,)), BOX, "test")


def policy_of(**options):
    torch.manual_seed(0)
    return PerturbedFlow(**{"steps": 2} | options).build(SPEC, Network((8,)))


def test_the_midpoint_method_by_hand(float64):
    policy = policy_of(steps=2)
    policy.drift = lambda features, x, time: 3.0 * x + time.square()  # x' = -(3 x + s^2), from s = 1 to 0
    latent = torch.tensor([[1.0, -2.0]])
    expected = []
    for x in (1.0, -2.0):
        for start in (1.0, 0.5):
            middle = x + 0.25 * (3.0 * x + start**2)
            x = x + 0.5 * (3.0 * middle + (start - 0.25) ** 2)
        expected.append(x)
    found = policy.center(policy.net.features(torch.zeros(1, 3)), latent)
    torch.testing.assert_close(found, torch.tensor([expected]))


def test_with_many_steps_it_ends_where_the_equation_ends(float64):
    policy = policy_of(steps=200)
    policy.drift = lambda features, x, time: -0.7 * x
    found = policy.center(policy.net.features(torch.zeros(1, 3)), torch.tensor([[1.0, 2.0]]))
    torch.testing.assert_close(found, math.exp(-0.7) * torch.tensor([[1.0, 2.0]]), rtol=1e-5, atol=0)


def test_what_is_recorded_belongs_together(float64):
    policy = policy_of(log_std_init=-0.4)
    obs = torch.randn(50, 3)
    record, _ = policy.act(obs)
    center = policy.center(policy.net.features(obs), record["latent"])
    torch.testing.assert_close(record["center"], center.detach())
    normal = stats.norm(center.detach().numpy(), math.exp(-0.4))
    expected = torch.from_numpy(normal.logpdf(record["action"].numpy()).sum(-1))
    torch.testing.assert_close(record["log_prob"], expected)
    batch = TensorDict({"obs": obs, **record}, batch_size=[50])
    torch.testing.assert_close(policy.log_prob(batch).detach(), expected)
    torch.testing.assert_close(policy.entropy(batch)[0].item(), 2 * float(stats.norm(0, math.exp(-0.4)).entropy()))


def test_noise_is_standard_normal_and_the_rest_has_the_learned_std():
    policy = policy_of(log_std_init=-1.0)
    record, _ = policy.act(torch.zeros(20_000, 3))
    rest = record["action"] - record["center"]
    for values, std in ((record["latent"], 1.0), (rest, math.exp(-1.0))):
        torch.testing.assert_close(values.mean(0), torch.zeros(2), atol=0.03, rtol=0)
        torch.testing.assert_close(values.std(0), torch.full((2,), std), atol=0.02, rtol=0)


def test_log_std_is_clamped():
    high, low = policy_of(log_std_init=9.0), policy_of(log_std_init=-9.0, log_std_low=-3.0)
    assert high.clamped_log_std.tolist() == [4.0, 4.0]
    assert low.clamped_log_std.tolist() == [-3.0, -3.0]


def test_greedy_samples_or_is_the_center_of_zero_noise():
    obs = torch.randn(4, 3)
    sampled = policy_of()
    assert not torch.equal(sampled.act(obs, greedy=True)[0]["action"], sampled.act(obs, greedy=True)[0]["action"])
    sure = policy_of(greedy="center")
    record, _ = sure.act(obs, greedy=True)
    assert record["latent"].abs().max() == 0
    assert torch.equal(record["action"], sure.center(sure.net.features(obs), torch.zeros(4, 2)))
    assert not torch.equal(sure.act(obs)[0]["action"], sure.act(obs)[0]["action"])


def test_a_blind_denoiser_goes_equally_far_from_everywhere(float64):
    policy = policy_of(denoiser=Blind(), start="zero")
    obs = torch.randn(4, 3)
    features = policy.net.features(obs)
    gap = policy.center(features, torch.ones(4, 2)) - policy.center(features, torch.zeros(4, 2))
    torch.testing.assert_close(gap, torch.ones(4, 2))
    assert policy.act(obs)[0]["latent"].abs().max() == 0


def test_times_are_the_ends_and_middles_of_steps():
    policy = policy_of(steps=2)
    times = policy.draw_times(TensorDict({}, batch_size=[400, 5]))
    assert times.shape == (400, 5, 1)
    assert times.unique().tolist() == [0.0, 0.25, 0.5, 0.75, 1.0]
    share = torch.bincount((4 * times).long().flatten()) / times.numel()
    torch.testing.assert_close(share, torch.full((5,), 0.2), atol=0.04, rtol=0)


@pytest.mark.parametrize(
    ("options", "spec", "network", "sentence"),
    [
        (
            {},
            Spec(BOX, spaces.Discrete(3), "test"),
            Network(),
            "a perturbed flow needs a Box action space; test has Di",
        ),
        ({}, SPEC, Network(recurrent="gru"), "a perturbed flow is feed-forward"),
        ({"log_std_low": 4.0}, SPEC, Network(), "log_std_low 4 must be below log_std_high 4"),
        ({"denoiser": Blind(), "time_size": 8}, SPEC, Network(), "time_size has no effect on a blind denoiser"),
    ],
)
def test_what_cannot_be_is_said(options, spec, network, sentence):
    with pytest.raises(UsageError, match=f"^{sentence}"):
        PerturbedFlow(**options).build(spec, network)
