"""Models that reward texts: grades that are read in answers, scores, and what neither can score."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import polopt
from polopt.core.errors import UsageError
from polopt.core.random import paired
from polopt.policies.judge import Judge, Scorer, as_text, model_reward
from polopt.policies.small_lm import SIZES, character_tokenizer, make_language_model
from polopt.tasks import make_task
from polopt.tasks.rewards import Unscored, make_rewards
from polopt.training.folder import Run

SAYS = {"a": "9", "b": "grade 2/10", "c": "well"}


@pytest.fixture(scope="module")
def grader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of polopt whose model has learned to grade three texts, one of them without a number."""
    folder = tmp_path_factory.mktemp("grader")
    rows = [{"prompt": f"grade {text}:", "solution": answer} for text, answer in SAYS.items()]
    (folder / "p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    settings: dict[str, Any] = {"batch_size": 3, "lr": 1e-2, "loggers": (), "eval_every": 1000, "eval_episodes": 3}
    run = polopt.train(
        "sft",
        str(folder / "p.jsonl"),
        model="tiny",
        steps=80,
        out=folder / "run",
        **settings,
        **{"policy.max_tokens": 12},
    )
    return run.folder


def judge(grader: Path, **options: Any) -> Judge:
    settings = {"template": "grade {completion}:", "chat": False, "max_tokens": 12}
    return Judge(str(grader), **settings | options)


def told(values: Any) -> list[Any]:
    return [value.why if isinstance(value, Unscored) else value for value in values]


def test_what_the_model_answers_is_the_grade_and_text_costs_its_sample_only(grader: Path) -> None:
    says = judge(grader)
    texts = ["c", "a", "b", "a"]
    grades = told(says(prompts=["?"] * 4, completions=texts))
    assert grades == [f"the judge {grader} answered 'well', not a grade from 0 to 10", 0.9, 0.2, 0.9]
    assert told(judge(grader, batch=1)(prompts=["?"] * 4, completions=texts)) == grades
    assert told(judge(grader, low=4, high=14)(prompts=["?"], completions=["a"])) == [0.5]

    rewards = make_rewards(says, None, 1.0)
    assert rewards is not None
    wrong, *rest = told(rewards(["?"] * 4, texts, [{}] * 4))
    assert rest == [0.9, 0.2, 0.9]
    assert wrong.startswith("the reward function 'Judge' gave no number: the judge ")


def test_an_answer_that_was_cut_and_a_text_too_long_cost_their_sample(grader: Path) -> None:
    cut = judge(grader, max_tokens=1)
    assert told(cut(prompts=["?"], completions=["b"])) == [f"the answer of the judge {grader} was cut"]
    long, short = told(judge(grader)(prompts=["?"] * 2, completions=["x" * 300, "a"]))
    assert short == 0.9
    assert long == f"the judge {grader} was to read 307 tokens, and its context holds 256"


@pytest.mark.parametrize(
    ("text", "grade"),
    [
        ("7", 7.0),
        ("Grade: 7.5.", 7.5),
        ("7/10", 7.0),
        ("7 out of 10", 7.0),
        ("8 of 10.", 8.0),
        ("10/10", 10.0),
        ("9.0 / 10.0", 9.0),
        ("On a scale from 0 to 10 I give it a 4", 4.0),
        ("9 of 12 steps are right. Grade: 6", 6.0),
        ("<think>3 or 4? 11/10!</think>\n5", 5.0),
        ("<think>8 of 10</think> well done", None),
        ("-3", -3.0),
        ("grade-7", 7.0),
        ("3/5", None),
        ("9 of 12 steps are right", None),
        ("well done", None),
        ("", None),
    ],
)
def test_the_grade_is_the_last_number(grader: Path, text: str, grade: float | None) -> None:
    says = judge(grader)
    assert says.last_number(text) == grade
    assert isinstance(says.read(text), Unscored) == (grade is None or not 0 <= grade <= 10)


def test_answers_may_be_read_by_a_function(grader: Path) -> None:
    says = judge(grader, parse=lambda text: float("e" in text) if text else None, low=0, high=1)
    assert told(says(prompts=["?"] * 3, completions=["a", "b", "c"])) == [0.0, 1.0, 1.0]
    assert says.read("") == Unscored(f"the judge {grader} answered '', not a grade from 0 to 1")


def test_a_template_is_filled_once_and_asks_for_columns(grader: Path) -> None:
    says = judge(grader, template='{"q": {prompt}, "a": {completion}} [{answer}] {low}-{high} {}')
    filled = says.fill("{completion}?", [{"role": "assistant", "content": "{answer}"}], {"answer": 7})
    assert filled == '{"q": {completion}?, "a": {answer}} [7] 0-10 {}'
    talk = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    assert as_text(talk) == "user: hi\nassistant: ho"

    rewards = make_rewards(says, None, 1.0)
    assert rewards is not None
    with pytest.raises(UsageError, match="the reward function 'Judge' asks for 'answer', not in the task"):
        rewards.check({"solution"})
    rewards.check({"answer", "level"})
    assert says(prompts=["?"], completions=["a"], answer=[None]) == [None]  # it does not apply


def test_messages_go_through_the_chat_template(grader: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    says = judge(grader, chat=None)
    seen = []
    original = says.policy.act
    monkeypatch.setattr(says.policy, "act", lambda obs, **options: seen.append(obs) or original(obs, **options))
    says(prompts=["?"], completions=[[{"role": "assistant", "content": "a"}]])
    assert seen == [[[{"role": "user", "content": "grade a:"}]]]


def test_a_run_is_rewarded_by_a_judge_and_goes_on_with_it(grader: Path, tmp_path: Path) -> None:
    model = make_language_model(tmp_path / "m", "tiny")
    settings: dict[str, Any] = {"model": str(model), "batch_prompts": 2, "samples_per_prompt": 2, "loggers": ()}
    options = {"pool": 4, "score_truncated": True, "rewards": [f"judge:{grader}", "verifier"], "weights": [0, 1]}
    whole, part = (
        polopt.train("rec", "vowels", out=tmp_path / str(steps), steps=steps, eval_episodes=1, task_options=options,
                     log_every=4, **settings, **{"policy.max_tokens": 3})
        for steps in (8, 4)
    )  # fmt: skip
    assert {"reward/judge/share", "reward/judge/failed", "reward/verifier"} <= set(whole.rows[-1])  # it only knows "a"
    polopt.resume(part.folder, extend=8)  # a judge is no code of the user's
    assert Run(part.folder).config["task_options"]["rewards"] == options["rewards"]
    assert [row.get("reward") for row in Run(part.folder).rows][-1] == whole.rows[-1].get("reward")


def test_names_of_models_and_of_modules(grader: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, again = (make_rewards(f"judge:{grader}", None, 1.0) for _ in range(2))
    assert first is not None
    assert again is not None
    assert first.names == ["judge"]
    assert first.functions[0].function is again.functions[0].function  # type: ignore[union-attr]
    with pytest.raises(UsageError, match=r"there is no model folder \./nowhere"):
        make_rewards("judge:./nowhere", None, 1.0)
    (tmp_path / "judge.py").write_text("def mine(completion):\n    return 1.0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    mine = make_rewards("judge:mine", None, 1.0)
    assert mine is not None
    assert mine(["?"], ["a"], [{}]) == [1.0]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"template": "grade it"}, "has no '{completion}'"),
        ({"low": 5, "high": 5}, "from a lower to a higher one"),
        ({"batch": 0}, "at least 1 completion at a time"),
    ],
)
def test_judges_that_cannot_be_made(grader: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        judge(grader, **options)


def make_scorer(folder: Path, labels: int = 1, chat: bool = True, kind: str = "Llama") -> Path:
    import transformers

    tokenizer = character_tokenizer(64)
    tokenizer.chat_template = tokenizer.chat_template if chat else None
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=len(tokenizer), max_position_embeddings=64, pad_token_id=tokenizer.pad_token_id, num_labels=labels,
        **SIZES["tiny"] | {"initializer_range": 0.2},
    )  # fmt: skip
    with paired(3):
        transformers.AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("chat", "kind"), [(True, "Llama"), (False, "Llama"), (False, "Bert")])
