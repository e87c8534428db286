"""Files that only their user can read, written so that nobody else can have them written elsewhere.

Reports, logs and backups tell what a bot holds and where. In a directory that others may write to, such as
``/tmp``, somebody could put a link of the expected name in place, and have the file written where it points.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from typing import TYPE_CHECKING

from lockguard.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import TextIO

__all__ = ["append_private", "replacing", "write_private"]

_MODE = 0o600


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[TextIO]:
    """A file that becomes ``path`` when the body is over, all or nothing; with mode 0600.

    A link at ``path`` is replaced, not followed. A device or a pipe is written to as it is.

    Raises:
        ConfigurationError: it cannot be written.
    """
    try:
        if _is_special(path):
            with path.open("w", encoding="utf-8") as file:
                yield file
            return
        draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            with os.fdopen(os.open(draft, flags, _MODE), "w", encoding="utf-8") as file:
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
        ConfigurationError: it cannot be written.
    """
    with replacing(path) as file:
        file.write(text)


def append_private(path: Path) -> TextIO:
    """Open a file to append to; a new one gets mode 0600, and a link is refused.

    Raises:
        OSError: it cannot be opened.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.fdopen(os.open(path, flags, _MODE), "a", encoding="utf-8")


def _is_special(path: Path) -> bool:
    """Whether it is there, no link, and neither a file nor a directory: ``/dev/stdout``'s target, a pipe."""
    return path.exists() and not path.is_file() and not path.is_dir()
