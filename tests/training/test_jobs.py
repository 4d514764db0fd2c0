"""Jobs one after another, side by side and on Ray: the same numbers, killed or not, and what is refused.

Ray begins once, with two processors, and ends with the tests.
"""

import importlib
import io
import json
import os
import signal
import sys
import threading
import time
import types
from contextlib import nullcontext

import pytest
import torch
from rich.console import Console

import polopt
from polopt.claims import runner
from polopt.core import cluster as cluster_part
from polopt.core.errors import RunError, UsageError
from polopt.core.pool import Died
from polopt.training import job_table, on_ray
from polopt.training.folder import Run
from polopt.training.job_table import Job, shown
from polopt.training.jobs import Engine, one_thread, run_jobs
from tests.claims.toy import SOURCE, git, write
from tests.core.test_pool import busy
from tests.data import marks
from tests.training import runs
from tests.training.killing import die, fill

TINY = {"envs": 2, "window": 8, "network.sizes": (8,), "steps": 48, "eval_episodes": 1, "loggers": ()}
KILLING = "tests.training.killing:make"


@pytest.fixture(scope="session")
def cluster():
    for name, value in cluster_part.SETTINGS.items():
        os.environ.setdefault(name, value)
    ray = importlib.import_module("ray")
    small = {"include_dashboard": False, "log_to_driver": False, "object_store_memory": 80_000_000}
    ray.init(address="local", num_cpus=2, num_gpus=0, logging_level="ERROR", **small)
    yield "local"
    ray.shutdown()


def trained(folder, kill, **engine):
    """The rows and last checkpoints of two seeds; one process is killed half way."""
    folder.mkdir()
    if not kill:
        (folder / "killed").touch()
    task = {"task_options": {"folder": str(folder)}}
    found = polopt.compare(["ppo"], KILLING, seeds=2, out=folder, checkpoint_every=16, **task, **engine, **TINY)
    assert (folder / "killed").exists()
    return [_numbers(run) for run in found.runs]


def _numbers(run):
    rows = [{name: value for name, value in row.items() if name != "seconds"} for row in run.rows]
    state = run.checkpoints.load(run.checkpoints.steps()[-1])
    tensors = {name: value.tolist() for name, value in state.items() if isinstance(value, torch.Tensor)}
    assert run.config["run"]["threads"] == 1
    return rows, tensors


def test_serial_and_two_jobs_and_ray_give_the_same_bits_though_processes_are_killed(cluster, tmp_path):
    serial = trained(tmp_path / "serial", kill=False)
    assert serial[0] != serial[1]
    assert trained(tmp_path / "jobs", kill=True, jobs=2) == serial
    assert trained(tmp_path / "ray", kill=True, ray=cluster) == serial


def test_a_claim_runs_on_ray_and_a_job_that_always_dies_names_its_signal(cluster, tmp_path):
    (tmp_path / "claims").mkdir()
    git(tmp_path, "init", "-q")
    dying = "    import os; seed == 2 and os.kill(os.getpid(), 9)\n"
    write(tmp_path, SOURCE.replace('    return {"score": 1.0', dying + '    return {"score": 1.0').replace("4", "3"))
    outcome = runner.run_claim("toy", root=tmp_path, ray=cluster)
    assert len([line for line in outcome.lines if "metrics" in line]) == 5
    assert [line["error"] for line in outcome.failed] == [
        "its process died 3 times; at last it was killed by SIGKILL (out of memory?)"
    ]
    assert not list((tmp_path / "claims" / "results").glob(".together*"))


def test_what_a_cluster_lacks_is_one_sentence(cluster, tmp_path, monkeypatch):
    def run(gpus=0.0, function=die):
        return list(run_jobs(function, [(0,)], Engine(ray=cluster, gpus=gpus), tmp_path / "out"))

    with pytest.raises(UsageError, match=r"^--gpus-per-job 0.5: this cluster has no GPU$"):
        run(gpus=0.5)
    with pytest.raises(UsageError, match="with ray=local other processes must be able to import what is given"):
        run(function=lambda number: number)
    here = on_ray.code_here()
    monkeypatch.setattr(on_ray, "code_here", lambda: here | {"torch": "1.0"})
    with pytest.raises(UsageError, match=r"has torch .*, and here is 1\.0: every machine of the cluster needs"):
        run()
    monkeypatch.setattr(on_ray, "code_here", lambda: here | {"polopt": "0.0 (other)"})
    with pytest.raises(UsageError, match=r"has polopt .*, and here is 0.0 \(other\)"):
        run()
    monkeypatch.undo()
    monkeypatch.setattr(on_ray, "marked", lambda folder: nullcontext(folder / "absent"))
    with pytest.raises(UsageError, match=r"does not see .*out and .*: on a cluster both lie on a disk"):
        run()


