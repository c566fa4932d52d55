from __future__ import annotations

import logging
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness import until
from vestige_bridge.access.token_file import parse_lines
from vestige_bridge.access.tokens import Tokens
from vestige_bridge.errors import SettingsError
from vestige_bridge.settings import Settings


def tokens_from(path: Path, text: str) -> Tokens:
    path.write_text(text, encoding="utf-8")
    return Tokens.from_settings(Settings.from_environ({"VESTIGE_AUTH_TOKEN_FILE": str(path)}))


def name_of(tokens: Tokens, token: bytes) -> str | None:
    found = tokens.find(token)
    return None if found is None else found.name


@given(st.text(max_size=40), st.binary(max_size=10))
def test_only_tokens_of_the_file_are_accepted(text: str, token: bytes) -> None:
    try:
        tokens = Tokens(parse_lines(text))
    except ValueError:
        return
    assert (tokens.find(token) is not None) is (
        token in [line.split()[-1].encode() for line in text.splitlines() if line.strip()]
    )


def test_two_tokens_of_one_name_are_valid_at_the_same_time() -> None:
    tokens = Tokens(parse_lines("alice old\nalice new\nbob other"))
    assert [name_of(tokens, token) for token in (b"old", b"new", b"other", b"ol", b"")] == [
        "alice",
        "alice",
        "bob",
        None,
        None,
    ]


def test_tokens_without_a_token_are_false() -> None:
    assert not Tokens(())
    assert Tokens(()).find(b"") is None
    assert not Tokens.from_settings(Settings.from_environ({}))


def test_the_token_of_the_environment_belongs_to_default() -> None:
    tokens = Tokens.from_settings(Settings.from_environ({"VESTIGE_AUTH_TOKEN": "abc\n"}))
    assert tokens
    assert name_of(tokens, b"abc") == "default"


def test_a_file_that_changes_takes_effect_without_a_restart(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    tokens = tokens_from(tmp_path / "tokens", "alice old")
    assert name_of(tokens, b"old") == "alice"
    (tmp_path / "tokens").write_text("alice newer\nbob other")
    tokens.read_if_changed()
    assert [name_of(tokens, token) for token in (b"old", b"newer", b"other")] == [None, "alice", "bob"]
    assert [record.getMessage() for record in caplog.records] == ["The token file changed; 2 tokens are valid now"]


def test_a_file_that_is_swapped_as_kubernetes_does_takes_effect(tmp_path: Path) -> None:
    for version in ("old", "new"):
        (tmp_path / version).mkdir()
        (tmp_path / version / "tokens").write_text(version)
    (tmp_path / "data").symlink_to("old")
    tokens = tokens_from(tmp_path / "data" / "tokens", "old")
    (tmp_path / "next").symlink_to("new")
    (tmp_path / "next").rename(tmp_path / "data")
    tokens.read_if_changed()
    assert [name_of(tokens, token) for token in (b"old", b"new")] == [None, "default"]


@pytest.mark.parametrize(
    "damage", [b"", b"alice secret more", b"\xff\xfe", None], ids=["empty", "words", "bytes", "gone"]
)
def test_an_invalid_token_file_keeps_the_previous_tokens(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: bytes | None
) -> None:
    path = tmp_path / "tokens"
    tokens = tokens_from(path, "alice good")
    if damage is None:
        path.unlink()
    else:
        path.write_bytes(damage)
    for _ in range(3):
        tokens.read_if_changed()
        assert name_of(tokens, b"good") == "alice"
    assert not tokens.file_valid
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert "secret" not in record.getMessage()
    path.write_text("bob better")
    tokens.read_if_changed()
    assert tokens.file_valid
    assert [name_of(tokens, token) for token in (b"good", b"better")] == [None, "bob"]


async def test_watching_reports_a_removal_but_not_an_addition(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    removals: list[str] = []
    told: list[int] = []
    path = tmp_path / "tokens"
    tokens = tokens_from(path, "alice old")
    async with tokens.watching(lambda: removals.append("a token")):
        for text in ("alice old\nalice new", "alice new", "", "bob new", "bob:read-only new"):
            path.write_text(text)
            await until(partial(bool, caplog.records))
            caplog.clear()
            told.append(len(removals))
    assert told == [0, 1, 1, 2, 3]


@pytest.mark.parametrize("content", [None, b"", b"\xff", b"a b c"], ids=["missing", "empty", "bytes", "words"])
def test_an_unusable_file_at_the_start_is_a_mistake_in_the_settings(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "tokens"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SettingsError) as refusal:
        Tokens.from_settings(Settings.from_environ({"VESTIGE_AUTH_TOKEN_FILE": str(path)}))
    (problem,) = refusal.value.problems
    assert problem.startswith("VESTIGE_AUTH_TOKEN_FILE: ")
    assert str(path) in problem


def test_the_token_file_is_read_from_the_path_in_the_settings(tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text("alice abc\n")
    tokens = Tokens.from_settings(Settings.from_environ({"VESTIGE_AUTH_TOKEN_FILE": str(tmp_path / "tokens")}))
    assert name_of(tokens, b"abc") == "alice"
