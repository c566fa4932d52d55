"""The head of an HTTP/1.1 request: the checks of RFC 9112 that the parser does not make.

Invariant: a head whose framing is ambiguous is rejected. The parser (llhttp, by httptools) rejects obsolete line
folding, bare CR and LF, repeated and malformed lengths, and a length beside a transfer coding; the rest is here.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from vestige_bridge.errors import InvalidMessage, MethodNotAllowed, UnsupportedTransferCoding
from vestige_bridge.http.headers import CONTENT_LENGTH, EXPECT, HOST, TRANSFER_ENCODING

MAX_FIELDS: Final = 128
"""Maximum number of header fields in a head: each uses more memory than its bytes."""

_host = re.compile(rb"[A-Za-z0-9._~!$&'()*+,;=%:\[\]-]*").fullmatch
"""The characters of ``uri-host [ ":" port ]`` (RFC 9110, section 7.2)."""

_absolute = re.compile(
    rb"[A-Za-z][A-Za-z0-9+.-]*://"
    rb"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~!$&'()*+,;=%-]+)(?::[0-9]{0,5})?"
    rb"(?P<path>/[^?]*)?(?:\?(?P<query>.*))?",
    re.DOTALL,
).fullmatch
"""A target in the absolute form, without user information (RFC 9112, section 3.2.2; RFC 9110, section 4.2.4)."""


class Framing(NamedTuple):
    """The framing of a request's body.

    Attributes:
        length: the length of the body in bytes; ``None`` if it is chunked.
        expects_continue: whether the client waits for ``100 Continue`` before it sends the body.
    """

    length: int | None
    expects_continue: bool

    @property
    def header(self) -> bytes:
        """The header field with this framing."""
        return b"Transfer-Encoding: chunked" if self.length is None else b"Content-Length: %d" % self.length


WITHOUT_BODY: Final = Framing(0, expects_continue=False)


def read_framing(fields: list[tuple[bytes, bytes]], method: bytes, version: str) -> Framing:
    """Checks the fields of a head and reads the framing of the body (RFC 9112, sections 3.2 and 6).

    Parameters:
        fields: names in lower case, and values.
        method: the method.
        version: ``1.1`` or ``1.0``.

    Errors:
        InvalidMessage: the head violates RFC 9112.
        UnsupportedTransferCoding: the body has another transfer coding than ``chunked``.
        MethodNotAllowed: the method is CONNECT.
    """
    length, hosts, codings, expects_continue = 0, 0, b"", False
    for name, value in fields:
        if name == HOST:
            hosts += 1
            if not _host(value):
                raise InvalidMessage("The Host header is not a host and a port.")
        elif name == CONTENT_LENGTH:
            length = int(value)
        elif name == TRANSFER_ENCODING:
            codings = b"%b, %b" % (codings, value) if codings else value
        elif name == EXPECT:
            expects_continue = value.lower() == b"100-continue" and version != "1.0"
    if method == b"CONNECT":
        raise MethodNotAllowed("The bridge does not support CONNECT.", headers={"allow": "GET, POST, DELETE"})
    if version not in ("1.1", "1.0"):
        raise InvalidMessage("Use HTTP/1.1.")
    if hosts > 1 or (hosts == 0 and version == "1.1"):
        raise InvalidMessage("An HTTP/1.1 request must have exactly one Host header.")
    if codings:
        _require_chunked(codings, version)
        return Framing(None, expects_continue)
    return Framing(length, expects_continue) if length else WITHOUT_BODY


def _require_chunked(codings: bytes, version: str) -> None:
    """Rejects every transfer coding except one final ``chunked`` (RFC 9112, section 6.1)."""
    if version == "1.0":
        raise InvalidMessage("HTTP/1.0 has no Transfer-Encoding.")
    if codings.lower() != b"chunked":
        raise UnsupportedTransferCoding(
            "Send the body with Content-Length, or with `Transfer-Encoding: chunked` alone."
        )


class Target(NamedTuple):
    """A parsed request target (RFC 9112, section 3.2).

    Attributes:
        path: the path as it was sent.
        query: the query without its question mark.
    """

    path: bytes
    query: bytes


def read_target(target: bytes) -> Target:
    """Parses a request target; the host of an absolute form is ignored.

    Errors:
        InvalidMessage: it is not valid, or has a fragment.
    """
    if b"#" in target:
        raise InvalidMessage("The request target must not have a fragment.")
    if target.startswith(b"/"):
        path, _, query = target.partition(b"?")
        return Target(path, query)
    if target == b"*":
        return Target(target, b"")
    absolute = _absolute(target)
    if absolute is None:
        raise InvalidMessage("The request target is neither a path nor a URL.")
    return Target(absolute["path"] or b"/", absolute["query"] or b"")
