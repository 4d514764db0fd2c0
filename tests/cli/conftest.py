"""The pages that are written from the method files."""

from __future__ import annotations

from pathlib import Path

import pytest

from polopt.cli import pages

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def written() -> dict[Path, str]:
    """What they should be."""
    return pages.pages(ROOT)
