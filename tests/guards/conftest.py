"""Every guard takes the methods of its own beside the entries, and waits once for what all builds have in common."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.guards.harness import own_methods, recorded_once


@pytest.fixture(autouse=True)
def _own_methods() -> Iterator[None]:
    with own_methods(), recorded_once():
        yield
