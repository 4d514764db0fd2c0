"""What a run folder gives back for an evaluation: all that was learned, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import polopt
from polopt.core.errors import CheckpointError
from polopt.core.state import gather
from polopt.training.api import load_method
from polopt.training.folder import Run
from tests.training.runs import TINY, same, settings, train


def saved(folder: Path, kind: str = "step") -> dict[str, Any]:
    checkpoints = Run(folder).checkpoints
    state = checkpoints.load(checkpoints.steps(kind)[-1], kind)
    return {path: leaf for path, leaf in state.items() if path.startswith("method")}


@pytest.mark.parametrize("name", ["bc-ppo", "sac", "rec"])
@pytest.mark.parametrize(("checkpoint", "kind"), [("latest", "step"), ("best", "best")])
def test_all_that_was_learned_comes_back_and_nothing_else(name, checkpoint, kind, tmp_path):
    """Of bc-ppo the second stage with its critic and its count, which the first stage has not."""
    folder = train(name, tmp_path / "run", eval_every=10_000).folder
    method, _ = load_method(folder, checkpoint)
    state, found = saved(folder, kind), gather(method, "method")
    apart = ("source", "task", "ledger", "generator", "optimizer")
    learned = {path for path in state if not any(word in path for word in apart)}
    assert any(path.startswith("method.policy.") for path in learned)
    for path in learned:
        assert same(found[path], state[path]), path
    assert method.ledger.counts() == dict.fromkeys(method.ledger.counts(), 0)
    if checkpoint == "best":
        assert learned == state.keys()
    elif name == "bc-ppo":
        assert state["method#stage_index"] == 1
        assert "method.learner#warmed" in learned
        assert any(path.startswith("method.learner.critic.") for path in learned)
    elif name == "sac":
        assert len(method.source.replay) == 0


def test_a_tracker_comes_back_for_an_evaluation_and_not_for_another_run(tmp_path):
    """Success rates per prompt are what single-stream-po has learned besides the model."""
    options = {"model": "tiny", "steps": 24, "batch_prompts": 8, "initial_samples": 1, "policy.max_tokens": 4}
    options |= {"task_options": {"pool": 8, "score_truncated": True}, "loggers": (), "eval_episodes": 1}
    run = polopt.train("single-stream-po", "vowels", out=tmp_path / "run", **options)
    method, _ = load_method(run.folder)
    alpha = saved(run.folder)["method.tracker@alpha"]
    assert torch.equal(method.tracker.alpha, alpha)
    assert not torch.equal(alpha, torch.full((8,), 0.5))
    assert method.visits.known(torch.arange(8)).any()
    rows = polopt.iterate("single-stream-po", "vowels", out=tmp_path / "other", init=run.folder, **options)
    fresh = next(rows)["method"]
    assert torch.equal(fresh.tracker.alpha, torch.full((8,), 0.5))
    assert fresh.initial_source.left == 8
    rows.close()


def test_the_data_is_not_needed(tmp_path):
    data = tmp_path / "data.safetensors"
    polopt.demonstrate(train("ppo", tmp_path / "ppo").folder, data, episodes=2)
    options = settings("bc-ppo") | {"bc": {"demonstrations": str(data), "batch_size": 8}}
    run = polopt.train("bc-ppo", TINY["bc-ppo"][0], out=tmp_path / "run", **options)
    data.unlink()
    assert polopt.evaluate(run.folder, episodes=1)["length"] > 0


def test_a_checkpoint_without_something_learned_is_refused(tmp_path):
    folder = train("bc-ppo", tmp_path / "run").folder
    checkpoints = Run(folder).checkpoints
    state = checkpoints.load(checkpoints.steps()[-1])
    del state["method.learner#warmed"]
    checkpoints.save(10_000, state)
    with pytest.raises(
        CheckpointError, match=r"000010000 does not fit .*config\.json: it has no 'method\.learner#warmed'"
    ):
        polopt.evaluate(folder, episodes=1)
