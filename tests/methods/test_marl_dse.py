"""MARL for design spaces: what the agents share and what they do not, what they learn from, and what is kept."""

from __future__ import annotations

import math

import pytest
import torch

import polopt
from polopt.core.errors import UsageError
from polopt.core.state import gather, restore
from polopt.evaluation.returns import evaluate_returns
from polopt.losses import Surrogate
from polopt.losses.surrogate import surrogate_loss
from polopt.methods.multiagent.marl_dse import Best, log_reward
from polopt.networks import Network
from polopt.training import api
from polopt.values.returns import standardize
from tests.guards.spaces import box

MUST = 4

SMALL = {"envs": 2, "agent.minibatches": 2, "agent.network.sizes": (8,), "seed": 7, "loggers": ()}


def made(parameters=4, **settings):
    options = {"parameters": parameters, "trace": 1}
    return api.plan("marl-dse", "memory-controller", task_options=options, **SMALL | settings).build()


def weights(agent):
    return [value.detach().clone() for module in (agent.policy, agent.critic) for value in module.parameters()]


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def evaluated(method):
    """A window as each agent evaluates it, flat."""
    batch = method.collect()
    return [agent.evaluate_window(method.share(batch, place)).reshape(-1) for place, agent in enumerate(method.agents)]


def policy_gradient(agent, batch):
    loss, _ = agent.policy_loss(batch)
    return torch.autograd.grad(loss, list(agent.policy.parameters()))


# What is shared


def test_must_1_every_agent_has_parameters_and_an_optimizer_of_its_own(float64):
    method = made()
    ids = [id(p) for agent in method.agents for module in (agent.policy, agent.critic) for p in module.parameters()]
    assert len(method.agents) == 4
    assert len(set(ids)) == len(ids)
    assert len({id(agent.optimizer) for agent in method.agents}) == 4
    before = [weights(agent) for agent in method.agents]
    method.agents[1].update(method.share(method.collect(), 1))
    changed = [not same(one, weights(agent)) for one, agent in zip(before, method.agents)]
    assert changed == [False, True, False, False]


def test_must_1_a_ratio_is_of_one_agent_alone(float64):
    """The others move far, out of every clip range: the gradient of an agent that stayed is as it was."""
    method = made()
    batches = evaluated(method)
    before = policy_gradient(method.agents[0], batches[0])
    for agent in method.agents[1:]:
        for parameter in agent.policy.parameters():
            parameter.data.add_(torch.randn_like(parameter))
    after = policy_gradient(method.agents[0], batches[0])
    for one, other in zip(before, after):
        torch.testing.assert_close(one, other)
    _, metrics = method.agents[1].policy_loss(batches[1])
    assert metrics["clip_fraction"] > 0.3
    assert method.agents[0].policy_loss(batches[0])[1]["clip_fraction"] == 0


def test_must_1_at_ratio_one_it_is_the_gradient_of_the_joint_ratio_and_later_it_is_not(float64):
    """Of one agent with a joint ratio, made of the same networks, with the same advantages."""
    method = made(**{"agent.entropy_coefficient": 0.0})
    for moved in (False, True):
        batches = evaluated(method)
        advantage = batches[0]["advantage"]
        for batch in batches:
            batch["advantage"] = advantage
        if moved:
            for agent in method.agents:
                for parameter in agent.policy.parameters():
                    parameter.data.add_(0.3 * torch.randn_like(parameter))
        pairs = list(zip(method.agents, batches))
        log_prob = torch.stack([agent.policy.log_prob(batch) for agent, batch in pairs]).sum(0)
        old = torch.stack([batch["log_prob"] for batch in batches]).sum(0)
        joint, _ = surrogate_loss(Surrogate.named["ppo"], log_prob, old, advantage, batches[0]["weight"])
        parameters = [value for agent in method.agents for value in agent.policy.parameters()]
        wanted = torch.autograd.grad(joint, parameters)
        found = [value for agent, batch in pairs for value in policy_gradient(agent, batch)]
        apart = max(float((one - other).abs().max()) for one, other in zip(wanted, found))
        assert (apart > 1e-3) if moved else (apart < 1e-12)


def test_must_2_heads_have_their_sizes_and_all_see_the_same(float64):
    method = made()
    assert [agent.spec.num_actions for agent in method.agents] == [4, 3, 3, 8]
    batch = method.collect()
    shares = [method.share(batch, place) for place in range(4)]
    for place, share in enumerate(shares):
        assert torch.equal(share["action"], batch["action"][..., place])
        assert torch.equal(share["log_prob"], batch["log_prob"][..., place])
        assert torch.equal(share["obs"], batch["obs"])
        torch.testing.assert_close(share["reward"], batch["reward"].log1p())
        torch.testing.assert_close(share["log_prob"], method.agents[place].policy.log_prob(share))
    assert batch["log_prob"].shape == (2, 8, 4)


# What they learn from


def test_must_4_rewards_enter_as_logarithms_and_standardized(float64):
    """log(1 + r), and odd below 0; without the option they are raw."""
    assert log_reward(torch.tensor([0.0, math.e - 1, -1.0, 999.0])).tolist() == pytest.approx(
        [0.0, 1.0, -math.log(2), math.log(1000)]
    )
    method = made(log_reward=False)
    batch = method.collect()
    assert torch.equal(method.share(batch, 0)["reward"], batch["reward"])


