"""`--processes N`: one program in N processes (`polopt.core.ranks`), on this machine or, under torchrun, on several."""

from __future__ import annotations

import atexit
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from polopt.bases.language import LanguageMethod
from polopt.core import files, ranks
from polopt.core.cluster import code_here
from polopt.core.errors import Notice, RunError, UsageError
from polopt.training.folder import Run
from polopt.training.options import RunOptions

PLACE, PARENT = "POLOPT_RENDEZVOUS", "POLOPT_PARENT"  # a file where processes find each other; a pipe of who began them
PATIENCE = timedelta(hours=2)  # that one process waits for another: for rewards, or the writing of a checkpoint
GRACE = 40.0  # seconds that the others have to end by themselves once one has failed
SAID = 3.0  # seconds in which the first process says what all of them would


def world() -> int:
    """How many processes this one was started as one of."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def check(cls: type[Any], config: Any, options: RunOptions) -> None:
    """Raises UsageError for a method whose batches are not divided among processes, and for a sampler of one's own."""
    if options.shard and options.processes == 1 and world() == 1:
        raise UsageError("--shard divides a model among processes: say --processes 2 as well, for example")
    if options.shard and options.compile:
        raise UsageError("--shard and --compile: passes through a model that is divided are not compiled, use one")
    sampler = getattr(config, "sampler", "inline")
    if options.compile and sampler != "inline":
        raise UsageError(f"--compile and --sampler {sampler}: what is compiled cannot be sent to the sampler, use one")
    if options.processes == 1:
        return
    said = f"--processes {options.processes}"
    if options.compile == "auto":
        raise UsageError(f"{said}: each would find out by itself whether to compile: say --compile, or leave it out")
    if not issubclass(cls, LanguageMethod):
        raise UsageError(
            f"{said}: only methods for language models divide their batches, and {cls.slug} is none; "
            "'polopt compare --jobs' runs its seeds side by side"
        )
    if getattr(config.policy, "engine", "transformers") != "transformers":
        raise UsageError(f"{said}: --policy.engine {config.policy.engine} samples for one process only")
    if sampler != "inline":
        raise UsageError(f"{said}: --sampler {sampler} samples for one process only")
    if ":" in options.device:
        raise UsageError(f"{said}: each process takes a device of its own, so say --device cuda, not {options.device}")


def join(options: RunOptions) -> RunOptions:
    """Joins the other processes if this is one of several, and says in the options how many they are. Raises
    UsageError."""
    size = world()
    if size == 1:
        if options.processes > 1:
            raise UsageError(
                f"--processes {options.processes} belongs to 'polopt train'; a script is started as several processes "
                f"by torchrun --nproc-per-node {options.processes}"
            )
        return options
    if options.processes not in (1, size):
        raise UsageError(f"--processes {options.processes}, and torchrun has started {size}")
    meet(options.device)
    return replace(options, processes=size)


def meet(device: str = "cpu") -> None:
    """Joins the other processes that were started with this one, once. Raises UsageError without a device for it."""
    if dist.is_initialized():
        return
    cuda = torch.cuda.is_available() and device != "cpu"
    if cuda:
        local = int(os.environ.get("LOCAL_RANK", "0"))
        if local >= torch.cuda.device_count():
            raise UsageError(f"process {local} of this machine has no GPU: there are {torch.cuda.device_count()}")
        torch.cuda.set_device(local)
    place = os.environ.get(PLACE)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if cuda else "gloo",
        init_method=f"file://{place}" if place else "env://",
        rank=int(os.environ["RANK"]),
        world_size=world(),
        timeout=PATIENCE,
    )
    if not place:  # they may be on several machines
        check_code(code_here())
    if not ranks.first():
        warnings.filterwarnings("ignore", category=Notice)  # the first process has said it
    if PARENT in os.environ:
        threading.Thread(target=_end_with_parent, args=(int(os.environ[PARENT]),), daemon=True).start()
    atexit.register(leave)


def check_code(own: dict[str, str]) -> None:
    """Raises UsageError in every process where one has another version of what must be the same."""
    first, *others = ranks.each(lambda: own)
    for rank, found in enumerate(others, 1):
        for name in first:
            if found[name] != first[name]:
                said = f"process {rank} has {name} {found[name]}, and process 0 {first[name]}"
                raise UsageError(f"{said}: all that share a run need the same")


