"""OTR against numpy and closed forms: what is drawn, what it is worth, and what becomes of the logits."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from polopt.core.errors import UsageError
from polopt.losses.regression import emphasis
from polopt.methods.language.otr import drawn, exact_objective, sampled_objective
from polopt.training import api
from tests.guards.harness import advance
from tests.policies.language_models import tiny_folder

MUST = 5
LOGITS = torch.tensor([[2.0, 0.0, -1.0, 0.5], [0.0, 3.0, 0.0, -2.0]], dtype=torch.float64)
TOKEN = torch.tensor([3, 1])


def method(name="otr", task_options=None, **settings):
    defaults = {"model": str(tiny_folder()), "batch_size": 4, "policy.max_tokens": 12, "max_grad_norm": None}
    return api.plan(name, "addition", task_options=task_options or {"digits": [1, 2]}, **defaults | settings).build()


def softmax(logits):
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)


def ascent(objective, logits=LOGITS, **arguments):
    """The gradient of an objective of log pi by the logits, numpy [C, V]."""
    logits = logits.clone().requires_grad_()
    return torch.autograd.grad(objective(logits.log_softmax(-1), **arguments).sum(), logits)[0].numpy()


def gradients(learner, batch):
    """The loss, its metrics and the gradient of all parameters, flat."""
    loss, metrics = learner.imitation_loss(batch)
    grads = torch.autograd.grad(loss, list(learner.policy.parameters()))
    return loss.item(), {name: value.item() for name, value in metrics.items()}, torch.cat([g.flatten() for g in grads])


# Candidates


def test_candidates_are_drawn_from_the_policy_at_a_higher_temperature():
    generator = torch.Generator().manual_seed(0)
    uniform = torch.rand(2, 200_000, generator=generator, dtype=torch.float64)
    ids = drawn(LOGITS, uniform, 1.3)
    assert ids.shape == uniform.shape
    share = torch.stack([(ids == token).double().mean(1) for token in range(4)], 1).numpy()
    np.testing.assert_allclose(share, softmax(LOGITS.numpy() / 1.3), atol=4e-3)


def test_a_token_that_cannot_be_is_never_drawn_not_even_at_the_ends():
    logits = torch.tensor([[-math.inf, 0.0, -math.inf, 1.0, -math.inf]])
    ends = torch.tensor([[0.0, 1 - 2**-24, 0.5, 2**-24]])
    assert drawn(logits, ends, 1.3).tolist() == [[3, 1, 3, 3]]
    assert drawn(logits.double(), ends, 1.3).tolist() == [[3, 1, 3, 3]]  # whatever the default precision is


def test_must_1_candidates_are_fresh_at_every_update(monkeypatch):
    learner = method(candidates=4)
    seen = []
    monkeypatch.setattr(learner.optimizer, "minimize", lambda loss, batch: seen.append(batch["uniform"]) or {})
    batch = learner.collect()
    for _ in range(2):
        learner.update(batch)
    assert seen[0].shape == (*batch["mask"].shape, 4)
    assert not torch.equal(*seen)


# Rewards


def test_must_2_drawn_wrong_tokens_are_pushed_down_by_beta_against_numpy():
    ids = torch.tensor([[3, 0, 0, 2], [1, 1, 0, 1]])
    objective = lambda log_p: sampled_objective(log_p, TOKEN, ids, -0.1)  # noqa: E731
    log_p = np.log(softmax(LOGITS.numpy()))
    expected = [
        (log_p[0, 3] - 0.1 * (2 * log_p[0, 0] + log_p[0, 2])) / 4,
        (3 * log_p[1, 1] - 0.1 * log_p[1, 0]) / 4,
    ]
    np.testing.assert_allclose(objective(LOGITS.log_softmax(-1)).numpy(), expected, rtol=1e-12)
    # d log pi(a) / d logits = 1[a] - pi, so the reward is a constant: nothing flows through what was drawn
    counts = np.array([[-0.2, 0, -0.1, 1.0], [-0.1, 3.0, 0, 0]]) / 4
    by_hand = counts - counts.sum(1, keepdims=True) * softmax(LOGITS.numpy())
    np.testing.assert_allclose(ascent(objective), by_hand, atol=1e-15)


def test_must_3_the_temperature_is_of_the_candidates_only(float64):
    ids = torch.tensor([[3, 0], [1, 2]])
    seen = {}
    for kappa in (1.0, 1.3, 4.0):
        learner = method(sampling_temperature=kappa, candidates=2)
        seen[kappa] = learner.one_token(LOGITS, TOKEN, torch.full((2, 2), 0.5))
        at_one = sampled_objective(LOGITS.log_softmax(-1), TOKEN, drawn(LOGITS, torch.full((2, 2), 0.5), kappa), -0.1)
        torch.testing.assert_close(seen[kappa][:, 0], at_one, rtol=0, atol=0)
        torch.testing.assert_close(seen[kappa][:, 1], LOGITS.log_softmax(-1)[[0, 1], TOKEN])
    assert sampled_objective(LOGITS.log_softmax(-1), TOKEN, ids, 0.0)[0].item() == pytest.approx(
        math.log(softmax(LOGITS.numpy())[0, 3]) / 2
    )


def test_must_4_a_token_counts_by_how_often_it_was_drawn():
    log_p = LOGITS.log_softmax(-1)
    for count in range(5):
        ids = torch.full((2, 4), 2)
        ids[:, :count] = TOKEN.unsqueeze(1)
        gained = ascent(lambda log_p, ids=ids: sampled_objective(log_p, TOKEN, ids, 0.0))
        once = ascent(lambda log_p: log_p.gather(1, TOKEN.unsqueeze(1)).squeeze(1))
        np.testing.assert_allclose(gained, count / 4 * once, atol=1e-15)  # none drawn: no signal at all
        assert sampled_objective(log_p, TOKEN, ids, 0.0)[0].item() == pytest.approx(count / 4 * log_p[0, 3].item())


def test_the_mean_over_draws_is_the_closed_form_and_nears_it_by_the_root_of_k():
    generator = torch.Generator().manual_seed(1)
    behavior = (LOGITS / 1.3).softmax(-1)
    exact = ascent(exact_objective, token=TOKEN, behavior=behavior, wrong_reward=-0.1)
    errors = {}
    for candidates in (16, 256):
        off = []
        for _ in range(200):
            ids = drawn(LOGITS, torch.rand(2, candidates, generator=generator, dtype=torch.float64), 1.3)
            off.append(ascent(sampled_objective, token=TOKEN, ids=ids, wrong_reward=-0.1) - exact)
        errors[candidates] = np.sqrt(np.mean(np.square(off)))
        np.testing.assert_allclose(np.mean(off, 0), 0.0, atol=4 * errors[candidates] / math.sqrt(200))
    assert errors[16] / errors[256] == pytest.approx(4, rel=0.2)


def test_ids_that_the_tokenizer_does_not_know_are_as_if_they_were_not_there():
    padded = torch.cat((LOGITS, torch.full((2, 2), -math.inf, dtype=torch.float64)), 1)
    plain, wider = (
        ascent(exact_objective, logits, token=TOKEN, behavior=(logits / 1.3).softmax(-1), wrong_reward=-0.1)
        for logits in (LOGITS, padded)
    )
    np.testing.assert_allclose(wider, np.pad(plain, ((0, 0), (0, 2))), atol=1e-16)


def test_nothing_is_learned_through_the_probabilities_of_the_candidates():
    """d/dlogits of sum_a w_a log pi_a is w - pi sum_a w_a, with w = pi' R held."""
    logits = LOGITS.clone().requires_grad_()
    behavior = (logits / 1.3).softmax(-1)
    found = torch.autograd.grad(exact_objective(logits.log_softmax(-1), TOKEN, behavior, -0.1).sum(), logits)[0]
    worth = softmax(LOGITS.numpy() / 1.3) * np.where(np.eye(4)[TOKEN] == 1, 1.0, -0.1)
    np.testing.assert_allclose(found, worth - softmax(LOGITS.numpy()) * worth.sum(1, keepdims=True), atol=1e-15)


