"""Prompts and answers as a chat template writes them: their tokens are the template's own, whatever the tokenizer."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import polopt
from polopt.core.errors import UsageError
from polopt.data.templates import ChatTemplate
from polopt.data.tokenizing import Tokens
from tests.data.conversations import BOS, EOS, KINDS, TEMPLATES, ids, made, rendered, written

ASK = [{"role": "user", "content": "what is 1+2?"}]
TEXT = st.text(alphabet="abc 12,.()=+\n", max_size=10)
all_kinds = pytest.mark.parametrize("kind", KINDS)
both = pytest.mark.parametrize(("kind", "template"), [(kind, template) for kind in KINDS for template in TEMPLATES])
# The house's template ends a prompt in a space, which only characters keep apart from the answer.
clean = pytest.mark.parametrize(
    ("kind", "template"), [(k, t) for k in KINDS for t in TEMPLATES if t != "house" or k == "characters"]
)


def say(role, content):
    return {"role": role, "content": content}


@functools.cache
def tokens(kind, template="chatml", **options):
    return Tokens(made(kind, template, **options), "'m'")


def spelled(text, row):
    return text.tokenizer.decode(row, skip_special_tokens=False, clean_up_tokenization_spaces=False)


@clean
def test_prompt_and_answer_are_the_templates_own_tokens(kind, template):
    text, end = tokens(kind, template), TEMPLATES[template][1]
    chats = [ASK, [*ASK, say("assistant", "3"), say("user", "and 2+2?")]]
    for chat in chats:
        for answer in ("4", "the answer (4)", "yes, no."):
            [question], [completion] = text.complete([chat], [answer])
            whole = written(text.tokenizer, [*chat, say("assistant", answer)], end)
            assert question + completion == whole
            assert [question] == text.encode([chat])  # the prompt of training is that of sampling
            assert completion[-1] == text.tokenizer.convert_tokens_to_ids(end)
            assert completion[-1] in text.ends
            assert text.decode(torch.tensor([completion]), chat=True) == [answer]


@settings(max_examples=15)
@given(st.lists(TEXT.filter(str.strip), min_size=1, max_size=3), TEXT, TEXT)
@both
def test_of_any_conversation(kind, template, said, answer, later):
    text, end = tokens(kind, template), TEMPLATES[template][1]
    chat = [say("user" if i % 2 == 0 else "assistant", content) for i, content in enumerate(said)]
    if len(chat) % 2 == 0:
        chat.append(say("user", later + "?"))
    whole = written(text.tokenizer, [*chat, say("assistant", answer)], end)
    prompt = ids(text.tokenizer, rendered(text.tokenizer, chat, add_generation_prompt=True))
    [question], [completion] = text.complete([chat], [answer])
    assert question == prompt
    if whole[: len(prompt)] == prompt:
        assert question + completion == whole
    else:  # a token of the whole reaches from the prompt into the answer: while sampling there is no such token
        assert spelled(text, question + completion) == spelled(text, whole)
    assert completion[-1:] == whole[-1:]
    if answer.strip() == answer:
        assert text.decode(torch.tensor([completion]), chat=True) == [answer]


@pytest.mark.parametrize("template", sorted(TEMPLATES.keys() - {"house", "qwen-thinking"}))  # it drops old thoughts
@all_kinds
def test_turn_by_turn_is_the_whole_conversation(kind, template):
    text, end = tokens(kind, template), TEMPLATES[template][1]
    chat = [*ASK, say("assistant", "3"), say("user", "and 2+2?")]
    [first], [answer] = text.complete([ASK], ["3"])
    whole = text.encode([chat])[0]
    assert first + answer + text.encode([chat[2:]], [answer[-1]])[0] == whole
    cut = text.encode([chat[2:]], [answer[0]])[0]  # a turn that was cut at a limit gets its end from the template
    assert text.tokenizer.convert_tokens_to_ids(end) in cut


@both
def test_a_prompt_that_ends_in_the_assistants_words_is_continued(kind, template):
    text, end = tokens(kind, template), TEMPLATES[template][1]
    begun = [*ASK, say("assistant", "it is")]
    opened = rendered(text.tokenizer, begun, continue_final_message=True)
    assert text.encode([begun]) == [ids(text.tokenizer, opened)]
    [question], [completion] = text.complete([begun], [" 3."])
    assert question + completion == written(text.tokenizer, [*ASK, say("assistant", "it is 3.")], end)
    [question], [completion] = text.complete([[*ASK, say("assistant", "the s")]], ["um"])
    assert spelled(text, question + completion) == spelled(
        text, written(text.tokenizer, [*ASK, say("assistant", "the sum")], end)
    )


@all_kinds
def test_a_text_that_begins_with_bos_gets_no_second_one(kind):
    text = tokens(kind, "llama2")
    bos = text.tokenizer.bos_token_id
    chat = rendered(text.tokenizer, ASK, add_generation_prompt=True)
    for prompt in (f"{BOS}ab", chat):
        assert text.encode([prompt]) == [ids(text.tokenizer, prompt)]
        assert text.encode([prompt])[0].count(bos) == 1
        assert text.complete([prompt], ["c"])[0][0].count(bos) == 1
    assert text.encode(["ab"])[0] == [bos, *ids(text.tokenizer, "ab")]
    assert text.encode([""]) == [[bos]]
    assert tokens(kind, "llama2", bos=False).encode(["ab"]) == [ids(text.tokenizer, "ab")]


@settings(max_examples=60)
@given(TEXT, TEXT)
@all_kinds
def test_a_plain_completion_is_what_was_written(kind, prompt, completion):
    text = tokens(kind)
    [question], [answer] = text.complete([prompt], [completion])
    assert [question] == text.encode([prompt])
    assert answer[-1] == text.tokenizer.eos_token_id
    assert text.decode(torch.tensor([answer])) == [completion]
    assert text.complete([prompt], [completion], eos=False)[1] == [answer[:-1]]
    whole = ids(text.tokenizer, prompt + completion)
    if prompt and whole[: len(question) - 1] == question[1:]:  # behind bos
        assert question[1:] + answer[:-1] == whole


@all_kinds
def test_a_space_before_a_completion_counts(kind):
    text = tokens(kind)
    for prompt in ("a b", "1+2=", "yes,", ""):
        near, far = text.complete([prompt] * 2, ["c", " c"])[1]
        assert near != far
        assert text.decode(torch.tensor([near])) == ["c"]
        assert text.decode(torch.tensor([far])) == [" c"]
    # In later turns of plain text, too, no space comes from nowhere.
    later = text.encode(["c"], [text.eos])[0]
    assert text.texts([later], behind=True) == ([" c"] if kind in OF_THEIR_OWN else ["c"])


OF_THEIR_OWN = ("bytes-prefix", "pieces-always", "pieces-legacy")  # they put a space behind every special token


def test_an_end_is_not_written_twice():
    text = tokens("bytes")
    assert text.complete(["a"], [f"c{EOS}"]) == text.complete(["a"], ["c"])
    assert text.complete([ASK], ["c<|im_end|>"]) == text.complete([ASK], ["c"])
    # A rendered answer that is given as text has the end that was written.
    plain = rendered(text.tokenizer, ASK, add_generation_prompt=True)
    chat = text.complete([ASK], ["3"])
    [question], answers = text.complete([plain], ["3<|im_end|>"])
    assert ([question[1:]], answers) == chat  # a plain text has the bos that the tokenizer adds


def test_without_an_end():
    text = tokens("bytes")
    [row] = text.complete([ASK], ["3"], eos=False)[1]
    assert [*row, text.tokenizer.convert_tokens_to_ids("<|im_end|>")] == text.complete([ASK], ["3"])[1][0]
    unended = made("bytes", "chatml")
    kept, unended.chat_template = unended.chat_template, "{% for m in messages %}{{ m['content'] + '\n' }}{% endfor %}"
    try:
        text = Tokens(unended, "'m'")
        assert text.ends == (text.eos,)
        assert text.complete([ASK], ["3"])[1] == [[*ids(unended, "3"), text.eos]]
        assert text.encode([[say("user", "b")]], [text.eos]) == [ids(unended, "\nb\n")]
    finally:
        unended.chat_template = kept


def refused(template, chat, answer):
    tokenizer = made("bytes", "chatml")
    kept, tokenizer.chat_template = tokenizer.chat_template, template
    try:
        text = Tokens(tokenizer, "'m'")
        with pytest.raises(UsageError) as raised:
            text.complete([chat], [answer])
    finally:
        tokenizer.chat_template = kept
    return str(raised.value)


def test_a_template_that_wants_a_system_message():
    strict = (
        "{% if messages[0]['role'] != 'system' %}{{ raise_exception('begin with a system message') }}{% endif %}"
        "{% for m in messages %}[{{ m['content'] }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}[{% endif %}"
    )
    tokenizer = made("bytes", "chatml")
    kept, tokenizer.chat_template = tokenizer.chat_template, strict
    try:
        text = Tokens(tokenizer, "'m'")
        assert text.ends == (text.eos, tokenizer.convert_tokens_to_ids("<|im_end|>"))
        [question], [answer] = text.complete([[say("system", "s"), *ASK]], ["3"])
        assert tokenizer.decode(question + answer) == "[s<|im_end|>\n[what is 1+2?<|im_end|>\n[3<|im_end|>"
        assert tokenizer.decode(text.encode([ASK], [answer[-1]])[0]) == "\n[what is 1+2?<|im_end|>\n["
        with pytest.raises(UsageError, match="refuses these messages: begin with a system message"):
            text.encode([ASK])
    finally:
        tokenizer.chat_template = kept


def test_one_place_makes_tokens_of_texts():
    """What is mended for one method is mended for all: none has a way of its own."""
    package = Path(polopt.__file__).parent
    words = ("apply_chat_template", "add_special_tokens", "batch_decode", "convert_tokens_to_ids", "continue_final")
    found = {path.name for path in package.rglob("*.py") if any(word in path.read_text() for word in words)}
    assert found == {"templates.py", "tokenizing.py", "judge.py"}  # a judge reads with a tokenizer of its own


def test_templates_that_cannot_be_followed():
    forced = "{% for m in messages %}<{{ m['content'] }}>{% endfor %}{% if add_generation_prompt %}<thought:{% endif %}"
    assert refused(forced, ASK, "3") == (
        "the chat template of 'm' opens an answer with 'thought:' and writes the answer '3' without it: give answers "
        "that begin so, or prompts and answers as plain text"
    )
    silent = "{% for m in messages if m['role'] == 'user' %}{{ m['content'] }}{% endfor %}"
    assert refused(silent, [*ASK, say("assistant", "3")], "4") == (
        "the chat template of 'm' does not let a prompt end in the assistant's words"
    )
    tokenizer = made("bytes", "llama2")
    assert ChatTemplate(tokenizer, "'m'").end == EOS
    with pytest.raises(UsageError, match="refuses these messages: Conversation roles must alternate"):
        Tokens(tokenizer, "'m'").encode([[say("system", "be brief")]])