def test_a_full_disk_on_the_cluster_is_one_sentence_and_what_was_saved_stays(cluster, tmp_path):
    with pytest.raises(RunError, match=r"^could not write .*1: the disk is full; what was saved before is untouched$"):
        list(run_jobs(fill, [(str(tmp_path), 0), (str(tmp_path), 1)], Engine(ray=cluster), tmp_path))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"0": b"saved"}


def ignore_ctrl_c():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    time.sleep(1.0)  # so that another process makes the other call


def test_ctrl_c_lets_jobs_on_the_cluster_save_and_begins_nothing_more(cluster, tmp_path):
    """Also where the cluster was begun in the background, for which a shell has Ctrl-C ignored."""
    ray = importlib.import_module("ray")
    ray.get([ray.remote(num_cpus=1)(ignore_ctrl_c).remote() for _ in range(2)])
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def press():
        end = time.monotonic() + 60
        while len(list(tmp_path.glob("*.pid"))) < 2 and time.monotonic() < end:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=press)
    thread.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            list(run_jobs(busy, [(str(tmp_path), number) for number in range(4)], Engine(ray=cluster), tmp_path))
    finally:
        signal.signal(signal.SIGINT, before)
    thread.join()
    begun = sorted(path.stem for path in tmp_path.glob("*.pid"))
    assert len(begun) == 2
    assert sorted(path.stem for path in tmp_path.glob("*.saved")) == begun


def test_an_actor_makes_the_batches_that_are_made_inline_and_is_named_when_it_dies(cluster, monkeypatch):
    source = marks.begun("actor")
    try:
        marks.goes_on_alike(source)
        importlib.import_module("ray").kill(source._sampler.process._actor)
        with pytest.raises(
            RunError, match=r"^the process that samples ahead ended on Ray \(.*\): 'polopt resume' goes"
        ):
            marks.served(source, marks.Weight(), 4)
    finally:
        source.close()
    here = cluster_part.code_here()
    monkeypatch.setattr(cluster_part, "code_here", lambda: here | {"torch": "1.0"})
    with pytest.raises(UsageError, match=r"^--sampler actor: .* has torch .*, and here is 1\.0: every machine"):
        marks.begun("actor").next(marks.Weight())
    with pytest.raises(UsageError, match=r"^--sampler actor: this cluster has no GPU$"):
        cluster_part.OwnActor("--sampler actor", gpus=1.0)


@pytest.mark.exhaustive
@pytest.mark.parametrize("engine", ["transformers", "vllm"])
def test_a_run_ends_alike_where_an_actor_samples_and_resumed(engine, cluster, tmp_path, monkeypatch):
    """With the stand-in for vLLM as well, which every process finds in a folder."""
    (tmp_path / "vllm.py").write_text("from tests.policies.test_vllm import LLM, SamplingParams\n")
    monkeypatch.syspath_prepend(tmp_path)
    for sampler in ("inline", "actor"):
        runs.train("rec", tmp_path / sampler, ahead=2, sampler=sampler, **{"policy.engine": engine})
    polopt.resume(tmp_path / "actor", checkpoint=Run(tmp_path / "actor").checkpoints.steps()[0])
    inline, actor = (runs.final_state(tmp_path / sampler) for sampler in ("inline", "actor"))
    differing = runs.differing(inline, actor)
    assert [path for path in differing if not path.startswith("method.task")] == []


def test_a_cluster_that_is_not_there_is_one_sentence(tmp_path, monkeypatch):
    def run(address):
        return list(run_jobs(die, [(0,)], Engine(ray=address), tmp_path))

    def init(address, **options):
        raise ConnectionError("Could not find any running Ray instance. Please ...\nand more")

    monkeypatch.setitem(sys.modules, "ray", types.SimpleNamespace(is_initialized=lambda: False, init=init))
    with pytest.raises(UsageError, match=r"^--ray 127.0.0.1:1: there is no cluster \(.*refused\)$"):
        run("127.0.0.1:1")
    with pytest.raises(UsageError, match=r"^--ray auto: this machine belongs to no cluster"):
        run("auto")
    with pytest.raises(UsageError, match=r"^--ray loacl: it is local, auto or HOST:PORT$"):
        run("loacl")
    with pytest.raises(UsageError, match=r"^--ray local: Could not find any running Ray instance. Please ...$"):
        run("local")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r'^--ray needs Ray: pip install "polopt\[cluster\]"$'):
        run("local")


