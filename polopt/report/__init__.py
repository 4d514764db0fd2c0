"""What is shown of runs: one self-contained HTML page, tables, curves, videos. Plotting libraries load when used."""

from polopt.report.page import write_report
from polopt.report.runs import RunData, read_run
from polopt.report.tables import compare_table, comparison, print_comparison
from polopt.report.video import record_video

__all__ = ["RunData", "compare_table", "comparison", "print_comparison", "read_run", "record_video", "write_report"]
