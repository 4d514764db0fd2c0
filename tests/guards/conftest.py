"""Every guard takes the methods of its own beside the entries."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.guards.harness import own_methods


@pytest.fixture(autouse=True)
def _own_methods() -> Iterator[None]:
    with own_methods():
        yield