@pytest.mark.parametrize("wrong_reward", [0.0, -0.1, -0.5])
def test_at_temperature_one_it_is_dft_times_one_minus_beta(wrong_reward):
    """Also against `emphasis`, the weight of `sft --emphasis probability`."""
    found = ascent(exact_objective, token=TOKEN, behavior=LOGITS.softmax(-1), wrong_reward=wrong_reward)
    pi = softmax(LOGITS.numpy())
    truth = pi[[0, 1], TOKEN.numpy()][:, None]
    np.testing.assert_allclose(found, (1 - wrong_reward) * truth * (np.eye(4)[TOKEN] - pi), atol=1e-16)

    def dft(log_p):
        chosen = log_p.gather(1, TOKEN.unsqueeze(1)).squeeze(1)
        return emphasis(chosen, "probability") * chosen

    np.testing.assert_allclose(found, (1 - wrong_reward) * ascent(dft), atol=1e-16)


def test_must_5_out_of_reach_beta_makes_the_likeliest_wrong_token_likelier():
    """Logits move along beta (pi' - pi) where the demonstrated token has no probability to speak of."""
    logits = torch.tensor([[4.0, 0.0, -30.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    behavior = (logits / 1.3).softmax(-1)
    moved = ascent(exact_objective, logits, token=torch.tensor([2]), behavior=behavior, wrong_reward=-0.1)
    np.testing.assert_allclose(moved, -0.1 * (behavior - logits.softmax(-1)).numpy(), atol=1e-9)
    assert moved[0, 0] > 0
    assert (moved[0, [1, 3, 4, 5]] < 0).all()
    entropy = torch.distributions.Categorical(logits=logits + torch.tensor(moved)).entropy()
    assert entropy < torch.distributions.Categorical(logits=logits).entropy()


# The method


@pytest.mark.parametrize("aggregate", ["sequence", "token"])
@pytest.mark.parametrize("exact", [True, False])
def test_the_loss_of_a_batch_against_numpy(exact, aggregate, float64):
    """Row by row without padding, from the logits of the model as it is after an update (MUST 1)."""
    learner = method(exact=exact, aggregate=aggregate, lr=1e-2, **({} if exact else {"candidates": 3}))
    advance(learner, 1)
    batch = learner.weigh(learner.collect())
    assert len(set(batch["mask"].sum(1).tolist())) > 1
    rows = []
    for row in batch:
        prompt, completion = row["prompt"][row["prompt_mask"]], row["completion"][row["attention"]]
        with torch.no_grad():
            logits = learner.policy.model(torch.cat((prompt, completion)).unsqueeze(0)).logits[0, len(prompt) - 1 : -1]
        logits, completion = logits.double().numpy(), completion.numpy()
        reward = np.where(np.arange(logits.shape[1]) == completion[:, None], 1.0, -0.1)
        if exact:
            share = softmax(logits / 1.3)
        else:
            uniform = 1 - row["uniform"][row["mask"]].numpy()
            mass = softmax(logits / 1.3).cumsum(1)
            ids = np.array([np.searchsorted(m, u * m[-1]) for m, u in zip(mass, uniform)])
            share = np.stack([(ids == token).mean(1) for token in range(logits.shape[1])], 1)
        rows.append((share * reward * np.log(softmax(logits))).sum(1))
    means = np.mean([row.mean() for row in rows]) if aggregate == "sequence" else np.concatenate(rows).mean()
    loss, metrics, _ = gradients(learner, batch)
    assert loss == pytest.approx(-means, abs=1e-6)  # the model's norms compute in single precision
    assert metrics["objective"] == pytest.approx(means, abs=1e-6)
    assert batch["weight"].sum().item() == pytest.approx(1)


def test_sft_and_otr_agree_on_what_they_both_report(float64):
    sft, otr = (method(name, aggregate="sequence", seed=3) for name in ("sft", "otr"))
    otr.policy.load_state_dict(sft.policy.state_dict())
    batch = sft.collect()
    _, plain, _ = gradients(sft, sft.weigh(batch))
    _, metrics, _ = gradients(otr, otr.weigh(batch))
    assert metrics["loss"] == pytest.approx(plain["loss"], abs=1e-12)
    weight = sft.weigh(batch)["weight"]
    assert metrics["entropy"] == pytest.approx((weight * sft.policy.entropy(batch)).sum().item(), abs=1e-12)
    assert 0 < metrics["found"] < 1


def test_micro_batches_draw_the_same_candidates(float64):
    weights = []
    for micro_batch in (None, 2):
        learner = method(batch_size=6, micro_batch=micro_batch, seed=1, candidates=4)
        advance(learner, 2)
        weights.append(torch.cat([p.detach().flatten() for p in learner.policy.parameters()]))
    torch.testing.assert_close(*weights, rtol=0, atol=1e-8)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"exact": True, "candidates": 8}, "candidates"),
        ({"emphasis": "probability"}, "emphasis"),
        ({"policy.top_k": 5}, "top_k"),
        ({"policy.top_p": 0.5}, "top_p"),
    ],
)
def test_what_would_do_nothing_is_refused(settings, words):
    with pytest.raises(UsageError, match=rf"{words}.*no effect where"):
        method(**settings)


