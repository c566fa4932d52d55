"""The make targets on machines with incomplete installations, missing tools or settings for pip and npm."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from harness import ROOT
from integration.test_dev import clean_environment

LINUX_ONLY = (
    "bench-quick",
    "bench-smoke",
    "chaos-quick",
    "soak",
    "chart-lint",
    "deploy-lint",
    "e2e",
    "https",
    "interop-all",
)


def script(folder: Path, name: str, text: str) -> None:
    """Writes a command that prints what it would on another kind of machine."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)


def tools(folder: Path, *names: str) -> None:
    """Links these commands of the machine, and no others, into a folder."""
    folder.mkdir(exist_ok=True)
    for name in names:
        found = shutil.which(name)
        assert found is not None
        (folder / name).symlink_to(found)


def refused(*command: str | Path, path: str, cwd: Path = ROOT) -> str:
    """Runs a command that has to fail; returns its standard error."""
    done = subprocess.run(
        command,
        cwd=cwd,
        env=clean_environment({"PATH": path}),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode != 0
    return done.stderr


@pytest.mark.parametrize("target", LINUX_ONLY)
def test_a_target_for_linux_says_so_elsewhere_and_in_the_help(tmp_path: Path, target: str) -> None:
    script(tmp_path / "bin", "uname", "echo Darwin")
    said = refused("make", target, path=f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    assert said.splitlines()[0] == f"make {target} works on Linux only."
    listed = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    (line,) = [line for line in listed.splitlines() if line.startswith(f"  make {target} ")]
    assert line.endswith(("(Linux).", "needs Linux and Go."))


def test_packages_that_are_missing_are_named_when_only_root_could_install_them(tmp_path: Path) -> None:
    tools(tmp_path / "bin", "bash", "env")
    script(tmp_path / "bin", "id", "echo 1000")
    script(tmp_path / "bin", "apt-get", "exit 1")
    script(tmp_path / "bin", "dpkg-query", "case $4 in gcc) echo -n installed;; esac")
    said = refused(ROOT / "dev/packages", "gcc", "valgrind", "nginx-light", path=str(tmp_path / "bin"))
    assert said == "Packages are missing, and only root can install them: apt-get install valgrind nginx-light\n"


def test_packages_that_cannot_be_installed_are_named(tmp_path: Path) -> None:
    tools(tmp_path / "bin", "bash", "env")
    script(tmp_path / "bin", "id", "echo 0")
    script(tmp_path / "bin", "apt-get", "echo E: no network >&2; exit 100")
    script(tmp_path / "bin", "dpkg-query", "exit 1")
    said = refused(ROOT / "dev/packages", "valgrind", path=str(tmp_path / "bin"))
    assert said.splitlines()[-1] == "Packages are missing, and could not be installed: valgrind"


def test_a_machine_without_apt_is_told_which_packages_are_wanted(tmp_path: Path) -> None:
    tools(tmp_path / "bin", "bash", "env")
    said = refused(ROOT / "dev/packages", "gcc", "valgrind", path=str(tmp_path / "bin"))
    assert said == "This needs the Debian packages gcc valgrind, and there is no apt-get here to install them with.\n"


@pytest.mark.parametrize("target", [".tools/bin/actionlint", "build/standin/vestige"])
def test_a_machine_without_go_is_told_that_it_is_missing(tmp_path: Path, target: str) -> None:
    shutil.copyfile(ROOT / "Makefile", tmp_path / "Makefile")
    tools(tmp_path / "bin", "make", "sh", "uname")
    said = refused("make", target, path=str(tmp_path / "bin"), cwd=tmp_path)
    assert said.splitlines()[0].startswith("Go is missing, and a tool has to be built with it")


def test_recipes_get_no_settings_for_pip_python_and_npm_except_the_registries() -> None:
    breaks = {
        "PIP_USER": "1",
        "PIP_TARGET": "/nowhere",
        "PIP_REQUIRE_HASHES": "1",
        "PYTHONHOME": "/nowhere",
        "PYTHONPATH": "/nowhere",
        "PYTHONWARNINGS": "error",
        "NPM_CONFIG_PREFIX": "/nowhere",
        "npm_config_omit": "dev",
        "NODE_ENV": "production",
        "NODE_OPTIONS": "--nonsense",
    }
    stays = {"PIP_INDEX_URL": "https://pypi.example.com/simple", "npm_config_registry": "https://npm.example.com"}
    makefile = "include Makefile\n.PHONY: shown\nshown: ; @env\n"
    shown = subprocess.run(
        ["make", "--no-print-directory", "--file=-", "shown"],
        cwd=ROOT,
        env=clean_environment(breaks | stays | {"NO_PROXY": "example.com"}),
        input=makefile,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    environ = dict(line.split("=", 1) for line in shown.splitlines() if "=" in line)
    assert environ.keys() & breaks.keys() == {"PIP_USER"}
    assert environ["PIP_USER"] == "0"
    assert stays.items() <= environ.items()
    assert environ["NO_PROXY"] == environ["no_proxy"] == "example.com,localhost,127.0.0.1,::1"


def test_an_interrupted_npm_installation_is_repeated(tmp_path: Path) -> None:
    checkout = tmp_path / "check out"
    gateway = checkout / "docker/gateway"
    gateway.mkdir(parents=True)
    for file in ("Makefile", "setup.cfg", "pyproject.toml", "docker/gateway/package.json"):
        shutil.copyfile(ROOT / file, checkout / file)
    shutil.copyfile(ROOT / "docker/gateway/package-lock.json", gateway / "package-lock.json")
    for file in ("setup.cfg", "pyproject.toml"):
        os.utime(checkout / file, (0, 0))  # older than the installed packages, so that none is installed again
    (checkout / ".venv").symlink_to(ROOT / ".venv")
    command, modules = ["make", "docker/gateway/node_modules/stamp"], gateway / "node_modules"
    with subprocess.Popen(command, cwd=checkout, env=clean_environment({}), start_new_session=True) as make:
        while make.poll() is None and not (modules.exists() and any(modules.iterdir())):
            time.sleep(0.01)
        assert make.poll() is None
        os.killpg(make.pid, signal.SIGINT)
    assert make.returncode != 0
    assert not (modules / "stamp").exists()
    subprocess.run(command, cwd=checkout, env=clean_environment({}), check=True)
    assert (modules / "supergateway/dist/index.js").exists()
    assert (modules / "stamp").exists()


def test_a_part_of_the_tests_runs_without_the_coverage_threshold() -> None:
    printed = subprocess.run(
        ["make", "--dry-run", "test", "PYTEST_ARGS=-k drain", "COVERAGE_ARGS=--fail-under=0"],
        cwd=ROOT,
        env=clean_environment({}),
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    assert ".venv/bin/coverage run -m pytest --numprocesses=2 -k drain" in printed
    assert ".venv/bin/coverage report --fail-under=0" in printed
