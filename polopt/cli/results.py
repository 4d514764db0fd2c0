"""`polopt export | compare | report | claim`: what is made of runs. Imports no torch until it must."""

from __future__ import annotations

from pathlib import Path

from polopt.cli.arguments import add_own_code, make_parser, own_code, split_task
from polopt.core.errors import UsageError

SCORE_HELP = "the number of the evaluations to compare by, e.g. return; default: what the methods are judged by"


def compare_verb(argv: list[str]) -> int:
    parser = make_parser("compare METHOD METHOD ...", "Train methods with paired seeds; intervals are over seeds.")
    parser.add_argument("--task", required=True)
    parser.add_argument("--seeds", type=int, default=5, help="every method trains with the seeds 0 .. N-1")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--score", metavar="NAME", help=SCORE_HELP)
    first = next((index for index, item in enumerate(argv) if item.startswith("-")), len(argv))
    methods, (task_options, rest) = argv[:first], split_task(argv[first:])
    args, rest = parser.parse_known_args(rest)
    if len(methods) < 2:
        raise UsageError("polopt compare needs at least two methods, before the options")
    if args.seeds < 1 or args.jobs < 1:
        raise UsageError("--seeds and --jobs are at least 1")
    if any(item.partition("=")[0] == "--seed" for item in rest):
        raise UsageError("polopt compare trains the seeds 0 .. N-1 of --seeds N: it takes no --seed")

    from polopt.report.compare import compare

    comparison = compare(
        methods,
        args.task,
        seeds=args.seeds,
        jobs=args.jobs,
        out=args.out,
        score=args.score,
        task_options=task_options,
        argv=rest,
        progress=True,
    )
    print(comparison.table)
    print(comparison.page)
    return 0


def export_verb(argv: list[str]) -> int:
    parser = make_parser("export", "The greedy policy of a run as one file that runs without polopt.")
    parser.add_argument("dir", type=Path)
    parser.add_argument("--format", default="onnx", help="onnx, torchscript or pt2")
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: policy.onnx, .pt or .pt2 in the run folder")
    parser.add_argument("--checkpoint", default="latest", help="latest or best")
    add_own_code(parser)
    args = parser.parse_args(argv)

    from polopt.training.export import export

    print(export(args.dir, args.out, format=args.format, checkpoint=args.checkpoint, **own_code(args)))
    return 0


def report_verb(argv: list[str]) -> int:
    parser = make_parser("report", "One self-contained HTML page of one run, or a comparison of many.")
    parser.add_argument("dirs", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, help="the file to write; default: report.html in the folder of the run")
    parser.add_argument("--score", metavar="NAME", help=SCORE_HELP)
    parser.add_argument("--no-video", action="store_true", help="do not record a video where there is none")
    add_own_code(parser)
    args = parser.parse_args(argv)

    from polopt.report.compare import report

    print(report(args.dirs, args.out, score=args.score, video=not args.no_video, **own_code(args)))
    return 0


def claim_verb(argv: list[str]) -> int:
    parser = make_parser("claim", "Reproduce the claim of a method's paper, small; results are kept and continued.")
    parser.add_argument("method")
    parser.add_argument("--quick", action="store_true", help="a tiny budget: prints numbers, never a verdict")
    parser.add_argument("--pilot", action="store_true", help="the full budget with other seeds; nothing is recorded")
    parser.add_argument("--seeds", type=int, metavar="N", help="how many seeds the pilot has; default: as the claim")
    parser.add_argument(
        "--jobs", type=int, default=None, help="runs at a time; default: the number of cores, at most 2"
    )
    args = parser.parse_args(argv)
    from polopt.claims import pages

    return pages.run_verb(args.method, quick=args.quick, pilot=args.pilot, seeds=args.seeds, jobs=args.jobs)
