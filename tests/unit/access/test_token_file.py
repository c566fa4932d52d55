"""Both formats of the token file, and the rejection of invalid files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from vestige_bridge.access.permissions import READ_ONLY, UNRESTRICTED, Permissions
from vestige_bridge.access.token_file import (
    MAX_FILE_BYTES,
    MAX_PATTERNS,
    MOST,
    Token,
    digest_of,
    parse_lines,
    parse_toml,
    read_tokens,
)
from vestige_bridge.logs import timestamp

SECRET = "s3cret-0123456789-abcdefghij"
HASH = hashlib.sha256(SECRET.encode()).hexdigest()
ENTRY = f'[[token]]\nname = "alice"\nsha256 = "{HASH}"\n'
OTHER = f'[[token]]\nname = "bob"\ntoken = "{SECRET}-of-bob"\n'


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("abc", (Token.of_value("default", b"abc"),)),
        ("\n  abc \r\n\n", (Token.of_value("default", b"abc"),)),
        ("alice abc\nbob\tdef\n", (Token.of_value("alice", b"abc"), Token.of_value("bob", b"def"))),
        ("alice old\nalice new", (Token.of_value("alice", b"old"), Token.of_value("alice", b"new"))),
        ("bob abc\neve:read-only def", (Token.of_value("bob", b"abc"), Token.of_value("eve", b"def", READ_ONLY))),
        ("abc:def", (Token.of_value("default", b"abc:def"),)),
        ("eve a:read-only", (Token.of_value("eve", b"a:read-only"),)),
    ],
)
def test_a_file_holds_one_token_a_line_with_or_without_a_name(text: str, tokens: tuple[Token, ...]) -> None:
    assert parse_lines(text) == tokens


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no token"),
        (" \n\n", "no token"),
        ("good\nalice secret more", "line 2 holds more"),
        ("al/ice secret", "name in line 1"),
        ("x" * 65 + " secret", "name in line 1"),
        ("\n\nsécret", "token in line 3"),
        ("alice sec\x00ret", "token in line 1"),
        (":read-only secret", "name in line 1"),
        ("alice:read-write secret", "name in line 1"),
        ("alice:read-only:read-only secret", "name in line 1"),
        ("alice:READ-ONLY secret", "name in line 1"),
        ("good\nsecret:read-only", "line 2 holds a name that ends in :read-only and no token"),
        ("alice:read-only good\nalice secret", "name in line 2 occurs both with and without"),
        ("alice secret\nalice:read-only secret", "token in line 2 belongs to another name"),
        ("alice secret\nbob secret", "token in line 2 belongs to another name"),
    ],
)
def test_an_invalid_line_of_the_token_file_is_reported_by_number_without_its_text(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why) as refusal:
        parse_lines(text)
    assert "secret" not in str(refusal.value)


def test_an_entry_sets_all_properties_of_a_token() -> None:
    (token,) = parse_toml(
        f"""
        [[token]]
        name = "nightly-job"
        sha256 = "{HASH.upper()}"
        expires = 2027-01-31T01:00:00+01:00
        read_only = true
        tools = ["recall", "memory_*"]
        resources = false
        max_in_flight = 32
        rate = 120
        """
    )
    assert token == Token(
        name="nightly-job",
        digest=digest_of(SECRET.encode()),
        permissions=Permissions(
            read_only=True, tools=("memory_*", "recall"), resources=False, max_in_flight=32, rate=120
        ),
        expires_at=datetime(2027, 1, 31, tzinfo=UTC).timestamp(),
    )
    assert token.value == b""


def test_an_entry_without_restrictions_is_unrestricted() -> None:
    (token,) = parse_toml(ENTRY)
    assert token.permissions is UNRESTRICTED
    assert token.expires_at is None
    assert not token.expired(float("inf"))
    (token,) = parse_toml(f"{ENTRY}read_only = false\nresources = true\n")
    assert token.permissions is UNRESTRICTED


def test_an_entry_with_a_token_equals_the_entry_with_its_hash() -> None:
    (token,) = parse_toml(f'[[token]]\nname = "alice"\ntoken = " {SECRET}\\n"\n')
    assert token == parse_toml(ENTRY)[0]
    assert token.value == SECRET.encode()
    assert SECRET not in repr(token)


def test_entries_of_one_name_are_valid_if_their_permissions_agree_in_any_order() -> None:
    rights = 'tools = ["recall", "memory_*"]\nrate = 3\n'
    same = 'rate = 3\ntools = ["memory_*", "recall", "recall"]\n'
    another = f'[[token]]\nname = "alice"\ntoken = "{SECRET}-next"\nexpires = 2027-01-31T00:00:00Z\n'
    first, second = parse_toml(f"{ENTRY}{rights}{another}{same}")
    assert first.permissions == second.permissions == Permissions(tools=("memory_*", "recall"), rate=3)
    assert (first.expires_at, second.expires_at is None) == (None, False)


def test_tool_lists_are_not_shared_if_any_token_has_an_allow_list() -> None:
    alone, _ = parse_toml(f"{ENTRY}{OTHER}")
    assert alone.permissions is UNRESTRICTED
    both = parse_toml(f"{ENTRY}{OTHER}tools = []\n")
    assert [token.permissions.shares_lists for token in both] == [False, False]
    assert both[0].permissions == UNRESTRICTED


def test_an_allow_list_without_a_tool_allows_none() -> None:
    (token,) = parse_toml(f"{ENTRY}tools = []\n")
    assert not token.permissions.allows_tool("recall")


def test_a_token_is_expired_from_its_expiry_time_on() -> None:
    (token,) = parse_toml(f"{ENTRY}expires = 2027-01-31T00:00:00Z\n")
    at = datetime(2027, 1, 31, tzinfo=UTC).timestamp()
    assert [token.expired(now) for now in (at - 0.001, at, at + 1)] == [False, True, True]


WRONG_ENTRIES = {
    "": "it holds no token",
    "token = []": "it holds no token",  # an empty array has no entry
    "token = [1]": "it holds no token",
    "[token]\nname = 'alice'": "it holds no token; each is an entry that begins with",
    "tokens = 1": 'it holds "tokens", and only entries',
    f"{SECRET} = 1": "it holds an unknown key",
    f"alice {SECRET}": r"it is not TOML \(at line 1, column \d+\)",
    f"['{SECRET}']\n['{SECRET}']": r"it is not TOML \(at line 2, column \d+\)",
    f"a = {{ {SECRET} = 1, {SECRET} = 2 }}": r"it is not TOML \(at line 1, column \d+\)",
    f"a = {'9' * 5000}": "it is not TOML$",
    f"a = {'[' * 100_000}": "it is not TOML",
    f'a = "{SECRET}': r"it is not TOML \(at ",
    f'[[token]]\nsha256 = "{HASH}"': 'entry 1 needs a "name"',
    f'[[token]]\nname = 7\nsha256 = "{HASH}"': 'entry 1 needs a "name"',
    f'[[token]]\nname = "al ice"\nsha256 = "{HASH}"': 'entry 1 needs a "name"',
    f'[[token]]\nname = "oauth:1"\nsha256 = "{HASH}"': 'entry 1 needs a "name"',
    f'[[token]]\nname = "alice:read-only"\nsha256 = "{HASH}"': 'entry 1 needs a "name"',
    f'[[token]]\nname = "{"x" * 65}"\nsha256 = "{HASH}"': 'entry 1 needs a "name"',
    f'[[token]]\nname = ""\nsha256 = "{HASH}"': 'entry 1 needs a "name"',
    '[[token]]\nname = "alice"': r'entry 1 \(alice\) needs either "token" or "sha256"',
    f'{ENTRY}token = "{SECRET}"': r'entry 1 \(alice\) needs either "token" or "sha256"',
    f'{OTHER}[[token]]\nname = "alice"\ntoken = ""': '"token" of entry 2 .alice. has to be a text of visible ASCII',
    '[[token]]\nname = "alice"\ntoken = "two words"': '"token" of entry 1 .alice. has to be',
    '[[token]]\nname = "alice"\ntoken = "sécret"': '"token" of entry 1 .alice. has to be',
    '[[token]]\nname = "alice"\ntoken = 12345': '"token" of entry 1 .alice. has to be',
    f'[[token]]\nname = "alice"\nsha256 = "{HASH[1:]}"': '"sha256" of entry 1 .alice. has to be the 64 hexadecimal',
    f'[[token]]\nname = "alice"\nsha256 = "{HASH}0"': '"sha256" of entry 1 .alice. has to be',
    f'[[token]]\nname = "alice"\nsha256 = "{HASH}\\n"': '"sha256" of entry 1 .alice. has to be',
    f'[[token]]\nname = "alice"\nsha256 = "{"g" * 64}"': '"sha256" of entry 1 .alice. has to be',
    f'[[token]]\nname = "alice"\nsha256 = ["{HASH}"]': '"sha256" of entry 1 .alice. has to be',
    f"{ENTRY}color = 1": 'entry 1 .alice. holds "color", and an entry takes only name, token, sha256, expires',
    f"{ENTRY}Read_only = true": "entry 1 .alice. holds an unknown key",
    f"{ENTRY}{SECRET} = true": "entry 1 .alice. holds an unknown key",
    f"{ENTRY}read-only = true": "entry 1 .alice. holds an unknown key",
    f"{ENTRY}expires = 2027-01-31": '"expires" of entry 1 .alice. has to be a date and time with its offset',
    f"{ENTRY}expires = 2027-01-31T00:00:00": '"expires" of entry 1 .alice. has to be',
    f'{ENTRY}expires = "2027-01-31T00:00:00Z"': '"expires" of entry 1 .alice. has to be',
    f"{ENTRY}expires = 1801353600": '"expires" of entry 1 .alice. has to be',
    f'{ENTRY}read_only = "true"': '"read_only" of entry 1 .alice. has to be true or false, without quotes',
    f"{ENTRY}read_only = 1": '"read_only" of entry 1 .alice. has to be',
    f'{ENTRY}resources = "no"': '"resources" of entry 1 .alice. has to be',
    f'{ENTRY}tools = "recall"': '"tools" of entry 1 .alice. has to be a list',
    f"{ENTRY}tools = [1]": '"tools" of entry 1 .alice. has to be',
    f'{ENTRY}tools = [""]': '"tools" of entry 1 .alice. has to be',
    f'{ENTRY}tools = ["{"x" * 257}"]': '"tools" of entry 1 .alice. has to be',
    f'{ENTRY}tools = [["recall"]]': '"tools" of entry 1 .alice. has to be',
    f"{ENTRY}tools = {json.dumps(['x'] * (MAX_PATTERNS + 1))}": '"tools" of entry 1 .alice. has to be',
    f"{ENTRY}rate = 0": '"rate" of entry 1 .alice. has to be a whole number from 1',
    f"{ENTRY}rate = -1": '"rate" of entry 1 .alice. has to be',
    f"{ENTRY}rate = 1.0": '"rate" of entry 1 .alice. has to be',
    f"{ENTRY}rate = inf": '"rate" of entry 1 .alice. has to be',
    f"{ENTRY}rate = true": '"rate" of entry 1 .alice. has to be',
    f'{ENTRY}rate = "60"': '"rate" of entry 1 .alice. has to be',
    f"{ENTRY}max_in_flight = {MOST + 1}": '"max_in_flight" of entry 1 .alice. has to be',
    f"{ENTRY}max_in_flight = false": '"max_in_flight" of entry 1 .alice. has to be',
    f'{OTHER}[[token]]\nname = "eve"\ntoken = "{SECRET}-of-bob"': "the token of entry 2 .eve. belongs to another name",
    f'{ENTRY}[[token]]\nname = "eve"\ntoken = "{SECRET}"': "the token of entry 2 .eve. belongs to another name",
    f"{ENTRY}{ENTRY}expires = 2027-01-31T00:00:00Z": "the token of entry 2 .alice. is in an earlier entry",
    f"{ENTRY}{OTHER.replace('bob', 'alice', 1)}rate = 1": "entry 2 .alice. has other rights than an entry of the same",
    f"{ENTRY}{OTHER.replace('bob', 'alice', 1)}read_only = true": "entry 2 .alice. has other rights than an entry",
    f"{ENTRY}{OTHER.replace('bob', 'alice', 1)}tools = []": "entry 2 .alice. has other rights than an entry",
}
"""Invalid documents, each with the beginning of its error message."""


@pytest.mark.parametrize("text", WRONG_ENTRIES, ids=range(len(WRONG_ENTRIES)))
def test_an_invalid_document_is_one_sentence_that_names_the_entry_but_no_token(text: str) -> None:
    with pytest.raises(ValueError, match=f"^{WRONG_ENTRIES[text]}") as refusal:
        parse_toml(text)
    said = str(refusal.value)
    assert "\n" not in said
    assert SECRET not in said
    assert HASH not in said


def test_the_name_of_the_file_determines_its_format(tmp_path: Path) -> None:
    (tmp_path / "tokens.toml").write_text(ENTRY)
    (tmp_path / "tokens").write_text(f"alice {SECRET}\n")
    assert read_tokens(tmp_path / "tokens.toml") == read_tokens(tmp_path / "tokens")
    (tmp_path / "tokens.toml").write_text(f"alice {SECRET}\n")
    with pytest.raises(ValueError, match="it is not TOML"):
        read_tokens(tmp_path / "tokens.toml")


def test_a_byte_order_mark_and_windows_line_ends_are_accepted(tmp_path: Path) -> None:
    (tmp_path / "tokens.toml").write_bytes(b"\xef\xbb\xbf" + ENTRY.replace("\n", "\r\n").encode())
    assert read_tokens(tmp_path / "tokens.toml") == parse_toml(ENTRY)


@pytest.mark.parametrize(("data", "why"), [(b"\xff", "not UTF-8"), (b"#" * (MAX_FILE_BYTES + 1), "longer than")])
@pytest.mark.parametrize("name", ["tokens", "tokens.toml"])
def test_a_file_that_is_not_utf_8_or_too_long_is_rejected(tmp_path: Path, name: str, data: bytes, why: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=why):
        read_tokens(tmp_path / name)


names = st.from_regex(r"[A-Za-z0-9._-]{1,64}", fullmatch=True)
secrets = st.from_regex(r"[!-~]{16,80}", fullmatch=True)
patterns = st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=20), max_size=4)
limits = st.integers(1, MOST)
times = st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30))  # noqa: DTZ001
times = times.map(lambda it: it.replace(microsecond=0, tzinfo=UTC))


def toml_string(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def spelled(value: object) -> str:
    """Returns a value in the syntax of TOML."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return toml_string(value)
    if isinstance(value, list):
        return f"[{', '.join(map(spelled, value))}]"
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%dT%H:%M:%SZ}".rjust(20, "0")
    return str(value)


