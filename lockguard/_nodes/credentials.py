"""Credentials that are fetched anew for each log-in, for passwords that rotate and tokens that expire.

What fetches them is the user's: it may fail, hang, or block its thread for a while, as a request to a cloud's
token service does. So it has a time limit of its own, before the log-in's begins, and a plain function runs
in a thread of its own: in the event loop it would keep every lease from being renewed. As with names that are
looked up (``dial.py``), one that hangs costs one daemon thread, whatever the number of attempts. After a
minute it is called anew in another one, or what hung once would keep the guard from its server for ever.

No error shows what was fetched, nor the text of what was raised, which may quote it.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import threading
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

from redis.credentials import CredentialProvider

from lockguard.errors import ConfigurationError, NodeRefused
from lockguard.text import kind_of

__all__ = ["Credentials", "CredentialsSource", "LoginName"]

LoginName: TypeAlias = tuple[str | None, str]
"""User and password; without a user, the URL's own, or the server's default user."""

CredentialsSource: TypeAlias = (
    Callable[[], str | tuple[str | None, str]]
    | Callable[[], Awaitable[str | tuple[str | None, str]]]
    | CredentialProvider
)
"""What ``credentials=`` takes."""

_WITHIN_S = 5.0
_HUNG_S = 60.0
_FORM = "return a password, or (user, password)"


class _EndedItsThreadError(Exception):
    """The kind of what a plain function raised and no future can carry."""


class Credentials:
    """Fetches credentials.

    Args:
        source: called without arguments for each log-in; log-ins at the same moment share the call of a plain
            function. Or a ``CredentialProvider`` of redis-py.

    Raises:
        ConfigurationError: it cannot be called.
    """

    def __init__(self, source: object) -> None:
        fetch: Any = source
        if isinstance(source, CredentialProvider):
            # The base class's asynchronous method blocks the event loop, and redis-py 5.2 has none.
            own, base = (
                getattr(kind, "get_credentials_async", None) for kind in (type(source), CredentialProvider)
            )
            fetch = source.get_credentials if own in (None, base) else source.get_credentials_async
        if not callable(fetch) or isinstance(fetch, type):
            raise ConfigurationError(
                f"credentials= is {kind_of(source)}; give a function to call for each log-in, to {_FORM}"
            )
        self._fetch: Callable[[], Any] = fetch
        self._is_async = inspect.iscoroutinefunction(fetch) or inspect.iscoroutinefunction(
            getattr(type(fetch), "__call__", None)  # noqa: B004 - not whether it can be called
        )
        self._answer: asyncio.Future[_Fetched] | None = None
        self._hung_at = 0.0
        """When the call that is under way counts as one that never ends, on its loop's clock."""

    def __repr__(self) -> str:
        return "<Credentials>"

    async def get(self, server: str) -> LoginName:
        """The credentials for a log-in to ``server``, a name for messages.

        Raises:
            NodeRefused: they could not be had, or are none; the next attempt asks again.
        """
        try:
            async with asyncio.timeout(_WITHIN_S):
                found = await self._fetch() if self._is_async else await self._in_thread()
                if inspect.isawaitable(found):  # of a function that returns a coroutine
                    found = await found
        except TimeoutError:
            raise _refused(server, f"gave nothing within {_WITHIN_S:g} s") from None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise _refused(server, "was cancelled from within") from None
        except _EndedItsThreadError as exc:
            raise _refused(server, f"raised {exc}") from None
        except Exception as exc:  # noqa: BLE001 - whatever it raises, the connection comes back
            raise _refused(server, f"raised {type(exc).__name__}") from None
        return _checked(found, server)

    async def _in_thread(self) -> Any:
        loop, last = asyncio.get_running_loop(), self._answer
        if last is None or last.done() or last.get_loop() is not loop or loop.time() > self._hung_at:
            self._answer = _call(self._fetch, loop)
            self._hung_at = loop.time() + _HUNG_S
        assert self._answer is not None
        return (await asyncio.shield(self._answer)).get()


class _Fetched:
    """What a call gave or raised, without a repr of its own: asyncio's debug mode logs those of results."""

    def __init__(self, found: Any, fault: Exception | None) -> None:
        self._found, self._fault = found, fault

    def get(self) -> Any:
        if self._fault is not None:
            raise self._fault
        return self._found


def _call(fetch: Callable[[], Any], loop: asyncio.AbstractEventLoop) -> asyncio.Future[_Fetched]:
    answer: asyncio.Future[_Fetched] = loop.create_future()

    def tell(fetched: _Fetched) -> None:
        if not answer.done():
            answer.set_result(fetched)

    def work() -> None:
        found: Any = None
        fault: Exception | None = None
        try:
            found = fetch()
        except StopIteration:  # which no future can carry
            fault = _EndedItsThreadError("StopIteration")
        except Exception as exc:  # noqa: BLE001 - told by its kind
            fault = exc
        except BaseException as exc:  # noqa: BLE001 - SystemExit of a thread ends nothing
            fault = _EndedItsThreadError(type(exc).__name__)
        with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
            loop.call_soon_threadsafe(tell, _Fetched(found, fault))

    threading.Thread(target=work, name="lockguard-credentials", daemon=True).start()
    return answer


def _checked(found: Any, server: str) -> LoginName:
    user, password = None, found
    if isinstance(found, tuple) and len(found) in (1, 2):
        user, password = (None, found[0]) if len(found) == 1 else found
    if not isinstance(password, str) or not isinstance(user, str | None):
        what = "a tuple of something else" if isinstance(found, tuple) else f"a {type(found).__name__}"
        raise _refused(server, f"gave {what}: {_FORM}")
    if not password:
        raise _refused(server, "gave an empty password")
    # Half a character, as in a variable that is no UTF-8: no server can be sent it, and the error of the
    # attempt would quote the whole password.
    for what, text in (("user", user or ""), ("password", password)):
        if any("\ud800" <= char <= "\udfff" for char in text):
            raise _refused(server, f"gave a {what} that is no text in UTF-8")
    return user or None, password


def _refused(server: str, why: str) -> NodeRefused:
    return NodeRefused(
        f"no log-in to Redis at {server}: credentials= {why}; it is asked again with each attempt",
        node=server,
    )
