"""What README.md and docs/ say is run: every `polopt ...` line and every Python block, shortened, page by page.

Named exceptions: `make demo` and `make test`, and claims, of which only the command line is checked.
"""

from __future__ import annotations

import dataclasses
import re
import shlex
import sys

import pytest

from polopt import cli
from polopt.claims import pages as claim_pages
from polopt.claims import results
from polopt.training import api, datasets
from tests.docs.blocks import PAGES, ROOT, blocks

STEPS = {"env_steps": 256, "updates": 10, "episodes": 10, "completions": 64}
SHORTER = {"--episodes": "2", "--seeds": "2", "--extend": "320", "--transitions": "500"}
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)#\s]+)")


@pytest.fixture
def short(monkeypatch):
    """Every run is short, whoever starts it. Nothing else about it changes."""
    original = api.Plan.__post_init__

    def shorten(plan):
        original(plan)
        steps = min(plan.steps, STEPS[plan.cls.unit])
        plan.options = dataclasses.replace(
            plan.options, steps=steps, eval_every=10**6, eval_episodes=1, eval_length=min(plan.options.eval_length, 100)
        )
        if hasattr(plan.config, "warmup"):
            plan.config = dataclasses.replace(plan.config, warmup=steps - 8)
        if hasattr(plan.config, "window") and plan.cls.unit == "env_steps":
            window = min(plan.config.window, max(steps // plan.config.envs, 1))
            plan.config = dataclasses.replace(plan.config, window=window)

    def claim(slug, **options):
        results.load_claim(results.find_place().claims / f"{slug}.py")
        return 0

    monkeypatch.setattr(api.Plan, "__post_init__", shorten)
    monkeypatch.setattr(datasets, "least_progress", lambda low, high: None)  # nothing is learned in a short run
    monkeypatch.setattr(claim_pages, "run_verb", claim)


def shortened(command):
    argv = shlex.split(command, comments=True)[1:]
    for option, value in SHORTER.items():
        if option in argv:
            argv[argv.index(option) + 1] = value
    return argv


def run_commands(text, where):
    for line in text.splitlines():
        if line.startswith("polopt "):
            assert cli.main(shortened(line)) == 0, f"{where}: {line}"


def run_console(text, capsys, where):
    """`$ command` lines, each with the output that follows it."""
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        command, _, expected = part.partition("\n")
        capsys.readouterr()
        cli.main(shortened(command))
        shown = capsys.readouterr()
        assert expected.strip() in shown.out + shown.err, f"{where}: {command}"


def pages():
    """Those of docs/methods are generated, and have tests of their own."""
    for page in PAGES:
        if page.parent.name == "methods":
            continue
        text = page.read_text(encoding="utf-8")
        if re.search(r"^(\$ )?polopt |^```python$", text, re.MULTILINE):
            yield pytest.param(page, id=str(page.relative_to(ROOT)))


@pytest.fixture
def own_modules(tmp_path):
    """Modules that a page writes are gone after it: the next page may have others of the same name."""
    yield
    for name, module in list(sys.modules.items()):
        if str(tmp_path) in str(getattr(module, "__file__", "")):
            del sys.modules[name]


@pytest.mark.filterwarnings("ignore:.* had not ended after 100 decisions")
@pytest.mark.parametrize("page", pages())
def test_commands_of(page, tmp_path, monkeypatch, capsys, short, own_modules):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)  # as the console script does
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "datasets"))
    for block in blocks(page):
        where = f"{page.name}:{block.line}"
        if block.language == "bash":
            run_commands(block.text, where)
        elif block.language == "console":
            run_console(block.text, capsys, where)
        elif block.language == "python" and not block.title:
            exec(compile("\n" * (block.line - 1) + block.text, str(page), "exec"), {"__name__": "__main__"})


def test_every_verb_has_a_page():
    assert {page.stem for page in (ROOT / "docs" / "verbs").glob("*.md")} == set(cli.VERBS)
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    assert [verb for verb in cli.VERBS if f"[{verb}](verbs/{verb}.md)" not in index] == []


@pytest.mark.parametrize("page", [pytest.param(page, id=str(page.relative_to(ROOT))) for page in PAGES])
def test_links_lead_somewhere(page):
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        if not target.startswith(("http", "mailto:")):
            assert (page.parent / target).exists(), target
