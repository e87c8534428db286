"""Files that only their user can read, and that no other user can redirect.

Reports, logs and backups show what a bot holds and where. In a directory that others may write to, such as
``/tmp``, another user could place a link with the expected name, and have the file written where it points.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import sys
from typing import TYPE_CHECKING

from lockguard.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import TextIO

__all__ = [
    "append_private",
    "is_of_the_output",
    "new_private",
    "replacing",
    "require_writable",
    "write_private",
]

_MODE = 0o600
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_STREAM = re.compile(r"/dev/(stdout|stderr)|/(?:dev|proc/self)/fd/([0-9]{1,6})")
_STREAMS = {"stdout": 1, "stderr": 2}
_OUTPUT_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EPIPE}


def is_of_the_output(exc: BaseException) -> bool:
    """Whether ``exc`` is a failure of the standard output, a file or a pipe, and not of a server."""
    return isinstance(exc, OSError) and exc.errno in _OUTPUT_ERRORS


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[TextIO]:
    """A file that becomes ``path`` when the body ends, all or nothing, with mode 0600.

    A link at ``path`` is replaced, not followed. A device, a pipe, or a stream of this process such as
    ``/dev/stdout`` is written to directly, even if it leads to a file.

    Raises:
        ConfigurationError: the file cannot be written.
    """
    try:
        if (stream := _own_stream(path)) is not None:
            if sys.stdout is not None:  # None: closed by the parent process
                sys.stdout.flush()
            with os.fdopen(os.dup(stream), "w", encoding="utf-8") as file:
                yield file
            return
        if _is_special(path):
            with path.open("w", encoding="utf-8") as file:
                yield file
            return
        draft = _draft_of(path)
        try:
            with os.fdopen(os.open(draft, _NEW, _MODE), "w", encoding="utf-8") as file:
                yield file
            draft.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                draft.unlink(missing_ok=True)
            raise
    except OSError as exc:
        raise ConfigurationError(f"{path} cannot be written: {exc.strerror or exc}") from exc


def write_private(path: Path, text: str) -> None:
    """Write the whole of a file, see :func:`replacing`.

    Raises:
        ConfigurationError: the file cannot be written.
    """
    with replacing(path) as file:
        file.write(text)


@contextlib.contextmanager
def new_private(path: Path, text: str) -> Iterator[None]:
    """A file that did not exist, for the length of a body: all of it or nothing, with mode 0600.

    What has come to be at ``path`` meanwhile, such as the file of another process, is left alone in the end.

    Raises:
        ConfigurationError: there is a file at ``path``, or it cannot be written.
    """
    try:
        ours = _create(path, text)
    except FileExistsError as exc:
        raise ConfigurationError(f"{path} exists already; name a new file, or delete it") from exc
    except OSError as exc:
        raise ConfigurationError(f"{path} cannot be written: {exc.strerror or exc}") from exc
    try:
        yield
    finally:
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(path.lstat(), ours):
                path.unlink()


def _create(path: Path, text: str) -> os.stat_result:
    """Have ``path`` appear with all of its text, unless there is something already."""
    draft = _draft_of(path)
    try:
        with os.fdopen(os.open(draft, _NEW, _MODE), "w", encoding="utf-8") as file:
            file.write(text)
        ours = draft.lstat()
        try:
            os.link(draft, path)  # unlike a rename, it replaces nothing
        except FileExistsError:
            raise
        except OSError:  # a file system without hard links
            if os.path.lexists(path):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST)) from None
            draft.rename(path)
        return ours
    finally:
        draft.unlink(missing_ok=True)


def require_writable(*paths: Path | None) -> None:
    """Check that files can be written, before the work begins whose result they are to hold.

    Leaves no file behind, and existing ones as they are.

    Args:
        *paths: files, as for :func:`write_private`; ``None`` is skipped.

    Raises:
        ConfigurationError: one could not be written; the message names the file, why, and what to do.
    """
    for path in paths:
        if path is None:
            continue
        try:
            why = _why_not_written(path)
        except OSError as exc:
            why = f"{(exc.strerror or str(exc)).lower()}; name another place"
        if why:
            raise ConfigurationError(f"{path} cannot be written: {why}")


def _why_not_written(path: Path) -> str:
    """Why ``path`` cannot be written; empty if it can be."""
    if _own_stream(path) is not None:
        return ""
    if path.is_dir():
        return "it is a directory; name a file in it"
    folder = path.absolute().parent
    if not folder.is_dir():
        return f"there is no directory {folder}; make it first"
    if _is_special(path):
        return "" if os.access(path, os.W_OK) else "permission denied; name another place"
    draft = _draft_of(path)  # tried, because many reasons show only then
    os.close(os.open(draft, _NEW, _MODE))
    draft.unlink()
    return ""


def append_private(path: Path) -> TextIO:
    """Open a file to append to; a new one gets mode 0600, and a link is refused.

    Raises:
        OSError: the file cannot be opened.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.fdopen(os.open(path, flags, _MODE), "a", encoding="utf-8")


def _draft_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}")


def _own_stream(path: Path) -> int | None:
    """The descriptor that ``path`` names. As root, replacing the link would break it for all processes."""
    found = _STREAM.fullmatch(os.path.normpath(path))
    if found is None:
        return None
    return _STREAMS[found[1]] if found[1] else int(found[2])


def _is_special(path: Path) -> bool:
    """Whether ``path`` leads to what is neither a file nor a directory, such as a device or a pipe."""
    return path.exists() and not path.is_file() and not path.is_dir()
