"""Text to tokens and back."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from polopt.core.errors import UsageError
from polopt.data.tokenizing import Tokens, need, pack_left, pad_left, pad_right
from polopt.policies.small_lm import character_tokenizer

EOS = 1
TEXT = st.text(alphabet=[chr(code) for code in range(32, 127)], max_size=12)


def tokens(**attributes):
    tokenizer = character_tokenizer()
    for name, value in attributes.items():
        setattr(tokenizer, name, value)
    return Tokens(tokenizer, "'m'")


def spell(text):
    return character_tokenizer()(text)["input_ids"]


def test_padding():
    ids, real = pad_left([[5, 6, 7], [8]], 0)
    assert ids.tolist() == [[5, 6, 7], [0, 0, 8]]
    assert real.tolist() == [[True, True, True], [False, False, True]]
    ids, real = pad_right([[5, 6, 7], [8]], 9)
    assert ids.tolist() == [[5, 6, 7], [8, 9, 9]]
    assert real.tolist() == [[True, True, True], [True, False, False]]
    assert pad_left([[], []], 0)[0].shape == (2, 0)
    assert pad_left([], 0)[0].shape == (0, 0)


@given(st.lists(st.lists(st.tuples(st.integers(1, 9), st.booleans()), min_size=5, max_size=5), min_size=1, max_size=4))
def test_packing_keeps_the_real_ones_in_order(rows):
    ids = torch.tensor([[token for token, _ in row] for row in rows])
    real = torch.tensor([[kept for _, kept in row] for row in rows])
    packed, mask = pack_left(ids, real)
    assert packed.shape[1] == max(sum(kept for _, kept in row) for row in rows)
    for row, ids_of, mask_of in zip(rows, packed, mask):
        wanted = [token for token, kept in row if kept]
        assert ids_of[mask_of].tolist() == wanted
        assert mask_of.tolist() == [False] * (len(mask_of) - len(wanted)) + [True] * len(wanted)


@given(st.lists(TEXT, min_size=1, max_size=4))
def test_round_trip(texts):
    text = tokens()
    prompts, rows = text.complete(["12+3="] * len(texts), texts)
    assert prompts == text.encode(["12+3="]) * len(texts)
    assert [row[-1] for row in rows] == [EOS] * len(texts)
    assert text.decode(pad_right(rows, text.pad)[0]) == texts
    assert [row[:-1] for row in rows] == text.complete(["12+3="] * len(texts), texts, eos=False)[1]


def test_decoding_stops_at_the_first_end():
    text = tokens()
    assert text.decode(torch.tensor([[*spell("ab"), EOS, *spell("cd")]])) == ["ab"]
    text.ends = (EOS, spell("!")[0])
    assert text.decode(torch.tensor([spell("ab!cd")])) == ["ab"]


def test_without_a_pad_token_the_eos_pads():
    text = tokens(pad_token=None)
    assert text.pad == EOS
    row = torch.tensor([[*spell("ab"), text.pad, text.pad]])
    assert text.decode(row) == ["ab"]


def test_without_an_eos_token():
    with pytest.raises(UsageError, match="'m' has no eos token, so no completion would ever end"):
        tokens(eos_token=None)
    tokenizer = character_tokenizer()
    tokenizer.eos_token = None
    assert Tokens(tokenizer, "'m'", ends=[7]).ends == (7,)


def test_a_conversation_has_at_least_one_token():
    assert tokens().encode([""]) == [[EOS]]
    assert tokens().encode([""], [5]) == [[]]


def test_bos_of_plain_text():
    text = tokens(bos_token="<unk>")
    assert text.encode(["ab"]) == [spell("ab")]  # this tokenizer has one and does not add it
    text._start = [2]
    assert text.encode(["ab", "cd"], [None, 7]) == [[2, *spell("ab")], spell("cd")]


def test_messages_go_through_the_template():
    text = tokens()
    ask = [{"role": "user", "content": "2+2"}]
    assert text.encode([ask]) == [spell("user: 2+2\nassistant: ")]
    # A later turn begins where the answer ended: the template's end of it is there already, or is missing.
    assert text.encode([ask], [EOS]) == [spell("\nuser: 2+2\nassistant: ")]
    assert text.encode([ask], [5]) == [spell("<eos>\nuser: 2+2\nassistant: ")]
    whole = [{"role": "user", "content": "1+1"}, {"role": "assistant", "content": "2"}, *ask]
    said = text.encode([whole[:1]])[0] + spell("2<eos>")
    assert said + text.encode([ask], [EOS])[0] == text.encode([whole])[0]


def test_messages_need_a_template():
    with pytest.raises(UsageError, match="'m' has no chat template"):
        tokens(chat_template=None).encode([[{"role": "user", "content": "x"}]])


def test_a_template_that_refuses():
    refusing = "{{ raise_exception('only two roles.') }}"
    with pytest.raises(UsageError, match=r"refuses these messages: only two roles$"):
        tokens(chat_template=refusing).encode([[{"role": "user", "content": "x"}]])


def test_a_missing_package_names_the_extra():
    with pytest.raises(UsageError, match=r'pip install "polopt\[language\]"'):
        need("no_such_package_of_polopt")
