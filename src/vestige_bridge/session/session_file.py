"""A file in the state directory with the shared session, so that the next start can end it if the bridge was killed.

Invariant: the content of the file is validated, is used only for the upstream that it names, and never prevents the
bridge from serving.
"""

from __future__ import annotations

import json
import logging
import os
import re
import tempfile
from pathlib import Path
from typing import Final

from vestige_bridge.errors import SettingsError
from vestige_bridge.mcp.lifecycle import HeldSession
from vestige_bridge.settings import Settings

log = logging.getLogger(__name__)

FILE: Final = "session.json"

_header_value = re.compile(r"[\x21-\x7e]{1,1024}").fullmatch


class SessionFile:
    """The file with the shared session.

    Parameters:
        directory: the state directory; ``None`` to store nothing.
        mcp_url: the upstream of the session.

    Attributes:
        left_over: the session of a killed bridge, until another one replaces it.
    """

    def __init__(self, directory: Path | None, mcp_url: str) -> None:
        self._path = None if directory is None else directory / FILE
        self._mcp_url = mcp_url
        self.left_over = self._read()

    @classmethod
    def from_settings(cls, settings: Settings) -> SessionFile:
        """The file in the configured state directory, if there is one.

        Errors:
            SettingsError: the directory does not exist or cannot be written.
        """
        if not settings.state_dir:
            return cls(None, settings.mcp_url)
        directory = Path(settings.state_dir)
        try:
            tempfile.TemporaryFile(dir=directory).close()
        except OSError as error:
            problem = (
                f"{directory} cannot be used: {error.strerror}; set it to a directory that the bridge can write to."
            )
            raise SettingsError([f"VESTIGE_BRIDGE_STATE_DIR: {problem}"]) from error
        return cls(directory, settings.mcp_url)

    def keep(self, held: HeldSession) -> None:
        """Stores the session and replaces any other; only the file's owner can read it."""
        self.left_over = None
        if self._path is None or held.session_id is None:
            return
        content = {"mcp_url": self._mcp_url, "session_id": held.session_id, "protocol_version": held.protocol_version}
        fresh = self._path.with_suffix(".new")
        try:
            fresh.unlink(missing_ok=True)
            with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
                json.dump(content, file)
            fresh.replace(self._path)
        except OSError as error:
            log.warning(
                "The session file could not be written (%s); if the bridge is killed, the session stays open", error
            )

    def forget(self) -> None:
        """Removes the file after its session has ended; keeps a session of a killed bridge."""
        if self._path is None or self.left_over is not None:
            return
        try:
            self._path.unlink(missing_ok=True)
        except OSError as error:
            log.warning("The session file could not be removed: %s", error)

    def _read(self) -> HeldSession | None:
        if self._path is None:
            return None
        try:
            content = json.loads(self._path.read_bytes())
            if content["mcp_url"] != self._mcp_url:
                log.info("The session in %s belongs to another upstream", self._path)
                return None
            version = content["protocol_version"]
            return HeldSession(_header(content["session_id"]), None if version is None else _header(version))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
            log.warning("The session file %s is not valid: %s", self._path, error)
            return None


def _header(value: object) -> str:
    if not isinstance(value, str) or not _header_value(value):
        raise ValueError("a field is not a valid header value")
    return value
