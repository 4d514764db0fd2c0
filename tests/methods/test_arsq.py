"""ARSQ: tokens and their contexts, the soft values that follow from normalized advantages, margins, demonstrations."""

import itertools

import pytest
import torch
from gymnasium import spaces
from tensordict import TensorDict

from polopt.bases.offline import DISTANCES
from polopt.core.errors import UsageError
from polopt.core.spec import Spec
from polopt.data.successes import admitted, best_episodes
from polopt.methods.control.arsq import margin
from polopt.networks import Network
from polopt.policies.zooming import ZoomingPolicy, soft_advantage
from polopt.training.api import plan
from tests.guards.harness import built

MUST = 5


def policy_of(levels=2, bins=3, size=2, conditioning="all", members=2, temperature=0.5):
    spec = Spec(spaces.Box(-1, 1, (3,)), spaces.Box(-1, 1, (size,)), "test")
    net = Network((8,)).build(spec.obs, levels * size * bins, inputs_extra=size, ensemble=members)
    return ZoomingPolicy(
        spec, net, levels=levels, bins=bins, sampling_temperature=temperature, conditioning=conditioning
    )


def every_cell(policy):
    """The center of each cell [cells, A]."""
    count = policy.bins**policy.levels
    centers = [(2 * cell + 1) / count - 1 for cell in range(count)]
    return torch.tensor(list(itertools.product(centers, repeat=policy.size)))


# Tokens


@pytest.mark.parametrize("bins", [3, 4])
def test_must_1_contexts_are_what_zooming_by_hand_has_seen_before_each_token(float64, bins):
    policy = policy_of(levels=2, bins=bins)
    action = torch.rand(50, 2) * 2 - 1
    contexts = policy.contexts(policy.cells(action))
    parts = (policy.cells(action)[1:] % bins).movedim(0, -2).flatten(-2)
    for row, (values, chosen) in enumerate(zip(action.tolist(), parts.tolist())):
        low, high = [-1.0, -1.0], [1.0, 1.0]
        for token in range(4):
            centers = [(a + b) / 2 for a, b in zip(low, high)]
            assert contexts[token, row].tolist() == pytest.approx(centers)
            at = token % 2
            width = (high[at] - low[at]) / bins
            part = int((values[at] - low[at]) / width)
            assert chosen[token] == part
            low[at], high[at] = low[at] + part * width, low[at] + (part + 1) * width
        final = [(a + b) / 2 for a, b in zip(low, high)]
        assert policy.centers(policy.cells(action))[-1, row].tolist() == pytest.approx(final)


def test_without_conditioning_coordinates_of_a_level_see_the_same_context(float64):
    policy = policy_of(conditioning="levels")
    contexts = policy.contexts(policy.cells(torch.tensor([[0.9, -0.9], [-0.9, 0.9]])))
    assert contexts[0].tolist() == contexts[1].tolist() == [[0.0, 0.0], [0.0, 0.0]]
    torch.testing.assert_close(contexts[2], torch.tensor([[2 / 3, -2 / 3], [-2 / 3, 2 / 3]]))
    assert torch.equal(contexts[2], contexts[3])


def test_edges_and_actions_beyond_the_bounds_are_in_the_outer_parts():
    policy = policy_of(levels=2, bins=5, size=1)
    assert policy.cells(torch.tensor([[-1.0], [1.0], [-3.0], [7.0]]))[-1].flatten().tolist() == [0, 24, 0, 24]


@pytest.mark.parametrize("conditioning", ["all", "levels"])
def test_must_5_what_acting_recorded_is_what_scoring_says(float64, conditioning):
    policy = policy_of(conditioning=conditioning)
    obs = torch.randn(64, 3)
    record, _ = policy.act(obs)
    batch = TensorDict({"obs": obs, "action": record["action"]}, batch_size=[64])
    torch.testing.assert_close(policy.log_prob(batch), record["log_prob"])


@pytest.mark.parametrize("conditioning", ["all", "levels"])
def test_the_policy_is_a_distribution_over_all_cells(float64, conditioning):
    policy = policy_of(conditioning=conditioning)
    action = every_cell(policy)
    batch = TensorDict({"obs": torch.randn(1, 3).expand(81, 3), "action": action}, batch_size=[81])
    assert policy.log_prob(batch).exp().sum().item() == pytest.approx(1.0)


def test_each_token_takes_the_smaller_advantage_normalized_by_the_temperature_of_acting(float64):
    policy = policy_of(levels=1, bins=3, size=1, temperature=0.5)
    raw = torch.tensor([[[1.0, 0.0, -1.0]], [[0.0, 0.0, 2.0]]])  # [members, B, bins]
    least = torch.minimum(*(member - 0.5 * (member / 0.5).logsumexp(-1, keepdim=True) for member in raw))
    torch.testing.assert_close(policy.conditionals(raw), (least / 0.5).log_softmax(-1))


