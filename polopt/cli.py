"""The command line: `polopt VERB ...`. Exit codes: 0 done, 1 the run failed, 2 wrong usage, 130 after Ctrl-C (saved).

Nothing here imports torch until a verb needs it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from polopt.core.errors import RunError, UsageError, nearest

USAGE = """polopt: policy optimization, one short file per method

  polopt methods [--family F] [--status S] [--json]     the catalogue: 116 papers and what works
  polopt show METHOD                                    what it is, its options with their sources, its claim
  polopt train METHOD --task TASK [--steps N] [...]     train; every option of 'polopt show METHOD' is a flag
  polopt resume DIR [--extend N] [--checkpoint N]       continue a stopped run exactly
  polopt eval DIR [--episodes N] [--checkpoint latest|best] [--stochastic] [--json]
  polopt compare METHOD METHOD ... --task TASK --seeds N [--jobs J] [...]
  polopt report DIR ... [--out FILE]                    one self-contained HTML page
  polopt dataset make TASK | info [NAME] | measure NAME recorded data in Minari's format, for offline methods
  polopt claim METHOD [--quick]                         reproduce the paper's claim, small

'polopt VERB --help' says more. Documentation: docs/ in the repository."""


def run() -> None:
    """The console script. Code of the user's own is looked for in the current folder too, as with `python -m`."""
    sys.path.append(os.getcwd())
    sys.exit(main())


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code instead of exiting, so that tests can call it."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(USAGE)
        return 0 if arguments else 2
    if arguments[0] in ("-V", "--version"):
        from polopt import __version__

        print(f"polopt {__version__}")
        return 0
    verb, rest = arguments[0], arguments[1:]
    try:
        if verb not in VERBS:
            raise UsageError(f"there is no verb '{verb}'{nearest(verb, VERBS)}")
        return VERBS[verb](rest)
    except UsageError as error:
        return _fail(error, 2)
    except RunError as error:
        return _fail(error, 1)
    except BrokenPipeError:  # the reader has seen enough: polopt show sac | head
        sys.stdout = None
        return 0
    except KeyboardInterrupt as error:
        print(f"polopt: {str(error) or 'interrupted'}", file=sys.stderr)
        return 130
    except SystemExit as error:  # --help of a verb, or argparse on wrong usage
        return error.code if isinstance(error.code, int) else 2


def _fail(error: Exception, code: int) -> int:
    print(f"polopt: {error}", file=sys.stderr)
    return code


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        unknown = message.removeprefix("unrecognized arguments: ").split()
        known = [flag for action in self._actions for flag in action.option_strings if flag.startswith("--")]
        hint = nearest(unknown[0], known) if message.startswith("unrecognized") else ""
        raise UsageError(f"{self.prog}: {message}{hint}")


def _parser(verb: str, description: str) -> argparse.ArgumentParser:
    return _Parser(prog=f"polopt {verb}", description=description, allow_abbrev=False)


def _methods(argv: list[str]) -> int:
    from polopt import registry
    from polopt.cli_catalogue import print_methods

    parser = _parser("methods", "The catalogue of methods, and what works.")
    parser.add_argument("--family", help=", ".join(registry.FAMILIES))
    parser.add_argument("--status", help="works, partial or planned")
    parser.add_argument("--json", action="store_true", help="a list of objects")
    args = parser.parse_args(argv)
    print_methods(family=args.family, status=args.status, as_json=args.json)
    return 0


def _show(argv: list[str]) -> int:
    from polopt.cli_catalogue import print_method

    parser = _parser("show", "What a method is, its parts, options, presets, limit cases and claim.")
    parser.add_argument("method")
    print_method(parser.parse_args(argv).method)
    return 0


def _split_task(argv: list[str]) -> tuple[dict[str, Any], list[str]]:
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


def _read(value: str) -> Any:
    try:
        return json.loads(value)
    except ValueError:
        return value


