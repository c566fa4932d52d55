"""The HTTP headers that the bridge forwards, in each direction, and the parsing of those that it reads.

Invariant: only headers that are named here are forwarded. Names are lowercase bytes, as ASGI gives them.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

ACCEPT: Final = b"accept"
AUTHORIZATION: Final = b"authorization"
CONNECTION: Final = b"connection"
CONTENT_ENCODING: Final = b"content-encoding"
CONTENT_LENGTH: Final = b"content-length"
CONTENT_TYPE: Final = b"content-type"
EXPECT: Final = b"expect"
FORWARDED_FOR: Final = b"x-forwarded-for"
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
TRANSFER_ENCODING: Final = b"transfer-encoding"

JSON: Final = "application/json"

_COMMON_TYPES: Final = frozenset({JSON, "application/xml", "text/event-stream", "text/html", "text/plain"})

_LONGEST_ACCEPT_BYTES: Final = 4_096
"""The rest of a longer ``Accept`` is not read: parsing it would delay all other requests."""

_LONGEST_KEPT_BYTES: Final = 256
"""Longer values are unusual and are not cached."""

_CROSSES_UPSTREAM: Final = (AGENT_ID, TRACEPARENT)
_visible_ascii = re.compile(rb"[\x21-\x7e](?:[\x20-\x7e]{0,254}[\x21-\x7e])?").fullmatch
_request_id = re.compile(rb"[A-Za-z0-9._:+/=-]{1,128}").fullmatch
_traceparent = re.compile(
    rb"(?!ff)[0-9a-f]{2}-(?P<trace_id>(?!0{32})[0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}"
).fullmatch
_host_and_port = re.compile(r"(?:\[(?P<literal>[0-9A-Fa-f:.]+)\]|(?P<name>[A-Za-z0-9._-]+))(?::[0-9]{1,5})?").fullmatch
_base64_value = re.compile(rb"=\?base64\?(.*)\?=").fullmatch
_LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclass(frozen=True, slots=True)
class Accepted:
    """Whether the client accepts each of the two media types of Streamable HTTP (RFC 9110, section 12.5.1)."""

    json: bool
    event_stream: bool


class Headers(dict[bytes, bytes]):
    """The headers of one request: the first value of each lowercase name (RFC 9110, section 5).

    Parameters:
        raw: names and values from ASGI.
    """

    __slots__ = ("_raw",)

    def __init__(self, raw: Sequence[tuple[bytes, bytes]]) -> None:
        super().__init__(reversed(raw))
        self._raw = raw

    def get_all(self, name: bytes) -> list[bytes]:
        """The values of all headers with that name."""
        if name not in self:
            return []
        if len(self) == len(self._raw):
            return [self[name]]
        return [value for key, value in self._raw if key == name]

    def joined(self, name: bytes) -> bytes:
        """The list of the values of all headers with that name (RFC 9110, section 5.3)."""
        return self.get(name, b"") if len(self) == len(self._raw) else b",".join(self.get_all(name))

    def text(self, name: bytes) -> str | None:
        """A header's value if it is visible ASCII of at most 256 characters."""
        value = self.get(name)
        return value.decode("ascii") if value is not None and _visible_ascii(value) else None


def accepted(headers: Headers) -> Accepted:
    """The accepted media types: an event stream only if it is named, JSON unless only an event stream is named."""
    value = headers.joined(ACCEPT)
    return _accepted_often(value) if len(value) <= _LONGEST_KEPT_BYTES else _accepted(value[:_LONGEST_ACCEPT_BYTES])


def _accepted(value: bytes) -> Accepted:
    qualities: dict[bytes, bool] = {}
    for item in value.lower().split(b","):
        name, *parameters = (part.strip() for part in item.split(b";"))
        qualities[name] = all(not re.fullmatch(rb"q\s*=\s*0(\.0*)?", part) for part in parameters)
    event_stream = qualities.get(b"text/event-stream", False)
    # The most specific named range decides.
    ranges = (b"application/json", b"application/*", b"*/*")
    json = next((qualities[name] for name in ranges if name in qualities), False)
    return Accepted(json=json or not event_stream, event_stream=event_stream)


_accepted_often = lru_cache(maxsize=64)(_accepted)
"""Each client sends the same value with every request."""


@lru_cache(maxsize=64)
def media_type(value: bytes) -> str:
    """The media type that a ``Content-Type`` names, lowercase, without its parameters (RFC 9110, section 8.3)."""
    return value.partition(b";")[0].strip().lower().decode("latin-1")


def shown_media_type(value: str) -> str:
    """A media type for logs and errors: one in common use, or a phrase for any other.

    The sender controls the header, so its value is not copied.
    """
    return value if value in _COMMON_TYPES else "another content type" if value else "no content type"


def is_json(headers: Headers) -> bool:
    """Whether the body is declared as ``application/json`` in UTF-8."""
    value = headers.get(CONTENT_TYPE)
    if value is None or value == b"application/json":
        return value is not None
    parameters = [part.strip().lower() for part in value.split(b";")[1:]]
    charsets = [part.partition(b"=")[2].strip(b' "') for part in parameters if part.startswith(b"charset")]
    return media_type(value) == JSON and all(charset in (b"utf-8", b"utf8") for charset in charsets)


def is_compressed(headers: Headers) -> bool:
    """Whether the body is declared as encoded (RFC 9110, section 8.4)."""
    return CONTENT_ENCODING in headers and any(
        value.strip().lower() not in (b"", b"identity") for value in headers.get_all(CONTENT_ENCODING)
    )


