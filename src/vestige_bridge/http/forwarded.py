"""The address of a client: the peer of its connection, or the address from a trusted proxy.

Invariant: only the entries that trusted proxies added to the client's header are trusted, and the result is always an
address.
"""

from __future__ import annotations

import ipaddress

from vestige_bridge.http.headers import FORWARDED_FOR, Headers
from vestige_bridge.settings import Network

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

MAX_HOPS = 16
"""How many addresses of ``X-Forwarded-For`` are read, from its end."""


def client_address(headers: Headers, peer: str | None, trusted: tuple[Network, ...]) -> str | None:
    """The address of the client: the last one in ``X-Forwarded-For`` that is not a trusted proxy's.

    Parameters:
        headers: the headers of the request.
        peer: the address at the other end of the connection.
        trusted: the proxies whose ``X-Forwarded-For`` is trusted.

    Returns:
        The address; ``None`` if the connection has none.
    """
    address = _parse(peer or "")
    if address is None:
        return None
    hops = headers.joined(FORWARDED_FOR).decode("latin-1").split(",")
    for hop in reversed(hops[-MAX_HOPS:]):
        if not any(address in network for network in trusted):
            break
        before = _parse(hop.strip())
        if before is None:
            break
        address = before
    return str(address)


def _parse(text: str) -> Address | None:
    """The address in a text, with or without a port; an IPv4-mapped IPv6 address becomes the IPv4 address."""
    host = text
    if text.startswith("["):
        host = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        host = text.partition(":")[0]
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address
