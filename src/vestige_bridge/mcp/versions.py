"""The table of MCP versions that the bridge supports.

A version is of the legacy era if ``initialize`` opens a session and of the modern era if each request declares the
version. A new version is one row here.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Final


class Era(StrEnum):
    """How a version of MCP is declared."""

    LEGACY = "legacy"
    MODERN = "modern"


VERSIONS: Final[Mapping[str, Era]] = MappingProxyType(
    {
        "2026-07-28": Era.MODERN,
        "2025-11-25": Era.LEGACY,
        "2025-06-18": Era.LEGACY,
        "2025-03-26": Era.LEGACY,
        "2024-11-05": Era.LEGACY,
    }
)
"""The era of each version, newest first."""

SUPPORTED_VERSIONS: Final = tuple(VERSIONS)
MODERN_VERSIONS: Final = tuple(version for version, era in VERSIONS.items() if era is Era.MODERN)
LEGACY_VERSIONS: Final = tuple(version for version, era in VERSIONS.items() if era is Era.LEGACY)
LATEST_MODERN_VERSION: Final = MODERN_VERSIONS[0]
LATEST_LEGACY_VERSION: Final = LEGACY_VERSIONS[0]
