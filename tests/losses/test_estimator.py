import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from polopt.core.errors import UsageError
from polopt.losses import Surrogate
from polopt.losses.estimator import clip, policy_gradient, ratio, token_weights
from polopt.losses.surrogate import surrogate_loss

torch.set_num_threads(1)
CLASSICAL = ["reinforce", "ppo", "clip-higher", "dual-clip"]


def random_case(shape=(16,), seed=0):
    """log_prob (leaf), old_log_prob, advantage, weight: float64, ratios spread well beyond the clip range."""
    rng = np.random.default_rng(seed)
    old = rng.normal(-1.5, 0.5, shape)
    new = old + rng.normal(0, 0.6, shape)
    advantage, weight = rng.normal(0, 1, shape), rng.uniform(0.1, 1, shape)
    tensors = [torch.tensor(x) for x in (new, old, advantage, weight / weight.sum())]
    return tensors[0].requires_grad_(), *tensors[1:]


def numpy_gradient(name, new, old, advantage, weight):
    """d loss / d log_prob of each named surrogate, written out case by case."""
    rho = np.exp(new - old)
    gradient = np.zeros_like(new)
    for i in np.ndindex(new.shape):
        low, high = 0.8, {"clip-higher": 1.28}.get(name, 1.2)
        if name == "reinforce":
            gradient[i] = -weight[i] * advantage[i]
            continue
        stopped = (advantage[i] > 0 and rho[i] > high) or (advantage[i] < 0 and rho[i] < low)
        if name == "dual-clip":
            stopped = stopped or (advantage[i] < 0 and rho[i] > 3)
        gradient[i] = 0.0 if stopped else -weight[i] * advantage[i] * rho[i]
    return gradient


def classical(name, new, old, advantage, weight):
    """The published losses, for autograd."""
    rho = (new - old).exp()
    if name == "reinforce":
        return -(weight * advantage * new).sum()
    objective = torch.minimum(rho * advantage, rho.clamp(0.8, 1.28 if name == "clip-higher" else 1.2) * advantage)
    if name == "dual-clip":
        objective = torch.where(advantage < 0, torch.maximum(objective, 3 * advantage), objective)
    return -(weight * objective).sum()


@pytest.mark.parametrize("name", CLASSICAL)
@pytest.mark.parametrize("shape", [(200,), (10, 7), (3, 4, 5)])
def test_gradient_of_each_named_surrogate(name, shape):
    new, old, advantage, weight = random_case(shape)
    with torch.no_grad():
        new[(0,) * len(shape)] = old[(0,) * len(shape)] + 1.8  # far above the dual bound
        advantage[(0,) * len(shape)] = -1.0
    loss, _ = surrogate_loss(Surrogate.named[name], new, old, advantage, weight)
    (gradient,) = torch.autograd.grad(loss, new)
    arrays = [x.detach().numpy() for x in (new, old, advantage, weight)]
    np.testing.assert_allclose(gradient.numpy(), numpy_gradient(name, *arrays), rtol=1e-12, atol=0)
    (autograd,) = torch.autograd.grad(classical(name, new, old, advantage, weight), new)
    torch.testing.assert_close(gradient, autograd, rtol=1e-12, atol=0)


def test_named_surrogates_differ_and_have_the_published_numbers():
    named = Surrogate.named
    assert list(named)[:4] == CLASSICAL  # the first name of a value is the one that is shown
    assert (named["ppo"].clip_low, named["ppo"].clip_high, named["ppo"].dual_clip) == (0.2, 0.2, None)
    assert (named["clip-higher"].clip_low, named["clip-higher"].clip_high) == (0.2, 0.28)
    assert named["dual-clip"].dual_clip == 3.0
    assert named["reinforce"].clip_range == (0.0, math.inf)


def test_a_surrogate_refuses_options_without_effect():
    with pytest.raises(UsageError, match="clip_high has no effect"):
        Surrogate(denominator="current", keep="all", clip_high=0.3)
    with pytest.raises(UsageError, match="dual_clip must be above 1"):
        Surrogate(dual_clip=0.5)


