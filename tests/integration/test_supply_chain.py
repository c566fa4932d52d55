"""What the images install is what was looked at: pinned, with hashes, and true to what the package asks for."""

from __future__ import annotations

import json
import re
import tomllib
from configparser import ConfigParser
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from harness import ROOT

PINNED = [ROOT / "docker/requirements.txt", ROOT / "docker/build-requirements.txt"]
PIN = re.compile(r"^([a-z0-9-]+)==(\S+) \\\n((?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)", re.MULTILINE)


def pins(path: Path) -> dict[str, str]:
    """The versions in a file, by name."""
    return {name: version for name, version, _ in PIN.findall(path.read_text())}


def wanted_by_the_package() -> list[Requirement]:
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    lines = setup["options"]["install_requires"] + setup["options.extras_require"]["oauth"]
    return [Requirement(line) for line in lines.strip().splitlines()]


def wanted_by_the_build() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    return [Requirement(line) for line in project["build-system"]["requires"]]


@pytest.mark.parametrize(
    ("path", "wanted"), [(PINNED[0], wanted_by_the_package()), (PINNED[1], wanted_by_the_build())], ids=["run", "build"]
)
def test_what_is_pinned_satisfies_what_is_asked_for(path: Path, wanted: list[Requirement]) -> None:
    pinned = pins(path)
    assert wanted
    for requirement in wanted:
        assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)]), requirement


@pytest.mark.parametrize("path", PINNED, ids=lambda path: path.stem)
def test_each_pin_has_hashes_and_nothing_else_is_said(path: Path) -> None:
    rest = [line for line in PIN.sub("", path.read_text()).splitlines() if not line.lstrip().startswith("#")]
    assert rest == []
    assert "//" not in path.read_text()


def test_the_image_installs_by_hash_or_what_it_built_itself() -> None:
    text = (ROOT / "docker/Dockerfile.bridge").read_text().replace("\\\n", " ")
    installs = [command for line in text.splitlines() for command in line.split("&&") if " install " in command]
    from_pypi = [command for command in installs if "pip" in command]
    assert len(from_pypi) == 3
    for command in from_pypi:
        assert "--require-hashes --only-binary :all:" in command or "--no-deps /wheels/" in command
    assert "--no-build-isolation" in text


def test_the_gateway_is_installed_from_its_lockfile_and_runs_no_script_of_a_package() -> None:
    text = (ROOT / "docker/Dockerfile.vestige").read_text()
    assert re.findall(r"\bnpm .*", text)[-1].startswith("npm ci --omit=dev --ignore-scripts")
    assert "npm install" not in text
    packages = json.loads((ROOT / "docker/gateway/package-lock.json").read_text())["packages"]
    assert [name for name, package in packages.items() if name and not package["integrity"].startswith("sha512-")] == []


@pytest.mark.parametrize("workflow", sorted((ROOT / ".github/workflows").glob("*.yml")), ids=lambda path: path.stem)
def test_a_workflow_calls_only_targets_that_exist_and_may_do_only_what_it_must(workflow: Path) -> None:
    text = workflow.read_text()
    targets = set(re.findall(r"^([a-z0-9-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"\bmake (?:--\w+ )*([a-z0-9-]+)", text)) <= targets
    permissions = re.search(r"^permissions:\n((?:  .*\n)+)", text, re.MULTILINE)
    assert permissions is not None
    assert workflow.stem == "release" or permissions[1] == "  contents: read\n"
