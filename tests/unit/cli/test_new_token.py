"""`vestige-bridge token new`: the bridge accepts the printed token with the printed entry."""

from __future__ import annotations

import re
import tomllib
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from vestige_bridge.access.permissions import UNRESTRICTED, Permissions
from vestige_bridge.access.token_file import read_tokens
from vestige_bridge.access.tokens import Tokens
from vestige_bridge.cli.parser import main


@pytest.fixture(autouse=True)
def in_a_directory_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


def made(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[str, str]:
    """Returns the token and the entry that the command prints."""
    assert main(["token", "new", *arguments]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    printed = re.fullmatch(
        r"The token of (\S+)\. Store it now, because it is not printed again:\n\n([0-9a-f]{64})\n\n"
        r"The entry for tokens\.toml:\n\n(\[\[token\]\]\n(?:.+\n)+)",
        shown.out,
    )
    assert printed is not None, shown.out
    assert printed[1] == arguments[0]
    return printed[2], printed[3]


@pytest.mark.parametrize(
    ("arguments", "permissions"),
    [
        ([], UNRESTRICTED),
        (["--read-only"], Permissions(read_only=True)),
        (["--tools", "recall", "memory_*"], Permissions(tools=("memory_*", "recall"))),
        (["--tools", "recall", "--tools", "memory_*"], Permissions(tools=("memory_*", "recall"))),
        (
            ["--tools", 'a"]\nread_only = true #', "b\\", "\u00e9"],
            Permissions(tools=('a"]\nread_only = true #', "b\\", "é")),
        ),
        (["--no-resources"], Permissions(resources=False)),
        (["--max-in-flight", "32", "--rate", "120"], Permissions(max_in_flight=32, rate=120)),
        (
            ["--read-only", "--no-resources", "--rate", "1", "--max-in-flight", "1", "--tools", "*"],
            Permissions(read_only=True, resources=False, rate=1, max_in_flight=1, tools=("*",)),
        ),
    ],
)
def test_its_entry_in_a_file_admits_its_token_with_those_rights(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, arguments: list[str], permissions: Permissions
) -> None:
    token, entry = made(capsys, "nightly-job", *arguments)
    other, another = made(capsys, "other")
    (tmp_path / "tokens.toml").write_text(f"{entry}\n{another}")
    tokens = Tokens(read_tokens(tmp_path / "tokens.toml"))
    found = tokens.find(token.encode())
    assert found is not None
    assert (found.name, found.permissions, found.expires_at) == ("nightly-job", permissions, None)
    assert (found.permissions is UNRESTRICTED) is (permissions == UNRESTRICTED)
    found = tokens.find(other.encode())
    assert found is not None
    assert (found.name, found.permissions) == ("other", UNRESTRICTED)
    assert tokens.find(b"") is None


def test_a_token_is_new_each_time_and_in_no_entry(capsys: pytest.CaptureFixture[str]) -> None:
    pairs = [made(capsys, "alice") for _ in range(3)]
    assert len({token for token, _ in pairs}) == 3
    assert not any(token in entry for token, entry in pairs)


@pytest.mark.parametrize(
    ("spelled", "expires"),
    [
        ("2999-01-31", datetime(2999, 1, 31, tzinfo=UTC)),
        ("2999-01-31T12:00:00Z", datetime(2999, 1, 31, 12, tzinfo=UTC)),
        ("2999-01-31T12:00:00+02:00", datetime(2999, 1, 31, 10, tzinfo=UTC)),
    ],
)
def test_the_expiry_may_be_a_date_or_a_time(
    capsys: pytest.CaptureFixture[str], spelled: str, expires: datetime
) -> None:
    _, entry = made(capsys, "alice", "--expires", spelled)
    assert tomllib.loads(entry)["token"][0]["expires"] == expires


@pytest.mark.parametrize(
    ("spelled", "lasts"),
    [("90d", timedelta(days=90)), ("12h", timedelta(hours=12)), ("5m", timedelta(minutes=5))],
)
def test_the_expiry_may_be_relative_to_now(capsys: pytest.CaptureFixture[str], spelled: str, lasts: timedelta) -> None:
    before = datetime.now(UTC).replace(microsecond=0)
    _, entry = made(capsys, "alice", "--expires", spelled)
    expires = tomllib.loads(entry)["token"][0]["expires"]
    assert before + lasts <= expires <= datetime.now(UTC) + lasts


@pytest.mark.parametrize(
    ("spelled", "why"),
    [
        *(
            (text, "is not a time such as")
            for text in ("soon", "", "0d", "-1d", "1y", "90", "1.5d", "9999999d", "2027-02-30")
        ),
        ("0001-01-01T00:00:00+23:59", "is not a time such as"),
        ("9999-12-31T23:59:59-23:59", "is not a time such as"),
        ("2001-01-01", "is in the past"),
    ],
)
def test_an_invalid_or_past_expiry_is_exit_status_2(capsys: pytest.CaptureFixture[str], spelled: str, why: str) -> None:
    with pytest.raises(SystemExit) as exited:
        main(["token", "new", "alice", f"--expires={spelled}"])
    assert exited.value.code == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert why in shown.err


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["al ice"], 'entry 1 needs a "name"'),
        (["alice:read-only"], 'entry 1 needs a "name"'),
        ([""], 'entry 1 needs a "name"'),
        (["x" * 65], 'entry 1 needs a "name"'),
        (["alice", "--rate", "0"], '"rate" of entry 1 (alice) has to be a whole number'),
        (["alice", "--rate", "-5"], '"rate" of entry 1 (alice) has to be a whole number'),
        (["alice", "--max-in-flight", "0"], '"max_in_flight" of entry 1 (alice) has to be a whole number'),
        (["alice", "--tools", ""], '"tools" of entry 1 (alice) has to be a list'),
        (["alice", "--tools", "\x7f"], "it is not TOML"),
        (["alice", "--tools", "caf\udce9"], "an argument is not UTF-8"),
    ],
)
def test_an_entry_that_the_bridge_would_not_accept_is_one_sentence_and_exit_status_2(
    capsys: pytest.CaptureFixture[str], arguments: list[str], why: str
) -> None:
    assert main(["token", "new", *arguments]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("The bridge would not accept this entry: ")
    assert why in shown.err
    assert len(shown.err.splitlines()) == 1


@pytest.mark.parametrize("arguments", [[], ["new"], ["old"], ["new", "alice", "bob"], ["new", "alice", "--rate", "x"]])
def test_invalid_arguments_of_token_are_exit_status_2(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as exited:
        main(["token", *arguments])
    assert exited.value.code == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "usage: vestige-bridge" in shown.err
