"""Runs without their pictures."""

from __future__ import annotations

from pathlib import Path

import pytest

from polopt.report import compare


@pytest.fixture
def unreported(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `polopt train` and `polopt resume` draw at the end of a run takes longer than a tiny run; not here."""
    monkeypatch.setattr(compare, "report", lambda *folders, **options: Path("report.html"))
