"""Models of transformers are read once from equal files: that takes longer than most of what is tested with them."""

from __future__ import annotations

import copy
import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from polopt.policies import pretrained

MOST = 16  # that are remembered
_read: dict[tuple[Any, ...], tuple[Any, Any, str]] = {}


def once(load: Callable[..., tuple[Any, Any, str]]) -> Callable[..., tuple[Any, Any, str]]:
    """`load_pretrained`, which of files that it has read before gives copies of what they gave."""

    @functools.wraps(load)
    def loaded(name: str, **options: Any) -> tuple[Any, Any, str]:
        kept = pretrained._KEPT.get()
        if options.get("trust_remote_code") or (kept is None and not (name and Path(name).is_dir())):
            return load(name, **options)
        folder = kept or pretrained._folder(name)
        assert folder is not None
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        if kept is not None:  # its weights come from a checkpoint
            files = [path for path in files if path.suffix != ".safetensors"]
        content = hashlib.sha256()
        for path in files:
            content.update(f"{path.relative_to(folder)}\0".encode() + path.read_bytes())
        key = (kept is None, content.hexdigest(), str(sorted(options.items())))
        model, tokenizer, source = _read[key] = _read.pop(key, None) or load(name, **options)
        while len(_read) > MOST:
            del _read[next(iter(_read))]
        return copy.deepcopy(model), copy.deepcopy(tokenizer), source

    return loaded
