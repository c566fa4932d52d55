"""Checks of upstream that do not go through the bridge.

Invariant: a supergateway that keeps sessions starts no Vestige for these requests. The handshake does start one; it is
made only if no bridge runs, and its session is ended.
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
"""The command that starts supergateway for the bridge."""


class Fault(Exception):
    """A layer that fails.

    Parameters:
        found: what is wrong.
        remedy: what to do, in a sentence.
    """

    def __init__(self, found: str, remedy: str) -> None:
        super().__init__(found)
        self.remedy = remedy


class TokenRefused(Fault):
    """Upstream requires a token, or does not accept the one that was sent."""


def ask_endpoint(url: str, token: str, timeout_seconds: float) -> None:
    """Sends a ping without a session, and one with the id of a session that does not exist.

    If supergateway, or Vestige's own HTTP server, rejects the first, it keeps sessions. The answer to the second shows
    the version of supergateway: 3 answers 400, and 4 answers 404 (MCP 2025-11-25, basic/transports, session
    management).

    Parameters:
        url: the address of upstream.
        token: the token that the bridge sends to upstream; empty for none.
        timeout_seconds: how long a connection, and then each answer, may take.

    Errors:
        NoAnswer: no HTTP server answers.
        TokenRefused: it requires a token, or rejects the one that was sent.
        Fault: it is not an MCP server, or not one that the bridge supports.
    """
    reply = fetch("POST", url, _PING, token=token, timeout_seconds=timeout_seconds)
    _require_mcp(url, reply, token, timeout_seconds)
    if reply.status == 200:
        raise Fault(
            f"{url} keeps no sessions, so each request may start a Vestige process",
            f"Start supergateway with --stateful: {SUPERGATEWAY}",
        )
    again = fetch("POST", url, _PING, token=token, session_id=_NOBODYS_SESSION, timeout_seconds=timeout_seconds)
    if again.status == 400 and _NO_SESSION.encode() in again.body:
        raise Fault(
            f"{url} is supergateway 3, which exits when a request is aborted and leaves processes behind",
            "Install supergateway 4.",
        )


def shake_hands(settings: Settings) -> tuple[str, int]:
    """Opens a session, lists the tools, and ends the session.

    Returns:
        The name and version of the server, and the number of its tools.

    Errors:
        BridgeError: no session could be opened.
    """
    # This imports most of the bridge, which no other check of the doctor needs.
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
        # No state file: the one in the settings may belong to a bridge that runs elsewhere.
        file = SessionFile(None, settings.mcp_url)
        async with upstream, Session(upstream, settings, lambda _: None, file) as session:
            held = await session.connected()
            return f"{held.server_name} {held.server_version}", len(session.catalog.tools)

    return asyncio.run(ask())


def _require_mcp(url: str, reply: HttpReply, token: str, timeout_seconds: float) -> None:
    """Checks that the answer comes from an MCP server; it may be an error.

    Errors:
        TokenRefused: it requires a token, or rejects the one that was sent.
        Fault: it is not from an MCP server.
    """
    if reply.status in (401, 403):
        known = "does not accept the token" if token else "requires a token"
        raise TokenRefused(f"{url} {known} (HTTP {reply.status})", f"Set {_TOKEN} to a token that it accepts.")
    if any(reply.messages()) or _is_native(reply):
        return
    if reply.status == 404:
        _refuse_sse(url, timeout_seconds)
        usual = urlsplit(url).path == "/mcp"
        remedy = (
            "Check which server listens there, and at which path it serves MCP."
            if usual
            else "Correct the path in VESTIGE_MCP_URL; it usually ends in /mcp."
        )
        raise Fault(f"{url} does not exist (HTTP 404)", remedy)
    if reply.status >= 500:
        raise Fault(f"{url} answers {reply}", "Read the log of upstream.")
    raise Fault(f"{url} is not an MCP server ({reply})", "Correct VESTIGE_MCP_URL: another program answers there.")


def _refuse_sse(url: str, timeout_seconds: float) -> None:
    """Recognizes supergateway in its default mode, the HTTP+SSE transport of 2024-11-05.

    Errors:
        Fault: it runs in that mode.
    """
    stream = urlsplit(url)._replace(path="/sse", query="").geturl()
    try:
        is_sse = is_event_stream(stream, timeout_seconds)
    except NoAnswer:
        return
    if is_sse:
        raise Fault(
            f"{url} does not exist, but {stream} does: supergateway runs in its default mode, SSE, "
            "which the bridge does not support",
            f"Start it for Streamable HTTP: {SUPERGATEWAY}",
        )


def _is_native(reply: HttpReply) -> bool:
    """Whether it is the plain text with which Vestige's own HTTP server rejects a request without a session."""
    return reply.status == 400 and any(sentence in reply.body for sentence in _NATIVE)
