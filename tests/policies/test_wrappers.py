import math

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from tensordict import TensorDict
from torch import nn

from polopt.core.errors import UsageError
from polopt.core.spec import Spec
from polopt.core.state import gather, restore
from polopt.networks import Network
from polopt.networks.normalizer import Normalizer
from polopt.policies import Categorical, Deterministic, Flow, Gaussian, MultiDiscrete, SquashedGaussian
from polopt.policies.base import Scores, require
from polopt.policies.wrappers import BestOf, Greedy, Lagged, Mixture, Noisy, Uniform, Valued, candidates

VECTOR = spaces.Box(-1.0, 1.0, (3,), np.float32)
BOX = spaces.Box(np.float32([-2, 0]), np.float32([2, 5]))
SPEC = Spec(VECTOR, BOX, "Toy-v0")
NETWORK = Network(sizes=(8,))
GRU = Network(sizes=(8,), recurrent="gru", recurrent_size=6)


def test_greedy_takes_the_mode():
    policy = Gaussian().build(SPEC, NETWORK)
    obs = torch.randn(4, 3)
    torch.testing.assert_close(Greedy(policy).act(obs)[0]["action"], policy.act(obs, greedy=True)[0]["action"])


def test_a_wrapper_promises_nothing_but_to_act():
    policy = Gaussian().build(SPEC, NETWORK)
    with pytest.raises(UsageError, match=r"ppo needs a policy that scores .* and a wrapped Gaussian policy does not"):
        require(Greedy(policy), Scores, by="ppo")
    with pytest.raises(UsageError, match="no closed form"):
        policy.kl(TensorDict({"obs": torch.randn(2, 3)}, batch_size=2), Greedy(policy))


def test_noise_has_its_size_and_stays_in_the_unit_box():
    policy = Deterministic().build(SPEC, NETWORK)
    obs = torch.randn(1, 3).expand(20_000, 3)
    clean = policy.act(obs)[0]["action"]
    noisy = Noisy(policy, 0.1)
    action = noisy.act(obs)[0]["action"]
    assert (action - clean).std(0).tolist() == pytest.approx([0.1, 0.1], rel=0.05)
    assert torch.equal(noisy.act(obs, greedy=True)[0]["action"], clean)
    assert Noisy(policy, 5.0).act(obs)[0]["action"].abs().max() == 1.0
    assert BOX.contains(noisy.predict(np.zeros(3, np.float32)))


def test_noise_drops_the_scores_of_the_clean_action():
    record, _ = Noisy(SquashedGaussian().build(SPEC, NETWORK), 0.1).act(torch.randn(4, 3))
    assert set(record) == {"action"}
    discrete = Categorical().build(Spec(VECTOR, spaces.Discrete(2), "CartPole-v1"), NETWORK)
    with pytest.raises(UsageError, match=r"CartPole-v1 has Discrete\(2\)"):
        Noisy(discrete, 0.1)


