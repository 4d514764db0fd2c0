"""The command line."""

from polopt.cli.main import VERBS, main, run

__all__ = ["VERBS", "main", "run"]
