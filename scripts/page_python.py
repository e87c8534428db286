"""Runs the Python of one page, block after block in one namespace, for ``scripts/pages.py``.

Each line of the input is a program as JSON; the answer is what it printed and, if it failed, why. ``await``
may stand outside a function, as in ``python -m asyncio``: a page shows what goes into a function of the
reader's.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import inspect
import io
import json
import linecache
import os
import sys
import traceback
import types


def _run(code: types.CodeType, names: dict[str, object], runner: asyncio.Runner) -> None:
    result = eval(code, names)
    if inspect.iscoroutine(result):
        runner.run(result)


def main() -> None:
    """Answer until the input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a block's own processes print is no answer
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module  # dataclasses and pickle look there
    names = module.__dict__
    with asyncio.Runner() as runner:
        for line in sys.stdin:
            place, source = json.loads(line)
            printed, failure = io.StringIO(), ""
            linecache.cache[place] = (len(source), None, source.splitlines(keepends=True), place)
            with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
                try:
                    _run(compile(source, place, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT), names, runner)
                except BaseException:  # noqa: BLE001 - also SystemExit is an answer
                    failure = traceback.format_exc()
            print(json.dumps([printed.getvalue(), failure]), file=answers, flush=True)


if __name__ == "__main__":
    main()
