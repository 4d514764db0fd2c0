"""Preference pairs in a file, and what a policy does with each answer: shared by the tests of DPO and its relatives."""

from __future__ import annotations

import json

import numpy as np
import torch

from polopt.training.api import plan

CLOSE = 3e-6  # the norms and rotations inside a Llama are in single precision

# Answers of different lengths, so that sums and means over tokens cannot be taken for each other.
ROWS = (
    {"prompt": "1+1=", "chosen": "2", "rejected": "eleven", "baseline": "two"},
    {"prompt": "1+2=", "chosen": "three", "rejected": "12", "baseline": "3"},
    {"prompt": "hello", "chosen": "good day", "rejected": "go", "baseline": "hello to you"},
)


def written(path, rows):
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return str(path)


def built(name, folder, rows=ROWS, **settings):
    """The method on a file of pairs, its policy moved away from the reference, and all pairs with its scores."""
    method = plan(name, written(folder / "pairs.jsonl", rows), model="tiny", **settings).build()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in method.policy.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return method, method.score_reference(method.source.data)


def without(rows, *columns):
    return [{key: value for key, value in row.items() if key not in columns} for row in rows]


def gradient(loss, policy):
    parameters = [p for p in policy.parameters() if p.requires_grad]
    return np.concatenate([g.ravel().numpy() for g in torch.autograd.grad(loss, parameters)])


def answers(policy, rows):
    """(log pi of each answer [B], its gradient [B, P], its number of tokens [B]), row by row."""
    sums = [policy.log_prob(rows[i : i + 1]).sum() for i in range(len(rows))]
    gradients = np.stack([gradient(one, policy) for one in sums])
    return np.array([one.item() for one in sums]), gradients, rows["mask"].sum(1).numpy()


def log_probs(policy, rows):
    with torch.no_grad():
        return policy.log_prob(rows).sum(1).numpy()


def sigmoid(x):
    return 1 / (1 + np.exp(-x))
