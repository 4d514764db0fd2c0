import numpy as np
import pytest
import torch
from gymnasium import spaces
from tensordict import TensorDict

from polopt.config.serialize import from_dict, to_dict
from polopt.core.errors import UsageError
from polopt.core.spec import Spec
from polopt.networks import Network
from polopt.networks.normalizer import Normalizer
from polopt.policies import Auto, Categorical, Deterministic, Gaussian, MultiDiscrete, SquashedGaussian, TabularSoftmax
from polopt.policies.base import Density, Enumerates, Imitates, Reparameterized, Scores, require

VECTOR = spaces.Box(-1.0, 1.0, (3,), np.float32)
BOX = spaces.Box(-2.0, 2.0, (2,), np.float32)
FREE = spaces.Box(-np.inf, np.inf, (2,), np.float32)
GRU = Network(sizes=(8,), recurrent="gru", recurrent_size=6)
ALL = [
    (Gaussian(), BOX),
    (Gaussian(std="state-dependent"), FREE),
    (SquashedGaussian(), BOX),
    (Deterministic(), BOX),
    (Categorical(), spaces.Discrete(3)),
    (MultiDiscrete(), spaces.MultiDiscrete([2, 3])),
]
REFUSED = [
    (SquashedGaussian(), spaces.Discrete(2), "a squashed Gaussian needs a Box action space with finite bounds"),
    (SquashedGaussian(), FREE, "a squashed Gaussian needs a Box action space with finite bounds"),
    (Deterministic(), FREE, "a deterministic policy needs a Box action space with finite bounds"),
    (Gaussian(), spaces.Discrete(2), "a Gaussian policy needs a Box action space"),
    (Categorical(), BOX, "a categorical policy needs a Discrete action space"),
    (MultiDiscrete(), spaces.Discrete(2), "a multi-discrete policy needs a MultiDiscrete action space"),
    (TabularSoftmax(), spaces.Discrete(2), "a tabular softmax needs a Discrete observation space"),
    (Auto(), spaces.MultiBinary(2), r"has MultiBinary\(2\), which no policy serves"),
]


@pytest.mark.parametrize(("config", "action", "words"), REFUSED)
def test_wrong_spaces_are_refused_by_name(config, action, words):
    with pytest.raises(UsageError, match=words) as error:
        config.build(Spec(VECTOR, action, "CartPole-v1"), Network())
    assert "CartPole-v1" in str(error.value)
    assert str(VECTOR if isinstance(config, TabularSoftmax) else action) in str(error.value)


def test_auto_takes_the_natural_policy():
    families = [Auto().build(Spec(VECTOR, action), Network()).family for _, action in ALL]
    assert families == ["Gaussian policy"] * 4 + ["categorical policy", "multi-discrete policy"]


@pytest.mark.parametrize("config", [config for config, _ in ALL] + [Auto(), TabularSoftmax(), GRU])
def test_configs_survive_json(config):
    assert from_dict(type(config), to_dict(config)) == config


def test_clamp_of_log_std_must_not_be_empty():
    with pytest.raises(UsageError, match="log_std_low"):
        Gaussian(log_std_low=1.0, log_std_high=0.0)


@pytest.mark.parametrize(("config", "action"), ALL)
@pytest.mark.parametrize("network", [Network(sizes=(8,)), GRU])
def test_predict_serves_one_numpy_observation(config, action, network):
    policy = config.build(Spec(VECTOR, action), network)
    for greedy in (True, False):
        out = policy.predict(VECTOR.sample(), greedy=greedy)
        assert action.contains(out), out
    policy.reset()
    obs = VECTOR.sample()
    first, second = policy.predict(obs), policy.predict(obs)
    policy.reset()
    np.testing.assert_array_equal(first, policy.predict(obs))
    if network is GRU and isinstance(action, spaces.Box):
        assert not np.array_equal(first, second)


def test_predict_reads_images_and_dicts():
    space = spaces.Dict({"camera": spaces.Box(0, 255, (36, 36, 3), np.uint8), "x": VECTOR, "mode": spaces.Discrete(2)})
    for config, action in ALL:
        policy = config.build(Spec(space, action), Network(sizes=(8,)), Normalizer(space))
        assert action.contains(policy.predict(space.sample()))


