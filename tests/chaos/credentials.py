"""Every form of a token, on every path, with every method: no invalid one is accepted."""

from __future__ import annotations

import asyncio
import base64
import itertools
import re

from chaos.account import Figures
from chaos.stack import Run, Stack, stack

Attempt = tuple[str, str, str]
"""A method, a path, and header lines."""

METHODS = (
    *("POST", "GET", "DELETE", "PUT", "PATCH", "HEAD", "OPTIONS", "TRACE", "CONNECT", "post", "PROPFIND", "M-SEARCH"),
)
PATHS = (
    *("/mcp", "/mcp/", "//mcp", "/MCP", "/mcp/.", "/./mcp", "/x/../mcp", "/mcp/..", "/mcp//", "/mcp;x", "/mcp%2f"),
    *("/%6dcp", "/mcp%00", "/mcp%20", "/mcp%0a", "/mcp%3f", "/mcp\\", "http://localhost/mcp", "/mcp?token={token}"),
    *("/mcp?access_token={token}", "/mcp#", "*", "/sse", "/messages", "/metrics", "/docs", "/"),
)


def invalid_credentials(token: str) -> list[str]:
    """Returns header lines without a valid token, some of them almost valid."""
    other = token.swapcase()
    basic = base64.b64encode(f":{token}".encode()).decode()
    values = (
        *("", "Bearer", "Bearer ", "Bearer null", "Bearer undefined", "Bearer \x00", "Bearer *", "Bearer ''"),
        *(
            f"Bearer {token[:-1]}",
            f"Bearer {token[:1]}",
            f"Bearer {token}x",
            f"Bearer {token}{token}",
            f"Bearer {other}",
        ),
        *(
            f"Bearer {token} x",
            f"Bearer {token},",
            f"Bearer {token},Bearer {token}",
            f"Bearer\x0b{token}",
            f"Bearer{token}",
        ),
        *(f"Bearer:{token}", f"Bearer={token}", f'Bearer "{token}"', f"Bearer {token}\x00", f"Bearer \xa0{token}"),
        *(f"Basic {basic}", f"Basic {token}", f"Token {token}", f"Digest {token}", token, f"Bearer {token[::-1]}"),
        *(f"Bearer {basic}", "Bearer " + "x" * 5000, f"bearer bearer {token}"),
    )
    return [
        "",
        *(f"Authorization: {value}\r\n" for value in values),
        f"Authorization: Bearer {token}\r\nAuthorization: Bearer {token}\r\n",
        f"Authorization: Bearer wrong\r\nAuthorization: Bearer {token}\r\n",
        f"Authorization : Bearer {token}\r\n",
        *(
            f"{name}: {value}\r\n"
            for name, value in (
                ("Proxy-Authorization", f"Bearer {token}"),
                ("X-Authorization", f"Bearer {token}"),
                ("X-Api-Key", token),
                ("Cookie", f"token={token}; Authorization=Bearer {token}"),
                ("X-Vestige-Principal", "default"),
                ("X-Forwarded-User", "default"),
                ("X-Original-URL", "/livez"),
                ("X-Forwarded-For", "127.0.0.1"),
                ("Mcp-Session-Id", "2025-11-25.0"),
            )
        ),
    ]


def valid_credentials(token: str) -> list[str]:
    """Returns header lines with the token in the forms that RFC 6750 and RFC 9110 allow."""
    return [
        f"{name}: {scheme} {token}\r\n"
        for name in ("Authorization", "aUTHORIZATION")
        for scheme in ("Bearer", "bearer")
    ]


async def credentials(run: Run) -> Figures:
    """F5: no request without a valid token is accepted."""
    done = "every form of a token on every path by every method"
    async with stack(run, "F5 credentials", done) as it:
        table = [*itertools.product(METHODS, PATHS, invalid_credentials(run.token))]
        endpoint_requests = [attempt for attempt in table if attempt[:2] == ("POST", "/mcp")]
        table = [*endpoint_requests, *it.random.sample(table, run.times(len(table)))]
        gate = asyncio.Semaphore(32)
        await asyncio.gather(
            *(_check_rejected(it, gate, f"intruder-{number}", attempt) for number, attempt in enumerate(table))
        )
        for key, runs in it.account.runs().items():
            if key.startswith("intruder"):
                it.figures.blame("wrong", f"{key} ran {runs} times")
        # A bridge that rejects everything would pass, too, so valid tokens must be accepted.
        for path, header in itertools.product(("/mcp", "/mcp/"), valid_credentials(run.token)):
            if (status := await _status(it, ("POST", path, header), "guest")) != 200:
                it.figures.blame("failed", f"a valid token was answered {status}: {header!r}")
            it.figures.answered += 1
        it.figures.calls = len(table) + it.figures.answered
    return it.figures


async def _check_rejected(it: Stack, gate: asyncio.Semaphore, key: str, attempt: Attempt) -> None:
    method, path, header = attempt
    async with gate:
        status = await _status(it, (method, path.format(token=it.run.token), header), key)
    if 200 <= status < 400 or status >= 500:
        it.figures.blame("wrong", f"{method} {path} with {header!r} was answered {status}")
    else:
        it.figures.told += 1


async def _status(it: Stack, attempt: Attempt, key: str) -> int:
    """Sends a raw request; returns the status, or 400 if it gets no answer."""
    method, path, header = attempt
    body = f'{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{{"name":"write","arguments":{{"key":"{key}"}}}}}}'
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{header}"
    content = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}"
    reader, writer = await asyncio.open_connection("127.0.0.1", it.bridge.port)
    try:
        writer.write((head + content).encode("latin-1"))
        async with asyncio.timeout(10):
            answer = await reader.read()
    except ConnectionError:
        answer = b""
    except TimeoutError:
        it.figures.blame("unanswered", f"{method} {path} with {header!r}")
        answer = b""
    finally:
        writer.close()
    found = re.match(rb"HTTP/1\.1 (\d{3}) ", answer)
    return int(found.group(1)) if found else 400
