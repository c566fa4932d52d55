"""The token that the bridge shows to upstream, and the file that it may come from.

Invariant: a token that was read stays in use until another one is read, so a file that is emptied or lost by mistake
changes nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from vestige_bridge.errors import UpstreamConnectError
from vestige_bridge.files import fingerprint
from vestige_bridge.headers import header_lines
from vestige_bridge.settings import Settings, is_token
from vestige_bridge.tasks import Tasks

log = logging.getLogger(__name__)

LOOK_AGAIN_SECONDS: Final = 1.0
"""How often the file is looked at for a change while connections stay open."""


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
        self._path = path
        self._seen: tuple[int, ...] | None = None

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
        if self._path is not None and (seen := fingerprint(self._path)) != self._seen:
            self._seen = seen
            self._read(self._path)
        if self._path is not None and not self._value:
            raise UpstreamConnectError("There is no token for Vestige yet.", detail=f"{self._path} holds none")
        return self._value

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Reads the file anew whenever it changes, in the background while the context lasts."""
        tasks = Tasks()
        if self._path is not None:
            tasks.start(self._watch(self._path))
        try:
            yield
        finally:
            await tasks.close()

    async def _watch(self, path: Path) -> None:
        while True:
            await asyncio.sleep(LOOK_AGAIN_SECONDS)
            if fingerprint(path) != self._seen:
                try:
                    self.current()
                except UpstreamConnectError as error:
                    log.warning("%s (%s)", error, error.detail)

    def _read(self, path: Path) -> None:
        try:
            value = path.read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError):
            value = ""
        if not value or not is_token(value):
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