def test_engines_are_checked():
    assert Engine().here
    assert not Engine(jobs=2).here
    assert not Engine(jobs=1, ray="local").here
    for wrong, said in (
        ({"jobs": 0}, "--jobs 0: at least 1"),
        ({"gpus": 1.0}, "--gpus-per-job is for --ray"),
        ({"gpus": 1.5, "ray": "auto"}, "--gpus-per-job 1.5: part of one, or a whole number"),
        ({"gpus": -1.0, "ray": "auto"}, "--gpus-per-job -1: part of one"),
    ):
        with pytest.raises(UsageError, match=said):
            Engine(**wrong)


def threads():
    return torch.get_num_threads()


def test_a_job_has_one_thread_and_this_process_as_many_as_before(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert dict(run_jobs(threads, [(), ()], Engine(), tmp_path)) == {0: 1, 1: 1}
        assert torch.get_num_threads() == 2
        with one_thread():
            assert (os.environ["OMP_NUM_THREADS"], os.environ["MKL_NUM_THREADS"]) == ("1", "1")
        assert (os.environ["OMP_NUM_THREADS"], os.environ.get("MKL_NUM_THREADS")) == ("7", None)
    finally:
        torch.set_num_threads(before)


def folder_of(place, rows, steps=100, score="return"):
    place.mkdir(parents=True)
    (place / "config.json").write_text(json.dumps({"unit": "env_steps", "steps": steps, "score": score}))
    lines = ["env_steps,seconds,eval/return", *rows]
    (place / "metrics.csv").write_text("\n".join(lines) + "\n")


def test_the_table_reads_the_folders_of_the_runs(tmp_path):
    folder_of(tmp_path / "a", ["0,0.1,9.5", "50,3.2,21.25", "60,4.0,"])
    folder_of(tmp_path / "b" / "digest", ["10,1.0,"])  # as the arms of a claim do
    folder_of(tmp_path / "c", ["100,9.0,30.0"], score="-return")
    (tmp_path / "d").mkdir()
    jobs = [Job(name, tmp_path / name) for name in ("d", "c", "b", "a", "[e]")]
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(job_table.table(jobs, {1: True, 4: False}))
    lines = [" ".join(line.split()) for line in console.export_text().splitlines() if line.strip()]
    assert lines == [
        "run progress seconds last evaluation",
        "b 10 env_steps (10%) 1",
        "a 60 env_steps (60%) 4 return 21.25",
        "d -",
        "c done 9 minus return -30",
        "[e] failed",
        "2 of 5 ended",
    ]
    console.print(job_table.table(jobs, {}, height=6))
    assert "0 of 5 ended, 3 not shown" in console.export_text()


def test_what_ends_is_passed_on_with_a_table_or_a_line_each(tmp_path, capsys):
    jobs = [Job("one", tmp_path), Job("two", tmp_path)]
    ended = [(1, None), (0, Died("killed"))]
    assert list(shown(iter(ended), jobs)) == ended
    assert capsys.readouterr().err == "two: done (1 of 2 runs)\none: failed (2 of 2 runs)\n"
    terminal = Console(force_terminal=True, width=80, file=sys.stderr)
    assert list(shown(iter(ended), jobs, terminal)) == ended
    assert "2 of 2 ended" in capsys.readouterr().err
    assert list(shown(iter(ended), jobs, lines=False)) == ended
    assert capsys.readouterr().err == ""


def test_a_run_that_always_dies_is_named_when_the_others_have_ended(tmp_path, monkeypatch):
    from polopt.report import trained as runs

    calls = [types.SimpleNamespace(name=f"ppo, seed {seed}") for seed in range(3)]
    failed = {2: RunError("nan"), 1: Died("its process died 3 times")}
    with pytest.raises(RunError, match=r"^ppo, seed 1: its process died 3 times \(1 more failed\)$"):
        runs.raise_first(calls, failed)
    runs.raise_first(calls, {})
