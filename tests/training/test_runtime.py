"""What holds for the time of a run, and is put back after it."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch

from polopt.core import memory
from polopt.core.numeric import flushes_denormal
from polopt.training.options import RunOptions
from polopt.training.plan import runtime


@pytest.mark.parametrize("before", [False, True])
def test_the_smallest_numbers_are_flushed_in_a_run_and_put_back_also_by_an_error(before):
    if not torch.set_flush_denormal(before):
        pytest.skip("this processor cannot")
    inside = []

    def fails() -> None:
        with runtime(RunOptions()):
            inside.append(flushes_denormal())
            raise ZeroDivisionError

    try:
        with pytest.raises(ZeroDivisionError):
            fails()
        assert inside == [True]
        assert flushes_denormal() == before
    finally:
        torch.set_flush_denormal(False)


def test_memory_stays_with_the_process_in_a_run(monkeypatch):
    inside = []

    @contextmanager
    def kept():
        inside.append(True)
        yield
        inside.append(False)

    monkeypatch.setattr(memory, "kept", kept)
    with runtime(RunOptions()):
        assert inside == [True]
    assert inside == [True, False]
