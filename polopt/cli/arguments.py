"""What the verbs read alike: a parser with one sentence per mistake, options of the task, code of one's own."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from typing import Any

from polopt.core.errors import UsageError, nearest


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        unknown = message.removeprefix("unrecognized arguments: ").split()
        known = [flag for action in self._actions for flag in action.option_strings if flag.startswith("--")]
        hint = nearest(unknown[0], known) if message.startswith("unrecognized") else ""
        raise UsageError(f"{self.prog}: {message}{hint}")


def make_parser(verb: str, description: str) -> argparse.ArgumentParser:
    return Parser(prog=f"polopt {verb}", description=description, allow_abbrev=False)


def split_task(argv: list[str]) -> tuple[dict[str, Any], list[str]]:
    """Takes the `--task.NAME VALUE` options out: keyword arguments of the environment, read as JSON if they are."""
    options: dict[str, Any] = {}
    rest: list[str] = []
    left = list(argv)
    while left:
        item = left.pop(0)
        if not item.startswith("--task."):
            rest.append(item)
            continue
        name, sign, value = item.removeprefix("--task.").partition("=")
        if not sign and not left:
            raise UsageError(f"{item} needs a value")
        values = [_read(value if sign else left.pop(0))]
        while not sign and left and not left[0].startswith("-"):
            values.append(_read(left.pop(0)))  # --task.levels 1 5
        options[name.replace("-", "_")] = values[0] if len(values) == 1 else values
    return options, rest


def split_members(argv: list[str], heads: Iterable[str]) -> tuple[list[str], dict[str, list[str]]]:
    """Takes the `--NAME.OPTION VALUE` options out, NAME one of `heads`: what is left, and the options of each NAME."""
    known = {head.replace("-", "_"): head for head in heads}
    common: list[str] = []
    each: dict[str, list[str]] = {}
    target = common
    for word in argv:
        if word.startswith("--"):
            name, sign, value = word.removeprefix("--").partition("=")
            head, dot, option = name.partition(".")
            own = known.get(head.replace("-", "_")) if dot else None
            target = common if own is None else each.setdefault(own, [])
            word = word if own is None else f"--{option}{sign}{value}"
        target.append(word)
    return common, each


def _read(value: str) -> Any:
    try:
        return json.loads(value)
    except ValueError:
        return value


def add_jobs(parser: argparse.ArgumentParser, default: str = "1") -> None:
    """Where several trainings run; `jobs_of` reads it."""
    parser.add_argument("--jobs", type=int, metavar="N", help=f"runs at a time; default: {default}")
    parser.add_argument(
        "--ray", metavar="WHERE", help="on a Ray cluster: local, auto or HOST:PORT; --jobs is then as many as fit"
    )
    parser.add_argument("--gpus-per-job", type=float, default=0.0, metavar="F", help="with --ray; may be part of one")


def jobs_of(args: argparse.Namespace) -> dict[str, Any]:
    """What `add_jobs` read, as the functions of the library take it."""
    return {"jobs": args.jobs, "ray": args.ray, "gpus_per_job": args.gpus_per_job}


def add_own_code(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--task", metavar="MODULE:FUNCTION", help="the task again, when it is code of your own")
    parser.add_argument("--network", metavar="MODULE:FUNCTION", help="the network again, when it is code of your own")
    parser.add_argument("--rewards", metavar="MODULE:FUNCTION[,...]", help="the reward functions of a text task again")
    parser.add_argument("--judge", metavar="MODULE:FUNCTION", help="the judge of pairs of answers again")
    parser.add_argument("--tables", metavar="MODULE:FUNCTION", help="the policies of a class of your own again")
    parser.add_argument("--criterion", metavar="MODULE:FUNCTION", help="the weights of groups of your own again")
    parser.add_argument("--overseer", metavar="MODULE:FUNCTION", help="the overseer of your own again")
    parser.add_argument("--trust-remote-code", action="store_true", help="run the code that the model brings, again")


def own_code(args: argparse.Namespace) -> dict[str, Any]:
    """What `add_own_code` read, as the functions of the library take it."""
    from polopt.config.serialize import import_callable

    return {
        "task": args.task,
        "network": import_callable(args.network) if args.network else None,
        "rewards": args.rewards,
        "judge": import_callable(args.judge) if args.judge else None,
        "tables": import_callable(args.tables) if args.tables else None,
        "criterion": import_callable(args.criterion) if args.criterion else None,
        "overseer": import_callable(args.overseer) if args.overseer else None,
        "trust_remote_code": args.trust_remote_code,
    }
