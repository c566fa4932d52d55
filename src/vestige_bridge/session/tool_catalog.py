"""The tools that upstream lists, and when the list is read again.

Invariant: a list that could not be read leaves the known tools unchanged.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from types import MappingProxyType
from typing import Any, Final

from vestige_bridge.concurrency import Tasks
from vestige_bridge.errors import BridgeError
from vestige_bridge.mcp.lifecycle import HeldSession
from vestige_bridge.mcp.methods import LIST_TOOLS
from vestige_bridge.mcp.tools import Tool, read_tool, read_tool_page
from vestige_bridge.session.exchange import Answered

log = logging.getLogger(__name__)

REDISCOVERY_DELAY_SECONDS: Final = 1.0
"""The delay after a list-changed notification before the list is read, so that several cause one read."""

_MAX_PAGES: Final = 100

Ask = Callable[[HeldSession, str, Mapping[str, object] | None, float], Awaitable[Answered]]
"""Sends a request of the bridge's own: the session, the method, the parameters, and the timeout in seconds."""


class ToolCatalog:
    """The tools of upstream and their annotations.

    Parameters:
        ask: sends a request of the bridge's own.
        tasks: owner of the task that reads the list again.

    Attributes:
        tools: the tools that upstream listed, by name.
    """

    def __init__(self, ask: Ask, tasks: Tasks) -> None:
        self.tools: Mapping[str, Tool] = MappingProxyType({})
        self._ask = ask
        self._tasks = tasks
        self._listed: list[Mapping[str, Any]] | None = None
        self._problem = ""
        self._refreshing: asyncio.Task[None] | None = None

    async def read(self, held: HeldSession, timeout_seconds: float, *, opening: bool = False) -> bool:
        """Reads all pages of upstream's tool list (MCP 2025-11-25, server/tools).

        Parameters:
            held: the session.
            timeout_seconds: the time limit for each page.
            opening: whether the session is being opened; then the tools are logged and no earlier tools are kept.

        Returns:
            Whether the list differs from the one before.

        Errors:
            BridgeError: upstream did not answer.
        """
        listed, problem = await self._pages(held, timeout_seconds)
        if problem and problem != self._problem:
            log.warning("%s", problem)
        self._problem = problem
        if problem and not listed and not opening:
            # The tools that were listed before may still exist.
            return False
        before, self._listed = self._listed, listed
        tools = {tool["name"]: read_tool(tool) for tool in listed}
        if opening or tools.keys() != self.tools.keys():
            log.info("Vestige tools discovered (%d): %s", len(tools), ", ".join(tools))
        self.tools = MappingProxyType(tools)
        return before is not None and before != listed

    def refresh_soon(self, refresh: Callable[[], Awaitable[None]]) -> None:
        """Reads the list again after a delay; notifications during the delay cause one read.

        Parameters:
            refresh: reads the list on the session that is current then.
        """
        if self._refreshing is None or self._refreshing.done():
            self._refreshing = self._tasks.start(self._refresh(refresh))

    async def _refresh(self, refresh: Callable[[], Awaitable[None]]) -> None:
        await asyncio.sleep(REDISCOVERY_DELAY_SECONDS)
        # A change during the read may be missing from its result, so a later notification starts another read.
        self._refreshing = None
        with suppress(BridgeError):
            await refresh()

    async def _pages(self, held: HeldSession, timeout_seconds: float) -> tuple[list[Mapping[str, Any]], str]:
        """The tools of all pages, and the first problem with one of them."""
        listed: list[Mapping[str, Any]] = []
        cursors: set[str | None] = set()
        cursor: str | None = None
        problem = ""
        while cursor not in cursors and len(cursors) < _MAX_PAGES:
            cursors.add(cursor)
            params = None if cursor is None else {"cursor": cursor}
            page = read_tool_page((await self._ask(held, LIST_TOOLS, params, timeout_seconds)).response)
            listed += page.tools
            problem = problem or page.problem
            if page.next_cursor is None:
                break
            cursor = page.next_cursor
        return listed, problem
