"""A walk from the settings to Vestige that names the layer that fails and what to do about it.

The law of this room: it asks through the bridge that runs and starts no second Vestige. Only where no bridge runs does
it open a session of its own, and ends it again.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from vestige_bridge.errors import BridgeError, SettingsError
from vestige_bridge.settings import Settings
from vestige_bridge.tokens import Tokens

TIMEOUT_SECONDS: Final = 10.0

_EVERYWHERE: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104
_PING: Final = b'{"jsonrpc":"2.0","id":"doctor","method":"ping"}'


class Fault(Exception):
    """A layer that fails: what was found, and what to do."""

    def __init__(self, found: str, remedy: str) -> None:
        super().__init__(f"{found}. {remedy}")


@dataclass(frozen=True, slots=True)
class _Reply:
    status: int
    content_type: str
    body: bytes

    def json(self) -> Mapping[str, Any]:
        """The members of a JSON object; none if it is something else."""
        try:
            value = json.loads(self.body)
        except ValueError:
            return {}
        return value if isinstance(value, dict) else {}


def run(environ: Mapping[str, str], *, quiet: bool) -> int:
    """Examines each layer in turn and prints a line for each.

    Parameters:
        environ: environment variables.
        quiet: only ask the bridge for its deep health, and print nothing.

    Returns:
        The exit status: 0 when all is well, otherwise 1.
    """
    try:
        settings = Settings.from_environ(environ)
        Tokens.from_settings(settings)
    except SettingsError as error:
        if not quiet:
            for problem in error.problems:
                print(f"✗ settings      {problem}")
        return 1
    bridge = f"http://{_authority(settings)}"
    if quiet:
        return 0 if _healthy(bridge) else 1
    print(f"✓ settings      bridge on {bridge}, MCP endpoint {settings.mcp_url}")
    bridge_runs = _examine("bridge", lambda: _examine_bridge(bridge))
    endpoint_answers = _examine("MCP endpoint", lambda: _examine_endpoint(settings.mcp_url))
    vestige_answers = _examine(
        "Vestige", lambda: _examine_through_bridge(bridge) if bridge_runs else _examine_alone(settings)
    )
    return 0 if bridge_runs and endpoint_answers and vestige_answers else 1


def _examine(layer: str, examination: Callable[[], str]) -> bool:
    started_at = time.perf_counter()
    try:
        found, mark = examination(), "✓"
    except Fault as fault:
        found, mark = str(fault), "✗"
    print(f"{mark} {layer:13} {found} ({(time.perf_counter() - started_at) * 1000:.0f} ms)")
    return mark == "✓"


def _examine_bridge(bridge: str) -> str:
    reply = _ask("GET", f"{bridge}/livez", "Start it with `vestige-bridge`, or correct VESTIGE_BRIDGE_HOST and _PORT")
    if reply.status != 200 or reply.json().get("status") != "alive":
        raise Fault(f"something else than the bridge answers on {bridge}", "Correct VESTIGE_BRIDGE_PORT")
    ready = _ask("GET", f"{bridge}/readyz", "Look at its log")
    if ready.status == 500:
        raise Fault("authentication is not configured", "Set VESTIGE_AUTH_TOKEN where the bridge runs")
    return f"{bridge} answers, and is {ready.json().get('state', 'of unknown state')}"


def _examine_endpoint(url: str) -> str:
    """A ping without a session: refused or answered, it proves that MCP is spoken there, and starts no process."""
    reply = _ask("POST", url, "Start supergateway or Vestige, or correct VESTIGE_MCP_URL", _PING)
    if reply.status == 404:
        raise Fault(f"{url} is not there (HTTP 404)", "Correct the path in VESTIGE_MCP_URL; it usually ends in /mcp")
    if reply.status >= 500:
        raise Fault(f"{url} fails with HTTP {reply.status}", "Look at its log")
    if reply.json().get("jsonrpc") != "2.0" and reply.status not in (401, 403):
        raise Fault(f"{url} does not speak MCP (HTTP {reply.status}, {reply.content_type})", "Correct VESTIGE_MCP_URL")
    return f"{url} answers"


def _examine_through_bridge(bridge: str) -> str:
    reply = _ask("GET", f"{bridge}/health", "Look at the bridge's log")
    health = reply.json()
    if reply.status != 200:
        reason = health.get("reason") or health.get("status") or f"HTTP {reply.status}"
        raise Fault(f"the bridge cannot reach it: {reason}", "Look at its log; the bridge reconnects by itself")
    vestige = health["vestige"]
    return f"{vestige['name']} {vestige['version']} lists {health['tools']} tools"


def _examine_alone(settings: Settings) -> str:
    """A handshake of our own, where there is no bridge to ask."""
    from vestige_bridge.session import Session  # noqa: PLC0415
    from vestige_bridge.state import SessionFile  # noqa: PLC0415
    from vestige_bridge.upstream import Upstream  # noqa: PLC0415

    async def shake_hands() -> str:
        upstream = Upstream(
            settings.mcp_url,
            token=settings.upstream_token,
            connect_timeout_seconds=settings.connect_timeout_seconds,
            max_answer_bytes=settings.max_answer_bytes,
        )
        async with (
            upstream,
            Session(upstream, settings, lambda _: None, SessionFile(None, settings.mcp_url)) as session,
        ):
            held = await session.connected()
            return f"{held.server_name} {held.server_version} lists {len(session.tools)} tools"

    try:
        return asyncio.run(shake_hands())
    except BridgeError as error:
        raise Fault(str(error).rstrip("."), "Look at the log of supergateway and Vestige") from error


def _healthy(bridge: str) -> bool:
    try:
        return _ask("GET", f"{bridge}/health", "").status == 200
    except Fault:
        return False


def _ask(method: str, url: str, remedy: str, body: bytes | None = None) -> _Reply:
    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=TIMEOUT_SECONDS)
    try:
        connection.request(
            method,
            (parts.path or "/") + (f"?{parts.query}" if parts.query else ""),
            body,
            {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"},
        )
        response = connection.getresponse()
        return _Reply(response.status, response.headers.get_content_type(), response.read(1_000_000))
    except (OSError, http.client.HTTPException) as error:
        why = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise Fault(f"{url} cannot be reached: {why}", remedy) from error
    finally:
        connection.close()


def _authority(settings: Settings) -> str:
    host = _EVERYWHERE.get(settings.host, settings.host)
    return f"[{host}]:{settings.port}" if ":" in host else f"{host}:{settings.port}"
