"""One of two processes that do the same things together; what each finds is read by `test_ranks.py`.

    python -m tests.training.pair FOLDER WORK ... [/ WORK ...]

All are forked from one that has imported what they need, which takes longer than most of what they do. After a "/" two
new ones go on. WORK is a name in `CHECKS`, in `WORKS`, in `GRPO` or `SHARDED` (settings), or a method of the registry;
after one in `DEATHS` the second process is gone.
"""

from __future__ import annotations

import errno
import multiprocessing
import os
import random
import shutil
import signal
import sys
import weakref
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict
from torch import nn

import polopt
from polopt.core import files, ranks, shards
from polopt.core.cluster import code_here
from polopt.core.errors import RunError, UsageError
from polopt.core.state import gather
from polopt.methods.language.iterative_dpo import judged
from polopt.optim import Optimizer
from polopt.tasks.problem import Problem
from polopt.tasks.problems import Addition
from polopt.training import launch, seeding
from polopt.training.agreement import check_agreement, fingerprints
from tests.guards.harness import advance, built, plan
from tests.training.peak import peaks

GRPO: dict[str, dict[str, Any]] = {
    "fewer rows than processes": {"batch_prompts": 1, "samples_per_prompt": 1, "updates_per_batch": 1},
    "lora": {"policy.lora": "lo-ra", "policy.lora.rank": 2, "policy.gradient_checkpointing": True},
    "exact kl": {"reference_kl.estimator": "exact", "micro_batch": 1},
    "compiled": {"compiled": True},
    "uneven": {"batch_prompts": 3, "samples_per_prompt": 3, "updates_per_batch": 2, "micro_tokens": 40},
}
SHARDED: dict[str, dict[str, Any]] = {
    "sharded": GRPO["uneven"] | {"reference_kl.estimator": "exact"},
    "sharded lora": GRPO["lora"] | GRPO["fewer rows than processes"],
    "sharded exact kl": GRPO["exact kl"],
}
LONG = {"steps": 60, "log_every": 10, "checkpoint_every": 20, "eval_every": 30}
SFT = {"model": "tiny", "batch_size": 3, "steps": 12, "log_every": 2, "checkpoint_every": 4, "eval_every": 4}
SFT |= {"eval_episodes": 2, "policy.max_tokens": 4, "loggers": (), "dtype": "float64", "lr": 1e-3, "threads": 1}
POOL = {"pool": 16, "score_truncated": True}
COUNTED: list[str] = []


class Deadly(Addition):
    """Additions, at the third of which a process that is the second of two dies, unless it has died before. They are
    those of the task "addition": problems are drawn by the task's name."""

    asked = 0

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.spec = replace(self.spec, name="addition")

    def verify(self, problem: Problem, text: str) -> float:
        Deadly.asked += 1
        mark = Path(os.environ["POLOPT_KILLED"])
        if os.environ.get("RANK") == "1" and Deadly.asked == 3 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().verify(problem, text)


def lucky(completion: str) -> float:
    """A reward that is another one whenever it is asked."""
    COUNTED.append(completion)
    return random.random() + torch.rand(()).item()


def settled(name: str) -> tuple[dict[str, Any], list[dict[str, float]]]:
    """What two updates of a smoke run leave, of a method or of GRPO with settings, in double precision; the metrics.

    With "sharded" before the name the model is divided, if there are several processes.
    """
    torch.set_default_dtype(torch.float64)
    changes = dict(GRPO.get(name, {}) | SHARDED.get(name, {}))
    compiled = changes.pop("compiled", False)
    changes |= {"shard": True} if name.startswith("sharded") and ranks.count() > 1 else {}
    method_name = "grpo" if name in GRPO or name in SHARDED else name.removeprefix("sharded ")
    with built(method_name, **changes) as method:
        if compiled:
            method.compile(backend="eager")
        metrics = advance(method, 10**9, 2)
        state = shards.on_first(gather(method), True) | {"torch": torch.get_rng_state()}
        return state, metrics


