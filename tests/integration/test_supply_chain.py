"""The images install only what was reviewed: pinned, with hashes, and consistent with the package's requirements."""

from __future__ import annotations

import json
import re
import tomllib
from configparser import ConfigParser
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from harness import ROOT

PINNED = [ROOT / "docker/requirements.txt", ROOT / "docker/build-requirements.txt"]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
PIN = re.compile(r"^([a-z0-9-]+)==(\S+) \\\n((?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)", re.MULTILINE)


def pins(path: Path) -> dict[str, str]:
    """Returns the versions in a file, by name."""
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
def test_the_pinned_versions_satisfy_the_requirements(path: Path, wanted: list[Requirement]) -> None:
    pinned = pins(path)
    assert wanted
    for requirement in wanted:
        assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)]), requirement


@pytest.mark.parametrize("path", PINNED, ids=lambda path: path.stem)
def test_requirements_contain_only_pins_with_hashes(path: Path) -> None:
    rest = [line for line in PIN.sub("", path.read_text()).splitlines() if not line.lstrip().startswith("#")]
    assert rest == []
    assert "//" not in path.read_text()


def test_the_image_installs_only_packages_with_hashes_and_its_own_wheels() -> None:
    text = (ROOT / "docker/Dockerfile.bridge").read_text().replace("\\\n", " ")
    installs = [command for line in text.splitlines() for command in line.split("&&") if " install " in command]
    from_pypi = [command for command in installs if "pip" in command]
    assert len(from_pypi) == 3
    for command in from_pypi:
        assert "--require-hashes --only-binary :all:" in command or "--no-deps /wheels/" in command
    assert "--no-build-isolation" in text


def test_the_gateway_is_installed_from_its_lockfile_without_install_scripts() -> None:
    text = (ROOT / "docker/Dockerfile.vestige").read_text()
    assert re.findall(r"\bnpm .*", text)[-1].startswith("npm ci --omit=dev --ignore-scripts")
    assert "npm install" not in text
    packages = json.loads((ROOT / "docker/gateway/package-lock.json").read_text())["packages"]
    assert [name for name, package in packages.items() if name and not package["integrity"].startswith("sha512-")] == []


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_calls_only_existing_targets_and_has_at_most_read_permissions(workflow: Path) -> None:
    text = workflow.read_text()
    targets = set(re.findall(r"^([a-z0-9-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"\bmake (?:--\w+ )*([a-z0-9-]+)", text)) <= targets
    assert yaml.safe_load(text)["permissions"] == ({} if workflow.stem == "release" else {"contents": "read"})


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_every_action_is_pinned_by_commit_with_its_version_in_a_comment(workflow: Path) -> None:
    used = re.findall(r"\buses: (.*)", workflow.read_text())
    assert used
    assert [it for it in used if not re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", it)] == []


def test_an_action_has_one_commit_in_all_workflows() -> None:
    used = {it for path in WORKFLOWS for it in re.findall(r"\buses: (.*)", path.read_text())}
    assert len(used) == len({it.partition("@")[0] for it in used})


def test_each_job_of_a_release_has_only_the_permissions_that_it_needs() -> None:
    jobs = yaml.safe_load((ROOT / ".github/workflows/release.yml").read_text())["jobs"]
    assert {name: job["permissions"] for name, job in jobs.items()} == {
        "build": {"contents": "read"},
        "images": {"contents": "read", "packages": "write", "id-token": "write"},
        "chart": {"packages": "write", "id-token": "write", "attestations": "write"},
        "pypi": {"id-token": "write"},
        "npm": {"id-token": "write"},
        "mcp-registry": {"contents": "read", "id-token": "write"},
        "github": {"contents": "write"},
        "documents": {"contents": "write", "pull-requests": "write"},
    }
    # Every job but the build waits for another one, so nothing is published before everything is built and checked.
    for name, job in jobs.items():
        before = {job["needs"]} if isinstance(job.get("needs"), str) else set(job.get("needs", ()))
        assert name == "build" or before, name


def test_a_release_signs_what_it_pushes_and_keeps_no_token_but_npms() -> None:
    text = (ROOT / ".github/workflows/release.yml").read_text()
    assert set(re.findall(r"\bsecrets\.(\w+)", text)) == {"NPM_TOKEN"}
    assert "cosign sign --yes --recursive" in text
    assert "--provenance=mode=max --sbom=true" in text
    assert re.search(r"npm publish .* --provenance ", text)
    assert text.count("cosign sign") == text.count("--push ") + text.count("helm push")
    both = re.findall(r"/modelcontextprotocol/registry(?:/cmd/publisher)?@(v[\d.]+)",
                      (ROOT / "Makefile").read_text() + (ROOT / "dev/release_check.py").read_text())  # fmt: skip
    assert len(both) == 2
    assert len(set(both)) == 1
