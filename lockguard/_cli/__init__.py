"""The ``lockguard`` command. Integrations add to it by entry points in the group ``lockguard.commands``."""

from __future__ import annotations

import sys
from io import TextIOWrapper

from lockguard import _interrupt as interrupt

__all__ = ["main"]


def main() -> None:
    """Run the command and leave with its exit code."""
    code: str | int | None = 1
    try:
        interrupt.catch()
        if isinstance(sys.stdout, TextIOWrapper):  # not if the parent process closed it
            sys.stdout.reconfigure(errors="backslashreplace")  # the locale may lack a name's letters
        try:
            code = _run(sys.argv[1:])
        except SystemExit as ended:
            code = ended.code
        interrupt.over(code if isinstance(code, int) else int(code is not None))
    except KeyboardInterrupt:
        code = interrupt.interrupted()
    sys.exit(code)


def _run(arguments: list[str]) -> int:
    try:
        from lockguard._cli.app import run  # noqa: PLC0415 - it needs an extra, and says so
    except ModuleNotFoundError as missing:
        package = (missing.name or "").partition(".")[0]
        if package not in {"click", "rich"}:
            raise
        sys.stderr.write(
            f"lockguard: the command needs {package}, which is not installed; pip install 'lockguard[cli]'\n"
        )
        return 2
    return run(arguments)
