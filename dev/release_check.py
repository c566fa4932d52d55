"""Builds everything that a release publishes, except the images, into dist/, and checks it: `make release-check`.

Invariant: each archive contains exactly its files of git and the files that its build adds, so that no test, untracked
file or secret is published. The wheel is installed into a new environment, and server.json is validated against the
schema of the registry.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jsonschema import Draft7Validator
from version import faults as version_faults
from version import version

from vestige_bridge.cli.published import OWNER

ROOT = Path(__file__).resolve().parent.parent
DIST = ROOT / "dist"
SCHEMA = "https://static.modelcontextprotocol.io/schemas/2025-12-11/server.schema.json"
SCHEMAS = ("github.com/modelcontextprotocol/registry@v1.8.9", "internal/validators/schemas/2025-12-11.json")
"""The Go module that contains this schema, and its path there."""

Files = Mapping[str, bytes]

SECRETS = re.compile(
    rb"-----BEGIN [A-Z ]*PRIVATE KEY-----|\bAKIA[0-9A-Z]{16}\b|\bgh[oprsu]_[A-Za-z0-9]{36}|\bgithub_pat_\w{22}"
    rb"|\bglpat-[\w-]{20}|\bnpm_[A-Za-z0-9]{36}|\bpypi-[\w-]{50}|\bsk-[\w-]{32}|\bxox[abp]-[\w-]{10}"
)
"""Private keys, and tokens with a known prefix."""


def main() -> int:
    """Prints a sentence for each fault; returns 1 if there is one. It builds nothing if the versions differ."""
    faults = version_faults() or list(_look(_build()))
    print(
        "\n".join(faults)
        or f"dist/ holds the release {version()}: {', '.join(sorted(it.name for it in DIST.iterdir()))}."
    )
    return 1 if faults else 0


def server_json(owner: str, release: str) -> dict[str, Any]:
    """Returns the entry for the MCP registry: `vestige-bridge stdio` from PyPI, a client of a bridge that runs already.

    Parameters:
        owner: the GitHub account that publishes the releases.
        release: the version.
    """
    return {
        "$schema": SCHEMA,
        "name": f"io.github.{owner}/vestige-bridge",
        "title": "vestige-bridge",
        "description": "A memory shared by any number of agents: forwards to your vestige-bridge",
        "version": release,
        "packages": [
            {
                "registryType": "pypi",
                "registryBaseUrl": "https://pypi.org",
                "identifier": "vestige-bridge",
                "version": release,
                "runtimeHint": "uvx",
                "transport": {"type": "stdio"},
                "packageArguments": [
                    {"type": "positional", "value": "stdio"},
                    {
                        "type": "named",
                        "name": "--url",
                        "description": "Address of the running bridge",
                        "default": "http://127.0.0.1:8000",
                        "isRequired": True,
                    },
                ],
                "environmentVariables": [
                    {
                        "name": "VESTIGE_AUTH_TOKEN",
                        "description": "A token that the bridge accepts",
                        "isRequired": True,
                        "isSecret": True,
                    }
                ],
            }
        ],
    }


def unexpected_files(archive: str, files: Files, expected: set[str], added: str) -> Iterator[str]:
    """Yields a sentence for each unexpected file of an archive, and for each missing one.

    Parameters:
        archive: its name.
        files: its files by name, without the top-level folder.
        expected: the files of git that it must contain.
        added: a regular expression for the names of the files that its build adds.
    """
    yield from (f"{archive} lacks {name}." for name in sorted(expected - files.keys()))
    for name in sorted(files.keys() - expected):
        if not re.fullmatch(added, name):
            yield f"{archive} holds {name}, which does not belong in it."


def secrets(archive: str, files: Files, tokens: set[bytes]) -> Iterator[str]:
    """Yields a sentence for each file of an archive that contains a likely secret, or a token of this checkout."""
    for name, content in sorted(files.items()):
        if SECRETS.search(content) or any(token in content for token in tokens):
            yield f"{archive} holds what looks like a secret in {name}."


def invalid(document: Mapping[str, Any], schema: Mapping[str, Any]) -> Iterator[str]:
    """Yields a sentence for each violation of the schema in server.json."""
    for error in Draft7Validator(schema).iter_errors(document):
        yield f"server.json: {error.json_path}: {error.message}"


def _build() -> list[Path]:
    shutil.rmtree(DIST, ignore_errors=True)
    DIST.mkdir()
    _run(sys.executable, "-m", "build", "--outdir", str(DIST), str(ROOT))
    _run("npm", "pack", "--loglevel=error", "--pack-destination", str(DIST), cwd=ROOT / "openclaw-plugin")
    _run("make", "--silent", "chart-package")
    (DIST / "server.json").write_text(json.dumps(server_json(OWNER or "example", version()), indent=2) + "\n")
    return sorted(DIST.iterdir())


def _look(built: list[Path]) -> Iterator[str]:
    release = version()
    names = [
        f"openclaw-plugin-vestige-{release}.tgz",
        "server.json",
        f"vestige-{release}.tgz",
        f"vestige_bridge-{release}-py3-none-any.whl",
        f"vestige_bridge-{release}.tar.gz",
    ]
    if (found := [path.name for path in built]) != names:
        yield f"dist/ holds {', '.join(found)} instead of {', '.join(names)}."
        return
    plugin, server, chart, wheel, sdist = built
    package, chart_files, plugin_files = (_tracked(it) for it in ("src", "charts/vestige", "openclaw-plugin"))
    metadata = {"setup.cfg", "pyproject.toml", "README.md", "LICENSE"}
    sources = {it for it in plugin_files if it.startswith("src/")} - {"src/openclaw.ts"}
    compiled = {re.sub(r"^src/(.*)\.ts$", r"dist/\1.js", it) for it in sources}
    shipped = {"LICENSE", "README.md", "doctor-contract-api.js", "openclaw.plugin.json", "package.json"}
    contents = {
        wheel: (package, r"vestige_bridge-[^/]+\.dist-info/.*"),
        sdist: ({f"src/{name}" for name in package} | metadata, r"PKG-INFO|src/vestige_bridge\.egg-info/.*"),
        plugin: (compiled | shipped, ""),
        chart: (chart_files, ""),
    }
    tokens = _tokens_of_this_checkout()
    for archive, (expected, added) in contents.items():
        files = _unpacked(archive)
        yield from unexpected_files(archive.name, files, expected, added)
        yield from secrets(archive.name, files, tokens)
    yield from _installed(wheel)
    yield from invalid(json.loads(server.read_text()), _schema())


def _tracked(folder: str) -> set[str]:
    """Returns the files of git in a folder, relative to it."""
    return set(_run("git", "ls-files", cwd=ROOT / folder).splitlines())


def _tokens_of_this_checkout() -> set[bytes]:
    file = ROOT / ".env"
    text = file.read_bytes() if file.exists() else b""
    return set(re.findall(rb"^\w*TOKEN=(\S{16,})$", text, re.MULTILINE))


def _unpacked(archive: Path) -> dict[str, bytes]:
    """Returns the files of an archive; the names in a tarball are without its top-level folder."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            return {name: wheel.read(name) for name in wheel.namelist()}
    with tarfile.open(archive) as tarball:
        members = {it.name.partition("/")[2]: tarball.extractfile(it) for it in tarball if it.isfile()}
        return {name: file.read() for name, file in members.items() if file is not None}


def _installed(wheel: Path) -> Iterator[str]:
    """Installs the wheel into a new environment outside the checkout; yields a sentence if its version is wrong."""
    with tempfile.TemporaryDirectory() as folder:
        _run(sys.executable, "-m", "venv", folder)
        _run(f"{folder}/bin/pip", "install", "--quiet", "--disable-pip-version-check", str(wheel), cwd=Path(folder))
        said = _run(f"{folder}/bin/vestige-bridge", "--version", cwd=Path(folder)).strip()
    if said != f"vestige-bridge {version()}":
        yield f"The installed wheel calls itself {said}."


def _schema() -> dict[str, Any]:
    module, file = SCHEMAS
    folder = json.loads(_run("go", "mod", "download", "-json", module, cwd=Path(tempfile.gettempdir())))["Dir"]
    schema: dict[str, Any] = json.loads((Path(folder) / file).read_text())
    return schema


def _run(*command: str, cwd: Path = ROOT) -> str:
    """Runs a command without the user's PYTHON* variables, which could add installed packages; returns its output."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(command, cwd=cwd, env=environ, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{done.stdout}{done.stderr}{' '.join(command)} ended with status {done.returncode}.")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
