"""DPO: every loss of the pairs against numpy, a reference that stays, and evaluation with and without rewards."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import polopt
from polopt.cli import main
from polopt.core.errors import UsageError
from polopt.training.api import plan
from polopt.training.folder import Run
from tests.methods.pairs import CLOSE, ROWS, answers, built, gradient, log_probs, sigmoid, without, written

PAIRS = without(ROWS, "baseline")

SLOPES = {  # d loss / d margin of one pair
    "sigmoid": lambda m, beta, s: -(1 - s) * beta * sigmoid(-beta * m) + s * beta * sigmoid(beta * m),
    "robust": lambda m, beta, s: -beta * ((1 - s) * sigmoid(-beta * m) + s * sigmoid(beta * m)) / (1 - 2 * s),
    "ipo": lambda m, beta, s: 2 * (m - 1 / (2 * beta)),
    "hinge": lambda m, beta, s: -beta * (beta * m < 1),
}


@pytest.mark.parametrize(
    ("loss", "smoothing"),
    [("sigmoid", 0.0), ("sigmoid", 0.2), ("robust", 0.2), ("ipo", 0.0), ("ipo-sum", 0.0), ("hinge", 0.0)],
)
def test_gradient_of_every_loss(loss, smoothing, tmp_path, float64):
    method, batch = built("dpo", tmp_path, PAIRS, loss=loss, label_smoothing=smoothing, beta=0.3)
    ratios, slopes = [], []
    for side in ("chosen", "rejected"):
        value, slope, tokens = answers(method.policy, batch[side])
        divisor = tokens if loss == "ipo" else np.ones_like(tokens)
        ratios.append((value - log_probs(method.reference_policy, batch[side])) / divisor)
        slopes.append(slope / divisor[:, None])
    margin = ratios[0] - ratios[1]
    assert np.abs(margin).min() > 0.01
    per_pair = SLOPES[loss.removesuffix("-sum")](margin, 0.3, smoothing)
    expected = (per_pair[:, None] * (slopes[0] - slopes[1])).mean(0)
    value, metrics = method.policy_loss(batch)
    np.testing.assert_allclose(gradient(value, method.policy), expected, rtol=1e-4, atol=CLOSE)
    assert np.abs(expected).max() > 1e-3
    assert metrics["margin"].item() == pytest.approx(0.3 * margin.mean(), abs=1e-5)
    assert metrics["preferred"].item() == pytest.approx((margin > 0).mean())
    assert metrics["chosen_log_ratio"].item() == pytest.approx(ratios[0].mean(), abs=1e-5)


def test_loss_at_the_start_is_log_2(tmp_path, float64):
    method = plan("dpo", written(tmp_path / "pairs.jsonl", PAIRS), model="tiny").build()
    loss, metrics = method.policy_loss(method.score_reference(method.source.data))
    assert loss.item() == pytest.approx(np.log(2))
    assert metrics["margin"].item() == pytest.approx(0, abs=1e-12)


def test_preferred_answers_become_likelier_and_the_reference_stays(tmp_path):
    torch.manual_seed(0)
    method = plan(
        "dpo", written(tmp_path / "pairs.jsonl", PAIRS), model="tiny", lr=2e-3, batch_size=3, steps=60
    ).build()
    start = {key: value.clone() for key, value in method.reference_policy.state_dict().items()}
    before = [log_probs(method.policy, method.source.data[side]) for side in ("chosen", "rejected")]
    for _ in range(60):
        metrics = method.update(method.collect())
    after = [log_probs(method.policy, method.source.data[side]) for side in ("chosen", "rejected")]
    assert ((after[0] - before[0]) - (after[1] - before[1]) > 5).all()
    assert metrics["preferred"] == 1
    assert all(torch.equal(value, start[key]) for key, value in method.reference_policy.state_dict().items())
    assert all(not parameter.requires_grad for parameter in method.reference_policy.parameters())


def test_smoothing_that_a_loss_cannot_use():
    for loss in ("hinge", "ipo-sum"):
        with pytest.raises(UsageError, match=f"label_smoothing has no effect on the loss '{loss}'"):
            plan("dpo", "addition", model="tiny", loss=loss, label_smoothing=0.1)


# Data


def test_all_pairs_of_a_file_are_used(tmp_path):
    _, batch = built("dpo", tmp_path, [PAIRS[0] | {"prompt": f"p{i}"} for i in range(5)], pairs=2)
    assert len(batch) == 5  # `pairs` counts those that are made of a task without end
    assert len(plan("dpo", "addition", model="tiny", pairs=7).build().source.data) == 7


def test_pairs_of_messages_go_through_the_chat_template(tmp_path):
    user, good, bad = (
        {"role": role, "content": text} for role, text in (("user", "hi"), ("assistant", "hello"), ("assistant", "no"))
    )
    rows = [
        {"prompt": "hi", "chosen": [user, good], "rejected": [user, bad]},
        {"prompt": [user], "chosen": "hello", "rejected": "no"},
        {"chosen": [user, good], "rejected": [user, bad]},
    ]
    method, batch = built("dpo", tmp_path, rows)
    chosen = batch["chosen"]
    assert method.policy.decode(chosen["prompt"], chosen["prompt_mask"]) == ["user: hi\nassistant: "] * 3
    assert method.policy.decode(chosen["completion"], chosen["attention"]) == ["hello"] * 3
    assert (chosen["completion"].max(1).values > 0).all()


# Evaluation


def heldout(count=20):
    return [{"prompt": f"{i}?", "chosen": "a" * (1 + i % 3), "rejected": "b" * (1 + i % 2)} for i in range(count)]


def test_evaluation_of_pairs_that_nothing_can_score(tmp_path):
    method, _ = built("dpo", tmp_path, heldout(), policy={"max_tokens": 4})
    task = method.task.__class__(1, name=str(tmp_path / "pairs.jsonl"), evaluation=True)
    assert not task.scores
    assert task.size == 2  # a tenth
    scores = method.evaluate(task, 64)
    rows = {side: [row[side] for row in heldout() if row["prompt"] in ("9?", "19?")] for side in ("chosen", "rejected")}
    value = {}
    for side, texts in rows.items():
        tokens = method.policy.tokenize(["9?", "19?"], texts)
        value[side] = log_probs(method.policy, tokens), log_probs(method.reference_policy, tokens)
    margin = (value["chosen"][0] - value["chosen"][1]) - (value["rejected"][0] - value["rejected"][1])
    assert scores["return"] == scores["preferred"] == pytest.approx((margin > 0).mean())
    assert scores["margin"] == pytest.approx(method.config.beta * margin.mean(), rel=1e-4)
    assert scores["chosen_log_prob"] == pytest.approx(value["chosen"][0].mean(), rel=1e-5)
    assert [sample["prompt"] for sample in method.samples] == ["9?", "19?"]
    assert all(sample["reward"] is None for sample in method.samples)


def test_evaluation_has_the_reward_too_where_there_is_one(tmp_path):
    rows = [row | {"answer": row["chosen"]} for row in heldout()]
    method, _ = built("dpo", tmp_path, rows, policy={"max_tokens": 4})
    scores = method.evaluate(method.task, 4)
    assert scores.keys() >= {"return", "accuracy", "preferred", "margin", "chosen_log_prob"}
    assert scores["return"] == scores["accuracy"]
    # Prompts for evaluation without pairs: only the reward.
    other = without(rows, "chosen", "rejected")
    task = method.task.__class__(1, name=written(tmp_path / "other.jsonl", other))
    assert "preferred" not in method.evaluate(task, 4)


def test_command_line(tmp_path, capsys):
    path, out = written(tmp_path / "pairs.jsonl", heldout()), tmp_path / "run"
    words = ["train", "dpo", "--model", "tiny", "--task", path, "--steps", "4", "--policy.max-tokens", "4"]
    assert main([*words, "--lr", "1e-3", "--batch-size", "6", "--out", str(out)]) == 0
    run = Run(out)
    assert {"preferred", "margin", "chosen_log_prob"} <= run.rows[-1].keys()
    assert 0 <= run.final["eval/return"] == run.final["eval/preferred"] <= 1
    assert json.loads((out / "samples.json").read_text())["shown"][-1]["samples"][0]["reward"] is None
    assert main(["eval", str(out), "--episodes", "2"]) == 0
    assert "preferred" in capsys.readouterr().out
    assert main(["report", str(out)]) == 0
    assert main([*words, "--task.heldout", str(tmp_path / "no.jsonl"), "--out", str(tmp_path / "other")]) == 2


def test_another_runs_weights_are_the_reference(tmp_path):
    path = written(tmp_path / "pairs.jsonl", [row | {"solution": row["chosen"]} for row in PAIRS])
    common = {"model": "tiny", "loggers": (), "eval_episodes": 2, "policy.max_tokens": 4}
    sft = polopt.train("sft", path, steps=3, lr=1e-2, out=tmp_path / "sft", **common)
    run = polopt.train("dpo", path, steps=1, init=sft.folder, out=tmp_path / "dpo", **common)
    assert run.evaluations[0]["eval/margin"] == pytest.approx(0, abs=1e-6)
    fresh = polopt.train("dpo", path, steps=1, out=tmp_path / "fresh", **common)
    assert run.evaluations[0]["eval/chosen_log_prob"] > fresh.evaluations[0]["eval/chosen_log_prob"] + 0.1
