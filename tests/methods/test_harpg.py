"""HARPG and N-PG-IGT: expectations over all paths, where episodes are played, and the steps by independent formulas."""

from __future__ import annotations

import itertools
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torch import Tensor

from polopt.core.batch import Batch
from polopt.core.functional import assign, flatten, gradient, hessian_product
from polopt.methods.theory import harpg
from polopt.methods.theory.harpg import Hessian, Plain, Transport, direction
from polopt.tasks.tabular_sets import Paths, finite_value, paths
from polopt.training import api
from tests.guards.harness import built

MUST = 5
SMALL = {"states": 3, "actions": 2, "horizon": 2, "mdp_seed": 3, "reward_rate": 1.0}


@pytest.fixture(autouse=True)
def _double(float64):
    torch.manual_seed(0)


# Expectations, over all paths of an MDP of 3 states, 2 actions and 2 steps


def tabular(**settings: Any) -> Any:
    common = {"steps": 100, "seed": 3, "loggers": (), "network.sizes": (3,), "baseline": "none", "discount": 0.7}
    return api.plan("harpg", "random-mdp", task_options=SMALL, **{**common, **settings}).build()


def own(method: Any) -> list[Tensor]:
    return list(method.policy.parameters())


def table(method: Any) -> Tensor:
    """The policy [H, S, A], with gradients."""
    mdp = method.spec.info["mdp"]
    return method.policy.logits(TensorDict({"obs": mdp.observations()}, [mdp.horizon, mdp.states])).softmax(-1)


def exact(method: Any) -> Tensor:
    """The discounted return, with gradients, by dynamic programming."""
    mdp = method.spec.info["mdp"]
    return finite_value(mdp.transition, mdp.reward, table(method), method.config.discount)[0, mdp.start]


def recorded(method: Any, found: Paths, rows: list[int]) -> Batch:
    """Some of the paths as a batch of episodes."""
    mdp, shape = method.spec.info["mdp"], (len(rows), found.state.shape[1])
    step = torch.arange(shape[1]).expand(shape)
    state, action = found.state[rows], found.action[rows]
    obs = TensorDict({"state": state, "step": step}, shape)
    batch = {"obs": obs, "action": action, "reward": mdp.reward[step, state, action], "mask": torch.ones(shape).bool()}
    return method.evaluate_episodes(TensorDict(batch, shape))


def expected(method: Any, step: Tensor) -> tuple[Tensor, Tensor]:
    """E g and E B step [P] at the present parameters: every path counts with its probability."""
    found = paths(method.spec.info["mdp"])
    phi, log_prob, _ = method.phi(recorded(method, found, list(range(len(found.state)))))
    phi = phi * len(phi) * found.probability(table(method)).detach()
    return gradient(phi.sum(), own(method)), harpg.change(phi, log_prob, own(method), step)


def test_the_gradient_and_must_2_its_change_have_no_bias():
    """Against dynamic programming, whose second derivatives are checked by finite differences."""
    method = tabular()
    start = flatten(own(method)).detach()
    step = torch.randn_like(start)
    slope, curvature = expected(method, step)
    value = exact(method)
    torch.testing.assert_close(slope, gradient(value, own(method)))
    torch.testing.assert_close(curvature, hessian_product(value, own(method))(step))
    ends = []
    for sign in (1, -1):
        assign(own(method), start + sign * 1e-5 * step)
        ends.append(gradient(exact(method), own(method)))
    torch.testing.assert_close(curvature, (ends[0] - ends[1]) / 2e-5, rtol=1e-6, atol=1e-9)
    assert slope.norm() > 0.01
    assert curvature.norm() > 0.01


def test_must_2_over_the_segment_the_correction_is_the_difference_of_gradients():
    """E v = grad J(theta_t) - grad J(theta_{t-1}), over q by quadrature, for a long step; at an end alone it is not."""
    method = tabular()
    before = flatten(own(method)).detach()
    step = torch.randn_like(before)
    nodes, weights = np.polynomial.legendre.leggauss(24)
    corrections, slopes = [], []
    for q in ((nodes + 1) / 2).tolist():
        assign(own(method), before + q * step)
        corrections.append(expected(method, step)[1])
    for q in (0, 1):
        assign(own(method), before + q * step)
        slopes.append(gradient(exact(method), own(method)))
    found = sum(weight / 2 * each for weight, each in zip(weights.tolist(), corrections))
    torch.testing.assert_close(found, slopes[1] - slopes[0], rtol=1e-6, atol=1e-8)
    assert min((each - found).norm() for each in (corrections[0], corrections[-1])) > 0.1 * found.norm()


