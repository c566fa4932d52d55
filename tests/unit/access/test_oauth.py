"""The claims of a token, the permissions of its scopes, and the metadata of a provider with the URL of its keys."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vestige_bridge.access.oauth import (
    LEEWAY_SECONDS,
    LONGEST_SECONDS,
    NOTHING,
    AccessToken,
    InvalidToken,
    ResourceServer,
    check_claims,
    keys_url,
    metadata_urls,
    principal_of,
    scopes_of,
)
from vestige_bridge.access.permissions import READ_ONLY, UNRESTRICTED, Permissions
from vestige_bridge.access.token_file import parse_lines
from vestige_bridge.errors import Forbidden
from vestige_bridge.jsonrpc.parser import parse_body
from vestige_bridge.mcp.tools import Tool
from vestige_bridge.settings import Settings

ISSUER = "https://login.example.com/"
AUDIENCE = "https://vestige.example.com/mcp"
NOW = 1_800_000_000.0
GOOD: dict[str, Any] = {"iss": ISSUER, "aud": AUDIENCE, "sub": "alice", "exp": NOW + 600, "scope": "read"}


def server(scopes: str = "read=read-only;write=all", **variables: str) -> ResourceServer:
    environ = {"VESTIGE_BRIDGE_OAUTH_ISSUER": ISSUER, "VESTIGE_BRIDGE_PUBLIC_URL": "https://vestige.example.com"}
    environ |= {"VESTIGE_BRIDGE_OAUTH_SCOPES": scopes, **variables}
    return ResourceServer(Settings.from_environ(environ))


def admitted(scope: str, scopes: str = "read=read-only;write=all", **variables: str) -> AccessToken:
    return server(scopes, **variables).admitted(b"token", GOOD | {"scope": scope}, NOW)


def reason(**claims: Any) -> str:
    values = {name: value for name, value in (GOOD | claims).items() if value != "absent"}
    try:
        check_claims(values, ISSUER, AUDIENCE, NOW)
    except InvalidToken as error:
        return error.reason
    return "taken"


@pytest.mark.parametrize(
    ("claims", "expected"),
    [
        ({}, "taken"),
        ({"iss": ISSUER.rstrip("/")}, "issuer"),
        ({"iss": "absent"}, "issuer"),
        ({"iss": [ISSUER]}, "issuer"),
        ({"aud": ["https://other.example.com", AUDIENCE]}, "taken"),
        ({"aud": "https://vestige.example.com"}, "audience"),
        ({"aud": f"{AUDIENCE}/other"}, "audience"),
        ({"aud": []}, "audience"),
        ({"aud": "absent"}, "audience"),
        ({"aud": {AUDIENCE: True}}, "audience"),
        ({"exp": NOW - LEEWAY_SECONDS}, "expired_token"),
        ({"exp": NOW - LEEWAY_SECONDS + 1}, "taken"),
        ({"exp": "absent"}, "claims"),
        ({"exp": str(int(NOW + 600))}, "claims"),
        ({"exp": True}, "claims"),
        ({"exp": float("inf")}, "claims"),
        ({"exp": float("nan")}, "claims"),
        ({"exp": 10**400}, "claims"),
        ({"nbf": NOW + LEEWAY_SECONDS}, "taken"),
        ({"nbf": NOW + LEEWAY_SECONDS + 1}, "not_yet_valid"),
        ({"nbf": None}, "claims"),
        ({"sub": "absent"}, "claims"),
        ({"sub": ""}, "claims"),
        ({"sub": 7}, "claims"),
        ({"cnf": {"jkt": "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I"}}, "claims"),
    ],
)
def test_the_reason_names_the_first_invalid_claim(claims: dict[str, Any], expected: str) -> None:
    assert reason(**claims) == expected


ANYTHING = st.none() | st.integers() | st.text() | st.floats() | st.lists(st.text())


@given(st.dictionaries(st.sampled_from([*GOOD, "nbf", "scp", "cnf"]), ANYTHING))
def test_any_claims_give_an_access_token_or_invalid_token(claims: dict[str, Any]) -> None:
    try:
        token = server().admitted(b"token", GOOD | claims, NOW)
    except InvalidToken:
        return
    assert NOW < token.expires_at <= NOW + LONGEST_SECONDS


def test_a_token_is_taken_until_it_expires_and_for_a_day_at_most() -> None:
    tokens = [server().admitted(b"token", GOOD | {"exp": NOW + lives}, NOW) for lives in (600, 10_000_000)]
    assert [token.expires_at - NOW for token in tokens] == [600 + LEEWAY_SECONDS, LONGEST_SECONDS]


@pytest.mark.parametrize(
    ("claims", "scopes"),
    [
        ({"scope": "a b"}, {"a", "b"}),
        ({"scope": ["a", "b"]}, {"a", "b"}),
        ({"scp": "a b"}, {"a", "b"}),
        ({"scp": ["a", 7, None]}, {"a"}),
        ({"scope": "a", "scp": "b"}, {"a"}),
        ({"scope": None}, set()),
        ({"scope": 7}, set()),
        ({}, set()),
    ],
)
def test_scopes_are_read_from_scope_or_scp_as_text_or_list(claims: dict[str, Any], scopes: set[str]) -> None:
    assert scopes_of(claims) == scopes


MIXED = "read=read-only;write=all;recall=tools:recall;notes=tools:note_*,recall"


@pytest.mark.parametrize(
    ("scope", "permissions"),
    [
        ("read", READ_ONLY),
        ("write", UNRESTRICTED),
        ("read write", UNRESTRICTED),
        ("recall", Permissions(tools=("recall",))),
        ("recall notes", Permissions(tools=("note_*", "recall"))),
        ("recall read", Permissions(read_only=True, also_tools=("recall",))),
        ("recall notes write", UNRESTRICTED),
        ("Write", NOTHING),
        ("wri te", NOTHING),
        ("", NOTHING),
    ],
)
def test_a_token_has_the_permissions_of_all_its_scopes(scope: str, permissions: Permissions) -> None:
    assert admitted(scope, MIXED).permissions == permissions


def test_a_read_only_scope_and_a_tool_scope_together_permit_no_other_change() -> None:
    permissions = admitted("recall read", MIXED).permissions

    def may(body: bytes) -> bool:
        message = parse_body(body)
        assert not isinstance(message, list)
        try:
            permissions.require(message, {"look": Tool(read_only=True, repeatable=True)})
        except Forbidden:
            return False
        return True

    call = b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"%b"}}'
    assert [may(call % tool) for tool in (b"recall", b"look", b"forget")] == [True, True, False]
    assert may(b'{"jsonrpc":"2.0","id":1,"method":"resources/list"}')
    assert not may(b'{"jsonrpc":"2.0","id":1,"method":"other/change"}')
    assert permissions.allows_tool("forget")


@pytest.mark.parametrize(
    ("scope", "wider"), [("read", True), ("write", False), ("read write", False), ("", True), ("recall", True)]
)
def test_only_an_unrestricted_token_has_no_wider_scope(scope: str, wider: bool) -> None:
    assert admitted(scope, MIXED).wider_scope is wider


@pytest.mark.parametrize(
    ("scopes", "variables", "shared"),
    [
        ("write=all", {}, True),
        ("write=all", {"VESTIGE_AUTH_TOKEN_FILE": "/etc/tokens"}, True),
        ("write=all", {"VESTIGE_AUTH_TOKEN_FILE": "/etc/tokens.toml"}, False),
        ("write=all;recall=tools:recall", {}, False),
    ],
)
def test_tool_lists_are_shared_only_if_all_principals_see_the_same_list(
    scopes: str, variables: dict[str, str], shared: bool
) -> None:
    permissions = admitted("write", scopes, **variables).permissions
    assert permissions.shares_lists is shared
    assert (permissions is UNRESTRICTED) is shared


def test_an_oauth_principal_is_a_hash_of_issuer_and_subject_and_invalid_in_a_token_file() -> None:
    principal = principal_of(ISSUER, "alice")
    assert principal == "oauth:" + hashlib.sha256(b"https://login.example.com/\nalice").hexdigest()[:32]
    assert principal != principal_of(ISSUER, "bob") != principal_of("https://other.example.com", "bob")
    with pytest.raises(ValueError, match="the name in line 1"):
        parse_lines(f"{principal} token")


def test_the_metadata_describe_the_resource_by_its_public_url() -> None:
    described = server(VESTIGE_BRIDGE_PUBLIC_URL="https://example.com/memory/mcp/", VESTIGE_BRIDGE_OAUTH_AUDIENCE="api")
    assert described.metadata == {
        "resource": "https://example.com/memory/mcp",
        "authorization_servers": [ISSUER],
        "scopes_supported": ["read", "write"],
        "bearer_methods_supported": ["header"],
        "resource_name": "vestige-bridge",
    }
    at = "/.well-known/oauth-protected-resource"
    assert described.metadata_paths == (at, f"{at}/memory/mcp")
    assert described.challenge("") == (
        f'Bearer realm="vestige-bridge", scope="read write", resource_metadata="https://example.com{at}/memory/mcp"'
    )
    assert 'realm="vestige-bridge", error="invalid_token", scope=' in described.challenge("invalid_token")
    with pytest.raises(InvalidToken):
        described.admitted(b"token", GOOD, NOW)
    assert described.admitted(b"token", GOOD | {"aud": "api"}, NOW).name == principal_of(ISSUER, "alice")


@pytest.mark.parametrize(
    ("issuer", "urls"),
    [
        (
            "https://a.example",
            [
                "https://a.example/.well-known/oauth-authorization-server",
                "https://a.example/.well-known/openid-configuration",
            ],
        ),
        (
            "https://a.example/realms/company/",
            [
                "https://a.example/.well-known/oauth-authorization-server/realms/company",
                "https://a.example/.well-known/openid-configuration/realms/company",
                "https://a.example/realms/company/.well-known/openid-configuration",
            ],
        ),
    ],
)
def test_metadata_urls_are_those_of_rfc_8414_and_openid(issuer: str, urls: list[str]) -> None:
    assert metadata_urls(issuer) == urls


@pytest.mark.parametrize(
    ("metadata", "issuer", "said"),
    [
        ({"issuer": "https://b.example", "jwks_uri": "https://a.example/k"}, "https://a.example", "as the issuer"),
        ({"jwks_uri": "https://a.example/k"}, "https://a.example", "as the issuer"),
        ({"issuer": "https://a.example"}, "https://a.example", "no https address"),
        ({"issuer": "https://a.example", "jwks_uri": 7}, "https://a.example", "no https address"),
        ({"issuer": "https://a.example", "jwks_uri": "http://a.example/k"}, "https://a.example", "no https address"),
        ({"issuer": "https://a.example", "jwks_uri": "http://127.0.0.1/k"}, "https://a.example", "no https address"),
        ({"issuer": "https://a.example", "jwks_uri": "file:///etc/passwd"}, "https://a.example", "no https address"),
        ({"issuer": "http://127.0.0.1", "jwks_uri": "http://169.254.169.254/"}, "http://127.0.0.1", "no https address"),
    ],
)
def test_metadata_with_another_issuer_or_no_https_key_address_are_rejected(
    metadata: dict[str, Any], issuer: str, said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        keys_url(metadata, issuer)


@pytest.mark.parametrize("host", ["https://a.example", "http://127.0.0.1:9000", "http://localhost:9000"])
def test_the_url_of_the_keys_is_that_of_the_issuers_metadata(host: str) -> None:
    assert keys_url({"issuer": host, "jwks_uri": f"{host}/keys"}, host) == f"{host}/keys"