def test_lagged_by_act_is_refreshed_every_k_calls():
    policy = Gaussian().build(SPEC, NETWORK)
    lagged = Lagged(policy, 3)
    obs = torch.randn(2, 3)
    for call in range(8):
        with torch.no_grad():
            policy.log_std += 1.0
        lagged.act(obs)
        assert lagged.stale.log_std[0].item() == 1.0 + 3 * (call // 3)
    assert not any(parameter.requires_grad for parameter in lagged.stale.parameters())
    assert all(parameter.requires_grad for parameter in policy.parameters())


def test_lagged_by_update_copies_buffers_too():
    normalizer = Normalizer(VECTOR)
    policy = Gaussian().build(SPEC, NETWORK, normalizer)
    lagged = Lagged(policy, 2, on="update")
    normalizer.update(torch.randn(10, 3))
    counts = []
    for _ in range(3):
        lagged.act(torch.randn(2, 3))
        lagged.update()
        counts.append(lagged.stale.normalizer.count.item())
    assert counts == [0, 10, 10]


def test_lagged_is_saved_with_its_stale_copy_and_its_count():
    one, other = (Lagged(Gaussian().build(SPEC, NETWORK), 3) for _ in range(2))
    one.act(torch.randn(2, 3))
    with torch.no_grad():
        one.actor.log_std += 1.0
    restore(other, gather(one))
    assert other.calls == 1
    assert other.stale.log_std[0] == 0.0
    assert other.actor.log_std[0] == 1.0


@pytest.mark.parametrize(("every", "on"), [(0, "act"), (2, "step")])
def test_lagged_refuses_nonsense(every, on):
    with pytest.raises(UsageError):
        Lagged(Gaussian().build(SPEC, NETWORK), every, on)


@pytest.mark.parametrize(
    ("config", "action", "mean", "log_prob"),
    [
        (Gaussian(), BOX, [0.0, 2.5], -math.log(20)),
        (SquashedGaussian(), BOX, [0.0, 2.5], -math.log(4)),
        (Deterministic(), BOX, [0.0, 2.5], None),
        (Categorical(), spaces.Discrete(3), [1.0], -math.log(3)),
        (MultiDiscrete(), spaces.MultiDiscrete([2, 3]), [0.5, 1.0], -math.log(6)),
    ],
)
@pytest.mark.parametrize("network", [NETWORK, GRU])
def test_uniform_records_what_its_policy_records(config, action, mean, log_prob, network):
    policy = config.build(Spec(VECTOR, action), network)
    uniform = Uniform(policy.spec, like=policy)
    obs = torch.randn(500, 3)
    record, carry = uniform.act(obs)
    expected, _ = policy.act(obs)
    assert set(record) == set(expected)
    assert set(carry) == ({"hidden"} if network is GRU else set())
    for key, value in expected.items():
        assert record[key].shape == value.shape, key
        assert record[key].dtype == value.dtype, key
    sent = uniform.env_action(record["action"]).numpy()
    assert all(action.contains(row.astype(action.dtype)) for row in sent)
    assert sent.reshape(500, -1).mean(0) == pytest.approx(mean, abs=0.25)
    if log_prob is not None:
        torch.testing.assert_close(record["log_prob"], torch.full((500,), log_prob))
    if "pre_action" in record:
        torch.testing.assert_close(record["pre_action"].tanh(), record["action"])
    assert action.contains(uniform.predict(np.zeros(3, np.float32)))


@given(seed=st.integers(0, 999))
def test_uniform_takes_only_legal_actions(seed):
    torch.manual_seed(seed)
    mask = torch.rand(40, 5) < 0.4
    mask[:, 0] |= ~mask[:, :2].any(-1)
    mask[:, 2] |= ~mask[:, 2:].any(-1)
    obs = {"x": torch.randn(40, 3), "action_mask": mask}
    space = spaces.Dict({"x": VECTOR, "action_mask": spaces.MultiBinary(5)})
    record, _ = Uniform(Spec(space, spaces.Discrete(5))).act(obs)
    assert mask[torch.arange(40), record["action"]].all()
    torch.testing.assert_close(record["log_prob"], -mask.sum(-1).log())
    record, _ = Uniform(Spec(space, spaces.MultiDiscrete([2, 3]))).act(obs)
    assert mask.gather(-1, record["action"] + torch.tensor([0, 2])).all()
    torch.testing.assert_close(record["log_prob"], -mask[:, :2].sum(-1).log() - mask[:, 2:].sum(-1).log())


def test_uniform_without_bounds_is_finite():
    space = spaces.Box(np.float32([-np.inf, 1, -np.inf, 0]), np.float32([np.inf, np.inf, 2, 1]))
    record, _ = Uniform(Spec(VECTOR, space)).act(torch.randn(1000, 3))
    action = record["action"]
    assert action.isfinite().all()
    assert (action[:, 1] >= 1).all()
    assert (action[:, 2] <= 2).all()
    assert ((action[:, 3] >= 0) & (action[:, 3] <= 1)).all()
    expected = -0.5 * action[:, 0] ** 2 - 0.5 * math.log(2 * math.pi) - (action[:, 1] - 1) - (2 - action[:, 2])
    torch.testing.assert_close(record["log_prob"], expected, atol=1e-5, rtol=1e-5)


def test_a_mixture_is_each_rows_policy_with_its_memory():
    """A row is what its copy does alone, with that copy's hidden state; the greedy one samples as well."""
    torch.manual_seed(0)
    policy = Gaussian(log_std_init=-20.0).build(SPEC, GRU)
    mixture, generator = Mixture(policy, 2), torch.Generator().manual_seed(0)
    for _ in range(2):
        with torch.no_grad():
            [parameter.add_(0.3 * torch.randn_like(parameter)) for parameter in policy.parameters()]
        mixture.keep(generator)
    obs = torch.randn(2, 40, 3)
    record, carry = mixture.act(obs[0])
    assert sorted(carry["copy"].unique().tolist()) == [1, 2]
    later, after = mixture.act(obs[1], carry, greedy=True)
    for number, copy in enumerate(mixture.copies, 1):
        rows = carry["copy"] == number
        alone, memory = copy.act(obs[0])
        torch.testing.assert_close(record["action"][rows], alone["action"][rows], atol=1e-5, rtol=0)
        alone, memory = copy.act(obs[1], memory)
        torch.testing.assert_close(later["action"][rows], alone["action"][rows], atol=1e-5, rtol=0)
        assert after["hidden"][rows].equal(memory["hidden"][rows])
    other = Mixture(policy, 2)
    restore(other, gather(mixture))
    assert other.count == 2
    assert gather(other).keys() == gather(mixture).keys()


def test_uniform_refuses_other_spaces():
    with pytest.raises(UsageError, match="random actions need"):
        Uniform(Spec(VECTOR, spaces.MultiBinary(2)))


class Critic(nn.Module):
    def __init__(self, network):
        super().__init__()
        self.net = network.build(VECTOR, 1)
        self.recurrent = self.net.recurrent

    def new_hidden(self, obs):
        return self.net.new_hidden(obs)

    def step(self, obs, hidden):
        return self.net.step(obs, hidden)


@pytest.mark.parametrize("network", [NETWORK, GRU])
def test_valued_records_the_hidden_state_of_the_critic(network):
    policy, critic = Gaussian().build(SPEC, network), Critic(GRU)
    actor = Valued(policy, critic)
    assert actor.recurrent
    carry, records, obs = None, [], torch.randn(2, 5, 3)
    for t in range(5):
        record, carry = actor.act(obs[:, t], carry)
        records.append(record)
    hidden = torch.stack([record["critic_hidden"] for record in records], 1)
    assert ("hidden" in carry) == (network is GRU)
    first = torch.zeros(2, 5, dtype=torch.bool)
    _, states = critic.net.unroll(obs, hidden[:, 0], first)
    torch.testing.assert_close(states[:, :-1], hidden[:, 1:])
    torch.testing.assert_close(states[:, -1], carry["critic_hidden"])


def test_valued_with_a_critic_without_memory_changes_nothing():
    actor = Valued(Gaussian().build(SPEC, NETWORK), Critic(NETWORK))
    record, carry = actor.act(torch.randn(2, 3))
    assert set(record) == {"action", "log_prob"}
    assert carry == {}
    assert not actor.recurrent


def test_wrappers_update_the_statistics_of_the_policy_they_hold():
    normalizer = Normalizer(VECTOR)
    policy = SquashedGaussian().build(SPEC, NETWORK, normalizer)
    batch = TensorDict({"obs": torch.randn(6, 3)}, batch_size=6)
    for actor in (Greedy(policy), Uniform(SPEC, like=policy)):
        actor.update_normalizer(batch)
    assert normalizer.count == 12


class Distance(nn.Module):
    """Two critics that value how near an action is to a point; the second is worse by 1."""

    def __init__(self, point):
        super().__init__()
        self.point = nn.Parameter(torch.tensor(point))

    def forward(self, obs, action):
        q = -(action - self.point).square().sum(-1)
        return torch.stack([q, q - 1.0])


def test_the_best_of_several_actions_is_the_one_that_the_critic_values_most():
    policy = SquashedGaussian().build(SPEC, NETWORK)
    obs = torch.randn(6, 3)
    best = BestOf(policy, Distance([0.3, -0.3]), 40)
    torch.manual_seed(4)
    drawn = candidates(policy, obs, 40)
    assert drawn["action"].shape == (40, 6, 2)
    assert drawn["log_prob"].shape == (40, 6)
    torch.manual_seed(4)
    record, carry = best.act(obs)
    assert carry == {}
    assert set(record) == {"action", "pre_action"}
    distance = (drawn["action"] - torch.tensor([0.3, -0.3])).square().sum(-1)
    expected = drawn["action"].gather(0, distance.argmin(0).reshape(1, 6, 1).expand(1, 6, 2)).squeeze(0)
    assert torch.equal(record["action"], expected)
    assert torch.equal(record["pre_action"].tanh(), expected)


def test_softmax_draws_among_the_candidates_by_their_values():
    spec = Spec(VECTOR, spaces.Box(-1.0, 1.0, (1,)), "Toy-v0")
    policy = Uniform(spec, SquashedGaussian().build(spec, NETWORK))
    chosen = BestOf(policy, Distance([0.0]), 64, how="softmax", temperature=0.05)
    for greedy in (False, True):
        action = chosen.act(torch.zeros(4000, 3), greedy=greedy)[0]["action"]
        assert float(action.std()) == pytest.approx(math.sqrt(0.05 / 2), rel=0.1)  # exp(-a^2 / 0.05), almost


def test_best_of_holds_its_critic_and_reads_dict_observations():
    space = spaces.Dict({"a": VECTOR, "b": spaces.Box(-1.0, 1.0, (2,))})
    policy = Flow().build(Spec(space, BOX, "Toy-v0"), NETWORK)
    best = BestOf(policy, Distance([0.0, 0.0]), 3, reduce="mean")
    assert any(path.startswith("critic.") for path in gather(best))
    obs = {"a": torch.randn(5, 3), "b": torch.randn(5, 2)}
    assert best.act(obs)[0]["action"].shape == (5, 2)
    assert BOX.contains(best.predict({"a": np.zeros(3, np.float32), "b": np.zeros(2, np.float32)}))


def test_best_of_refuses_what_it_cannot_do():
    with pytest.raises(UsageError, match="use a feed-forward network"):
        BestOf(Gaussian().build(SPEC, GRU), Distance([0.0, 0.0]), 3)
    with pytest.raises(UsageError, match="best-of needs samples >= 1"):
        BestOf(Gaussian().build(SPEC, NETWORK), Distance([0.0, 0.0]), 0)
