"""What `pip install polopt` brings: built from this checkout, without an environment of its own."""

from __future__ import annotations

import zipfile
from pathlib import Path

from hatchling import build

ROOT = Path(__file__).parents[1]


def test_the_wheel_holds_polopt_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    with zipfile.ZipFile(tmp_path / build.build_wheel(str(tmp_path))) as wheel:
        names = set(wheel.namelist())
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"polopt"}
    source = {str(path.relative_to(ROOT)) for path in (ROOT / "polopt").rglob("*") if path.is_file()}
    source = {name for name in source if "__pycache__" not in name}
    claims = {f"polopt/_claims/{path.relative_to(ROOT / 'claims')}" for path in (ROOT / "claims").glob("*.py")}
    assert claims
    assert source | claims <= names
