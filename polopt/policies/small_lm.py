"""Small Llama-shaped language models over characters, made from a seed: for work without a network."""

from __future__ import annotations

import hashlib
import string
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from polopt.core import ranks
from polopt.core.errors import UsageError, nearest
from polopt.core.files import cache_folder
from polopt.core.random import paired
from polopt.data.tokenizing import need, quiet
from polopt.policies.pretrained import write_folder

SIZES: dict[str, dict[str, int]] = {
    "tiny": {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64},
    "0.5m": {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 448},
    "1m": {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 448},
    "3m": {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 8, "intermediate_size": 640},
    "10m": {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 6, "intermediate_size": 960},
}
"""Shapes whose parameters number about what the name says."""

CHARACTERS = "\n" + "".join(chr(code) for code in range(32, 127))
assert set(CHARACTERS) == set(string.printable) - set("\t\r\x0b\x0c")

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def character_tokenizer(context: int = 256) -> Any:
    """One token for each printable ASCII character and the newline, and <pad>, <eos>, <unk>; with a chat template."""
    transformers, tokenizers = need("transformers"), need("tokenizers")
    vocabulary = {token: i for i, token in enumerate(("<pad>", "<eos>", "<unk>", *CHARACTERS))}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex(r"[\s\S]"), "isolated")
    inner.decoder = tokenizers.decoders.Fuse()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        model_max_length=context,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


def new_model(name: str) -> str:
    """The folder of a new model if `name` is a size, made when it is not there yet; otherwise `name` itself."""
    return name if name not in SIZES else ranks.in_turn(lambda: _made(name))


def _made(name: str) -> str:
    version = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]  # other code may make another model
    folder = cache_folder() / "models" / f"new-{name}-{version}"
    if not (folder / "config.json").is_file():
        make_language_model(folder, name)
    return str(folder)


def make_language_model(
    folder: Path | str, size: str | Mapping[str, Any] = "1m", seed: int = 0, context: int = 256
) -> Path:
    """Writes a model with random weights and its character tokenizer to `folder`, and returns the folder.

    Rotary positions, RMS norm, SwiGLU and tied embeddings, in float32. The weights begin with a standard deviation of
    hidden_size^-1/2: with Llama's 0.02, networks this small hardly learn for their first hundreds of steps. Equal
    arguments give equal bytes; the global random state is not touched.

    Args:
        size: a name of `SIZES`, or fields of a LlamaConfig that replace those of "0.5m".
        context: longest sequence, in tokens.

    Raises:
        UsageError: for an unknown size, or a folder that exists and holds something else.
    """
    if isinstance(size, str) and size not in SIZES:
        raise UsageError(f"'{size}' is no size of a small language model{nearest(size, SIZES)}")
    shape = SIZES[size] if isinstance(size, str) else SIZES["0.5m"] | dict(size)
    transformers = need("transformers")
    tokenizer = character_tokenizer(context)
    config = transformers.LlamaConfig(
        **{
            "vocab_size": len(tokenizer),
            "max_position_embeddings": context,
            "tie_word_embeddings": True,
            "pad_token_id": tokenizer.pad_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "bos_token_id": None,
            "initializer_range": shape["hidden_size"] ** -0.5,
            **shape,
        }
    )
    with quiet(), paired(seed):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)

        def write(into: Path) -> None:
            model.save_pretrained(into)
            tokenizer.save_pretrained(into)

        return write_folder(folder, write)
