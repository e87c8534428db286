"""Which code a run tried: a digest that two commits share if nothing between them changes what a run finds.

Of Python files the parsed code counts, without docstrings, comments and layout; of all others the bytes. The
same digest comes out on every Python from 3.11 on.
"""

from __future__ import annotations

import ast
import hashlib
import io
import subprocess
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from evidencing.runs import Unusable

__all__ = ["changed", "digest", "digest_at", "exists", "is_shallow", "published"]

KEPT = (".py", ".lua", ".sql", ".pml", ".c", ".json", ".toml")
LENGTH = 16


def digest(root: Path, paths: Iterable[str]) -> str:
    """The digest of the files below ``paths`` in a checkout, less those below a path with ``!``."""
    paths = tuple(paths)
    found = {}
    for path in _wanted(paths):
        place = root / path
        for file in [place] if place.is_file() else place.rglob("*"):
            name = file.relative_to(root).as_posix()
            if file.suffix in KEPT and file.is_file() and _counts(name, paths):
                found[name] = file.read_bytes()
    return _of(found)


def digest_at(root: Path, commit: str, paths: Iterable[str]) -> str:
    """The digest of the files below ``paths`` as a commit has them; paths that it lacks count as empty."""
    paths = tuple(paths)
    listed = _git(root, "ls-tree", "-r", "--name-only", commit, "--", *_wanted(paths)).decode().splitlines()
    there = [path for path in _wanted(paths) if any(_below(name, path) for name in listed)]
    if not there:
        return _of({})
    packed = _git(root, "archive", "--format=tar", commit, "--", *there)
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        found = {
            member.name: opened.read()
            for member in archive.getmembers()
            if member.isfile()
            and Path(member.name).suffix in KEPT
            and _counts(member.name, paths)
            and (opened := archive.extractfile(member))
        }
    return _of(found)


def changed(root: Path, paths: Iterable[str]) -> list[str]:
    """The files below ``paths`` that differ from the last commit, or are not in it.

    Raises:
        Unusable: there is no history that could tell.
    """
    paths = tuple(paths)
    top = Path(_git(root, "rev-parse", "--show-toplevel").decode().rstrip("\n"))
    if top.resolve() != root.resolve():
        raise Unusable(
            f"a run names the commit that it tried, and {root} is no clone, but lies in one: {top}"
        )
    told = _git(root, "status", "--porcelain", "--untracked-files=all", "--", *_wanted(paths)).decode()
    names = [line[3:].strip('"') for line in told.splitlines()]
    return [name for name in names if Path(name).suffix in KEPT and _counts(name, paths)]


def published(root: Path, paths: Iterable[str], wanted: str) -> str:
    """The commit to name for a checkout whose digest is ``wanted``: one that others have, if it fits.

    What is not published yet gets another id when it is rebased, and nobody has the commit that a run named.
    """
    asked = _asked(root, "merge-base", "HEAD", "origin/main")
    shared = asked.stdout.decode().strip() if asked else ""
    if shared and digest_at(root, shared, paths) == wanted:
        return shared
    return _git(root, "rev-parse", "HEAD").decode().strip()


def exists(root: Path, commit: str) -> bool:
    """Whether the history here has a commit."""
    asked = _asked(root, "cat-file", "-e", f"{commit}^{{commit}}")
    return asked is not None and asked.returncode == 0


def is_shallow(root: Path) -> bool:
    """Whether the history here is cut off, or not there at all."""
    asked = _asked(root, "rev-parse", "--is-shallow-repository", "--show-toplevel")
    told = asked.stdout.decode().splitlines() if asked and asked.returncode == 0 else []
    # A source archive may lie inside of a repository of somebody else's, whose history says nothing of it.
    return len(told) != 2 or told[0] != "false" or Path(told[1]).resolve() != root.resolve()


def _wanted(paths: Iterable[str]) -> list[str]:
    return [path for path in paths if not path.startswith("!")]


def _counts(name: str, paths: Iterable[str]) -> bool:
    return not any(_below(name, path[1:]) for path in paths if path.startswith("!"))


def _below(name: str, path: str) -> bool:
    return name == path or name.startswith(f"{path}/")


def _asked(root: Path, *words: str) -> subprocess.CompletedProcess[bytes] | None:
    """What git answers; ``None`` where there is no git."""
    try:
        return subprocess.run(("git", "-C", str(root), *words), capture_output=True, check=False)
    except FileNotFoundError:
        return None


def _git(root: Path, *words: str) -> bytes:
    asked = _asked(root, *words)
    if asked is None:
        raise Unusable("git is not installed, and a run names the commit that it tried")
    if asked.returncode:
        told = asked.stderr.decode(errors="replace").strip().splitlines() or ["it said nothing"]
        raise Unusable(f"a run names the commit that it tried, and git cannot tell it: {told[0]}")
    return asked.stdout


def _of(files: Mapping[str, bytes]) -> str:
    summed = hashlib.sha256()
    for name, data in sorted(files.items()):
        text = "\n".join(_code(ast.parse(data))).encode() if name.endswith(".py") else data
        summed.update(f"{name} {len(text)}\n".encode() + text)
    return summed.hexdigest()[:LENGTH]


def _code(node: ast.AST) -> Iterator[str]:
    """A syntax tree as lines. ast.dump differs between versions of Python, in their empty fields."""
    yield type(node).__name__
    for name, value in ast.iter_fields(node):
        values = value if isinstance(value, list) else [value]
        if name == "body" and _is_docstring(values):
            values = values[1:]
        for one in values:
            if isinstance(one, ast.AST):
                yield f"<{name}"
                yield from _code(one)
                yield ">"
            elif one is not None and name not in ("kind", "type_comment"):
                yield f"{name}={one!r}"


def _is_docstring(body: list[object]) -> bool:
    first = body[0] if body else None
    return (
        isinstance(first, ast.Expr)
        and isinstance(first.value, ast.Constant)
        and isinstance(first.value.value, str)
    )
