"""PolicyFlow: the ratio of shifted Gaussians, the Brownian term, what is frozen, and what the rate follows."""

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from polopt.config import apply
from polopt.core.errors import UsageError
from polopt.evaluation.measures import correlation
from polopt.methods.control.policyflow import PolicyFlow, brownian_error
from polopt.optim import polyak_update
from tests.guards.harness import advance, built, reseed

MUST = 5
FIXED = {"adaptive_lr": None}


def moved(method, size=0.1):
    """The policy away from the old one, and a critic away from the values that it gave."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in [*method.policy.parameters(), *method.critic.parameters()]:
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))


def evaluated(method):
    batch = method.evaluate_window(method.collect())
    polyak_update(method.old_policy, method.policy, 1.0)
    return batch


def terms(method, batch):
    """The loss, written down as the paper does, with torch's distributions; a time runs from 0, noise, to 1 here."""
    policy, old, config = method.policy, method.old_policy, method.config
    t = 1.0 - batch["time"]
    x = (1 - t) * batch["latent"] + t * batch["center"]
    drift = policy.net.predict(policy.net.features(batch["obs"]), x, batch["time"])
    with torch.no_grad():
        old_drift = old.net.predict(old.net.features(batch["obs"]), x, batch["time"])
    shift = drift - old_drift
    new = Normal(shift, policy.log_std.exp().expand_as(shift))
    before = Normal(torch.zeros_like(shift), old.log_std.exp().expand_as(shift))
    delta = batch["action"] - batch["center"]
    ratio = (new.log_prob(delta) - before.log_prob(delta)).sum(-1).exp()
    advantage = batch["advantage"]
    clipped = ratio.clamp(0.8, 1.2)
    value = method.critic.value(batch)
    near = batch["value"] + (value - batch["value"]).clamp(-config.value_clip, config.value_clip)
    errors = torch.stack([(value - batch["returns"]).square(), (near - batch["returns"]).square()])
    source = x - t * old_drift
    found = {
        "policy": -torch.minimum(ratio * advantage, clipped * advantage).mean(),
        "value": (errors.amax(0) if config.value_error == "max" else errors[1]).mean(),
        "entropy": -new.entropy().sum(-1).mean(),
        "brownian": ((1 - t) * drift - config.brownian_temperature * source).square().mean(),
    }
    return found, kl_divergence(before, new).sum(-1).mean(), ratio


@pytest.mark.parametrize("value_error", ["max", "clipped"])
def test_must_2_the_gradient_is_that_of_the_paper_with_all_its_terms(float64, value_error):
    settings = {"entropy_coefficient": 0.03, "brownian_coefficient": 0.25, "brownian_temperature": 0.7}
    with built("policyflow", value_error=value_error, value_clip=2.0, **settings) as method:
        batch = evaluated(method)
        moved(method)
        batch = method.pointed(batch)  # whose drifts are of the old policy
        batch["returns"] = batch["value"] + 3.0 * torch.randn_like(batch["value"])
        found, kl, ratio = terms(method, batch)
        assert 0.1 < ((ratio < 0.8) | (ratio > 1.2)).double().mean() < 0.9
        expected = found["policy"] + found["value"] + 0.03 * found["entropy"] + 0.25 * found["brownian"]
        parameters = [*method.policy.parameters(), *method.critic.parameters()]
        loss, metrics = method.total_loss(batch)
        pairs = zip(torch.autograd.grad(loss, parameters), torch.autograd.grad(expected, parameters), strict=True)
        for one, other in pairs:
            assert other.abs().max() > 0
            torch.testing.assert_close(one, other)
        torch.testing.assert_close(metrics["shift_kl"], kl)
        torch.testing.assert_close(metrics["brownian_loss"], found["brownian"])


def test_must_1_the_noise_that_was_drawn_is_the_one_that_is_compared(float64):
    with built("policyflow") as method:
        batch = method.collect()
        policy = method.policy
        center = policy.center(policy.net.features(batch["obs"]), batch["latent"])
        torch.testing.assert_close(batch["center"], center.detach())
        pointed = method.pointed(batch)
        on_line = (1 - pointed["time"]) * batch["center"] + pointed["time"] * batch["latent"]
        torch.testing.assert_close(pointed["x"], on_line)


def test_must_2_the_old_policy_is_the_one_that_acted_until_the_update_ends(float64):
    with built("policyflow", epochs=3) as method:
        advance(method, 64)  # the policy has moved once
        acted = [parameter.clone() for parameter in method.policy.parameters()]
        batch, seen = method.collect(), []
        pointed = method.pointed

        def noted(minibatch):
            seen.append([parameter.clone() for parameter in method.old_policy.parameters()])
            return pointed(minibatch)

        method.pointed = noted
        method.update(batch)
        assert len(seen) == 6
        for each in seen:
            assert all(torch.equal(one, other) for one, other in zip(each, acted, strict=True))
        assert not all(torch.equal(one, other) for one, other in zip(acted, method.policy.parameters(), strict=True))