def test_the_baseline_of_the_others_keeps_both_unbiased():
    """Over all pairs of paths."""
    method = tabular(baseline="leave-one-out", discount=1.0, **{"network.sizes": (1,)})
    found = paths(method.spec.info["mdp"])
    probability = found.probability(table(method)).detach()
    step = torch.randn_like(flatten(own(method)))
    slope = curvature = torch.zeros_like(step)
    for i, j in itertools.product(range(len(found.state)), repeat=2):
        phi, log_prob, _ = method.phi(recorded(method, found, [i, j]))
        slope = slope + probability[i] * probability[j] * gradient(phi.sum(), own(method))
        curvature = curvature + probability[i] * probability[j] * harpg.change(phi, log_prob, own(method), step)
    value = exact(method)
    torch.testing.assert_close(slope, gradient(value, own(method)))
    torch.testing.assert_close(curvature, hessian_product(value, own(method))(step))


# One batch, by other formulas: episodes of different lengths, one by one and without padding


def episodes_of(batch: Batch, discount: float, baseline: str) -> list[tuple[Batch, Tensor]]:
    """Each episode without its padding, and its advantages."""
    rows = [batch[row, : int(batch["mask"][row].sum())] for row in range(len(batch))]
    credit = [
        [sum(discount**h * float(row["reward"][h]) for h in range(t, len(row))) for t in range(len(row))]
        for row in rows
    ]
    found = []
    for row, mine in enumerate(credit):
        advantage = []
        for t, each in enumerate(mine):
            others = [other[t] for number, other in enumerate(credit) if number != row and t < len(other)]
            use = others and baseline == "leave-one-out"
            advantage.append(each - (sum(others) / len(others) if use else 0.0))
        found.append((rows[row], torch.tensor(advantage)))
    return found


def by_hand(method: Any, batch: Batch, step: Tensor | None = None) -> Tensor:
    """The mean of g, or of B step, at the present parameters [P]: outer products and a Hessian, written out."""
    total = torch.zeros_like(flatten(own(method)))
    rows = episodes_of(batch, method.config.discount, method.config.baseline)
    for row, advantage in rows:
        log_prob = method.policy.log_prob(row)
        slope = gradient((advantage * log_prob).sum(), own(method), differentiable=True)
        if step is None:
            total += slope.detach()
            continue
        score = gradient(log_prob.sum(), own(method))
        hessian = torch.stack([gradient(each, own(method)) for each in slope])
        total += torch.outer(slope.detach(), score) @ step + hessian @ step
    return total / len(rows)


@contextmanager
def cart(**settings: Any) -> Any:
    defaults = {"episodes": 3, "envs": 2, "network.sizes": (2,), "lr": 0.1, "eta": 0.3, "discount": 0.9}
    with built("harpg", **{**defaults, **settings}) as method:
        yield method


@pytest.mark.parametrize("baseline", ["none", "leave-one-out"])
def test_padding_and_lengths_change_nothing(baseline):
    with cart(baseline=baseline) as method:
        batch = method.collect()
        assert 0 < batch["mask"].sum() < batch["mask"].numel()
        phi, log_prob, _ = method.phi(method.evaluate_episodes(batch))
        step = torch.randn_like(flatten(own(method)))
        whole = [method.policy.log_prob(row).sum() for row, _ in episodes_of(batch, 0.9, baseline)]
        torch.testing.assert_close(log_prob, torch.stack(whole))
        torch.testing.assert_close(gradient(phi.sum(), own(method)), by_hand(method, batch))
        torch.testing.assert_close(harpg.change(phi, log_prob, own(method), step), by_hand(method, batch, step))


