"""A report on a model: what is measured, and the page and the terminal output that show it."""

from tpv.report.contents import Entry, Report

__all__ = ["Entry", "Report"]