@pytest.mark.parametrize(("config", "action"), ALL)
@pytest.mark.parametrize("dict_obs", [False, True])
def test_recurrent_window_is_scored_as_it_was_recorded(config, action, dict_obs):
    torch.manual_seed(0)
    space = spaces.Dict({"x": VECTOR}) if dict_obs else VECTOR
    policy = config.build(Spec(space, action), GRU)
    assert policy.recurrent
    n, t = 4, 12
    first = torch.rand(n, t) < 0.3
    observations = torch.randn(n, t, 3)
    # The window begins in the middle of episodes: the carry of an earlier step is not zero.
    carry = {"hidden": torch.randn(n, 6).tanh()}
    records = []
    for step in range(t):
        carry = {key: value * ~first[:, step, None] for key, value in carry.items()}
        obs = {"x": observations[:, step]} if dict_obs else observations[:, step]
        record, carry = policy.act(obs, carry)
        records.append(record)
    window = {key: torch.stack([record[key] for record in records], 1) for key in records[0]}
    assert window["hidden"].shape == (n, t, 6)
    obs = {"x": observations} if dict_obs else observations
    batch = TensorDict({"obs": obs, "first": first, **window}, batch_size=(n, t))
    if isinstance(policy, Scores):
        torch.testing.assert_close(policy.log_prob(batch), window["log_prob"], atol=1e-5, rtol=1e-5)
        wrong = batch.clone(False)
        wrong["first"] = torch.zeros_like(first)
        assert not torch.allclose(policy.log_prob(wrong), window["log_prob"], atol=1e-4)
        assert policy.entropy(batch).shape == (n, t)
        assert policy.kl(batch, policy).abs().max() < 1e-6
    else:
        assert policy.imitation_loss(batch).abs().max() < 1e-10
    # Rows may be split and permuted.
    rows = torch.tensor([2, 0])
    torch.testing.assert_close(policy.imitation_loss(batch[rows]).shape, torch.Size((2, t)))


@pytest.mark.parametrize("config", [Gaussian(), Deterministic()])
def test_recurrent_losses_have_no_graph_breaks(config):
    policy = config.build(Spec(VECTOR, BOX), GRU)
    window = {"obs": torch.randn(2, 4, 3), "action": torch.rand(2, 4, 2), "hidden": torch.zeros(2, 4, 6)}
    batch = TensorDict({**window, "first": torch.rand(2, 4) < 0.3}, batch_size=(2, 4))
    compiled = torch.compile(policy.imitation_loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(batch), policy.imitation_loss(batch))


def test_no_carry_is_a_carry_of_zeros():
    policy = Gaussian().build(Spec(VECTOR, BOX), GRU)
    obs = torch.randn(3, 3)
    one, after = policy.act(obs, None, greedy=True)
    other, _ = policy.act(obs, {"hidden": torch.zeros(3, 6)}, greedy=True)
    assert torch.equal(one["action"], other["action"])
    assert (one["hidden"] == 0).all()
    assert after["hidden"].shape == (3, 6)


def test_a_recurrent_policy_refuses_single_observations():
    policy = SquashedGaussian().build(Spec(VECTOR, BOX), GRU)
    with pytest.raises(UsageError, match="recurrent policy"):
        policy.rsample(torch.randn(3, 3))


@pytest.mark.parametrize(("config", "action"), ALL)
def test_acting_leaves_no_graph_and_records_can_be_trained_on(config, action):
    policy = config.build(Spec(VECTOR, action), Network(sizes=(8,)))
    obs = torch.randn(5, 3)
    record, carry = policy.act(obs)
    assert carry == {}
    assert not any(value.requires_grad for value in record.values())
    batch = TensorDict({"obs": obs, **record}, batch_size=5)
    policy.imitation_loss(batch).sum().backward()


@pytest.mark.parametrize(
    ("config", "action", "serves"),
    [
        (Gaussian(), BOX, {Scores, Density, Reparameterized, Imitates}),
        (SquashedGaussian(), BOX, {Scores, Density, Reparameterized, Imitates}),
        (Deterministic(), BOX, {Reparameterized, Imitates}),
        (Categorical(), spaces.Discrete(3), {Scores, Density, Imitates, Enumerates}),
        (MultiDiscrete(), spaces.MultiDiscrete([2, 3]), {Scores, Density, Imitates}),
    ],
)
def test_capabilities(config, action, serves):
    policy = config.build(Spec(VECTOR, action), Network())
    for capability in (Scores, Density, Reparameterized, Imitates, Enumerates):
        assert isinstance(policy, capability) == (capability in serves)
        if capability in serves:
            require(policy, capability, by="sac")
        else:
            with pytest.raises(UsageError, match=r"^sac needs a policy that .*, and a .* does not$"):
                require(policy, capability, by="sac")