def document(entries: list[dict[str, object]]) -> str:
    lines = (["[[token]]", *(f"{key} = {spelled(value)}" for key, value in entry.items())] for entry in entries)
    return "\n".join(line for entry in lines for line in entry)


@given(
    st.lists(
        st.fixed_dictionaries(
            {"name": names, "token": secrets},
            optional={
                "expires": times,
                "read_only": st.booleans(),
                "tools": patterns,
                "resources": st.booleans(),
                "max_in_flight": limits,
                "rate": limits,
            },
        ),
        min_size=1,
        max_size=4,
        unique_by=(lambda entry: entry["name"], lambda entry: entry["token"]),
    )
)
def test_every_valid_document_gives_the_tokens_that_it_describes(entries: list[dict[str, object]]) -> None:
    tokens = parse_toml(document(entries))
    assert [token.name for token in tokens] == [entry["name"] for entry in entries]
    for token, entry in zip(tokens, entries, strict=True):
        rights, expires = token.permissions, entry.get("expires")
        assert token.digest == hashlib.sha256(str(entry["token"]).encode()).digest()
        assert rights.read_only is entry.get("read_only", False)
        assert rights.resources is entry.get("resources", True)
        assert (rights.rate, rights.max_in_flight) == (entry.get("rate"), entry.get("max_in_flight"))
        tools = entry.get("tools")
        assert rights.tools == (tuple(sorted(set(tools))) if isinstance(tools, list) else None)
        epoch = datetime(1970, 1, 1, tzinfo=UTC)
        assert token.expires_at == ((expires - epoch) / timedelta(seconds=1) if isinstance(expires, datetime) else None)


