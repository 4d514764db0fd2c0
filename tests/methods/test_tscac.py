"""TSCAC: ratios, weights and both stages, with numbers worked out here."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tensordict import TensorDict

from polopt.core.batch import weigh
from polopt.core.errors import UsageError
from polopt.evaluation.ope import BEHAVIOR
from polopt.methods.multiagent.tscac import greed, guidance, likelihood_ratio
from polopt.training import api
from tests.methods.finite import LINEAR, randomize

MUST = 4
SMALL = {"dataset": "random", "random_episodes": 2, "batch_size": 16, "network.sizes": (8,), "loggers": ()}
SIZE, STATES, KINDS = 12, 30, 10


def make(task: Any = "sessions", **changes: Any) -> Any:
    return api.plan("tscac", task, seed=1, **SMALL | changes).build()


def batch_of(**keys: Any) -> Any:
    """Decisions [SIZE] of `sessions`, some of which end and some of which are cut."""
    draw = torch.Generator().manual_seed(4)
    batch = {
        "obs": torch.randint(STATES, (SIZE,), generator=draw),
        "next_obs": torch.randint(STATES, (SIZE,), generator=draw),
        "action": torch.randint(KINDS, (SIZE,), generator=draw),
        "rewards": torch.rand(SIZE, 3, generator=draw),
        "reward": torch.full((SIZE,), 99.0),
        "terminated": torch.arange(SIZE) % 4 == 1,
        "truncated": torch.arange(SIZE) % 4 == 2,
    }
    return weigh(TensorDict(batch | keys, batch_size=[SIZE]))


def log_prob(policy: Any, batch: Any) -> np.ndarray:
    """log pi(a|s) [SIZE] of a softmax of tables, by its logits."""
    logits = policy.net(batch["obs"]).detach().numpy()
    return logits[np.arange(SIZE), batch["action"]] - np.log(np.exp(logits).sum(1))


def values(critic: Any, obs: torch.Tensor) -> np.ndarray:
    return critic(obs).detach().numpy()[..., 0]


def ready(**changes: Any) -> Any:
    method = make(**{"cloning": 0.05, "discount": 0.8, "side_discount": 0.3, "ratio_clip": 2.0} | LINEAR | changes)
    randomize(method.policy, method.experts, method.log_policy)
    parts = (method.critic, method.target_critic, method.side_critic, method.side_target)
    for scale, part in enumerate(parts, 1):
        randomize(part)
        for parameter in part.parameters():
            parameter.data *= scale / 3
    return method


def test_must_4_ratios_are_clipped_and_growth_is_normalized(float64):
    pair = torch.tensor([[0.5, 0.2], [0.02, 0.8]]).log()
    behavior = torch.tensor([0.1, 0.4]).log()
    np.testing.assert_allclose(likelihood_ratio(pair, behavior, 3.0), [[3.0, 0.5], [0.2, 2.0]], rtol=1e-6)
    assert likelihood_ratio(pair, None, 3.0).tolist() == [[1.0, 1.0], [1.0, 1.0]]
    np.testing.assert_allclose(guidance(pair, behavior, 10.0), [1.0, 1.0], rtol=1e-6)  # 5 x 0.2, 0.5 x 2
    np.testing.assert_allclose(guidance(pair, None, 10.0), [0.1, 0.4], rtol=1e-6)
    np.testing.assert_allclose(guidance(pair[:1], behavior, 2.0), [2.0, 0.5], rtol=1e-6)
    weight = torch.tensor([0.25, 0.75])
    found = greed(torch.tensor([2.0, 0.0]), 2.0, weight)
    np.testing.assert_allclose(found, np.array([np.e, 1.0]) / (0.25 * np.e + 0.75), rtol=1e-6)
    assert torch.isfinite(greed(torch.tensor([2000.0, -2000.0]), 0.1, weight)).all()


def test_must_3_the_projection_is_on_the_product_of_experts():
    """Of random actions in one state: the weighted regression ends at sqrt(p q) exp(A / Lambda), normalized."""
    experts = torch.tensor([[0.6, 0.3, 0.1], [0.2, 0.2, 0.6]], dtype=torch.float64)
    advantage = torch.tensor([0.0, 0.3, -0.1], dtype=torch.float64)
    uniform = torch.full((3,), 1 / 3, dtype=torch.float64)
    weight = guidance(experts.log(), uniform.log(), 10.0) * greed(advantage, 0.5, uniform)
    best = weight / weight.sum()  # what minimizes -sum weight log pi
    exact = experts.prod(0).sqrt() * (advantage / 0.5).exp()
    torch.testing.assert_close(best, exact / exact.sum())
    clone = guidance(experts[1:].log(), uniform.log(), 10.0) * greed(torch.zeros_like(uniform), 0.5, uniform)
    torch.testing.assert_close(clone / clone.sum(), experts[1])


def test_must_1_each_response_has_a_critic_and_a_discount_of_its_own(float64):
    method, batch = ready(entropy_coefficient=0.2), batch_of()
    seen: dict[str, Any] = {}
    method.side_optimizer.minimize = lambda loss, found, critic: seen.update(batch=found) or loss(found, critic)[1]
    method.expert_optimizer.minimize = lambda loss, found: loss(found)[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("polopt.methods.multiagent.tscac.polyak_update", lambda *_: None)
        before = {name: each.clone() for name, each in method.log_policy.state_dict().items()}
        method.train_experts(batch)
        method.log_policy.load_state_dict(before)
    judged = seen["batch"]
    b = log_prob(method.log_policy, batch)
    loss = critic_loss = 0.0
    for index, expert in enumerate(method.experts):
        after = np.where(batch["terminated"], 0.0, values(method.side_target, batch["next_obs"])[index])
        target = batch["rewards"][:, 1 + index].numpy() + 0.3 * after
        value = values(method.side_critic, batch["obs"])[index]
        pi = log_prob(expert, batch)
        rho = np.minimum(np.exp(pi - b), 2.0)
        assert (rho == 2.0).any()
        assert (rho < 2.0).any()
        np.testing.assert_allclose(judged["advantage"][:, index], target - value, rtol=1e-6)
        critic_loss += (rho * (value - target) ** 2 / 2).mean()
        logits = expert.net(batch["obs"]).detach().numpy()
        every = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        entropy = -(every * np.log(every)).sum(1).mean()
        loss -= 0.2 * entropy + 0.05 * pi.mean()
    found, metrics = method.expert_loss(judged)
    grads = torch.autograd.grad(found, [next(each.parameters()) for each in method.experts])
    score = sum(
        (judged["rho"][:, i] * judged["advantage"][:, i] * expert.log_prob(batch)).mean()
        + 0.2 * expert.entropy(batch).mean()
        + 0.05 * expert.log_prob(batch).mean()
        for i, expert in enumerate(method.experts)
    )
    for grad, other in zip(grads, torch.autograd.grad(-score, [next(each.parameters()) for each in method.experts])):
        torch.testing.assert_close(grad, other)
    assert float(method.value_loss(judged, method.side_critic)[0].detach()) == pytest.approx(critic_loss, rel=1e-6)
    assert float(metrics["ratio"]) == pytest.approx(float(judged["rho"].mean()))


def test_must_2_weights_are_a_product_over_all_experts(float64):
    method, batch = ready(restraint=0.7), batch_of()
    seen: dict[str, Any] = {}
    method.policy_optimizer.minimize = lambda loss, found: seen.update(batch=found) or loss(found)[1]
    method.critic_optimizer.minimize = lambda loss, found, critic: loss(found, critic)[1]
    after = np.where(batch["terminated"], 0.0, values(method.target_critic, batch["next_obs"])[0])
    metrics = method.train_policy(batch)
    b = log_prob(method.log_policy, batch)
    guide = np.minimum(np.exp(np.mean([log_prob(expert, batch) for expert in method.experts], 0) - b), 2.0)
    assert (guide == 2.0).any()
    assert (guide < 2.0).any()
    target = batch["rewards"][:, 0].numpy() + 0.8 * after
    advantage = target - values(method.critic, batch["obs"])[0]
    grown = np.exp(advantage / 0.7)
    weight = guide * grown / grown.mean()
    np.testing.assert_allclose(seen["batch"]["importance"], weight, rtol=1e-6)
    assert float(metrics["effective"]) == pytest.approx(weight.sum() ** 2 / (SIZE * (weight**2).sum()))
    loss, _ = method.policy_loss(seen["batch"])
    pi = log_prob(method.policy, batch)
    assert float(loss.detach()) == pytest.approx(-(weight * pi).mean() - 0.05 * pi.mean())
    rho = np.minimum(np.exp(pi - b), 2.0)
    error = values(method.critic, batch["obs"])[0] - target
    assert float(metrics["value_loss"]) == pytest.approx((rho * error**2 / 2).mean())


def test_must_2_experts_are_frozen_in_the_second_stage():
    method = make(stage_updates=2, tau=0.5)
    method.prepare_all()
    names = {"policy", "experts", "critic", "target_critic", "side_critic", "side_target", "log_policy"}
    first = {"experts", "side_critic", "side_target", "log_policy"}
    for update in range(4):
        before = {name: [p.clone() for p in getattr(method, name).parameters()] for name in names}
        method.update(method.collect())
        moved = {n for n in names if not all(map(torch.equal, before[n], getattr(method, n).parameters()))}
        assert moved == (first if update < 2 else {"policy", "critic", "target_critic"})


def test_where_the_probabilities_of_the_log_come_from(float64):
    with pytest.raises(UsageError, match="--behavior recorded needs the densities of the recorded actions"):
        make(behavior="recorded")
    recorded = make()
    recorded.config = replace(recorded.config, behavior="recorded")
    batch = batch_of(**{BEHAVIOR: torch.full((SIZE,), 0.25).log()})
    assert torch.equal(recorded.log_prob_of_log(batch), batch[BEHAVIOR])
    unknown = make(behavior="unknown")
    assert unknown.log_prob_of_log(batch) is None
    assert not hasattr(unknown, "log_policy")


def test_the_main_objective_may_be_another_one():
    method = make(main="response-1")
    assert (method.main, method.others) == ([1], [0, 2])
    assert (make().main, make().others) == ([0], [1, 2])


def test_what_cannot_be_used_is_refused_in_one_sentence():
    with pytest.raises(UsageError, match="tscac learns from several objectives, and CartPole-v1 has one reward"):
        make("CartPole-v1")
    with pytest.raises(UsageError, match="tscac keeps side objectives up, and sessions has only 'watch'"):
        make(task_options={"sides": 0})
    with pytest.raises(UsageError, match="sessions has no objective 'likes'"):
        make(main="likes")
    with pytest.raises(UsageError, match="rewards has no effect on a method of several objectives"):
        make(rewards="minus-one")
    with pytest.raises(UsageError, match="offline_updates has no effect on a method that never goes online"):
        make(offline_updates=3)
    with pytest.raises(UsageError, match="which a recurrent policy cannot learn from"):
        make(**{"network.recurrent": "gru"})
