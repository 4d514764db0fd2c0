"""`polopt dataset make|info|measure`: its arguments and what it prints. Imports no torch until it must."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from polopt.cli.arguments import make_parser, split_task
from polopt.core.errors import UsageError, nearest
from polopt.tasks import recorded

HELP = """polopt dataset make TASK [--kinds KIND ...] [--steps N] [--transitions N] [...]   record what a policy does
polopt dataset info [NAME|FILE] [--json]                  statistics, and what breaks learning; no name: which there are
polopt dataset measure NAME [--expert RUN|DATASET] [--episodes N] [--json]      references for normalized scores
polopt dataset measure NAME --reference DATASET [...]              and trajectory quality and state-action coverage"""


def dataset_verb(argv: Sequence[str]) -> int:
    """Runs `polopt dataset ARGV`; returns the exit code."""
    verbs = {"make": _make, "info": _info, "measure": _measure}
    if not argv or argv[0] in ("-h", "--help"):
        print(HELP)
        return 0 if argv else 2
    if argv[0] not in verbs:
        raise UsageError(f"polopt dataset has no '{argv[0]}'{nearest(argv[0], verbs)}")
    return verbs[argv[0]](list(argv[1:]))


def _make(argv: list[str]) -> int:
    parser = make_parser("dataset make", "Trains a behavior policy and records D4RL's kinds of datasets.")
    parser.add_argument("task", help="as for polopt train")
    parser.add_argument(
        "--kinds",
        nargs="+",
        metavar="KIND",
        help="random medium medium-replay medium-expert expert, which are the default, replay noisy mixed",
    )
    parser.add_argument("--name", help="first part of the ids; default: the task's name")
    parser.add_argument("--method", help="what trains the behavior policy; default: sac, and ppo for discrete actions")
    parser.add_argument("--steps", type=int, help="its budget, in its own unit")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--transitions", type=int, default=100_000, help="decisions in a set, at least")
    parser.add_argument("--medium", type=float, default=1 / 3, help="the share of the way from random to expert")
    parser.add_argument("--reference-episodes", type=int, default=50, help="episodes behind each reference")
    parser.add_argument("--out", type=Path, help="run folder of the training")
    task_options, rest = split_task(argv)
    args, rest = parser.parse_known_args(rest)
    if args.seed < 0 or (args.steps is not None and args.steps < 1):
        raise UsageError("--seed is at least 0, and --steps at least 1")
    from polopt.training.datasets import KINDS, make_datasets

    made = make_datasets(
        args.task,
        args.kinds or KINDS,
        name=args.name,
        method=args.method,
        steps=args.steps,
        seed=args.seed,
        transitions=args.transitions,
        medium=args.medium,
        reference_episodes=args.reference_episodes,
        out=args.out,
        task_options=task_options,
        argv=rest,
        progress=True,
    )
    print("\n".join(made))
    print(f"in {recorded.datasets_folder()}", file=sys.stderr)
    return 0


def _info(argv: list[str]) -> int:
    parser = make_parser("dataset info", "What is in a dataset; without a name, which datasets are here.")
    parser.add_argument("name", nargs="?", metavar="NAME|FILE", help="an id, or an .hdf5 or .npz of D4RL's shape")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    if args.name is None:
        names = recorded.local_datasets()
        print(json.dumps(names) if args.json else "\n".join(names) or f"no dataset in {recorded.datasets_folder()}")
        return 0
    from polopt.training.dataset_facts import info

    facts = info(args.name)
    said = [] if args.json else facts.pop("warnings")
    _show(facts, args.json)
    for sentence in said:
        print(f"warning: {sentence}")
    return 0


def _measure(argv: list[str]) -> int:
    parser = make_parser("dataset measure", "Measures the references of a dataset, and keeps them in its metadata.")
    parser.add_argument("name")
    parser.add_argument("--expert", metavar="RUN|DATASET", help="whose return is 100; default: what is stored")
    parser.add_argument(
        "--reference", metavar="DATASET", help="what the same run collected: also measures tq, saco and lsaco by it"
    )
    parser.add_argument("--episodes", type=int, default=50, help="of each policy that plays")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dry-run", action="store_true", help="keep nothing")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    if args.episodes < 1 or args.seed < 0:
        raise UsageError("--episodes is at least 1, and --seed at least 0")
    from polopt.training.dataset_facts import measure

    found = measure(
        args.name,
        expert=args.expert,
        reference=args.reference,
        episodes=args.episodes,
        seed=args.seed,
        store=not args.dry_run,
    )
    _show(found, args.json)
    return 0


def _show(facts: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(facts))
        return
    width = max(map(len, facts))
    for name, value in facts.items():
        text = "-" if value is None else f"{value:,.6g}" if isinstance(value, float) else str(value)
        print(f"{name.replace('_', ' '):<{width}}  {text}")
