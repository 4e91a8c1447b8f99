"""A target: the Python file or module that defines what to measure."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from tpv.common.errors import TPVError, did_you_mean
from tpv.report.subject import Subject

_CONTRACT = (
    "a target defines model, train_data and optionally test_data, each an object or a function without "
    "arguments"
)


def make_importable(text: str) -> None:
    """Put the working folder and the target's own folder on the import path."""
    folders = [Path.cwd(), Path(text).resolve().parent] if _is_file(text) else [Path.cwd()]
    sys.path[:0] = [str(folder) for folder in folders if str(folder) not in sys.path]


def load_target(text: str) -> Subject:
    """The target in a Python file or an importable module.

    Raises:
        TPVError: if there is none, if it raises, or if it lacks ``model`` or ``train_data``.
    """
    module = _from_file(text) if _is_file(text) else _from_module(text)
    model = _value(text, module, "model")
    if not isinstance(model, nn.Module):
        raise TPVError(f"model in {text} is of type {type(model).__name__}, not a torch.nn.Module.")
    test = _value(text, module, "test_data") if hasattr(module, "test_data") else None
    source = Path(module.__file__).read_bytes() if module.__file__ else b""
    return Subject(
        title=getattr(module, "title", None) or (Path(text).stem if _is_file(text) else text),
        model=model,
        train=_value(text, module, "train_data"),
        test=test,
        forward=getattr(module, "forward", None),
        digest=hashlib.sha256(source).hexdigest(),
    )


def _is_file(text: str) -> bool:
    return text.endswith(".py") or "/" in text or "\\" in text


def _from_file(text: str) -> ModuleType:
    path = Path(text).resolve()
    if not path.is_file():
        near = (
            did_you_mean(path.name, (p.name for p in path.parent.glob("*.py")))
            if path.parent.is_dir()
            else ""
        )
        raise TPVError(f"there is no file {text}.{near}")
    known = sys.modules.get(path.stem)
    if known is not None and getattr(known, "__file__", None) == str(path):
        return known
    name = path.stem if known is None else f"_tpv_target_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise TPVError(f"{text} is not a Python file.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    loader = spec.loader
    try:
        _guarded(text, str(path), "cannot be loaded", lambda: loader.exec_module(module))
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _from_module(text: str) -> ModuleType:
    try:
        spec = importlib.util.find_spec(text)
    except (ImportError, ValueError):
        spec = None
    if spec is None:
        raise TPVError(
            f"there is no module {text!r}: give a Python file, or a module that can be imported from here."
        )
    module: ModuleType = _guarded(
        text, str(spec.origin), "cannot be loaded", lambda: importlib.import_module(text)
    )
    return module


def _value(text: str, module: ModuleType, name: str) -> Any:
    """An attribute, called if it is a function; a module or a data set that happens to be callable is not."""
    if not hasattr(module, name):
        names = [n for n in vars(module) if not n.startswith("_")]
        raise TPVError(f"{text} defines no {name}: {_CONTRACT}.{did_you_mean(name, names)}")
    value = getattr(module, name)
    if not callable(value) or isinstance(value, nn.Module) or hasattr(value, "__iter__"):
        return value
    return _guarded(text, str(module.__file__), f"failed in {name}()", value)


def _guarded(text: str, file: str, what: str, run: Callable[[], Any]) -> Any:
    """The user's code, its exceptions as one sentence that names the line."""
    try:
        return run()
    except (KeyboardInterrupt, TPVError):
        raise
    except SystemExit as stop:
        raise TPVError(f"{text} {what}: {stop}") from stop
    except BaseException as error:
        lines = [
            frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file
        ]
        if isinstance(error, SyntaxError) and error.filename == file:
            lines = [error.lineno]
        where = f" (line {lines[-1]})" if lines else ""
        raise TPVError(f"{text} {what}{where}: {describe(error)}") from error


def describe(error: BaseException) -> str:
    """'ValueError: the first line of its message'."""
    message = str(error.msg if isinstance(error, SyntaxError) else error).strip()
    return f"{type(error).__name__}: {message.splitlines()[0]}" if message else type(error).__name__
