"""PA-RL: optimized actions in acting, targets and labels; supervised losses only; its three phases."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from tensordict import TensorDict

from polopt import registry
from polopt.core.batch import weigh
from polopt.core.errors import UsageError
from polopt.policies.wrappers import candidates
from polopt.training.api import plan
from polopt.values import Implicit
from polopt.values.critics import QEnsemble
from polopt.values.histogram import HistogramQ
from tests.guards.harness import advance

MUST = 5
SMOKE = registry.load("pa-rl").smoke
NUMBERS = {"values.histogram": None}


def made(**settings):
    """The smoke run's method, its dataset open."""
    config = dict(SMOKE.config) | settings
    if config.get("values") == "implicit":
        config = {key: value for key, value in config.items() if not key.startswith("values.") or "histogram" in key}
    if config.get("values.histogram", "") is None:
        config = {key: value for key, value in config.items() if not key.startswith("values.histogram.")}
    torch.manual_seed(0)
    method = plan("pa-rl", SMOKE.task, seed=3, task_options=SMOKE.task_options, loggers=(), **config).build()
    method.prepare()
    return method


def copied(module):
    return [parameter.detach().clone() for parameter in module.parameters()]


def moved(module, before):
    return [not torch.equal(parameter, old) for parameter, old in zip(module.parameters(), before)]


@pytest.fixture(name="batch")
def batch_fixture():
    generator = torch.Generator().manual_seed(5)
    obs, next_obs, action = (2 * torch.rand(8, 2, generator=generator) - 1 for _ in range(3))
    columns = {"obs": obs, "next_obs": next_obs, "action": action, "reward": torch.rand(8, generator=generator)}
    columns["returns"] = torch.rand(8, generator=generator)
    columns["terminated"] = torch.arange(8) % 4 == 0
    columns["truncated"] = torch.zeros(8, dtype=torch.bool)
    return weigh(TensorDict(columns, [8]))


def test_must_1_ranking_and_climbing_never_lower_the_value_and_stay_within_the_bounds(batch):
    method = made(step_size=10.0, climb_steps=5, **NUMBERS)  # steps that overshoot: most end below their start
    critic, actor = method.values.critic, method.policy
    critic.forward = lambda obs, action: -(action - 0.3).square().sum(-1).unsqueeze(0)
    torch.manual_seed(1)
    drawn = actor.sample(batch["obs"])
    values = critic(batch["obs"], drawn).mean(0).detach()
    kept = values.topk(method.config.keep, dim=0)
    torch.manual_seed(1)
    action, value = actor.optimize(batch["obs"])
    assert (value >= kept.values - 1e-6).all()
    assert (value > kept.values + 1e-6).any()
    assert float(action.abs().max()) <= 1.0
    assert torch.allclose(critic(batch["obs"], action).mean(0), value, atol=1e-6)
    # the last iterate alone, without the bookkeeping, would have lost value somewhere
    point = drawn.gather(0, kept.indices.unsqueeze(-1).expand(-1, -1, 2))
    for _ in range(method.config.climb_steps):
        point = point.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(critic(batch["obs"], point).mean(0).sum(), point)
        point = (point + method.config.step_size * gradient).clamp(-1.0, 1.0)
    last = critic(batch["obs"], point).mean(0)
    assert (last < kept.values).any()
    assert (value >= last - 1e-6).all()


def test_must_2_the_target_bootstraps_from_the_optimized_action(batch):
    method = made(critics=2, step_size=0.5, **NUMBERS, **{"values.coefficient": 0.0})  # two members: the pair is both
    with torch.no_grad():
        for parameter in method.values.target_critic.parameters():
            parameter.mul_(1.5)
    torch.manual_seed(2)
    after, value = method.policy.optimize(batch["next_obs"])
    best = after[value.argmax(0), torch.arange(8)]
    next_q = method.values.target_critic(batch["next_obs"], best).detach().amin(0).numpy()
    expected = batch["reward"].numpy() + 0.99 * np.where(batch["terminated"].numpy(), 0.0, next_q)
    torch.manual_seed(2)
    target = method.optimize(batch, taught=False)["target"]
    assert target.numpy() == pytest.approx(expected, abs=1e-6)
    method.policy.keep = method.policy.samples = 1
    method.policy.steps = 0
    assert not np.allclose(method.optimize(batch, taught=False)["target"].numpy(), expected, atol=1e-3)


def test_must_3_candidates_are_drawn_anew_from_the_present_policy(batch):
    settings = {"policy": "deterministic", "policy_tau": None, "climb_steps": 0, "candidates": 2, "keep": 2}
    method = made(**settings, data_candidate=False)
    torch.manual_seed(0)
    first = method.optimize(batch, taught=True)
    own = method.base.act(batch["obs"])[0]["action"]
    torch.testing.assert_close(first["label"], own)  # of as many candidates: other shapes, so not to the bit
    with torch.no_grad():
        for parameter in method.base.parameters():
            parameter.add_(0.3)
    torch.manual_seed(0)
    again = method.optimize(batch, taught=True)
    torch.testing.assert_close(again["label"], method.base.act(batch["obs"])[0]["action"])
    assert not torch.allclose(again["label"], first["label"])
    assert not torch.allclose(again["target"], first["target"])