def meet_at(run: Run, device: str | None) -> None:
    """Joins the other processes, if there are any, to go on with a run, on its device or this one. Raises UsageError in
    all of them where there is no run, or where one does not see it."""
    if world() > 1:
        seen = (run.folder / "config.json").exists()
        meet(device or (run.config["run"]["device"] if seen else "cuda"))
    ranks.told(lambda: run.config)
    check_folder(run.folder)


def check_folder(folder: Path) -> None:
    """Raises UsageError in every process where one does not see the folder of the run, which the first one makes."""
    if ranks.count() == 1:
        return
    with ExitStack() as left:
        mark = ranks.told(lambda: left.enter_context(files.marked(folder)))
        for rank, host in enumerate(ranks.each(lambda: "" if (folder / mark.name).exists() else socket.gethostname())):
            if host:
                said = f"process {rank}, on {host}, does not see {mark.parent}"
                raise UsageError(f"{said}: the folder of a run lies on a disk that all its processes share")


def leave() -> None:
    """Parts from the other processes: what follows is the first one's alone."""
    if dist.is_initialized():
        dist.destroy_process_group()


def is_said(error: BaseException) -> bool:
    """Whether another process of this run tells the user of an error that ends this one."""
    if world() == 1 or not dist.is_initialized():
        return False
    store: Any = dist.distributed_c10d._get_default_store()
    try:
        if ranks.first():
            store.set("said", str(error))
            return False
        if isinstance(error, (ranks.Gone, KeyboardInterrupt)):
            return True
        store.wait(["said"], timedelta(seconds=SAID))
        return bool(store.get("said").decode() == str(error))
    except RuntimeError:  # the first process is gone, or has nothing to say
        return False


def run(arguments: Sequence[str], processes: int) -> int:
    """Runs `polopt *arguments` in so many processes of this machine; returns the exit code.

    Ctrl-C and SIGTERM are passed on to all of them, which agree on where to stop. When one fails the others end.
    """
    threads = str(max(1, (os.cpu_count() or 1) // processes))
    package = str(Path(__file__).parents[2])
    path = os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])])
    reads, writes = os.pipe()  # the processes end when nobody can write any more
    children: list[subprocess.Popen[bytes]] = []

    def pass_on(number: int, frame: Any) -> None:
        for child in children:
            if child.poll() is None:
                child.send_signal(number)

    with files.temporary_folder("polopt-ranks-") as place:
        usual = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            for rank in range(processes):
                own: dict[str, Any] = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, PARENT: reads}
                own |= {PLACE: place / "meet", "PYTHONPATH": path}
                environment = {"OMP_NUM_THREADS": threads} | dict(os.environ) | {k: str(v) for k, v in own.items()}
                command = [sys.executable, "-P", "-m", "polopt.cli", *arguments]
                children.append(subprocess.Popen(command, env=environment, process_group=0, pass_fds=(reads,)))
            codes = _ended(children)
        finally:
            for child in children:
                child.kill()
                child.wait()
            for number, handler in usual.items():
                signal.signal(number, handler)
            os.close(reads)
            os.close(writes)
    killed = [rank for rank, code in enumerate(codes) if code < 0]
    if killed:
        name = signal.Signals(-codes[killed[0]]).name
        raise RunError(f"process {killed[0]} of {processes} was ended by {name}: what was saved can be resumed")
    return codes[0] or max(codes)


def _ended(children: Sequence[subprocess.Popen[bytes]]) -> list[int]:
    """Waits for all; the exit code of each, where those that were killed here count as failed."""
    deadline: float | None = None
    late: set[int] = set()
    while any(child.poll() is None for child in children):
        time.sleep(0.05)
        if deadline is None and any(child.poll() for child in children):
            deadline = time.monotonic() + GRACE
        if deadline is not None and time.monotonic() > deadline:
            for rank, child in enumerate(children):
                if child.poll() is None:
                    late.add(rank)
                    child.kill()
    return [1 if rank in late else int(child.returncode) for rank, child in enumerate(children)]


def _end_with_parent(handle: int) -> None:
    os.read(handle, 1)
    os.kill(os.getpid(), signal.SIGTERM)
