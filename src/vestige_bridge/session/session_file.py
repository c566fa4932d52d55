"""The session that the next start has to end, should this bridge be killed: a small file in the state directory.

Invariant: what the file holds is never trusted to be whole, is of use for the upstream that it names and
for no other, and never keeps the bridge from serving.
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
    """The held session, written down where the next start finds it.

    Parameters:
        directory: the state directory; ``None`` when nothing is to be kept.
        mcp_url: the upstream that the session belongs to.

    Attributes:
        left_over: the session of a bridge that was killed, until another one takes its place.
    """

    def __init__(self, directory: Path | None, mcp_url: str) -> None:
        self._path = None if directory is None else directory / FILE
        self._mcp_url = mcp_url
        self.left_over = self._read()

    @classmethod
    def from_settings(cls, settings: Settings) -> SessionFile:
        """The file in the directory that the settings name, if they name one.

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
        """Writes the session down in place of any other; readable for its owner alone."""
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
            log.warning("The session could not be written down (%s); if the bridge is killed, it stays open", error)

    def forget(self) -> None:
        """Takes the file away, because the session in it has ended; one that is still left over stays in it."""
        if self._path is None or self.left_over is not None:
            return
        try:
            self._path.unlink(missing_ok=True)
        except OSError as error:
            log.warning("The file of the session could not be removed: %s", error)

    def _read(self) -> HeldSession | None:
        if self._path is None:
            return None
        try:
            content = json.loads(self._path.read_bytes())
            if content["mcp_url"] != self._mcp_url:
                log.info("The session left over in %s belongs to another upstream", self._path)
                return None
            version = content["protocol_version"]
            return HeldSession(_header(content["session_id"]), None if version is None else _header(version))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
            log.warning("%s is damaged and of no use: %s", self._path, error)
            return None


def _header(value: object) -> str:
    if not isinstance(value, str) or not _header_value(value):
        raise ValueError("it holds something that cannot be sent")
    return value
