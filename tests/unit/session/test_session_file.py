from __future__ import annotations

import json
import logging
import stat
from pathlib import Path

import pytest

from vestige_bridge.errors import SettingsError
from vestige_bridge.mcp.lifecycle import HeldSession
from vestige_bridge.session.session_file import FILE, SessionFile
from vestige_bridge.settings import Settings

URL = "http://localhost:3100/mcp"
HELD = HeldSession("the-session", "2025-11-25")
WHOLE = {"mcp_url": URL, "session_id": "the-session", "protocol_version": "2025-11-25"}


def test_the_next_start_finds_the_session_that_was_kept(tmp_path: Path) -> None:
    SessionFile(tmp_path, URL).keep(HELD)
    assert SessionFile(tmp_path, URL).left_over == HELD
    assert stat.S_IMODE((tmp_path / FILE).stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


def test_a_session_is_found_even_if_its_handshake_was_not_finished(tmp_path: Path) -> None:
    SessionFile(tmp_path, URL).keep(HeldSession("the-session"))
    assert SessionFile(tmp_path, URL).left_over == HeldSession("the-session")


def test_after_a_clean_end_no_file_is_left(tmp_path: Path) -> None:
    file = SessionFile(tmp_path, URL)
    file.keep(HELD)
    file.forget()
    assert list(tmp_path.iterdir()) == []


def test_a_session_that_was_never_ended_is_not_forgotten(tmp_path: Path) -> None:
    SessionFile(tmp_path, URL).keep(HELD)
    SessionFile(tmp_path, URL).forget()
    assert SessionFile(tmp_path, URL).left_over == HELD


def test_a_new_session_takes_the_place_of_the_last_one(tmp_path: Path) -> None:
    SessionFile(tmp_path, URL).keep(HELD)
    (tmp_path / "session.new").write_text("half of it")
    file = SessionFile(tmp_path, URL)
    file.keep(HeldSession("another", "2025-11-25"))
    assert file.left_over is None
    assert SessionFile(tmp_path, URL).left_over == HeldSession("another", "2025-11-25")
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


def test_a_session_file_of_another_upstream_address_is_ignored(tmp_path: Path) -> None:
    SessionFile(tmp_path, URL).keep(HELD)
    assert SessionFile(tmp_path, "http://elsewhere:3100/mcp").left_over is None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"[1]",
        b"null",
        b"[" * 100_000,
        json.dumps(WHOLE).encode()[:-2],
        json.dumps({"mcp_url": URL}).encode(),
        *(json.dumps(WHOLE | {"session_id": odd}).encode() for odd in (7, "", "a\r\nHost: b", "a" * 2000)),
    ],
)
def test_a_damaged_session_file_is_logged_and_ignored(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    (tmp_path / FILE).write_bytes(content)
    assert SessionFile(tmp_path, URL).left_over is None
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_without_a_directory_nothing_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = SessionFile.from_settings(Settings.from_environ({}))
    file.keep(HELD)
    file.forget()
    assert list(tmp_path.iterdir()) == []


def test_an_upstream_without_sessions_leaves_no_file(tmp_path: Path) -> None:
    SessionFile(tmp_path, URL).keep(HeldSession())
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_disappears_is_logged_and_not_fatal(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    state = tmp_path / "state"
    state.mkdir()
    file = SessionFile(state, URL)
    state.rmdir()
    state.write_text("a file by now")
    file.keep(HELD)
    file.forget()
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2


@pytest.mark.parametrize("directory", ["nowhere", "a-file", "/proc"])
def test_a_directory_that_cannot_be_written_is_a_mistake_in_the_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, directory: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a-file").touch()
    settings = Settings.from_environ({"VESTIGE_BRIDGE_STATE_DIR": directory})
    with pytest.raises(SettingsError) as refused:
        SessionFile.from_settings(settings)
    [problem] = refused.value.problems
    assert problem.startswith(f"VESTIGE_BRIDGE_STATE_DIR: {directory} cannot be used: ")