def test_on_policy_all_named_surrogates_are_reinforce():
    new, _, advantage, weight = random_case()
    gradients = [
        torch.autograd.grad(surrogate_loss(surrogate, new, new.detach(), advantage, weight)[0], new)[0]
        for surrogate in Surrogate.named.values()
        if surrogate.denominator != "one"
    ]
    for gradient in gradients:
        assert torch.equal(gradient, -weight * advantage)


def test_metrics_by_hand():
    ratios = torch.tensor([1.0, 1.1, 1.5, 0.5], dtype=torch.float64)
    advantage = torch.tensor([1.0, -1.0, 2.0, 3.0], dtype=torch.float64)
    weight = torch.full((4,), 0.25, dtype=torch.float64)
    new = ratios.log().requires_grad_()
    loss, metrics = surrogate_loss(Surrogate(), new, torch.zeros_like(ratios), advantage, weight)
    assert metrics["clip_fraction"].item() == 0.5
    expected = np.mean([r - 1 - math.log(r) for r in (1.0, 1.1, 1.5, 0.5)])
    assert metrics["approx_kl"].item() == pytest.approx(expected, abs=1e-12)
    assert metrics["approx_kl_k1"].item() == pytest.approx(-np.mean(np.log([1.0, 1.1, 1.5, 0.5])), abs=1e-12)
    assert metrics["surrogate"].item() == pytest.approx((1.0 - 1.1 + 0 + 1.5) / 4, abs=1e-12)
    assert loss.requires_grad
    assert not any(metric.requires_grad for metric in metrics.values())


def test_clip_scale_anneals_the_range():
    ratios = torch.tensor([1.15], dtype=torch.float64)
    one = torch.ones(1, dtype=torch.float64)
    for scale, gradient, fraction in ((1.0, -1.15, 0.0), (0.5, 0.0, 1.0), (torch.tensor(0.5), 0.0, 1.0)):
        new = ratios.log().requires_grad_()
        loss, metrics = surrogate_loss(Surrogate(), new, torch.zeros_like(ratios), one, one, clip_scale=scale)
        assert torch.autograd.grad(loss, new)[0].item() == pytest.approx(gradient)
        assert metrics["clip_fraction"].item() == fraction


@pytest.mark.parametrize("name", sorted(Surrogate.named))
@pytest.mark.parametrize("kind", ["token", "sequence", "constant", "sum"])
def test_micro_batches_change_nothing(name, kind):
    """1 x 8 == 8 x 1 with ragged masks: the weight is computed once on the whole."""
    new, old, advantage, _ = random_case((8, 6), seed=3)
    lengths = torch.tensor([6, 1, 3, 0, 2, 6, 5, 4])
    weight = token_weights(torch.arange(6) < lengths[:, None], kind).double()
    rows = advantage[:, 0]
    ids, coefficient = torch.zeros(8, 6, dtype=torch.int64), torch.full((8, 6), 1 / 6, dtype=torch.float64)

    def run(piece):
        return surrogate_loss(
            Surrogate.named[name],
            new[piece],
            old[piece],
            rows[piece],
            weight[piece],
            level=(ids[piece], coefficient[piece]),
        )

    whole, metrics = run(slice(None))
    pieces = [run(slice(i, i + 1)) for i in range(8)]
    (expected,) = torch.autograd.grad(whole, new)
    (gradient,) = torch.autograd.grad(sum(loss for loss, _ in pieces), new)
    assert torch.equal(gradient, expected)
    for key in metrics:
        torch.testing.assert_close(sum(piece[key] for _, piece in pieces), metrics[key], rtol=1e-12, atol=1e-12)


def test_ratio_denominators():
    log_prob = torch.tensor([-1.0, -2.0], dtype=torch.float64, requires_grad=True)
    old = torch.tensor([-1.5, -1.0], dtype=torch.float64, requires_grad=True)
    assert torch.equal(ratio(log_prob, "current"), torch.ones(2, dtype=torch.float64))
    np.testing.assert_allclose(ratio(log_prob, "one").numpy(), np.exp([-1.0, -2.0]))
    result = ratio(log_prob, old)
    assert not result.requires_grad
    np.testing.assert_allclose(result.numpy(), np.exp([0.5, -1.0]))
    with pytest.raises(ValueError, match="denominator"):
        ratio(log_prob, "olden")


