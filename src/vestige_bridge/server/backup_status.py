"""What the backup container says of its backups, in a file that it writes anew after each.

Invariant: a file that is missing, or is no such status, counts as a backup that fails, so that silence is noticed.
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
    """How the last backup ended.

    Attributes:
        failing: whether it failed, or what is said of it cannot be read.
        succeeded_at: when the newest backup was complete, in seconds since 1970; ``None`` where none ever was.
        due_at: when the next one is to begin; ``None`` where nothing says so.
    """

    failing: bool
    succeeded_at: int | None = None
    due_at: int | None = None


def read_backup_status(path: str) -> BackupStatus:
    """The status that the file holds.

    Parameters:
        path: where ``vestige-backup`` writes it.
    """
    try:
        with Path(path).open("rb") as file:
            told = json.loads(file.read(_MAX_BYTES))
        failing, succeeded_at, due_at = (told[key] for key in ("failing", "succeeded_at", "due_at"))
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return BackupStatus(failing=True)
    if not isinstance(failing, bool) or not (_is_timestamp(succeeded_at) and _is_timestamp(due_at)):
        return BackupStatus(failing=True)
    return BackupStatus(failing, succeeded_at, due_at)


def _is_timestamp(value: object) -> bool:
    return value is None or (type(value) is int and 0 <= value <= _MAX_TIMESTAMP)
