"""Request targets: only the forms of RFC 9112 are accepted."""

from __future__ import annotations

import pytest

from vestige_bridge.errors import InvalidMessage
from vestige_bridge.http.request_head import Target, read_target


@pytest.mark.parametrize(
    ("target", "path", "query"),
    [
        (b"/mcp", b"/mcp", b""),
        (b"/a?b=?c", b"/a", b"b=?c"),
        (b"/a?b=?", b"/a", b"b=?"),
        (b"/?", b"/", b""),
        (b"*", b"*", b""),
        (b"http://x/y?z", b"/y", b"z"),
        (b"http://x", b"/", b""),
        (b"http://x?z", b"/", b"z"),
        (b"HTTPS://x:8443/a/../b", b"/a/../b", b""),
        # A container name may have an underscore, and a proxy may use it in a target.
        (b"http://vestige_bridge:8000/mcp", b"/mcp", b""),
        (b"http://_/y?z", b"/y", b"z"),
        (b"http://[2001:db8::1]:8000/mcp", b"/mcp", b""),
        (b"http://x%41/y", b"/y", b""),
    ],
)
def test_a_target_is_split_into_path_and_query(target: bytes, path: bytes, query: bytes) -> None:
    assert read_target(target) == Target(path, query)


@pytest.mark.parametrize(
    "target",
    [
        *(b"", b"mcp", b"?a", b"x:80", b"http:/x", b"http://", b"http:///mcp", b"://x/mcp", b"1http://x/mcp"),
        *(
            b"http://user@x/mcp",
            b"http://user:word@x/mcp",
            b"http://x:port/mcp",
            b"http://x:123456/mcp",
            b"http://[x/mcp",
        ),
        *(b"http://x y/mcp", b"http://x\\mcp", b"http://\xe9/mcp", b"/mcp#a", b"http://x/mcp#a"),
    ],
)
def test_an_invalid_target_is_rejected(target: bytes) -> None:
    with pytest.raises(InvalidMessage):
        read_target(target)
