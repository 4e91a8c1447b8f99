"""The one exception of the library, and suggestions for misspelt names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

import torch


class TPVError(ValueError):
    """The input cannot give a meaningful number. The message says why and what to do."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """' Did you mean X?' for the closest known name, or an empty string."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def what_it_is(value: object) -> str:
    """For messages: 'a Tensor' and not its contents, or 'the class Exact and not an instance'."""
    if isinstance(value, type):
        return f"the class {value.__name__} and not an instance: write {value.__name__}(...)"
    name = type(value).__name__
    shown = f" {value!r}" if isinstance(value, str | int | float | None) else ""
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}{shown}"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device, or the CPU's allocator, had no memory left."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
