"""Which code was measured."""

import subprocess

from benchmarks import machine


def test_results_do_not_make_a_commit_dirty_and_code_does(tmp_path, monkeypatch):
    def git(*command: str) -> str:
        own = ("-c", "user.name=polopt", "-c", "user.email=polopt@example.org")
        return subprocess.run(["git", *own, *command], cwd=tmp_path, capture_output=True, text=True, check=True).stdout

    code, results = tmp_path / "polopt" / "one.py", tmp_path / "benchmarks" / "results" / "speed.jsonl"
    for file in (code, results):
        file.parent.mkdir(parents=True)
        file.write_text("1")
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "one")
    monkeypatch.setattr(machine, "ROOT", tmp_path)
    head = git("rev-parse", "--short=12", "HEAD").strip()
    results.write_text("2")
    assert machine.commit() == head
    code.write_text("2")
    assert machine.commit() == f"{head}-dirty"


def test_without_git_it_is_unknown(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "ROOT", tmp_path)
    assert machine.commit() == "unknown"
