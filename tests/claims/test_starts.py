"""What claims begin with: a small model that goes on from any beginning, and the exact probability of an answer."""

from __future__ import annotations

import pytest
import torch

from polopt.claims.starts import ORBIT, TOKENS, orbit_start, solution_probability
from polopt.policies import CausalLM
from polopt.tasks import make_task
from polopt.tasks.ladders import Cuts
from tests.policies.language_models import tiny_policy


def test_the_probability_is_that_of_every_letter_and_the_end(float64):
    policy = tiny_policy()
    task = make_task("orbit", pool=3, **ORBIT).with_ladder(Cuts((0.75,)))
    expected = []
    for problem in task.problems([0, 3]):
        rows = policy.tokenize([problem.prompt], [problem.solution])
        tokens = torch.cat([rows["prompt"], rows["completion"]], 1)
        chances = policy.model(input_ids=tokens).logits[0].softmax(-1)
        chosen = chances[:-1].gather(1, tokens[0, 1:, None])[rows["prompt"].shape[1] - 1 :]
        assert len(chosen) == len(problem.solution) + 1
        expected.append(chosen.prod().item())
    assert solution_probability(policy, task, [0, 3]) == pytest.approx(sum(expected) / 2)


def test_the_start_reads_both_kinds_of_prompts(tmp_path, monkeypatch):
    monkeypatch.setenv("POLOPT_CACHE", str(tmp_path))
    folder = orbit_start(1000, updates=1)
    task = make_task("orbit", pool=2, **ORBIT).with_ladder(Cuts((0.5,)))
    policy = CausalLM(model=str(folder), max_tokens=TOKENS).build(task.spec)
    assert sum(parameter.numel() for parameter in policy.parameters()) < 130_000
    assert 0 < solution_probability(policy, task, range(4)) < 1e-8
    record, _ = policy.act([problem.prompt for problem in task.problems(range(4))])
    assert record["action"].shape[1] <= TOKENS
