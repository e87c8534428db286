"""Runs an example as ``python FILE`` does: ``example_runner.py FILE``.

Of ccxt it imports one exchange only, which saves seconds; and with EXAMPLE_CLOCK_S the process's wall clock
is wrong by so many seconds.
"""

from __future__ import annotations

import os
import runpy
import sys
import time

from lockguard_ccxt.lean_import import import_lean

if import_lean("binanceusdm"):
    from ccxt.base import errors

    vars(sys.modules["ccxt.async_support"]).update({name: getattr(errors, name) for name in errors.__all__})

wrong_s, right = float(os.environ.get("EXAMPLE_CLOCK_S", "0")), time.time
time.time = lambda: right() + wrong_s

sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
