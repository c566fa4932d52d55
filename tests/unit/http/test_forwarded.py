"""The client address of a rejected request: only addresses from trusted proxies are used."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vestige_bridge.http.forwarded import MAX_HOPS, client_address
from vestige_bridge.http.headers import Headers
from vestige_bridge.settings import Network

TRUSTED: tuple[Network, ...] = tuple(map(ipaddress.ip_network, ("10.0.0.0/8", "fd00::/8")))


def address_from(peer: str | None, *forwarded: str, trusted: tuple[Network, ...] = TRUSTED) -> str | None:
    return client_address(Headers([(b"x-forwarded-for", it.encode()) for it in forwarded]), peer, trusted)


@pytest.mark.parametrize(
    ("peer", "forwarded", "address"),
    [
        ("203.0.113.9", (), "203.0.113.9"),
        ("203.0.113.9", ("198.51.100.1",), "203.0.113.9"),
        ("10.0.0.1", ("198.51.100.1",), "198.51.100.1"),
        ("10.0.0.1", ("6.6.6.6, 198.51.100.1",), "198.51.100.1"),
        ("10.0.0.1", ("6.6.6.6, 198.51.100.1, 10.2.2.2",), "198.51.100.1"),
        ("10.0.0.1", ("198.51.100.1", "10.2.2.2"), "198.51.100.1"),
        ("10.0.0.1", (), "10.0.0.1"),
        ("10.0.0.1", ("10.9.9.9",), "10.9.9.9"),
        ("10.0.0.1", ("6.6.6.6, nonsense\n",), "10.0.0.1"),
        ("::ffff:10.0.0.1", ("198.51.100.1:4711",), "198.51.100.1"),
        ("fd00::1", ("[2001:db8::7]:80",), "2001:db8::7"),
        ("fd00::1", ("2001:db8::7",), "2001:db8::7"),
        ("fe80::1%eth0", (), "fe80::1"),
        ("/run/socket", ("198.51.100.1",), None),
        (None, ("198.51.100.1",), None),
    ],
)
def test_the_client_address_is_the_last_one_that_is_not_a_trusted_proxy(
    peer: str | None, forwarded: tuple[str, ...], address: str | None
) -> None:
    assert address_from(peer, *forwarded) == address


def test_without_trusted_proxies_the_peer_is_the_client_address() -> None:
    assert address_from("10.0.0.1", "198.51.100.1", trusted=()) == "10.0.0.1"


def test_the_number_of_addresses_that_are_read_is_limited() -> None:
    chain = ["198.51.100.1", *["10.1.1.1"] * MAX_HOPS]
    assert address_from("10.0.0.1", ", ".join(chain)) == "10.1.1.1"
    assert address_from("10.0.0.1", ", ".join(chain[:-1])) == "198.51.100.1"


@given(st.text(), st.lists(st.text(st.characters(max_codepoint=255))))
def test_any_forwarded_header_gives_a_valid_address_or_none(peer: str, forwarded: list[str]) -> None:
    headers = Headers([(b"x-forwarded-for", it.encode("latin-1")) for it in forwarded])
    address = client_address(headers, peer, (ipaddress.ip_network("0.0.0.0/0"), ipaddress.ip_network("::/0")))
    assert address is None or str(ipaddress.ip_address(address)) == address
