"""Tokenizers times chat templates: what reaches a loss, what is sampled and scored, and what `predict` gives are what
the template says.

Every cell trains nothing. Of SFT, RPO (and with it DPO) and GRPO one update is made up to the loss, whose derivative by
the log-probability of each token says with which weight that token is learned; what is sampled is written in advance.
"""

from __future__ import annotations

import functools
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from polopt.data.tokenizing import Tokens
from polopt.training.api import plan
from tests.data.conversations import BOS, EOS, KINDS, TEMPLATES, ids, made, rendered, written

ASK, SO, MORE = (
    {"role": role, "content": text}
    for role, text in (("user", "what is 1+2?"), ("assistant", "it is 3"), ("user", "and (2+2), then?"))
)
CHATS = ([ASK], [ASK, SO, MORE], [ASK, {"role": "assistant", "content": "the answer:"}])
ANSWERS = ("(4), yes", "no.")
PLAIN = ("1+2=", "a b", f"{BOS}the sum")
CELLS = [(kind, template) for kind in KINDS for template in TEMPLATES if template != "house" or kind == "characters"]


@dataclass
class Row:
    """A prompt, and for both answers the tokens of the whole, of which so many are the prompt's."""

    prompt: Any
    answers: tuple[str, str]
    whole: list[list[int]]
    length: int


def of_messages(tokenizer: Any, template: str) -> list[Row]:
    rows = []
    for chat in CHATS:
        begun = chat[-1]["role"] == "assistant"
        options = {"continue_final_message": True} if begun else {"add_generation_prompt": True}
        length = len(ids(tokenizer, rendered(tokenizer, chat, **options)))
        answers = tuple(" " * begun + answer for answer in ANSWERS)
        wholes = [
            [*chat[:-1], chat[-1] | {"content": chat[-1]["content"] + answer}]
            if begun
            else [*chat, {"role": "assistant", "content": answer}]
            for answer in answers
        ]
        rows.append(Row(chat, answers, [written(tokenizer, w, TEMPLATES[template][1]) for w in wholes], length))
    return rows


def of_texts(tokenizer: Any) -> list[Row]:
    rows, bos, eos = [], tokenizer.bos_token_id, tokenizer.eos_token_id
    for prompt in PLAIN:
        answers = (" c, yes", "!")
        start = [] if prompt.startswith(BOS) else [bos]
        wholes = [[*start, *ids(tokenizer, prompt + answer), eos] for answer in answers]
        rows.append(Row(prompt, answers, wholes, len(start) + len(ids(tokenizer, prompt))))
    return rows


@functools.cache
def place() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="polopt-conversations-")


@functools.cache
def folder(kind: str, template: str) -> str:
    tokenizer = made(kind, template)
    size = {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 512,
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 8,
    }
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    path = Path(place().name) / f"{kind}-{template}"
    LlamaForCausalLM(LlamaConfig(**size, **ends)).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


def built(name: str, model: str, file: Path, rows: list[Row], **settings: Any) -> Any:
    lines = []
    for row in rows:
        good, bad = row.answers
        lines.append({"prompt": row.prompt, "solution": good, "chosen": good, "rejected": bad, "baseline": bad})
    file.write_text("\n".join(map(json.dumps, lines)))
    options = settings.pop("task_options", {})
    return plan(name, str(file), model=model, task_options=options, **{"policy.max_tokens": 40} | settings).build()


def reaching(method: Any, batch: Any) -> list[tuple[list[int], list[float]]]:
    """The tokens of every row whose log-probabilities a loss takes, and the derivative of the loss by each of them."""
    seen: list[Any] = []
    scores = method.policy.log_prob

    def log_prob(rows: Any, noise: Any = None) -> Any:
        value = scores(rows).detach().requires_grad_()
        seen.append((rows, value))
        return value

    def minimize(loss: Any, part: Any) -> dict[str, Any]:
        loss(part)[0].backward()
        return {}

    method.policy.log_prob, method.optimizer.minimize = log_prob, minimize
    method.update(batch)
    found = []
    for rows, value in seen:
        for i in range(len(value)):
            prompt, completion = rows["prompt"][i], rows["completion"][i]
            there, behind = rows["prompt_mask"][i], rows["attention"][i].bool()
            learned = rows["mask"][i].bool()
            assert (value[i][~learned] == 0).all()  # a number, whatever the model: nothing is learned there
            tokens = [*prompt[there].tolist(), *completion[behind].tolist()]
            found.append((tokens, [0.0] * int(there.sum()) + (value.grad[i] * learned)[behind].tolist()))
    return found


def expected(rows: list[Row], weights: list[tuple[Any, ...]]) -> list[tuple[list[int], list[float]]]:
    """Every row's answers with a weight for each token of them, where the weight is not None."""
    return [
        (whole, [0.0] * row.length + [weight] * (len(whole) - row.length))
        for row, each in zip(rows, weights)
        for whole, weight in zip(row.whole, each)
        if weight is not None
    ]


