"""Upstream asked past the bridge.

Invariant: a question goes out only if no supergateway that keeps sessions starts a Vestige for it. The one
that does, the handshake, is for where no bridge runs, and its session is ended.
"""

from __future__ import annotations

from typing import Final
from urllib.parse import urlsplit

from vestige_bridge.cli.http_client import HttpReply, NoAnswer, fetch, is_event_stream
from vestige_bridge.jsonrpc.messages import PING
from vestige_bridge.session.session_file import SessionFile
from vestige_bridge.settings import Settings

_PING: Final = {"jsonrpc": "2.0", "id": "doctor", "method": PING}
_NOBODYS_SESSION: Final = "vestige-bridge-doctor"
_NO_SESSION: Final = "No valid session ID"
_TOKEN: Final = "VESTIGE_BRIDGE_UPSTREAM_TOKEN or VESTIGE_BRIDGE_UPSTREAM_TOKEN_FILE"  # noqa: S105
_NATIVE: Final = (b"Mcp-Session-Id header", b"MCP-Protocol-Version header")

SUPERGATEWAY: Final = (
    "npx -y supergateway@4 --stdio vestige-mcp --outputTransport streamableHttp --stateful --logLevel none --port 3100"
)
"""How supergateway is started, so that the bridge can use it."""


class Fault(Exception):
    """A layer that fails.

    Parameters:
        found: what was found.
        remedy: what to do about it, in a sentence.
    """

    def __init__(self, found: str, remedy: str) -> None:
        super().__init__(found)
        self.remedy = remedy


class TokenRefused(Fault):
    """Upstream wants a token, or another one."""


def ask_endpoint(url: str, token: str, timeout_seconds: float) -> None:
    """Sends a ping without a session, and one on a session that nobody opened.

    supergateway, and a Vestige that serves HTTP itself, refuse the first in a way that shows that they keep sessions.
    The second tells supergateway's versions apart: 3 answers 400 where 4 answers 404 (MCP 2025-11-25,
    basic/transports, session management).

    Parameters:
        url: the address of upstream.
        token: what the bridge shows to it; empty for none.
        timeout_seconds: how long a connection, and then each answer, may take.

    Errors:
        NoAnswer: nothing there speaks HTTP.
        TokenRefused: it wants a token, or another one.
        Fault: it is no MCP server, or one that the bridge cannot use well.
    """
    reply = fetch("POST", url, _PING, token=token, timeout_seconds=timeout_seconds)
    _require_mcp(url, reply, token, timeout_seconds)
    if reply.status == 200:
        raise Fault(
            f"{url} keeps no sessions, so every request may start a Vestige",
            f"Start supergateway with --stateful: {SUPERGATEWAY}",
        )
    again = fetch("POST", url, _PING, token=token, session_id=_NOBODYS_SESSION, timeout_seconds=timeout_seconds)
    if again.status == 400 and _NO_SESSION.encode() in again.body:
        raise Fault(
            f"{url} is supergateway 3, which dies of an aborted request and leaves processes behind",
            "Install supergateway 4.",
        )


def shake_hands(settings: Settings) -> tuple[str, int]:
    """Opens a session, has the tools listed, and ends it.

    Returns:
        The name and version of the server, and the number of its tools.

    Errors:
        BridgeError: no session could be opened.
    """
    # All of the bridge below the server, which no other question of the doctor needs.
    import asyncio  # noqa: PLC0415

    from vestige_bridge.session.session import Session  # noqa: PLC0415
    from vestige_bridge.upstream.answer_budget import AnswerBudget  # noqa: PLC0415
    from vestige_bridge.upstream.client import Upstream  # noqa: PLC0415
    from vestige_bridge.upstream.token import UpstreamToken  # noqa: PLC0415

    async def ask() -> tuple[str, int]:
        upstream = Upstream(
            settings.mcp_url,
            token=UpstreamToken.from_settings(settings),
            connect_timeout_seconds=settings.connect_timeout_seconds,
            max_answer_bytes=settings.max_answer_bytes,
            budget=AnswerBudget(settings.unsent_bytes),
        )
        # Nothing is written down: what stands in the file may be the session of a bridge that runs elsewhere.
        file = SessionFile(None, settings.mcp_url)
        async with upstream, Session(upstream, settings, lambda _: None, file) as session:
            held = await session.connected()
            return f"{held.server_name} {held.server_version}", len(session.catalog.tools)

    return asyncio.run(ask())


def _require_mcp(url: str, reply: HttpReply, token: str, timeout_seconds: float) -> None:
    """Tells something else that answers there from an upstream, whatever that says.

    Errors:
        TokenRefused: it wants a token, or another one.
        Fault: it is something else.
    """
    if reply.status in (401, 403):
        known = "does not take the token" if token else "wants a token"
        raise TokenRefused(f"{url} {known} (HTTP {reply.status})", f"Set {_TOKEN} to one that it takes.")
    if any(reply.messages()) or _is_native(reply):
        return
    if reply.status == 404:
        _refuse_sse(url, timeout_seconds)
        usual = "" if urlsplit(url).path == "/mcp" else "; it usually ends in /mcp"
        raise Fault(f"{url} is not there (HTTP 404)", f"Correct the path in VESTIGE_MCP_URL{usual}.")
    if reply.status >= 500:
        raise Fault(f"{url} fails with {reply}", "Look at its log.")
    raise Fault(f"{url} does not speak MCP ({reply})", "Correct VESTIGE_MCP_URL: something else answers there.")


def _refuse_sse(url: str, timeout_seconds: float) -> None:
    """Tells supergateway in its default mode, which is the HTTP+SSE transport of 2024-11-05.

    Errors:
        Fault: it is that.
    """
    stream = urlsplit(url)._replace(path="/sse", query="").geturl()
    try:
        is_sse = is_event_stream(stream, timeout_seconds)
    except NoAnswer:
        return
    if is_sse:
        raise Fault(
            f"{url} is not there, and {stream} is: supergateway runs in its default mode, SSE, "
            "which the bridge does not speak",
            f"Start it for Streamable HTTP: {SUPERGATEWAY}",
        )


def _is_native(reply: HttpReply) -> bool:
    """Whether a Vestige that serves HTTP itself refuses a request without a session, which it does in plain text."""
    return reply.status == 400 and any(sentence in reply.body for sentence in _NATIVE)
