"""Numbers rounded by their own error, and other things as text."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence


def plus_minus(value: float, stderr: float) -> str:
    """'38.8 ± 0.5': one significant digit of the error, two if it starts with 1; '± ?' where the error is
    unknown.
    """
    if not math.isfinite(value):
        return "cannot tell"
    if not math.isfinite(stderr):
        return f"{value:.3g} ± ?"
    if value != 0 and not 1e-3 <= abs(value) < 1e5:
        exponent = math.floor(math.log10(abs(value)))
        return f"({_fixed(value / 10**exponent, stderr / 10**exponent)})e{exponent}"
    return _fixed(value, stderr)


def _fixed(value: float, stderr: float) -> str:
    if stderr == 0:
        return f"{value:.4g} ± 0"
    leading = math.floor(math.log10(stderr))
    digits = -leading + (1 if stderr / 10**leading < 1.95 else 0)
    places = max(digits, 0)
    return f"{round(value, digits):.{places}f} ± {round(stderr, digits):.{places}f}"


def percent(share: float) -> str:
    """'13.2 %'."""
    return f"{100 * share:.1f} %" if math.isfinite(share) else "?"


def table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """Plain text columns, the first flush left and the others flush right."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = []
    for row in [header, *rows]:
        cells = [
            row[0].ljust(widths[0]),
            *[cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)],
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def described(spec: object) -> str:
    """'Quantization(bits=4)': the options of a dataclass that differ from their defaults, and the first one
    always.
    """
    shown = [f for f in dataclasses.fields(spec) if f.repr] if dataclasses.is_dataclass(spec) else []
    values = {
        f.name: getattr(spec, f.name)
        for i, f in enumerate(shown)
        if i == 0 or getattr(spec, f.name) != f.default
    }
    options = [
        f"{name}={called(value) if callable(value) else repr(value)}" for name, value in values.items()
    ]
    return f"{type(spec).__name__}({', '.join(options)})"


def called(function: Callable[..., object]) -> str:
    """The name of a function, for messages and metadata."""
    return getattr(function, "__qualname__", None) or repr(function)
