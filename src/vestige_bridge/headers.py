"""What may cross the bridge in HTTP headers, in each direction, and how the ones we read are read.

The law of this room: nothing crosses unless it is named here. Names are lowercase bytes, as ASGI gives them.
"""

from __future__ import annotations

import base64
import re
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

ACCEPT: Final = b"accept"
AUTHORIZATION: Final = b"authorization"
CONTENT_ENCODING: Final = b"content-encoding"
CONTENT_LENGTH: Final = b"content-length"
CONTENT_TYPE: Final = b"content-type"
HOST: Final = b"host"
ORIGIN: Final = b"origin"
PROTOCOL_VERSION: Final = b"mcp-protocol-version"
SESSION_ID: Final = b"mcp-session-id"
LAST_EVENT_ID: Final = b"last-event-id"
METHOD: Final = b"mcp-method"
NAME: Final = b"mcp-name"
AGENT_ID: Final = b"x-agent-id"
PRINCIPAL: Final = b"x-vestige-principal"
REQUEST_ID: Final = b"x-request-id"
TRACEPARENT: Final = b"traceparent"

RawHeaders = Iterable[tuple[bytes, bytes]]

_CROSSES_UPSTREAM: Final = (AGENT_ID, TRACEPARENT)
_visible_ascii = re.compile(rb"[\x21-\x7e](?:[\x20-\x7e]{0,254}[\x21-\x7e])?").fullmatch
_request_id = re.compile(rb"[A-Za-z0-9._:+/=-]{1,128}").fullmatch
_traceparent = re.compile(
    rb"(?!ff)[0-9a-f]{2}-(?P<trace_id>(?!0{32})[0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}"
).fullmatch
_base64_value = re.compile(rb"=\?base64\?(.*)\?=").fullmatch
_LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclass(frozen=True, slots=True)
class Accepted:
    """The two media types of a Streamable HTTP answer, and whether the client takes them (RFC 9110, section 12.5.1)."""

    json: bool
    event_stream: bool


def get(headers: RawHeaders, name: bytes) -> bytes | None:
    """The value of the first header of that name."""
    for key, value in headers:
        if key == name:
            return value
    return None


def get_all(headers: RawHeaders, name: bytes) -> list[bytes]:
    """The values of all headers of that name."""
    return [value for key, value in headers if key == name]


def accepted(headers: RawHeaders) -> Accepted:
    """What the client takes: an event stream only if it names it, JSON unless an event stream is all it names."""
    qualities: dict[bytes, bool] = {}
    for item in b",".join(get_all(headers, ACCEPT)).lower().split(b","):
        media_type, *parameters = (part.strip() for part in item.split(b";"))
        qualities[media_type] = all(not re.fullmatch(rb"q\s*=\s*0(\.0*)?", part) for part in parameters)
    event_stream = qualities.get(b"text/event-stream", False)
    # The most specific range that is named decides.
    ranges = (b"application/json", b"application/*", b"*/*")
    json = next((qualities[name] for name in ranges if name in qualities), False)
    return Accepted(json=json or not event_stream, event_stream=event_stream)


def is_json(headers: RawHeaders) -> bool:
    """Whether the body is declared as ``application/json`` in UTF-8."""
    value = get(headers, CONTENT_TYPE)
    if value is None:
        return False
    media_type, *parameters = (part.strip().lower() for part in value.split(b";"))
    charsets = [part.partition(b"=")[2].strip(b' "') for part in parameters if part.startswith(b"charset")]
    return media_type == b"application/json" and all(charset in (b"utf-8", b"utf8") for charset in charsets)


def is_compressed(headers: RawHeaders) -> bool:
    """Whether the body is declared to be anything but itself (RFC 9110, section 8.4)."""
    return any(value.strip().lower() not in (b"", b"identity") for value in get_all(headers, CONTENT_ENCODING))


