"""What pages say of methods is what the method files say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from polopt import registry
from polopt.cli import capabilities, pages
from polopt.cli.describe import describe

ROOT = Path(__file__).parents[2]


def test_the_pages_are_in_date(written):
    for path, text in written.items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name} is out of date: make docs"


def test_every_method_has_a_row_and_says_what_it_trains_on():
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in pages.method_list().splitlines()[2:]]
    assert sorted(name for row in rows for name in re.findall(r"`([\w-]+)`", row[0])) == sorted(
        [*registry.entries(), *(row.slug for row in registry.studies())]
    )
    assert all(what and on for _, what, on in rows), "an entry says `trains_on`"
    by_name = {row[0]: row for row in rows}
    assert by_name["`mdpo`, `mdpo-off`"][2] == "any task; box actions"
    assert by_name["`sac`"][1] == "Soft Actor-Critic with automatic temperature"


def section(title: str) -> str:
    parts = re.split(r"^## ", pages.metrics_list(), flags=re.MULTILINE)
    return next(part for part in parts if part.startswith(f"{title}\n"))


def test_a_section_has_what_its_classes_add():
    assert section("GroupMethod").count("| `surrogate` |") == 1
    assert "| `surrogate` |" not in section("rec, grpo")
    assert "| `reward` | of the completions" not in section("hpt")
    assert section("hpt").startswith("hpt\n\nAs `GroupMethod`, and\n\n| name |")
    assert "As `bc` and `ppo`, and\n" in section("bc-ppo")
    assert "| `entropy` |" not in section("bc-ppo")
    assert "| `clip_fraction` | nothing is clipped | 0 |" in section("mdpo")  # means another thing than in ppo
    assert r"KL(new \|\| old)" in section("mdpo-off")


def test_what_a_method_explains_includes_its_bases_and_stages():
    shown = {method: {name: rest for name, *rest in describe(method).metrics} for method in registry.entries()}
    assert shown["bc-ppo"]["surrogate"] == shown["ppo"]["surrogate"]
    assert shown["bc-ppo"]["imitation_loss"][1] == "whether the clone acts well is `eval/return`"
    assert shown["mdpo"]["clip_fraction"] == ["nothing is clipped", "0"]
    assert shown["dsac-t"]["entropy_temperature"] == shown["sac"]["entropy_temperature"]
    assert all(meaning for metrics in shown.values() for meaning, _ in metrics.values())


def test_the_matrix_is_in_date_and_says_what_is_refused():
    text = capabilities.page()
    assert (ROOT / "docs" / "capabilities.md").read_text(encoding="utf-8") == text, "out of date: make docs"
    policies, actions = ({row[0]: row[1:] for row in rows(part)} for part in text.split("\n## Actions\n"))
    named = policies["method"]
    assert [name for name, cell in zip(named, policies["[sac](methods/sac.md)"]) if cell] == [
        "`gaussian`",
        "`squashed-gaussian`",
    ]
    assert set(policies["[bc](methods/bc.md)"]) == {"yes"}
    assert policies["[iql](methods/iql.md)"][named.index("`flow`")] == "yes"
    assert actions["[sac](methods/sac.md)"][:3] == ["yes", "`gaussian`", ""]
    assert actions["[ppo](methods/ppo.md)"][:5] == ["yes"] * 5
    assert "[sft](methods/sft.md)" not in actions


def rows(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]


def test_a_page_without_its_place_is_not_written(tmp_path):
    (tmp_path / "README.md").write_text("nothing here")
    with pytest.raises(ValueError, match=r"README\.md has no place"):
        pages.pages(tmp_path)
