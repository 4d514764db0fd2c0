"""Random episodes of an environment are recorded once, as for the guards."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.guards.harness import recorded_once


@pytest.fixture(autouse=True)
def _recorded_once() -> Iterator[None]:
    with recorded_once():
        yield