def test_a_scorer_says_what_the_model_says_of_each_text_alone(chat: bool, kind: str, tmp_path: Path) -> None:
    import transformers

    folder = make_scorer(tmp_path / "m", chat=chat, kind=kind)
    scorer = Scorer(str(folder))
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    pairs = [("2+2?", "4"), ("is it so?", "yes, it is"), ("a", "")]
    for (prompt, answer), score in zip(pairs, scorer(*map(list, zip(*pairs)))):
        text = f"user: {prompt}\nassistant: {answer}<eos>\n" if chat else prompt + answer
        expected = model(**tokenizer(text, return_tensors="pt", add_special_tokens=False)).logits.item()
        assert score == pytest.approx(expected, abs=1e-5)
    assert len({round(float(score), 6) for score in scorer(*map(list, zip(*pairs)))}) == 3  # type: ignore[arg-type]
    long, short = told(scorer(["a", "a"], ["b" * 80, "b"]))
    assert "was to read" in long
    assert math.isfinite(short)
    turns = [{"role": "user", "content": "2+2?"}], [{"role": "assistant", "content": "4"}]
    assert scorer([turns[0]], [turns[1]]) == pytest.approx(scorer(["2+2?"], ["4"])) or not chat


def test_of_several_labels_one_is_named(tmp_path: Path) -> None:
    folder = str(make_scorer(tmp_path / "m", labels=3))
    by_name, by_number, other = (Scorer(folder, label=label)(["a"], ["b"])[0] for label in ("LABEL_2", 2, 0))
    assert by_name == by_number != other
    total = sum(Scorer(folder, label=label)(["a"], ["b"])[0] for label in range(3))  # type: ignore[misc]
    assert total == pytest.approx(1.0)
    with pytest.raises(UsageError, match="has the labels LABEL_0, LABEL_1, LABEL_2: say which"):
        Scorer(folder)
    with pytest.raises(UsageError, match=r"has no label 'LABEL_9'; did you mean"):
        Scorer(folder, label="LABEL_9")


def test_a_causal_model_is_no_scorer(tmp_path: Path) -> None:
    folder = make_language_model(tmp_path / "m", "tiny")
    with pytest.raises(UsageError, match=r"lack 'score\.weight'"):
        model_reward("scorer", str(folder))


def test_a_scorer_by_name_rewards_a_task(tmp_path: Path) -> None:
    folder = make_scorer(tmp_path / "m")
    task = make_task("addition", 2, pool=2, rewards=f"scorer:{folder}")
    task.reset(index=torch.arange(2))
    _, reward, *_ = task.step({"action": ["1", "??"]})
    prompts = [problem.prompt for problem in task.problems(range(2))]
    assert reward.tolist() == pytest.approx(Scorer(str(folder))(prompts, ["1", "??"]), abs=1e-6)
