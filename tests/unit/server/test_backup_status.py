"""The status file of the backup container, and invalid files in its place."""

from __future__ import annotations

from pathlib import Path

import pytest

from vestige_bridge.server.backup_status import BackupStatus, read_backup_status


@pytest.mark.parametrize(
    ("text", "status"),
    [
        (
            '{"failing": false, "succeeded_at": 1795689412, "due_at": 1795748400}\n',
            BackupStatus(failing=False, succeeded_at=1795689412, due_at=1795748400),
        ),
        ('{"failing": true, "succeeded_at": null, "due_at": null}', BackupStatus(failing=True)),
        ('{"failing": false, "succeeded_at": null, "due_at": 5}', BackupStatus(failing=False, due_at=5)),
    ],
)
def test_a_status_is_read_as_it_was_written(tmp_path: Path, text: str, status: BackupStatus) -> None:
    file = tmp_path / "status.json"
    file.write_text(text)
    assert read_backup_status(str(file)) == status


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\xff",
        "[]",
        "7",
        "[" * 4096,
        '{"failing": false}',
        '{"failing": 0, "succeeded_at": null, "due_at": null}',
        '{"failing": false, "succeeded_at": true, "due_at": null}',
        '{"failing": false, "succeeded_at": null, "due_at": 1.5}',
        '{"failing": false, "succeeded_at": -1, "due_at": null}',
        '{"failing": false, "succeeded_at": 1' + "0" * 20 + ', "due_at": null}',
    ],
)
def test_an_invalid_status_counts_as_a_failed_backup(tmp_path: Path, text: str) -> None:
    file = tmp_path / "status.json"
    file.write_text(text, encoding="latin-1")
    assert read_backup_status(str(file)) == BackupStatus(failing=True)


def test_a_missing_status_file_counts_as_a_failed_backup(tmp_path: Path) -> None:
    assert read_backup_status(str(tmp_path / "status.json")) == BackupStatus(failing=True)
    assert read_backup_status(str(tmp_path)) == BackupStatus(failing=True)
