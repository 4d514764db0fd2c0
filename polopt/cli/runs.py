"""`polopt train | resume | eval`: one run. Imports no torch until it must."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from polopt.cli.arguments import add_own_code, make_parser, own_code, split_task
from polopt.core.errors import DiskError, RunError, UsageError

HELP = """polopt train METHOD --task TASK [--steps N] [--seed S] [--out DIR] [--init RUN] [--preset P]
             [--device D] [any option of the method]

  --task TASK
      a Gymnasium id, a task of polopt's own (addition, random-mdp, reasoning-gym/NAME, FILE.jsonl ...), recorded data
      (a Minari id, FILE.hdf5, FILE.npz), pz/FAMILY/NAME, or module:function; --task.NAME VALUE is for the environment
  --out DIR
      the run folder; default runs/METHOD-TASK-sSEED
  --init RUN
      start from the weights of another run, wherever names and shapes agree

'polopt train METHOD --help' and 'polopt show METHOD' list the options of a method."""


def train_verb(argv: list[str]) -> int:
    from polopt import registry

    if not argv or (argv[0].startswith("-") and argv[0] not in ("-h", "--help")):
        raise UsageError("polopt train METHOD --task TASK ...: name a method first; 'polopt methods' lists them")
    from polopt.training.options import RunOptions

    if argv[0] in ("-h", "--help"):
        from polopt.config.help import options_text

        print(HELP, *options_text({"options of every run": RunOptions}), sep="\n")
        return 0
    method, (task_options, rest) = argv[0], split_task(argv[1:])
    if any(item in ("-h", "--help") for item in rest):
        from polopt.cli.describe import print_help

        print("--task TASK [--task.NAME VALUE ...] [--out DIR] [--init RUN]\n")
        print_help(method, RunOptions, rest, f"polopt train {method}")
    cls = registry.load(method)
    parser = make_parser(f"train {method}", "")
    parser.add_argument("--task")
    parser.add_argument("--out")
    parser.add_argument("--init")
    args, rest = parser.parse_known_args(rest)

    from polopt.config import parse_many
    from polopt.core import ranks
    from polopt.training import api, beginning, launch
    from polopt.training.folder import new_folder
    from polopt.training.plan import studied

    configs, preset = parse_many(
        {"run": RunOptions, "method": cls.Config}, rest, presets=cls.presets, prog=f"polopt train {method}"
    )
    task, options = args.task, configs["run"]
    if task is None:
        task, task_options, options = studied(method, preset, task_options, options)
    several = options.processes > 1 and launch.world() == 1
    if not several:
        options = launch.join(options)
    planned = api.Plan(method, task, configs["method"], options, task_options, preset, args.init)
    if several:
        return launch.run(["train", *argv], options.processes)

    def work() -> int:
        folder = ranks.told(lambda: new_folder(Path(args.out) if args.out else None, method, task, options.seed))
        _tell(planned.summary(folder))
        rows = api.start(planned, folder, say=_tell)
        return _trained(lambda: api.finish(rows, folder, progress=True), folder, beginning.own_code(planned))

    return _one_of_several(work)


def _tell(said: str) -> None:
    from polopt.core import ranks

    if ranks.first():
        print(said, file=sys.stderr)


def _one_of_several(work: Callable[[], int]) -> int:
    """What `work` returns; of several processes that fail alike, the first one says so."""
    from polopt.training import launch

    try:
        return work()
    except (UsageError, RunError, KeyboardInterrupt) as error:
        if launch.is_said(error):
            raise SystemExit(130 if isinstance(error, KeyboardInterrupt) else 1) from None
        raise
    finally:
        launch.leave()


def _trained(work: Callable[[], Any], folder: Path, own: Mapping[str, Any]) -> int:
    """Trains and reports; `own` is the code that the folder does not know by itself (`OwnCode`)."""
    from polopt.training import launch

    try:
        run = work()
    except KeyboardInterrupt as error:
        said = str(error) or "interrupted"
        if (folder / "config.json").exists():  # else it was stopped before there was anything to save
            processes = f" --processes {launch.world()}" if launch.world() > 1 else ""
            said += f": continue with 'polopt resume {folder}{processes}'"
        raise KeyboardInterrupt(said) from error
    except DiskError as error:
        if not (folder / "config.json").exists():
            raise
        raise DiskError(f"{error}; once it can be written, continue with 'polopt resume {folder}'") from error

    from polopt.core import ranks
    from polopt.evaluation.score import NO_RETURN
    from polopt.report.compare import report

    first = ranks.first()
    launch.leave()
    if not first:
        return 0
    try:
        page = report([folder], video=run.config["run"]["video"], **own)
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(f"interrupted; the run is whole: 'polopt report {folder}' writes its page") from error
    final = f"{run.score.key} {run.final[run.score.column]:.6g} at the end; " if run.evaluations else ""
    if run.score.by_data:
        final += f"{NO_RETURN}; "
    if run.evaluations and run.final.get("eval/cut"):
        final += f"{run.final['eval/cut']:.0f} episodes of that evaluation were cut; "
    print(f"{final}report {page}")
    return 0


def resume_verb(argv: list[str]) -> int:
    parser = make_parser("resume", "Continue a run from its last checkpoint.")
    parser.add_argument("dir", type=Path)
    parser.add_argument("--extend", type=int, metavar="N", help="new total budget; schedules run over the new total")
    parser.add_argument("--checkpoint", type=int, metavar="N", help="continue from this checkpoint, not the latest")
    parser.add_argument("--until", metavar="STOP", help="another early stop, e.g. 'return>=475', or none")
    parser.add_argument("--device", help="continue on another device: its last bits will differ")
    parser.add_argument("--processes", type=int, default=1, metavar="N", help="that share the run; default: one")
    parser.add_argument(
        "--shard", action=argparse.BooleanOptionalAction, help="divide the model among them, or not; default: as before"
    )
    add_own_code(parser)
    args = parser.parse_args(argv)
    if args.processes < 1:
        raise UsageError(f"--processes {args.processes}: at least 1")
    from polopt.training import api, launch

    if args.processes > 1 and launch.world() == 1:
        planned = api.read_plan(api.Run(args.dir), api.OwnCode.of(own_code(args)))
        shard = planned.options.shard if args.shard is None else args.shard
        launch.check(planned.cls, planned.config, replace(planned.options, processes=args.processes, shard=shard))
        return launch.run(["resume", *argv], args.processes)
    how = {"extend": args.extend, "checkpoint": args.checkpoint, "until": args.until, "device": args.device}
    how["shard"] = args.shard
    own = own_code(args)
    return _one_of_several(lambda: _trained(lambda: api.resume(args.dir, progress=True, **how, **own), args.dir, own))


def eval_verb(argv: list[str]) -> int:
    parser = make_parser("eval", "Returns of a saved policy, in environments that training never saw.")
    parser.add_argument("dir", type=Path)
    parser.add_argument("--episodes", type=int, help="default: 10, and 64 prompts for language models")
    parser.add_argument("--checkpoint", default="latest", help="latest, best, or the step of one that is there")
    parser.add_argument("--stochastic", action="store_true", help="sample actions instead of taking the mode")
    parser.add_argument(
        "--samples", type=int, default=1, metavar="K", help="sampled completions of each prompt: pass@k and maj@K"
    )
    parser.add_argument(
        "--grid", type=int, metavar="G", help="also the worst of G models along each parameter of the world"
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--device", help="default: that of the run, or the CPU where there is none such")
    parser.add_argument(
        "--ope",
        nargs="?",
        const="",
        metavar="DATA",
        help="estimates from recorded data (default: the run's), no playing",
    )
    parser.add_argument("--ope-discount", type=float, metavar="G", help="default: that of the run's method")
    parser.add_argument("--ope-updates", type=int, default=20_000, metavar="N", help="steps of fitted Q evaluation")
    parser.add_argument("--record", type=Path, metavar="FILE", help="keep the episodes as demonstrations, for bc")
    add_own_code(parser)
    args = parser.parse_args(argv)
    if args.episodes is not None and args.episodes < 1:
        raise UsageError(f"--episodes {args.episodes}: at least 1")
    if args.samples < 1:
        raise UsageError(f"--samples {args.samples}: at least 1")
    if args.grid is not None and args.grid < 1:
        raise UsageError(f"--grid {args.grid}: at least 1")
    own = own_code(args)
    if args.ope is not None:
        return _off_policy(args, own)
    from polopt.training import api
    from polopt.training.folder import Run
    from polopt.training.plan import OwnCode, read_plan

    episodes = args.episodes or read_plan(Run(args.dir), OwnCode.of(own)).cls.eval_episodes
    how = {"episodes": episodes, "checkpoint": args.checkpoint, "stochastic": args.stochastic} | own
    how["device"] = args.device
    if args.record is not None:
        api.demonstrate(args.dir, args.record, **how)
    scores = api.evaluate(args.dir, samples=args.samples, **how)
    if args.grid is not None:
        from polopt.training.over_grid import over_grid

        scores |= over_grid(args.dir, args.grid, **how)
    if args.json:
        print(json.dumps(scores | {"episodes": episodes, "checkpoint": args.checkpoint}))
    else:
        kind = "sampled" if args.stochastic or args.samples > 1 else "greedy"
        cut = scores.pop("cut", 0)
        named = ", ".join(_with_intervals(scores))
        times = f", {args.samples} of each prompt" if args.samples > 1 else ""
        played = f"{episodes} {kind} episodes{times}" + (f", {cut:.0f} of them cut before their end" if cut else "")
        if "held_out" in scores:
            print(_by_data(scores))
            return 0
        print(f"{named} ({played})" if "length" in scores else f"{named} (exact)")
    return 0


def _off_policy(args: Any, own: Mapping[str, Any]) -> int:
    """`polopt eval RUN --ope`: estimates from recorded data, each with its interval, and what could not be had."""
    for flag, given in (("--record", args.record is not None), ("--samples", args.samples > 1), ("--grid", args.grid)):
        if given:
            raise UsageError(f"{flag} plays episodes, and --ope plays none")
    if args.episodes is not None:
        raise UsageError("--episodes are played, and --ope plays none: it judges the recorded ones that are held out")
    if args.ope_updates < 1:
        raise UsageError(f"--ope-updates {args.ope_updates}: at least 1")
    if args.ope_discount is not None and not 0 <= args.ope_discount <= 1:
        raise UsageError(f"--ope-discount {args.ope_discount:g}: within 0 and 1")
    from polopt.training.off_policy import off_policy

    how: dict[str, Any] = {"checkpoint": args.checkpoint, "stochastic": args.stochastic, "device": args.device}
    how |= {"discount": args.ope_discount, "updates": args.ope_updates}
    estimates, numbers, missing = off_policy(args.dir, args.ope, **how, **own)
    if args.json:
        flat = {f"{name}{end}": value for name, each in estimates.items() for end, value in _ends(each)}
        print(json.dumps(flat | numbers | {"missing": missing, "checkpoint": args.checkpoint}))
        return 0
    kind = "sampled" if args.stochastic else "greedy"
    count = numbers["held_out_episodes"]
    print(f"{kind} policy, discount {numbers['discount']:g}, on {count:.0f} held-out episodes:")
    for name, each in estimates.items():
        size = numbers.get(f"{name.removesuffix(' importance sampling')} effective size")
        of = "decisions" if name.startswith("ncis") else "episodes"
        interval = "" if each.low is None else f" [{each.low:.4g}, {each.high:.4g}]"
        print(f"  {name:40} {each.estimate:.4g}{interval}" + (f" (effectively {size:.1f} {of})" if size else ""))
    for said in missing:
        print(f"  not estimated: {said}")
    return 0


def _ends(interval: Any) -> Iterator[tuple[str, float | None]]:
    yield "", interval.estimate
    yield from (("/low", interval.low), ("/high", interval.high))


def _by_data(scores: dict[str, float]) -> str:
    """What an evaluation on recorded decisions found, and what it is not."""
    from polopt.evaluation.score import NO_RETURN

    episodes, count = int(scores.pop("held_out")), scores.pop("decisions")
    of = f"{episodes} held-out episodes" if episodes else "episodes that it has learned from: none was held out"
    return f"{', '.join(_with_intervals(scores))} ({count:,.0f} recorded decisions of {of}; {NO_RETURN})"


def _with_intervals(scores: Mapping[str, float]) -> Iterator[str]:
    """Each number with its name, and [low, high] where `scores` has NAME/low and NAME/high."""
    for name, value in scores.items():
        if not name.endswith(("/low", "/high")):
            low, high = (scores.get(f"{name}/{end}") for end in ("low", "high"))
            interval = "" if low is None or high is None else f" [{low:.4g}, {high:.4g}]"
            yield f"{name.replace('_', ' ')} {value:.6g}{interval}"