def test_ratio_levels_by_hand():
    """Two rows, turns 0 0 1 1 and 0 1 1 1; the coefficient is 1 / length of the turn, 0 at the last, masked token."""
    difference = torch.tensor([[0.1, 0.3, -0.2, 9.0], [0.5, 0.2, 0.4, 0.6]], dtype=torch.float64)
    ids = torch.tensor([[0, 0, 1, 1], [0, 1, 1, 1]])
    coefficient = torch.tensor([[0.5, 0.5, 1.0, 0.0], [1.0, 1 / 3, 1 / 3, 1 / 3]], dtype=torch.float64)
    result = ratio(difference, torch.zeros_like(difference), (ids, coefficient))
    np.testing.assert_allclose(result.log().numpy(), [[0.2, 0.2, -0.2, -0.2], [0.5, 0.4, 0.4, 0.4]], atol=1e-12)
    product = ratio(difference, torch.zeros_like(difference), (torch.zeros_like(ids), torch.ones_like(coefficient)))
    np.testing.assert_allclose(product.log()[:, 0].numpy(), [9.2, 1.7], atol=1e-12)
    deep = difference.reshape(1, 2, 4)  # ids may run over all dimensions of a row
    pooled = ratio(deep, torch.zeros_like(deep), (torch.zeros(1, 2, 4, dtype=torch.int64), torch.ones_like(deep)))
    np.testing.assert_allclose(pooled.log().numpy(), np.full((1, 2, 4), 10.9), atol=1e-12)


def test_sequence_ratio_is_that_of_gspo():
    new, old, advantage, _ = random_case((4, 5), seed=5)
    mask = torch.arange(5) < torch.tensor([5, 2, 3, 1])[:, None]
    weight = token_weights(mask, "sequence")
    coefficient = mask / mask.sum(1, keepdim=True)
    level = (torch.zeros(4, 5, dtype=torch.int64), coefficient)
    surrogate = Surrogate(clip_low=0.3, clip_high=0.4)
    (gradient,) = torch.autograd.grad(surrogate_loss(surrogate, new, old, advantage[:, 0], weight, level=level)[0], new)

    s = ((new - old) * coefficient).sum(1).exp()
    objective = torch.minimum(s * advantage[:, 0], s.clamp(0.7, 1.4) * advantage[:, 0])
    (expected,) = torch.autograd.grad(-objective.mean(), new)
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-15)


def test_shapes_are_aligned_on_the_left_only():
    log_prob = torch.zeros(5, 5, 5, dtype=torch.float64, requires_grad=True)
    advantage = torch.arange(25, dtype=torch.float64).reshape(5, 5)
    loss = policy_gradient(log_prob, torch.ones(5, 5), advantage, torch.ones(5), keep=torch.ones(5, 5))
    (gradient,) = torch.autograd.grad(loss, log_prob)
    expected = -np.broadcast_to(advantage.numpy()[:, :, None], (5, 5, 5)) / 25  # 25 decisions share the weight of a row
    np.testing.assert_allclose(gradient.numpy(), expected, rtol=1e-6)
    flat = torch.zeros(4, requires_grad=True)
    with pytest.raises(ValueError, match="prefix"):
        policy_gradient(flat, torch.ones(4), torch.ones(4, 1), torch.ones(4))
    with pytest.raises(ValueError, match="equal"):
        surrogate_loss(Surrogate(), flat, torch.zeros(4, 1), torch.ones(4), torch.ones(4))
    with pytest.raises(ValueError, match="prefix"):
        surrogate_loss(Surrogate(), flat, torch.zeros(4), torch.ones(4, 1), torch.ones(4))


