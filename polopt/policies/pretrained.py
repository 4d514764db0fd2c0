"""Model folders of transformers: read them safely, write them whole."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
from torch import nn

from polopt.core import files
from polopt.core.errors import UsageError
from polopt.core.random import paired
from polopt.data.tokenizing import need, quiet

_KEPT: ContextVar[Path | None] = ContextVar("kept", default=None)


@contextlib.contextmanager
def kept_model(folder: Path | None) -> Iterator[None]:
    """While a run is read back: `load_pretrained` takes configuration, generation settings and tokenizer from `folder`,
    where the run keeps them, whatever it is asked for, and leaves the weights to the checkpoint. The model that the run
    began with may have changed or gone. Nothing happens without such a folder."""
    token = _KEPT.set(folder if folder is not None and (folder / "config.json").is_file() else None)
    try:
        yield
    finally:
        _KEPT.reset(token)


def load_pretrained(
    name: str,
    *,
    dtype: torch.dtype,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
    head: str = "CausalLM",
) -> tuple[nn.Module, Any, str]:
    """A language model in evaluation mode, its tokenizer, and where they came from.

    Args:
        name: a model folder, a run folder that has one as `model/`, or an id of the Hugging Face hub.
        dtype: of the parameters.
        trust_remote_code: runs Python code that comes with the model.
        allow_pickle: takes weights in pickle files too, which are read as tensors only.
        head: what it is for: the name of a class of transformers behind "AutoModelFor".

    Raises:
        UsageError: one sentence for everything that can be wrong with the name, the folder or its files.
    """
    kept = _KEPT.get()
    if kept is not None and not trust_remote_code:  # code stays where it came from
        return *_without_weights(kept, dtype), str(kept)
    if not name:
        raise UsageError("a language method needs a model: name a model folder or an id of the Hugging Face hub")
    transformers = need("transformers")
    folder = _folder(name)
    source = name if folder is None else str(folder)
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    if folder is None:
        options["local_files_only"] = not _on_hub(name)
    _refuse_code(name, folder, trust_remote_code)
    pickled = folder is not None and _refuse_pickle(name, folder, allow_pickle)
    try:
        with quiet():
            tokenizer = transformers.AutoTokenizer.from_pretrained(source, **options)
            model, info = getattr(transformers, f"AutoModelFor{head}").from_pretrained(
                source,
                dtype=dtype,
                use_safetensors=None if pickled or (folder is None and allow_pickle) else True,
                output_loading_info=True,
                **options,
            )
    except ImportError as error:
        raise UsageError(f"model '{name}' needs a package that is not installed: {_first(error)}") from None
    except Exception as error:  # the libraries below raise a dozen types for damaged or foreign files
        raise UsageError(f"model '{name}' cannot be loaded: {_first(error)}") from None
    missing = sorted(info["missing_keys"])
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UsageError(f"the weights of model '{name}' lack '{missing[0]}'{more}")
    return model.eval(), tokenizer, source


def _without_weights(folder: Path, dtype: torch.dtype) -> tuple[nn.Module, Any]:
    """A model of the folder's configuration, with weights that wait to be loaded, and its tokenizer."""
    transformers = need("transformers")
    _refuse_code(str(folder), folder, False)
    try:
        with quiet(), paired():
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
            config = transformers.AutoConfig.from_pretrained(folder)
            model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
            if (folder / "generation_config.json").is_file():
                model.generation_config = transformers.GenerationConfig.from_pretrained(folder)
    except Exception as error:  # as in `load_pretrained`
        raise UsageError(f"what the run keeps of its model in {folder} cannot be loaded: {_first(error)}") from None
    return model.eval(), tokenizer


