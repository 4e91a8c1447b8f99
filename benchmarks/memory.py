"""Peak memory above what was in use at construction: of the GPU's allocator, or of the process."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import torch

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Peak:
    """Peak number of bytes allocated since construction."""

    def __init__(self, device: str) -> None:
        self._cuda = device == "cuda"
        if self._cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            self._before = torch.cuda.memory_allocated()
        else:
            self._before = _forget_peak()

    def bytes(self) -> int:
        return (torch.cuda.max_memory_allocated() if self._cuda else _largest()) - self._before


def _forget_peak() -> int:
    """The resident size now; where the system cannot reset its peak, the peak so far."""
    try:
        _RESET.write_text("5")
    except OSError:
        return _largest()
    return _status("VmRSS")


def _largest() -> int:
    if _STATUS.exists():
        return _status("VmHWM")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _status(field: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024
