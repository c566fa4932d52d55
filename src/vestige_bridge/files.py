"""How a change of a file is noticed."""

from __future__ import annotations

from pathlib import Path


def fingerprint(path: Path) -> tuple[int, ...] | None:
    """What differs after every change of the file, also when another file takes its place; ``None`` without a file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size
