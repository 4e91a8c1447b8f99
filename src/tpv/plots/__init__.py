"""Plots of plain numbers."""
