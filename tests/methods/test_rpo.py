"""RPO against numpy: the imitation term's coefficient and rows in both forms, and what is reported."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from polopt.core.errors import UsageError
from polopt.methods.language.rpo import Average, Sum
from polopt.training.api import plan
from tests.methods.pairs import CLOSE, ROWS, answers, built, gradient, log_probs, sigmoid, without, written

MUST = 5
PAIRS = without(ROWS, "baseline")


def pair_gradient(method, batch, beta):
    """Of -log sigmoid(beta * margin), its mean over the pairs [P]."""
    (chosen, up, _), (rejected, down, _) = (answers(method.policy, batch[side]) for side in ("chosen", "rejected"))
    reference = [log_probs(method.reference_policy, batch[side]) for side in ("chosen", "rejected")]
    margin = (chosen - reference[0]) - (rejected - reference[1])
    return (-beta * sigmoid(-beta * margin)[:, None] * (up - down)).mean(0)


def imitation(method, batch):
    """What the imitation term adds to the gradient [P]."""
    found = gradient(method.policy_loss(batch)[0], method.policy)
    return found - pair_gradient(method, batch, method.config.beta)


@pytest.mark.parametrize(("eta", "beta"), [(0.5, 0.3), (0.5, 0.6), (2.0, 0.3), (0.0, 0.3)])
def test_must_1_coefficient_is_eta_beta_on_the_sum_over_tokens(eta, beta, tmp_path, float64):
    method, batch = built("rpo", tmp_path, PAIRS, imitation=Sum(eta), beta=beta)
    _, slopes, _ = answers(method.policy, batch["chosen"])
    np.testing.assert_allclose(imitation(method, batch), -eta * beta * slopes.mean(0), rtol=1e-4, atol=CLOSE)


@pytest.mark.parametrize("beta", [0.3, 0.6])
def test_must_1_average_over_tokens_is_an_option_without_beta(beta, tmp_path, float64):
    method, batch = built("rpo", tmp_path, PAIRS, imitation=Average(0.7), beta=beta)
    _, slopes, tokens = answers(method.policy, batch["chosen"])
    np.testing.assert_allclose(
        imitation(method, batch), -0.7 * (slopes / tokens[:, None]).mean(0), rtol=1e-4, atol=CLOSE
    )


def test_must_2_chosen_only_in_the_same_forward_pass(tmp_path, float64, monkeypatch):
    method, batch = built("rpo", tmp_path, PAIRS, imitation=Sum(1.0))
    scored, original = [], method.policy.log_prob
    monkeypatch.setattr(method.policy, "log_prob", lambda rows: scored.append(rows) or original(rows))
    method.policy_loss(batch)
    assert [len(rows) for rows in scored] == [2 * len(batch)]  # each side once, for both terms
    assert method.anchor(original(batch["chosen"]), batch).item() == pytest.approx(
        -method.config.beta * log_probs(method.policy, batch["chosen"]).mean()
    )


def test_must_2_no_gradient_through_the_reference(tmp_path):
    method, _ = built("rpo", tmp_path, PAIRS, imitation=Sum(1.0), lr=1e-2)
    start = [parameter.clone() for parameter in method.reference_policy.parameters()]
    for _ in range(3):
        method.update(method.collect())
    assert all(torch.equal(*pair) for pair in zip(start, method.reference_policy.parameters()))
    assert all(p.grad is None and not p.requires_grad for p in method.reference_policy.parameters())
    batch = method.score_reference(method.source.data)
    assert not batch["chosen", "reference_log_prob"].requires_grad


@pytest.mark.parametrize("form", ["sum", "average"])
def test_must_3_other_answers_of_a_baseline_are_imitated(form, tmp_path, float64):
    method, batch = built("rpo", tmp_path, ROWS, beta=0.3, imitation=Sum(0.5) if form == "sum" else Average(0.2))
    texts = method.policy.decode(batch["baseline", "completion"], batch["baseline", "attention"])
    assert texts == [row["baseline"] for row in ROWS]
    _, slopes, tokens = answers(method.policy, batch["baseline"])
    slope = 0.5 * 0.3 * slopes if form == "sum" else 0.2 * slopes / tokens[:, None]
    np.testing.assert_allclose(imitation(method, batch), -slope.mean(0), rtol=1e-4, atol=CLOSE)
    _, chosen, _ = answers(method.policy, batch["chosen"])
    assert np.abs(chosen.mean(0) - slopes.mean(0)).max() > 0.1


def test_must_3_some_answers_of_a_baseline_are_a_mistake(tmp_path):
    rows = [*ROWS[:2], PAIRS[2]]
    with pytest.raises(UsageError, match=r"prompt 2 of .*pairs.jsonl has no text as its 'baseline', but others do"):
        built("rpo", tmp_path, rows)
    assert "baseline" not in built("dpo", tmp_path, rows)[1].keys()  # it has no use for them


def test_must_4_chosen_log_prob_and_true_reward_are_reported(tmp_path):
    rows = [row | {"answer": row["chosen"]} for row in PAIRS]
    method, batch = built("rpo", tmp_path, rows, policy={"max_tokens": 4})
    metrics = method.update(batch)
    before = log_probs(built("rpo", tmp_path, rows)[0].policy, batch["chosen"]).mean()
    assert float(metrics["chosen_log_prob"]) == pytest.approx(before, rel=1e-5)
    scores = method.evaluate(method.task, 3)
    assert scores["chosen_log_prob"] == pytest.approx(log_probs(method.policy, batch["chosen"]).mean(), rel=1e-5)
    assert scores["return"] == scores["accuracy"]  # the task's reward of what the policy writes
    assert 0 <= scores["preferred"] <= 1


@torch.no_grad()
def test_must_4_accuracy_does_not_show_that_chosen_answers_are_lost(tmp_path, monkeypatch):
    method, batch = built("rpo", tmp_path, PAIRS)
    kept = method.policy_loss(batch)[1]
    original = method.policy.log_prob

    def sunk(rows):  # every answer is exp(10) times less likely
        count = rows["mask"].sum(1, keepdim=True)
        return original(rows) - 10 * rows["mask"] / count

    monkeypatch.setattr(method.policy, "log_prob", sunk)
    lost = method.policy_loss(batch)[1]
    assert float(lost["preferred"]) == float(kept["preferred"])
    assert float(lost["margin"]) == pytest.approx(float(kept["margin"]), abs=1e-4)
    assert float(kept["chosen_log_prob"] - lost["chosen_log_prob"]) == pytest.approx(10, abs=1e-3)


def test_must_5_lengths_count_as_each_form_says(tmp_path, float64):
    rows = [{"prompt": "p", "chosen": "a", "rejected": "b"}, {"prompt": "q", "chosen": "abcdefgh", "rejected": "b"}]
    terms = {}
    for form in ("sum", "average"):
        method, batch = built("rpo", tmp_path, rows, imitation=Sum(1.0) if form == "sum" else Average(1.0), beta=1.0)
        log_prob = method.policy.log_prob(batch["chosen"])
        terms[form] = method.anchor(log_prob, batch).item()
    total, tokens = log_prob.sum(1).detach().numpy(), np.array([2, 9])  # with the end token
    assert terms["sum"] == pytest.approx(-total.mean())
    assert terms["average"] == pytest.approx(-(total / tokens).mean())
    pooled = -total.sum() / tokens.sum()  # the mean over the tokens of the batch, in which long answers count more
    assert abs(terms["average"] - pooled) > 0.01


def test_must_5_the_forms_agree_where_eta_beta_length_is_the_coefficient(tmp_path, float64):
    rows = [{"prompt": p, "chosen": c, "rejected": "b"} for p, c in (("p", "abc"), ("q", "xyz"))]  # 4 tokens each
    found = []
    for settings in ({"imitation": Average(0.2)}, {"imitation": Sum(0.5)}):
        method, batch = built("rpo", tmp_path, rows, beta=0.1, **settings)
        found.append(gradient(method.policy_loss(batch)[0], method.policy))
    np.testing.assert_allclose(*found, rtol=1e-4, atol=CLOSE)


@pytest.mark.parametrize("form", [Sum(1.0), Average()])
def test_parts_of_a_batch_add_up(form, tmp_path, float64):
    method, batch = built("rpo", tmp_path, ROWS, imitation=form)
    with torch.no_grad():
        parts = [method.policy_loss(part)[0].item() for part in batch.split([2, 1])]
        assert sum(parts) == pytest.approx(method.policy_loss(batch)[0].item(), rel=1e-5)


def test_imitation_holds_the_likelihood_of_chosen_answers(tmp_path):
    path = written(tmp_path / "pairs.jsonl", PAIRS)
    change = {}
    for eta in (0.0, 5.0):
        settings = {"model": "tiny", "beta": 0.1, "lr": 2e-3, "batch_size": 3}
        method = plan("rpo", path, imitation=Sum(eta), seed=1, **settings).build()
        before = log_probs(method.policy, method.source.data["chosen"]).mean()
        for _ in range(40):
            method.update(method.collect())
        change[eta] = log_probs(method.policy, method.source.data["chosen"]).mean() - before
    assert change[5.0] > max(change[0.0], 0) + 1


def test_presets_are_the_official_recipes():
    beta, gemma, average = (
        plan("rpo", "addition", model="tiny", preset=p).config for p in ("zephyr-beta", "zephyr-gemma", "average")
    )
    assert (beta.beta, beta.imitation, beta.lr, beta.batch_size, beta.lr_schedule.warmup) == (
        0.01,
        Sum(0.005),
        5e-7,
        128,
        0.1,
    )
    assert (gemma.beta, gemma.imitation) == (0.05, Sum(0.005))
    assert (average.beta, average.imitation) == (0.5, Average(0.2))
