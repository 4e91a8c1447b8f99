"""Interfaces to other libraries: imported where used, never by the core."""
