"""What the page and the terminal say, from results; no arithmetic."""

from tpv.report.contents import Entry, Report

__all__ = ["Entry", "Report"]
