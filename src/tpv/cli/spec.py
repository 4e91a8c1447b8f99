"""Perturbations, estimators and criteria written as text: known classes with literal arguments and fits,
never evaluated.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import io
import tokenize
from typing import Any, TypeVar

import tpv
import tpv.pruning
from tpv.common.errors import TPVError, did_you_mean
from tpv.estimators import Estimator
from tpv.perturbations import PerturbationSpec
from tpv.pruning import Criterion
from tpv.training.fits import Fit

T = TypeVar("T")

_PYTHON_ONLY = {
    "Displacement": "state_dict with tensors",
    "Retraining": "a LabelNoise with its training data",
}
_EXAMPLES: dict[type[Any], str] = {
    PerturbationSpec: "Quantization(bits=4)",
    Estimator: "Hutchinson(probes=4)",
    Criterion: "TPVImportance(probes=4)",
    Fit: "Ridge(gamma=0.01)",
}


def parse_perturbation(text: str) -> PerturbationSpec:
    """A perturbation from text such as ``Quantization(bits=4)``.

    ``a + b`` adds independent ones; ``mypackage.module:MyNoise(p=0.02)`` imports your own class.

    Args:
        text: a class of :mod:`tpv` with literal arguments, or with a :class:`tpv.Fit` of literal arguments.

    Raises:
        TPVError: for an unknown name, a wrong option or anything other than a literal, in one sentence.

    Example:
        >>> parse_perturbation("Quantization(bits=4) + SGDNoise(lr=0.1, batch_size=128)")
        Quantization(bits=4) + SGDNoise(lr=0.1, batch_size=128)
        >>> parse_perturbation("LabelNoise(std=0.1, fit=Ridge(gamma=0.01))")
        LabelNoise(std=0.1, fit=Ridge(gamma=0.01))
    """
    return _sum(_parsed(text, PerturbationSpec), text)


def parse_estimator(text: str) -> Estimator:
    """An estimator from text such as ``Hutchinson(probes=4)``.

    Raises:
        TPVError: as :func:`parse_perturbation`.

    Example:
        >>> parse_estimator("Hutchinson(probes=4)")
        Hutchinson(probes=4)
    """
    return _made(_parsed(text, Estimator), text, Estimator)  # type: ignore[type-abstract]


def parse_criterion(text: str) -> Criterion:
    """A criterion of pruning from text such as ``TPVImportance(probes=4)``.

    Raises:
        TPVError: as :func:`parse_perturbation`.

    Example:
        >>> parse_criterion("JBR(confidence=0.5)").confidence
        0.5
    """
    return _made(_parsed(text, Criterion), text, Criterion)  # type: ignore[type-abstract]


def _sum(node: ast.expr, text: str) -> PerturbationSpec:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _sum(node.left, text) + _sum(node.right, text)
    return _made(node, text, PerturbationSpec)  # type: ignore[type-abstract]


def _parsed(text: str, base: type[Any]) -> ast.expr:
    try:
        return ast.parse(_dotted(text.strip()), mode="eval").body
    except (SyntaxError, tokenize.TokenError, ValueError):
        raise _unreadable(text, base) from None


def _unreadable(text: str, base: type[Any]) -> TPVError:
    return TPVError(f"{text!r} cannot be read: write a class with its options, such as {_EXAMPLES[base]!r}.")


def _dotted(text: str) -> str:
    """The text with the colon of ``module:Class`` as a dot."""
    depth, colons = 0, set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.OP:
            depth += (token.string in "([{") - (token.string in ")]}")
            if token.string == ":" and depth == 0:
                colons.add(token.start[1])
    return "".join("." if i in colons else c for i, c in enumerate(text))


def _made(node: ast.expr, text: str, base: type[T]) -> T:
    call = node if isinstance(node, ast.Call) else ast.Call(node, [], [])
    cls = _class(call.func, text, base)
    name = cls.__name__
    if cls in (getattr(tpv, n) for n in _PYTHON_ONLY):
        raise TPVError(f"{name} needs {_PYTHON_ONLY[name]}, which text cannot give: use it from Python.")
    arguments = [_value(name, argument) for argument in call.args]
    options = _options(name, call.keywords, text)
    bound = _bound(cls, arguments, options)
    try:
        return cls(*bound.args, **bound.kwargs)
    except TPVError:
        raise
    except Exception as error:
        raise TPVError(f"{ast.unparse(call)} was refused: {type(error).__name__}: {error}.") from error


def _class(node: ast.expr, text: str, base: type[T]) -> type[T]:
    if isinstance(node, ast.Name):
        known = _known(base)
        if node.id not in known:
            raise TPVError(
                f"{node.id!r} is not {_article(base)} of tpv: there are {', '.join(known)}, and your own as "
                "'package.module:Class(...)'."
                f"{did_you_mean(node.id, known)}"
            )
        return known[node.id]
    if isinstance(node, ast.Attribute):
        return _imported(ast.unparse(node.value), node.attr, base)
    raise _unreadable(text, base)


def _known(base: type[T]) -> dict[str, type[T]]:
    """The finished classes of that kind in the public names."""
    public = {name: getattr(module, name) for module in (tpv, tpv.pruning) for name in module.__all__}
    return {
        n: c
        for n, c in public.items()
        if inspect.isclass(c) and issubclass(c, base) and not inspect.isabstract(c)
    }


def _imported(module: str, name: str, base: type[T]) -> type[T]:
    try:
        cls: Any = getattr(importlib.import_module(module), name, None)
    except Exception as error:
        raise TPVError(f"{module}:{name} cannot be imported: {type(error).__name__}: {error}.") from error
    if cls is None:
        raise TPVError(
            f"{module} defines no {name!r}.{did_you_mean(name, vars(importlib.import_module(module)))}"
        )
    if not (inspect.isclass(cls) and issubclass(cls, base)) or inspect.isabstract(cls):
        home = "tpv" if hasattr(tpv, _kind(base)) else "tpv.pruning"
        raise TPVError(
            f"{module}:{name} is not {_article(base)}: subclass {home}.{_kind(base)} and write its methods."
        )
    return cls


def _value(owner: str, node: ast.expr) -> Any:
    """A literal, or a way to fit with literal options."""
    name = ast.unparse(node.func if isinstance(node, ast.Call) else node).removeprefix("tpv.")
    if name in _known(Fit):  # type: ignore[type-abstract]
        call = (
            ast.Call(ast.Name(name), node.args, node.keywords)
            if isinstance(node, ast.Call)
            else ast.Name(name)
        )
        return _made(call, ast.unparse(node), Fit)  # type: ignore[type-abstract]
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError):
        hint = did_you_mean(name, _known(Fit))  # type: ignore[type-abstract]
        raise TPVError(
            f"{owner}(... {ast.unparse(node)} ...): only literal values such as 4, 0.1, 'channel' or "
            "['layer1.*'] are read, and fits "
            f"such as Ridge(gamma=0.01).{hint}"
        ) from None


def _options(owner: str, keywords: list[ast.keyword], text: str) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for keyword in keywords:
        if keyword.arg is None or keyword.arg in options:
            raise TPVError(f"{text!r} cannot be read: write every option out, once.")
        options[keyword.arg] = _value(owner, keyword.value)
    return options


def _bound(cls: type[Any], arguments: list[Any], options: dict[str, Any]) -> inspect.BoundArguments:
    signature = _signature(cls)
    open_ended = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    allowed = (
        f"its options are {', '.join(signature.parameters)}" if signature.parameters else "it has no options"
    )
    if not open_ended and (unknown := [name for name in options if name not in signature.parameters]):
        raise TPVError(
            f"{cls.__name__} has no option {unknown[0]!r}: "
            f"{allowed}.{did_you_mean(unknown[0], signature.parameters)}"
        )
    try:
        return signature.bind(*arguments, **options)
    except TypeError as error:
        raise TPVError(f"{cls.__name__}: {error}; {allowed}.") from None


def _signature(cls: type[Any]) -> inspect.Signature:
    """What text can give: not the tensors that tpv's own classes keep out of their repr, and what follows
    them by keyword only.
    """
    signature = inspect.signature(cls)
    if not cls.__module__.startswith("tpv.") or not dataclasses.is_dataclass(cls):
        return signature
    hidden = {f.name for f in dataclasses.fields(cls) if not f.repr}
    parameters, keyword_only = [], False
    for name, parameter in signature.parameters.items():
        keyword_only |= name in hidden
        if name not in hidden:
            parameters.append(parameter.replace(kind=parameter.KEYWORD_ONLY) if keyword_only else parameter)
    return signature.replace(parameters=parameters)


def _article(base: type[Any]) -> str:
    return f"{'an' if base.__name__[0] in 'AEIOU' else 'a'} {_kind(base).lower()}"


def _kind(base: type[Any]) -> str:
    """The class that users subclass."""
    return base.__name__.removesuffix("Spec")
