import dataclasses
import importlib
import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import polopt
from polopt import registry
from polopt.bases.method import Method
from polopt.cli.catalogue import methods_text, show_text
from polopt.cli.describe import describe
from polopt.core.errors import UsageError

ROOT = Path(polopt.__file__).parent.parent
KEYS = ["slug", "title", "year", "arxiv_id", "family", "base", "kind", "base_only", "status", "claim", "entries"]


def python(code: str) -> str:
    """What a fresh interpreter prints: this one has imported torch already."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def recorded(tmp_path, monkeypatch):
    """Records verdicts in a folder of claims that stands for the real one."""

    def record(verdicts):
        (tmp_path / "results").mkdir(exist_ok=True)
        (tmp_path / registry.RESULTS).write_text(json.dumps(verdicts))
        monkeypatch.setattr(registry, "claims_folder", lambda: tmp_path)

    return record


@pytest.fixture
def built(monkeypatch):
    """Makes the registry believe that exactly these methods have a file."""

    def believe(*names):
        places = {name: registry.Location(f"polopt.methods.x.{name}", name.upper(), Path("x.py")) for name in names}
        monkeypatch.setattr(registry, "locations", lambda: places)

    return believe


def test_the_catalogue_has_116_rows_and_the_bases():
    rows = registry.rows()
    assert len({row.slug for row in rows}) == len(rows)
    assert Counter(row.family for row in rows if not row.base_only) == {
        "control": 16,
        "offline": 18,
        "language": 34,
        "generative": 16,
        "multiagent": 14,
        "theory": 18,
    }
    bases = {row.slug for row in rows if row.base_only}
    assert bases >= {
        "ppo",
        "bc",
        "bc-ppo",
        "sft",
        "grpo",
        "dpo",
        "dql",
        "dsac-v1",
        "mdpo-off",
        "epsmix",
        "td3",
        "td3-bc",
    }
    assert {row.slug: row.kind for row in rows if row.kind != "method"} == {
        "dataset-measures": "study",
        "rl-llm-survey": "survey",
    }
    assert all(row.kind != "method" for row in registry.studies())
    assert "dataset-measures" in [row.slug for row in registry.studies()]


def test_every_row_is_well_formed():
    rows = {row.slug: row for row in registry.rows()}
    for row in rows.values():
        assert row.title
        assert row.base
        assert row.family in registry.FAMILIES
        assert 1989 <= row.year <= 2026
        digits = 10 if row.year > 2014 else 9
        assert row.arxiv_id == "" or (len(row.arxiv_id) == digits and row.year == 2000 + int(row.arxiv_id[:2]))
        assert row.status in registry.STATUSES
        assert row.claim in (None, *registry.VERDICTS)
        assert row.kind == "method" or row.entries == ()
        assert all(entry in rows for entry in row.entries)
    papers = Counter(row.title for row in rows.values() if not row.base_only)
    assert set(papers.values()) == {1}
    assert rows["dsac-t"].entries == ("dsac-t", "dsac-v1")
    assert rows["mdpo"].entries == ("mdpo", "mdpo-off")
    assert rows["stepmix"].entries == ("stepmix", "epsmix")


def test_json_has_exactly_the_promised_keys():
    data = json.loads(methods_text(as_json=True))
    assert all(list(row) == KEYS for row in data)
    assert sum(not row["base_only"] for row in data) == 116
    sac = next(row for row in data if row["slug"] == "sac")
    assert (sac["year"], sac["arxiv_id"], sac["base_only"], sac["entries"]) == (2018, "1812.05905", False, ["sac"])


def test_a_row_is_planned_then_partial_then_works(built, recorded):
    recorded({})
    built()
    assert (registry.find("sac").status, registry.find("sac").claim) == ("planned", None)
    built("sac", "mdpo", "mdpo-off")
    assert (registry.find("sac").status, registry.find("sac").claim) == ("partial", None)
    recorded({"sac": {"verdict": "not reproduced"}, "mdpo": {"verdict": "partly"}, "iql": {"verdict": "reproduced"}})
    assert (registry.find("sac").status, registry.find("sac").claim) == ("works", "not reproduced")
    assert registry.find("mdpo-off").claim == "partly"  # an entry shares the claim of its row
    assert (registry.find("iql").status, registry.find("iql").claim) == ("planned", None)  # a verdict without a file
    recorded({"sac": {"verdict": "no verdict"}})
    assert (registry.find("sac").status, registry.find("sac").claim) == ("partial", None)
    assert registry.find("dataset-measures").status == "partial"
    recorded({"dataset-measures": {"verdict": "reproduced"}})
    assert registry.find("dataset-measures").status == "works"


def test_filters(built, recorded):
    recorded({"sac": {"verdict": "reproduced"}})
    built("sac", "ppo")
    assert [row.slug for row in registry.methods("control", "works")] == ["sac"]
    assert [row.slug for row in registry.methods("control", status="partial")] == ["ppo"]
    with pytest.raises(UsageError, match=r"there is no family 'contrl'; did you mean 'control'\?"):
        registry.methods("contrl")
    with pytest.raises(UsageError, match="there is no status 'done'; choose from partial, planned, works"):
        registry.methods(status="done")


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("sacc", "there is no method 'sacc'; did you mean 'sac'?"),
        ("DSAC_T", "there is no method 'DSAC_T'; did you mean 'dsac-t'?"),
        ("dsac-t", "dsac-t is planned, not built yet; of the same paper there is dsac-v1"),
        ("rldp", "rldp is planned, not built yet"),
        ("rl-llm-survey", "rl-llm-survey is a survey, not a method that can be trained"),
    ],
)
def test_a_method_that_is_not_there_is_one_sentence(name, sentence, built):
    built("sac", "dsac-v1")
    with pytest.raises(UsageError) as error:
        registry.load(name)
    assert str(error.value) == sentence


def test_discovery_reads_slugs_from_text():
    source = """
