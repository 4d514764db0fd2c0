import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from polopt.core.errors import UsageError
from polopt.networks import Network
from polopt.policies import Autoregressive
from polopt.policies.base import Density, Imitates, Scores
from tests.policies.generative import NETWORK, SPEC, batch_of, compiled_difference, imitate, shares


def make(**options):
    return Autoregressive(**options).build(SPEC, NETWORK)


@given(st.lists(st.integers(1, 4), min_size=1, max_size=3), st.integers(2, 9))
def test_shapes(lead, bins):
    policy = make(bins=bins)
    batch = batch_of(*lead)
    for greedy in (False, True):
        record, carry = policy.act(batch["obs"], greedy=greedy)
        assert carry == {}
        assert record["action"].shape == (*lead, 2)
        assert record["log_prob"].shape == tuple(lead)
    recorded = batch.clone().update(record)
    torch.testing.assert_close(policy.log_prob(recorded), record["log_prob"])
    assert policy.entropy(batch).shape == policy.imitation_loss(batch).shape == tuple(lead)


@given(st.integers(2, 300))
def test_bins_and_centers_are_inverse(bins):
    policy = make(bins=bins)
    index = torch.arange(bins)
    center = policy.center(index)
    assert torch.equal(policy.bin_of(center), index)
    assert float(center.abs().max()) < 1
    assert torch.allclose(center.diff(), torch.tensor(2 / bins), atol=1e-5)
    assert policy.bin_of(torch.tensor([-1.0, 1.0, -7.0, 7.0])).tolist() == [0, bins - 1, 0, bins - 1]


def test_the_recorded_score_is_scored_again(float64):
    policy, batch = make(bins=7), batch_of(3, 5)
    batch.update(policy.act(batch["obs"])[0])
    torch.testing.assert_close(policy.log_prob(batch), batch["log_prob"], rtol=0, atol=1e-12)
    flat = batch.reshape(-1)
    torch.testing.assert_close(policy.log_prob(flat), flat["log_prob"], rtol=0, atol=1e-12)
    torch.testing.assert_close(policy.imitation_loss(batch), -batch["log_prob"])


def test_probabilities_of_all_actions_sum_to_one_and_factors_depend_on_what_came_before(float64):
    policy = make(bins=4)
    pairs = torch.tensor(list(itertools.product(range(4), repeat=2)))
    batch = batch_of(16)
    batch["obs"] = torch.randn(1, 3).expand(16, 3)
    batch["action"] = policy.center(pairs)
    probability = policy.log_prob(batch).exp().detach().reshape(4, 4)
    assert float(probability.sum()) == pytest.approx(1.0)
    second = probability / probability.sum(1, keepdim=True)
    assert (second.std(0) > 1e-4).any()
    exact = -(probability * probability.log()).sum()
    # The estimate, averaged over the policy's own distribution, is the exact entropy.
    assert float((policy.entropy(batch).detach().reshape(4, 4) * probability).sum()) == pytest.approx(float(exact))


def test_samples_have_the_probabilities_that_it_says():
    policy = make(bins=3)
    obs = torch.randn(1, 3).expand(30_000, 3)
    record, _ = policy.act(obs)
    index = policy.bin_of(record["action"])
    counts = torch.bincount(index[:, 0] * 3 + index[:, 1], minlength=9) / 30_000
    batch = batch_of(9)
    batch["obs"] = obs[:9]
    batch["action"] = policy.center(torch.tensor(list(itertools.product(range(3), repeat=2))))
    assert counts.numpy() == pytest.approx(policy.log_prob(batch).exp().detach().numpy(), abs=0.015)


def test_what_it_promises():
    policy = make()
    assert isinstance(policy, Scores)
    assert isinstance(policy, Imitates)
    assert not isinstance(policy, Density)


def test_it_imitates_both_modes_and_their_dependence():
    torch.manual_seed(1)
    policy = Autoregressive(bins=10).build(SPEC, Network((64,), "relu"))
    imitate(policy, 250)
    one, other, elsewhere = shares(policy)
    assert min(one, other) > 0.4
    assert elsewhere < 0.05
    action = policy.act(torch.zeros(1, 3), greedy=True)[0]["action"]
    assert float((action.abs() - 0.6).abs().max()) < 0.15


def test_the_loss_compiles_in_one_graph_and_recurrent_networks_are_refused():
    assert compiled_difference(make(), batch_of(8)) < 1e-6
    with pytest.raises(UsageError, match="an autoregressive policy is feed-forward: set the network's recurrent"):
        Autoregressive().build(SPEC, Network((8,), recurrent="gru"))
    assert SPEC.action.contains(make().predict(np.zeros(3, np.float32)))
