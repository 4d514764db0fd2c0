"""`polopt export | compare | sweep | report | claim`: what is made of runs. Imports no torch until it must."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from polopt.cli.arguments import (
    add_jobs,
    add_own_code,
    jobs_of,
    make_parser,
    own_code,
    split_members,
    split_task,
)
from polopt.core.errors import UsageError, nearest

if TYPE_CHECKING:
    from polopt.report.members import Member
    from polopt.report.together import Ranges

SCORE_HELP = "the number of the evaluations to compare by, e.g. return; default: what the methods are judged by"
AGAIN = "interrupted; saved: the same command goes on from there"
RANGE_HELP = "scores between which tasks are put on one scale; the optimality gap is what is missing to HIGH"


def compare_verb(argv: list[str]) -> int:
    parser = make_parser(
        "compare METHOD|NAME=METHOD ...",
        "Train methods, or settings of one, with paired seeds. Options hold for all; --NAME.OPTION is for one.",
    )
    parser.add_argument("--task", required=True)
    parser.add_argument("--seeds", default="5", help="N: the seeds 0 .. N-1, or a list as in 0,1,7; for every method")
    parser.add_argument("--out", type=Path, help="the folder of the runs, the page and the figures")
    add_jobs(parser)
    _add_measures(parser)
    first = next((index for index, item in enumerate(argv) if item.startswith("-")), len(argv))
    methods, (task_options, rest) = argv[:first], split_task(argv[first:])
    args, rest = parser.parse_known_args(rest)
    if not methods:
        raise UsageError("polopt compare needs a method or more, before the options")

    from polopt.report.compare import compare
    from polopt.report.members import members
    from polopt.report.tables import print_comparison

    among = members(methods)
    common, each = _options_of(rest, among)
    try:
        comparison = compare(
            methods,
            args.task,
            seeds=args.seeds,
            **jobs_of(args),
            out=args.out,
            score=args.score,
            ranges=_ranges(args.range),
            each={head: {"argv": words} for head, words in each.items()},
            task_options=task_options,
            argv=common,
            progress=True,
        )
    except KeyboardInterrupt:
        raise KeyboardInterrupt(AGAIN) from None
    print_comparison(comparison.facts)
    print(comparison.page)
    return 0


def sweep_verb(argv: list[str]) -> int:
    parser = make_parser(
        "sweep METHOD",
        "Train settings of a method, rank them on tuning seeds, and report the best on other seeds. All other options "
        "hold for every setting.",
    )
    parser.add_argument("--task", required=True)
    parser.add_argument(
        "--over",
        action="append",
        required=True,
        metavar="NAME=VALUE,VALUE",
        help="an option and its values; give it again for another one. NAME=LOW..HIGH is a range for --random",
    )
    parser.add_argument("--random", type=int, metavar="N", help="draw N settings; default: all combinations")
    parser.add_argument(
        "--seeds", default="5", help="the seeds that are reported: N for 0 .. N-1, or a list as in 0,1,7"
    )
    parser.add_argument("--tuning-seeds", type=int, default=2, metavar="K", help="seeds that rank: 1500 .. 1500+K-1")
    parser.add_argument("--top", type=int, default=3, metavar="N", help="how many of the best are reported")
    parser.add_argument("--out", type=Path, help="the folder of the runs, the table, the page and the figures")
    add_jobs(parser)
    _add_measures(parser)
    given = not argv or argv[0].startswith("-")
    method, (task_options, rest) = ("" if given else argv[0]), split_task(argv if given else argv[1:])
    args, rest = parser.parse_known_args(rest)
    if not method:
        raise UsageError("polopt sweep needs a method before the options")

    from polopt.report.grid import read_over
    from polopt.report.sweep import sweep
    from polopt.report.tables import print_comparison, print_ranking

    try:
        found = sweep(
            method,
            args.task,
            read_over(args.over),
            seeds=args.seeds,
            tuning_seeds=args.tuning_seeds,
            random=args.random,
            top=args.top,
            **jobs_of(args),
            out=args.out,
            score=args.score,
            ranges=_ranges(args.range),
            task_options=task_options,
            argv=rest,
            progress=True,
        )
    except KeyboardInterrupt:
        raise KeyboardInterrupt(AGAIN) from None
    print_comparison(found.comparison.facts)
    print_ranking(found.ranking)
    print(found.comparison.page)
    return 0


def _options_of(argv: list[str], among: Sequence[Member]) -> tuple[list[str], dict[str, list[str]]]:
    """The options for all, and those of each name or method. Raises UsageError for --NAME.OPTION where nobody, or more
    than one thing, has that name."""
    from polopt import registry
    from polopt.training.options import RunOptions

    configs = {member.method: registry.load(member.method).Config for member in among}
    owners = {item.name: method for method, config in configs.items() for item in fields(config)}
    names = {member.name: member.method for member in among}
    methods = {method for method in configs if method.replace("-", "_") not in owners}
    common, each = split_members(argv, names.keys() | methods)
    for head in each:
        owner = owners.get(head.replace("-", "_"))
        if owner is not None:
            raise UsageError(
                f"--{head}.... may be for {head} of this comparison or for that part of {owner}: give the first one "
                f"another name, as in my-{head}={names[head]}"
            )
    known = {item.name for item in fields(RunOptions)} | owners.keys() | {"task", "preset"}
    for word in common:
        head, dot, _ = word.removeprefix("--").partition("=")[0].partition(".")
        if word.startswith("--") and dot and head.replace("-", "_").removeprefix("no_") not in known:
            raise UsageError(f"{word}: nobody here is called '{head}'{nearest(head, names.keys() | methods | known)}")
    return common, each


def _add_measures(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--score", metavar="NAME", help=SCORE_HELP)
    parser.add_argument("--range", nargs="+", action="append", metavar="[TASK] LOW HIGH", help=RANGE_HELP)


def _ranges(given: list[list[str]] | None) -> Ranges:
    """What `--range [TASK] LOW HIGH` says. Raises UsageError."""
    found: dict[str, tuple[float, float]] = {}
    for words in given or ():
        try:
            *task, low, high = words
            (name,) = task or [""]
            ends = float(low), float(high)
        except ValueError:
            raise UsageError(f"--range {' '.join(words)} is not of the form [TASK] LOW HIGH") from None
        if name in found:
            raise UsageError(f"--range is given twice{f' for {name}' if name else ''}")
        found[name] = ends
    return found


def export_verb(argv: list[str]) -> int:
    parser = make_parser("export", "The greedy policy of a run as one file that runs without polopt.")
    parser.add_argument("dir", type=Path)
    parser.add_argument("--format", default="onnx", help="onnx, torchscript or pt2")
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: policy.onnx, .pt or .pt2 in the run folder")
    parser.add_argument("--checkpoint", default="latest", help="latest, best, or the step of one that is there")
    add_own_code(parser)
    args = parser.parse_args(argv)

    from polopt.training.export import export

    print(export(args.dir, args.out, format=args.format, checkpoint=args.checkpoint, **own_code(args)))
    return 0


def report_verb(argv: list[str]) -> int:
    parser = make_parser("report", "One self-contained HTML page of one run, or a comparison of many.")
    parser.add_argument("dirs", type=Path, nargs="+", help="run folders, and folders of runs as compare makes them")
    parser.add_argument("--out", type=Path, help="the file to write; default: report.html in the folder, or here")
    parser.add_argument(
        "--figures", type=Path, metavar="DIR", help="write figures (SVG, PDF) and evaluations.csv there"
    )
    _add_measures(parser)
    parser.add_argument("--no-video", action="store_true", help="do not record a video where there is none")
    add_own_code(parser)
    args = parser.parse_args(argv)

    from polopt.report.compare import report

    measures = {"score": args.score, "ranges": _ranges(args.range), "figures": args.figures}
    print(report(args.dirs, args.out, video=not args.no_video, **measures, **own_code(args)))
    return 0


def claim_verb(argv: list[str]) -> int:
    parser = make_parser("claim", "Reproduce the claim of a method's paper, small; results are kept and continued.")
    parser.add_argument("method")
    parser.add_argument("--quick", action="store_true", help="a tiny budget: prints numbers, never a verdict")
    parser.add_argument("--pilot", action="store_true", help="the full budget with other seeds; nothing is recorded")
    parser.add_argument("--seeds", type=int, metavar="N", help="how many seeds the pilot has; default: as the claim")
    add_jobs(parser, default="the number of cores, at most 2")
    args = parser.parse_args(argv)
    from polopt.claims import pages

    how = {"quick": args.quick, "pilot": args.pilot, "seeds": args.seeds} | jobs_of(args)
    try:
        return pages.run_verb(args.method, **how)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(AGAIN) from None
