"""Checks of option values, each with one clear sentence."""

from __future__ import annotations

import math
import numbers
import operator

from tpv.common.errors import TPVError, did_you_mean


def require_number(
    owner: str, name: str, value: object, low: float, high: float = math.inf, *, open_low: bool = False
) -> float:
    """The value as a plain number; refuse what is not one in [low, high), or (low, high) if ``open_low``.

    Scalars of NumPy and of torch count as numbers.

    Raises:
        TPVError: such as "Isotropic(std=-1): std must be a number in [0, inf)."
    """
    number = _number(value)
    if number is None or not (low < number < high or (number == low and not open_low)):
        raise TPVError(
            f"{owner}({name}={value!r}): {name} must be a number in {'(' if open_low else '['}{low:g}, "
            f"{high:g})."
        )
    return number


def require_int(owner: str, name: str, value: object, low: int, high: int | None = None) -> int:
    """The value as an int; refuse what is not one in [low, high].

    Integer scalars of NumPy and of torch count as ints.

    Raises:
        TPVError: such as "Quantization(bits=0): bits must be an int in [1, 16]."
    """
    number = _integer(value)
    if number is None or number < low or (high is not None and number > high):
        allowed = f"an int in [{low}, {high}]" if high is not None else f"an int of at least {low}"
        raise TPVError(f"{owner}({name}={value!r}): {name} must be {allowed}.")
    return number


def require_bool(owner: str, name: str, value: object) -> None:
    """Refuse what is not True or False.

    Raises:
        TPVError: such as "LabelNoise(center='no'): center must be True or False."
    """
    if not isinstance(value, bool):
        raise TPVError(f"{owner}({name}={value!r}): {name} must be True or False.")


def require_choice(owner: str, name: str, value: object, allowed: tuple[str, ...]) -> None:
    """Refuse what is not one of the allowed words.

    Raises:
        TPVError: with the words, and the closest one.
    """
    if value not in allowed:
        hint = did_you_mean(str(value), allowed)
        raise TPVError(
            f"{owner}({name}={value!r}): {name} must be one of {', '.join(map(repr, allowed))}.{hint}"
        )


def int_field(spec: object, name: str, low: int, high: int | None = None) -> None:
    """:func:`require_int` of a frozen dataclass's field, which holds a plain int from then on."""
    value = require_int(type(spec).__name__, name, getattr(spec, name), low, high)
    object.__setattr__(spec, name, value)


def number_field(
    spec: object, name: str, low: float, high: float = math.inf, *, open_low: bool = False
) -> None:
    """:func:`require_number` of a frozen dataclass's field, which holds a plain number from then on."""
    owner = type(spec).__name__
    value = require_number(owner, name, getattr(spec, name), low, high, open_low=open_low)
    object.__setattr__(spec, name, value)


def _integer(value: object) -> int | None:
    """An int from whatever stands for one: Python's, NumPy's and torch's integers, but no bool."""
    if isinstance(value, bool) or "bool" in str(getattr(value, "dtype", "")):
        return None
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return None


def _number(value: object) -> int | float | None:
    """A plain int or float from whatever stands for one; None for anything else."""
    whole = _integer(value)
    if whole is not None or isinstance(value, bool):
        return whole
    dtype = str(getattr(value, "dtype", ""))
    if isinstance(value, numbers.Real) or ("float" in dtype and getattr(value, "ndim", None) == 0):
        return float(value)  # type: ignore[arg-type]
    return None
