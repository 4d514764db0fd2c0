"""Scaled PPO: what grows with the environments, what an outer step is told to be, and the average of policies."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

from polopt.core.errors import UsageError
from polopt.core.state import gather, restore
from polopt.data.rollouts import Rollouts
from polopt.methods.control.scaled_ppo import even_size, outer_step
from polopt.tasks import make_task
from polopt.training import api
from tests.data.actors import Random
from tests.guards.harness import built

MUST = 5
SMALL = {"window": 8, "minibatch_size": 16, "epochs": 2, "network.sizes": (8,), "loggers": ()}


def make(task: Any = "point/regulation", **changes: Any) -> Any:
    return api.plan("scaled-ppo", task, seed=1, **SMALL | changes).build()


def steps_taken(method: Any) -> list[tuple[int, float]]:
    """Sizes and learning rates of the gradient steps of one update."""
    taken, step = [], method.step
    method.step = lambda minibatch: taken.append((len(minibatch), method.optimizer.rate)) or step(minibatch)
    method.update(method.collect())
    return taken


def test_must_1_the_number_of_gradient_steps_grows_and_neither_their_size_nor_the_rate():
    few, many = (steps_taken(make(envs=envs)) for envs in (4, 24))
    assert few == [(16, 3e-4)] * (2 * 2)
    assert many == [(16, 3e-4)] * (2 * 12)


def test_must_1_minibatches_are_equal_and_as_near_to_the_size_as_can_be():
    assert [even_size(decisions, 128) for decisions in (128, 1024, 1, 100, 190, 192, 200, 300)] == [
        *(128, 128, 1, 100, 190, 96, 100, 150),
    ]
    assert [size for size, _ in steps_taken(make(envs=5, epochs=1))] == [20, 20]  # and not 16, 16, 8


def test_must_2_an_outer_step_is_from_the_policy_that_collected_to_the_last_one(float64):
    method = make(envs=6, lr=0.01)
    batch = method.collect()
    before = copy.deepcopy(method.policy)
    metrics = method.update(batch)
    with torch.no_grad():
        new, old = (policy.log_prob(batch).numpy() for policy in (method.policy, before))
    evaluated = method.evaluate_window(batch)  # with another critic
    assert np.allclose(old, batch["log_prob"])
    kl = np.mean(new / new * (np.exp(new - old) - 1 - (new - old)))
    assert float(metrics["outer_kl"]) == pytest.approx(kl)
    assert float(metrics["data_to_divergence"]) == pytest.approx(6 * 8 / kl)
    assert kl > 2 * float(metrics["approx_kl"]) > 0  # which is a mean over the way there
    assert evaluated["weight"].sum() == pytest.approx(1.0)


def test_must_2_the_gain_is_in_units_of_reward_and_of_the_new_policy(float64):
    method = make(envs=3, lr=0.01)
    batch, before = method.collect(), copy.deepcopy(method.policy)
    seen = method.evaluate_window(batch)
    gain = method.update(batch)["promised_gain"]
    with torch.no_grad():
        ratio = (method.policy.log_prob(batch) - before.log_prob(batch)).exp()
    raw = seen["returns"] - seen["value"]
    assert abs(float(raw.std()) - 1) > 0.05  # not those that are standardized
    assert float(gain) == pytest.approx(float(((ratio - 1) * raw).mean()))


def test_the_steps_of_a_chain_are_one_decision():
    old, weight = torch.zeros(2, 3), torch.tensor([0.25, 0.75])
    new = torch.tensor([[0.1, 0.2, 0.0], [0.0, -0.3, 0.0]])
    found = outer_step(new, old, torch.tensor([2.0, 1.0]), weight)
    k3 = np.exp(new.numpy()) - 1 - new.numpy()
    assert float(found["outer_kl"]) == pytest.approx(0.25 * k3[0].mean() + 0.75 * k3[1].mean(), rel=1e-4)
    gain = 0.25 * 2 * (np.exp(0.3) - 1) + 0.75 * (np.exp(-0.3) - 1)
    assert float(found["promised_gain"]) == pytest.approx(gain, rel=1e-5)
    assert float(found["data_to_divergence"]) == pytest.approx(2 / float(found["outer_kl"]), rel=1e-5)
    still = outer_step(old, old, weight, torch.tensor([1.0, 0.0]))
    assert np.isfinite(float(still["data_to_divergence"]))
    assert float(still["data_to_divergence"]) < float(outer_step(old, old, weight, weight)["data_to_divergence"])


def test_must_3_a_run_has_no_end_built_in_so_that_plateaus_can_be_compared():
    method = make(envs=4)
    batch = method.evaluate_window(method.collect())
    loss = float(method.total_loss(batch)[0].detach())
    method.progress = 0.9
    assert method.optimizer.rate == 3e-4
    assert float(method.total_loss(batch)[0].detach()) == loss


def test_must_4_the_proximal_policy_is_the_average_of_all_so_far(float64):
    method = make(envs=4, ewma_decay=0.5, lr=0.05)
    passed, step = [gather(method.policy)], method.step

    def followed(minibatch: Any) -> Any:
        found = step(minibatch)
        passed.append({name: leaf.clone() for name, leaf in gather(method.policy).items()})
        return found

    passed[0] = {name: leaf.clone() for name, leaf in passed[0].items()}
    method.step = followed
    for _ in range(2):
        method.update(method.collect())
    weights = [0.5**age for age in range(len(passed))][::-1]
    assert len(passed) == 9
    for name, leaf in gather(method.proximal).items():
        mean = sum(weight * each[name] for weight, each in zip(weights, passed)) / sum(weights)
        torch.testing.assert_close(leaf, mean)
    assert method.averaged == pytest.approx(sum(weights))


def test_must_4_the_gradient_is_that_of_the_decoupled_objective(float64):
    method = make(envs=4, ewma_decay=0.9, entropy_coefficient=0.0)
    torch.manual_seed(3)
    for module, size in ((method.policy, 0.05), (method.proximal, 0.1)):
        for parameter in module.parameters():
            parameter.data += size * torch.randn_like(parameter)
    batch = method.evaluate_window(method.collect())
    batch["log_prob"] = batch["log_prob"] + 0.2 * torch.randn_like(batch["log_prob"])  # as of data that are older
    flat = next(iter(method.minibatches(batch.clone(False))))
    loss, _ = method.policy_loss(method.against_proximal(flat))
    parameters = list(method.policy.parameters())
    found = torch.autograd.grad(loss, parameters)

    new, advantage, behavior = method.policy.log_prob(flat), flat["advantage"], flat["log_prob"]
    proximal = method.proximal.log_prob(flat).detach()
    ratio = (new - proximal).exp()
    clipped = ratio.clamp(0.8, 1.2)
    assert ((ratio != clipped) & (torch.maximum(-advantage * ratio, -advantage * clipped) > 0)).any()
    terms = torch.minimum(ratio * advantage, clipped * advantage) * (proximal - behavior).exp()
    for one, other in zip(found, torch.autograd.grad(-terms.mean(), parameters), strict=True):
        torch.testing.assert_close(one, other)


def test_must_4_every_gradient_step_is_taken_against_it(float64):
    method = make(envs=4, ewma_decay=0.5, lr=0.05)
    gaps, loss = [], method.total_loss

    def followed(minibatch: Any) -> Any:
        with torch.no_grad():
            torch.testing.assert_close(minibatch["log_prob"], method.proximal.log_prob(minibatch))
            gaps.append(float((minibatch["log_prob"] - method.policy.log_prob(minibatch)).abs().max()))
        return loss(minibatch)

    method.total_loss = followed
    method.update(method.collect())
    assert gaps[0] < 1e-9
    assert min(gaps[1:]) > 1e-3


def test_the_proximal_policy_is_what_a_penalty_measures_from():
    method = make(envs=4, ewma_decay=0.9, **{"kl_penalty": "kl-penalty"})
    batch = method.evaluate_window(method.collect())
    with torch.no_grad():
        method.policy.log_std += 0.3
        assert float(method.kl_from_old(batch)) > 0
        method.proximal.log_std += 0.3
        assert float(method.kl_from_old(batch)) == pytest.approx(0.0, abs=1e-7)


def test_must_5_advantages_are_standardized_over_the_window_whatever_the_number_of_minibatches(float64):
    method = make(envs=16, epochs=1)
    parts = [part["advantage"] for part in method.minibatches(method.evaluate_window(method.collect()))]
    everything = torch.cat(parts)
    assert len(parts) == 8
    assert float(everything.mean()) == pytest.approx(0.0, abs=1e-9)
    assert float(everything.std(correction=0)) == pytest.approx(1.0, rel=0.01)
    assert all(abs(float(part.mean())) > 1e-4 for part in parts)


def test_must_5_first_episodes_are_cut_at_steps_that_are_spread():
    source = Rollouts(make_task("point/regulation", 8, seed=2), 12)
    plain = Rollouts(make_task("point/regulation", 8, seed=2), 12)
    source.stagger = 4
    batch, other = (each.next(Random(each.task.spec)) for each in (source, plain))
    assert batch["truncated"].nonzero().tolist() == [[row, row // 2] for row in range(8)]
    assert not other["truncated"].any()
    assert source.episodes() == []
    assert source.ledger.episodes == 0
    last = batch["final_obs"][torch.arange(8), torch.arange(8) // 2]
    assert torch.equal(batch["first"][:, 1:], batch["truncated"][:, :-1])
    begun = batch["obs"][torch.arange(8), torch.arange(8) // 2 + 1]
    assert (last - begun).abs().amax(1).min() > 0.1  # the true successor is no beginning
    after = source.next(Random(source.task.spec))
    assert sorted(set(after["truncated"].nonzero()[:, 1].tolist())) == [4, 5, 6, 7]  # 16 steps after each cut
    assert [length for _, length in source.episodes()] == [16] * 8


def test_must_5_a_source_that_is_restored_cuts_on():
    def cut(stopped: bool) -> list[Any]:
        source = Rollouts(make_task("point/regulation", 6, seed=2), 2)
        source.stagger = 6
        windows = []
        for _ in range(4):
            if stopped and len(windows) == 1:
                saved, source = gather(source), Rollouts(make_task("point/regulation", 6, seed=2), 2)
                source.stagger = 6
                source.next(Random(source.task.spec))
                restore(source, saved)
            windows.append(source.next(Random(source.task.spec))["truncated"].clone())
        return torch.cat(windows, 1).nonzero().tolist()

    assert cut(stopped=True) == cut(stopped=False) == [[row, row] for row in range(6)]


def test_what_it_cannot_do_is_said():
    with pytest.raises(UsageError, match="minibatches has no effect here: there are as many as minibatch_size makes"):
        make(minibatches=2)
    with built("scaled-ppo") as method:
        method.task.__class__ = type("Teams", (type(method.task),), {"environments": 1})
        with pytest.raises(UsageError, match="stagger cuts rows one by one"):
            type(method)(api.plan("scaled-ppo", "CartPole-v1", stagger=3).config, method.task)
