"""Which of the objects behind a function of the user's lead to the model."""

from __future__ import annotations

import gc
import types
import weakref
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from tpv.model.callables import global_values, parts
from tpv.model.copier import Copier, is_atom

_MOST_OBJECTS = 100_000
_OPAQUE = (types.ModuleType, types.CodeType, types.BuiltinFunctionType, type)


def leading_to(start: Any, targets: set[int], copy: Copier) -> set[int]:
    """The ids of the objects from ``start`` on that lead to one of the ``targets`` (ids).

    Only these have to be copied for a function to use the twin; lists that it fills, say, stay the user's.
    After 100,000 objects, whatever follows counts as leading nowhere.
    """
    users: defaultdict[int, set[int]] = defaultdict(set)
    seen: dict[int, Any] = {id(start): start}
    stack, reached = [start], set[int]()
    while stack and len(seen) < _MOST_OBJECTS:
        user = stack.pop()
        for used in _used_by(user, copy):
            users[id(used)].add(id(user))
            if id(used) in targets:
                reached.add(id(used))
            elif id(used) not in seen:
                seen[id(used)] = used
                stack.append(used)
    leading, following = set[int](), list(reached)
    while following:
        for user_id in users[following.pop()] - leading:
            leading.add(user_id)
            following.append(user_id)
    return leading


def _used_by(user: Any, copy: Copier) -> Iterable[Any]:
    if isinstance(user, types.FunctionType):
        return [*filter(_may_lead, parts(user)[1:]), *global_values(user, copy)]
    if isinstance(user, weakref.ref):
        return [user()]
    return [used for used in gc.get_referents(user) if _may_lead(used)]


def _may_lead(value: Any) -> bool:
    return not (is_atom(value) or isinstance(value, _OPAQUE))
