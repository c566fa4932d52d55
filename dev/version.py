"""Reads and writes the version in every file that contains it, for `make version` and `make release-check`."""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PLACES = {
    "setup.cfg": r"^version = (.+)$",
    "charts/vestige/Chart.yaml": r"^(?:version: |appVersion: \")([^\"\n]+)",
    "openclaw-plugin/package.json": r"^  \"version\": \"(.+)\"",
    "openclaw-plugin/package-lock.json": r"\"name\": \"openclaw-plugin-vestige\",\n +\"version\": \"(.+)\"",
    "openclaw-plugin/openclaw.plugin.json": r"^  \"version\": \"(.+)\"",
    "openclaw-plugin/README.md": r"openclaw-plugin-vestige-(\d[\d.]*)\.tgz",
    # The tags on the page, except those of the later version in the example of an upgrade.
    "docs/deployment.md": r"(?:do not \(`|(?:begin with `v` \(`|only names them\. `"
    r"|make (?:images|push|install) TAG=|\$ECR_\w+:|^  tag: "
    r"|Image\.repository=\S+(?:,| \\\n  --set )\w+\.tag=)v)(\d+\.\d+\.\d+)",
}
"""The pattern of the version in each file. Generated files get it from setup.cfg."""

_RELEASED = re.compile(r"^## \[(\d.*?)\] - \d{4}-\d\d-\d\d$", re.MULTILINE)


def version(root: Path = ROOT) -> str:
    """Returns the version of the package."""
    return _versions(root, "setup.cfg")[0]


def faults(root: Path = ROOT) -> list[str]:
    """Returns a sentence for each file whose version, or newest release, is missing or differs from setup.cfg."""
    expected = version(root)
    found = {name: _versions(root, name) for name in PLACES}
    found["CHANGELOG.md"] = _RELEASED.findall((root / "CHANGELOG.md").read_text())[:1]
    return [
        f"{name} has the version {', '.join(sorted(set(versions))) or '(none)'}, setup.cfg has {expected}."
        for name, versions in found.items()
        if set(versions) != {expected}
    ]


def write(new: str, root: Path = ROOT) -> None:
    """Writes a new version into every file except the changelog, whose heading also needs a date and a text."""
    for name, pattern in PLACES.items():
        text = (root / name).read_text()
        for match in reversed(list(re.finditer(pattern, text, re.MULTILINE))):
            text = text[: match.start(1)] + new + text[match.end(1) :]
        (root / name).write_text(text)


def _versions(root: Path, name: str) -> list[str]:
    return re.findall(PLACES[name], (root / name).read_text(), re.MULTILINE)


if __name__ == "__main__":
    if sys.argv[1:]:
        write(sys.argv[1])
    print(version())
