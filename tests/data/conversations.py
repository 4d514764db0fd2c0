"""Small tokenizers and chat templates of every common shape, made here: for tests of what a conversation becomes."""

from __future__ import annotations

import functools
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from polopt.policies.small_lm import CHARACTERS, CHAT_TEMPLATE

BOS, EOS, PAD = "<s>", "</s>", "<pad>"
MARKS = ("<|im_start|>", "<|im_end|>", "<start_of_turn>", "<end_of_turn>", "<|start_header_id|>", "<|end_header_id|>")
SPECIAL = ("<unk>", PAD, BOS, EOS, *MARKS, "<|eot_id|>", "[INST]", "[/INST]")
TEXTS = [
    "user assistant system model think answer question what is the sum of 12 and 30 it is 42",
    "abc bcd cab a b c ab bc ca 10 20 1+2= 3+4=7 yes, no. yes no (one) the cat, a bat: the bc",
    "[INST] what is [/INST] the answer\n\n<think>\n\n</think>\n\nthe sum\nuser\nassistant\n",
] * 20

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA2 = (  # the marks of an instruction are ordinary text, and a space stands on both sides of an answer
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + m['content'].strip() + ' [/INST]' }}"
    "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'].strip() + ' ' + eos_token }}"
    "{% else %}{{ raise_exception('Conversation roles must alternate') }}{% endif %}{% endfor %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' "
    "+ m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
QWEN_THINKING = (  # thoughts are split from the answer and written again; those of earlier turns are left out
    "{% for m in messages %}{% set content = m['content'] %}{% if m['role'] == 'assistant' %}"
    "{% set thought = '' %}{% if '</think>' in content %}"
    "{% set thought = content.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{% set content = content.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{% if loop.last %}{% set content = '<think>\n' + thought + '\n</think>\n\n' + content %}{% endif %}{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MISTRAL = (  # the marks are tokens; no space is written by the template
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST]' + m['content'] + '[/INST]' }}"
    "{% else %}{{ m['content'] + eos_token }}{% endif %}{% endfor %}"
)
TEMPLATES = {  # the template, the token that ends an answer, and which marks of SPECIAL are ordinary text
    "chatml": (CHATML, "<|im_end|>", ()),
    "llama2": (LLAMA2, EOS, ("[INST]", "[/INST]")),
    "llama3": (LLAMA3, "<|eot_id|>", ()),
    "gemma": (GEMMA, "<end_of_turn>", ()),
    "qwen-thinking": (QWEN_THINKING, "<|im_end|>", ()),
    "mistral": (MISTRAL, EOS, ()),
    "house": (CHAT_TEMPLATE, EOS, ()),
}


def _bytes(prefix: bool) -> Tokenizer:
    """Bytes, as GPT-2, Llama 3 and Qwen have them."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    inner.decoder = decoders.ByteLevel()
    trained = trainers.BpeTrainer(
        vocab_size=420, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    inner.train_from_iterator(TEXTS, trained)
    return inner


def _pieces(kind: str) -> Tokenizer:
    """Pieces in which a space is written as an underscore, as SentencePiece does it, with bytes for other characters.

    "first" and "always" say where Metaspace puts a space of its own, "legacy" is Llama 2's normalizer, and "none" adds
    no space, as Gemma does.
    """
    inner = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    replaced, bytes_, fuse = decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()
    if kind in ("first", "always"):
        inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=kind)
        inner.decoder = decoders.Sequence([bytes_, decoders.Metaspace(prepend_scheme=kind)])
    elif kind == "legacy":
        inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        inner.decoder = decoders.Sequence([replaced, bytes_, fuse, decoders.Strip(" ", 1, 0)])
    else:
        inner.normalizer = normalizers.Replace(" ", "▁")
        inner.decoder = decoders.Sequence([replaced, bytes_, fuse])
    alphabet = ["▁", *(character for character in CHARACTERS if character not in " \n")]
    trained = trainers.BpeTrainer(
        vocab_size=700,
        initial_alphabet=alphabet,
        special_tokens=["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))],
        show_progress=False,
    )
    split = pre_tokenizers.Sequence(  # words with the space before them, so that pieces stay short
        [pre_tokenizers.Split(Regex("\n+"), "isolated"), pre_tokenizers.Metaspace(prepend_scheme="never")]
    )
    kept, inner.pre_tokenizer = inner.pre_tokenizer, split
    inner.train_from_iterator(TEXTS, trained)
    if kept is None:
        inner.pre_tokenizer = pre_tokenizers.Split(Regex("\n+"), "isolated")
    else:
        inner.pre_tokenizer = kept
    return inner


def _unigram() -> Tokenizer:
    """The likeliest pieces of a whole word, not merged pairs: SentencePiece's own model."""
    inner = Tokenizer(models.Unigram())
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    inner.decoder = decoders.Metaspace(prepend_scheme="first")
    trained = trainers.UnigramTrainer(
        vocab_size=300,
        initial_alphabet=["▁", *CHARACTERS.replace(" ", "")],
        special_tokens=["<unk>"],
        unk_token="<unk>",
        show_progress=False,
    )
    inner.train_from_iterator(TEXTS, trained)
    return inner


def _characters() -> Tokenizer:
    inner = Tokenizer(models.WordLevel({token: i for i, token in enumerate(("<unk>", *CHARACTERS))}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    inner.decoder = decoders.Fuse()
    return inner


KINDS = {
    "bytes": lambda: _bytes(False),
    "bytes-prefix": lambda: _bytes(True),
    "pieces-first": lambda: _pieces("first"),
    "pieces-always": lambda: _pieces("always"),
    "pieces-legacy": lambda: _pieces("legacy"),
    "pieces-none": lambda: _pieces("none"),
    "unigram": _unigram,
    "characters": _characters,
}


@functools.cache
def _trained(kind: str) -> str:
    return KINDS[kind]().to_str()


@functools.cache
def made(kind: str, template: str = "chatml", bos: bool = True) -> Any:
    """A tokenizer of transformers; `bos` says whether it begins a text with the token."""
    text, _, ordinary = TEMPLATES[template]
    inner = Tokenizer.from_str(_trained(kind))
    inner.add_special_tokens([AddedToken(token, normalized=False) for token in SPECIAL if token not in ordinary])
    if bos:
        inner.post_processor = processors.TemplateProcessing(
            single=f"{BOS} $A", special_tokens=[(BOS, inner.token_to_id(BOS))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        unk_token="<unk>",
        model_max_length=512,
        clean_up_tokenization_spaces=False,
        chat_template=text,
    )


def ids(tokenizer: Any, text: str) -> list[int]:
    """The tokens of a text, and nothing else."""
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def rendered(tokenizer: Any, messages: Any, **options: Any) -> str:
    """What the library makes of messages."""
    return tokenizer.apply_chat_template(messages, tokenize=False, **options)


def written(tokenizer: Any, messages: Any, end: str) -> list[int]:
    """The template's own tokens of a whole conversation, up to the last end."""
    row = ids(tokenizer, rendered(tokenizer, messages))
    last = len(row) - row[::-1].index(tokenizer.convert_tokens_to_ids(end))
    return row[:last]