def refused(work: Any) -> str:
    try:
        work()
    except (UsageError, RunError, KeyboardInterrupt) as error:
        return str(error)
    return "nothing was said"


def primitives() -> dict[str, Any]:
    """Each function of `polopt.core.ranks` by itself."""
    seeding.seed_everything(0)
    own = ranks.index()
    flags, numbers = torch.tensor([own == 0, False]), torch.tensor([1.0 + own, 2.0])
    ranks.add_([flags, numbers])
    batch = numbered(3)
    parameters = [torch.zeros(2), torch.zeros(2), torch.zeros(2)]
    parameters[own].grad = torch.ones(2)
    sums = ranks.gradients_(parameters, {"both": torch.tensor(1.0), f"of {own}": torch.tensor(2.0)})

    def fails() -> int:
        if own == 1:
            raise UsageError("only the second process knows")
        return 0

    def full() -> None:
        with files.writing("run"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    luck = ranks.shared([5, 6, 7], lambda items: {item: random.random() + torch.rand(()).item() for item in items})
    return {
        "count": (ranks.count(), ranks.first(), ranks.parts(), [*ranks.own()], ranks.mine(3)),
        "told": ranks.told(lambda: own),
        "each": ranks.each(lambda: own),
        "error": (refused(lambda: ranks.told(fails)), refused(lambda: ranks.each(fails))),
        "disk": refused(lambda: ranks.told(full)),
        "code": refused(lambda: launch.check_code({"polopt": "1", "torch": f"2.{own}"})),
        "same code": refused(lambda: launch.check_code(code_here())),
        "most": ranks.most(own),
        "in turn": ranks.in_turn(lambda: own) == own,
        "added": (flags.tolist(), numbers.tolist()),
        "joined": ranks.joined(lambda rows: rows["x"] * 2, batch).tolist(),
        "one row": ranks.joined(lambda rows: rows["x"] * 2, batch[:1]).tolist(),
        "gradients": [None if each.grad is None else each.grad.tolist() for each in parameters],
        "sums": {name: value.item() for name, value in sums.items()},
        "luck": luck,
        "after": (random.random(), torch.rand(()).item()),
    }


def numbered(rows: int) -> Any:
    return TensorDict({"x": torch.arange(float(rows))}, batch_size=[rows])


def disagreements() -> dict[str, str]:
    """What is said when the second process is made to differ in something."""

    def weights(method: Any) -> None:
        next(method.policy.parameters()).data[0] += 1e-3

    def counts(method: Any) -> None:
        method.ledger.tokens += 1

    def luck(method: Any) -> None:
        torch.rand(())

    said = {}
    for change in (weights, counts, luck):
        with built("grpo") as method:
            check_agreement(method)
            if ranks.index() == 1:
                change(method)
            said[change.__name__] = refused(lambda: check_agreement(method))
            torch.manual_seed(0)
    return said


def random_reward() -> dict[str, Any]:
    """Rewards that nobody could compute twice."""
    planned = plan("grpo", samples_per_prompt=3, batch_prompts=3)
    planned.task_options["rewards"] = lucky
    method = planned.build()
    metrics = advance(method, 10**9, 2)
    method.task.close()
    return {"state": fingerprints(method), "asked": len(COUNTED), "metrics": metrics}


def random_judge() -> dict[str, Any]:
    """What nobody could say twice of the three answers to each of three prompts."""
    asked: list[Any] = []
    said = judged(lambda *texts: asked.append(texts) or random.random(), ["p", "q", "r"], ["a", "b", "c"] * 3)
    return {"said": said, "asked": len(asked), "after": random.random()}


def refusals() -> dict[str, str]:
    def drawing(batch: Any) -> Any:
        return (layer(torch.ones(2)) * torch.rand(())).sum(), {}

    layer = nn.Linear(2, 1)
    optimizer = Optimizer(layer, lr=0.1)
    options = {"steps": 4, "loggers": ()}
    return {
        "drawing": refused(lambda: optimizer.minimize(drawing, numbered(2))),
        "control": refused(lambda: polopt.train("ppo", "CartPole-v1", **options)),
        "number": refused(lambda: polopt.train("sft", "addition", model="tiny", processes=3, **options)),
        "engine": refused(lambda: polopt.train("grpo", "vowels", model="tiny", **{"policy.engine": "vllm"}, **options)),
        "device": refused(lambda: polopt.train("sft", "addition", model="tiny", device="cuda:0", **options)),
    }


def divided_model() -> dict[str, Any]:
    """What a model of two layers is gathered for, what each process holds of it, and what a checkpoint does."""
    from torch.distributed.fsdp._fully_shard import _fsdp_param_group as groups
    from torch.distributed.tensor import DTensor

    torch.set_default_dtype(torch.float64)
    gathers: list[int] = []
    original, put_together = groups.foreach_all_gather, DTensor.full_tensor
    groups.foreach_all_gather = lambda *args: gathers.append(1) or original(*args)
    alive: list[Any] = []

    def full_tensor(tensor: Any) -> torch.Tensor:
        assert not [one for one in alive if one() is not None], "two tensors stand whole"
        value = put_together(tensor)
        alive.append(weakref.ref(value))
        return value

    found: dict[str, Any] = {}
    with built("grpo", shard=True, model="0.5m", updates_per_batch=1, reference_kl=None) as method:
        policy = method.policy
        total = sum(parameter.numel() for parameter in policy.parameters())
        prompts = method.task.problems(range(3))
        torch.manual_seed(1)
        record, _ = policy.act([problem.prompt for problem in prompts])
        found["written"] = (record["action"], record["log_prob"])
        torch.manual_seed(1)
        rows = policy.tokenize([problem.prompt for problem in prompts])
        before = len(gathers)
        policy.generate(rows["prompt"], rows["prompt_mask"], torch.full((3,), 5))
        found["gathers"] = len(gathers) - before
        advance(method, 10**9, 1)
        found["divided"] = all(map(shards.divided, policy.parameters()))
        moments = [state["exp_avg"] for state in method.optimizer.torch.state.values()]
        held = [sum(shards.local(one).numel() for one in kind) for kind in (policy.parameters(), moments)]
        found["held"] = (total, held)
        DTensor.full_tensor = full_tensor
        state = gather(method)
        found["left"] = [path for path in shards.on_first(state, False) if path not in state or "policy" in path]
        policy.passes.headed = False
        found["refused"] = refused(lambda: policy.shard(torch.device("cpu")))
    groups.foreach_all_gather, DTensor.full_tensor = original, put_together
    return found


def written() -> tuple[torch.Tensor, torch.Tensor]:
    """What `divided_model` writes, of a model that is whole."""
    torch.set_default_dtype(torch.float64)
    with built("grpo", model="0.5m", updates_per_batch=1, reference_kl=None) as method:
        prompts = method.task.problems(range(3))
        torch.manual_seed(1)
        record, _ = method.policy.act([problem.prompt for problem in prompts])
        return record["action"], record["log_prob"]


def run(folder: Path, number: int = 0, at: int = 0, **changes: Any) -> str:
    """Trains; after row `at` a signal comes to the second process. What was said."""

    def train() -> None:
        rows = polopt.iterate("sft", "addition", out=folder, task_options=POOL, **SFT | changes)
        for count, _ in enumerate(rows):
            if count == at and number and ranks.index() == 1:
                os.kill(os.getpid(), number)

    return refused(train)


def runs(folder: Path) -> dict[str, Any]:
    torch.set_default_dtype(torch.float32)
    found = {"stopped": run(folder / "stopped", signal.SIGTERM, 3)}
    ranks.told(lambda: shutil.copytree(folder / "stopped", folder / "alone"))
    ranks.told(lambda: shutil.copytree(folder / "stopped", folder / "then sharded"))
    found["resumed"] = refused(lambda: polopt.resume(folder / "stopped"))
    found["then sharded"] = refused(lambda: polopt.resume(folder / "then sharded", shard=True))
    return found


def sharded_runs(folder: Path) -> dict[str, Any]:
    torch.set_default_dtype(torch.float32)
    found = {"sharded stopped": run(folder / "sharded", signal.SIGTERM, 4, shard=True, **LONG)}
    for name in ("then whole", "then alone"):
        ranks.told(lambda name=name: shutil.copytree(folder / "sharded", folder / name))
    found["sharded resumed"] = refused(lambda: polopt.resume(folder / "sharded"))
    found["then whole"] = refused(lambda: polopt.resume(folder / "then whole", shard=False))
    return found


def folders(folder: Path) -> dict[str, Any]:
    """Each process works in a folder of its own, as on another machine."""
    torch.set_default_dtype(torch.float32)
    before, own = Path.cwd(), folder / f"machine-{ranks.index()}"
    own.mkdir()
    os.chdir(own)
    found = {"not shared": run(Path("run")), "left": os.listdir()}
    found["nothing to resume"] = refused(lambda: polopt.resume("run"))
    ranks.told(lambda: shutil.copytree(folder / "stopped", "run"))
    found["resume not shared"] = refused(lambda: polopt.resume("run"))
    os.chdir(before)
    return found


def after(name: str, folder: Path) -> dict[str, Any]:
    """Two go on with a run of which one was killed: with the model as it was, and divided or no longer."""
    torch.set_default_dtype(torch.float32)
    for shard in (False, True):
        ranks.told(lambda shard=shard: shutil.copytree(folder / name, folder / f"{name}, {shard}"))
    return {f"{name}, {shard}": refused(resumption(folder / f"{name}, {shard}", shard)) for shard in (False, True)}


def resumption(folder: Path, shard: bool) -> Any:
    return lambda: polopt.resume(folder, shard=shard)


def killed(name: str, folder: Path, **changes: Any) -> None:
    """A run within which the second process ends; what the first one says then."""
    (folder / f"{name}.txt").write_text(run(folder / name, signal.SIGKILL, 5, **changes))


CHECKS: dict[str, Any] = {
    "primitives": primitives,
    "disagreements": disagreements,
    "random reward": random_reward,
    "random judge": random_judge,
    "refusals": refusals,
}


WORKS: dict[str, Any] = {
    "checks": lambda folder: {check: function() for check, function in CHECKS.items()},
    "divided": lambda folder: {"divided": divided_model()},
    "memory": lambda folder: {"memory": {shard: peaks(shard) for shard in (False, True)}},
    "runs": lambda folder: runs(folder) | sharded_runs(folder),
    "folders": folders,
    "after killed": partial(after, "killed"),
    "after sharded killed": partial(after, "sharded killed"),
}
DEATHS: dict[str, Any] = {
    "killed": partial(killed, "killed"),
    "sharded killed": partial(killed, "sharded killed", shard=True),
}


def main(rank: int, folder: Path, number: int, work: list[str]) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", launch.PLACE: str(folder / f"meet-{number}")}
    torch.set_num_threads(1)
    launch.meet()
    found: dict[str, Any] = {}
    for name in work:
        if name in WORKS:
            found |= WORKS[name](folder)
        elif name not in DEATHS:
            found[name] = settled(name)
    torch.save(found, folder / f"found-{number}-{rank}.pt")
    if work[-1] in DEATHS:
        DEATHS[work[-1]](folder)


def both(folder: Path, work: list[str]) -> None:
    """Does the work in pairs of processes and writes the exit codes of each pair."""
    with built("grpo", model="tiny", **GRPO["lora"]):
        from torch.distributed import fsdp  # noqa: F401
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    codes = []
    for number, part in enumerate("\n".join(work).split("\n/\n")):
        pair = [context.Process(target=main, args=(rank, folder, number, part.split("\n"))) for rank in range(2)]
        for process in pair:
            process.start()
        for process in pair:
            process.join()
        codes.append([process.exitcode for process in pair])
    torch.save(codes, folder / "codes.pt")


if __name__ == "__main__":
    both(Path(sys.argv[1]), sys.argv[2:])