def chain_case(steps):
    """Decisions [6, steps] that share the advantage and the weight [6] of their row."""
    new, old, _, _ = random_case((6, steps), seed=2)
    return new, old, torch.tensor(np.random.default_rng(3).normal(size=6)), torch.full((6,), 1 / 6, dtype=torch.float64)


def test_the_steps_of_a_chain_count_as_their_mean():
    """The mean over rows and steps of PPO's objective, as on chains of denoising steps (arXiv 2409.00588)."""
    new, old, advantage, weight = chain_case(10)
    loss, metrics = surrogate_loss(Surrogate(), new, old, advantage, weight)
    (gradient,) = torch.autograd.grad(loss, new)
    rho, column = (new - old).exp(), advantage[:, None]
    (expected,) = torch.autograd.grad(-torch.minimum(rho * column, rho.clamp(0.8, 1.2) * column).mean(), new)
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=0)
    ratios = rho.detach().numpy()
    assert metrics["clip_fraction"].item() == pytest.approx(((ratios < 0.8) | (ratios > 1.2)).mean())
    assert metrics["approx_kl"].item() == pytest.approx((ratios - 1 - np.log(ratios)).mean())
    assert metrics["approx_kl_k1"].item() == pytest.approx(-np.log(ratios).mean())


def test_equal_chains_of_any_length_have_the_gradient_of_one_step():
    new, old, advantage, weight = chain_case(1)
    sums = []
    for steps in (1, 10):
        row = new.detach().requires_grad_()
        loss, metrics = surrogate_loss(Surrogate(), row.expand(6, steps), old.expand(6, steps), advantage, weight)
        sums.append([torch.autograd.grad(loss, row)[0], *metrics.values()])
    torch.testing.assert_close(sums[0], sums[1])


def test_all_out_of_the_range_is_a_share_of_one():
    far, one = torch.full((3, 10), 2.0), torch.ones(3)
    _, metrics = surrogate_loss(Surrogate(), far, torch.zeros(3, 10), one, one / 3)
    assert metrics["clip_fraction"].item() == pytest.approx(1.0)


def test_a_weight_of_every_step_is_a_sum_over_them():
    new, old, advantage, weight = chain_case(10)
    everyone = weight[:, None].expand(6, 10)
    summed, averaged = (surrogate_loss(Surrogate(), new, old, advantage, each)[0] for each in (everyone, weight))
    gradients = [torch.autograd.grad(loss, new)[0] for loss in (summed, averaged)]
    torch.testing.assert_close(gradients[0], 10 * gradients[1])


def test_dropped_decisions_may_have_any_ratio():
    log_prob = torch.tensor([1e4, 0.0, 2.0], requires_grad=True)
    loss, metrics = surrogate_loss(
        Surrogate(), log_prob, torch.zeros(3), torch.tensor([1.0, 1.0, 1.0]), torch.tensor([0.5, 0.5, 0.0])
    )
    (gradient,) = torch.autograd.grad(loss, log_prob)
    assert gradient.tolist() == [0.0, -0.5, 0.0]
    assert metrics["surrogate"].item() == 0.5


@pytest.mark.parametrize("name", Surrogate.named)
def test_a_log_ratio_of_a_hundred_keeps_everything_finite(name):
    surrogate = Surrogate.named[name]
    for shift in (100.0, -100.0):
        log_prob = torch.full((2, 3), -101.0 if shift < 0 else -1.0, requires_grad=True)
        old = log_prob.detach() - shift
        for advantage in (torch.ones(2), -torch.ones(2)):
            loss, metrics = surrogate_loss(surrogate, log_prob, old, advantage, torch.full((2, 3), 1 / 6))
            (grad,) = torch.autograd.grad(loss, log_prob)
            assert torch.isfinite(loss)
            assert torch.isfinite(grad.square().sum())
            assert all(torch.isfinite(value) for value in metrics.values()), (name, metrics)