def test_must_4_the_advantage_is_of_one_design(float64):
    """reward - V(o), whatever came after, standardized over the window."""
    method = made(**{"agent.minibatches": 1})
    agent, share = method.agents[0], method.share(method.collect(), 0)
    batch = agent.evaluate_window(share)
    surprise = share["reward"] - agent.critic.value(share)
    torch.testing.assert_close(batch["advantage"], standardize(surprise, batch["weight"]))
    torch.testing.assert_close(batch["returns"], share["reward"])
    assert batch["advantage"].mean().abs() < 1e-9
    assert batch["advantage"].square().mean().item() == pytest.approx(1, rel=0.1)


def test_must_4_a_reset_is_one_reset_to_nothing(float64):
    method = made(2)
    batch = method.collect()
    assert batch["first"][:, 0].all()
    assert batch["first"].sum() == 2  # an episode has ten designs, a window eight
    assert torch.equal(batch["obs"][:, 0], torch.zeros(2, 3))
    torch.testing.assert_close(batch["obs"][:, 1:], batch["final_obs"][:, :-1])


def test_agents_learn_what_to_choose(float64):
    settings = {"agent.lr": 2e-2, "envs": 4}
    method = made(3, **settings)
    ranks = []
    for _ in range(16):
        batch = method.collect()
        ranks.append(batch["rank"].mean().item())
        method.update(batch)
    assert sum(ranks[:3]) / 3 < 0.65
    assert sum(ranks[-3:]) / 3 > 0.85


# What is kept


def test_must_3_the_best_stays_and_simulations_count(float64):
    best = Best(2)
    best.see(torch.tensor([[1, 2], [3, 4]]), torch.tensor([0.5, 2.0]), 2)
    best.see(torch.tensor([[5, 6], [7, 8]]), torch.tensor([2.0, 1.0]), 4)  # an equal one is no better
    assert (best.reward.item(), best.design.tolist()) == (2.0, [3, 4])
    best.see(torch.tensor([[5, 6]]), torch.tensor([2.5]), 5)
    assert best.curve == [(2, 2.0), (5, 2.5)]
    other = Best(2)
    restore(other, gather(best))
    assert (other.reward.item(), other.design.tolist(), other.curve) == (2.5, [5, 6], best.curve)


def test_must_3_the_best_of_all_windows(float64):
    method = made()
    assert method.figures() == {}
    scores = method.evaluate(method.task.twin(2), 3, greedy=False)  # nothing was simulated in training yet
    assert scores["best"] == scores["return"] / 10
    assert scores == evaluate_returns(method.policy, method.task.twin(2), 3, greedy=False) | {"best": scores["best"]}
    assert scores["return"] != method.evaluate(method.task.twin(2), 3)["return"]
    designs, rewards = [], []
    for number in range(1, 5):
        batch = method.collect()
        metrics = method.update(batch)
        designs.append(batch["action"].reshape(-1, 4))
        rewards.append(batch["reward"].flatten())
        every = torch.cat(rewards)
        assert metrics["best"] == every.max()
        assert metrics["reward"] == batch["reward"].mean()
        assert torch.equal(method.best.design, torch.cat(designs)[every.argmax()])
        assert method.ledger.env_steps == 16 * number
        assert method.best.curve[0] == (16, rewards[0].max().item())
        assert (16 * number in dict(method.best.curve)) == (rewards[-1].max() == every.max())
    scores = method.evaluate(method.task.twin(2), 2)
    assert scores["best"] == every.max().item()
    assert method.ledger.env_steps == 64  # evaluations find nothing
    (curve,) = method.figures().values()
    assert curve.x[-1] == 64
    assert curve.lines["best"][-1] == every.max().item()


def test_a_run_is_judged_by_its_best_design(tmp_path):
    smoke = {"envs": 2, "agent.network.sizes": (8,), "task_options": {"parameters": 2}, "loggers": ()}
    run = polopt.train("marl-dse", "memory-controller", steps=48, out=tmp_path / "run", eval_episodes=2, **smoke)
    assert run.score.name == "best"
    assert run.final["eval/best"] == run.rows[-1]["best"]


# Refusals


def test_what_is_no_design_is_refused():
    with pytest.raises(UsageError, match=r"^marl-dse needs a MultiDiscrete action space, each factor a parameter; box"):
        api.plan("marl-dse", box).build()
    for name in ("network", "critic_network"):
        with pytest.raises(UsageError, match=rf"^the agents of marl-dse have no memory: set agent.{name}.recurrent to"):
            made(**{f"agent.{name}": Network(recurrent="gru")})


def test_the_papers_settings():
    method = api.plan("marl-dse", "memory-controller", preset="paper", task_options={"parameters": 2}).build()
    config = method.config.agent
    assert (config.discount, config.gae_lambda, config.lr, config.advantage_over) == (0.99, 0.95, 2e-5, "none")
    assert (config.epochs, config.minibatches, config.max_grad_norm, config.adam_eps) == (2, 8, 0.5, 1e-7)
    assert (config.entropy_coefficient, config.value_clip, config.surrogate.clip_range) == (0.1, None, (0.8, 1.2))
    assert method.derived(method.config, 100_000)["designs per update"] == 2048
