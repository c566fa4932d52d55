"""The callers: clients of every kind, which make their own calls and share a few ids."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from random import Random
from typing import Any

import aiohttp

from chaos.account import Account, Call
from harness import JSON, SSE

IDS = ("1", '"1"', "1.0", "2")
PATIENCE_SECONDS = 30
"""The time that a caller waits for an answer: longer than every timeout of the bridge."""

RETRY_SECONDS = 0.2
"""The pause before a caller's next call while calls are not answered."""

MODERN = "2026-07-28"
MODERN_META = {
    "io.modelcontextprotocol/protocolVersion": MODERN,
    "io.modelcontextprotocol/clientCapabilities": {},
    "io.modelcontextprotocol/clientInfo": {"name": "chaos", "version": "1"},
}
INITIALIZE = {
    "protocolVersion": "2025-11-25",
    "capabilities": {},
    "clientInfo": {"name": "chaos", "version": "1"},
}


class Caller:
    """One client; ``run`` makes calls of its kind until it is stopped.

    Parameters:
        kind: the name of one of its methods.
        account: the record of its calls.
        url: the endpoint.
        token: the bearer token.
        http: its HTTP client.
        random: its own random generator.
        ids: the ids of its requests.
    """

    def __init__(
        self,
        kind: str,
        account: Account,
        *,
        url: str,
        token: str,
        http: aiohttp.ClientSession,
        random: Random,
        ids: tuple[str, ...],
    ) -> None:
        self.account = account
        self._kind: Callable[[], Awaitable[None]] = getattr(self, kind)
        self._url = url
        self._http = http
        self._headers = {**JSON, "Authorization": f"Bearer {token}"}
        self._random = random
        self._ids = ids
        self._session: dict[str, str] = {}

    async def run(self, stopped: asyncio.Event, pause_seconds: float = 0) -> None:
        """Makes calls until it is stopped, and finishes the last one."""
        while not stopped.is_set():
            answered = self.account.answered
            await self._kind()
            await asyncio.sleep(pause_seconds if self.account.answered > answered else RETRY_SECONDS)

    async def json_poster(self) -> None:
        """POSTs one request and accepts JSON."""
        call = self._open()
        await self.post_json([call], self.body(call), {})

    async def sse_poster(self) -> None:
        """POSTs one request and accepts an event stream."""
        call = self._open()
        await self.post_stream(call, self.body(call), SSE)

    async def watcher(self) -> None:
        """Checks the progress of a slow call."""
        call = self._open()
        await self.post_stream(call, self.body(call, steps=3, step_ms=self._random.randrange(40)), SSE)

    async def batcher(self) -> None:
        """POSTs several requests with one id at the same time."""
        calls = [self._open("1") for _ in range(self._random.randint(2, 4))]
        await self.post_json(calls, b"[" + b",".join(self.body(call) for call in calls) + b"]", {})

    async def legacy_client(self) -> None:
        """Makes calls on its own session, and opens a new one from time to time."""
        if not self._session or self._random.random() < 0.05:
            self._session = await self._initialize()
        call = self._open()
        await self.post_json([call], self.body(call), self._session)

    async def modern_client(self) -> None:
        """Sends self-contained (modern) requests."""
        call = self._open()
        headers, body = _modern_headers(call), self.body(call, MODERN_META)
        if self._random.random() < 0.5:
            return await self.post_stream(call, body, {**SSE, **headers})
        await self.post_json([call], body, headers)

    async def canceller(self) -> None:
        """Cancels its own call while it runs."""
        if not self._session:
            self._session = await self._initialize()
        call = self._open()
        body = self.body(call, steps=20, step_ms=20)
        call.cancelled = True
        if self._random.random() < 0.5:
            post = asyncio.create_task(self.post_stream(call, body, {**SSE, **self._session}))
        else:
            post = asyncio.create_task(self.post_json([call], body, self._session))
        await asyncio.sleep(self._random.uniform(0.01, 0.3))
        params = f'{{"requestId":{call.spelled_id}}}'
        notification = f'{{"jsonrpc":"2.0","method":"notifications/cancelled","params":{params}}}'
        with suppress(aiohttp.ClientError, TimeoutError):
            async with self._request(notification.encode(), self._session):
                pass
        await post

    async def cutter(self) -> None:
        """Sends keys and values that were cut in the middle of a character."""
        form = self._random.randrange(4)
        calls = [self._open("1") for _ in range(3 if form == 0 else 1)]
        meta = MODERN_META if form == 1 else None
        bodies = [self.body(call, meta, **self._halves()) for call in calls]
        if form == 0:
            await self.post_json(calls, b"[" + b",".join(bodies) + b"]", {})
        elif form == 3:
            await self.post_stream(calls[0], bodies[0], SSE)
        else:
            await self.post_json(calls, bodies[0], _modern_headers(calls[0]) if meta else {})

    async def leaver(self) -> None:
        """Disconnects during a call, which cancels the call only if the client is modern."""
        call = self._open()
        modern = self._random.random() < 0.5
        headers = {**SSE, **(_modern_headers(call) if modern else {})}
        body = self.body(call, MODERN_META if modern else {}, steps=10, step_ms=20)
        post = asyncio.create_task(self.post_stream(call, body, headers))
        await asyncio.sleep(self._random.uniform(0.01, 0.2))
        post.cancel()
        await asyncio.wait([post])
        call.got = call.got or "left"

    async def call(self, tool: str = "read", **arguments: Any) -> Call:
        """Makes one call as a sessionless client."""
        call = self.account.open(tool, "1", arguments.get("characters", 0))
        await self.post_json([call], self.body(call, **arguments), {})
        return call

    def _open(self, spelled_id: str | None = None) -> Call:
        tool = self._random.choice(("write", "write", "set", "read"))
        return self.account.open(tool, spelled_id or self._random.choice(self._ids))

    def body(self, call: Call, meta: dict[str, Any] | None = None, **arguments: Any) -> bytes:
        """Returns the request of a call, whose id is also its progress token."""
        params: dict[str, Any] = {"name": call.tool, "arguments": {"key": call.key, **arguments}}
        params["_meta"] = {**(meta or {}), "progressToken": "@"}
        message = {"jsonrpc": "2.0", "id": "@", "method": "tools/call", "params": params}
        return json.dumps(message).replace('"@"', call.spelled_id).encode()

    def _halves(self) -> dict[str, Any]:
        """Returns arguments with unpaired surrogates, whole characters and backslashes in random order."""

        def text() -> str:
            return "".join(self._random.choices(["\ud83d", "\ude00", "\U0001f600", "\\", "\\ud83d", "a", '"'], k=9))

        return {f"x{text()}": self._random.choice([text(), [text()], {text(): text()}, text() * 1000])}

    async def _initialize(self) -> dict[str, str]:
        message = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": INITIALIZE}
        with suppress(aiohttp.ClientError, TimeoutError):
            async with self._request(json.dumps(message).encode(), {}) as response:
                if response.status == 200:
                    return {"Mcp-Session-Id": response.headers["Mcp-Session-Id"]}
        # The bridge treats an unknown session id as one that a restart lost.
        return {"Mcp-Session-Id": f"2025-11-25.{self._random.getrandbits(128):032x}"}

    async def post_json(self, calls: list[Call], body: bytes, headers: dict[str, str]) -> None:
        """POSTs the calls' body and accepts JSON."""
        for call in calls:
            call.request_id = calls[0].request_id
        headers = {"X-Request-Id": calls[0].request_id, **headers}
        async with self._watched(calls), self._request(body, headers) as response:
            data = await response.read()
            answers = json.loads(data) if len(calls) > 1 else None
            if not isinstance(answers, list):
                for call in calls:
                    call.take(response.status, data if len(calls) == 1 else _with_id(data, call))
            elif len(answers) != len(calls):
                raise ValueError(f"{len(answers)} answers to {len(calls)} requests")
            else:
                for call, answer in zip(calls, answers, strict=True):
                    call.take(None, json.dumps(answer).encode())

    async def post_stream(self, call: Call, body: bytes, headers: dict[str, str]) -> None:
        """POSTs the call's body and accepts an event stream."""
        headers = {"X-Request-Id": call.request_id, **headers}
        async with self._watched([call]), self._request(body, headers) as response:
            if response.content_type == "application/json":
                return call.take(response.status, await response.read())
            async for line in response.content:
                if not line.startswith(b"data:"):
                    continue
                message = json.loads(line[5:])
                if "method" in message and "id" in message:
                    await self.answer_question(call, message)
                elif "method" in message:
                    call.take_progress(message)
                else:
                    call.take(None, line[5:])
            call.got = call.got or ("cancelled" if call.cancelled else "cut")

    async def answer_question(self, call: Call, question: dict[str, Any]) -> None:
        """Checks a request from the server during a call; a client on a shared session must get none."""
        call.complain(f"a question to nobody: {question}")

    @asynccontextmanager
    async def _watched(self, calls: list[Call]) -> AsyncIterator[None]:
        """Records the result of calls whose connection fails, or whose answer is invalid."""
        got = ""
        try:
            yield
        except aiohttp.ClientConnectorError:
            got = "refused"
        except aiohttp.ClientError:
            got = "cut"
        except TimeoutError:
            pass
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            calls[0].complain(f"an answer that makes no sense: {error!r}")
        for call in calls:
            call.got = call.got or got
            if call.got == "answer" and not call.complaint:
                self.account.answered += 1

    @asynccontextmanager
    async def _request(self, body: bytes, headers: dict[str, str]) -> AsyncIterator[aiohttp.ClientResponse]:
        async with (
            asyncio.timeout(PATIENCE_SECONDS),
            self._http.post(self._url, data=body, headers={**self._headers, **headers}) as response,
        ):
            yield response


KINDS = (
    "json_poster", "sse_poster", "watcher", "batcher", "legacy_client", "modern_client", "canceller", "leaver",
)  # fmt: skip


def _modern_headers(call: Call) -> dict[str, str]:
    return {"MCP-Protocol-Version": MODERN, "Mcp-Method": "tools/call", "Mcp-Name": call.tool}


def _with_id(data: bytes, call: Call) -> bytes:
    """Returns the common error of a batch as the error for one of its members."""
    return data.replace(b'"id":null', b'"id":%s' % call.spelled_id.encode())
