"""The entry point of the ``lockguard`` command: it handles Ctrl-C before the library is imported.

That import takes a third of a second, during which Ctrl-C would print a traceback. This is a separate package
because no module of ``lockguard`` can run before ``lockguard`` is imported. Importing it imports only the
standard library.
"""

from __future__ import annotations

import os
import signal

__all__ = ["main"]

_INTERRUPTED = 130


def main() -> None:
    """Run the command and exit with its code; a SIGINT or SIGTERM during the import exits with 130."""
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:  # keep a background job's ignored signals ignored
            signal.signal(number, _end)
    from lockguard._cli import main as command  # noqa: PLC0415 - see above

    command()


def _end(*_: object) -> None:
    # Exit at once: no work was begun, and an exception could be swallowed by an import.
    os.write(2, b"lockguard: interrupted\n")
    os._exit(_INTERRUPTED)