def content_length(headers: RawHeaders) -> int | None:
    """The length that the client declares, in bytes; ``None`` without one."""
    value = get(headers, CONTENT_LENGTH)
    return int(value) if value is not None and len(value) < 20 and value.isdigit() else None


def bearer_token(headers: RawHeaders) -> bytes | None:
    """The token of the one ``Authorization: Bearer`` header (RFC 6750, section 2.1); ``None`` without exactly one."""
    values = get_all(headers, AUTHORIZATION)
    if len(values) != 1:
        return None
    scheme, _, token = values[0].strip().partition(b" ")
    return token.strip() or None if scheme.lower() == b"bearer" else None


def request_id(headers: RawHeaders) -> str:
    """The request id that the client chose, if it is fit for a log; otherwise a new one."""
    value = get(headers, REQUEST_ID)
    return value.decode("ascii") if value is not None and _request_id(value) else secrets.token_hex(8)


def trace_id(headers: RawHeaders) -> str | None:
    """The id of the trace that the request belongs to (W3C Trace Context, section 3.2.2)."""
    value = get(headers, TRACEPARENT)
    match = None if value is None else _traceparent(value)
    return match["trace_id"].decode("ascii") if match else None


def text(headers: RawHeaders, name: bytes) -> str | None:
    """A header's value when it is visible ASCII of at most 256 characters."""
    value = get(headers, name)
    return value.decode("ascii") if value is not None and _visible_ascii(value) else None


def mirrored(headers: RawHeaders, name: bytes) -> str | None:
    """The value of a header that mirrors a part of the body (MCP 2026-07-28, basic/transports).

    What cannot stand in a header comes as ``=?base64?…?=``. ``None`` when it is missing, there twice, or spoilt.
    """
    values = get_all(headers, name)
    if len(values) != 1:
        return None
    value = values[0].strip(b" \t")
    encoded = _base64_value(value)
    try:
        return (base64.b64decode(encoded.group(1), validate=True) if encoded else value).decode()
    except ValueError:
        return None


def upstream_headers(headers: RawHeaders, principal: str, request_id: str) -> dict[str, str]:
    """What of a client's request the MCP endpoint sees besides the body: who asks, as far as we know."""
    crossing = {name.decode(): value for name in _CROSSES_UPSTREAM if (value := text(headers, name)) is not None}
    return crossing | {PRINCIPAL.decode(): principal, REQUEST_ID.decode(): request_id}


def origin_allowed(headers: RawHeaders, allowed: frozenset[str]) -> bool:
    """Whether a page of the request's ``Origin`` may call us (MCP 2025-11-25, basic/transports, security warning).

    Without the header it is no page that calls. A loopback origin may call a loopback host: only a page of this very
    machine has the one, and DNS rebinding cannot make the other.
    """
    origins = get_all(headers, ORIGIN)
    if not origins:
        return True
    origin = origins[0].decode("latin-1")
    if len(origins) > 1:
        return False
    return origin in allowed or (
        _hostname(origin) in _LOOPBACK and _hostname("//" + (get(headers, HOST) or b"").decode("latin-1")) in _LOOPBACK
    )


def cors_headers(origin: bytes) -> list[tuple[bytes, bytes]]:
    """What lets a page of an allowed origin read the answer (Fetch Standard, section 3.3)."""
    return [
        (b"access-control-allow-origin", origin),
        (b"access-control-expose-headers", b"Mcp-Session-Id, MCP-Protocol-Version, X-Request-Id"),
        (b"vary", b"Origin"),
    ]


PREFLIGHT_HEADERS: Final[Mapping[str, str]] = {
    "access-control-allow-methods": "GET, POST, DELETE",
    "access-control-allow-headers": (
        "Authorization, Content-Type, Accept, Last-Event-ID, MCP-Protocol-Version, Mcp-Session-Id, "
        "Mcp-Method, Mcp-Name, X-Agent-Id, X-Request-Id, traceparent"
    ),
    "access-control-max-age": "600",
}


def _hostname(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None