def test_must_5_credit_is_discounted_from_the_beginning_and_is_constant():
    """Discount 0.9, rewards of 1: at the third decision of five 0.81 + 0.729 + 0.6561."""
    with cart(baseline="none") as method:
        batch = method.collect()[:, :5].clone()
        batch["reward"] = batch["reward"].requires_grad_()
        evaluated = method.evaluate_episodes(batch)
        assert evaluated["advantage"][0, 2].item() == pytest.approx(0.81 + 0.729 + 0.6561)
        assert not evaluated["advantage"].requires_grad


def played_at(method: Any) -> dict[str, list[Tensor]]:
    """Notes the parameters with which each source plays its batches."""
    seen: dict[str, list[Tensor]] = {"source": [], "between": []}
    for name in [each for each in seen if hasattr(method, each)]:
        source = getattr(method, name)

        def play(actor: Any, name: str = name, original: Any = source.next) -> Batch:
            seen[name].append(flatten(own(method)).detach())
            return original(actor)

        source.next = play
    return seen


def test_must_2_and_3_harpg_by_hand():
    """Fresh episodes at theta^, B of them times the last step, inside the factor 1 - eta."""
    with cart(correction=Hessian(episodes=4)) as method:
        seen, past, before, backs = played_at(method), None, None, []
        for update in range(3):
            theta = flatten(own(method)).detach()
            batch = method.collect()
            torch.testing.assert_close(flatten(own(method)).detach(), theta, rtol=0, atol=0)
            torch.testing.assert_close(seen["source"][-1], theta, rtol=0, atol=0)
            assert len(seen["between"]) == update  # none in the first, where there is no step
            slope = by_hand(method, batch["newest"] if update else batch)
            if update:
                step, back = theta - before, batch["back"]
                assert batch["between"].shape[0] == 4
                torch.testing.assert_close(seen["between"][-1], theta + back * step)
                assign(own(method), theta + back * step)
                past = 0.7 * (past + by_hand(method, batch["between"], step)) + 0.3 * slope
                assign(own(method), theta)
                backs.append(float(back))
            else:
                past = slope
            metrics = method.update(batch)
            torch.testing.assert_close(flatten(own(method)).detach(), theta + 0.1 * past / past.norm())
            torch.testing.assert_close(method.memory.direction, past)
            assert metrics["gradient_norm"].item() == pytest.approx(slope.norm().item())
            assert metrics["direction_norm"].item() == pytest.approx(past.norm().item())
            assert (metrics["correction_norm"] > 0) == (update > 0)
            before = theta
        assert backs[0] != backs[1]


def test_the_point_in_between_is_uniform():
    with cart(episodes=1) as method:
        batch = method.collect()
        method.update(batch)
        method.source.next = method.between.next = lambda actor: batch
        state = method.generator.get_state()
        draws = torch.stack([method.collect()["back"] for _ in range(40)])
        torch.testing.assert_close(draws[0], torch.rand((), generator=method.generator.set_state(state)) - 1)
    assert -1 < draws.min() < -0.8
    assert -0.2 < draws.max() < 0
    assert draws.mean().item() == pytest.approx(-0.5, abs=0.15)  # a standard error of 0.05


def test_must_1_transport_by_hand():
    """Played and differentiated at theta~, while the step is taken from theta."""
    with cart(correction=Transport()) as method:
        seen, past, before = played_at(method), None, None
        for update in range(3):
            theta = flatten(own(method)).detach()
            batch = method.collect()
            torch.testing.assert_close(flatten(own(method)).detach(), theta, rtol=0, atol=0)
            ahead = theta + (0.7 / 0.3) * (theta - before) if update else theta
            torch.testing.assert_close(seen["source"][-1], ahead)
            assign(own(method), ahead)
            slope = by_hand(method, batch)
            assign(own(method), theta)
            past = 0.7 * past + 0.3 * slope if update else slope
            metrics = method.update(batch)
            torch.testing.assert_close(flatten(own(method)).detach(), theta + 0.1 * past / past.norm())
            assert metrics["correction_norm"] == 0
            before = theta


