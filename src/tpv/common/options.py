"""Checks of option values, each with one clear sentence."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping

from tpv.common.errors import TPVError, did_you_mean


def require_number(
    owner: str, name: str, value: object, low: float, high: float = math.inf, *, open_low: bool = False
) -> float:
    """The value, a scalar of NumPy's too, as a float; it has to be in [low, high), or (low, high) if
    ``open_low``.

    Raises:
        TPVError: such as "Isotropic(std=-1): std must be a number in [0, inf)."
    """
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    number = float(value) if real else math.nan  # type: ignore[arg-type]
    if not (low < number < high or (number == low and not open_low)):
        raise TPVError(
            f"{owner}({name}={value!r}): {name} must be a number in {'(' if open_low else '['}{low:g}, "
            f"{high:g})."
        )
    return number


def require_int(owner: str, name: str, value: object, low: int, high: int | None = None) -> int:
    """The value, a scalar of NumPy's too, as an int; it has to be in [low, high].

    Raises:
        TPVError: such as "Quantization(bits=0): bits must be an int in [1, 16]."
    """
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    number = int(value) if whole else low - 1  # type: ignore[call-overload]
    if number < low or (high is not None and number > high):
        allowed = f"an int in [{low}, {high}]" if high is not None else f"an int of at least {low}"
        raise TPVError(f"{owner}({name}={value!r}): {name} must be {allowed}.")
    return number


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


def require_bool(owner: str, name: str, value: object) -> None:
    """Refuse what is not True or False.

    Raises:
        TPVError: such as "LabelNoise(center='no'): center must be True or False."
    """
    if not isinstance(value, bool):
        raise TPVError(f"{owner}({name}={value!r}): {name} must be True or False.")


def require_mapping(owner: str, name: str, value: object, example: str) -> None:
    """Refuse what is not a mapping of names.

    Raises:
        TPVError: such as "Masking(masks=...) is a Tensor: give a mapping such as {'0.weight': mask}."
    """
    if not isinstance(value, Mapping):
        raise TPVError(f"{owner}({name}=...) is a {type(value).__name__}: give a mapping such as {example}.")


def int_field(spec: object, name: str, low: int, high: int | None = None) -> None:
    """:func:`require_int` of a frozen dataclass's field, which holds a plain int from then on."""
    value = require_int(type(spec).__name__, name, getattr(spec, name), low, high)
    object.__setattr__(spec, name, value)


def number_field(
    spec: object, name: str, low: float, high: float = math.inf, *, open_low: bool = False
) -> None:
    """:func:`require_number` of a frozen dataclass's field, which holds a plain number from then on."""
    value = getattr(spec, name)
    number = require_number(type(spec).__name__, name, value, low, high, open_low=open_low)
    object.__setattr__(spec, name, value if type(value) in (int, float) else number)
