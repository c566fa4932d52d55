"""Tests of docker/compose.tokens.yaml with compose.backup.yaml: tokens with permissions in a folder, and backups."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_2_compose import free_port
from walking import ROOT, Client, Images, attempt, eventually, run, saw

OLD, NEW, JOB = (f"the-{name}-token-for-compose-of-32-letters" for name in ("old", "new", "limited"))


def entry(name: str, token: str, more: str = "") -> str:
    return f'[[token]]\nname = "{name}"\ntoken = "{token}"\n{more}\n'


def put(folder: Path, *entries: str) -> None:
    """Replaces the token file by renaming a new one, as editors do."""
    (folder / "tokens.new").write_text("\n".join(entries))
    (folder / "tokens.new").chmod(0o644)
    (folder / "tokens.new").rename(folder / "tokens.toml")


@pytest.fixture(scope="module")
def command(tool: str) -> list[str]:
    compose = ["docker", "compose"] if tool == "docker" else ["podman-compose"]
    return [*compose, "-f", str(ROOT / "docker/compose.tokens.yaml"), "-f", str(ROOT / "docker/compose.backup.yaml")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("auth")
    path.chmod(0o755)
    put(path, entry("agents", OLD), entry("nightly-job", JOB, 'tools = ["search"]'))
    return path


@pytest.fixture(scope="module")
def address(command: list[str], folder: Path, images: Images) -> Iterator[tuple[str, int]]:
    port = free_port()
    variables = {
        "VESTIGE_AUTH_FOLDER": str(folder),
        "VESTIGE_BRIDGE_AUDIT_LOG": "-",
        "VESTIGE_BRIDGE_PUBLISH": f"127.0.0.1:{port}",
        "VESTIGE_IMAGE": f"{images.vestige}:{images.tag}",
        "BRIDGE_IMAGE": f"{images.bridge}:{images.tag}",
        "BACKUP_KEEP": "1",
    }
    os.environ.update(variables)
    run(*command, "up", "--detach", "--no-build", timeout=300)
    try:
        yield "127.0.0.1", port
    finally:
        attempt(*command, "down", "--volumes", timeout=300)
        for name in variables:
            del os.environ[name]


def test_without_a_folder_compose_fails(command: list[str], images: Images) -> None:
    done = attempt(*command, "config", env={"VESTIGE_AUTH_FOLDER": ""})
    assert done.returncode != 0 and "VESTIGE_AUTH_FOLDER" in done.stdout + done.stderr
    saw((done.stdout + done.stderr).strip().splitlines()[-1])


def test_each_token_has_its_own_permissions(address: tuple[str, int]) -> None:
    agents, job = Client(*address, OLD), Client(*address, JOB)
    eventually("the bridge", agents.is_answered)
    assert agents.remember("compose keeps this").content["id"]
    assert job.search("compose keeps") == ["compose keeps this"]
    assert job.remember("and not this").status == 403


def test_the_audit_is_in_the_log_of_the_container(address: tuple[str, int], command: list[str]) -> None:
    done = run(*command, "logs", "bridge")
    lines = [
        line[line.index("{") : line.rindex("}") + 1]
        for line in (done.stdout + done.stderr).splitlines()
        if '"audit":' in line
    ]
    told = [(it["audit"], it["principal"], it["tool"]) for it in map(json.loads, lines)]
    assert told == [
        ("call", "agents", "smart_ingest"),
        ("call", "nightly-job", "search"),
        ("refusal", "nightly-job", "smart_ingest"),
    ]
    saw("\n".join(lines))


def test_backups_are_made_and_are_in_the_bridges_metrics(address: tuple[str, int], command: list[str]) -> None:
    for _ in range(2):
        run(*command, "exec", "-T", "backup", "vestige-backup")
    [made] = run(*command, "exec", "-T", "backup", "ls", "/data/backups").stdout.split()
    ask = "import urllib.request as u; print(u.urlopen('http://localhost:9464/metrics').read().decode())"
    told = run(*command, "exec", "-T", "bridge", "python3", "-c", ask).stdout
    assert "vestige_bridge_backup_failing 0.0" in told
    assert "vestige_bridge_backup_last_success_timestamp_seconds" in told
    status = json.loads(run(*command, "exec", "-T", "backup", "cat", "/run/vestige-backup/status.json").stdout)
    assert status["due_at"] % 86400 == 3 * 3600
    saw(f"{made}; {status}")


def test_make_backup_copies_a_backup_here_and_a_restore_accepts_it(
    address: tuple[str, int], command: list[str], tool: str, tmp_path: Path
) -> None:
    file = tmp_path / "backup.db"
    where = ("COMPOSE=docker/compose.tokens.yaml", f"CONTAINER_TOOL={tool}", f"BACKUP={file}")
    saw(run("make", "backup", *where, cwd=ROOT).stderr)
    agents = Client(*address, OLD)
    assert agents.remember("compose wrote this after the backup").content["id"]
    saw(run("sh", "-c", f'{" ".join(command)} exec -T vestige-mcp vestige-restore - <"{file}"').stdout)
    eventually("the bridge", agents.is_answered)
    assert agents.search("compose") == ["compose keeps this"]


def test_a_new_file_in_the_folder_takes_effect_without_a_restart(address: tuple[str, int], folder: Path) -> None:
    put(folder, entry("agents", NEW))
    eventually("the new token", Client(*address, NEW).is_answered, 30)
    assert Client(*address, OLD).ask("tools/list").status == 401
    assert Client(*address, JOB).ask("tools/list").status == 401
