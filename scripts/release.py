"""Makes a release of both distributions, up to the upload, which it leaves to you.

All is made and tried in a clone of this checkout. Only when everything is there are the commit and its tag
brought into the checkout and the files into dist/, so that a release which fails at any step leaves the
checkout as it was.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from releasing import changelog, distributions, documents, repository, versions
from releasing.tools import Refused, ToolFailed, say

CHECKOUT = Path(__file__).resolve().parent.parent
SHOWN_LINES = 30
WORK = ".release-"


def parser() -> argparse.ArgumentParser:
    """What the command takes."""
    made = argparse.ArgumentParser(
        prog="scripts/release", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("version", nargs="?", help="as 0.2.0; by default what pyproject.toml says")
    made.add_argument(
        "--dry-run", action="store_true", help="make and try everything, commit and tag nothing"
    )
    made.add_argument(
        "--rebuild", metavar="TAG", help="make the files of a tag again, to publish or compare them"
    )
    made.add_argument(
        "--archives-only",
        action="store_true",
        help="only the archives, which needs no network; with --dry-run or --rebuild",
    )
    return made


def prepare(version: str | None) -> tuple[str, bool]:
    """Refuse what stands against a release; returns its version, and whether the changelog has it."""
    repository.refuse_unless_clean_main(CHECKOUT)
    repository.refuse_shallow(CHECKOUT)
    stated = versions.read(CHECKOUT)
    wanted = stated if version is None else versions.checked(version)
    versions.refuse_unless_newer(wanted, stated, repository.released_versions(CHECKOUT))
    repository.refuse_changed_steps(CHECKOUT)
    return wanted, changelog.has_section(CHECKOUT, wanted)


def make_commit(source: Path, version: str, *, has_section: bool) -> None:
    """Write version and changelog into the clone and commit them, if anything changes."""
    versions.write(source, version)
    versions.publish_installs(source, version)
    if not has_section:
        changelog.make_section(source, version, datetime.now(UTC).date().isoformat())
    repository.commit_all(source, f"Release {version}")


def make_files(source: Path, folder: Path, version: str, *, archives_only: bool) -> None:
    """Build, try and describe both distributions of the clone in a folder."""
    began = datetime.now(UTC)
    commit, epoch = repository.commit_of(source)
    folder.mkdir()
    distributions.build_twice(source, folder, epoch)
    distributions.check(source, folder)
    (folder / "NOTES.md").write_text(changelog.section(source, version), encoding="utf-8")
    if not archives_only:
        place = folder.parent / "installed"
        place.mkdir()
        python = distributions.installed(source, folder, place)
        documents.write_sbom(source, folder, version, python)
        distributions.try_out(source, folder, python, version)
    documents.write_provenance(source, folder, version, documents.Build(commit, epoch, began))
    documents.write_sums(folder)


def show_notes(folder: Path, version: str, shown_as: Path) -> None:
    """Print the changelog's section, the head of it if it is long."""
    lines = (folder / "NOTES.md").read_text(encoding="utf-8").splitlines()
    say(f"the section of {version} in CHANGELOG.md:")
    print("\n".join(line if len(line) <= 160 else f"{line[:157]}..." for line in lines[:SHOWN_LINES]))
    if len(lines) > SHOWN_LINES:
        print(f"... and {len(lines) - SHOWN_LINES} lines, all of them in {shown_as / 'NOTES.md'}")


def show_files(folder: Path) -> None:
    """Print what was made, with its digests."""
    print((folder / documents.SUMS).read_text(encoding="utf-8"), end="")


def place_files(folder: Path, target: Path) -> None:
    """Move the files to where they stay, in place of those of an earlier try."""
    shutil.rmtree(target, ignore_errors=True)
    folder.rename(target)


