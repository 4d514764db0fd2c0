"""Runs of language models: killed anywhere they go on exactly, what fails is one sentence, and what is saved loads."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import polopt
from polopt.cli import main
from polopt.core.errors import Notice, RunError, UsageError
from polopt.policies.causal_lm import CausalLMPolicy
from polopt.policies.small_lm import make_language_model
from polopt.training.folder import Run
from tests.forked import Forked
from tests.training.runs import command, differing, final_state, train

KILLED = """
import os, signal, sys
from polopt.policies import causal_lm
from polopt.core import files
from polopt.optim import optimizer
owner, name, count = {"generation": (causal_lm.CausalLMPolicy, "_draw", 24), "backward": (optimizer, "backward", 4),
                      "saving": (files, "rename", 9)}[sys.argv.pop(1)]
original, calls = getattr(owner, name), []
def dies(*args, **kwargs):
    calls.append(1)
    if len(calls) == count:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*args, **kwargs)
setattr(owner, name, dies)
from polopt.cli import run
run()
"""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that nothing stopped."""
    return train("rec", tmp_path_factory.mktemp("whole") / "run")


@pytest.mark.usefixtures("unreported")
@pytest.mark.parametrize("moment", ["generation", "backward", "saving"])
def test_killed_in_the_middle_of_something_it_goes_on_exactly(moment, whole, tmp_path):
    folder = tmp_path / "killed"
    assert Forked(KILLED, [moment, *command("rec", folder)]).wait() == -9
    assert Run(folder).rows[-1]["completions"] < 48
    assert main(["resume", str(folder)]) == 0
    assert differing(final_state(folder), final_state(whole.folder)) == []
    assert [row["completions"] for row in Run(folder).rows] == [row["completions"] for row in whole.rows]


