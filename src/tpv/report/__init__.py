"""What ``tpv report`` finds and shows: one page, tables, plots. Every number comes from a result."""

from tpv.report.contents import Entry, Report

__all__ = ["Entry", "Report"]
