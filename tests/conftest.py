"""Shared by all tests: one torch thread, the default dtype and device put back, no leftovers in the repository."""

from __future__ import annotations

import functools
import os
import tempfile
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
from hypothesis import settings

from polopt.policies import text
from polopt.report import compare, curves, sheets
from polopt.training import folder
from tests import loaded

os.environ.setdefault("MUJOCO_GL", "egl")
_cache = tempfile.TemporaryDirectory(prefix="polopt-tests-")  # for models that are made
os.environ["POLOPT_CACHE"] = _cache.name
settings.register_profile("polopt", deadline=None, max_examples=25, derandomize=True)
settings.load_profile("polopt")
torch.set_num_threads(1)
os.fsync = lambda descriptor: None  # no test has to survive a power failure, and the disk takes its time

folder.git_hash = functools.cache(folder.git_hash)  # a thousand runs begin
for part in (torch.cuda, torch.xpu, torch.mtia):  # until there is one, they keep the stack of every seed that is set
    part.traceback = SimpleNamespace(format_stack=list)
text.load_pretrained = loaded.once(text.load_pretrained)

DRAWN = curves._drawn, sheets._drawn
curves._drawn = lambda figure: '<svg viewBox="0 0 1 1" role="img"></svg>'
sheets._drawn = lambda drawing, suffix, notes: b"blank"
compare.record.__kwdefaults__["seconds"] = 1
"""Pages of runs are written everywhere, with blank pictures and short videos: they take longer than a tiny run."""


@pytest.fixture(autouse=True)
def _fresh_torch() -> Iterator[None]:
    dtype = torch.get_default_dtype()
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(dtype)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures of reports are drawn: in tests of reports, and by the guards of every kind of method."""
    monkeypatch.setattr(curves, "_drawn", DRAWN[0])
    monkeypatch.setattr(sheets, "_drawn", DRAWN[1])


@pytest.fixture
def float64() -> None:
    """Computes in double precision; put back afterwards."""
    torch.set_default_dtype(torch.float64)
