"""The addresses on which the bridge listens."""

from __future__ import annotations

import socket

import pytest

from vestige_bridge.server.process import _listen


def test_without_ipv6_every_ipv4_address_is_listened_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "has_dualstack_ipv6", lambda: False)
    with _listen("::", 0, "VESTIGE_BRIDGE_PORT") as listener:
        assert (listener.family, listener.getsockname()[0]) == (socket.AF_INET, "0.0.0.0")


def test_a_port_in_use_is_reported_with_the_setting_that_chose_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=rf"^Cannot listen on 127.0.0.1 port {port}: Address already in use. Choose"):
            _listen("127.0.0.1", port, "VESTIGE_BRIDGE_PORT")