def test_what_is_saved_loads_with_transformers(tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run = train("rec", tmp_path / "run")
    policy: Any = polopt.load(run.folder)
    model = AutoModelForCausalLM.from_pretrained(run.folder / "model")
    ids = AutoTokenizer.from_pretrained(run.folder / "model")("bc:", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        assert torch.equal(model(ids).logits, policy.model(ids).logits)
    assert isinstance(policy.predict("bc:"), str)
    # A run, and the folder inside it, are models to start from.
    for start in (run.folder, run.folder / "model"):
        again = train("sft", tmp_path / f"from-{start.name}", model=str(start), steps=2)
        assert again.rows[-1]["updates"] == 2


def own_model(tmp_path: Path, seed: int = 0) -> Path:
    return make_language_model(tmp_path / "first", "tiny", seed=seed)


@pytest.mark.parametrize(
    ("name", "options"), [("rec", {}), ("dpo", {"policy.lora": "lo-ra"}), ("sft", {"policy.dtype": "bfloat16"})]
)
def test_a_run_needs_its_first_model_only_to_begin(name, options, tmp_path, monkeypatch):
    options = {"model": str(own_model(tmp_path)), **options}
    whole = train(name, tmp_path / "whole", **options)
    run = train(name, tmp_path / "run", **options)
    before: Any = polopt.load(run.folder)
    scores = polopt.evaluate(run.folder, episodes=3)
    # Killed before it ended: no weights in model/, only what the run kept from its beginning on.
    (run.folder / "model" / "model.safetensors").unlink()
    step = run.checkpoints.steps()[0]
    for other in ("gone", "another"):
        shutil.rmtree(tmp_path / "first", ignore_errors=True)
        if other == "another":  # of another shape, under the same name
            make_language_model(tmp_path / "first", "0.5m")
        policy: Any = polopt.load(run.folder)
        assert differing(dict(policy.state_dict()), dict(before.state_dict())) == []
        assert policy.predict("bc:") == before.predict("bc:")
        before.reset()
        assert polopt.evaluate(run.folder, episodes=3) == scores
        polopt.resume(run.folder, checkpoint=step)
        assert differing(final_state(run.folder), final_state(whole.folder)) == []
        assert Run(run.folder).config["config"]["model"] == str(tmp_path / "first")
        step = Run(run.folder).checkpoints.steps()[0]
    # What it exports needs nothing else either, adapters or not.
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(run.folder / "model", dtype=policy.model.dtype)
    ids = AutoTokenizer.from_pretrained(run.folder / "model")("bc:", return_tensors="pt")["input_ids"]
    last: Any = polopt.load(run.folder)
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, last.model(ids).logits)


def test_adapters_load_with_peft(tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    first = own_model(tmp_path)
    run = train("sft", tmp_path / "run", model=str(first), lr=1e-2, **{"policy.lora": "lo-ra"})
    policy: Any = polopt.load(run.folder)
    base = AutoModelForCausalLM.from_pretrained(first)
    ids = AutoTokenizer.from_pretrained(first)("12+3=", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        before = base(ids).logits
        found = PeftModel.from_pretrained(base, run.folder / "model" / "adapter")(ids).logits
        merged = AutoModelForCausalLM.from_pretrained(run.folder / "model")(ids).logits
        torch.testing.assert_close(found, policy.model(ids).logits)
        torch.testing.assert_close(merged, found, rtol=1e-3, atol=1e-4)
    assert (found - before).abs().max() > 1e-3  # they say something
    assert not (train("sft", tmp_path / "whole", model=str(first), steps=2).folder / "model" / "adapter").exists()


def test_a_run_that_has_not_ended_is_no_model(tmp_path):
    run = train("sft", tmp_path / "run", model=str(own_model(tmp_path)))
    assert {"config.json", "tokenizer.json", "generation_config.json"} <= set(os.listdir(run.folder / "model"))
    (run.folder / "model" / "model.safetensors").unlink()
    for name in (run.folder, run.folder / "model"):
        with pytest.raises(UsageError, match=r"run .*run has not ended, so it has no trained model yet: polopt resume"):
            train("sft", tmp_path / "other", model=str(name))
    shutil.rmtree(run.folder / "model")  # as runs of earlier versions: the model that it names is read
    assert isinstance(polopt.load(run.folder), CausalLMPolicy)
    shutil.rmtree(tmp_path / "first")
    with pytest.raises(UsageError, match="there is no model folder"):
        polopt.load(run.folder)
    (run.folder / "model").mkdir()
    (run.folder / "model" / "config.json").write_text("{")
    with pytest.raises(UsageError, match=r"model '.*run/model' has a damaged config.json"):
        polopt.load(run.folder)


def test_what_a_run_keeps_is_there_from_its_beginning(tmp_path):
    rows = polopt.iterate("sft", "addition", out=tmp_path / "run", model="tiny", steps=8, loggers=())
    next(rows)
    kept = set(os.listdir(tmp_path / "run" / "model"))
    rows.close()
    assert {"config.json", "tokenizer.json"} <= kept
    assert "model.safetensors" not in kept


def test_every_verb_shows_completions(tmp_path, capsys):
    run = train("rec", tmp_path / "run", eval_episodes=5)
    assert main(["eval", str(run.folder), "--episodes", "3"]) == 0
    assert "accuracy" in capsys.readouterr().out
    kept = json.loads((run.folder / "samples.json").read_text())
    assert (kept["shown"][0]["step"], kept["shown"][-1]["step"]) == (0, 48)
    shown, later = kept["shown"][0]["samples"], kept["shown"][-1]["samples"]
    assert [sample["prompt"] for sample in shown] == [sample["prompt"] for sample in later]
    assert len(shown) == 5
    assert main(["report", str(run.folder)]) == 0
    page = (run.folder / "report.html").read_text()
    assert "Completions" in page
    assert shown[0]["prompt"] in page


def refuses(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    raise ValueError("no reward today")


def sometimes(prompt: str, completion: str, **columns: Any) -> float:
    if prompt[0] in "bcdfghjk":
        raise ValueError("not this one")
    return float(len(completion))


def constant(prompt: str, completion: str, **columns: Any) -> float:
    return 1.0


def rewarded(name: str) -> dict[str, Any]:
    return {"pool": 10, "score_truncated": True, "rewards": f"{__name__}:{name}"}


def learn(folder: Path, **changes: Any) -> Run:
    settings = {"model": "tiny", "steps": 24, "batch_prompts": 4, "samples_per_prompt": 2, "policy.max_tokens": 4}
    settings |= {"eval_episodes": 4, "checkpoint_every": 8, "loggers": (), "lr": 1e-2}
    return polopt.train("rec", "vowels", out=folder, **settings | changes)


def test_a_reward_that_fails_sometimes_costs_those_samples(tmp_path):
    with pytest.warns(Notice, match="the reward function .*sometimes' raised ValueError: not this one"):
        run = learn(tmp_path / "run", task_options=rewarded("sometimes"))
    failed = [row["failed"] for row in run.rows if "failed" in row]
    assert 0 < max(failed) <= 1
    assert min(failed) < 1


def test_a_reward_that_always_fails_ends_the_run_and_loses_nothing(tmp_path, capsys, monkeypatch):
    with pytest.raises(RunError, match=r"no reward of the \d+ completions .* could be computed: .*no reward today"):
        learn(tmp_path / "run", task_options=rewarded("refuses"))
    words = ["train", "rec", "--task", "vowels", "--model", "tiny", "--out", str(tmp_path / "other")]
    assert main([*words, "--task.rewards", f"{__name__}:refuses", "--task.score-truncated", "true"]) == 1
    assert capsys.readouterr().err.strip().splitlines()[-1].startswith("polopt: no reward of the ")

    # It worked until now: what was saved before stays, and the run goes on once the reward works again.
    folder = tmp_path / "later"
    calls = []

    def fails_later(prompt: str, completion: str, **columns: Any) -> float:
        calls.append(1)
        if 20 < len(calls) < 100:
            raise ValueError("the judge is asleep")
        return float(len(completion))

    monkeypatch.setattr(sys.modules[__name__], "constant", fails_later)
    with pytest.raises(RunError, match="the judge is asleep"), pytest.warns(Notice, match="the judge is asleep"):
        learn(folder, task_options=rewarded("constant"))
    assert Run(folder).checkpoints.steps()
    calls += [1] * 100
    polopt.resume(folder, rewards=f"{__name__}:constant")
    assert Run(folder).rows[-1]["completions"] == 24


class Judge:
    def __call__(self, prompt: str, completion: str) -> float:
        return 3.0


@pytest.mark.filterwarnings("ignore:.* raised ValueError. not this one")
@pytest.mark.parametrize(
    ("rewards", "names", "again"),
    [
        (constant, f"{__name__}:constant", f"--rewards {__name__}:constant"),
        ([constant, sometimes], [f"{__name__}:constant", f"{__name__}:sometimes"], f"--rewards {__name__}:constant,"),
        (lambda prompt, completion: 1.0, "<<lambda>>", "rewards="),
        ((constant, Judge()), [f"{__name__}:constant", "<Judge>"], "rewards="),
    ],
)
def test_rewards_may_be_functions(rewards, names, again, tmp_path):
    folder = learn(tmp_path / "run", task_options=rewarded("constant") | {"rewards": rewards}, steps=8).folder
    assert Run(folder).config["task_options"]["rewards"] == names
    with pytest.raises(UsageError, match=f"say them again with {re.escape(again)}"):
        polopt.resume(folder, extend=16)
    polopt.resume(folder, extend=16, rewards=rewards)
    whole = learn(tmp_path / "whole", task_options=rewarded("constant") | {"rewards": rewards}, steps=16)
    assert Run(folder).rows[-1]["completions"] == whole.rows[-1]["completions"] == 16
    assert Run(folder).config["task_options"] == whole.config["task_options"]


def test_a_comparison_goes_on_with_its_own_rewards(tmp_path):
    settings = {"model": "tiny", "steps": 8, "batch_prompts": 4, "samples_per_prompt": 2, "policy.max_tokens": 4}
    settings |= {"eval_episodes": 2, "loggers": ()}
    for _ in range(2):  # the second time it resumes, and finds everything done
        options = rewarded("constant") | {"rewards": [constant]}
        made = polopt.compare(["rec"], "vowels", seeds=1, out=tmp_path, task_options=options, **settings)
    assert made.runs[0].rows[-1]["completions"] == 8


def test_equal_rewards_teach_nothing(tmp_path):
    run = learn(tmp_path / "run", task_options=rewarded("constant"))
    assert all(row["informative"] == 0 for row in run.rows if "informative" in row)
    start = learn(tmp_path / "start", task_options=rewarded("constant"), steps=8)
    before, after = (polopt.load(folder, rewards=constant) for folder in (start.folder, run.folder))
    assert all(torch.equal(one, other) for one, other in zip(before.parameters(), after.parameters()))


def test_empty_completions_do_not_stop_a_run(tmp_path, monkeypatch):
    original = CausalLMPolicy._draw

    def ends_at_once(self: Any, logits: Any, uniform: Any) -> Any:
        token, log_prob = original(self, logits, uniform)
        return torch.full_like(token, self.tokens.ends[0]), log_prob

    monkeypatch.setattr(CausalLMPolicy, "_draw", ends_at_once)
    run = learn(tmp_path / "run", restraint="k2")
    assert run.final["eval/length"] == 1
    assert run.final["eval/accuracy"] == 0


def test_the_model_may_be_named_as_part_of_the_policy(tmp_path):
    for flag in ("--model", "--policy.model"):
        words = command("rec", tmp_path / flag, steps=16)
        words[words.index("--model")] = flag
        assert main(words) == 0
    assert differing(final_state(tmp_path / "--model"), final_state(tmp_path / "--policy.model")) == []


def wrong(*words: str, task: str = "vowels", method: str = "rec") -> list[str]:
    return ["train", method, "--task", task, "--steps", "16", *words]


def test_what_cannot_be_trained_is_one_sentence(tmp_path, capsys):
    pickled = make_language_model(tmp_path / "pickled", "tiny")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    coded = make_language_model(tmp_path / "coded", "tiny")
    config = json.loads((coded / "config.json").read_text())
    (coded / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModelForCausalLM": "modeling.Mine"}}))
    short = make_language_model(tmp_path / "short", "tiny", context=8)
    long = tmp_path / "long.jsonl"
    long.write_text(json.dumps({"prompt": "a" * 300, "answer": "b"}) + "\n")
    cases = [
        (wrong(), "rec needs --model"),
        (wrong("--model", str(tmp_path / "nowhere")), "there is no model folder"),
        (wrong("--model", str(pickled)), "pickle"),
        (wrong("--model", str(coded)), "its own Python code"),
        (wrong("--model", "tiny", task=str(long)), "has 301 tokens and the context"),
        (wrong("--model", str(short), task="addition", method="sft"), "holds 8"),
        (wrong("--model", "tiny", task="CartPole-v1"), "a language model needs a text task"),
        (wrong("--model", "tiny", "--policy.model", "1m"), "are two models: give one"),
        (wrong("--model", "tiny", "--policy.temperature", "0"), "--policy.temperature must be above 0"),
        (wrong("--model", "tiny", "--surrogate", "gpso"), "did you mean 'gspo'?"),
        (wrong("--model", "tiny", "--task.levls", "3"), "did you mean 'levels'?"),
        (wrong("--model", "tiny", task="adition"), "did you mean 'addition'?"),
        (wrong("--model", "tiny", method="single-stream-po"), "it needs finitely many"),
        (wrong("--model", "tiny", "--task.rewards", "nowhere:f"), "nowhere"),
    ]
    for words, said in cases:
        code = main([*words, "--out", str(tmp_path / "run")])
        err = capsys.readouterr().err.strip().splitlines()
        assert code == 2, (words, err)
        assert said in err[-1], err
        assert err[-1].startswith("polopt: ")
        if "sft" in words:  # its demonstrations are drawn while it trains
            shutil.rmtree(tmp_path / "run")
        assert not (tmp_path / "run").exists(), words
    for method in ("sac", "ppo", "bc"):
        assert main(["train", method, "--task", "addition", "--out", str(tmp_path / "run")]) == 2
        assert "addition" in capsys.readouterr().err