KEYS = ["name", "token", "sha256", "expires", "read_only", "tools", "resources", "max_in_flight", "rate", "role", "x.y"]
anything = st.sampled_from(
    [
        *('"alice"', '"bob"', f'"{SECRET}"', f'"{HASH}"', "true", "0", "1", "-1", "1.5", "nan", "[]", '["*"]', "{}"),
        *("2027-01-31T00:00:00Z", "2027-01-31", "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59", '"""'),
        *(f'"{SECRET}', f"{{ {SECRET} = {SECRET} }}", "[[[", "9" * 5000, f'["{SECRET}", 1]', f"{SECRET}", ""),
    ]
)
headings = st.sampled_from(
    ["[[token]]", "[token]", f"[{SECRET}]", f"[[{SECRET}]]", "[[token.token]]", "[token.name]", ""]
)
mangled = st.lists(
    st.one_of(
        headings,
        st.tuples(st.sampled_from([*KEYS, SECRET, f'"{SECRET}"', f"token.{SECRET}"]), anything).map(" = ".join),
    ),
    max_size=12,
).map("\n".join)


def tokens_or_why(parse: Callable[[], tuple[Token, ...]]) -> tuple[Token, ...] | str:
    """Returns the tokens or the error message."""
    try:
        return parse()
    except ValueError as error:
        return str(error)


