"""The result of the last backup, from the file that the backup container writes after each.

Invariant: a missing or invalid file counts as a failed backup, so that missing backups are noticed.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_MAX_BYTES: Final = 4096
_MAX_TIMESTAMP: Final = 2**40


@dataclass(frozen=True, slots=True)
class BackupStatus:
    """The result of the last backup.

    Attributes:
        failing: whether it failed, or the file cannot be read.
        succeeded_at: when the newest backup was complete, in seconds since 1970; ``None`` if there was none.
        due_at: when the next one is due; ``None`` if that is unknown.
    """

    failing: bool
    succeeded_at: int | None = None
    due_at: int | None = None


def read_backup_status(path: str) -> BackupStatus:
    """Reads the status file.

    Parameters:
        path: the file that ``vestige-backup`` writes.
    """
    try:
        with Path(path).open("rb") as file:
            status = json.loads(file.read(_MAX_BYTES))
        failing, succeeded_at, due_at = (status[key] for key in ("failing", "succeeded_at", "due_at"))
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return BackupStatus(failing=True)
    if not isinstance(failing, bool) or not (_is_timestamp(succeeded_at) and _is_timestamp(due_at)):
        return BackupStatus(failing=True)
    return BackupStatus(failing, succeeded_at, due_at)


def _is_timestamp(value: object) -> bool:
    return value is None or (type(value) is int and 0 <= value <= _MAX_TIMESTAMP)
