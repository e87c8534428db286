"""Runs a bot's file as ``python bot.py`` does, but imports one exchange of ccxt only: that saves seconds."""

from __future__ import annotations

import runpy
import sys
from importlib import import_module

from lockguard_ccxt.lean_import import import_lean
from lockguard_lab.child_process import begin_as_child

__all__: list[str] = []

if __name__ == "__main__":
    begin_as_child()
    if import_lean("binanceusdm"):
        errors = import_module("ccxt.base.errors")
        vars(sys.modules["ccxt.async_support"]).update(
            {name: getattr(errors, name) for name in errors.__all__}
        )
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
