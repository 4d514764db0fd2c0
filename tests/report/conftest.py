"""Here the pictures of reports are drawn."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _drawn(drawn: None) -> None:
    pass
