"""polopt beside its peers, on this machine.

python -m benchmarks [speed] [CASE ...] [--rounds 7] [--plain] [--peer-python NAME=PATH]     how fast; `make bench`
python -m benchmarks returns ...                                                 how well: learning curves
python -m benchmarks page                                                        docs/benchmarks.md from the results
"""

from __future__ import annotations

import importlib
import sys

VERBS = ("speed", "returns", "page")


def main(argv: list[str]) -> int:
    if argv in (["-h"], ["--help"]):
        print(__doc__.strip())
        return 0
    verb, rest = (argv[0], argv[1:]) if argv and argv[0] in VERBS else ("speed", argv)
    return importlib.import_module(f"benchmarks.{verb}").main(rest) or 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
