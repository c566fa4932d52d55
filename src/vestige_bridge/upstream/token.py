"""The token that the bridge shows to upstream, and the file that it may come from.

Invariant: a token that was read stays in use until another one is read, so a file that is emptied or lost by mistake
changes nothing.
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
    """The token to show to upstream.

    A Vestige that serves HTTP itself gets a new token at each start, and writes the file before it listens. The file is
    therefore looked at before each connection is made: a connection to the new process never shows the old token.

    Parameters:
        value: the token; empty for none.
        path: the file to read it from instead; ``None`` when it is fixed.

    Attributes:
        headers: the header that shows the token (RFC 6750, section 2.1); none when there is no token.
        header_lines: the same as it stands in the head of a request.
    """

    def __init__(self, value: str = "", path: Path | None = None) -> None:
        self._show(value)
        self._file = None if path is None else FileWatch(path)

    @classmethod
    def from_settings(cls, settings: Settings) -> UpstreamToken:
        """The token that the settings give or point to; the file need not be there yet."""
        file = settings.upstream_token_file
        return cls(settings.upstream_token, Path(file) if file else None)

    def current(self) -> str:
        """The token, read anew if its file has changed.

        Errors:
            UpstreamConnectError: no token could be read so far, so upstream cannot be asked.
        """
        if self._file is None:
            return self._value
        if self._file.changed():
            self._read(self._file.path)
        if not self._value:
            raise UpstreamConnectError("There is no token for Vestige yet.", detail=f"{self._file.path} holds none")
        return self._value

    def watching(self) -> AbstractAsyncContextManager[None]:
        """Reads the file again whenever it changes, in the background, while the context lasts."""
        file = self._file
        if file is None:
            return nullcontext()

        def check() -> None:
            if file.changed():
                self._read(file.path)
                if not self._value:
                    log.warning("There is no token for Vestige yet: %s holds none", file.path)

        return file.watching(check)

    def _read(self, path: Path) -> None:
        try:
            value = path.read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError):
            value = ""
        if not value or not is_bearer_token(value):
            if self._value:
                log.error("The file of the token for upstream changed and holds none; the one from before is kept")
            return
        if self._value and value != self._value:
            log.info("The token for upstream changed")
        self._show(value)

    def _show(self, value: str) -> None:
        self._value = value
        self.headers = {"Authorization": f"Bearer {value}"} if value else {}
        self.header_lines = header_lines(self.headers)