def test_the_papers_stage():
    """With a tiny model in place of Qwen's."""
    planned = api.plan(
        "otr", "addition", preset="paper", model="tiny", loggers=(), task_options={"digits": 1}, **{"batch_size": 2}
    )
    config = planned.config
    assert (config.candidates, config.sampling_temperature, config.wrong_reward) == (256, 1.3, -0.1)
    assert (config.aggregate, config.exact, config.lr) == ("sequence", False, 1e-5)
    learner = planned.build()
    assert learner.weigh(learner.collect())["uniform"].shape[2] == 256


def test_it_goes_on_from_what_sft_taught_and_finds_more():
    own = {"model": "tiny", "task_options": {"digits": 1, "heldout": False}, "batch_size": 32, "lr": 5e-3, "seed": 0}
    taught = method("sft", **own)
    advance(taught, 100)
    learner = method(**own, candidates=16, wrong_reward=-0.02)
    learner.policy.load_state_dict(taught.policy.state_dict())
    rows = advance(learner, 60)
    assert np.mean([row["found"] for row in rows[-10:]]) > np.mean([row["found"] for row in rows[:10]]) + 0.1


# Emphasis, of `sft` too


def test_emphasis_is_detached_and_of_the_present_probability():
    log_prob = torch.tensor([0.9, 0.5, 0.25]).log().requires_grad_()
    assert emphasis(log_prob, "none") is None
    for kind, expected in {"probability": [0.9, 0.5, 0.25], "uncertainty": [0.09, 0.25, 0.1875]}.items():
        value = emphasis(log_prob, kind)
        assert not value.requires_grad
        assert value.tolist() == pytest.approx(expected)
    with pytest.raises(ValueError, match="emphasis is"):
        emphasis(log_prob, "some")


def test_sft_with_emphasis_is_the_weighted_likelihood(float64):
    plain, dft = method("sft", seed=3), method("sft", preset="dft", seed=3)
    dft.policy.load_state_dict(plain.policy.state_dict())
    batch = plain.weigh(plain.collect())
    log_prob = plain.policy.log_prob(batch)
    wanted = torch.autograd.grad(
        -(batch["weight"] * log_prob.detach().exp() * log_prob).sum(), list(plain.policy.parameters())
    )
    loss, metrics, found = gradients(dft, batch)
    torch.testing.assert_close(found, torch.cat([grad.flatten() for grad in wanted]))
    assert metrics["loss"] == pytest.approx(-(batch["weight"] * log_prob).sum().item())
    assert loss < metrics["loss"]
