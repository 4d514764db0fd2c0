"""`python -m polopt.cli`."""

from polopt.cli.main import run

run()