def empty_model(name: str) -> nn.Module:
    """The model of a folder, a run folder or a hub id with parameters that have shapes and no memory; of a hub id only
    its configuration is looked for, among the downloaded files first. Raises UsageError as `load_pretrained` does."""
    transformers = need("transformers")
    folder = _folder(name)
    if folder is None:
        found = _hub_file(name, "config.json", local_files_only=True) or _hub_file(name, "config.json")
        if found is None:
            raise UsageError(
                f"there is no model folder '{name}', and the Hugging Face hub has no such model or cannot be reached"
            )
        folder = found.parent
    _refuse_code(name, folder, False)
    try:
        with quiet(), torch.device("meta"):
            model: nn.Module = transformers.AutoModelForCausalLM.from_config(
                transformers.AutoConfig.from_pretrained(folder)
            )
    except Exception as error:  # as in `load_pretrained`
        raise UsageError(f"the configuration of model '{name}' cannot be read: {_first(error)}") from None
    return model


def write_folder(folder: Path | str, write: Callable[[Path], None]) -> Path:
    """Calls `write` on an empty folder beside `folder` and puts it in its place when it is complete.

    A model folder or an empty folder of that name is replaced. Raises UsageError for another one, and RunError if it
    cannot be written; what was there before stays then.
    """
    folder = Path(folder)
    if folder.exists() and not (folder / "config.json").is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} exists and is no model folder: choose another name")
    with files.new_folder(folder) as new:
        write(new)
    return folder


def _folder(name: str) -> Path | None:
    """The folder that `name` means, None for a hub id."""
    path = Path(name).expanduser()
    if path.is_dir():
        for folder in (path / "model", path):  # a run folder has a config.json of its own
            if (folder / "config.json").is_file():
                return folder
        raise UsageError(f"{name} is no model folder: it has no config.json, and no model/config.json either")
    if path.exists():
        raise UsageError(f"{name} is a file: name the model's folder")
    if not re.fullmatch(r"[\w.-]*\w/[\w.-]*\w|[A-Za-z][\w.-]*", name) or name.startswith("."):
        raise UsageError(f"there is no model folder {name}")
    return None


def _on_hub(name: str) -> bool:
    """Whether the hub answers for this id; False if it does not and a downloaded copy will do."""
    hub = need("huggingface_hub")
    try:
        hub.HfApi().model_info(name, timeout=5)  # asks once, where a download would try for half a minute
        return True
    except Exception:  # an unknown id, a private one and a missing network end alike
        if _hub_file(name, "config.json", local_files_only=True) is not None:
            return False
        raise UsageError(
            f"there is no model folder '{name}', and the Hugging Face hub has no such model or cannot be reached"
        ) from None


def _refuse_code(name: str, folder: Path | None, trusted: bool) -> None:
    if trusted:
        return
    for file in ("config.json", "tokenizer_config.json"):
        found = _hub_file(name, file) if folder is None else folder / file
        if found is None or not found.is_file():
            continue
        try:
            content = json.loads(found.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise UsageError(f"model '{name}' has a damaged {file}") from None
        if isinstance(content, dict) and content.get("auto_map"):
            raise UsageError(f"model '{name}' brings its own Python code, which runs only with trust_remote_code")


def _hub_file(name: str, file: str, **options: Any) -> Path | None:
    with contextlib.suppress(Exception):
        return Path(need("huggingface_hub").hf_hub_download(name, file, etag_timeout=5, **options))
    return None


def _refuse_pickle(name: str, folder: Path, allowed: bool) -> bool:
    """Whether the weights are pickled; raises UsageError if that is not allowed, or if there are none."""
    if any(folder.glob("*.safetensors")):
        return False
    if not any(folder.glob("*.bin")):
        if (folder.parent / "checkpoints").is_dir():
            run = folder.parent
            raise UsageError(f"run {run} has not ended, so it has no trained model yet: polopt resume {run} goes on")
        raise UsageError(f"model folder {name} has no weights: model.safetensors is missing")
    if not allowed:
        raise UsageError(f"model '{name}' has its weights in pickle files only, which are read only with allow_pickle")
    return True


def _first(error: BaseException) -> str:
    """The first line of an error, as the end of a sentence."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(" .:")
