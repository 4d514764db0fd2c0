"""SFT: the gradient of the likelihood against numpy, which tokens are learned, epochs, and that it learns."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from polopt.core.errors import UsageError
from polopt.policies.causal_lm import CausalLMPolicy
from polopt.training.api import plan
from tests.guards.harness import advance
from tests.policies.language_models import tiny_folder

MUST = 3


def method(task="addition", task_options=None, **settings):
    defaults = {"model": str(tiny_folder()), "batch_size": 4, "policy.max_tokens": 12, "max_grad_norm": None}
    options = {"digits": 1} if task == "addition" and task_options is None else task_options
    return plan("sft", task, task_options=options, **{**defaults, **settings}).build()


def weighted(learner, batch):
    """The batch with the weights of one step, as `update` hands it to the loss."""
    parts = []
    learner.optimizer.minimize = lambda loss, part: parts.append(part) or {}
    learner.update(batch)
    del learner.optimizer.minimize
    return parts[0]


def negative_log_likelihood(policy, batch, aggregate):
    """Row by row without any padding: logits of the model, the rest in numpy."""
    rows = []
    for row in batch:
        prompt = row["prompt"][row["prompt_mask"]]
        completion = row["completion"][row["attention"]]
        with torch.no_grad():
            logits = policy.model(torch.cat((prompt, completion)).unsqueeze(0)).logits[0].numpy()
        logits = logits[len(prompt) - 1 : -1]
        top = logits.max(1, keepdims=True)
        log_prob = logits - top - np.log(np.exp(logits - top).sum(1, keepdims=True))
        rows.append(-log_prob[np.arange(len(completion)), completion.numpy()])
    if aggregate == "sequence":
        return np.mean([row.mean() for row in rows])
    return np.concatenate(rows).mean()


@pytest.mark.parametrize("aggregate", ["token", "sequence"])
def test_must_1_gradient_of_the_likelihood_against_numpy(aggregate, float64):
    # Sums of one and of two digits: rows of different lengths, with padding on both sides.
    learner = method(task_options={"digits": [1, 2]}, aggregate=aggregate, batch_size=5)
    batch = weighted(learner, learner.collect())
    lengths = batch["mask"].sum(1).tolist()
    assert len(set(lengths)) > 1
    loss, metrics = learner.imitation_loss(batch)
    policy = learner.policy
    assert loss.item() == pytest.approx(negative_log_likelihood(policy, batch, aggregate), abs=1e-9)
    assert metrics["loss"].item() == loss.item()
    # Along the gradient and along a random direction; the model's norms compute in single precision.
    parameters = list(policy.parameters())
    flat = torch.nn.utils.parameters_to_vector
    found, start = flat(torch.autograd.grad(loss, parameters)), flat(parameters).detach()
    for direction in (found / found.norm(), torch.randn_like(found) / 10):
        values = []
        for step in (1e-3, -1e-3):
            torch.nn.utils.vector_to_parameters(start + step * direction, parameters)
            values.append(negative_log_likelihood(policy, batch, aggregate))
        expected = (values[0] - values[1]) / 2e-3
        assert (found @ direction).item() == pytest.approx(expected, rel=1e-2, abs=1e-3)


def test_must_2_only_the_completion_is_learned_with_its_end(float64):
    learner = method(task_options={"digits": [1, 2]})
    batch = learner.collect()
    policy: CausalLMPolicy = learner.policy
    shown = learner.task.demonstrations(batch["index"].tolist())
    for row, (prompt, solution) in zip(batch, shown):
        learned = row["completion"][row["mask"]].tolist()
        assert policy.tokenizer.decode(learned[:-1]).replace(" ", "") == solution.replace(" ", "")
        assert learned[-1] in policy.tokens.ends
        assert policy.decode(row["prompt"][None], row["prompt_mask"][None]) == [prompt]
    parts = weighted(learner, batch)
    assert parts["weight"].sum().item() == pytest.approx(1)
    assert torch.equal(parts["weight"] > 0, batch["mask"])
    assert parts["weight"].shape == batch["completion"].shape


def test_must_3_every_demonstration_once_per_epoch():
    learner = method(task_options={"digits": 1, "pool": 10}, batch_size=4)
    seen = torch.cat([learner.collect()["index"] for _ in range(5)])
    assert torch.bincount(seen).tolist() == [2] * 10
    assert sorted(seen[:10].tolist()) == list(range(10))
    assert seen[:10].tolist() != seen[10:].tolist()
    endless = method()
    assert torch.cat([endless.collect()["index"] for _ in range(3)]).tolist() == list(range(12))


def test_micro_batches_add_up(float64):
    weights = []
    for micro_batch in (None, 2):
        learner = method(batch_size=6, micro_batch=micro_batch, seed=1)
        advance(learner, 2)
        weights.append(torch.cat([p.detach().flatten() for p in learner.policy.parameters()]))
    torch.testing.assert_close(*weights, rtol=0, atol=1e-8)


def test_demonstrations_from_a_file(tmp_path):
    rows = [{"prompt": f"{i}?", "solution": "abc"[i % 3] * 2, "answer": "aa"} for i in range(9)]
    file = tmp_path / "demonstrations.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows))
    learner = method(str(file), task_options={})
    batch = learner.collect()
    pairs = zip(
        learner.policy.decode(batch["prompt"], batch["prompt_mask"]),
        learner.policy.decode(batch["completion"], batch["mask"]),
    )
    known = {(row["prompt"], row["solution"]) for row in rows}
    assert set(pairs) <= known
    first = learner.update(batch)["loss"].item()
    for _ in range(40):
        last = learner.update(learner.collect())["loss"].item()
    assert last < 0.6 * first

    bare = tmp_path / "bare.jsonl"
    bare.write_text("\n".join(json.dumps({"prompt": "1?", "answer": "a"}) for _ in range(9)))
    with pytest.raises(UsageError, match=r"solution"):
        method(str(bare), task_options={}).collect()


def test_held_out_demonstrations_are_scored(float64):
    learner = method()
    scores = learner.evaluate_data(learner.task, 6)
    batch = learner.policy.tokenize(*zip(*learner.task.demonstrations(range(6))))
    assert scores["token_loss"] == pytest.approx(negative_log_likelihood(learner.policy, batch, "token"), abs=1e-9)
    assert scores["return"] == -scores["token_loss"]
    assert scores["length"] == pytest.approx(batch["mask"].sum(1).double().mean().item())


def test_it_learns_to_add():
    learner = method(model="tiny", task_options={"digits": 1, "heldout": False}, batch_size=32, lr=1e-2, seed=0)
    loss = [row["loss"] for row in advance(learner, 150)]
    assert loss[0] > 3
    assert np.mean(loss[-10:]) < 0.9
    assert learner.evaluate(learner.task, 32)["accuracy"] > 0.05
