"""Runs a bot as ``python bot0.py`` does, but imports one exchange of ccxt only: that saves seconds."""

import runpy
import sys

from lockguard_ccxt.lean_import import import_lean

if import_lean("binanceusdm"):
    from ccxt.base import errors

    vars(sys.modules["ccxt.async_support"]).update({name: getattr(errors, name) for name in errors.__all__})

sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
