from __future__ import annotations

import pytest

from vestige_bridge.errors import UnsupportedProtocolVersion
from vestige_bridge.jsonrpc import parse_message
from vestige_bridge.modern import LEGACY_VERSIONS, require_legacy


def declaring(version: str, head: str = '"id":"a",') -> str:
    meta = f'{{"io.modelcontextprotocol/protocolVersion":{version}}}'
    return f'{{"jsonrpc":"2.0",{head}"method":"tools/list","params":{{"_meta":{meta}}}}}'


PLAIN = '{"jsonrpc":"2.0","id":"a","method":"tools/list"}'


@pytest.mark.parametrize("version", LEGACY_VERSIONS)
def test_a_legacy_version_passes_wherever_it_is_declared(version: str) -> None:
    require_legacy(parse_message(PLAIN), version)
    require_legacy(parse_message(declaring(f'"{version}"')), None)


def test_a_message_that_declares_no_version_passes() -> None:
    require_legacy(parse_message(PLAIN), None)


@pytest.mark.parametrize(
    ("text", "header", "requested"),
    [
        (PLAIN, "2026-07-28", "2026-07-28"),
        (PLAIN, "", ""),
        (PLAIN, "2025-06-18, 2025-03-26", "2025-06-18, 2025-03-26"),
        (PLAIN, "x" * 200, "x" * 64),
        (declaring('"2026-07-28"'), None, "2026-07-28"),
        (declaring(r'"2026-07-2\u0038"'), "2025-06-18", "2026-07-28"),
        (declaring("{}"), None, "{}"),
        (declaring("null"), None, "None"),
    ],
)
def test_another_version_is_refused_with_those_that_are_spoken(text: str, header: str | None, requested: str) -> None:
    with pytest.raises(UnsupportedProtocolVersion) as refusal:
        require_legacy(parse_message(text), header)
    assert refusal.value.data == {"supported": list(LEGACY_VERSIONS), "requested": requested}
    assert refusal.value.request_id == '"a"'


def test_a_notification_that_is_refused_has_no_id() -> None:
    with pytest.raises(UnsupportedProtocolVersion) as refusal:
        require_legacy(parse_message(declaring('"2026-07-28"', head="")), None)
    assert refusal.value.request_id is None