class Helper:
    other = "x"

class MDPO(PPO):
    @dataclass(frozen=True)
    class Config(PPO.Config):
        slug_like: str = "no"
    slug = "mdpo"

class OffPolicyMDPO(SAC):
    slug: ClassVar[str] = "mdpo-off"

class Teacher(SAC):
    slug = "teacher"
    entry = False

class Student(Teacher):
    entry: ClassVar[bool] = False
    slug = "student"

class Both(Student):
    slug = "both"

def f():
    slug = "no"
    return {"slug": "no"}
"""
    assert registry.slugs_in(source) == [("mdpo", "MDPO"), ("mdpo-off", "OffPolicyMDPO"), ("both", "Both")]


def test_a_learner_is_an_entry_or_says_that_it_is_none():
    modules = {importlib.import_module(where.module) for where in registry.locations().values()}
    learners = [
        each
        for module in modules
        for each in vars(module).values()
        if isinstance(each, type) and issubclass(each, Method) and each.__module__ == module.__name__
    ]
    found = {registry.load(name) for name in registry.entries()}
    assert found < set(learners)
    for each in learners:
        assert each.entry is (each in found), f"{each.__name__} has no slug of its own: it says entry = False"


def test_every_method_file_belongs_to_the_catalogue():
    known = {name for row in registry.rows() for name in (row.slug, *row.entries)}
    for name, where in registry.locations().items():
        assert name in known, f"{where.path} declares '{name}', which the catalogue does not have"
        assert registry.find(name).family == where.path.parent.name


def test_the_table():
    table = methods_text("control")
    assert table.startswith("method")
    assert len(table.splitlines()) == 1 + len(registry.methods("control")) + 2
    assert re.search(r"^16 methods and \d+ bases or further entries: ", table, re.MULTILINE)
    stac = next(line for line in methods_text().splitlines() if line.startswith("stac "))
    assert "Stochastic Actor-Critic" in stac
    rpo = next(line for line in methods_text().splitlines() if line.startswith("rpo "))
    assert "2405.16436" in rpo
    assert "Provably Mitigating" in rpo


def test_names_that_clash_in_the_field_carry_title_and_arxiv_id():
    assert {row.slug for row in registry.rows() if row.clashes} == {"apo", "gdpo", "hdpo", "iql", "rpo", "stac"}
    assert registry.find("iql").label == (
        "iql (Offline Reinforcement Learning with Implicit Q-Learning, 2021, arXiv 2110.06169)"
    )
    assert registry.find("sac").label == "sac"


def test_show_tells_the_result_of_the_claim(recorded):
    expectations = [{"text": "a > b by 3", "holds": True}, {"text": "c < 1", "holds": False}]
    recorded({"sac": {"verdict": "partly", "reason": "1 of 2", "seeds": 5, "expectations": expectations}})
    lines = show_text("sac").splitlines()
    assert "  claim     partly" in lines
    assert "  result    5 seeds; 1 of 2" in lines
    assert "            holds: a > b by 3" in lines
    assert "            fails: c < 1" in lines


def test_show_of_what_is_not_built(built):
    built()
    assert show_text("gdpo").splitlines()[0] == (
        "gdpo: Improving Reasoning for Diffusion Language Models via Group Diffusion Policy Optimization, 2025, "
        "arXiv 2510.08554"
    )
    assert show_text("gdpo").endswith("gdpo is planned, not built yet")
    assert show_text("rl-llm-survey").endswith("rl-llm-survey is a survey")
    study = show_text("dataset-measures")
    assert study.endswith("dataset-measures is a study: its code is polopt/evaluation/dataset_measures.py")
    assert "SACo(D)  = u(D) / u(reference)" in study
    with pytest.raises(UsageError, match=r"there is no method 'gdpoo'; did you mean 'gdpo'\?"):
        show_text("gdpoo")


@pytest.mark.parametrize("name", registry.entries())
def test_show_names_every_field_with_its_source(name):
    text = show_text(name)
    for field in describe(name).fields:
        assert field.source, f"{name} does not say where the default of {field.name} comes from"
        assert f"--{field.name} " in text
    assert "presets\n" in text
    assert "limit cases\n" in text


def test_what_is_read_without_torch_is_what_torch_gives():
    """All in one reading: apart they would import the bases and the parts anew for every method."""
    code = (
        "import dataclasses, json, sys\n"
        "from polopt import registry\n"
        "from polopt.cli.describe import describe\n"
        "from polopt.config.stubs import stubbed\n"
        "before = set(sys.modules)\n"
        "with stubbed():\n"
        "    import torch  # a stub, so that what is read stays until the end\n"
        "    found = {name: dataclasses.asdict(describe(name)) for name in registry.entries()}\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules\n"
        "assert not [name for name in set(sys.modules) - before if name.startswith('polopt')]\n"
        "print(json.dumps(found))\n"
    )
    import torch  # noqa: F401

    real = {name: dataclasses.asdict(describe(name)) for name in registry.entries()}
    assert json.loads(python(code)) == json.loads(json.dumps(real))


def test_stubs_stand_for_a_library_and_leave_nothing_behind(tmp_path):
    (tmp_path / "probe.py").write_text(
        "from collections.abc import Callable\n"
        "from dataclasses import dataclass\n"
        "import torch, numpy as np\n"
        "import torch.nn.functional as F\n"
        "from tensordict import TensorDict\n"
        "from torch import Tensor, nn\n"
        "from polopt.config import Config, param\n"
        "EPS = 2.0 * torch.finfo(torch.float32).eps ** 0.5 + np.pi\n"
        "class Net(nn.Module, torch.Generic[Tensor]):\n"
        "    table: dict[str, Tensor | None] = {}\n"
        "    @torch.no_grad()\n"
        "    def forward(self, x: Tensor, f: Callable[[Tensor], Tensor] | None = None) -> 'Tensor': ...\n"
        "class Sub(Net): pass\n"
        "assert not isinstance(3, Tensor)\n"
        "@dataclass(frozen=True)\n"
        "class Probe(Config):\n"
        "    x: int = param(3, 'polopt')\n"
    )
    code = (
        "import sys, polopt.config, polopt.methods.control as package\n"
        "from polopt.config.stubs import stubbed\n"
        f"package.__path__.append({str(tmp_path)!r})\n"
        "with stubbed():\n"
        "    from polopt.methods.control.probe import Probe\n"
        "print(Probe().x, 'torch' in sys.modules, 'polopt.methods.control.probe' in sys.modules)\n"
        "print(hasattr(package, 'probe'), [each for each in sys.meta_path if 'stubs' in type(each).__module__])\n"
        "import numpy; print(numpy.zeros(2).sum())\n"
    )
    assert python(code).splitlines() == ["3 False False", "False []", "0.0"]


def test_listing_and_showing_import_no_torch():
    code = (
        "import sys\n"
        "from polopt.cli.catalogue import methods_text, show_text\n"
        "methods_text(); methods_text(as_json=True); show_text('uni-o4')\n"
        "print([name for name in ('torch', 'numpy', 'tensordict', 'gymnasium') if name in sys.modules])"
    )
    assert python(code).strip() == "[]"
