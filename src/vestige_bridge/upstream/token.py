"""The token that the bridge sends to upstream, and its file.

Invariant: a token stays in use until another one is read, so a file that is emptied or deleted by mistake changes
nothing.
"""

from __future__ import annotations

import logging
from contextlib import AbstractAsyncContextManager, nullcontext
from pathlib import Path

from vestige_bridge.concurrency import FileWatch
from vestige_bridge.errors import UpstreamConnectError
from vestige_bridge.http.headers import header_lines
from vestige_bridge.settings import Settings, is_bearer_token

log = logging.getLogger(__name__)


class UpstreamToken:
    """The token for upstream.

    A Vestige that serves HTTP itself generates a new token at each start, and writes the file before it listens. The
    file is therefore checked before each connection is opened: a new process never gets the old token.

    Parameters:
        value: the token; empty for none.
        path: the file to read it from instead; ``None`` if it is fixed.

    Attributes:
        headers: the header with the token (RFC 6750, section 2.1); none without a token.
        header_lines: the same as text for the head of a request.
    """

    def __init__(self, value: str = "", path: Path | None = None) -> None:
        self._show(value)
        self._file = None if path is None else FileWatch(path)

    @classmethod
    def from_settings(cls, settings: Settings) -> UpstreamToken:
        """The token or token file of the settings; the file may not exist yet."""
        file = settings.upstream_token_file
        return cls(settings.upstream_token, Path(file) if file else None)

    def current(self) -> str:
        """The token, read again if its file has changed.

        Errors:
            UpstreamConnectError: no token was read yet, so no request can be sent.
        """
        if self._file is None:
            return self._value
        if self._file.changed():
            self._read(self._file.path)
        if not self._value:
            raise UpstreamConnectError("There is no token for Vestige yet.", detail=f"{self._file.path} contains none")
        return self._value

    def watching(self) -> AbstractAsyncContextManager[None]:
        """Reads the file again whenever it changes, in the background, within the context."""
        file = self._file
        if file is None:
            return nullcontext()

        def check() -> None:
            if file.changed():
                self._read(file.path)
                if not self._value:
                    log.warning("There is no token for Vestige yet: %s contains none", file.path)

        return file.watching(check)

    def _read(self, path: Path) -> None:
        try:
            value = path.read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError):
            value = ""
        if not value or not is_bearer_token(value):
            if self._value:
                log.error("The token file for upstream changed and contains no token; the previous token is kept")
            return
        if self._value and value != self._value:
            log.info("The token for upstream changed")
        self._show(value)

    def _show(self, value: str) -> None:
        self._value = value
        self.headers = {"Authorization": f"Bearer {value}"} if value else {}
        self.header_lines = header_lines(self.headers)
