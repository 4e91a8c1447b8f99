"""Shared by the tests of the command line."""

from __future__ import annotations

import sys
from pathlib import Path


def working_folder(tmp_path, monkeypatch, target):
    """A working folder with ``target.py``; afterwards, the path and sys.modules are as they were."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    known = set(sys.modules)
    Path("target.py").write_text(target)
    yield tmp_path
    for name in set(sys.modules) - known:
        if str(getattr(sys.modules[name], "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]