def content_length(headers: Headers) -> int | None:
    """The length that the client declares, in bytes; ``None`` without one."""
    value = headers.get(CONTENT_LENGTH)
    return int(value) if value is not None and len(value) < 20 and value.isdigit() else None


def bearer_token(headers: Headers) -> bytes | None:
    """The token of the one ``Authorization: Bearer`` header (RFC 6750, section 2.1); ``None`` without exactly one."""
    values = headers.get_all(AUTHORIZATION)
    if len(values) != 1:
        return None
    scheme, _, token = values[0].strip().partition(b" ")
    return token.strip() or None if scheme.lower() == b"bearer" else None


def request_id(headers: Headers) -> str | None:
    """The client's request id, if it is safe to log."""
    value = headers.get(REQUEST_ID)
    return value.decode("ascii") if value is not None and _request_id(value) else None


def trace_id(traceparent: bytes | None) -> str | None:
    """The trace id in a ``traceparent``, if it is valid (W3C Trace Context, section 3.2.2)."""
    match = None if traceparent is None else _traceparent(traceparent)
    return match["trace_id"].decode("ascii") if match else None


def single_value(headers: Headers, name: bytes) -> str | None:
    """The value of a header that may have only one, decoded as Latin-1; ``None`` if it is missing or empty.

    Equal values count as one, however they are split over lines and commas (RFC 9110, section 5.3). Different ones are
    returned together, separated by commas, which no single value contains.
    """
    value = headers.joined(name).strip(b" \t")
    if b"," in value:
        value = b", ".join(dict.fromkeys(part.strip(b" \t") for part in value.split(b",")))
    return value.decode("latin-1") or None


def mirrors(headers: Headers, name: bytes, value: object) -> bool:
    """Whether a header repeats a part of the body (MCP 2026-07-28, basic/transports).

    A value that a header cannot contain is encoded as ``=?base64?…?=``. Repetitions of the value, on separate lines or
    after a comma, are allowed.

    Parameters:
        headers: the headers of the request.
        name: the name of the header.
        value: the part of the body.
    """
    joined = headers.joined(name).strip(b" \t")
    if not isinstance(value, str) or name not in headers:
        return False
    spelled = re.escape(value.encode(errors="surrogatepass"))
    # A value may contain commas, so the whole value is compared before it is split at commas.
    if re.fullmatch(rb"%b(?:[ \t]*,[ \t]*%b)*" % (spelled, spelled), joined):
        return True
    return all(_decoded(part.strip(b" \t")) == value for part in joined.split(b","))


def _decoded(value: bytes) -> str | None:
    encoded = _base64_value(value)
    try:
        return (base64.b64decode(encoded.group(1), validate=True) if encoded else value).decode()
    except ValueError:
        return None


def spelled_in_header(value: str) -> str:
    """Encodes a value for a header that repeats it; ``mirrors`` decodes it."""
    plain = value.isascii() and value.isprintable() and value == value.strip() and not value.startswith("=?")
    return value if plain else f"=?base64?{base64.b64encode(value.encode()).decode()}?="


def upstream_lines(headers: Headers, principal: str, request_id: str) -> str:
    """The header lines for upstream that depend on the client: principal, request id, and forwarded headers.

    None of the values can contain a line break.
    """
    lines = f"x-vestige-principal: {principal}\r\nx-request-id: {request_id}\r\n"
    for name in _CROSSES_UPSTREAM:
        if name in headers and (value := headers.text(name)) is not None:
            lines += f"{name.decode()}: {value}\r\n"
    return lines


def header_lines(headers: Mapping[str, str]) -> str:
    """The headers as text for the head of a message (RFC 9112, section 5).

    Errors:
        ValueError: one of them contains a line break.
    """
    lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
    if lines.count("\r") != len(headers) or lines.count("\n") != len(headers):
        raise ValueError("a header contains a line break")
    return lines


def origin_allowed(headers: Headers, allowed: frozenset[str]) -> bool:
    """Whether a page of the request's ``Origin`` may send requests (MCP 2025-11-25, basic/transports, security).

    A request without the header is not from a page. A loopback origin may use a loopback host: only a page of this
    machine has such an origin, and DNS rebinding cannot produce such a host.
    """
    origins = headers.get_all(ORIGIN)
    if not origins:
        return True
    origin = origins[0].decode("latin-1")
    if len(origins) > 1:
        return False
    host = (headers.get(HOST) or b"").decode("latin-1")
    return origin in allowed or (_origin_host(origin) in _LOOPBACK and _host_name(host) in _LOOPBACK)


def cors_headers(origin: bytes) -> list[tuple[bytes, bytes]]:
    """The headers that let a page of an allowed origin read the response (Fetch Standard, section 3.3)."""
    return [
        (b"access-control-allow-origin", origin),
        (
            b"access-control-expose-headers",
            b"Mcp-Session-Id, MCP-Protocol-Version, Retry-After, WWW-Authenticate, X-Request-Id",
        ),
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


def _origin_host(origin: str) -> str | None:
    """The host of a serialized origin (RFC 6454, section 6.2); ``None`` if it is not one."""
    scheme, separator, host = origin.partition("://")
    return _host_name(host) if separator and scheme.lower() in ("http", "https") else None


def _host_name(value: str) -> str | None:
    """The host of ``uri-host [ ":" port ]`` in lower case, without brackets; ``None`` for anything else."""
    match = _host_and_port(value)
    return None if match is None else (match["literal"] or match["name"]).lower()