@given(mangled)
@example(f"[[token]]\n[[token]]\n{SECRET} = 1\n{SECRET} = 2")
@example(f"[{SECRET}]\n[{SECRET}]")
def test_a_mangled_document_gives_tokens_or_one_sentence_without_a_token(text: str) -> None:
    tokens = tokens_or_why(lambda: parse_toml(text))
    assert tokens
    if isinstance(tokens, str):
        assert "\n" not in tokens
        assert SECRET not in tokens
        assert HASH not in tokens
    else:
        assert all(timestamp(token.expires_at or 0.0).endswith("Z") for token in tokens)


@given(st.one_of(st.text(max_size=200), st.binary(max_size=200)), st.sampled_from(["tokens", "tokens.toml"]))
@example(f"alice {SECRET}\nbob {SECRET}", "tokens")
def test_any_file_gives_tokens_or_one_sentence(
    tmp_path_factory: pytest.TempPathFactory, content: str | bytes, name: str
) -> None:
    file = tmp_path_factory.getbasetemp() / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode(errors="surrogatepass"))
    tokens = tokens_or_why(lambda: read_tokens(file))
    assert tokens
    if isinstance(tokens, str):
        assert "\n" not in tokens
        assert SECRET not in tokens


@given(st.lists(st.tuples(st.sampled_from(["a", "b", "a:read-only", "b:read-only"]), secrets), min_size=1, max_size=5))
def test_a_file_with_ambiguous_lines_is_rejected(entries: list[tuple[str, str]]) -> None:
    owners: dict[str, set[str]] = {}
    rights: dict[str, set[str]] = {}
    for name, token in entries:
        owners.setdefault(token, set()).add(name.partition(":")[0])
        rights.setdefault(name.partition(":")[0], set()).add(name)
    ambiguous = any(len(it) > 1 for it in (*owners.values(), *rights.values()))
    tokens = tokens_or_why(lambda: parse_lines("\n".join(f"{name} {token}" for name, token in entries)))
    assert isinstance(tokens, str) is ambiguous
    if isinstance(tokens, str):
        assert not any(token in tokens for _, token in entries)
    else:
        assert [(it.name, it.permissions.read_only) for it in tokens] == [
            (name.partition(":")[0], name.endswith(":read-only")) for name, _ in entries
        ]