@pytest.mark.parametrize("policy", ["diffusion", "autoregressive", "gaussian", "flow"])
def test_must_4_the_policy_is_only_taught_by_its_supervised_loss(batch, policy):
    method = made(policy=policy)
    critic = copied(method.values.critic)
    batch = method.optimize(batch, taught=True)
    for key in ("label", "target", "policy_action", "random_action"):
        assert not batch[key].requires_grad, key
    critic_loss, _ = method.critic_loss(batch)
    assert not any(
        gradient is not None
        for gradient in torch.autograd.grad(
            critic_loss, list(method.base.parameters()), allow_unused=True, retain_graph=True
        )
    )
    torch.manual_seed(4)
    expected = method.base.imitation_loss(batch.clone(False).set("action", batch["label"]))
    torch.manual_seed(4)
    metrics = method.teach(batch, batch["label"], lr=1e-3)
    assert float(metrics["policy_loss"]) == pytest.approx(float(expected.detach().mean()), rel=1e-5)
    assert not any(moved(method.values.critic, critic))


def test_must_5_the_critic_learns_alone_before_the_policy_is_taught():
    method = made(bc_updates=2, offline_updates=3)
    history = []
    for _ in range(7):
        base, critic = copied(method.base), copied(method.values.critic)
        batch, phase = method.collect(), method.stage_name
        method.update(batch)
        history.append((phase, all(moved(method.base, base)), all(moved(method.values.critic, critic))))
        assert ("origin" in batch.keys()) == (phase == "online")
    assert history[:2] == [("clone", True, False)] * 2
    assert history[2:5] == [("offline", False, True)] * 3
    assert history[5:] == [("online", True, True)] * 2


@pytest.mark.parametrize(("distill", "offline", "online"), [("always", True, True), ("never", False, False)])
def test_when_the_policy_is_taught(distill, offline, online):
    method = made(distill=distill, bc_updates=0, offline_updates=1)
    for expected in (offline, online):
        before = copied(method.base)
        method.update(method.collect())
        assert any(moved(method.base, before)) == expected


def test_online_batches_are_half_and_half_and_hold_whole_episodes():
    method = made(bc_updates=0, offline_updates=0, batch_size=33)
    batch = method.collect()
    assert batch["origin"].tolist() == [0] * 17 + [1] * 16
    assert method.ledger.episodes == 1
    replay = method.source.second.second.replay
    assert len(replay) == method.ledger.env_steps <= 12
    advance(method, 30, updates=20)
    assert method.ledger.env_steps - 12 <= method.ledger.updates <= method.ledger.env_steps + 1  # one update per step


def test_a_single_candidate_without_climbing_is_the_policy_itself(batch):
    method = made(candidates=1, keep=1, climb_steps=0)
    torch.manual_seed(6)
    acted = method.policy.act(batch["obs"], greedy=True)[0]["action"]
    torch.manual_seed(6)
    assert torch.equal(acted, method.base.act(batch["obs"])[0]["action"])


def test_labels_include_the_action_of_the_data(batch):
    method = made(climb_steps=0, keep=2, sampling_temperature=1e-6, labels="best")
    with torch.no_grad():  # a critic that loves the action of the data
        method.values.critic.forward = lambda obs, action: -(action - batch["action"]).square().sum(-1).unsqueeze(0)
    method.policy.critic = method.values.critic
    assert torch.equal(method.optimize(batch, taught=True)["label"], batch["action"])
    method.config = replace(method.config, data_candidate=False)
    assert not torch.equal(method.optimize(batch, taught=True)["label"], batch["action"])


def test_the_critic_loss_is_its_formula(batch, float64):
    method = made(**NUMBERS, **{"values.coefficient": 0.7})
    batch = batch.apply(lambda column: column.double() if column.is_floating_point() else column)
    batch = method.optimize(batch, taught=False)
    critic = method.values.critic
    q = critic(batch["obs"], batch["action"]).detach().numpy()
    policy = critic(batch["obs"], batch["policy_action"].transpose(0, 1)).detach().numpy()
    random = critic(batch["obs"], batch["random_action"].transpose(0, 1)).detach().numpy()
    assert policy.shape[1] == 2 * method.config.keep  # of this state, and of the next one
    values = np.concatenate([q[:, None], np.maximum(policy, batch["returns"].numpy()), random], 1)
    gap = np.log(np.exp(values).mean(1)) - q
    error = q - batch["target"].numpy()
    expected = 0.5 * (error**2 + 0.7 * gap).sum(0).mean()
    loss, metrics = method.critic_loss(batch)
    assert loss.item() == pytest.approx(expected)
    assert metrics["conservative_gap"].item() == pytest.approx(gap.mean())


def test_without_the_conservative_term_nothing_is_optimized_in_vain(batch):
    method = made(**{"values.coefficient": 0.0})
    seen = []
    original = method.policy.optimize
    method.policy.optimize = lambda obs, also=None: seen.append(obs) or original(obs, also)
    method.critic_loss(method.optimize(batch, taught=False))
    assert len(seen) == 1
    assert torch.equal(seen[0], batch["next_obs"])


