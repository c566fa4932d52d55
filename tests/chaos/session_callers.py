"""Clients in per-client mode: each has its own session, may lose or end it, and gets requests from the server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import aiohttp

from chaos.account import NO_SESSION, Call
from chaos.callers import INITIALIZE, Caller
from harness import SSE

ANOTHER_SESSION = 0.02
"""The probability that a client opens another session although it has one."""


class SessionCaller(Caller):
    """A client with its own session; it also has the kinds of every other caller."""

    async def session_any(self) -> None:
        """Runs one of the following kinds, at random."""
        kind: Callable[[], Awaitable[None]] = getattr(self, self._random.choice(SESSION_KINDS))
        await kind()

    async def session_client(self) -> None:
        """Makes a call on its session, and accepts JSON or an event stream."""
        if await self._has_session():
            call = self._call()
            await self._post(call, self.body(call))

    async def session_duplicates(self) -> None:
        """Makes two concurrent calls with one id, which MCP forbids."""
        if await self._has_session():
            spelled = self._random.choice(self._ids)
            calls = [self._call(spelled) for _ in range(2)]
            await asyncio.gather(*(self._post(call, self.body(call, steps=2, step_ms=20)) for call in calls))

    async def session_watcher(self) -> None:
        """Checks the progress of a call."""
        if await self._has_session():
            call = self._call()
            await self._post(call, self.body(call, steps=3, step_ms=self._random.randrange(40)), stream=True)

    async def session_asked(self) -> None:
        """Gets a request from the server during its call."""
        if await self._has_session():
            call = self._call()
            await self._post(call, self.body(call, asking=True), stream=True)

    async def session_batcher(self) -> None:
        """POSTs several requests with one id at the same time."""
        if await self._has_session():
            calls = [self._call("1") for _ in range(self._random.randint(2, 4))]
            await self.post_json(calls, b"[" + b",".join(map(self.body, calls)) + b"]", self._session)
            self._note(*calls)

    async def session_canceller(self) -> None:
        """Cancels its own call while it runs."""
        if not await self._has_session():
            return
        call = self._call()
        call.cancelled = True
        post = asyncio.create_task(self._post(call, self.body(call, steps=20, step_ms=20)))
        # If the session is lost meanwhile, this must not be sent as the cancellation of a sessionless client.
        session = self._session
        await asyncio.sleep(self._random.uniform(0.01, 0.3))
        params = f'{{"requestId":{call.spelled_id}}}'
        await self._tell(f'{{"jsonrpc":"2.0","method":"notifications/cancelled","params":{params}}}'.encode(), session)
        await post

    async def session_leaver(self) -> None:
        """Disconnects during its call."""
        if not await self._has_session():
            return
        call = self._call()
        post = asyncio.create_task(self._post(call, self.body(call, steps=10, step_ms=20), stream=True))
        await asyncio.sleep(self._random.uniform(0.01, 0.2))
        post.cancel()
        await asyncio.wait([post])
        call.got = call.got or "left"

    async def session_listener(self) -> None:
        """Opens the stream of its session, and disconnects."""
        if not await self._has_session():
            return
        headers = {**self._headers, **self._session, "Accept": "text/event-stream"}
        with suppress(aiohttp.ClientError, TimeoutError):
            async with (
                asyncio.timeout(self._random.uniform(0.1, 0.5)),
                self._http.get(self._url, headers=headers) as response,
            ):
                await response.read()

    async def session_quitter(self) -> None:
        """Ends its session while a call runs on it."""
        if not await self._has_session():
            return
        call = self._call()
        post = asyncio.create_task(self._post(call, self.body(call, steps=5, step_ms=20)))
        await asyncio.sleep(self._random.uniform(0.01, 0.1))
        await self._quit()
        await post

    async def initialize(self, spelled_id: str = "1") -> tuple[int, dict[str, Any]]:
        """Opens a session; returns the HTTP status and the response."""
        message = {"jsonrpc": "2.0", "id": "@", "method": "initialize", "params": INITIALIZE}
        async with self._request(json.dumps(message).replace('"@"', spelled_id).encode(), {}) as response:
            body = await response.read()
            if response.status == 200 and "Mcp-Session-Id" in response.headers:
                self._session = {"Mcp-Session-Id": response.headers["Mcp-Session-Id"]}
            return response.status, json.loads(body)

    async def call_in_session(self, tool: str = "read") -> Call:
        """Makes one call on its session."""
        call = self.account.open(tool, "1")
        call.in_session = True
        await self._post(call, self.body(call))
        return call

    async def answer_question(self, call: Call, question: dict[str, Any]) -> None:
        """Answers a request from the server, if it is for this client."""
        text = question["params"]["messages"][0]["content"]["text"]
        if question["method"] != "sampling/createMessage" or text != call.key:
            call.complain(f"the question of another: {question}")
        result = {"role": "assistant", "content": {"type": "text", "text": text}, "model": "m"}
        await self._tell(json.dumps({"jsonrpc": "2.0", "id": question["id"], "result": result}).encode())

    def _call(self, spelled_id: str | None = None) -> Call:
        call = self._open(spelled_id)
        call.in_session = True
        return call

    async def _post(self, call: Call, body: bytes, *, stream: bool | None = None) -> None:
        if self._random.random() < 0.5 if stream is None else stream:
            await self.post_stream(call, body, {**SSE, **self._session})
        else:
            await self.post_json([call], body, self._session)
        self._note(call)

    def _note(self, *calls: Call) -> None:
        """Discards a lost session, as MCP requires."""
        if any(call.error.get("code") == NO_SESSION for call in calls):
            self._session = {}

    async def _has_session(self) -> bool:
        """Opens a session if it has none; returns whether it has one."""
        if self._session and self._random.random() < ANOTHER_SESSION:
            await self._quit()
        if not self._session:
            with suppress(aiohttp.ClientError, TimeoutError, ValueError):
                await self.initialize()
            if self._session:
                await self._tell(b'{"jsonrpc":"2.0","method":"notifications/initialized"}')
        return bool(self._session)

    async def _tell(self, message: bytes, session: dict[str, str] | None = None) -> None:
        with suppress(aiohttp.ClientError, TimeoutError):
            async with self._request(message, self._session if session is None else session):
                pass

    async def _quit(self) -> None:
        headers, self._session = {**self._headers, **self._session}, {}
        with suppress(aiohttp.ClientError, TimeoutError):
            async with self._http.delete(self._url, headers=headers):
                pass


SESSION_KINDS = (
    "session_client", "session_duplicates", "session_watcher", "session_asked", "session_batcher", "session_canceller",
    "session_leaver", "session_listener", "session_quitter",
)  # fmt: skip
