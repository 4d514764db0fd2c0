"""docs/methods/: every entry is there, says when to choose it, and what it links to exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from polopt import registry
from polopt.claims.results import find_place, load_claim, read_lines
from polopt.cli import main, method_pages
from polopt.core.errors import UsageError
from polopt.report.claims import key_in, metrics_of, picture_key, recorded
from polopt.training import api

DOCS = Path(__file__).parents[2] / "docs"


def test_every_entry_is_listed_and_says_when_to_choose_it(written):
    index = written[DOCS / "methods" / "index.md"]
    studies = [row.slug for row in registry.studies()]
    listed = re.findall(r"^\| \[([\w-]+)\]\([\w-]+\.md\) \|", index, re.MULTILINE)
    assert listed == [*method_pages.built(), *studies]
    for name in (*registry.entries(), *studies):
        choose = registry.find(name).choose
        assert choose.endswith("."), f"{name}: the catalogue does not say when to choose it"


def test_the_commands_of_the_pages_are_plans(monkeypatch, tmp_path):
    """They are not run here: the smoke runs of all methods are."""
    plans = []

    def start(plan, folder, **options):
        plans.append(plan.method)
        raise UsageError("enough")

    monkeypatch.setattr(api, "start", start)
    monkeypatch.chdir(tmp_path)
    commands = {name: command for name in registry.entries() if (command := method_pages.example(name))}
    for name, command in commands.items():
        assert main(command.split()[1:]) == 2, f"{name}: {command}"
    assert plans == list(commands)
    assert len(commands) > 20


def test_what_pages_of_methods_link_to_exists():
    for file in (DOCS / "methods").glob("*.md"):
        for target in re.findall(r"\]\(([^)#]+)", file.read_text(encoding="utf-8")):
            assert target.startswith("https://") or (file.parent / target).exists(), f"{file.name}: {target}"


def test_no_page_stands_alone(written):
    pages = {path for path in written if path.parent == DOCS / "methods"}
    assert set((DOCS / "methods").glob("*")) == pages


def test_pictures_show_the_recorded_results():
    place = find_place()
    for slug in recorded():
        claim = load_claim(place.claim(slug))
        metrics = metrics_of(claim, read_lines(place.lines(slug))[0])
        key = picture_key(claim, metrics, place.claim(slug)) if metrics else None
        assert key_in(DOCS / "images" / "claims" / f"{slug}.png") == key, (
            f"the picture of {slug} is out of date: make docs"
        )


@pytest.mark.parametrize(
    ("docstring", "markdown"),
    [
        ("a * b, [0, 1] and <x>", r"a \* b, \[0, 1] and \<x>"),
        ("`a * b` stays", "`a * b` stays"),
        ("text:\n    x <- y * z", "text:\n\n    x <- y * z"),
        ("text\n\n    x [N]\n    y", "text\n\n    x [N]\n    y"),
    ],
)
def test_prose_means_nothing_but_itself(docstring, markdown):
    assert method_pages.prose(docstring) == markdown


def test_a_page_has_what_show_has():
    page = method_pages.method_page(["mdpo", "mdpo-off"])
    for text in ("`--proximity`", "`--preset`", "`pendulum`", "sac with --entropy fixed", "polopt train mdpo --task "):
        assert text in page
    assert "`--network.sizes`" not in page.partition("## Options of mdpo\n")[2]
    assert "claims.md#mdpo" in page
    assert "images/claims/mdpo.png" in page
    assert "no claim of its own" in method_pages.method_page(["bc"])


def test_the_page_of_a_study_is_that_of_its_code():
    page = method_pages.study_page(registry.find("dataset-measures"))
    assert "TQ(D)    = (g(D) - g(random)) / (g(online) - g(random))" in page
    assert "](../../polopt/evaluation/dataset_measures.py)" in page
    assert "The claim of [dataset-measures](../claims.md#dataset-measures): " in page