def test_weights_that_were_loaded_have_no_past():
    with cart(correction=Transport()) as method:
        theta = torch.randn_like(flatten(own(method)))
        assign(own(method), theta)
        seen, batch = played_at(method), method.collect()
        assert torch.equal(seen["source"][0], theta)
        slope = by_hand(method, batch)
        method.update(batch)
        torch.testing.assert_close(method.memory.direction, slope)


@pytest.mark.parametrize(("eta", "ahead"), [(1.0, 0.0), (0.5, 1.0), (0.1, 9.0), (0.02, 20.0)])
def test_must_5_the_extrapolation_is_bounded(eta, ahead):
    assert Transport().ahead(eta) == pytest.approx(ahead)
    assert Transport(longest=3.0).ahead(eta) == pytest.approx(min(ahead, 3.0))
    assert Hessian().ahead(eta) == Plain().ahead(eta) == 0


def test_transport_is_exact_where_gradients_are_linear():
    """f = theta^T A theta / 2 without noise: d_t is the gradient at theta_t, and that of plain momentum is not."""
    torch.manual_seed(1)
    matrix = torch.randn(3, 3)
    matrix = matrix + matrix.T
    before = theta = torch.randn(3)
    found = plain = matrix @ theta
    for _ in range(5):
        before, theta = theta, theta + 0.1 * torch.randn(3)
        ahead = theta + Transport().ahead(0.3) * (theta - before)
        found = direction(found, torch.zeros(3), matrix @ ahead, 0.3)
        plain = direction(plain, torch.zeros(3), matrix @ theta, 0.3)
        torch.testing.assert_close(found, matrix @ theta)
    assert (plain - matrix @ theta).norm() > 0.05


def test_must_3_the_correction_is_inside_the_factor():
    ones = torch.ones(2)
    assert direction(3 * ones, 2 * ones, 10 * ones, 0.2).tolist() == pytest.approx([0.8 * 5 + 0.2 * 10] * 2)


def test_must_4_steps_have_the_length_of_the_rate():
    with cart(normalize=True) as method:
        for _ in range(2):
            theta = flatten(own(method)).detach()
            method.update(method.collect())
            assert (flatten(own(method)) - theta).norm().item() == pytest.approx(0.1)
    with cart(normalize=False, lr=0.01) as method:
        theta = flatten(own(method)).detach()
        metrics = method.update(method.collect())
        assert (flatten(own(method)) - theta).norm().item() == pytest.approx(0.01 * metrics["direction_norm"].item())


def test_without_a_gradient_it_stands_still():
    with cart() as method:
        batch, theta = method.collect(), flatten(own(method)).detach()
        batch["reward"] = torch.zeros_like(batch["reward"])
        assert method.update(batch)["direction_norm"] == 0
        assert torch.equal(flatten(own(method)), theta)


@pytest.mark.parametrize(
    ("correction", "normalize", "eta_power", "lr_power"),
    [(Hessian(), True, 1, 1), (Hessian(), False, 1, 0.5), (Transport(), True, 4 / 5, 1), (Plain(), True, 2 / 3, 1)],
)
def test_must_4_eta_and_lr_fall_together(correction, normalize, eta_power, lr_power):
    """The schedules of the authors' code: powers of 2 / (2 + k)."""
    with cart(correction=correction, normalize=normalize, decay_after=2.0, eta=1.0, lr=0.01) as method:
        for k in range(3):
            assert method.eta == pytest.approx((2 / (2 + k)) ** eta_power)
            theta = flatten(own(method)).detach()
            metrics = method.update(method.collect())
            length = 0.01 * (2 / (2 + k)) ** lr_power * (1 if normalize else metrics["direction_norm"].item())
            assert (flatten(own(method)) - theta).norm().item() == pytest.approx(length)


# Limits


def test_without_a_past_all_are_normalized_gradients():
    """eta = 1: N-HARPG, N-PG-IGT and normalized momentum are theta + lr g / |g|."""
    with cart() as method:
        one, two = method.collect(), method.collect()
    paired = TensorDict({"newest": two, "between": one, "back": torch.tensor(-0.4)}, [])
    for correction in (Hessian(), Transport(), Plain()):
        with cart(correction=correction, eta=1.0) as method:
            for batch in (one, two):
                theta, slope = flatten(own(method)).detach(), by_hand(method, batch)
                method.update(paired if batch is two and correction == Hessian() else batch)
                torch.testing.assert_close(flatten(own(method)).detach(), theta + 0.1 * slope / slope.norm())


