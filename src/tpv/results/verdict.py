"""The grade of a verdict, for colors and for programs."""

from __future__ import annotations

from typing import Literal

Grade = Literal["good", "unclear", "bad"]
"""The number can be relied on; the data do not decide, or only just; it cannot be relied on."""