def release(version: str | None, work: Path, *, dry_run: bool, archives_only: bool) -> None:
    """Make a release, or show one."""
    wanted, has_section = prepare(version)
    tag = f"v{wanted}"
    target = CHECKOUT / "dist" / (f"{wanted}-dry-run" if dry_run else wanted)
    shown = target.relative_to(CHECKOUT)
    if target.exists() and not dry_run:
        raise Refused(f"{shown} is there already: move it away")
    source = repository.clone(CHECKOUT, work / "source")
    before, _ = repository.commit_of(source)
    make_commit(source, wanted, has_section=has_section)
    make_files(source, work / "files", wanted, archives_only=archives_only)
    show_notes(work / "files", wanted, shown)
    show_files(work / "files")
    if dry_run:
        place_files(work / "files", target)
        say(f"dry run: nothing was committed or tagged; the files are in {shown}")
        return
    place_files(work / "files", target)
    try:
        repository.bring_in(CHECKOUT, source, before=before, tag=tag, message=f"lockguard {wanted}")
    except BaseException:
        shutil.rmtree(target, ignore_errors=True)
        raise
    say(f"committed and tagged {tag}; the files are in {shown}. Nothing was sent. To publish it, either")
    print(f"  git push --atomic origin main {tag}")
    print("    # .github/workflows/release.yml then builds the same files and uploads them, attested; or")
    print(f"  .venv/bin/python -m twine upload {shown}/*.whl {shown}/*.tar.gz")
    print("    # from here, without attestations")


def rebuild(tag: str, work: Path, *, archives_only: bool) -> None:
    """Make the files of a tag once more."""
    source = repository.clone(CHECKOUT, work / "source", tag)
    version = versions.read(source)
    if tag != f"v{version}":
        raise Refused(f"{tag}: its pyproject.toml says {version}, so it is no tag of a release")
    if not changelog.has_section(source, version):
        raise Refused(f"{tag}: its CHANGELOG.md has no section [{version}]")
    make_files(source, work / "files", version, archives_only=archives_only)
    show_files(work / "files")
    target = CHECKOUT / "dist" / f"{version}-rebuilt"
    place_files(work / "files", target)
    say(f"the files are in {target.relative_to(CHECKOUT)}")


@contextmanager
def only_release(dist: Path) -> Iterator[None]:
    """Keep dist/ to one release at a time, and remove what a killed one left there, and dist/ if it is empty.

    A second one would replace the files of the first, and remove them when it finds that the branch moved.
    """
    dist.mkdir(exist_ok=True)
    opened = os.open(dist, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Refused("another release is being made in this checkout: let it end first") from None
        for left in dist.glob(f"{WORK}*"):
            shutil.rmtree(left)
        try:
            yield
        finally:
            if not any(dist.iterdir()):
                dist.rmdir()
    finally:
        os.close(opened)


def main() -> int:
    """Do what the arguments say; returns the exit code."""
    arguments = parser().parse_args()
    if arguments.rebuild and (arguments.version or arguments.dry_run):
        parser().error("--rebuild has its version from the tag: give neither VERSION nor --dry-run")
    if arguments.archives_only and not (arguments.rebuild or arguments.dry_run):
        parser().error("--archives-only makes no whole release: give --dry-run or --rebuild too")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    os.chdir(CHECKOUT)
    dist = CHECKOUT / "dist"
    try:
        with only_release(dist), tempfile.TemporaryDirectory(prefix=WORK, dir=dist) as work:
            if arguments.rebuild:
                rebuild(arguments.rebuild, Path(work), archives_only=arguments.archives_only)
            else:
                release(
                    arguments.version,
                    Path(work),
                    dry_run=arguments.dry_run,
                    archives_only=arguments.archives_only,
                )
    except Refused as refusal:
        print(f"scripts/release: {refusal}", file=sys.stderr)
        return 2
    except ToolFailed as failure:
        print(f"{failure.output}\nscripts/release: {failure}: nothing was changed", file=sys.stderr)
        return 1
    except OSError as failure:
        print(f"scripts/release: {failure}: nothing was changed", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("scripts/release: interrupted: nothing was changed", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
