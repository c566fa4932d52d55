"""docker/bring-backup copies a backup to this machine; only a complete backup gets the final name."""

from __future__ import annotations

import hashlib
import os
import stat
import subprocess
from pathlib import Path

import pytest

from harness import ROOT
from integration.test_dev import clean_environment

CONTENT = b"SQLite format 3\0" + bytes(range(256)) * 64
SAID = f"vestige-backup: 3 memories, {len(CONTENT)} bytes, sha256 {hashlib.sha256(CONTENT).hexdigest()}"


def bring(file: Path, sent: bytes, said: str = SAID, status: int = 0) -> subprocess.CompletedProcess[str]:
    """Runs docker/bring-backup with a command that prints what a container would."""
    source = file.parent / "sent"
    source.write_bytes(sent)
    command = f'cat "{source}"; echo "{said}" >&2; exit {status}'
    return subprocess.run(
        [ROOT / "docker/bring-backup", file, "sh", "-c", command], capture_output=True, text=True, check=False
    )


def test_a_complete_backup_gets_its_name_and_is_readable_only_for_its_owner(tmp_path: Path) -> None:
    file = tmp_path / "backup.db"
    done = bring(file, CONTENT)
    assert done.returncode == 0, done.stderr
    assert file.read_bytes() == CONTENT
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert "3 memories" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["backup.db", "sent"]


@pytest.mark.parametrize(
    ("sent", "said", "status"),
    [
        (CONTENT[:-1], SAID, 0),
        (b"", SAID, 0),
        (CONTENT, "", 0),
        (CONTENT, SAID, 1),
        (b"", "error: container not found", 1),
    ],
    ids=["cut", "nothing", "no word of it", "a failure after it", "a failure"],
)
def test_anything_else_leaves_no_file_and_fails(tmp_path: Path, sent: bytes, said: str, status: int) -> None:
    done = bring(tmp_path / "backup.db", sent, said, status)
    assert done.returncode == 1
    assert ("the checksum of the received backup is wrong" if status == 0 else said) in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["sent"]


def test_an_existing_file_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "backup.db").write_text("yesterday's")
    assert bring(tmp_path / "backup.db", CONTENT).returncode == 1
    assert (tmp_path / "backup.db").read_text() == "yesterday's"


@pytest.mark.parametrize(
    ("variables", "command"),
    [
        ([], "kubectl exec --namespace openclaw deploy/vestige -c vestige-mcp --"),
        (["COMPOSE=x.yaml", "CONTAINER_TOOL=docker"], "docker compose -f x.yaml exec -T vestige-mcp"),
        (["COMPOSE=x.yaml", "CONTAINER_TOOL=podman"], "podman-compose -f x.yaml exec -T vestige-mcp"),
    ],
)
def test_make_runs_the_backup_in_the_container_with_the_memory(variables: list[str], command: str) -> None:
    done = subprocess.run(
        ["make", "backup", "DRY_RUN=1", "BACKUP=here.db", *variables],
        cwd=ROOT,
        env=clean_environment({"PATH": os.environ["PATH"]}),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"docker/bring-backup here.db {command} vestige-backup -\n"
