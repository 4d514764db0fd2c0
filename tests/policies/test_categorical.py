import itertools
import math

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from tensordict import TensorDict
from torch import distributions

from polopt.core.spec import Spec
from polopt.networks import Network
from polopt.policies import Categorical, MultiDiscrete, TabularSoftmax
from polopt.policies.categorical import draw, entropy_of, kl_between, log_probabilities, mask_logits

VECTOR = spaces.Box(-1.0, 1.0, (3,))
SPEC = Spec(VECTOR, spaces.Discrete(5), "Toy-v0")
MANY = Spec(VECTOR, spaces.MultiDiscrete([2, 4, 3]), "Many-v0")
NETWORK = Network(sizes=(8,))

pytestmark = pytest.mark.usefixtures("float64")


def masks(*shape):
    mask = torch.rand(shape) < 0.5
    mask[..., 0] |= ~mask.any(-1)
    return mask


@pytest.mark.parametrize("lead", [(7,), (2, 3)])
def test_categorical_equals_torch_distributions(lead):
    one, other = (Categorical().build(SPEC, NETWORK) for _ in range(2))
    batch = TensorDict({"obs": torch.randn(*lead, 3), "action": torch.randint(5, lead)}, batch_size=lead)
    p, q = (distributions.Categorical(logits=policy.logits(batch)) for policy in (one, other))
    torch.testing.assert_close(one.log_prob(batch), p.log_prob(batch["action"]), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(one.entropy(batch), p.entropy(), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(one.kl(batch, other), distributions.kl_divergence(p, q), rtol=1e-10, atol=1e-10)
    one.kl(batch, other).sum().backward()
    for policy in (one, other):
        assert all(parameter.grad.abs().sum() > 0 for parameter in policy.parameters())


@given(lead=st.lists(st.integers(1, 3), max_size=3).map(tuple), k=st.integers(1, 6), seed=st.integers(0, 999))
def test_masked_rows_are_the_categorical_over_their_legal_actions(lead, k, seed):
    torch.manual_seed(seed)
    logits, other, mask = torch.randn(*lead, k), torch.randn(*lead, k), masks(*lead, k)
    p, q = mask_logits(logits, mask), mask_logits(other, mask)
    probability, log_prob = log_probabilities(p)
    assert entropy_of(p).shape == kl_between(p, q).shape == draw(p).shape == lead
    for row in itertools.product(*map(range, lead)):
        legal = mask[row]
        small, small_other = (distributions.Categorical(logits=values[row][legal]) for values in (logits, other))
        torch.testing.assert_close(probability[row][legal], small.probs)
        torch.testing.assert_close(log_prob[row][legal], small.probs.log())
        assert (probability[row][~legal] == 0).all()
        assert (log_prob[row][~legal] == 0).all()
        torch.testing.assert_close(entropy_of(p)[row], small.entropy())
        torch.testing.assert_close(kl_between(p, q)[row], distributions.kl_divergence(small, small_other))
        assert legal[draw(p)[row]]


def test_masks_keep_gradients_finite():
    logits = torch.randn(6, 4, requires_grad=True)
    mask = masks(6, 4)
    mask[0] = False  # a padded row: nothing is legal
    mask[1] = torch.tensor([True, False, False, False])
    masked = mask_logits(logits, mask)
    loss = entropy_of(masked).sum() + kl_between(masked, masked.detach() * 0.5).sum()
    loss.backward()
    assert logits.grad.isfinite().all()
    assert (logits.grad[1:][~mask[1:]] == 0).all()
    assert entropy_of(masked)[1] == 0.0


def test_gradients_by_finite_differences():
    logits, other, mask = torch.randn(3, 4, requires_grad=True), torch.randn(3, 4, requires_grad=True), masks(3, 4)
    assert torch.autograd.gradcheck(lambda x: entropy_of(mask_logits(x, mask)), logits)
    assert torch.autograd.gradcheck(
        lambda x, y: kl_between(mask_logits(x, mask), mask_logits(y, mask)), (logits, other)
    )


def test_draw_has_the_right_frequencies():
    logits = torch.tensor([0.5, -1.0, float("-inf"), 1.0])
    counts = torch.bincount(draw(logits.expand(40_000, 4)), minlength=4) / 40_000
    torch.testing.assert_close(counts, logits.softmax(-1), atol=0.01, rtol=0)
    assert counts[2] == 0


def masked_spec(action, size):
    return Spec(spaces.Dict({"x": VECTOR, "action_mask": spaces.MultiBinary(size)}), action)


def test_masks_from_observations_and_from_the_batch_agree():
    policy = Categorical().build(masked_spec(spaces.Discrete(5), 5), NETWORK)
    obs = {"x": torch.randn(64, 3), "action_mask": masks(64, 5)}
    record, _ = policy.act(obs)
    rows = torch.arange(64)
    assert obs["action_mask"][rows, record["action"]].all()
    batch = TensorDict({"obs": obs, **record}, batch_size=64)
    torch.testing.assert_close(policy.log_prob(batch), record["log_prob"])
    batch["action_mask"] = obs["action_mask"]
    torch.testing.assert_close(policy.log_prob(batch), record["log_prob"])
    greedy = policy.act(obs, greedy=True)[0]["action"]
    assert torch.equal(greedy, policy.logits(batch).argmax(-1))
    assert obs["action_mask"][rows, greedy].all()
    one = {"x": np.zeros(3, np.float32), "action_mask": np.array([0, 0, 0, 1, 0], np.int8)}
    assert policy.predict(one) == 3


def test_multi_discrete_equals_independent_categoricals():
    one, other = (MultiDiscrete().build(MANY, NETWORK) for _ in range(2))
    obs = torch.randn(6, 3)
    record, _ = one.act(obs)
    assert record["action"].shape == (6, 3)
    batch = TensorDict({"obs": obs, **record}, batch_size=6)
    torch.testing.assert_close(one.log_prob(batch), record["log_prob"])
    p, q = (
        [distributions.Categorical(logits=part) for part in policy.net(obs).split([2, 4, 3], -1)]
        for policy in (one, other)
    )
    log_prob = sum(factor.log_prob(record["action"][:, d]) for d, factor in enumerate(p))
    torch.testing.assert_close(one.log_prob(batch), log_prob, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(one.entropy(batch), sum(factor.entropy() for factor in p), rtol=1e-10, atol=1e-10)
    kl = sum(distributions.kl_divergence(a, b) for a, b in zip(p, q))
    torch.testing.assert_close(one.kl(batch, other), kl, rtol=1e-10, atol=1e-10)


@given(seed=st.integers(0, 999), lead=st.sampled_from([(4,), (2, 3)]))
def test_multi_discrete_masks(seed, lead):
    torch.manual_seed(seed)
    policy = MultiDiscrete().build(MANY, NETWORK)
    mask = torch.cat([masks(*lead, n) for n in (2, 4, 3)], -1)
    outputs = torch.randn(*lead, 9)
    logits = policy.table(outputs, mask)
    action = draw(logits)
    offset = torch.tensor([0, 2, 6])
    assert mask.gather(-1, action + offset).all()
    entropy = sum(
        entropy_of(mask_logits(x, m)) for x, m in zip(outputs.split([2, 4, 3], -1), mask.split([2, 4, 3], -1))
    )
    torch.testing.assert_close(entropy_of(logits).sum(-1), entropy)


def test_multi_discrete_padding_rows_stay_finite():
    policy = MultiDiscrete().build(MANY, NETWORK)
    logits = policy.table(torch.randn(2, 9), torch.zeros(2, 9, dtype=torch.bool))
    entropy = entropy_of(logits).sum(-1)
    assert entropy.isfinite().all()
    assert (draw(logits) < torch.tensor([2, 4, 3])).all()


def test_actions_start_where_the_space_says():
    policy = Categorical().build(Spec(VECTOR, spaces.Discrete(3, start=-1)), NETWORK)
    assert policy.env_action(torch.tensor([0, 2])).tolist() == [-1, 1]
    assert policy.predict(np.zeros(3, np.float32)) in (-1, 0, 1)
    many = MultiDiscrete().build(Spec(VECTOR, spaces.MultiDiscrete([2, 2], start=[3, 0])), NETWORK)
    assert many.env_action(torch.tensor([[0, 1]])).tolist() == [[3, 1]]


def test_enumerated_probabilities_serve_expectations():
    policy = Categorical().build(SPEC, NETWORK)
    batch = TensorDict({"obs": torch.randn(4, 3), "action_mask": masks(4, 5)}, batch_size=4)
    probability, log_prob = policy.probabilities(batch)
    torch.testing.assert_close(probability.sum(-1), torch.ones(4))
    torch.testing.assert_close(-(probability * log_prob).sum(-1), policy.entropy(batch))
    assert (policy.logits(batch)[~batch["action_mask"]] == -math.inf).all()


def test_tabular_softmax():
    policy = TabularSoftmax().build(Spec(spaces.Discrete(4), spaces.Discrete(3)), NETWORK)
    states = torch.tensor([[0, 3], [1, 1]])
    batch = TensorDict({"obs": states, "action": torch.zeros(2, 2, dtype=torch.int64)}, batch_size=(2, 2))
    torch.testing.assert_close(policy.log_prob(batch), torch.full((2, 2), -math.log(3)))
    policy.table.data[1] = torch.tensor([2.0, 0.0, -1.0])
    expected = torch.tensor([2.0, 0.0, -1.0]).log_softmax(-1)[0]
    torch.testing.assert_close(policy.log_prob(batch)[1], expected.expand(2))
    # The policy gradient theorem's softmax form: d log pi(a|s) / d table[s, b] = 1[a = b] - pi(b|s).
    policy.log_prob(batch)[1, 0].backward()
    probability = policy.table[1].softmax(-1).detach()
    torch.testing.assert_close(policy.table.grad[1], torch.tensor([1.0, 0.0, 0.0]) - probability)
    assert policy.table.grad[[0, 2, 3]].abs().sum() == 0
    assert policy.predict(np.int64(1)) == 0
    assert [name for name, _ in policy.named_parameters()] == ["net.values"]


@pytest.mark.parametrize("config", [Categorical(), MultiDiscrete()])
def test_no_graph_breaks(config):
    action = spaces.Discrete(5) if isinstance(config, Categorical) else spaces.MultiDiscrete([2, 3])
    policy = config.build(masked_spec(action, 5), NETWORK)
    obs = {"x": torch.randn(6, 3), "action_mask": torch.ones(6, 5, dtype=torch.bool)}
    batch = TensorDict({"obs": obs, **policy.act(obs)[0]}, batch_size=6)
    compiled = torch.compile(lambda b: (policy.log_prob(b), policy.entropy(b)), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(batch), (policy.log_prob(batch), policy.entropy(batch)))
