"""SRL: what is stored, what the critic learns of, what each place of a sequence is scored by, and how it acts."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torch import Tensor, nn

from polopt.core.batch import weigh
from polopt.core.errors import UsageError
from polopt.evaluation.returns import evaluate_returns
from polopt.methods.control.sac import SAC
from polopt.methods.control.srl import SRL
from polopt.policies.base import Density, Reparameterized
from polopt.policies.sequence import SequencePolicy
from polopt.training.api import plan
from tests.guards.harness import advance, built
from tests.guards.harness import plan as small

MUST = 5


def rows(count: int = 6, **keys: Any) -> TensorDict:
    draw = torch.Generator().manual_seed(5)

    def normal(*shape: int) -> Tensor:
        return torch.randn(count, *shape, generator=draw, dtype=torch.float64).to(torch.get_default_dtype())

    batch = {
        "obs": normal(3),
        "action": normal(1).tanh(),
        "previous_action": normal(1).tanh(),
        "reward": normal(),
        "next_obs": normal(3),
        "terminated": torch.arange(count) % 3 == 1,
        "truncated": torch.arange(count) % 3 == 2,
        "discount": torch.full((count,), 0.9),
    }
    return TensorDict(batch | keys, batch_size=[count])


def spread(module: nn.Module, start: int = 0) -> None:
    """Weights with which every input counts."""
    with torch.no_grad():
        for number, parameter in enumerate(module.parameters()):
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(start + number)))


# Evaluate


def test_must_1_the_critic_learns_of_single_actions_and_of_the_first_that_follows(float64):
    with built("srl", **{"entropy.initial": 0.5}) as method:
        batch = weigh(rows())
        spread(method.target_critic)
        torch.manual_seed(3)
        target = method.target(batch)
        torch.manual_seed(3)
        action, log_prob = method.policy.rsample(
            batch["next_obs"], batch["action"], 1
        )  # after the action that was done
        q = method.target_critic(batch["next_obs"], action.squeeze(1)).detach()
        follows = torch.minimum(q[0], q[1]) - 0.5 * log_prob.squeeze(1).detach()
        alive = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 1.0])  # a time limit ends no target
        torch.testing.assert_close(target, batch["reward"] + 0.9 * alive * follows)
        torch.manual_seed(3)
        loss, _ = method.critic_loss(batch)
        own = method.critic(batch["obs"], batch["action"])
        assert own.shape == (2, 6)
        torch.testing.assert_close(loss, 0.5 * (own - target).square().mean(1).sum())


# Improve


def test_must_2_places_are_scored_where_the_target_model_says_and_no_gradient_goes_through_it(float64):
    with built("srl", entropy="fixed") as method:
        batch = weigh(rows())
        for number, module in enumerate((method.policy, method.critic, method.model, method.target_model)):
            spread(module, 100 * number)
        for parameter in method.target_model.parameters():
            parameter.requires_grad_()  # if a gradient could reach it, it would
        torch.manual_seed(3)
        loss, _ = method.policy_loss(batch)
        own, slow = list(method.policy.parameters()), [*method.target_model.parameters(), *method.model.parameters()]
        grads = torch.autograd.grad(loss, own + slow, allow_unused=True)
        assert all(grad is None for grad in grads[len(own) :])

        def expected(through: bool, model: Any) -> list[Tensor]:
            torch.manual_seed(3)
            actions, log_prob = method.policy.rsample(batch["obs"], batch["previous_action"])
            state, total = batch["obs"], torch.zeros(())
            for place in range(3):
                q = method.critic(state, actions[:, place])
                total = total + (0.2 * log_prob[:, place] - torch.minimum(q[0], q[1])).mean()
                after = model(state, actions[:, place])
                state = after if through else after.detach()
            return [total, *torch.autograd.grad(total, own)]

        right = expected(False, method.target_model)
        for one, other in zip((loss, *grads), right, strict=False):
            torch.testing.assert_close(one, other)
        for wrong in (expected(True, method.target_model), expected(False, method.model)):
            assert max((one - other).abs().max() for one, other in zip(grads, wrong[1:], strict=False)) > 1e-3


def test_without_recall_every_place_is_scored_at_the_first_state(float64):
    with built("srl", recall="none", entropy="fixed", **{"model_network.sizes": (400, 300)}) as method:
        assert method.model is None
        batch = weigh(rows())
        torch.manual_seed(3)
        loss, _ = method.policy_loss(batch)
        torch.manual_seed(3)
        actions, log_prob = method.policy.rsample(batch["obs"], batch["previous_action"])
        q = torch.stack([method.critic(batch["obs"], action).amin(0) for action in actions.unbind(1)], 1)
        torch.testing.assert_close(loss, (0.2 * log_prob - q).sum(1).mean())
        assert "model_loss" not in advance(method, 66)[-1]


def test_must_4_losses_are_summed_over_places_each_with_its_entropy():
    with built("srl", **{"entropy.initial": 0.5}) as method:
        batch = weigh(rows())
        log_prob = torch.tensor([[1.0, 2.0, 6.0]]).repeat(6, 1)
        method.policy.rsample = lambda obs, previous: (torch.zeros(6, 3, 1), log_prob)
        method.critic = lambda states, actions: torch.stack(
            [torch.full((3, 6), 4.0), torch.tensor([[1.0], [5.0], [3.0]]).expand(3, 6)]
        )
        loss, metrics = method.policy_loss(batch)
        assert float(loss) == pytest.approx(0.5 * (1 + 2 + 6) - (1 + 4 + 3))
        assert float(metrics["entropy"]) == pytest.approx(-3.0)  # a mean, which is held at the target
        target = float(method.temperature.target_entropy)
        assert target == -1.0
        before = float(method.temperature.log_alpha.detach())
        gap = method.temperature.loss(metrics["entropy"])
        assert float(gap.detach()) == pytest.approx(before * (-3.0 - target))  # log alpha, and not alpha


def test_the_model_learns_the_next_observation_itself(float64):
    with built("srl") as method:
        batch = weigh(rows())
        loss, _ = method.model_loss(batch)
        predicted = method.model.net(batch["obs"], batch["action"])
        torch.testing.assert_close(loss, (predicted - batch["next_obs"]).square().mean())
        batch["obs"], batch["next_obs"] = batch["obs"] * 0, batch["obs"] * 0
        for parameter in method.model.parameters():
            nn.init.zeros_(parameter)
        assert float(method.model_loss(batch)[0].detach()) == 0.0


def test_the_critic_has_a_batch_of_its_own_and_model_and_policy_share_the_other():
    with built("srl") as method:
        seen: dict[str, list[int]] = {}

        def spy(name: str) -> None:
            original = getattr(method, name)

            def call(batch: Any) -> Any:
                seen[name] = batch["index"].tolist()
                assert float(batch["weight"].sum()) == pytest.approx(1.0)
                return original(batch)

            setattr(method, name, call)

        for name in ("critic_loss", "model_loss", "policy_loss"):
            spy(name)
        batch = method.collect()
        assert len(batch) == 64
        method.update(batch)
        index = batch["index"].tolist()
        assert seen == {"critic_loss": index[:32], "model_loss": index[32:], "policy_loss": index[32:]}


def test_slow_copies_follow_after_the_update_by_tau(float64):
    with built("srl", tau=0.25) as method:
        slow = {name: getattr(method, f"target_{name}") for name in ("model", "critic")}
        before = {name: [value.clone() for value in copy.parameters()] for name, copy in slow.items()}
        method.update(method.collect())
        for name, copy in slow.items():
            for old, new, now in zip(before[name], getattr(method, name).parameters(), copy.parameters(), strict=True):
                torch.testing.assert_close(now.detach(), 0.75 * old + 0.25 * new.detach())


def test_the_model_has_the_rate_of_the_rest():
    with built("srl", lr=0.5) as method:
        optimizers = (method.policy_optimizer, method.critic_optimizer, method.model_optimizer)
        assert [each.torch.param_groups[0]["lr"] for each in optimizers] == [0.5, 0.5, 0.5]


def test_the_policy_moves_once_in_so_many_updates_and_in_the_first():
    with built("srl", policy_every=3) as method:
        moved = ["policy_loss" in metrics for metrics in advance(method, 73)]
    assert moved == [number % 3 == 0 for number in range(len(moved))]
    assert len(moved) > 6


class OneAction(Density, Reparameterized):
    """The decoder as a policy of SAC: what it sees are observations with the action before beside them."""

    family = "first action of a sequence"
    unit = True

    def __init__(self, decoder: SequencePolicy) -> None:
        super().__init__()
        self.decoder, self.spec = decoder, decoder.spec

    def rsample(self, obs: Any, n: int | None = None) -> Any:
        action, log_prob = self.decoder.rsample(obs["obs"], obs["previous_action"], 1)
        return action[:, 0], log_prob[:, 0]

    def act(self, *_: Any, **__: Any) -> Any:
        raise AssertionError("it only learns")

    log_prob = entropy = kl = act


class Aside(nn.Module):
    """A critic that does not look at the action before."""

    def __init__(self, critic: nn.Module) -> None:
        super().__init__()
        self.critic = critic

    def forward(self, obs: Any, action: Tensor) -> Tensor:
        return self.critic(obs["obs"], action)


def test_with_one_action_it_is_sac_with_the_decoder_for_its_policy_bitwise(float64):
    """Where both of its batches are the one batch of SAC; with two actions it is not."""

    def seen(obs: Tensor, previous: Tensor) -> TensorDict:
        return TensorDict({"obs": obs, "previous_action": previous}, batch_size=obs.shape[:1])

    for length, same in ((1, True), (2, False)):
        model = {} if length > 1 else {"model_network.sizes": (400, 300)}
        with built("srl", **{"policy.length": length}, **model) as method:
            assert (method.model is None) == same
            config = small("sac", **{"entropy.form": "log-alpha"}).config
            with built("srl", **{"policy.length": length}, **model) as other:  # the same weights
                parts = {"policy": OneAction(other.policy), "critic": Aside(other.critic)}
                sac = SAC(config, other.task, parts=parts)
                sac.source = method.source
            for number in range(3):
                batch = rows(32, reward=torch.randn(32, generator=torch.Generator().manual_seed(number)).double())
                method.ledger.updates = number
                torch.manual_seed(number)
                method.update(torch.cat([batch, batch]))
                mixed = batch.clone()
                mixed["obs"] = seen(batch["obs"], batch["previous_action"])
                mixed["next_obs"] = seen(batch["next_obs"], batch["action"])
                torch.manual_seed(number)
                sac.update(mixed)
            pairs = zip(method.policy.parameters(), other.policy.parameters(), strict=True)
            assert all(one.equal(two) for one, two in pairs) == same
            if same:
                assert method.temperature.value.equal(sac.temperature.value)


# Collect and act


@pytest.mark.parametrize("steps", [(20, 0), (0, 20), (7, 13)], ids=["random", "of the policy", "from one to the other"])
def test_must_3_the_action_before_is_stored_beside_each(steps):
    """What warms up and what the policy does, over episodes that a time limit ends after 5 decisions."""
    warmup, more = steps
    options = {"max_episode_steps": 5}
    settings = {"warmup": max(warmup, 5), "batch_size": 4, "network.sizes": (8, 8), "replay_size": 500, "loggers": ()}
    method = plan("srl", "Pendulum-v1", seed=1, task_options=options, **settings).build()
    for _ in range(more + 1):
        method.collect()
    columns, count = method.source.replay._columns, len(method.source.replay)
    action, before = columns["action"][:count], columns["previous_action"][:count]
    first = torch.arange(count) % 5 == 0
    assert before[first].abs().max() == 0
    assert before[1:][~first[1:]].equal(action[:-1][~first[1:]])
    assert action.abs().max() <= 1
    assert float(action.std()) > 0.2
    assert columns["truncated"][:count].equal(torch.arange(count) % 5 == 4)


def test_must_3_samples_are_fed_back_in_training_and_means_in_evaluation(float64):
    with built("srl") as method:
        policy, obs = method.policy, torch.randn(50, 3)
        read: list[Tensor] = []
        step = policy.cell.step
        policy.cell.step = lambda previous, state: (read.append(previous), step(previous, state))[1]
        actions, _ = policy.rsample(obs, torch.zeros(50, 1))
        assert read[0].abs().max() == 0
        assert all(fed.equal(done) for fed, done in zip(read[1:], actions.unbind(1), strict=False))
        read.clear()
        record, carry = policy.act(obs, greedy=True)
        assert all(fed.equal(done) for fed, done in zip(read[1:], carry["plan"].unbind(1), strict=False))
        mean = policy.head(step(torch.zeros(50, 1), policy.net(obs))).chunk(2, -1)[0].tanh()
        torch.testing.assert_close(record["action"], mean)


def looks(method: Any) -> list[int]:
    """The lengths of the sequences that the policy makes from here on."""
    found: list[int] = []
    make = method.policy.plan

    def counted(obs: Any, previous: Any, length: int, *, greedy: bool = False) -> Tensor:
        found.append(length)
        return make(obs, previous, length, greedy=greedy)

    method.policy.plan = counted
    return found


def test_must_5_it_acts_open_loop_and_never_asks_the_model():
    with built("srl") as method:
        advance(method, 70)

        def fails(*_: Any) -> None:
            raise AssertionError("the model was asked")

        method.model.forward = method.target_model.forward = fails
        task, found = small("srl").make_task(2, 2), looks(method)
        evaluate_returns(method.policy, task, 2)
        assert found == [3] * math.ceil(200 / 3)
        task.close()


def test_must_5_returns_over_intervals_are_those_of_a_policy_that_is_asked_so_often():
    with built("srl", intervals=(1, 2, 8)) as method:
        advance(method, 70)
        task, found = small("srl").make_task(2, 2), looks(method)
        scores = method.evaluate(task, 2)
        assert found == [3] * 67 + [1] * 200 + [2] * 100 + [8] * 25
        one, two, eight = (scores[f"return_every_{interval}"] for interval in (1, 2, 8))
        assert len({one, two, eight, scores["return"]}) == 4
        assert scores["interval_return"] == pytest.approx(((one + two) / 2 + 6 * (two + eight) / 2) / 7)
        assert set(built_scores("srl")) == {"return", "return_std", "length"}
        task.close()


def built_scores(name: str) -> dict[str, float]:
    with built(name) as method:
        task = small(name).make_task(1, 2)
        scores = method.evaluate(task, 1)
        task.close()
        return scores


def test_an_interval_of_its_length_is_how_it_acts_anyway():
    with built("srl", intervals=(3,)) as method:
        task = small("srl").make_task(2, 2)
        scores = method.evaluate(task, 2)
        assert scores["return_every_3"] == scores["return"] == scores["interval_return"]
        task.close()


# Use


def test_what_a_run_announces():
    planned = plan("srl", "Pendulum-v1", steps=2_000, warmup=1_000, batch_size=100)
    assert SRL.derived(planned.config, 2_000) == {"transitions per update": 200, "updates": 1_000}


def test_the_paper_decodes_with_the_released_networks():
    method = plan("srl", preset="pendulum").build()
    shapes = [tuple(layer.weight.shape) for layer in method.policy.net.trunk.layers if isinstance(layer, nn.Linear)]
    assert shapes == [(256, 3), (256, 256)]
    assert method.policy.cell.weight_hidden.shape == (768, 256)
    widths = [layer.weight.shape[0] for layer in method.model.net.trunk.layers if isinstance(layer, nn.Linear)]
    assert widths == [400, 300, 3]
    assert np.isclose(float(method.temperature.value), 1.0)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"policy.length": 1, "recall": "none"}, "recall has no effect with sequences of one action"),
        ({"policy.length": 1, "model_network.sizes": (8,)}, "model_network has no effect with sequences of one action"),
        ({"recall": "none", "model_network.sizes": (8,)}, "model_network has no effect without recall"),
        ({"model_network.head_gain": 0.5}, "model_network.head_gain has no effect on a model"),
        ({"n_step": 2}, "n_step"),
        ({"intervals": (0, 1)}, "intervals"),
        ({"network.recurrent": "gru"}, "recurrent to none"),
        ({"policy": "gaussian"}, "policy"),
        ({"recall": "all"}, "recall"),
    ],
)
def test_what_cannot_be_is_refused(settings, said):
    with pytest.raises(UsageError, match=said):
        plan("srl", "Pendulum-v1", **settings).build()


def test_a_discrete_task_and_pictures_are_refused():
    with pytest.raises(UsageError, match="a sequence decoder needs a Box action space"):
        plan("srl", "CartPole-v1").build()