def test_clip_bounds_are_inclusive():
    ratios = torch.tensor([0.75, 0.75, 1.25, 1.25, 2.0, 2.0], dtype=torch.float64)
    advantage = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0, -1.0], dtype=torch.float64)
    assert clip(ratios, advantage, 0.25, 0.25).tolist() == [1, 1, 1, 1, 0, 1]
    assert clip(ratios, advantage, 0.125, 0.125).tolist() == [1, 0, 0, 1, 0, 1]
    assert clip(ratios, advantage, 0.25, 0.25, dual=2.0).tolist() == [1, 1, 1, 1, 0, 1]
    assert clip(ratios, advantage, 0.25, 0.25, dual=1.5).tolist() == [1, 1, 1, 1, 0, 0]


def test_token_weights_by_hand():
    mask = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]], dtype=torch.bool)
    expected = {
        "token": [[1 / 4] * 3 + [0], [1 / 4, 0, 0, 0], [0] * 4],
        "sequence": [[1 / 6] * 3 + [0], [1 / 2, 0, 0, 0], [0] * 4],
        "constant": [[1 / 8] * 3 + [0], [1 / 8, 0, 0, 0], [0] * 4],
        "sum": [[1 / 2] * 3 + [0], [1 / 2, 0, 0, 0], [0] * 4],
    }
    for kind, weights in expected.items():
        np.testing.assert_allclose(token_weights(mask, kind).numpy(), weights, rtol=1e-6)
    np.testing.assert_allclose(token_weights(mask, "constant", length=10)[0, 0].item(), 1 / 20)
    with pytest.raises(ValueError, match="token weights"):
        token_weights(mask, "tokens")


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.integers(1, 4), st.sampled_from(CLASSICAL))
def test_leading_dims_are_free(shape, lead, name):
    """A batch of any shape has the gradient of the flat one, and advantages may stop at any dimension."""
    shape, lead = tuple(shape), min(lead, len(shape))
    new, old, advantage, weight = random_case(shape)
    small = advantage[(..., *[0] * (len(shape) - lead))]
    (gradient,) = torch.autograd.grad(surrogate_loss(Surrogate.named[name], new, old, small, weight)[0], new)
    full = np.broadcast_to(small.numpy().reshape(*shape[:lead], *[1] * (len(shape) - lead)), shape)
    expected = numpy_gradient(name, new.detach().numpy(), old.numpy(), full, weight.numpy())
    np.testing.assert_allclose(gradient.numpy(), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", sorted(Surrogate.named))
def test_surrogate_loss_compiles_in_one_graph(name):
    torch._dynamo.reset()
    new, old, advantage, weight = random_case()

    def loss(log_prob):
        return surrogate_loss(Surrogate.named[name], log_prob, old, advantage, weight, clip_scale=0.5)

    compiled, metrics = torch.compile(loss, fullgraph=True, backend="aot_eager")(new)
    eager, expected = loss(new)
    torch.testing.assert_close(torch.autograd.grad(compiled, new), torch.autograd.grad(eager, new))
    torch.testing.assert_close(metrics, expected)


def test_weights_of_tokens_in_rows_that_count_differently():
    mask = torch.tensor([[True, True, False], [True, False, False], [True, True, True], [False] * 3])
    rows = torch.tensor([2.0, 1.0, 0.0, 9.0])  # the last has no token
    wanted = {
        "token": [[0.4, 0.4, 0], [0.2, 0, 0]],
        "sequence": [[1 / 3, 1 / 3, 0], [1 / 3, 0, 0]],
        "constant": [[2 / 30, 2 / 30, 0], [1 / 30, 0, 0]],
        "sum": [[2 / 3, 2 / 3, 0], [1 / 3, 0, 0]],
    }
    for kind, values in wanted.items():
        weight = token_weights(mask, kind, 10.0, rows=rows)
        torch.testing.assert_close(weight, torch.tensor([*values, [0.0] * 3, [0.0] * 3]))
        assert torch.equal(token_weights(mask, kind, 10.0, rows=torch.ones(4)), token_weights(mask, kind, 10.0))
        small = token_weights(mask, kind, 10.0, rows=rows / 100)  # only what they are beside each other counts
        torch.testing.assert_close(small, weight)
    with pytest.raises(ValueError, match="shapes must be equal: rows"):
        token_weights(mask, "token", rows=torch.ones(4, 1))
