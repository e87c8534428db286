"""A faster import of one ccxt exchange, for processes that run for seconds only.

``import ccxt.async_support`` runs the modules of more than a hundred exchanges, twice: three seconds of
processor time in each process, before a race of a few seconds can begin. One exchange needs twenty modules.
So the two packages are created without running their ``__init__``, with the names that ccxt's own modules
import from them. If a version of ccxt does not work that way, ``sys.modules`` is restored, and the caller can
import ccxt as usual.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

__all__ = ["import_lean"]

_ROOT = "ccxt"
_ASYNC = "ccxt.async_support"


def import_lean(exchange_id: str) -> bool:
    """Import one asyncio exchange of ccxt without all the others; returns whether that worked.

    For a process that uses no other exchange: in it, ``ccxt.async_support`` has only this one.
    """
    spec = find_spec(_ROOT)
    if _ROOT in sys.modules or spec is None or spec.submodule_search_locations is None:
        return False
    try:
        places = list(spec.submodule_search_locations)
        root = _package(_ROOT, places)
        errors = import_module("ccxt.base.errors")
        root.__dict__.update({name: getattr(errors, name) for name in errors.__all__})
        root.__dict__["Exchange"] = import_module("ccxt.base.exchange").Exchange
        package = _package(_ASYNC, [os.path.join(place, "async_support") for place in places])
        module = import_module(f"{_ASYNC}.{exchange_id}")
        package.__dict__[exchange_id] = getattr(module, exchange_id)
    except (ImportError, AttributeError):
        for name in [name for name in sys.modules if name.partition(".")[0] == _ROOT]:
            del sys.modules[name]
        return False
    return True


def _package(name: str, places: list[str]) -> ModuleType:
    spec = ModuleSpec(name, None, is_package=True)
    spec.submodule_search_locations = places
    package = ModuleType(name)
    package.__spec__ = spec
    package.__path__ = places
    sys.modules[name] = package
    return package