def same(found: Any, wanted: Any) -> None:
    order = sorted(found), sorted(wanted)
    assert [tokens for tokens, _ in order[0]] == [tokens for tokens, _ in order[1]]
    for (_, one), (_, other) in zip(*order):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-7)


def imitates(model: str, file: Path, rows: list[Row]) -> None:
    method = built("sft", model, file, rows, batch_size=len(rows))
    learned = sum(len(row.whole[0]) - row.length for row in rows)
    same(reaching(method, method.collect()), expected(rows, [(-1 / learned, None)] * len(rows)))


def prefers(model: str, file: Path, rows: list[Row]) -> None:
    settings = {"beta": 0.5, "imitation.eta": 1.0, "batch_size": len(rows)}
    method = built("rpo", model, file, rows, **settings)
    pull = 0.5 * 0.5 / len(rows)  # beta sigmoid(0): policy and reference are equal
    found = reaching(method, method.collect())
    pairs = expected(rows, [(-pull, pull)] * len(rows))
    anchors = expected(rows, [(None, -0.5 / len(rows))] * len(rows))  # -eta beta of the baseline's answers
    same(found, pairs + anchors)


def scripted(policy: Any, rows: list[Row]) -> list[list[int]]:
    """Makes the policy write what the rows say, the good and the bad answer by turns; the prompts that it saw."""
    known = {tuple(row.whole[0][: row.length]): [whole[row.length :] for whole in row.whole] for row in rows}
    generate, seen = policy.generate, []

    def writes(tokens: Any, attention: Any, limit: Any, greedy: bool = False) -> Any:
        prompts = [row[real].tolist() for row, real in zip(tokens, attention)]
        seen.extend(prompts)
        said = [known[tuple(prompt)][i % 2] for i, prompt in enumerate(prompts)]
        step = iter(range(1000))

        def draw(logits: Any, uniform: Any) -> Any:
            t = next(step)
            assert len(logits) == len(said)
            token = torch.tensor([words[min(t, len(words) - 1)] for words in said])
            return token, logits.log_softmax(-1).gather(1, token[:, None])[:, 0]

        policy._draw, policy.compaction = draw, 0.0  # no row leaves before the last one ends
        return generate(tokens, attention, limit, greedy)

    policy.generate = writes
    return seen


def reinforces(model: str, file: Path, rows: list[Row]) -> None:
    scored = []

    def first(prompt: Any, completion: Any) -> float:
        text = completion if isinstance(completion, str) else completion[-1]["content"]
        scored.append(text)
        return float(text == known[json.dumps(prompt)][0])

    known = {json.dumps(row.prompt): row.answers for row in rows}
    count = len(rows)
    settings = {"batch_prompts": count, "samples_per_prompt": 2, "reference_kl": None, "baseline": "group-baseline"}
    method = built("grpo", model, file, rows, task_options={"rewards": first, "heldout": False}, **settings)
    scripted(method.policy, rows)
    batch = method.collect()
    assert sorted(scored) == sorted(answer for row in rows for answer in row.answers)
    assert batch["reward"].tolist() == [1.0, 0.0] * count
    assert not batch["truncated"].any()
    shares = [[0.5 / (2 * count) / (len(whole) - row.length) for whole in row.whole] for row in rows]
    same(reaching(method, batch), expected(rows, [(-good, bad) for good, bad in shares]))


def predicts(model: str, file: Path, rows: list[Row]) -> None:
    policy = built("sft", model, file, rows).policy
    seen = scripted(policy, rows)
    for row in rows:
        policy.reset()
        assert policy.predict(row.prompt) == row.answers[0]
        assert seen[-1] == row.whole[0][: row.length]


CHECKS = (imitates, prefers, reinforces, predicts)


@pytest.mark.parametrize(("kind", "template"), CELLS)
def test_messages(kind, template, tmp_path):
    rows = of_messages(made(kind, template), template)
    assert all(whole[: row.length] == row.whole[0][: row.length] for row in rows for whole in row.whole)
    for check in CHECKS:
        check(folder(kind, template), tmp_path / "rows.jsonl", rows)


@pytest.mark.parametrize(("kind", "template"), CELLS)
def test_a_saved_tokenizer_says_the_same(kind, template, tmp_path):
    first = Tokens(made(kind, template), "'m'")
    first.tokenizer.save_pretrained(tmp_path)
    again = Tokens(AutoTokenizer.from_pretrained(tmp_path), "'m'")
    assert again.ends == first.ends
    for rows in (of_messages(first.tokenizer, template), of_texts(first.tokenizer)):
        prompts, answers = [row.prompt for row in rows], [row.answers[0] for row in rows]
        assert again.complete(prompts, answers) == first.complete(prompts, answers)
        assert again.encode(prompts, first.ends[:1] * len(rows)) == first.encode(prompts, first.ends[:1] * len(rows))


@pytest.mark.parametrize("kind", KINDS)
def test_texts(kind, tmp_path):
    rows = of_texts(made(kind))
    assert all(row.whole[0][-1] == made(kind).convert_tokens_to_ids(EOS) for row in rows)
    for check in CHECKS:
        check(folder(kind, "chatml"), tmp_path / "rows.jsonl", rows)
