"""The command line: `polopt VERB ...`. Exit codes: 0 done, 1 the run failed, 2 wrong usage, 130 after Ctrl-C (saved).

Nothing here imports torch until a verb needs it.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from polopt.core import files, signals
from polopt.core.errors import Notice, RunError, UsageError, nearest

VERBS = {  # verb -> the module of its group; its function there has the verb's name
    "methods": "catalogue",
    "show": "catalogue",
    "train": "runs",
    "resume": "runs",
    "eval": "runs",
    "export": "results",
    "compare": "results",
    "sweep": "results",
    "report": "results",
    "claim": "results",
    "dataset": "dataset",
    "plan": "planning",
}

GYMNASIUM = re.compile(r"\x1b\[\d+mWARN: (.*)\x1b\[0m", re.DOTALL)  # how its logger paints a warning
_formatted = warnings.formatwarning

USAGE = """polopt: policy optimization, one short file per method

  polopt methods [--family F] [--status S] [--json]     the catalogue: 116 papers and what works
  polopt show METHOD                                    what it is, its options with their sources, its claim
  polopt train METHOD --task TASK [--steps N] [...]     train; every option of 'polopt show METHOD' is a flag
  polopt resume DIR [--extend N] [--checkpoint N]       continue a stopped run exactly
  polopt eval DIR [--episodes N] [--checkpoint latest|best|N] [--stochastic] [--json]
  polopt export DIR [--format onnx|torchscript|pt2]     a feed-forward policy as one file that runs without polopt
  polopt compare METHOD|NAME=METHOD ... --task TASK --seeds N|0,1,7 [--jobs J] [--NAME.OPTION VALUE] [...]
  polopt sweep METHOD --task TASK --over NAME=V,V [...] settings, ranked on some seeds and reported on others
  polopt report DIR ... [--out FILE]                    one self-contained HTML page
  polopt dataset make TASK | info [NAME] | measure NAME recorded data in Minari's format, for offline methods
  polopt plan MODEL --devices N --memory 80GB           what a language model asks of each device, and what fits
  polopt claim METHOD [--quick]                         reproduce the paper's claim, small

'polopt VERB --help' says more. Documentation: docs/ in the repository."""


def run() -> None:
    """The console script. Code of the user's own is looked for in the current folder too, as with `python -m`."""
    sys.path.append(os.getcwd())
    warnings.formatwarning = _one_line
    sys.exit(main())


def _one_line(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """A warning of polopt's or Gymnasium's as one line, without the place in the code; others as Python has them."""
    if said := GYMNASIUM.fullmatch(str(message)):
        return f"gymnasium: {said[1]}\n"
    here = category is UserWarning and Path(filename).is_relative_to(Path(__file__).parents[1])
    own = here or issubclass(category, Notice)  # whose place may be in the code of another library
    return f"polopt: {message}\n" if own else _formatted(message, category, filename, lineno, line)


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
        with signals.raising():
            group = importlib.import_module(f"polopt.cli.{VERBS[verb]}")
            code: int = getattr(group, f"{verb}_verb")(rest)
        return code
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
    except OSError as error:
        if not files.refuses(error):
            raise
        return _fail(files.refused(error.filename or "a file", error), 1)
    except SystemExit as error:  # --help of a verb, or argparse on wrong usage
        return error.code if isinstance(error.code, int) else 2


def _fail(error: Exception, code: int) -> int:
    print(f"polopt: {error}", file=sys.stderr)
    return code
