"""The documents say what is true: every setting, every target, every room, one version."""

from __future__ import annotations

import re
import subprocess
from configparser import ConfigParser
from pathlib import Path

import pytest

from harness import ROOT
from vestige_bridge import __version__
from vestige_bridge.settings import describe

DOCUMENTS = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]
VARIABLES = {variable: default for variable, default, _ in describe()}
DOCKER = "\n".join(path.read_text() for path in [*ROOT.glob("docker/Dockerfile.*"), ROOT / "docker/compose.yaml"])


def test_every_setting_is_documented_with_its_default() -> None:
    table = re.findall(
        r"^\| `(VESTIGE_\w+)` \| (?:`(.*?)`|none) \|", (ROOT / "docs/settings.md").read_text(), re.MULTILINE
    )
    assert len(table) == len(dict(table))
    assert dict(table) == VARIABLES | {"VESTIGE_MCP_PORT": "3100"}


def test_every_setting_stands_in_the_example_with_its_default() -> None:
    example = re.findall(r"^#(VESTIGE_\w+)=(.*)$", (ROOT / ".env.example").read_text(), re.MULTILINE)
    assert len(example) == len(dict(example))
    assert dict(example) == VARIABLES | {"VESTIGE_MCP_PORT": "3100"}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_a_document_names_only_settings_that_exist(document: Path) -> None:
    named = set(re.findall(r"\bVESTIGE_[A-Z0-9_]*[A-Z0-9]\b", document.read_text()))
    docker = set(re.findall(r"(?:ARG |\$\{)(VESTIGE_[A-Z0-9_]+)", DOCKER))
    assert named <= VARIABLES.keys() | {"VESTIGE_MCP_PORT"} | docker


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_the_links_of_a_document_lead_somewhere(document: Path) -> None:
    links = re.findall(r"\]\((?!https?://|#)([^)#]+)", document.read_text())
    assert [link for link in links if not (document.parent / link).exists()] == []


def test_every_make_target_that_is_named_exists() -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE))
    text = "\n".join(document.read_text() for document in DOCUMENTS)
    named = set(re.findall(r"(?:^|`)make ([a-z0-9-]+)", text, re.MULTILINE))
    assert named
    assert named <= targets


def test_make_alone_lists_the_targets_by_section() -> None:
    said = subprocess.run(["make"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert re.search(r"^Run$", said, re.MULTILINE)
    for target in ("dev", "test", "lint", "format", "coverage", "clean", "help"):
        assert re.search(rf"^  make {target} +\S.*\.$", said, re.MULTILINE)


def test_the_architecture_draws_every_room_and_no_other() -> None:
    text = (ROOT / "docs/architecture.md").read_text()
    drawn = {room for cell in re.findall(r"^\| (`.*?) \|", text, re.MULTILINE) for room in re.findall(r"`(\w+)`", cell)}
    rooms = {path.stem for path in (ROOT / "src/vestige_bridge").glob("*.py")} - {"__init__"}
    assert drawn == rooms


def test_the_version_is_one_everywhere() -> None:
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    released = re.findall(r"^## \[(\d.*?)\] - \d{4}-\d\d-\d\d$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert setup["metadata"]["version"] == __version__ == released[0]


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_lockfiles_hold_no_registry_addresses() -> None:
    lockfiles = [ROOT / "docker/gateway/package-lock.json", ROOT / "tests/package-lock.json"]
    assert [path for path in lockfiles if "resolved" in path.read_text()] == []
