"""Expected values of programs: averaged over all that can be drawn, the gradient of every strategy is exact."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Bernoulli, Categorical, Normal

from polopt.core.errors import UsageError
from polopt.losses.expectations import STRATEGIES, Expectation, Sampling, log_mean_exp

pytestmark = pytest.mark.usefixtures("float64")
HOW = ["enumerated", "measure-valued", "reinforce", "baseline"]


class Forced:
    """In place of `Bernoulli.sample`: the 8 combinations of three coins, a row each; notes how probable they are."""

    bits = torch.tensor(list(product((0.0, 1.0), repeat=3))).T  # [3, 8]

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.used, self.probability = 0, torch.ones(8)
        forced = self

        def sample(distribution: Any) -> Tensor:
            shape = distribution.batch_shape
            count = shape[0] if len(shape) == 2 else 1
            value = forced.bits[forced.used : forced.used + count].reshape(shape)
            forced.used += count
            forced.probability = forced.probability * distribution.log_prob(value).detach().exp().reshape(-1, 8).prod(0)
            return value

        monkeypatch.setattr(Bernoulli, "sample", sample)

    def mean(self, values: Tensor) -> Tensor:
        """Over all that can be drawn; combinations of coins that were not asked for count several times."""
        return (self.probability * values).sum() / self.probability.sum()


def drawn(run: Expectation, probability: Tensor, how: str, baseline: float) -> Tensor:
    if how == "baseline":
        return run.sample(Bernoulli(probability), "reinforce", baseline)
    return run.sample(Bernoulli(probability), how)


def loss(first: Any, second: Any, parameter: Tensor) -> Any:
    return (1.5 + first * parameter.sin() - second * parameter) ** 2 + first * second


def exact(parameter: Tensor) -> tuple[float, float]:
    """Value and derivative of the program below, by enumerating its four paths."""
    parameter = parameter.detach().requires_grad_()
    value: Any = 0.0
    for first, second in product((0.0, 1.0), repeat=2):
        p = torch.sigmoid(parameter)
        q = torch.sigmoid(2 * first - parameter**2)
        path = (p if first else 1 - p) * (q if second else 1 - q)
        value = value + path * (parameter * 3 * first + loss(first, second, parameter))
    return value.item(), torch.autograd.grad(value, parameter)[0].item()


@pytest.mark.parametrize("second", HOW)
@pytest.mark.parametrize("first", HOW)
def test_the_gradient_of_two_coins_is_exact_on_average(
    first: str, second: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second coin depends on the first one, the loss on both and on the parameter, a cost lies between them."""
    forced = Forced(monkeypatch)
    parameter = torch.tensor(0.4, requires_grad=True)
    run = Expectation(8)
    one = drawn(run, torch.sigmoid(parameter), first, 0.7)
    run.add(parameter * 3 * one)
    two = drawn(run, torch.sigmoid(2 * one - parameter**2), second, -0.3)
    mean = forced.mean(run.values(loss(one, two, parameter)))
    value, slope = exact(parameter)
    assert mean.item() == pytest.approx(value)
    assert torch.autograd.grad(mean, parameter)[0].item() == pytest.approx(slope)


def test_the_sign_of_the_measure_valued_derivative_does_not_follow_the_coin(monkeypatch: pytest.MonkeyPatch) -> None:
    """k(b) = 5 b - 1 at p = theta / 2: theta' (k(1) - k(0)) = 5 / 2 in every row; values are k of what was drawn."""
    forced = Forced(monkeypatch)
    parameter = torch.tensor(0.6, requires_grad=True)
    run = Expectation(8)
    values = run.values(5 * run.sample(Bernoulli(parameter / 2), "measure-valued") - 1)
    assert values.tolist() == (5 * forced.bits[0] - 1).tolist()
    for row in range(8):
        (slope,) = torch.autograd.grad(values[row], parameter, retain_graph=True)
        assert slope.item() == pytest.approx(2.5)


def test_the_other_branch_is_evaluated_without_derivative(monkeypatch: pytest.MonkeyPatch) -> None:
    Forced(monkeypatch)
    parameter = torch.tensor(0.6, requires_grad=True)
    run = Expectation(8)
    coin = run.sample(Bernoulli(torch.tensor(0.5)), "measure-valued")
    values = run.values(torch.where(coin == 1, parameter * 3, parameter * 100))
    slopes = [torch.autograd.grad(value, parameter, retain_graph=True)[0].item() for value in values]
    assert slopes == [100.0] * 4 + [3.0] * 4  # of what was drawn