def test_the_implicit_critic_asks_no_policy_for_its_target(batch):
    method = made(values="implicit", bc_updates=0, offline_updates=1)
    assert set(method.optimize(batch, taught=False).keys()) == set(batch.keys())
    for phase in ("offline", "online"):
        critic, value = copied(method.values.critic), copied(method.values.value)
        assert method.stage_name == phase
        metrics = method.update(method.collect())
        assert all(moved(method.values.critic, critic))
        assert all(moved(method.values.value, value))
        assert ("policy_loss" in metrics) == (phase == "online")


def test_values_are_histograms_or_numbers():
    for histogram, kind in ((True, HistogramQ), (None, QEnsemble)):
        for values in ("conservative", "implicit"):
            settings = {} if histogram else NUMBERS
            method = made(bc_updates=0, offline_updates=1, values=values, **settings)
            assert type(method.values.critic) is kind
            for _ in range(2):
                critic = copied(method.values.critic)
                metrics = method.update(method.collect())
                assert all(moved(method.values.critic, critic))
            assert not histogram or 0.0 < float(metrics["q"]) < 1.0
            assert float(metrics["critic_loss"]) > 0


def test_the_ends_of_the_histograms_follow_from_the_data():
    """With costs of 1 until the goal, the support is that of the official code: -100 to 0."""
    open_ends = {"values.histogram.low": None, "values.histogram.high": None}
    method = made(rewards="minus-one", **open_ends)
    for critic in (method.values.critic, method.values.target_critic):
        assert (float(critic.edges[0]), float(critic.edges[-1])) == (pytest.approx(-100.0), 0.0)
    with pytest.raises(UsageError, match="the range from 0 to 0, which no histogram covers"):
        made(**open_ends)  # random episodes never reach the goal


def test_candidates_come_from_a_slow_average_of_the_policy(batch):
    method = made(policy_tau=0.25, bc_updates=2, offline_updates=0)
    start = copied(method.base)
    expected = start
    for _ in range(3):  # of cloning, then of teaching
        method.update(method.collect())
        expected = [0.25 * new.detach() + 0.75 * old for new, old in zip(method.base.parameters(), expected)]
    for ours, theirs in zip(method.target_base.parameters(), expected):
        torch.testing.assert_close(ours, theirs)
    assert method.policy.actor is method.target_base
    torch.manual_seed(3)
    drawn = method.policy.sample(batch["obs"])
    torch.manual_seed(3)
    torch.testing.assert_close(drawn, candidates(method.target_base, batch["obs"], method.config.candidates)["action"])
    own = made(policy_tau=None)
    assert own.policy.actor is own.target_base is own.base


def test_the_defaults_are_those_of_the_official_code():
    config = registry.load("pa-rl").Config()
    assert config.policy_tau == 0.002
    assert (config.values.histogram.bins, config.values.usual_tau, Implicit().usual_tau) == (128, 0.005, 0.002)
    network = config.network
    assert (network.sizes, network.blocks, network.normalization) == ((256,) * 3, "residual", "layer")
    assert (network.dropout, network.activation) == (0.1, "silu")
    assert (config.policy.steps, config.policy.schedule, config.policy.time_size) == (5, "cosine", 128)


@pytest.mark.parametrize(("values", "usual"), [("conservative", 0.005), ("implicit", 0.002)])
def test_targets_follow_at_the_rate_of_their_critic(values, usual):
    assert made(values=values).values.tau == usual
    assert made(values=values, tau=0.3).values.tau == 0.3


@pytest.mark.parametrize("method", ["pa-rl", "dql", "ofql"])
def test_a_clone_of_bc_is_the_policy_that_they_take(method):
    ours, theirs = registry.load(method).Config(), plan("bc", "Pendulum-v1", preset=method).config
    assert ours.policy == theirs.policy
    assert ours.network == theirs.network


def test_costs_in_place_of_rewards_bound_the_returns():
    method = made(rewards="minus-one")
    returns = method.source.first.data["returns"]
    assert returns.max() <= 0
    assert returns.min() == pytest.approx(-100.0, abs=1e-3)  # an episode that the time limit cut: -1 for ever
    assert method.collect()["reward"].max() <= 0


def test_evaluations_say_how_far_it_is_from_the_data():
    method = made()
    method.policy.act = lambda obs, carry=None, *, greedy=False: ({"action": torch.zeros(len(obs), 2)}, {})
    scores = method.evaluate(method.task, 1)
    action = method.source.first.data["action"]
    assert len(action) <= 48  # all of them are asked for
    assert scores["action_gap"] == pytest.approx(float(action.abs().mean()))
    assert scores["data_distance"] > 0


def test_what_it_refuses():
    with pytest.raises(UsageError, match="actions are optimized where they are continuous; CartPole-v1 has"):
        plan("pa-rl", "CartPole-v1", policy="categorical", dataset="random", loggers=()).build()
    with pytest.raises(UsageError, match="of 6 candidate actions between 1 and 6 can be kept, not 7"):
        made(keep=7)
