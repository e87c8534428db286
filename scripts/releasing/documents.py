"""What goes beside the archives of a release: the bill of materials, the provenance and the digests."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from releasing.distributions import archives, digest, normal, pyproject, taken
from releasing.tools import ToolFailed, run, say

SUMS = "SHA256SUMS"
BUILD_TOOLS = ("build", "hatchling", "pyproject-hooks")


@dataclass(frozen=True)
class Build:
    """The commit that was built, its time in seconds since 1970, and when the build began."""

    commit: str
    epoch: int
    began: datetime


def write_sbom(source: Path, folder: Path, version: str, python: Path) -> None:
    """Write the bill of materials: what pip has installed with all extras for production, and why.

    The digests are of the files that pip took on this machine; another platform's wheels have others.
    """
    say("writing the bill of materials")
    text = run(
        *(Path(sys.executable).with_name("cyclonedx-py"), "environment", "--mc-type", "library"),
        *("--pyproject", source / "pyproject.toml", "--spec-version", "1.6"),
        *("--output-reproducible", "--no-validate", python),
        cwd=folder,
    )
    bill = json.loads(text)
    describe(bill, version, taken(python))
    refuse_unless_valid(bill)
    _write(folder / f"lockguard-{version}.cdx.json", bill)


def refuse_unless_valid(bill: dict[str, Any]) -> None:
    """Hold a bill of materials to the schema of CycloneDX, which the library brings along."""
    # They take a second and a half to import, which a refused release need not wait for.
    from cyclonedx.schema import SchemaVersion  # noqa: PLC0415
    from cyclonedx.validation.json import JsonStrictValidator  # noqa: PLC0415

    invalid = JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(bill))
    if invalid is not None:
        raise ToolFailed("the bill of materials does not keep its schema", str(invalid))


def describe(bill: dict[str, Any], version: str, digests: dict[str, str]) -> None:
    """Give each component its digest, and take out where files lay on this machine."""
    bill["metadata"]["component"]["purl"] = f"pkg:pypi/lockguard@{version}"
    missing = []
    for component in bill["components"]:
        name = normal(component["name"])
        if name not in digests:
            missing.append(component["name"])
            continue
        component["hashes"] = [{"alg": "SHA-256", "content": digests[name]}]
        references = component.get("externalReferences", [])
        component["externalReferences"] = [one for one in references if not one["url"].startswith("file:")]
    if missing:
        raise ToolFailed("the bill of materials lacks digests", f"pip reported none of {', '.join(missing)}")


def write_provenance(source: Path, folder: Path, version: str, build: Build) -> None:
    """Write a SLSA provenance as an in-toto statement: which files were built of which commit, with what.

    Nobody has signed it, as its name and its builder say, so it proves nothing to a reader who does not trust
    the place where it lies. Signed are the attestations that the publishing workflow makes of the same files.
    """
    url, ref = str(pyproject(source)["project"]["urls"]["Repository"]), f"refs/tags/v{version}"
    tools = {name: importlib.metadata.version(name) for name in BUILD_TOOLS}
    statement = {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [described(path) for path in archives(folder)],
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": {
            "buildDefinition": {
                "buildType": f"{url}/blob/main/CONTRIBUTING.md#release",
                "externalParameters": {"repository": url, "ref": ref, "version": version},
                "internalParameters": {
                    "SOURCE_DATE_EPOCH": build.epoch,
                    "python": platform.python_version(),
                    "platform": f"{sys.platform}-{platform.machine()}",
                },
                "resolvedDependencies": [
                    {"uri": f"git+{url}@{ref}", "digest": {"gitCommit": build.commit}},
                    *({"uri": f"pkg:pypi/{name}@{found}"} for name, found in tools.items()),
                ],
            },
            "runDetails": {
                "builder": {"id": f"{url}/blob/main/scripts/release#{builder()}"},
                "metadata": {
                    "invocationId": os.environ.get("GITHUB_RUN_ID", "none"),
                    "startedOn": _rfc3339(build.began),
                    "finishedOn": _rfc3339(datetime.now(UTC)),
                },
                "byproducts": [described(path) for path in sorted(folder.glob("*.cdx.json"))],
            },
        },
    }
    _write(folder / f"lockguard-{version}.provenance.unsigned.json", statement)


def described(path: Path) -> dict[str, Any]:
    """A file's name and digest, as an in-toto statement has them."""
    return {"name": path.name, "digest": {"sha256": digest(path)}}


def builder() -> str:
    """Who ran the build: a workflow's machine, or somebody's own."""
    return "unsigned-github-actions" if os.environ.get("GITHUB_ACTIONS") == "true" else "unsigned-by-hand"


def _rfc3339(when: datetime) -> str:
    return when.isoformat(timespec="seconds").replace("+00:00", "Z")


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_sums(folder: Path) -> None:
    """Write the digests of all files, as ``sha256sum --check`` reads them."""
    lines = [f"{digest(path)}  {path.name}\n" for path in sorted(folder.iterdir()) if path.name != SUMS]
    (folder / SUMS).write_text("".join(lines), encoding="utf-8")
