"""Other libraries' ways in: imported where used, never by the core."""
