"""The report: our numbers beside those of the thesis, and a verdict on each claim."""

from pipeline.report.across import write_overall
from pipeline.report.page import write_report
from pipeline.report.provenance import provenance
from pipeline.report.results import read_results
from pipeline.report.verdicts import judge, write_verdicts

__all__ = ["judge", "provenance", "read_results", "write_overall", "write_report", "write_verdicts"]