def _train(argv: list[str]) -> int:
    from polopt import registry

    if not argv or (argv[0].startswith("-") and argv[0] not in ("-h", "--help")):
        raise UsageError("polopt train METHOD --task TASK ...: name a method first; 'polopt methods' lists them")
    if argv[0] in ("-h", "--help"):
        print(
            "polopt train METHOD --task TASK [--steps N] [--seed S] [--out DIR] [--init RUN] [--preset P]\n"
            "             [--device D] [any option of the method]\n\n"
            "--task is a Gymnasium id, a tabular task, a text task (addition, reasoning-gym/NAME, FILE.jsonl ...), or\n"
            "module:function; --task.NAME VALUE is for the environment.\n"
            "'polopt train METHOD --help' and 'polopt show METHOD' list the options."
        )
        return 0
    from polopt.training.options import RunOptions

    method, (task_options, rest) = argv[0], _split_task(argv[1:])
    if any(item in ("-h", "--help") for item in rest):
        from polopt.describe import print_help

        print("--task TASK [--task.NAME VALUE ...] [--out DIR] [--init RUN]\n")
        print_help(method, RunOptions, rest, f"polopt train {method}")
    cls = registry.load(method)
    parser = _parser(f"train {method}", "")
    parser.add_argument("--task")
    parser.add_argument("--out")
    parser.add_argument("--init")
    args, rest = parser.parse_known_args(rest)
    if args.task is None:
        raise UsageError(f"polopt train {method} needs --task, for example --task {cls.smoke.task}")

    from polopt.config import parse_many
    from polopt.training import api
    from polopt.training.folder import new_folder

    configs, preset = parse_many(
        {"run": RunOptions, "method": cls.Config}, rest, presets=cls.presets, prog=f"polopt train {method}"
    )
    options = configs["run"]
    planned = api.Plan(method, args.task, configs["method"], options, task_options, preset, args.init)
    folder = new_folder(Path(args.out) if args.out else None, method, args.task, options.seed)
    print(planned.summary(folder), file=sys.stderr)
    return _trained(lambda: api.finish(api.start(planned, folder), folder, progress=True), folder)


def _trained(work: Callable[[], Any], folder: Path) -> int:
    try:
        run = work()
    except KeyboardInterrupt as error:
        started = (folder / "config.json").exists()  # else it was stopped before there was anything to save
        said = f"interrupted; saved: continue with 'polopt resume {folder}'" if started else "interrupted"
        raise KeyboardInterrupt(said) from error

    from polopt.training.compare import report

    page = report([folder], video=run.config["run"]["video"])
    final = f"return {run.final['eval/return']:.6g} at the end; " if run.evaluations else ""
    print(f"{final}report {page}")
    return 0


def _resume(argv: list[str]) -> int:
    parser = _parser("resume", "Continue a run from its last checkpoint.")
    parser.add_argument("dir", type=Path)
    parser.add_argument("--extend", type=int, metavar="N", help="new total budget; schedules run over the new total")
    parser.add_argument("--checkpoint", type=int, metavar="N", help="continue from this checkpoint, not the latest")
    _add_own_code(parser)
    args = parser.parse_args(argv)
    from polopt.training import api

    own = _own_code(args)
    return _trained(
        lambda: api.resume(args.dir, extend=args.extend, checkpoint=args.checkpoint, progress=True, **own), args.dir
    )


