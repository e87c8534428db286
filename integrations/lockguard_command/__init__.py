"""Where the ``lockguard`` command begins: it answers Ctrl-C before the library is imported.

That takes a third of a second, in which Python would answer with a traceback. A package of its own, because
nothing within ``lockguard`` can run before ``lockguard`` is imported. It imports nothing itself.
"""

from __future__ import annotations

import os
import signal

__all__ = ["main"]

_INTERRUPTED = 130


def main() -> None:
    """Run the command and leave with its exit code."""
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:  # ignored in a background job: it stays so
            signal.signal(number, _end)
    from lockguard._cli import main as command  # noqa: PLC0415 - see above

    command()


def _end(*_: object) -> None:
    # At once: nothing was begun, and an exception may be lost among the imports.
    os.write(2, b"lockguard: interrupted\n")
    os._exit(_INTERRUPTED)
