"""Runs Lua scripts over a :class:`~lockguard_lab.sim.store.Store`, as a Redis server does."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import lupa.lua51

from lockguard_lab.sim.store import ReplyError, Status, Store

__all__ = ["Scripts"]

_MAKE = b"""
return function(text)
  local body, refusal = loadstring('return function(KEYS, ARGV, redis)\\n' .. text .. '\\nend', '@script')
  if not body then error(refusal) end
  return body()
end
"""
_TABLE = b"function(...) return {...} end"
_CALLS = b"""
return function(call, again)
  local redis = {}
  local function told(raise, ok, value)
    if ok then return value end
    if raise then error({err = value}, 0) end
    return {err = value}
  end
  redis.call = function(...) return told(true, call(...)) end
  redis.pcall = function(...) return told(false, call(...)) end
  redis.error_reply = function(text) return {err = text} end
  redis.status_reply = function(text) return {ok = text} end
  redis.sha1hex = again
  return redis
end
"""
_RUN = b"""
return function(body, keys, argv, redis)
  local ok, value = pcall(body, keys, argv, redis)
  if ok then return value end
  if type(value) == 'table' and value.err then return value end
  return {err = 'ERR ' .. tostring(value)}
end
"""

_TABLES_MAX = 1000
_NONE = (True, False)
_AS_THEY_ARE = (bytes, int)

_lupa: Any = lupa.lua51
_runtime: Any = None


class Scripts:
    """The scripts of one server. All servers share one Lua interpreter: scripts keep no state in it.

    Args:
        store: the data.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lua = _lua()
        self.known: set[str] = set()

    def load(self, source: bytes) -> bytes:
        """Keep a script; returns its SHA-1 in hexadecimal."""
        sha = self._lua.sha_of(source)
        self.known.add(sha)
        return sha.encode()

    def run(self, sha: str, keys: Sequence[bytes], args: Sequence[bytes]) -> Any:
        """Run a script that is known.

        Raises:
            ReplyError: it is unknown, or failed.
        """
        if sha not in self.known:
            raise ReplyError("NOSCRIPT No matching script. Please use EVAL.")
        lua = self._lua
        lua.running = self
        self._store.begin_script()
        try:
            reply = lua.run(lua.bodies[sha], lua.keys(keys), lua.table(*args), lua.redis)
        finally:
            self._store.end_script()
            lua.running = None
        return _reply_of(reply)

    def call(self, *words: Any) -> Any:
        """``redis.call`` of the script that runs: whether it succeeded, and its reply or its error."""
        try:
            reply = self._store.do(*[word if type(word) is bytes else _word(word) for word in words])
            if reply is None:
                return _NONE
            return True, reply if type(reply) in _AS_THEY_ARE else _lua_of(self._lua, reply)
        except ReplyError as error:
            return False, str(error).encode()


class _Lua:
    def __init__(self) -> None:
        self.runtime = _lupa.LuaRuntime(encoding=None, unpack_returned_tuples=True)
        self.bodies: dict[str, Any] = {}
        self._known: dict[bytes, str] = {}
        self._tables: dict[tuple[bytes, ...], Any] = {}
        self._make: Any = self.runtime.execute(_MAKE)
        calls: Any = self.runtime.execute(_CALLS)
        # One for all servers: what Lua refers to is kept until Lua collects it, and a server keeps a world.
        self.redis: Any = calls(self._call, lambda text: hashlib.sha1(text).hexdigest().encode())  # noqa: S324
        self.running: Scripts | None = None
        self.run: Any = self.runtime.execute(_RUN)
        self.table: Any = self.runtime.eval(_TABLE)

    def _call(self, *words: Any) -> Any:
        assert self.running is not None
        return self.running.call(*words)

    def keys(self, keys: Sequence[bytes]) -> Any:
        """KEYS, which no script changes."""
        words = tuple(keys)
        table = self._tables.get(words)
        if table is None:
            if len(self._tables) > _TABLES_MAX:
                self._tables.clear()
            table = self._tables[words] = self.table(*words)
        return table

    def sha_of(self, source: bytes) -> str:
        """Compile a script, once."""
        sha = self._known.get(source)
        if sha is None:
            sha = hashlib.sha1(source, usedforsecurity=False).hexdigest()
            try:
                self.bodies[sha] = self._make(source)
            except _lupa.LuaError as error:
                raise ReplyError(f"ERR Error compiling script: {error}") from error
            self._known[source] = sha
        return sha


def _lua() -> _Lua:
    global _runtime  # noqa: PLW0603 - made once: compiling the scripts takes longer than most schedules
    if _runtime is None:
        _runtime = _Lua()
    lua: _Lua = _runtime
    return lua


def _word(word: Any) -> bytes:
    """An argument of redis.call as Redis converts it."""
    if isinstance(word, bytes):
        return word
    if isinstance(word, bool) or not isinstance(word, int | float):
        raise ReplyError("ERR Lua redis lib command arguments must be strings or integers")
    return b"%d" % word if float(word).is_integer() and abs(word) < 1e17 else f"{word:.17g}".encode()


def _lua_of(lua: _Lua, reply: Any) -> Any:
    """A reply as a script sees it."""
    if reply is None:
        return False
    if isinstance(reply, Status):
        return lua.runtime.table_from({b"ok": bytes(reply)})
    if isinstance(reply, list):
        parts = [
            False if part is None else part if type(part) in _AS_THEY_ARE else _lua_of(lua, part)
            for part in reply
        ]
        return lua.table(*parts)
    return reply


def _reply_of(value: Any) -> Any:
    """What a script returned, as a reply."""
    if type(value) in _AS_THEY_ARE:
        return value
    if _lupa.lua_type(value) == "table":
        if (refusal := value[b"err"]) is not None:
            raise ReplyError(refusal.decode(errors="replace"))
        if (status := value[b"ok"]) is not None:
            return Status(status)
        parts = []
        for index in range(1, len(value) + 1):
            if value[index] is None:
                break
            parts.append(_reply_of(value[index]))
        return parts
    if value is None or value is False:
        return None
    if value is True:
        return 1
    return int(value) if isinstance(value, int | float) else value
