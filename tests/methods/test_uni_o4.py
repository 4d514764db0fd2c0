"""Uni-O4: clones that are pushed apart, steps on frozen values, a gate, and what goes on online."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tensordict import TensorDict

from polopt.core.batch import weigh
from polopt.core.errors import UsageError
from polopt.core.random import paired
from polopt.methods.offline.uni_o4 import OnlinePPO
from polopt.methods.offline.uni_o4_offline import nearest_kl
from polopt.training.api import plan
from tests.guards.harness import advance, built

MUST = 5


def flat(policy: Any) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in policy.parameters()])


def set_moments(policy: Any, mean: float, log_std: float) -> None:
    """A Gaussian with tanh mean that is the same everywhere."""
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.zero_()
        policy.net.trunk.head.bias.copy_(torch.tensor([math.atanh(mean), log_std - policy.log_std_init]))


def test_the_nearest_other_by_hand(float64):
    kl = torch.tensor([[1.0, 9.0, 3.0], [2.0, 8.0, 30.0]])
    log_prob = torch.tensor([[0.0, 5.0, -2.0], [1.0, 4.0, -1.0]])
    assert nearest_kl(kl, log_prob, 2, 4.0).tolist() == [1.0, 4.0, 4.0]


def test_must_3_the_clone_loss_by_hand(float64):
    """Member 0 N(0.2, 0.5), the others N(0.5, 0.5) and N(-0.6, 1); at 0.4 the first is likelier, at -0.8 the second."""
    with built("uni-o4", **{"offline.members": 3, "offline.diversity": 0.3}) as method:
        learner = method.learner
        for policy, (mean, std) in zip(learner.members, ((0.2, 0.5), (0.5, 0.5), (-0.6, 0.999))):
            set_moments(policy, mean, math.log(std))
        batch = weigh(TensorDict({"obs": torch.randn(2, 3), "action": torch.tensor([[0.4], [-0.8]])}, [2]))
        loss, metrics = learner.clone_loss(batch, member=0)

    def surprise(action: float) -> float:
        return (action - 0.2) ** 2 / 0.5 + math.log(0.5) + 0.5 * math.log(2 * math.pi)

    near = 0.3**2 / (2 * 0.25)
    wide = math.log(0.999 / 0.5) + (0.25 + 0.64) / (2 * 0.999**2) - 0.5
    cloning, gap = (surprise(0.4) + surprise(-0.8)) / 2, (near + wide) / 2
    assert float(metrics["imitation_loss"]) == pytest.approx(cloning)
    assert float(metrics["diversity"]) == pytest.approx(gap)
    assert float(loss) == pytest.approx(cloning - 0.3 * gap)


def test_divergences_are_of_coordinates_and_bounded(float64):
    """Two coordinates share the divergence; far apart, no more than the limit is asked for, without a gradient."""
    with built("uni-o4", **{"offline.kl_limit": 0.01, "offline.diversity": 1.0}) as method:
        learner = method.learner
        set_moments(learner.members[0], 0.9, -2.0)
        set_moments(learner.members[1], -0.9, -2.0)
        batch = weigh(TensorDict({"obs": torch.randn(2, 3), "action": torch.zeros(2, 1)}, [2]))
        gap = learner.divergence(batch, learner.members[0], learner.members[1:])
        assert gap.tolist() == [0.01, 0.01]
        assert not any(grad.any() for grad in torch.autograd.grad(gap.sum(), list(learner.members[0].parameters())))


def gradient(method: Any, batch: Any, **changes: Any) -> torch.Tensor:
    learner = method.learner
    learner.config = learner.config.__class__(**{**vars(learner.config), **changes})
    loss, _ = learner.clone_loss(batch, member=0)
    return torch.cat([grad.flatten() for grad in torch.autograd.grad(loss, list(learner.members[0].parameters()))])


def test_must_3_the_released_form_makes_nothing_diverse_and_ours_does(float64):
    with built("uni-o4") as method:
        batch = weigh(method.collect())
        plain = gradient(method, batch, diversity=0.0)
        heuristic = gradient(method, batch, diversity=0.4, diversity_form="heuristic")
        torch.testing.assert_close(heuristic, 1.4 * plain)
        for form in ("kl", "sampled"):
            pushed = gradient(method, batch, diversity=0.4, diversity_form=form, kl_limit=1e6)
            cosine = torch.nn.functional.cosine_similarity(pushed - plain, plain, dim=0)
            assert (pushed - plain).norm() > 0
            assert cosine < 0.999


def test_the_sampled_divergence_has_the_gradient_of_the_exact_one(float64):
    """On average over samples, with one other: E[log pi - log other] is the divergence."""
    with built("uni-o4") as method:
        learner = method.learner
        set_moments(learner.members[0], 0.1, -1.0)
        set_moments(learner.members[1], 0.4, -0.7)
        rows = weigh(TensorDict({"obs": torch.zeros(20_000, 3), "action": torch.zeros(20_000, 1)}, [20_000]))
        bias = learner.members[0].net.trunk.head.bias
        found = []
        for form in ("kl", "sampled"):
            learner.config = learner.config.__class__(**{**vars(learner.config), "diversity_form": form})
            gap = learner.divergence(rows, learner.members[0], learner.members[1:]).mean()
            found.append((gap.detach(), torch.autograd.grad(gap, bias)[0]))
        assert float(found[1][0]) == pytest.approx(float(found[0][0]), abs=0.02)
        torch.testing.assert_close(found[1][1], found[0][1], atol=0.03, rtol=0)


def test_members_are_taught_one_after_the_other_in_random_order():
    with built("uni-o4", **{"offline.members": 3}) as method:
        learner, seen, original = method.learner, [], method.learner.clone_loss

        def noted(batch: Any, member: int) -> Any:
            seen.append((member, [flat(each) for each in learner.members]))
            return original(batch, member)

        learner.clone_loss = noted
        orders = set()
        for _ in range(5):
            del seen[:]
            start = [flat(each) for each in learner.members]
            method.update(method.collect())
            order = [member for member, _ in seen]
            orders.add(tuple(order))
            for position, (_, weights) in enumerate(seen):
                for member in range(3):  # those before have moved, those to come have not
                    assert torch.equal(weights[member], start[member]) == (member not in order[:position])
        assert len(orders) > 1
        assert all(sorted(order) == [0, 1, 2] for order in orders)


def fitted(method: Any) -> Any:
    """The learner after its fitting."""
    while method.learner.count < method.learner.config.fit_updates:
        method.update(method.collect())
        method.ledger.updates += 1
    return method.learner


def test_must_1_decisions_are_of_the_old_policy_with_frozen_values(float64):
    with built("uni-o4") as method:
        learner = fitted(method)
        batch = weigh(method.collect())
        with torch.no_grad():
            learner.members[1].net.trunk.head.bias.add_(0.3)  # the candidate decides nothing
        with paired(5):
            decisions, mean = learner.decided(batch, 1)
        with paired(5):
            record, _ = learner.old[1].act(batch["obs"])
        assert torch.equal(decisions["action"], record["action"])
        assert torch.equal(decisions["log_prob"], record["log_prob"])
        q = learner.values.critic(batch["obs"], record["action"].clamp(-1, 1)).amin(0)
        advantage = (q - learner.values.value(batch["obs"])).detach()
        torch.testing.assert_close(decisions["advantage"], (advantage - advantage.mean()) / advantage.std())
        assert float(mean) == pytest.approx(float(advantage.mean()))
        other = batch.clone().set("action", torch.zeros_like(batch["action"]))
        with paired(5):
            assert torch.equal(learner.decided(other, 1)[0]["advantage"], decisions["advantage"])
        before = {path: value.clone() for path, value in learner.values.state_dict().items()}
        learner.improve(batch, 0)
        assert all(torch.equal(value, before[path]) for path, value in learner.values.state_dict().items())


def test_the_step_is_that_of_ppo_on_its_ratio(float64):
    """Against the clipped minimum itself; two rows are beyond the clip range, one of them on the side that counts."""
    with built("uni-o4", **{"offline.entropy_coefficient": 0.1}) as method:
        learner, policy = method.learner, method.learner.members[0]
        rows = weigh(TensorDict({"obs": torch.randn(3, 3), "action": 0.1 * torch.randn(3, 1)}, [3]))
        log_prob = policy.log_prob(rows)
        rows["log_prob"] = (log_prob - torch.tensor([1.5, 1.5, 1.02]).log()).detach()
        rows["advantage"] = torch.tensor([1.0, -1.0, 2.0])
        loss, _ = learner.policy_loss(rows, member=0, clip_scale=torch.tensor(0.5))
        ratio = (log_prob - rows["log_prob"]).exp()
        clipped = ratio.clamp(1 - 0.125, 1 + 0.125)
        known = -torch.minimum(ratio * rows["advantage"], clipped * rows["advantage"]).mean()
        known = known - 0.1 * policy.entropy(rows).mean()
        for mine, its in zip(*(torch.autograd.grad(each, list(policy.parameters())) for each in (loss, known))):
            torch.testing.assert_close(mine, its)


def test_must_4_the_rate_falls_to_nothing_and_the_clip_range_soon_stands_still():
    with built("uni-o4", **{"offline.improve_updates": 400}) as method:
        learner = fitted(method)
        assert [learner.clip_scale(step) for step in (0, 100, 200, 399)] == [1.0, 0.75, 0.5, 0.5]
        batch = weigh(method.collect())
        for step, share in ((0, 1.0), (100, 0.75), (399, 1 / 400)):
            learner.improve(batch, step)
            assert learner.optimizers_of[0].rate == pytest.approx(learner.config.lr * share)
        assert learner.clone_optimizers[0].rate == learner.config.clone_lr
        assert [each.max_grad_norm for each in learner.optimizers_of] == [0.5, 0.5]


def test_must_2_the_gate_lets_only_rises_through():
    with built("uni-o4", **{"offline.gate_every": 1}) as method:
        told = iter([1.0, 2.0, 0.9, 2.5, 3.0, 2.4, 2.0, 2.0])
        method.learner.estimate = lambda member: next(told)
        learner = fitted(method)
        assert torch.equal(flat(learner.policy), flat(learner.members[1]))
        clones = [flat(each) for each in learner.members]
        metrics = method.update(method.collect())
        assert float(metrics["accepted"]) == 0.5 and float(metrics["estimate"]) == 2.5  # noqa: PT018
        assert torch.equal(flat(learner.old[0]), clones[0])
        assert not torch.equal(flat(learner.members[0]), clones[0])  # the candidate goes on
        assert torch.equal(flat(learner.old[1]), flat(learner.members[1]))
        first = flat(learner.old[1])
        metrics = method.update(method.collect())
        assert float(metrics["estimate"]) == 3.0
        assert torch.equal(flat(learner.old[0]), flat(learner.members[0]))
        assert torch.equal(flat(learner.old[1]), first)
        assert torch.equal(flat(method.policy), flat(learner.old[0]))
        method.update(method.collect())
        assert not torch.equal(flat(learner.members[0]), flat(learner.old[0]))
        assert torch.equal(flat(method.policy), flat(learner.old[0]))  # and not what was turned down


def test_without_a_gate_all_pass_and_with_restoring_what_fails_goes_back():
    for settings, passes in (({"offline.gate": "always"}, True), ({"offline.restore": True}, False)):
        with built("uni-o4", **{"offline.gate_every": 1, "offline.members": 1, **settings}) as method:
            told = iter([1.0, 0.5, 0.4])
            method.learner.estimate = lambda member: next(told)  # noqa: B023
            learner = fitted(method)
            clone = flat(learner.members[0])
            method.update(method.collect())
            assert torch.equal(flat(learner.old[0]), clone) != passes
            assert torch.equal(flat(learner.members[0]), flat(learner.old[0]))
            assert torch.equal(flat(method.policy), flat(learner.old[0]))


def test_the_estimate_is_the_mean_of_q_along_greedy_imagination():
    with built("uni-o4") as method:
        learner = fitted(method)
        estimate = learner.estimate(0)
        assert learner.estimate(0) == estimate  # the same states, the same luck
        with paired(0), torch.no_grad():
            rows = learner.model.rollout(learner.members[0], learner._starts, 3, greedy=True)
            q = learner.values.critic(rows["obs"], rows["action"]).amin(0)
        assert estimate == pytest.approx(float(q[rows["mask"]].mean()), rel=1e-5)
        assert len(learner._starts) == 6


def test_targets_follow_every_second_update():
    with built("uni-o4", **{"offline.tau": 0.5}) as method:
        values, moved = method.learner.values, []
        for _ in range(4):
            before = flat(values.target_critic)
            method.update(method.collect())
            moved.append(not torch.equal(flat(values.target_critic), before))
        assert moved == [False, True, False, True]


def test_must_5_policy_and_value_go_on_online():
    with built("uni-o4") as method:
        policy, critic, value = method.policy, method.critic, flat(method.critic)
        advance(method, 12)
        online = method.learner
        assert isinstance(online, OnlinePPO)
        assert online.policy is policy
        assert online.critic is critic
        assert not torch.equal(flat(critic), value)
        assert method.ledger["env_steps"] == 0
        before = flat(policy)
        advance(method, 13)
        assert not torch.equal(flat(policy), before)
        assert method.ledger["env_steps"] == 16


def test_the_online_value_loss_is_the_whole_square(float64):
    with built("uni-o4", **{"offline.fit_updates": 0, "offline.improve_updates": 0, "value_clip": None}) as method:
        batch = method.learner.evaluate_window(method.collect())
        loss, _ = method.learner.critic_loss(batch)
        assert float(loss) == pytest.approx(float((method.critic.value(batch) - batch["returns"]).square().mean()))


def test_policies_and_values_see_observations_in_units_of_the_data():
    with built("uni-o4", normalize_obs=True) as method:
        learner, own = method.learner, method.policy.normalizer
        nets = [policy.net for policy in (*learner.members, *learner.old)]
        nets += [learner.values.critic.network, learner.values.target_critic.network, method.critic.network]
        assert all(net.normalizer is own for net in nets)
        torch.testing.assert_close(own.mean, learner.source.data["obs"].double().mean(0))


def test_settings_reach_the_parts_they_are_of():
    offline = {"offline.discount": 0.5, "offline.expectile": 0.9, "offline.tau": 0.25, "offline.value_lr": 3e-3}
    with built("uni-o4", lr=1e-3, critic_lr=2e-3, **offline) as method:
        values = method.learner.values
        assert (values.discount, values.expectile, values.tau) == (0.5, 0.9, 0.25)
        assert method.learner.value_optimizer.lr == method.learner.critic_optimizer.lr == 3e-3
        advance(method, 12)
        assert (method.learner.optimizer.lr, method.learner.critic_optimizer.lr) == (1e-3, 2e-3)


def test_cloning_ends_and_fitting_goes_on():
    with built("uni-o4", **{"offline.clone_updates": 2}) as method:
        moved = []
        for _ in range(4):
            before = [flat(each) for each in method.learner.members]
            method.update(method.collect())
            moved.append([not torch.equal(flat(each), old) for each, old in zip(method.learner.members, before)])
        assert moved == [[True, True]] * 2 + [[False, False]] * 2


def test_presets_have_the_sizes_of_the_released_scripts():
    configs = {name: plan("uni-o4", "Pendulum-v1", preset=name).config for name in ("locomotion", "adroit", "kitchen")}
    assert [config.normalize_obs for config in configs.values()] == [True, False, True]
    assert [config.offline.horizon for config in configs.values()] == [1_000, 50, 4]
    assert [config.offline.fit_updates for config in configs.values()] == [2_000_000, 2_000_000, 1_000_000]
    assert [config.offline.lr for config in configs.values()] == [1e-4, 1e-5, 1e-5]


def test_one_clone_is_not_pushed():
    with built("uni-o4", **{"offline.members": 1}) as method:
        assert "diversity" not in method.update(method.collect())


def test_discrete_actions_are_served():
    settings = {"policy": "auto", "offline.dataset": "random"}
    with built("uni-o4", "CartPole-v1", **settings) as method:
        assert all(math.isfinite(value) for metrics in advance(method, 13) for value in metrics.values())


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("Pendulum-v1", {"policy": "deterministic"}, "needs a policy that has a density for any action"),
    ("Pendulum-v1", {"network.recurrent": "gru"}, "which a recurrent policy cannot learn from"),
    ("CartPole-v1", {"policy": "auto", "offline.diversity_form": "sampled"}, "passes gradients through its samples"),
    ("Pendulum-v1", {"offline.members": 1, "offline.kl_limit": 3.0}, "kl_limit"),
    ("Pendulum-v1", {"offline.gate": "always", "offline.restore": True}, "restore"),
    ("Pendulum-v1", {"offline.diversity_form": "heuristic", "offline.kl_limit": 3.0}, "kl_limit"),
]


@pytest.mark.parametrize(("task", "settings", "said"), REFUSED)
def test_what_is_refused(task: str, settings: dict[str, Any], said: str):
    with pytest.raises(UsageError, match=said), built("uni-o4", task, **settings):
        pass