def _add_own_code(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--task", metavar="MODULE:FUNCTION", help="the task again, when it is code of your own")
    parser.add_argument("--network", metavar="MODULE:FUNCTION", help="the network again, when it is code of your own")
    parser.add_argument("--rewards", metavar="MODULE:FUNCTION[,...]", help="the reward functions of a text task again")
    parser.add_argument("--trust-remote-code", action="store_true", help="run the code that the model brings, again")


def _own_code(args: argparse.Namespace) -> dict[str, Any]:
    from polopt.config.serialize import import_callable

    return {
        "task": args.task,
        "network": import_callable(args.network) if args.network else None,
        "rewards": args.rewards,
        "trust_remote_code": args.trust_remote_code,
    }


def _eval(argv: list[str]) -> int:
    parser = _parser("eval", "Returns of a saved policy, in environments that training never saw.")
    parser.add_argument("dir", type=Path)
    parser.add_argument("--episodes", type=int, help="default: 10, and 64 prompts for language models")
    parser.add_argument("--checkpoint", default="latest", help="latest or best")
    parser.add_argument("--stochastic", action="store_true", help="sample actions instead of taking the mode")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--record", type=Path, metavar="FILE", help="keep the episodes as demonstrations, for bc")
    _add_own_code(parser)
    args = parser.parse_args(argv)
    if args.episodes is not None and args.episodes < 1:
        raise UsageError(f"--episodes {args.episodes}: at least 1")
    from polopt.training import api
    from polopt.training.folder import Run
    from polopt.training.plan import read_plan

    own = _own_code(args)
    episodes = args.episodes or read_plan(Run(args.dir), **own).cls.eval_episodes
    how = {"episodes": episodes, "checkpoint": args.checkpoint, "stochastic": args.stochastic, **own}
    if args.record is not None:
        api.demonstrate(args.dir, args.record, **how)
    scores = api.evaluate(args.dir, **how)
    if args.json:
        print(json.dumps(scores | {"episodes": episodes, "checkpoint": args.checkpoint}))
    else:
        kind = "sampled" if args.stochastic else "greedy"
        named = ", ".join(f"{name.replace('_', ' ')} {value:.6g}" for name, value in scores.items())
        print(f"{named} ({episodes} {kind} episodes)" if "length" in scores else f"{named} (exact)")
    return 0


def _compare(argv: list[str]) -> int:
    parser = _parser("compare METHOD METHOD ...", "Train methods with paired seeds; intervals are over seeds.")
    parser.add_argument("--task", required=True)
    parser.add_argument("--seeds", type=int, default=5, help="every method trains with the seeds 0 .. N-1")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--out", type=Path)
    first = next((index for index, item in enumerate(argv) if item.startswith("-")), len(argv))
    methods, (task_options, rest) = argv[:first], _split_task(argv[first:])
    args, rest = parser.parse_known_args(rest)
    if len(methods) < 2:
        raise UsageError("polopt compare needs at least two methods, before the options")
    if args.seeds < 1 or args.jobs < 1:
        raise UsageError("--seeds and --jobs are at least 1")
    if any(item.partition("=")[0] == "--seed" for item in rest):
        raise UsageError("polopt compare trains the seeds 0 .. N-1 of --seeds N: it takes no --seed")

    from polopt.training.compare import compare

    comparison = compare(
        methods,
        args.task,
        seeds=args.seeds,
        jobs=args.jobs,
        out=args.out,
        task_options=task_options,
        argv=rest,
        progress=True,
    )
    print(comparison.table)
    print(comparison.page)
    return 0


def _report(argv: list[str]) -> int:
    parser = _parser("report", "One self-contained HTML page of one run, or a comparison of many.")
    parser.add_argument("dirs", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, help="the file to write; default: report.html in the folder of the run")
    parser.add_argument("--no-video", action="store_true", help="do not record a video where there is none")
    _add_own_code(parser)
    args = parser.parse_args(argv)

    from polopt.training.compare import report

    print(report(args.dirs, args.out, video=not args.no_video, **_own_code(args)))
    return 0


def _claim(argv: list[str]) -> int:
    parser = _parser("claim", "Reproduce the claim of a method's paper, small; results are kept and continued.")
    parser.add_argument("method")
    parser.add_argument("--quick", action="store_true", help="a tiny budget: prints numbers, never a verdict")
    parser.add_argument("--pilot", action="store_true", help="the full budget with other seeds; nothing is recorded")
    parser.add_argument(
        "--jobs", type=int, default=None, help="runs at a time; default: the number of cores, at most 2"
    )
    args = parser.parse_args(argv)
    from polopt.training import claim_pages

    return claim_pages.run_verb(args.method, quick=args.quick, pilot=args.pilot, jobs=args.jobs)


def _dataset(argv: list[str]) -> int:
    from polopt import cli_dataset

    return cli_dataset.run(argv)


VERBS: dict[str, Callable[[list[str]], int]] = {
    "methods": _methods,
    "show": _show,
    "train": _train,
    "resume": _resume,
    "eval": _eval,
    "compare": _compare,
    "report": _report,
    "dataset": _dataset,
    "claim": _claim,
}

if __name__ == "__main__":
    run()
