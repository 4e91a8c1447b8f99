"""Which layer a parameter belongs to: its module, or a group of the user's."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from tpv.common.errors import TPVError, did_you_mean, what_it_is

LayersSpec = str | Mapping[str, str | Sequence[str]] | Callable[[str], str] | None
OTHER = "(other)"


def layer_of(parameter: str) -> str:
    """The module that a parameter belongs to."""
    return parameter.rpartition(".")[0] or "(model)"


def groups(spec: LayersSpec, names: Iterable[str]) -> dict[str, str]:
    """Parameter name → the layer that it belongs to.

    Args:
        spec: None for modules; a regular expression searched in the names, whose first group (or whole match)
            is the layer; a mapping from layers to glob patterns, the first match counting; or a function of
            the name.
        names: of the parameters. What no pattern matches belongs to "(other)".

    Raises:
        TPVError: for a pattern that is none or that matches nothing.

    Example:
        >>> groups(r"layer\\d", ["conv.weight", "layer1.conv.weight", "layer2.conv.weight"])
        {'conv.weight': '(other)', 'layer1.conv.weight': 'layer1', 'layer2.conv.weight': 'layer2'}
    """
    names = list(names)
    if spec is None:
        return {name: layer_of(name) for name in names}
    if isinstance(spec, str):
        return _by_expression(spec, names)
    if isinstance(spec, Mapping):
        return _by_globs({layer: _globs(layer, globs) for layer, globs in spec.items()}, names)
    if callable(spec):
        return {name: str(spec(name)) for name in names}
    raise TPVError(
        f"layers={spec!r}: give a regular expression, a mapping from layers to glob patterns, or a function "
        "of the name."
    )


def _by_expression(text: str, names: list[str]) -> dict[str, str]:
    try:
        expression = re.compile(text)
    except re.error as error:
        raise TPVError(f"layers={text!r} is not a regular expression: {error}.") from error
    match_of = {name: expression.search(name) for name in names}
    if not any(match_of.values()):
        raise TPVError(
            f"layers={text!r} matches no parameter: names look like {next(iter(names), '(none)')!r}."
        )
    return {
        name: (match.group(1 if expression.groups else 0) or OTHER) if match else OTHER
        for name, match in match_of.items()
    }


def _globs(layer: object, globs: object) -> list[str]:
    several = isinstance(globs, Iterable) and not isinstance(globs, str)
    patterns: list[Any] = list(globs) if several else [globs]  # type: ignore[call-overload]
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise TPVError(f"layers={{{layer!r}: ...}}: give glob patterns, got {what_it_is(pattern)}.")
    return patterns


def _by_globs(layers: Mapping[str, list[str]], names: list[str]) -> dict[str, str]:
    for layer, globs in layers.items():
        for glob in globs:
            if not fnmatch.filter(names, glob):
                raise TPVError(
                    f"layers={{{layer!r}: {glob!r}}} matches no parameter.{did_you_mean(glob, names)}"
                )
    layer_of = {
        name: next(
            (layer for layer, globs in layers.items() if any(fnmatch.fnmatchcase(name, g) for g in globs)),
            OTHER,
        )
        for name in names
    }
    if empty := [layer for layer in layers if layer not in layer_of.values()]:
        raise TPVError(
            f"layers: {empty[0]!r} gets no parameter, because earlier patterns match all of its own or it "
            "has none."
        )
    return layer_of
