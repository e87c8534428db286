"""Runs Lua scripts over a :class:`~lockguard_lab.sim.store.Store`, as a Redis server does."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import lupa.lua51

from lockguard_lab.sim.store import ReplyError, Status, Store

__all__ = ["Scripts"]

_MAKE = b"""
return function(redis, text)
  local make, refusal = loadstring('return function(KEYS, ARGV, redis)\\n' .. text .. '\\nend', '@script')
  if not make then error(refusal) end
  local body = make()
  -- What a script returns: a table as true and its parts, what refuses it as false and a text.
  local function told(ok, value)
    if type(value) ~= 'table' then
      if ok then return value == true and 1 or value end
      return false, 'err', 'ERR ' .. tostring(value)
    end
    if value.err then return false, 'err', value.err end
    if not ok then return false, 'err', 'ERR ' .. tostring(value) end
    if value.ok then return false, 'ok', value.ok end
    return true, unpack(value)
  end
  return function(keys, ...) return told(pcall(body, keys, {...}, redis)) end
end
"""
_TABLE = b"function(...) return {...} end"
_CALLS = b"""
return function(call, again)
  local redis = {}
  -- What a command returns: a table as true and its parts; an error or a status as false, kind and text.
  local function told(first, ...)
    if first == nil then return false end
    if first == true then return {...} end
    if first == false then
      local kind, text = ...
      return {[kind] = text}
    end
    return first
  end
  redis.pcall = function(...) return told(call(...)) end
  redis.call = function(...)
    local value = told(call(...))
    if type(value) == 'table' and value.err then error(value, 0) end
    return value
  end
  redis.error_reply = function(text) return {err = text} end
  redis.status_reply = function(text) return {ok = text} end
  redis.sha1hex = again
  return redis
end
"""

_NO_GLOBALS = b"""
setmetatable(_G, {
  __index = function(_, name) error('Script attempted to access nonexistent global variable ' .. name, 2) end,
  __newindex = function() error('Attempt to modify a readonly table', 2) end,
})
"""
_TABLES_MAX = 1000
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
        lua.running = self._store
        self._store.begin_script()
        try:
            reply = lua.bodies[sha](lua.keys(keys), *args)
        finally:
            self._store.end_script()
            lua.running = None
        if type(reply) is not tuple:
            return [] if reply is True else _reply_of(reply)
        if reply[0]:
            return _parts(reply[1:])
        if reply[1] == b"ok":
            return Status(reply[2])
        raise ReplyError(reply[2].decode(errors="replace"))


class _Lua:
    def __init__(self) -> None:
        self.runtime = _lupa.LuaRuntime(encoding=None, unpack_returned_tuples=True)
        self.bodies: dict[str, Any] = {}
        self._known: dict[bytes, str] = {}
        self._tables: dict[tuple[bytes, ...], Any] = {}
        self._make: Any = self.runtime.execute(_MAKE)
        calls: Any = self.runtime.execute(_CALLS)
        # One for all servers: what Lua refers to is kept until Lua collects it, and a server keeps a world.
        self._redis: Any = calls(self._call, lambda text: hashlib.sha1(text).hexdigest().encode())  # noqa: S324
        self.running: Store | None = None
        """The data of the server whose script runs."""
        self._table: Any = self.runtime.eval(_TABLE)
        self.runtime.execute(_NO_GLOBALS)  # a misspelt local is an error on a server, and no nil

    def _call(self, *words: Any) -> Any:
        """``redis.call`` of the script that runs, as ``_CALLS`` takes it; each takes several of them."""
        store = self.running
        assert store is not None
        try:
            for word in words:
                if type(word) is not bytes:
                    words = tuple(map(_word, words))
                    break
            reply = store.do(*words)
        except ReplyError as error:
            return False, b"err", str(error).encode()
        if type(reply) is list:
            return True, *[False if part is None else part for part in reply]
        if type(reply) is Status:
            return False, b"ok", bytes(reply)
        return reply

    def keys(self, keys: Sequence[bytes]) -> Any:
        """KEYS, which no script changes."""
        words = tuple(keys)
        table = self._tables.get(words)
        if table is None:
            if len(self._tables) > _TABLES_MAX:
                self._tables.clear()
            table = self._tables[words] = self._table(*words)
        return table

    def sha_of(self, source: bytes) -> str:
        """Compile a script, once."""
        sha = self._known.get(source)
        if sha is None:
            sha = hashlib.sha1(source, usedforsecurity=False).hexdigest()
            try:
                self.bodies[sha] = self._make(self._redis, source)
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


def _parts(values: Sequence[Any]) -> list[Any]:
    """The parts of a table that a script returned, up to the first nil, as a reply."""
    end = values.index(None) if None in values else len(values)
    return [value if type(value) in _AS_THEY_ARE else _reply_of(value) for value in values[:end]]


def _reply_of(value: Any) -> Any:
    """A value that a script returned, as a reply."""
    if type(value) in _AS_THEY_ARE:
        return value
    if _lupa.lua_type(value) == "table":
        return _parts([value[index] for index in range(1, len(value) + 1)])
    if value is None or value is False:
        return None
    if value is True:
        return 1
    return int(value) if isinstance(value, int | float) else value