def test_without_a_correction_harpg_is_momentum(monkeypatch):
    monkeypatch.setattr(harpg, "change", lambda phi, log_prob, parameters, step: torch.zeros_like(step))
    with cart() as method:
        one, two = method.collect(), method.collect()
        method.update(one)
        method.update(TensorDict({"newest": two, "between": one, "back": torch.tensor(-0.4)}, []))
        found = flatten(own(method)).detach()
    with cart(correction=Plain()) as method:
        method.update(one)
        method.update(two)
        assert torch.equal(flatten(own(method)).detach(), found)


# The method


def test_micro_batches_change_nothing():
    found = []
    for size in (None, 2):
        with cart(micro_batch=size, correction=Hessian(episodes=5)) as method:
            metrics = [method.update(method.collect()) for _ in range(3)][-1]
            found.append((flatten(own(method)).detach(), metrics))
    torch.testing.assert_close(found[0], found[1])


def test_entropy_is_the_mean_over_decisions():
    with cart() as method:
        batch = method.collect()
        entropy = method.policy.entropy(batch)[batch["mask"]].mean()
        assert method.update(batch)["entropy"].item() == pytest.approx(entropy.item())


def test_nothing_that_is_kept_has_a_graph():
    with cart() as method:
        for _ in range(3):
            metrics = method.update(method.collect())
            with method.moved(0.5) as step:
                kept = (step, method.memory.previous, method.memory.direction, *metrics.values())
            assert not any(each.requires_grad for each in kept)
    with cart() as method:
        assert not method.memory.previous.requires_grad
        assert {name for name, _ in method.memory.named_buffers()} == {"previous", "direction"}


def test_episodes_of_both_kinds_are_counted_and_differ():
    with cart() as method:
        method.update(method.collect())
        assert method.ledger.episodes == 3
        batch = method.collect()
        assert method.ledger.episodes == 9
        assert not torch.equal(batch["newest"]["obs"][:, 0], batch["between"]["obs"][:, 0])
        assert len(method.episodes()[""]) == 9


def test_the_steps_of_a_chain_are_all_of_the_episode():
    """A diffusion policy: log p(tau) is the sum over decisions and the steps of each."""
    settings = {"policy": "diffusion", "policy.steps": 3, "network.sizes": (4,), "episodes": 2, "loggers": ()}
    method = api.plan("harpg", "brownian", steps=10, seed=1, task_options={"horizon": 3}, **settings).build()
    batch = method.evaluate_episodes(method.collect())
    log_prob = method.policy.log_prob(batch)
    assert log_prob.dim() == 3
    phi, whole, _ = method.phi(batch)
    torch.testing.assert_close(whole, log_prob.sum((1, 2)))
    torch.testing.assert_close(phi, (batch["advantage"] * log_prob.sum(2)).sum(1) / 2)


def test_it_learns_a_small_mdp():
    settings = {"baseline": "leave-one-out", "discount": 1.0, "network.sizes": (8,)}
    method = tabular(lr=0.2, decay_after=10.0, episodes=16, envs=16, **settings)
    mdp = method.spec.info["mdp"]
    best = float(mdp.optimal()[1][0, mdp.start])
    at_first = exact(method).item()
    for _ in range(40):
        method.update(method.collect())
    assert exact(method).item() > 0.97 * best > 1.05 * at_first


@pytest.mark.parametrize("preset", ["harpg", "n-pg-igt", "n-mpg", "paper-n-harpg", "paper-harpg", "paper-n-pg-igt"])
def test_presets(preset):
    with cart(preset=preset, **{"network.sizes": (4,)}) as method:
        kind = {"n-pg-igt": Transport, "n-mpg": Plain, "paper-n-pg-igt": Transport}.get(preset, Hessian)
        assert isinstance(method.config.correction, kind)
        assert method.config.normalize == ("n-" in preset)
        assert method.config.decay_after == (2.0 if preset.startswith("paper") else None)


def test_must_5_networks_are_smooth():
    assert harpg.Harpg.Config().network.activation == "tanh"
