"""What is shown of runs: one self-contained HTML page, tables, curves, videos. Plotting libraries load when used."""

import sys
import types
from typing import Any

from polopt.report.page import write_report
from polopt.report.runs import RunData, read_run
from polopt.report.tables import compare_table, comparison, print_comparison
from polopt.report.video import record_video

__all__ = ["RunData", "compare_table", "comparison", "print_comparison", "read_run", "record_video", "write_report"]


class _Package(types.ModuleType):
    """`polopt.report(folders)` writes a page, and `polopt.report.page` is a module: one name serves both."""

    def __call__(self, *args: Any, **options: Any) -> Any:
        import polopt

        return polopt.__getattr__("report")(*args, **options)


sys.modules[__name__].__class__ = _Package
