"""Which environment a recorded dataset belongs to, from its metadata. Imports no torch, and minari only to download."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import io
import json
import os
import re
import socket
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.request import getproxies

import gymnasium
from gymnasium.envs.registration import EnvSpec

from polopt.core.errors import UsageError, nearest

DATASET_ID = re.compile(r"(?:[-\w]+/)*[-\w]+-v\d+")
ALONE = " (--task.environment none learns from the data alone)"
KNOWN_PACKAGES = ("gymnasium", "gymnasium_robotics", "minigrid", "miniworld", "ale_py", "polopt")
"""Packages whose environments a dataset may name; what else it names is not imported."""


def datasets_folder() -> Path:
    """Where Minari keeps datasets: $MINARI_DATASETS_PATH, or ~/.minari/datasets."""
    return Path(os.environ.get("MINARI_DATASETS_PATH") or Path.home() / ".minari" / "datasets")


def dataset_folder(name: str) -> Path:
    """The folder of a dataset, there or not. Raises UsageError for what is no id of a dataset."""
    if not DATASET_ID.fullmatch(name):
        raise UsageError(f"'{name}' is no id of a dataset: ids are like pendulum/medium-v0")
    return datasets_folder() / name


def is_local(name: str) -> bool:
    """Whether a dataset of this id is here (whole or damaged)."""
    return bool(DATASET_ID.fullmatch(name)) and (datasets_folder() / name / "data").is_dir()


def local_datasets() -> list[str]:
    """The ids of the datasets that are here, sorted."""
    root = datasets_folder()
    found = (path.parent.relative_to(root).as_posix() for path in root.rglob("data") if path.is_dir())
    return sorted(name for name in found if DATASET_ID.fullmatch(name))


def metadata(name: str) -> dict[str, Any]:
    """metadata.json of a local dataset. Raises UsageError when there is none, or when it is not Minari's."""
    path = dataset_folder(name) / "data" / "metadata.json"
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{path.parent} is not a Minari dataset: it has no metadata.json") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(read, dict) or not {"total_steps", "data_format", "dataset_id"} <= read.keys():
        raise UsageError(f"{path} is not the metadata of a Minari dataset")
    return read


def names_environment(name: str) -> bool:
    """Whether a local dataset says at all which environment it was recorded on."""
    found = metadata(name)
    return isinstance(found.get("polopt_task"), dict) or isinstance(found.get("env_spec"), str)


def stored(name: str) -> Any:
    """A local dataset as Minari opens it. Raises UsageError when it is damaged."""
    minari, folder = minari_package(), dataset_folder(name)
    metadata(name)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return minari.MinariDataset(folder / "data")
    except Exception as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise UsageError(f"the dataset {name} is damaged: {said.rstrip('.')}") from None


def fact_shapes(name: str, facts: Iterable[str]) -> dict[str, tuple[int, ...]]:
    """The shape of each of `facts` beside a decision, of Minari's `infos`. Raises UsageError for one that it lacks."""
    shapes: dict[str, tuple[int, ...]] = {}
    infos = next(stored(name).iterate_episodes([0])).infos or {} if (facts := tuple(facts)) else {}
    for fact in facts:
        if fact not in infos:
            raise UsageError(f"{name} stores no '{fact}', which --facts names{nearest(fact, infos)}")
        shapes[fact] = infos[fact].shape[1:]
    return shapes


def environment(name: str) -> tuple[str | EnvSpec, dict[str, Any]]:
    """The task that a local dataset was recorded on, and its options: a name, or a Gymnasium specification.

    No code that only the dataset names is imported. Raises UsageError when the environment cannot be recovered.
    """
    found = metadata(name)
    task = found.get("polopt_task")
    if isinstance(task, dict) and isinstance(task.get("name"), str) and isinstance(task.get("options"), dict):
        if ":" in task["name"] or task["name"].startswith("<"):
            raise UsageError(
                f"{name} was recorded on code of yours, {task['name']}: say both, --task and --dataset{ALONE}"
            )
        return task["name"], task["options"]
    text = found.get("env_spec")
    if not isinstance(text, str):
        raise UsageError(f"{name} does not say which environment it was recorded on: say both, --task and --dataset")
    try:
        known = {field.name for field in dataclasses.fields(EnvSpec) if field.init}  # others are of older versions
        spec = EnvSpec.from_json(json.dumps({key: value for key, value in json.loads(text).items() if key in known}))
    except Exception as error:
        raise UsageError(f"the environment of {name} cannot be read ({type(error).__name__})") from None
    if spec.id in gymnasium.registry:
        registered = gymnasium.registry[spec.id]
        spec = dataclasses.replace(
            spec, entry_point=registered.entry_point, vector_entry_point=registered.vector_entry_point
        )
    elif not _is_known(spec.entry_point, gymnasium.Env):
        raise UsageError(
            f"{name} was recorded on {spec.id} of '{spec.entry_point}', which is not known here: say both, --task and "
            f"--dataset{ALONE}"
        )
    for wrapper in spec.additional_wrappers:
        if not _is_known(wrapper.entry_point, gymnasium.Wrapper):
            raise UsageError(
                f"{name} was recorded with the wrapper '{wrapper.entry_point}', which is not known here: say both, "
                f"--task and --dataset{ALONE}"
            )
    return spec, {}


def _is_known(entry_point: Any, base: type) -> bool:
    """Whether a text names a class of a known package that is a `base`: nothing else is called."""
    module, colon, path = str(entry_point).partition(":")
    if not colon or module.partition(".")[0] not in KNOWN_PACKAGES:
        return False
    try:
        found: Any = functools.reduce(getattr, path.split("."), importlib.import_module(module))
    except (ImportError, AttributeError):
        return False
    return isinstance(found, type) and issubclass(found, base)


def references(name: str) -> tuple[float, float] | None:
    """(return of a random policy, of an expert) that the metadata of a local dataset hold, or None."""
    found = metadata(name)
    low, high = found.get("ref_min_score"), found.get("ref_max_score")
    if not isinstance(low, (int, float)) or not isinstance(high, (int, float)) or not low < high:
        return None
    return float(low), float(high)


def download(name: str) -> None:
    """Fetches a dataset of Minari's server. Raises UsageError: no such dataset, or no network."""
    minari = minari_package()
    if not DATASET_ID.fullmatch(name):
        raise UsageError(f"'{name}' is no id of a dataset: ids are like pendulum/medium-v0")
    hint = nearest(name, local_datasets())
    remote = os.environ.get("MINARI_REMOTE", "hf://farama-minari")
    if remote.startswith("hf:") and not getproxies():  # Minari would try for half a minute
        try:
            socket.getaddrinfo("huggingface.co", 443)
        except OSError:
            hint = hint or "; 'polopt dataset make TASK' records some"
            raise UsageError(f"there is no dataset {name} here, and no network to download it{hint}") from None
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            minari.download_dataset(name)
    except ImportError as error:
        raise UsageError(f"{name} cannot be downloaded: {' '.join(str(error).split())}") from None
    except ValueError as error:
        raise UsageError(f"there is no dataset {name}, neither here nor on Minari's server{hint}") from error
    except Exception as error:
        raise UsageError(f"{name} cannot be downloaded ({type(error).__name__}){hint}") from error


# Writing


def minari_package() -> Any:
    """Minari, which is optional. Raises UsageError with the extra that brings it."""
    try:
        import minari
    except ImportError:
        raise UsageError(
            'recorded datasets need a package that is not installed: pip install "polopt[offline]"'
        ) from None
    return minari
