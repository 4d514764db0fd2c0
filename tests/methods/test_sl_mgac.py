"""SL-MGAC: the anchored critic, the actor, groups and the student, with numbers worked out here."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from polopt.core.errors import UsageError
from polopt.tasks import make_task
from polopt.training import api
from tests.methods.finite import randomize

MUST = 5
SMALL = {
    "dataset": "random",
    "random_episodes": 24,
    "envs": 8,
    "batch_size": 64,
    "network.sizes": (12,),
    "group_sizes": (6,),
    "student.sizes": (8,),
    "bins": 6,
    "loggers": (),
}


def make(task: Any = "feed", **changes: Any) -> Any:
    method = api.plan("sl-mgac", task, seed=1, **SMALL | changes).build()
    method.prepare_all()
    return method


def ready(**changes: Any) -> tuple[Any, Any]:
    """A method whose networks are all different, and a batch of decisions, some of which end and some are cut."""
    method = make(discount=0.8, **changes)
    randomize(method.actor, method.student, method.critic, method.target_critic)
    batch = method.collect()
    batch["terminated"] = torch.arange(64) % 4 == 1
    batch["truncated"] = torch.arange(64) % 4 == 2
    return method, method.evaluate_batch(batch)


def softmax(logits: Any) -> np.ndarray:
    grown = np.exp(logits - logits.max(-1, keepdims=True))
    return grown / grown.sum(-1, keepdims=True)


def parts_of(critic: Any, obs: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """F [B, 2], class probabilities [B, 2, 4, 6] and rhat [B, 2], by the outputs of the network."""
    outputs = critic.net(obs).detach().numpy().reshape(-1, 2, 25)
    chance = softmax(outputs[..., 1:].reshape(-1, 2, 4, 6) + critic.classes.prior.numpy())
    rhat = ((chance * critic.classes.center.numpy()).sum(-1) * critic.weights.numpy()).sum(-1)
    return outputs[..., 0], chance, rhat


def head_rows(critic: Any) -> tuple[Any, Any]:
    """The gradient of the head for F [2, ...] and for the classes [48, ...]."""
    grad = critic.net.head.weight.grad.reshape(2, 25, -1)
    return grad[:, 0], grad[:, 1:]


@pytest.mark.parametrize("reward", ["observed", "predicted"])
def test_must_1_the_reward_model_is_inside_of_the_critic(reward, float64):
    method, batch = ready(target_reward=reward, supervised_coefficient=0.3)
    rows, action, weight = np.arange(64), batch["action"].numpy(), batch["weight"].numpy()
    future, chance, rhat = parts_of(method.critic, batch["obs"])
    after, _, anchored = parts_of(method.target_critic, batch["next_obs"])
    policy = softmax(method.actor.net(batch["next_obs"]).detach().numpy())
    value = np.where(batch["terminated"], 0.0, (policy * (after + anchored)).sum(1))
    immediate = batch["reward"].numpy() if reward == "observed" else rhat[rows, action]
    target = immediate + 0.8 * value
    np.testing.assert_allclose(batch["target"], target, rtol=1e-6)
    squared = (weight * (rhat[rows, action] + future[rows, action] - target) ** 2 / 2).sum()
    place = method.critic.classes.classes(batch["rewards"]).numpy()
    own = np.take_along_axis(chance[rows, action], place[..., None], -1)[..., 0]
    entropy = -(weight * np.log(own).sum(1)).sum()
    loss, metrics = method.critic_loss(batch)
    assert float(metrics["critic_loss"].detach()) == pytest.approx(squared, rel=1e-6)
    assert float(metrics["supervised_loss"].detach()) == pytest.approx(entropy, rel=1e-6)
    assert float(loss.detach()) == pytest.approx(squared + 0.3 * entropy, rel=1e-6)


@pytest.mark.parametrize("supervised", [0.0, 1.0])
def test_must_1_bootstrapping_moves_no_reward_head_and_both_losses_move_the_trunk(supervised, float64):
    method, batch = ready(supervised_coefficient=supervised)
    method.critic_loss(batch)[0].backward()
    future, classes = head_rows(method.critic)
    assert future.any()
    assert bool(classes.any()) == bool(supervised)
    shared = method.critic.net.shared.layers[0].weight.grad.clone()
    method.critic.zero_grad()
    method.critic_loss(batch)[1]["critic_loss"].backward()
    assert torch.equal(shared, method.critic.net.shared.layers[0].weight.grad) != bool(supervised)


def test_must_1_responses_are_classes_whose_centers_are_means_of_the_data(float64):
    method = make()
    data = method.dataset()["rewards"]
    place = method.critic.classes.classes(data)
    for response in range(4):
        for number in place[:, response].unique().tolist():
            mean = data[place[:, response] == number, response].mean()
            torch.testing.assert_close(method.critic.classes.center[response, number], mean)
    assert torch.equal(method.critic.classes.center, method.target_critic.classes.center)


@pytest.mark.parametrize("part", ["actor", "critic"])
def test_must_2_actor_and_critic_have_layers_for_each_group(part, float64):
    method, batch = ready()
    net = method.actor.net if part == "actor" else method.critic.net
    before = net(batch["obs"]).detach()
    net.own.layers[0].weight.data[3] *= 2.0
    moved = (net(batch["obs"]) != before).any(-1)
    assert torch.equal(moved, batch["obs"]["group"] == 3)
    assert 0 < int(moved.sum()) < 64


def test_must_3_the_reward_charges_what_an_insertion_displaces(float64):
    method, batch = ready(task_options={"skip_cost": 2.0})
    data = method.dataset()
    deviation = float(data["reward"].std())
    app, live, displaced, skipped = batch["rewards"].unbind(-1)
    np.testing.assert_allclose(batch["reward"], (live - displaced - 2.0 * skipped) / deviation, rtol=1e-6)
    assert ((batch["reward"] < 0) & (live > 0)).any()
    method, batch = ready(objective_weights=(0.5, 0.0, 0.0, -1.0))
    seen = (method.dataset()["rewards"] @ torch.tensor([0.5, 0.0, 0.0, -1.0])).std()
    np.testing.assert_allclose(batch["reward"], (0.5 * app - skipped) / seen, rtol=1e-6)
    torch.testing.assert_close(method.critic.weights, torch.tensor([0.5, 0.0, 0.0, -1.0]) / seen)


def test_must_4_norms_stand_in_the_trunk_and_in_the_groups_layers():
    method = make()
    for net in (method.actor.net, method.critic.net):
        for layers in (net.shared.layers, net.own.layers):
            assert "LayerNorm" in type(layers[1]).__name__


def test_must_4_the_student_follows_the_actor_and_serves(float64):
    method, batch = ready()
    teacher, student = (softmax(each.net(batch["obs"]).detach().numpy()) for each in (method.actor, method.student))
    loss, metrics = method.student_loss(batch)
    expected = (batch["weight"].numpy() * (teacher * np.log(teacher / student)).sum(1)).sum()
    assert float(metrics["student_kl"].detach()) == pytest.approx(expected, rel=1e-6)
    loss.backward()
    assert all(parameter.grad is None for parameter in method.actor.parameters())
    assert method.student.net.trunk.head.weight.grad.any()
    assert method.policy is method.behavior is method.student
    assert isinstance(method.student.net.encoder, nn.Module)
    assert make(serve="actor").policy.net.groups == 5


def test_must_5_groups_weigh_the_same_however_small(float64):
    _, batch = ready()
    group, weight = batch["obs"]["group"], batch["weight"]
    shares = [float(weight[group == number].sum()) for number in group.unique()]
    assert shares == pytest.approx([1 / len(shares)] * len(shares))
    assert len({int((group == number).sum()) for number in group.unique()}) > 1
    _, batch = ready(balance=False)
    assert batch["weight"].tolist() == pytest.approx([1 / 64] * 64)


def test_groups_may_have_any_numbers():
    method, batch = ready()
    moved = batch.clone()
    moved["obs", "group"] -= 7
    method.target = lambda part: part["reward"]
    assert (method.evaluate_batch(moved)["weight"] == batch["weight"]).all()


def test_must_5_evaluations_say_the_time_in_the_app():
    scores = make().evaluate(make_task("feed", 4, 0, evaluation=True), 8)
    assert scores["return_app"] >= scores["return_live"] >= 0


def test_the_actor_ascends_exact_advantages(float64):
    method, batch = ready(entropy_coefficient=0.2, supervision=0.4)
    future, _, rhat = parts_of(method.critic, batch["obs"])
    loss, metrics = method.actor_loss(batch)
    grads = torch.autograd.grad(loss, list(method.actor.parameters()))
    weight = batch["weight"]
    policy = torch.softmax(method.actor.net(batch["obs"]), -1)
    entropy = -(policy * policy.log()).sum(-1)
    best = policy[torch.arange(64), torch.as_tensor(rhat.argmax(1))]
    assert 0 < int(rhat.argmax(1).sum()) < 64
    gain = (policy * torch.as_tensor(future + rhat)).sum(-1) + 0.2 * entropy + 0.4 * best.log()
    for grad, other in zip(grads, torch.autograd.grad(-(weight * gain).sum(), list(method.actor.parameters()))):
        torch.testing.assert_close(grad, other)
    # sum_a pi(a) (Q - V) is 0, and has a gradient as V is held still
    assert float(metrics["actor_loss"].detach()) == pytest.approx(-0.2 * float((weight * entropy).sum().detach()))


def test_what_is_supervised_is_legal(float64):
    method = make("sessions", objective_weights=(1.0, 0.0, 0.0), group="", supervision=0.4, task_options={"kinds": 4})
    randomize(method.actor, method.critic)
    batch = method.evaluate_batch(method.collect())
    expected = method.critic.reward(method.critic.parts(batch["obs"])[1])
    second = expected.argsort(-1)[:, -2]  # the best is forbidden
    batch["action_mask"] = torch.ones_like(expected, dtype=torch.bool).scatter(
        1, expected.argmax(-1, keepdim=True), False
    )
    log_prob = method.actor.log_prob(batch.clone().set("action", second))
    loss, metrics = method.actor_loss(batch)
    torch.testing.assert_close(loss - metrics["actor_loss"], -0.4 * (batch["weight"] * log_prob).sum())


def test_without_anchor_and_groups_it_is_an_actor_critic(float64):
    method, batch = ready(anchor=False, bins=20, group="", delta=0.5)
    q = method.critic.net(batch["obs"]).detach().numpy()
    assert q.shape == (64, 2)
    after = method.target_critic.net(batch["next_obs"]).detach().numpy()
    policy = softmax(method.actor.net(batch["next_obs"]).detach().numpy())
    target = batch["reward"].numpy() + 0.8 * np.where(batch["terminated"], 0.0, (policy * after).sum(1))
    np.testing.assert_allclose(batch["target"], target, rtol=1e-6)
    error = np.abs(q[np.arange(64), batch["action"]] - target)
    huber = np.where(error < 0.5, error**2 / 2, 0.5 * (error - 0.25)).mean()
    loss, metrics = method.critic_loss(batch)
    assert float(loss.detach()) == pytest.approx(huber, rel=1e-6)
    assert metrics.keys() == {"critic_loss", "q"}
    assert len(method.critic.net.own.layers[0].weight) == 1


def test_targets_follow_and_every_part_learns():
    method = make(tau=0.5, lr=1e-2)
    before = {name: each.clone() for name, each in method.critic.named_parameters()}
    others = [(each, each.detach().clone()) for part in (method.actor, method.student) for each in part.parameters()]
    old = {name: each.clone() for name, each in method.target_critic.named_parameters()}
    metrics = method.update(method.collect())
    for name, target in method.target_critic.named_parameters():
        now = method.critic.get_parameter(name)
        torch.testing.assert_close(target, 0.5 * old[name] + 0.5 * now)
        assert not torch.equal(now, before[name]), name
    assert not any(torch.equal(now, then) for now, then in others)
    assert {"critic_loss", "supervised_loss", "actor_loss", "student_kl", "grad_norm"} <= metrics.keys()


def test_what_cannot_be_used_is_refused_in_one_sentence():
    with pytest.raises(UsageError, match="must know what each objective of sessions counts: say --objective-weights"):
        make("sessions", group="")
    with pytest.raises(UsageError, match="rows are told apart by the entry 'group' of the observation"):
        make("sessions", objective_weights=(1.0, 0.0, 0.0))
    with pytest.raises(UsageError, match="learns from several objectives, and CartPole-v1 has one reward"):
        make("CartPole-v1")
    with pytest.raises(UsageError, match="supervision has no effect without an anchor"):
        make(anchor=False, bins=20, supervision=0.5)
    with pytest.raises(UsageError, match="balance has no effect where all rows are one group"):
        make(group="", balance=False)
    with pytest.raises(UsageError, match="rewards has no effect on a method of several objectives"):
        make(rewards="minus-one")
    with pytest.raises(UsageError, match="which a recurrent student cannot learn from"):
        make(**{"student.recurrent": "gru"})
    with pytest.raises(UsageError, match="recorded rewards of feed are the same"):
        make(objective_weights=(0.0, 0.0, 0.0, 0.0))
