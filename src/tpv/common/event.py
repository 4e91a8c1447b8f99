"""What a listener to progress is given."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ProgressEvent:
    """How far the work is.

    Attributes:
        stage: what is being done, such as "measuring"; " · " separates a stage from the one that it is in.
        part, parts: this is part ``part`` of ``parts`` of the whole work, counted from 1.
        done, total: examples, steps or blocks of this stage; ``total`` is None where nobody knows it.
        text: a remark, such as the loss.
    """

    stage: str
    part: int = 1
    parts: int = 1
    done: int = 0
    total: int | None = None
    text: str = ""
