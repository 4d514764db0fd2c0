"""O-DICE: what its paper must not be without, with gradients and steps that are written out here."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor

from polopt import registry
from polopt.core.batch import weigh
from polopt.core.errors import UsageError
from polopt.methods.offline.odice import cosine, rejected
from polopt.training import api
from tests.guards import spaces as tasks

MUST = 4
SMALL: dict[str, Any] = {
    "dataset": "random",
    "random_episodes": 2,
    "batch_size": 16,
    "network.sizes": (8,),
    "value_network.sizes": (8,),
    "loggers": (),
}


def make(task: Any = tasks.box, **changes: Any) -> Any:
    return api.plan("odice", task, seed=1, **SMALL | changes).build()


def batch_of(method: Any) -> Any:
    """A batch with rewards large enough for residuals on both sides of -2, some decisions that end, and targets."""
    batch = weigh(method.collect())
    size = len(batch)
    batch["reward"] = torch.linspace(-6.0, 6.0, size)
    batch["terminated"] = torch.arange(size) % 5 == 0
    with torch.no_grad():  # so that targets are not what they follow
        for parameter in method.target_value.parameters():
            parameter.add_(0.3)
    return method.with_targets(batch)


def parameters(method: Any) -> list[Tensor]:
    return list(method.value.parameters())


def summed(coefficient: Tensor, value: Tensor, method: Any) -> Tensor:
    """Sum of coefficient * gradient of value, [P], for constants [2, B]."""
    grads = torch.autograd.grad((coefficient.detach() * value).sum(), parameters(method), retain_graph=True)
    return torch.cat([grad.reshape(-1) for grad in grads])


def by_hand(method: Any, batch: Any) -> dict[str, Tensor]:
    """The three gradients by the chain rule: the slope of f* is max(x / 2 + 1, 0), and means run over 2 x 16."""
    config, size = method.config, 2 * len(batch)
    value, next_value = (method.value(batch[key])[..., 0] for key in ("obs", "next_obs"))
    with torch.no_grad():
        target, next_target = (method.target_value(batch[key])[..., 0].min(0).values for key in ("obs", "next_obs"))
    alive = config.discount * (~batch["terminated"]).double()
    forward = (batch["reward"] + alive * next_target - value) / 2 + 1
    backward = (batch["reward"] + alive * next_value - target) / 2 + 1
    share = config.trade_off / size
    assert (forward < 0).any()
    assert (forward > 0).any()
    assert (backward < 0).any()
    return {
        "linear": summed(torch.full_like(value, (1 - config.trade_off) / size), value, method),
        "forward": summed(-share * forward.clamp(min=0), value, method),
        "backward": summed(config.backward_weight * share * backward.clamp(min=0) * alive, next_value, method),
    }


def test_must_1_the_projection_is_of_all_parameters_at_once(float64):
    method = make(backward_weight=1.5)
    batch = batch_of(method)
    parts = by_hand(method, batch)
    along = parts["forward"] @ parts["backward"] / (parts["forward"] @ parts["forward"])
    expected = parts["linear"] + (1 - along) * parts["forward"] + parts["backward"]
    found, metrics = method.value_gradient(batch)
    assert len(found) == sum(parameter.numel() for parameter in parameters(method))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    angle = parts["forward"] @ parts["backward"] / parts["forward"].norm() / parts["backward"].norm()
    assert float(metrics["cosine"]) == pytest.approx(float(angle))
    assert abs(float(angle)) > 0.01

    left = rejected(parts["backward"], parts["forward"])
    assert abs(float(cosine(left, parts["forward"]))) < 1e-10
    torch.testing.assert_close(left.square().sum(), parts["backward"].square().sum() * (1 - angle**2))
    none = torch.zeros_like(left)
    assert torch.equal(rejected(left, none), left)
    assert float(cosine(left, none)) == 0.0


def test_must_1_adam_takes_the_sum(float64):
    method = make()
    twin = copy.deepcopy(method.value)
    batch = batch_of(method)
    optimizer = torch.optim.Adam(twin.parameters(), lr=2e-4)
    for _ in range(3):
        batch = method.with_targets(batch)
        parts = by_hand(method, batch)
        total = parts["linear"] + parts["forward"] + rejected(parts["backward"], parts["forward"])
        sizes = [parameter.numel() for parameter in twin.parameters()]
        for parameter, grad in zip(twin.parameters(), total.split(sizes)):
            parameter.grad = grad.view_as(parameter)
        optimizer.step()
        before = [parameter.clone() for parameter in method.target_value.parameters()]
        method.update(batch.exclude("weight", "target_value", "target_next_value"))
        for mine, its in zip(method.value.parameters(), twin.parameters()):
            torch.testing.assert_close(mine, its)
        for old, target, new in zip(before, method.target_value.parameters(), method.value.parameters()):
            torch.testing.assert_close(target, 0.995 * old + 0.005 * new)


def test_must_2_each_gradient_has_a_frozen_side(float64):
    method = make(backward_weight=0.5)
    batch = batch_of(method)
    parts, metrics = by_hand(method, batch), {}
    for name in ("linear", "forward", "backward"):
        found = method.slope(getattr(method, f"{name}_loss"), batch, metrics)
        torch.testing.assert_close(found, parts[name], rtol=1e-10, atol=1e-12)
    assert not any(parameter.requires_grad for parameter in method.target_value.parameters())


def test_must_3_a_density_ratio_is_never_negative(float64):
    """A residual below -2 pulls nothing; without the clamp it would be pushed by half of what is below."""
    method = make(members=1)
    batch = batch_of(method)[:1]
    with torch.no_grad():
        value = method.value(batch["obs"])[0, :, 0]
    for residual, ratio in ((-5.0, 0.0), (-2.0, 0.0), (-1.0, 0.5), (4.0, 3.0)):
        batch["reward"], batch["terminated"] = value + residual, torch.tensor([True])
        slope = method.slope(method.forward_loss, weigh(batch), {})
        expected = summed(torch.full((1, 1), -0.6 * ratio), method.value(batch["obs"])[..., 0], method)
        torch.testing.assert_close(slope, expected, atol=1e-12, rtol=1e-9)


def test_must_4_the_linear_term_is_not_projected(float64):
    method = make()
    batch = batch_of(method)
    parts = by_hand(method, batch)
    found, _ = method.value_gradient(batch)
    torch.testing.assert_close(
        found - parts["forward"] - rejected(parts["backward"], parts["forward"]), parts["linear"]
    )
    along = cosine(parts["linear"], parts["forward"])
    assert abs(float(along)) > 0.01  # so a projection would have taken something of it


def test_the_other_gradients(float64):
    batch = batch_of(make())
    semi, other = make(gradient="semi"), make(backward_weight=0.0)
    parts = by_hand(other, other.with_targets(batch))
    for method in (semi, other):
        found, _metrics = method.value_gradient(method.with_targets(batch))
        torch.testing.assert_close(found, parts["linear"] + parts["forward"], rtol=1e-12, atol=1e-12)
    assert "cosine" not in semi.value_gradient(semi.with_targets(batch))[1]
    plain = make(gradient="sum")
    batch = batch_of(plain)
    parts = by_hand(plain, batch)
    torch.testing.assert_close(plain.value_gradient(batch)[0], sum(parts.values()))

    true = make(gradient="true")
    value, next_value = (true.value(batch[key])[..., 0] for key in ("obs", "next_obs"))
    residual = batch["reward"] + 0.99 * (~batch["terminated"]).double() * next_value - value
    dual = torch.where(residual > -2, residual + residual**2 / 4, -1.0)
    loss = (0.4 * value + 0.6 * dual).mean()
    expected = torch.cat([grad.reshape(-1) for grad in torch.autograd.grad(loss, parameters(true))])
    torch.testing.assert_close(true.value_gradient(batch)[0], expected)


def test_a_trade_off_of_almost_nothing_leaves_the_linear_term(float64):
    method = make(trade_off=1e-9)
    batch = batch_of(method)
    value = method.value(batch["obs"])[..., 0]
    expected = summed(torch.full_like(value, 1 / value.numel()), value, method)
    torch.testing.assert_close(method.value_gradient(batch)[0], expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("weight", ["released", "exact"])
def test_the_policy_clones_by_the_residual_before_the_step(weight, float64):
    method = make(weight=weight, weight_clip=4.0)
    batch = batch_of(method)
    with torch.no_grad():
        value = method.value(batch["obs"])[..., 0]
        next_target = method.target_value(batch["next_obs"])[..., 0].min(0).values
    residual = batch["reward"] + 0.99 * (~batch["terminated"]).double() * next_target - value
    ratio = residual.clamp(min=0) if weight == "released" else (residual / 2 + 1).clamp(min=0)
    expected = ratio.clamp(max=4.0).mean(0)
    found, metrics = method.importance(batch)
    torch.testing.assert_close(found, expected)
    assert float(metrics["zero_fraction"]) == pytest.approx(float((ratio == 0).double().mean()))
    assert 0 < float(metrics["clip_fraction"]) == pytest.approx(float((ratio >= 4).double().mean()))

    log_prob = method.policy.log_prob(batch)
    loss = -(expected * log_prob).mean()
    twin = copy.deepcopy(method.policy)
    optimizer = torch.optim.Adam(twin.parameters(), lr=2e-4, weight_decay=1e-4)
    grads = torch.autograd.grad(loss, list(method.policy.parameters()))
    for parameter, grad in zip(twin.parameters(), grads):
        parameter.grad = grad
    optimizer.step()
    metrics = method.update(batch.exclude("weight", "target_value", "target_next_value"))
    assert float(metrics["policy_loss"]) == pytest.approx(float(loss))
    for mine, its in zip(method.policy.parameters(), twin.parameters()):
        torch.testing.assert_close(mine, its)


def test_the_weight_of_the_true_gradient_is_of_present_values(float64):
    method = make(gradient="true")
    batch = batch_of(method)
    with torch.no_grad():
        value, next_value = (method.value(batch[key])[..., 0] for key in ("obs", "next_obs"))
    residual = batch["reward"] + 0.99 * (~batch["terminated"]).double() * next_value - value
    torch.testing.assert_close(method.importance(batch)[0], residual.clamp(min=0).mean(0))


def test_the_reverse_kl(float64):
    method = make(divergence="reverse-kl", members=1)
    batch = batch_of(method)
    with torch.no_grad():
        residual = method.residual(batch, method.values(batch["obs"]), batch["target_next_value"])[0]
    torch.testing.assert_close(method.importance(batch)[0], (residual - 1).exp().clamp(max=100))
    loss, metrics = method.forward_loss(batch)
    assert float(loss) == pytest.approx(0.6 * float((residual - 1).exp().mean()))
    assert float(metrics["residual"]) == pytest.approx(float(residual.mean()))


def test_time_limits_are_bootstrapped_through(float64):
    method = make(members=1)
    batch = method.collect()[:2]
    batch["reward"], batch["terminated"] = torch.tensor([1.0, 1.0]), torch.tensor([False, True])
    batch["truncated"] = torch.tensor([True, False])
    found = method.residual(batch, torch.tensor([[3.0, 3.0]]), torch.tensor([10.0, 10.0]))
    assert found.tolist() == [[pytest.approx(1 + 9.9 - 3), 1 - 3]]


def test_pieces_of_a_batch_have_the_gradient_of_the_whole(float64):
    whole, parted = make(), make(micro_batch=5)
    batch = batch_of(whole)
    (one, metrics), (other, others) = (method.value_gradient(batch) for method in (whole, parted))
    torch.testing.assert_close(one, other)
    for name, value in metrics.items():
        torch.testing.assert_close(value, others[name])


def test_a_value_that_is_above_everything_gives_no_decision_a_weight():
    """Early on all weights may be 0: the policy then only decays, and everything stays finite."""
    method = make()
    batch = method.collect()
    batch["reward"] = torch.full_like(batch["reward"], -100.0)
    metrics = method.update(batch)
    assert float(metrics["importance"]) == 0.0
    assert float(metrics["zero_fraction"]) == 1.0
    assert all(math.isfinite(float(value)) for value in metrics.values())


@pytest.mark.parametrize("preset", sorted(registry.load("odice").presets))
def test_presets_build(preset):
    method = make(preset=preset, **({} if preset != "locomotion" else {"rewards": "none"}))
    method.update(method.collect())
    settings = registry.load("odice").presets[preset]
    rewards = method.collect()["reward"]
    if preset == "imitation":
        assert not rewards.any()
        assert method.policy.unit
        assert method.policy.normalizer is method.value.normalizer
        assert float(method.policy.normalizer.count) == len(method.source.data)
        assert method.optimizers is not None
        assert method.config.trade_off == 0.4
    if preset.startswith("antmaze"):
        scaled = 3 * (method.source.data["reward"] - 1)
        assert float((rewards[:, None] - scaled).abs().amin(1).max()) < 1e-5
        assert next(method.value.parameters()).shape[0] == settings.get("members", 2)
        assert not any("Norm" in type(part).__name__ for part in method.value.modules())


def test_what_has_no_effect_is_refused():
    for settings, said in (
        ({"gradient": "semi", "backward_weight": 2.0}, "backward_weight has no effect on the gradient 'semi'"),
        ({"gradient": "true", "tau": 0.1}, "tau has no effect on the gradient 'true'"),
        ({"divergence": "reverse-kl", "weight": "exact"}, "weight has no effect on the reverse KL"),
    ):
        with pytest.raises(UsageError, match=said):
            make(**settings)
    with pytest.raises(UsageError, match="odice draws single decisions"):
        make(**{"value_network.recurrent": "gru"})
    with pytest.raises(UsageError, match="odice learns from a dataset"):
        make(dataset="", random_episodes=10)


def test_values_of_a_chain_by_themselves(float64):
    """One state that ends with reward 1, members 1: the minimum of (1 - l) V + l f*(1 - V) is where l f*' = 1 - l."""
    method = make(members=1, trade_off=0.6, **{"value_network.sizes": ()}, lr=0.05)
    obs = torch.zeros(4, 3)
    rows = {"obs": obs, "next_obs": obs, "action": torch.zeros(4, 2), "reward": torch.ones(4)}
    ends = {"terminated": torch.ones(4, dtype=torch.bool), "truncated": torch.zeros(4, dtype=torch.bool)}
    batch = TensorDict({**rows, **ends}, [4])
    for _ in range(150):
        method.update(batch)
    ratio = 0.4 / 0.6  # (1 - V) / 2 + 1
    assert float(method.values(obs)[0, 0]) == pytest.approx(1 - 2 * (ratio - 1), abs=0.01)
