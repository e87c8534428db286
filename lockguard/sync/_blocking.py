"""Where a call may block: not in an event loop, and not in the thread that it waits for."""

from __future__ import annotations

import asyncio
import inspect
import select
import sys
import threading

from lockguard.errors import ConfigurationError

__all__ = ["require_blocking_allowed", "require_real_threads"]


def require_blocking_allowed(what: str, *, in_own_thread: bool) -> None:
    """Check that this thread may wait for the background thread.

    In a notebook a loop runs as well, the kernel's, and to block it is what its user asks for.

    Args:
        what: the call, for errors.
        in_own_thread: whether this is the background thread.

    Raises:
        ConfigurationError: it is the background thread itself, or an event loop runs in this thread.
    """
    if in_own_thread:
        raise ConfigurationError(
            f"{what} was called in the guard's own background thread, as from on_loss= or an observer, and"
            " would wait for itself; have another thread call it"
        )
    if asyncio._get_running_loop() is not None and not _in_notebook():  # it does not raise
        raise ConfigurationError(
            f"{what} of lockguard.sync was called inside a running event loop, which it would block; there"
            " write `async with guard.hold(...)` with a lockguard.LockGuard, or call it by asyncio.to_thread"
        )


def require_real_threads() -> None:
    """Check that a thread runs by itself, and not only when others give way.

    Raises:
        ConfigurationError: gevent or eventlet has put its own in the place of threads.
    """
    if not (inspect.isbuiltin(threading.get_ident) and inspect.isbuiltin(select.select)):
        raise ConfigurationError(
            "gevent or eventlet has replaced the threads or the sockets of this process, and no lease could"
            " be renewed while a body works; run it with plain threads, without monkey.patch_all()"
        )


def _in_notebook() -> bool:
    ipython = sys.modules.get("IPython")
    return ipython is not None and ipython.get_ipython() is not None