def test_a_categorical_choice_is_enumerated() -> None:
    logits = torch.tensor([0.1, -0.4, 0.8], requires_grad=True)
    run = Expectation(5)
    value = run.sample(Categorical(logits=logits), "enumerated")
    assert value.shape == (3, 5)
    assert run.shape == (3, 5)
    found = run.values(value.double() ** 2)
    expected = logits.softmax(0) @ torch.tensor([0.0, 1.0, 4.0])
    torch.testing.assert_close(found, expected.detach().expand(5))
    for one, other in zip(torch.autograd.grad(found[2], logits), torch.autograd.grad(expected, logits)):
        torch.testing.assert_close(one, other)


def test_normal_choices_by_both_strategies() -> None:
    """d k(mean + std noise) = k' ; k(x) d log p(x): by hand for k(x) = x^3."""
    mean, std = torch.tensor(0.3, requires_grad=True), torch.tensor(0.8, requires_grad=True)
    for strategy in ("reparameterized", "reinforce"):
        torch.manual_seed(0)
        run = Expectation(6)
        x = run.sample(Normal(mean, std), strategy)
        found = torch.autograd.grad(run.values(x**3).sum(), (mean, std))
        torch.manual_seed(0)
        noise = torch.randn(6)
        x = 0.3 + 0.8 * noise
        by_mean, by_std = 3 * x**2, 3 * x**2 * noise
        if strategy == "reinforce":
            by_mean, by_std = x**3 * noise / 0.8, x**3 * (noise**2 - 1) / 0.8
        torch.testing.assert_close(torch.stack(found), torch.stack((by_mean.sum(), by_std.sum())))


def test_costs_before_a_choice_have_nothing_to_do_with_it() -> None:
    mean = torch.tensor(0.3, requires_grad=True)
    run = Expectation(4)
    run.add(100.0)
    x = run.sample(Normal(mean, 1.0), "reinforce")
    found = run.values(x)
    torch.testing.assert_close(found.detach(), 100 + x)
    assert torch.autograd.grad(found.sum(), mean)[0].item() == pytest.approx((x * (x - 0.3)).sum().item())


def test_a_baseline_is_taken_from_what_follows_and_added_again() -> None:
    mean = torch.tensor(0.3, requires_grad=True)
    learned = torch.tensor(2.0, requires_grad=True)
    run = Expectation(4)
    x = run.sample(Normal(mean, 1.0), "reinforce", learned)
    found = run.values(x)
    torch.testing.assert_close(found.detach(), x)
    slopes = torch.autograd.grad(found.sum(), (mean, learned), allow_unused=True)
    assert slopes[0].item() == pytest.approx(((x - 2) * (x - 0.3)).sum().item())
    assert slopes[1] is None  # it is a constant


def test_particles_are_drawn_apart_and_scored_together() -> None:
    mean = torch.tensor(0.3, requires_grad=True)
    run = Expectation(4)
    with run.plate(3):
        with run.plate(2):
            assert run.sample(Normal(mean, 1.0), "reparameterized").shape == (2, 3, 4)
        x = run.sample(Normal(mean, 1.0), "reinforce")
    assert run.plates == ()
    assert x.shape == (3, 4)
    assert len(x.flatten().unique()) == 12
    found = run.values(log_mean_exp(x, 3))
    expected = (x.exp().mean(0).log() * (x - 0.3).sum(0)).sum()
    assert torch.autograd.grad(found.sum(), mean)[0].item() == pytest.approx(expected.item())
    with run.plate(1):
        assert run.sample(Normal(mean, 1.0), "reparameterized").shape == (4,)
    assert log_mean_exp(x, 1) is x


def test_sampling_has_no_branches_and_no_gradients() -> None:
    run = Sampling(5)
    p = torch.tensor(0.5, requires_grad=True)
    for strategy in STRATEGIES:
        value = run.sample(Bernoulli(p), strategy)
        assert value.shape == (5,)
        assert not value.requires_grad


@pytest.mark.parametrize(
    ("distribution", "strategy", "sentence"),
    [
        (Normal(0.0, 1.0), "reparametrized", "there is no strategy 'reparametrized'; did you mean 'reparameterized'"),
        (
            Bernoulli(torch.tensor(0.5)),
            "reparameterized",
            "a choice from a Bernoulli cannot be reparameterized: reinforce",
        ),
        (Normal(0.0, 1.0), "enumerated", "a choice from a Normal has no finite number of values to enumerate"),
        (Normal(0.0, 1.0), "measure-valued", "the measure-valued derivative is that of a coin, a Bernoulli, not of a"),
    ],
)
def test_a_strategy_that_does_not_fit_is_refused(distribution: Any, strategy: str, sentence: str) -> None:
    with pytest.raises(UsageError, match=f"^{sentence}"):
        Expectation(2).sample(distribution, strategy)


@pytest.mark.parametrize("strategy", ["enumerated", "measure-valued"])
def test_no_branches_among_particles(strategy: str) -> None:
    run = Expectation(2)
    with run.plate(3), pytest.raises(UsageError, match="cannot stand among several particles"):
        run.sample(Bernoulli(torch.tensor(0.5)), strategy)