def test_greedy_acting_follows_the_largest_conditional_at_every_token(float64):
    policy = policy_of(levels=1, bins=3, size=2)
    obs = torch.randn(20, 3)
    greedy = policy.act(obs, greedy=True)[0]["action"]
    raw, part = policy.scores(TensorDict({"obs": obs, "action": greedy}, batch_size=[20]))
    assert torch.equal(policy.conditionals(raw).argmax(-1), part)


# Values


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_must_2_the_soft_value_of_all_actions_is_v(float64, temperature):
    """temperature logsumexp_a Q(s, a) / temperature = V(s), whatever the scores are."""
    policy = policy_of()
    action = every_cell(policy)
    batch = TensorDict({"obs": torch.randn(1, 3).expand(81, 3), "action": action}, batch_size=[81])
    raw, part = policy.scores(batch)
    advantage = soft_advantage(3.0 * raw, temperature)
    torch.testing.assert_close((advantage / temperature).exp().sum(-1), torch.ones(2, 81, 4))
    q = 1.7 + advantage.gather(-1, part.expand(2, 81, 4).unsqueeze(-1)).squeeze(-1).sum(-1)
    torch.testing.assert_close(temperature * (q / temperature).logsumexp(1), torch.tensor([1.7, 1.7]))


def test_must_3_the_target_is_the_smaller_target_value_and_stops_at_termination_only(float64):
    with built("arsq", discount=0.5) as method:
        batch = method.collect()[:3]
        batch["reward"] = torch.tensor([1.0, 2.0, 3.0])
        batch["terminated"] = torch.tensor([False, True, False])
        batch["truncated"] = torch.tensor([False, False, True])
        for index, parameter in enumerate(method.target_value.parameters()):
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(index))
        after = method.target_value(batch["next_obs"]).squeeze(-1).min(0).values
        expected = [1.0 + 0.5 * after[0].item(), 2.0, 3.0 + 0.5 * after[2].item()]
        assert method.evaluated(batch)["target"].tolist() == pytest.approx(expected)


def test_targets_follow_by_their_share(float64):
    with built("arsq", tau=0.25) as method:
        before = [parameter.clone() for parameter in method.target_value.parameters()]
        method.update(method.collect())
        for old, target, now in zip(before, method.target_value.parameters(), method.value.parameters()):
            torch.testing.assert_close(target, old + 0.25 * (now - old))


def test_with_one_coordinate_and_one_level_it_is_soft_q_learning(float64):
    """The gradient with respect to a table of scores, from its probabilities."""
    temperature, target, part = 0.3, torch.tensor([0.7, -0.2]), torch.tensor([[1], [2]])
    raw = torch.randn(1, 2, 1, 3, requires_grad=True)
    value = torch.randn(1, 2, requires_grad=True)
    q = value + soft_advantage(raw, temperature).gather(-1, part.view(1, 2, 1, 1)).squeeze(-1).sum(-1)
    (q - target).square().sum().backward()
    with torch.no_grad():
        table = value.unsqueeze(-1) + soft_advantage(raw, temperature).squeeze(2)  # Q of all actions
        error = 2 * (table.gather(-1, part.view(1, 2, 1)).squeeze(-1) - target)
        hot = torch.nn.functional.one_hot(part.view(2), 3)
        own = error.unsqueeze(-1) * (hot - (table / temperature).softmax(-1))
    torch.testing.assert_close(raw.grad.squeeze(2), own)
    torch.testing.assert_close(value.grad, error)


# Losses


def test_the_margin_leaves_out_the_demonstrated_part_and_stops_at_its_bound():
    advantage = torch.tensor([[[-1.0, -0.5, -3.0], [-0.2, -0.25, -0.9]]])  # one row, two tokens, three parts
    # token 1 chose part 0: others are ahead by 0.5 and -2 (at least -0.1); token 2 chose part 0: -0.05 and -0.7
    expected = (0.5 - 0.1) / 2 + (-0.05 - 0.1) / 2
    assert margin(advantage, torch.tensor([[0, 0]]), -0.1).item() == pytest.approx(expected)


def test_must_4_both_terms_have_their_weights_and_the_margin_reads_demonstrations_only(float64):
    with built("arsq", margin_coefficient=0.7) as method:
        batch = method.evaluated(method.collect())
        batch["origin"] = torch.arange(32) % 4 // 3  # a quarter are demonstrations
        batch = method.evaluated(batch)
        loss, metrics = method.total_loss(batch)
        raw, part = method.policy.scores(batch)
        advantage = soft_advantage(raw, 0.1)
        errors, margins = torch.zeros(()), torch.zeros(())
        for member in range(2):
            own = advantage[member].gather(-1, part.unsqueeze(-1)).squeeze(-1).sum(-1)
            q = method.value(batch["obs"])[member].squeeze(-1) + own
            errors += (q - batch["target"]).square().mean()
            margins += margin(advantage[member], part, -0.1)[3::4].mean()
        torch.testing.assert_close(loss, errors + 0.7 * margins)
        assert metrics["critic_loss"].item() == pytest.approx(errors.item())


