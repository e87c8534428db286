"""A copy of the checkout, in which mutants are planted: the checkout itself is never changed."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lockguard_lab.mutants.mutant import Mutant

__all__ = ["Copied"]

_PLANTED_AT_NS = 1_000_000_000_000_000_000


class Copied:
    """A copy of every file that git knows or would add, below ``directory``.

    Args:
        top: the checkout.
        directory: where the copy is; one that is there is brought up to date.
    """

    def __init__(self, top: Path, directory: Path) -> None:
        self._top = top
        self.directory = directory
        self._planted = 0
        self._bring_up_to_date()

    def _bring_up_to_date(self) -> None:
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],  # noqa: S607 - the user's own git
            cwd=self._top,
            check=True,
            stdout=subprocess.PIPE,
        ).stdout.decode()
        names = {name for name in listed.split("\0") if name and (self._top / name).is_file()}
        for name in sorted(names):
            source, target = self._top / name, self.directory / name
            content = source.read_bytes()
            if target.exists() and target.read_bytes() == content:
                continue  # keeps its time, and with it what Python compiled of it
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
            shutil.copymode(source, target)
            _forget_compiled(target)
        for path in list(self.directory.rglob("*")):
            inside = path.relative_to(self.directory)
            if path.is_file() and "__pycache__" not in inside.parts and str(inside) not in names:
                path.unlink()

    @contextmanager
    def planted(self, mutant: Mutant) -> Iterator[None]:
        """The copy with a mutant in it, for the length of the body."""
        target = self.directory / mutant.file
        sound = target.read_bytes()
        try:
            target.write_text(mutant.source(self.directory), "utf-8")
            # Python takes a compiled file by the second and the size: two mutants may have both in common.
            self._planted += 1
            at_ns = _PLANTED_AT_NS + self._planted * 1_000_000_000
            os.utime(target, ns=(at_ns, at_ns))
            _forget_compiled(target)
            yield
        finally:
            target.write_bytes(sound)
            _forget_compiled(target)


def _forget_compiled(path: Path) -> None:
    if path.suffix == ".py":
        for compiled in (path.parent / "__pycache__").glob(f"{path.stem}.*.pyc"):
            compiled.unlink()