def test_must_3_the_residual_is_learned(float64):
    with built("policyflow", brownian_coefficient=0.0, entropy_coefficient=0.0, weight_decay=0.0) as method:
        before = method.policy.log_std.clone()
        advance(method, 64)
        assert (method.policy.log_std != before).all()


def test_must_4_the_brownian_error_by_hand():
    time, x = torch.tensor([[0.25], [1.0]]), torch.tensor([[1.0, 2.0], [3.0, -1.0]])
    drift = torch.tensor([[4.0, 0.0], [1.0, 1.0]], requires_grad=True)
    old = torch.tensor([[2.0, 4.0], [7.0, 7.0]])
    # sources 1 - 0.75 * 2 = -0.5, 2 - 0.75 * 4 = -1; at time 1 they are x itself
    errors = brownian_error(drift, old, x, time)
    assert errors.tolist() == pytest.approx([((1 + 0.5) ** 2 + 1) / 2, (4 + 4) / 2])
    half = brownian_error(drift, old, x, time, 0.5)
    assert half.tolist() == pytest.approx([(1.25**2 + 0.25) / 2, (0.25 + 2.25) / 2])
    (slope,) = torch.autograd.grad(errors.sum(), drift)
    torch.testing.assert_close(slope, torch.tensor([[0.25 * 1.5, 0.25 * 1.0], [-2.0, 2.0]]))  # 2 s gap / A


def test_must_4_what_is_old_has_no_gradient(float64):
    with built("policyflow") as method:
        batch = method.pointed(evaluated(method))
        assert not any(parameter.requires_grad for parameter in method.old_policy.parameters())
        assert not any(batch[name].requires_grad for name in ("x", "time", "old_drift", "center", "latent"))


def test_must_5_times_are_new_in_every_minibatch_of_every_epoch(float64):
    with built("policyflow", epochs=2, minibatches=1) as method:
        drawn, draw = [], method.policy.draw_times
        method.policy.draw_times = lambda batch: drawn.append(draw(batch)) or drawn[-1]
        method.update(method.collect())
        assert [each.shape for each in drawn] == [(64, 1)] * 2
        assert not torch.equal(*drawn)


def test_must_5_the_rate_follows_the_mean_kl_of_each_epoch(float64):
    kls = [0.03, 0.03, 0.001, 0.0, 0.05, 0.004, 0.002, 0.0]  # two minibatches an epoch; the target is 0.01
    with built("policyflow", epochs=4, minibatches=2, lr=3e-4) as method:
        rates, left = [], iter(kls)

        def step(minibatch):
            rates.append(method.optimizer.lr)
            return {"shift_kl": torch.tensor(next(left))}

        method.step = step
        method.improve(method.evaluate_window(method.collect()))
        # 0.03: too far; 0.0005: near; 0.027: too far; 0.001: near
        expected = [3e-4, 2e-4, 3e-4, 2e-4]
        assert [float(rate) for rate in rates] == pytest.approx([rate for rate in expected for _ in range(2)])
        assert float(method.optimizer.lr) == pytest.approx(3e-4)


def test_the_shift_is_close_to_that_of_the_end_after_a_small_update(float64):
    """Its mean over the times of the grid, against integrating both drifts from the same noise."""
    with built("policyflow", envs=8, epochs=4, minibatches=4, lr=1e-3, **FIXED) as method:
        advance(method, 8 * 32 * 2)
        batch = method.collect()
        metrics = method.update(batch)
        assert 0 < metrics["shift_kl"] < 0.02
        policy, old = method.policy, method.old_policy
        with torch.no_grad():
            ends = [each.center(each.net.features(batch["obs"]), batch["latent"]) for each in (policy, old)]
            shifts = []
            for time in policy.grid:
                batch["time"] = time.expand(*batch.batch_size, 1)
                batch["x"] = torch.lerp(batch["center"], batch["latent"], batch["time"])
                shifts.append(method.drift(policy, batch) - method.drift(old, batch))
        assert correlation(torch.stack(shifts).mean(0), ends[0] - ends[1]) > 0.9


def test_decay_is_of_the_weights_and_not_of_the_gradient(float64):
    after = {}
    for decay in (0.5, 0.0):
        reseed()
        with built("policyflow", weight_decay=decay, lr=1e-2, epochs=1, minibatches=1, **FIXED) as method:
            before = [parameter.clone() for parameter in method.policy.parameters()]
            advance(method, 64)
            after[decay] = list(method.policy.parameters())
    for start, decayed, plain in zip(before, after[0.5], after[0.0], strict=True):
        torch.testing.assert_close(decayed, plain - 1e-2 * 0.5 * start)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"target_kl": 0.1}, "target_kl has no effect in policyflow"),
        ({"kl_penalty": "kl-penalty"}, "kl_penalty has no effect in policyflow"),
        ({"brownian_coefficient": 0.0, "brownian_temperature": 2.0}, "brownian_temperature has no effect without a"),
        ({"value_clip": None, "value_error": "clipped"}, "value_error has no effect where values are not clipped"),
    ],
)
def test_options_without_effect_are_refused(settings, sentence):
    with pytest.raises(UsageError, match=f"^{sentence}"):
        apply(PolicyFlow.Config, settings)