def test_learning_and_acting_have_temperatures_of_their_own(float64):
    with built("arsq", entropy_temperature=0.3, sampling_temperature=0.7) as method:
        batch = method.evaluated(method.collect())
        _, metrics = method.total_loss(batch)
        raw, part = method.policy.scores(batch)
        own = soft_advantage(raw, 0.3)
        q = method.value(batch["obs"]).squeeze(-1) + own.gather(-1, part.expand(2, -1, -1).unsqueeze(-1)).sum((-1, -2))
        assert metrics["critic_loss"].item() == pytest.approx((q - batch["target"]).square().mean(1).sum().item())
        log_probs = (soft_advantage(raw, 0.7).amin(0) / 0.7).log_softmax(-1)
        entropy = -(log_probs.exp() * log_probs).sum((-1, -2)).mean()
        assert metrics["entropy"].item() == pytest.approx(entropy.item())


# Data


def test_demonstrations_are_the_episodes_that_return_most():
    first = torch.tensor([True, False, True, True, False, False, True])
    reward = torch.tensor([1.0, 1.0, 5.0, 0.0, 0.0, 1.0, 3.0])  # returns 2, 5, 1, 3
    data = TensorDict({"first": first, "reward": reward}, batch_size=[7])
    assert best_episodes(data, 0.5)["reward"].tolist() == [5.0, 3.0]
    assert best_episodes(data, 0.01)["reward"].tolist() == [5.0]
    assert len(best_episodes(data, 1.0)) == 7


def test_an_episode_is_admitted_by_its_return_and_not_by_its_mean_reward():
    reward = torch.tensor([1.0, 1.0, 1.0, 2.5, 0.5])
    ends = torch.tensor([False, False, True, True, True])
    assert admitted(reward, ends, 3.0).tolist() == [True, True, True, False, False]
    assert admitted(reward, ends, 0.5).all()


@pytest.mark.parametrize(("bar", "grows"), [(-1.0, True), (1e9, False)])
def test_own_episodes_join_the_demonstrations_if_they_are_good_enough(bar, grows):
    with built("arsq", offline_updates=0) as method:
        played = method.source.first.rollouts
        played.bar = bar
        stored = method.source.second.replay
        before = len(stored)
        method.collect()
        assert (len(stored) > before) == grows
        assert len(method.source.first.replay) > 40


def test_data_are_in_the_policys_units_and_the_bar_is_the_mean_return_of_demonstrations():
    with built("arsq", "Pendulum-v1", offline_updates=0, demonstrations=0.5) as method:
        data, best = method.source.first.replay.whole(), method.source.second.replay.whole()
        assert 0.9 < data["action"].abs().max() <= 1.0  # of the environment up to 2
        returns = data["reward"].view(4, 200).double().sum(1).sort(descending=True).values
        assert len(best) == 400
        assert method.source.first.rollouts.bar == pytest.approx(returns[:2].mean().item(), rel=1e-5)


def test_online_there_is_an_update_for_every_so_many_steps_after_whole_episodes():
    with built("arsq", offline_updates=2, online_steps=3) as method:
        for number in range(-2, 12):
            method.collect()
            if number < 0:
                assert method.ledger.env_steps == 0
            else:
                assert 3 * number < method.ledger.env_steps <= 3 * number + 12


def test_batches_have_their_share_of_demonstrations():
    with built("arsq", demonstration_share=0.25) as method:
        assert method.collect()["origin"].sum() == 8
    with built("arsq", demonstration_share=0.0, margin_coefficient=0.1) as method:
        batch = method.collect()
        assert len(batch) == 32
        assert batch["origin"].sum() == 0
        assert method.evaluated(batch)["demonstration_weight"].sum() == 0


@pytest.mark.parametrize(
    ("task", "settings", "said"),
    [
        ("CartPole-v1", {}, "arsq zooms into Box actions"),
        ("Pendulum-v1", {"network.recurrent": "gru"}, "recurrent"),
    ],
)
def test_what_it_cannot_learn_from_is_refused(task, settings, said):
    with pytest.raises(UsageError, match=said):
        plan("arsq", task, dataset="random", **settings).build()


def test_evaluations_say_how_far_it_is_from_the_data():
    with built("arsq") as method:
        assert set(DISTANCES) <= set(method.evaluate(method.task.twin(2), 2))
