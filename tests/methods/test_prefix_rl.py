"""PrefixRL: which beginnings are shown, who shares a baseline, what is learned, and that prompts alone differ."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoTokenizer

from polopt.core.errors import UsageError
from polopt.data.curricula import Mixture
from polopt.tasks import make_task
from polopt.training.api import plan
from tests.guards.harness import parameters
from tests.methods.test_conversations import folder
from tests.policies.language_models import tiny_folder

MUST = 4
LENGTH, POOL, PROMPTS, SAMPLES = 20, 8, 8, 4


def begun(prompts, **columns):
    """A reward that tells the prompts apart: 1 for every second completion where something is shown, else always 0."""
    return [float(len(prompt) > 3 and place % 2) for place, prompt in enumerate(prompts)]


def method(name="prefix-rl", **settings):
    """A method for eight orbits of twenty letters, on a tiny model."""
    given = settings.pop("task_options", {})
    defaults = {"model": str(tiny_folder()), "batch_prompts": PROMPTS, "samples_per_prompt": SAMPLES, "lr": 1e-2}
    options = {"levels": LENGTH, "pool": POOL, "heldout": False, "score_truncated": True, "rewards": begun} | given
    settings = {**defaults, "policy.max_tokens": 4, **settings}
    return plan(name, "orbit", task_options=options, loggers=(), **settings).build()


def shown_in(learner, rows):
    """The letters that the prompts of these rows show, one text a row."""
    return [text[3:] for text in learner.policy.decode(rows["prompt"], rows["prompt_mask"])]


def test_must_1_a_beginning_has_no_loss_and_a_baseline_of_its_own(float64):
    """loss = - sum of (r - mean) over what was written / (rows * 4), whatever was shown."""
    learner = method(max_grad_norm=None)
    batch = learner.evaluate_groups(learner.collect())
    reward = batch["reward"].reshape(PROMPTS, SAMPLES)
    torch.testing.assert_close(batch["advantage"].reshape(PROMPTS, SAMPLES), reward - reward.mean(1, keepdim=True))
    assert len(set(batch["index"].reshape(PROMPTS, SAMPLES)[:, 0].tolist())) == PROMPTS
    assert (batch["index"].reshape(PROMPTS, SAMPLES) == batch["index"][::SAMPLES, None]).all()

    (part,) = learner.optimizer_batches(batch)
    weights = list(learner.policy.parameters())
    found = torch.autograd.grad(learner.policy_loss(part)[0], weights)
    score = (batch["mask"] * batch["advantage"][:, None] * learner.policy.log_prob(batch)).sum() / (len(batch) * 4)
    expected = torch.autograd.grad(-score, weights)  # the ratio is 1
    assert any(gradient.abs().max() > 0 for gradient in expected)
    for one, other in zip(found, expected):
        torch.testing.assert_close(one, other)
    assert batch["completion"].shape[1] <= 4 < max(map(len, shown_in(learner, batch)))


def test_must_2_there_are_several_cuts_of_a_solution_between_two_and_four_fifths():
    learner = method(cuts=5)
    task = learner.asked
    problems = task.problems(range(POOL * 6))
    lengths = torch.tensor([len(problem.given) for problem in problems]).reshape(POOL, 6)
    assert (lengths[:, 0] == 0).all()
    assert (int(lengths[:, 1:].min()), int(lengths[:, 1:].max())) == (8, 15)  # of floor(20 u), u in [0.4, 0.8)
    assert min(len(set(row)) for row in lengths[:, 1:].tolist()) >= 3
    again = method(cuts=5).asked.problems(range(POOL * 6))
    assert [problem.prompt for problem in again] == [problem.prompt for problem in problems]  # drawn once
    for place, problem in enumerate(problems):
        whole = problems[place - place % 6]
        assert problem.prompt == whole.prompt + problem.given
        assert whole.solution == problem.given + problem.solution


def test_must_3_plain_problems_are_in_every_batch_and_alone_in_evaluations():
    learner = method()
    texts = [shown_in(learner, learner.collect())[::SAMPLES] for _ in range(8)]
    assert [sum(bool(text) for text in each) for each in texts] == [6] * 8
    task = make_task("orbit", seed=1, evaluation=True, levels=LENGTH, heldout=False)
    learner.evaluate(task, 4)
    assert all(len(sample["prompt"]) == 3 for sample in learner.samples)


def test_must_4_only_what_is_written_is_counted_of_either_kind():
    learner = method()
    batch = learner.collect()
    assert (learner.ledger.tokens, learner.ledger.completions) == (int(batch["mask"].sum()), PROMPTS * SAMPLES)


def test_every_beginning_and_every_problem_comes_once_an_epoch():
    learner = method()
    ids = [
        learner.source.sampler.draw(PROMPTS) for _ in range(8)
    ]  # 48 beginnings are two epochs of 24, 16 problems too
    counts = torch.bincount(torch.tensor(ids).flatten(), minlength=POOL * 4).reshape(POOL, 4)
    assert (counts == 2).all()
    first = torch.bincount(torch.tensor(ids[:4]).flatten(), minlength=POOL * 4).reshape(POOL, 4)
    assert (first == 1).all()


def test_without_an_end_of_problems_there_is_a_beginning_of_each():
    learner = method(task_options={"pool": None})
    assert sorted(learner.source.sampler.draw(8)) == [0, 1, 2, 3, 4, 5, 6, 7]
    assert sorted(learner.source.sampler.draw(8)) == [8, 9, 10, 11, 12, 13, 14, 15]


@pytest.mark.parametrize(("share", "expected"), [(0.5, 4), (0.13, 1), (1.0, 8)])
def test_the_share_is_that_of_prompts_with_a_beginning(share, expected):
    learner = method(share=share)
    batch = learner.collect()
    assert sum(bool(text) for text in shown_in(learner, batch)[::SAMPLES]) == expected
    found = learner.update(batch)
    assert ("unprefixed" in found, "prefixed" in found) == (expected < 8, True)


def test_accuracies_are_of_the_one_kind_and_of_the_other():
    learner = method(task_options={"rewards": None})
    batch = learner.collect()
    shown = torch.tensor([bool(text) for text in shown_in(learner, batch)])
    batch["correct"] = torch.zeros_like(shown)
    batch["correct"][shown.nonzero()[:6].flatten()] = True
    batch["correct"][(~shown).nonzero()[:3].flatten()] = True
    found = learner.batch_metrics(batch)
    assert (float(found["prefixed"]), float(found["unprefixed"])) == (6 / 24, 3 / 8)
    batch["failed"][shown.nonzero()[6:10].flatten()] = True  # of four nobody knows
    found = learner.batch_metrics(batch)
    assert (float(found["prefixed"]), float(found["unprefixed"])) == pytest.approx((6 / 20, 3 / 8))


def trained(name, **settings):
    """The weights after two batches that a method collects for itself."""
    learner = method(name, task_options={"rewards": odd}, **settings)
    for _ in range(2):
        learner.update(learner.collect())
    return {path: value.clone() for path, value in parameters(learner).items()}


def odd(completions, **columns):
    return [float(len(set(text)) % 2) for text in completions]


def test_without_beginnings_it_is_dr_grpo():
    same = trained("prefix-rl", share=0.0)
    base = trained("grpo", preset="dr-grpo")
    other = trained("prefix-rl")
    assert all(torch.equal(value, base[name]) for name, value in same.items())
    assert not all(torch.equal(value, base[name]) for name, value in other.items())


def chats(tmp_path, model, solution="it is 3, yes", **settings):
    """A method for one question in messages, of which one half of the solution is shown."""
    path = tmp_path / "chats.jsonl"
    ask = [{"role": "user", "content": "what is 1+2?"}]
    path.write_text(json.dumps({"messages": ask, "answer": solution, "solution": solution}))
    settings = {"batch_prompts": 2, "samples_per_prompt": 2, "low": 0.5, "high": 0.5, "share": 0.5} | settings
    options = {"score_truncated": True}
    return plan(
        "prefix-rl", str(path), model=model, task_options=options, **{"policy.max_tokens": 8} | settings
    ).build()


@pytest.mark.parametrize("template", ["chatml", "llama3", "gemma", "mistral", "qwen-thinking"])
def test_a_beginning_stands_at_the_start_of_the_assistants_turn(template, tmp_path):
    """It is in the text of the conversation where an answer is, and what is judged is the whole answer."""
    learner = chats(tmp_path, folder("bytes", template))
    task, tokens = learner.asked, learner.policy.tokens
    whole, part = task.problems([0, 1])
    assert (part.given, part.solution) == ("it is ", "3, yes")
    shown = tokens.template.prompt(part.prompt)
    assert shown.endswith("it is ")
    assert not shown.rstrip().endswith(tokens.template.end)
    prompt, rest = tokens.complete([part.prompt], [part.solution])
    answered = tokens.complete([whole.prompt], [whole.solution])
    texts = [tokens.texts([one[0] + other[0]], special=True)[0] for one, other in ((prompt, rest), answered)]
    assert texts[0].endswith(texts[1].rpartition("it is ")[2])
    task.num = 1
    task.reset(index=torch.tensor([1]))
    assert task.step({"action": learner.policy.env_action(torch.tensor(rest))})[1].tolist() == [1.0]


def test_a_template_that_forbids_it_is_told_before_training(tmp_path):
    model = tmp_path / "model"
    tokenizer = AutoTokenizer.from_pretrained(folder("bytes", "chatml"))
    base = tokenizer.chat_template
    forbids = "{% if messages[-1]['role'] == 'assistant' %}{{ raise_exception('the user speaks last') }}{% endif %}"
    tokenizer.chat_template = forbids + base
    with_template(model, tokenizer)
    with pytest.raises(UsageError, match=r"the chat template of '.*' refuses these messages: the user speaks last"):
        chats(tmp_path, str(model))
    tokenizer.chat_template = base.replace("m['content']", "m['content'] | upper")  # it does not write what was said
    with_template(model, tokenizer)
    with pytest.raises(UsageError, match="does not let a prompt end in the assistant's words"):
        chats(tmp_path, str(model))


def with_template(place, tokenizer):
    """The model of that folder with another template."""
    import shutil

    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(folder("bytes", "chatml"), place)
    tokenizer.save_pretrained(place)


def test_beginnings_that_do_not_fit_are_refused_before_training():
    with pytest.raises(UsageError, match=r"and the context of .* holds 64: leave out long rows or take a model"):
        method(task_options={"levels": 100, "rewards": None})
    learner = method(task_options={"levels": 100, "pool": None, "rewards": None})  # nobody knows all its problems
    with pytest.raises(UsageError, match=r"tokens and the context of .* holds 64: shorten the prompts"):
        learner.collect()


def test_a_solution_of_one_letter_shows_nothing():
    learner = method(task_options={"levels": 1})
    assert not any(shown_in(learner, learner.collect()))


def test_the_papers_setting():
    own = {"preset": "paper", "model": "tiny", "policy.max_tokens": 4, "batch_prompts": 4}
    learner = plan("prefix-rl", "orbit", task_options={"pool": 2}, loggers=(), **own).build()
    config = learner.config
    assert (config.samples_per_prompt, config.share, config.cuts, config.low, config.high) == (8, 0.75, 3, 0.4, 0.8)
    assert (config.lr, config.baseline.std, config.aggregate, config.reference_kl) == (1e-6, "none", "constant", None)
    assert isinstance(learner.source.sampler, Mixture)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"low": 0.9}, "low must be at most high, and 0.9 is above 0.8"),
        ({"share": 0.0, "cuts": 2}, "cuts has no effect on the share 0"),
        ({"share": 0.1}, "a share of 0.1 of 8 prompts is less than one prompt"),
        (
            {"task_options": {"shown": (0.2, 0.8)}},
            r"shows beginnings of its solutions already: leave out --task\.shown",
        ),
    ],
)
def test_what_is_refused(settings, message):
    with pytest.raises(UsageError, match=message):
        method(**settings)


def test_problems_without_a_solution_are_refused(tmp_path):
    path = tmp_path / "some.jsonl"
    path.write_text(json.dumps({"prompt": "a", "answer": "b"}))
    with pytest.raises(UsageError, match="a problem without a worked solution has none to show the beginning of"):
        plan("prefix-rl", str(path), model="tiny").build()
    assert plan("prefix-rl", str(path), model="tiny", share=0.0).build().asked.size == 1
