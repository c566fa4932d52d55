"""OAuth access tokens of a scripted provider: which are accepted, what they permit, and which are rejected."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import ssl
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import trustme
from aiohttp import web
from joserfc.jwe import encrypt_compact
from joserfc.jwk import RSAKey

from harness import JSON, SSE, TOKEN, Bridge, BridgeProcess, ScriptedUpstream, bridge, until
from identity_provider import AUDIENCE, PUBLIC_URL, IdentityProvider, key, public
from integration.test_access_rotation import INITIALIZE, listen_in_a_session, listen_without_a_session
from vestige_bridge.access import provider_keys
from vestige_bridge.access.oauth import principal_of
from vestige_bridge.access.provider_keys import LEAST_SECONDS
from vestige_bridge.server import provider_client

PING = {"jsonrpc": "2.0", "id": 7, "method": "ping"}
METADATA = "/.well-known/oauth-protected-resource"
CHALLENGE = f'resource_metadata="{PUBLIC_URL}{METADATA}/mcp"'
GONE_IN_TWO_SECONDS = -58
"""The lifetime of a token in seconds; tokens are accepted for a minute after their expiry."""


@pytest.fixture
async def provider() -> AsyncIterator[IdentityProvider]:
    async with IdentityProvider().serving() as serving:
        yield serving


@pytest.fixture
async def protected(upstream: ScriptedUpstream, provider: IdentityProvider) -> AsyncIterator[Bridge]:
    """A bridge that accepts the tokens of the provider and no others."""
    async with oauth_bridge(upstream, provider) as served:
        yield served


@asynccontextmanager
async def oauth_bridge(
    upstream: ScriptedUpstream, provider: IdentityProvider, **variables: str
) -> AsyncIterator[Bridge]:
    async with bridge(upstream.url, **provider.variables(**variables)) as served:
        await until(served.ready)
        await until(lambda: has_keys(served))
        yield served


def has_keys(served: Bridge) -> bool:
    return served.metric("oauth_keys") > 0


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the bridge ask the provider again almost at once."""
    monkeypatch.setattr(provider_keys, "LEAST_SECONDS", 0.05)


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


async def status(served: Bridge, token: str) -> int:
    return (await served.post(PING, bearer(token))).status


@pytest.mark.parametrize("path", [METADATA, f"{METADATA}/mcp"])
async def test_the_metadata_are_served_without_a_token_and_without_upstream(
    protected: Bridge, provider: IdentityProvider, upstream: ScriptedUpstream, path: str
) -> None:
    received = len(upstream.received)
    answer = await protected.ask("GET", path, b"", {"Host": "evil.example"})
    assert answer.status == 200
    assert answer.json == {
        "resource": f"{PUBLIC_URL}/mcp",
        "authorization_servers": [provider.issuer],
        "scopes_supported": ["vestige.read", "vestige.write"],
        "bearer_methods_supported": ["header"],
        "resource_name": "vestige-bridge",
    }
    refused = await protected.ask("POST", path, b"{}", JSON)
    assert (refused.status, refused.headers["Allow"]) == (405, "GET, HEAD")
    assert (await protected.ask("HEAD", path, b"", {})).status == 200
    assert (await protected.get(f"{path}/other")).status == 404
    assert (await protected.get("/.well-known/oauth-authorization-server")).json["error"]["code"] == -32600
    assert len(upstream.received) == received


async def test_the_metadata_and_the_challenge_are_readable_for_an_allowed_origin(
    upstream: ScriptedUpstream, provider: IdentityProvider
) -> None:
    origin = {"Origin": "https://app.example.com"}
    asking = {**origin, "Access-Control-Request-Method": "GET"}
    async with oauth_bridge(upstream, provider, ALLOWED_ORIGINS="https://app.example.com") as served:
        described = await served.ask("GET", METADATA, b"", origin)
        preflight = await served.ask("OPTIONS", METADATA, b"", asking)
        foreign = await served.ask("GET", METADATA, b"", {"Origin": "https://evil.example"})
        refused = await served.ask("POST", "/mcp", PING, {**JSON, **origin})
    assert described.headers["Access-Control-Allow-Origin"] == "https://app.example.com"
    assert preflight.status == 204
    assert "mcp-protocol-version" in preflight.headers["Access-Control-Allow-Headers"].lower()
    assert foreign.status == 200
    assert "Access-Control-Allow-Origin" not in foreign.headers
    assert refused.status == 401
    assert "www-authenticate" in refused.headers["Access-Control-Expose-Headers"].lower()


async def test_the_challenge_names_the_metadata_by_the_public_url_and_never_by_host(
    protected: Bridge, upstream: ScriptedUpstream
) -> None:
    received = len(upstream.received)
    hosts = {"Host": "evil.example", "X-Forwarded-Host": "evil.example", "Forwarded": "host=evil.example"}
    missing = await protected.ask("POST", "/mcp", PING, {**JSON, **hosts})
    wrong = await protected.ask("POST", "/mcp", PING, {**JSON, **hosts, **bearer("wrong")})
    assert [missing.status, wrong.status] == [401, 401]
    scope = 'scope="vestige.read vestige.write"'
    assert missing.headers["WWW-Authenticate"] == f'Bearer realm="vestige-bridge", {scope}, {CHALLENGE}'
    expected = f'Bearer realm="vestige-bridge", error="invalid_token", {scope}, {CHALLENGE}'
    assert wrong.headers["WWW-Authenticate"] == expected
    assert len(upstream.received) == received


async def test_a_token_of_the_provider_is_served_as_its_issuer_and_subject(
    protected: Bridge, provider: IdentityProvider, upstream: ScriptedUpstream
) -> None:
    for token in (
        provider.token(),
        provider.token(jti="2"),
        provider.token(aud=["other", AUDIENCE], scope="vestige.write x"),
    ):
        assert await status(protected, token) == 200
    principals = {received.http.headers["X-Vestige-Principal"] for received in upstream.of("ping")[-3:]}
    assert principals == {principal_of(provider.issuer, "alice")}
    assert not any("Authorization" in received.http.headers for received in upstream.received)


async def test_a_token_is_verified_once_and_the_provider_is_not_asked_about_it(
    protected: Bridge, provider: IdentityProvider
) -> None:
    token, asked = provider.token(), len(provider.asked)
    assert [await status(protected, token) for _ in range(20)] == [200] * 20
    assert protected.metric("oauth_tokens_kept") == 1
    assert len(provider.asked) == asked


def b64(data: bytes | dict[str, Any]) -> str:
    raw = data if isinstance(data, bytes) else json.dumps(data).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def unsigned(provider: IdentityProvider) -> str:
    return f"{b64({'alg': 'none', 'kid': 'one'})}.{b64(provider.claims())}."


def unsigned_with_its_signature(provider: IdentityProvider) -> str:
    return f"{b64({'alg': 'none', 'kid': 'one'})}.{provider.token().partition('.')[2]}"


def signed_with_the_public_key(provider: IdentityProvider) -> str:
    secret = json.dumps(public(key("one"))["keys"][0]).encode()
    signed = f"{b64({'alg': 'HS256', 'kid': 'one'})}.{b64(provider.claims())}"
    return f"{signed}.{b64(hmac.digest(secret, signed.encode(), 'sha256'))}"


def encrypted(provider: IdentityProvider) -> str:
    rsa = RSAKey.generate_key(2048, {"kid": "one"})
    return encrypt_compact({"alg": "RSA-OAEP", "enc": "A128GCM", "kid": "one"}, json.dumps(provider.claims()), rsa)


ATTACKS: dict[str, tuple[str, Callable[[IdentityProvider], str]]] = {
    "alg none": ("malformed", unsigned),
    "alg none with a signature": ("algorithm", unsigned_with_its_signature),
    "HS256 with the public key": ("algorithm", signed_with_the_public_key),
    "signed by somebody else": ("signature", lambda it: it.token({"kid": "one"}, by=key("two"))),
    "the key in its header": (
        "signature",
        lambda it: it.token({"kid": "one", "jwk": public(key("two"))["keys"][0]}, by=key("two")),
    ),
    "other claims under its signature": (
        "signature",
        lambda it: f"{it.token().split('.')[0]}.{b64(it.claims(sub='root'))}.{it.token().split('.')[2]}",
    ),
    "another audience": ("audience", lambda it: it.token(aud="https://other.example.com/mcp")),
    "another resource of the host": ("audience", lambda it: it.token(aud=f"{PUBLIC_URL}/other")),
    "an ID token": ("audience", lambda it: it.token({"typ": "JWT"}, aud="a-client-id", scope=None)),
    "no audience": ("audience", lambda it: it.token(aud=None)),
    "another issuer": ("issuer", lambda it: it.token(iss="https://other.example.com")),
    "an issuer that differs in a slash": ("issuer", lambda it: it.token(iss=f"{it.issuer}/")),
    "expired": ("expired_token", lambda it: it.token(exp=int(time.time()) - 61)),
    "never expires": ("claims", lambda it: it.token(exp=None)),
    "not yet valid": ("not_yet_valid", lambda it: it.token(nbf=int(time.time()) + 90)),
    "no subject": ("claims", lambda it: it.token(sub=None)),
    "bound to a key": ("claims", lambda it: it.token(cnf={"jkt": "x"})),
    "no kid": ("unknown_key", lambda it: it.token({"kid": None})),
    "an unknown kid": ("unknown_key", lambda it: it.token({"kid": "three"})),
    "another type": ("type", lambda it: it.token({"typ": "logout+jwt"})),
    "a header to be understood": (
        "malformed",
        lambda _: f"{b64({'alg': 'ES256', 'kid': 'one', 'crit': ['x'], 'x': 1})}.e30.AA",
    ),
    "encrypted": ("malformed", encrypted),
    "oversized": ("malformed", lambda it: it.token(groups="x" * 20_000)),
    "no JSON": ("malformed", lambda _: "eyJ.eyJ.eyJ"),
}


@pytest.mark.parametrize("attack", ATTACKS)
async def test_an_invalid_oauth_token_answers_401_with_a_challenge(
    protected: Bridge, provider: IdentityProvider, upstream: ScriptedUpstream, attack: str
) -> None:
    reason, make = ATTACKS[attack]
    received = len(upstream.received)
    token = make(provider)
    for _ in range(2):
        answer = await protected.post(PING, bearer(token))
        assert (answer.status, answer.error["code"]) == (401, -32015)
        assert 'error="invalid_token"' in answer.headers["WWW-Authenticate"]
        assert CHALLENGE in answer.headers["WWW-Authenticate"]
        assert answer.error["message"].endswith(".")
    assert protected.metric("auth_failures_total", reason=reason) == 2
    assert protected.metric("oauth_tokens_kept") == 0
    assert len(upstream.received) == received
    assert await status(protected, provider.token()) == 200


async def test_a_thousand_unknown_keys_cause_at_most_one_fetch_in_ten_seconds(
    protected: Bridge, provider: IdentityProvider
) -> None:
    asked = len(provider.asked)
    tokens = [provider.token({"kid": f"unknown-{number}"}) for number in range(1_000)]
    began = time.monotonic()
    statuses = Counter(await asyncio.gather(*(status(protected, token) for token in tokens)))
    assert statuses == {401: 1_000}
    assert len(provider.asked) - asked <= 1 + (time.monotonic() - began) // LEAST_SECONDS
    assert await status(protected, provider.token()) == 200


async def test_an_oauth_token_or_subject_never_gets_the_permissions_of_a_token_file_entry(
    upstream: ScriptedUpstream, provider: IdentityProvider, tmp_path: Path
) -> None:
    file = tmp_path / "tokens.toml"
    jwt = provider.token(aud="https://other.example.com")
    digest = hashlib.sha256(jwt.encode()).hexdigest()
    file.write_text(f'[[token]]\nname = "alice"\ntoken = "{TOKEN}"\n[[token]]\nname = "job"\nsha256 = "{digest}"\n')
    async with oauth_bridge(upstream, provider, VESTIGE_AUTH_TOKEN_FILE=str(file)) as served:
        assert await status(served, jwt) == 401
        assert await status(served, provider.token(sub="job")) == 200
        assert upstream.of("ping")[-1].http.headers["X-Vestige-Principal"] == principal_of(provider.issuer, "job")
        for token in ("oauth", "job", principal_of(provider.issuer, "job"), principal_of(provider.issuer, "alice")):
            assert await status(served, token) == 401
        assert await status(served, TOKEN) == 200
        assert upstream.of("ping")[-1].http.headers["X-Vestige-Principal"] == "alice"
        assert served.metric("token_last_used_timestamp_seconds", principal="alice") > 0


async def test_tokens_of_the_file_and_of_the_provider_are_both_accepted(
    upstream: ScriptedUpstream, provider: IdentityProvider, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "tokens"
    file.write_text("job a-token-of-the-file\n")
    async with oauth_bridge(upstream, provider, VESTIGE_AUTH_TOKEN_FILE=str(file)) as served:
        assert [await status(served, token) for token in ("a-token-of-the-file", provider.token(), "other")] == [
            200,
            200,
            401,
        ]
        file.write_text(f"job another-token\nclever {provider.token()}\n")
        await until(lambda: served.metric("token_file_valid") == 0)
        assert [await status(served, token) for token in ("a-token-of-the-file", "another-token")] == [200, 401]
    assert "the token of clever has the form of a JWT" in caplog.text
    assert provider.token().split(".")[0] not in caplog.text


async def test_a_token_file_with_the_metrics_name_of_all_oauth_users_fails_the_start(
    provider: IdentityProvider, tmp_path: Path
) -> None:
    (tmp_path / "tokens").write_text("oauth a-token-of-the-file\n")
    variables = {"VESTIGE_AUTH_TOKEN_FILE": str(tmp_path / "tokens")}
    process = BridgeProcess(provider.environment("http://127.0.0.1:9/mcp", **variables))
    exit_status, log = await process.ended()
    assert (exit_status, len(log.splitlines())) == (2, 1)
    assert "the name oauth is that of all users of the OAuth issuer in the metrics" in log


@pytest.mark.parametrize("name", ["tokens", "tokens.toml"])
async def test_a_token_file_with_a_jwt_fails_the_start_without_showing_the_token(
    provider: IdentityProvider, tmp_path: Path, name: str
) -> None:
    jwt = provider.token()
    text = f"clever {jwt}\n" if name == "tokens" else f'[[token]]\nname = "clever"\ntoken = "{jwt}"\n'
    (tmp_path / name).write_text(text)
    process = BridgeProcess(
        provider.environment("http://127.0.0.1:9/mcp", VESTIGE_AUTH_TOKEN_FILE=str(tmp_path / name))
    )
    exit_status, log = await process.ended()
    assert exit_status == 2
    assert len(log.splitlines()) == 1
    assert "the token of clever has the form of a JWT" in log
    assert jwt not in log


async def test_without_the_oauth_packages_the_start_ends_with_one_line(provider: IdentityProvider) -> None:
    program = "import sys; sys.modules['joserfc'] = None; from vestige_bridge.cli.parser import main; sys.exit(main())"
    environ = provider.environment("http://127.0.0.1:9/mcp")
    exit_status, log = await BridgeProcess(environ, [sys.executable, "-c", program]).ended()
    assert exit_status == 2
    assert len(log.splitlines()) == 1
    assert "joserfc is missing; install the bridge with its extra oauth, as docs/sign-in.md shows." in log


async def test_the_oauth_packages_are_imported_only_with_an_issuer(upstream: ScriptedUpstream) -> None:
    program = (
        "import sys; from vestige_bridge.server.app import build_app; from vestige_bridge.settings import Settings\n"
        "build_app(Settings.from_environ({'VESTIGE_AUTH_TOKEN': 'x'})); sys.exit('joserfc' in sys.modules)"
    )
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", program, stderr=asyncio.subprocess.DEVNULL)
    assert await process.wait() == 0


@pytest.mark.parametrize("scope", [None, "", "openid profile", "vestige", "VESTIGE.READ"])
async def test_a_token_without_a_mapped_scope_answers_403_with_the_scopes(
    protected: Bridge, provider: IdentityProvider, upstream: ScriptedUpstream, scope: str | None
) -> None:
    received = len(upstream.received)
    token = provider.token(scope=scope)
    expected = f'error="insufficient_scope", scope="vestige.read vestige.write", {CHALLENGE}'
    for _ in range(2):
        answer = await protected.post(PING, bearer(token))
        assert (answer.status, answer.error["code"]) == (403, -32016)
        assert answer.headers["WWW-Authenticate"] == f'Bearer realm="vestige-bridge", {expected}'
    assert protected.metric("auth_failures_total", reason="scope") == 2
    assert protected.metric("oauth_tokens_kept") == 0
    assert len(upstream.received) == received


async def test_the_refusal_of_a_token_without_a_mapped_scope_is_in_the_audit_log(
    provider: IdentityProvider, upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    async with oauth_bridge(upstream, provider, AUDIT_LOG=str(tmp_path / "audit")) as served:
        for scope, status in (("nothing.mapped", 403), ("vestige.read", 403), ("vestige.write", 200)):
            assert (await served.call("write", headers=bearer(provider.token(scope=scope)))).status == status
    unread, refused, made = map(json.loads, (tmp_path / "audit").read_text().splitlines())
    assert unread["principal"] == refused["principal"] == made["principal"]
    assert [(it["audit"], it["method"], it["tool"], it["status"], it["reason"]) for it in (unread, refused)] == [
        ("refusal", None, None, 403, "forbidden"),
        ("refusal", "tools/call", "write", 403, "forbidden"),
    ]
    assert made["outcome"] == "answered"


async def test_a_write_with_a_read_only_scope_is_403_with_the_scopes_that_permit_it(
    protected: Bridge, provider: IdentityProvider, upstream: ScriptedUpstream
) -> None:
    reads, writes = bearer(provider.token(scope="vestige.read")), bearer(provider.token())
    assert (await protected.call("read", headers=reads)).status == 200
    for headers in (reads, {**reads, **SSE}):
        refused = await protected.call("write", headers=headers)
        assert (refused.status, refused.error["code"], refused.json["id"]) == (403, -32016, 1)
        assert 'error="insufficient_scope", scope="vestige.read vestige.write"' in refused.headers["WWW-Authenticate"]
    assert "WWW-Authenticate" not in (await protected.call("read", headers=reads)).headers
    assert (await protected.call("write", headers=writes)).status == 200
    assert [it.message["params"]["name"] for it in upstream.of("tools/call")] == ["read", "read", "write"]
    assert protected.metric("requests_refused_total", principal="oauth", reason="forbidden") == 2


async def test_a_token_that_has_every_scope_is_refused_without_a_challenge(
    upstream: ScriptedUpstream, provider: IdentityProvider
) -> None:
    async with oauth_bridge(upstream, provider, OAUTH_SCOPES="vestige.read=read-only") as served:
        refused = await served.call("write", headers=bearer(provider.token(scope="vestige.read")))
    assert refused.status == 403
    assert "WWW-Authenticate" not in refused.headers


async def test_scopes_determine_which_tools_are_listed_and_callable(
    upstream: ScriptedUpstream, provider: IdentityProvider
) -> None:
    async with oauth_bridge(upstream, provider, OAUTH_SCOPES="a=tools:read;b=tools:s*;c=read-only;d=all") as served:
        seen = {}
        for scope in ("a", "a b", "b c", "b c d"):
            headers = bearer(provider.token(scope=scope))
            listed = await served.post({"jsonrpc": "2.0", "id": 1, "method": "tools/list"}, headers)
            called = [
                tool for tool in ("write", "read", "set") if (await served.call(tool, headers=headers)).status == 200
            ]
            seen[scope] = [tool["name"] for tool in listed.json["result"]["tools"]], called
    everything = ["write", "read", "set"]
    assert seen == {
        "a": (["read"], ["read"]),
        "a b": (["read", "set"], ["read", "set"]),
        "b c": (everything, ["read", "set"]),
        "b c d": (everything, everything),
    }


async def test_a_session_belongs_to_issuer_and_subject_and_not_to_one_token(
    upstream: ScriptedUpstream, provider: IdentityProvider
) -> None:
    async with oauth_bridge(upstream, provider, SESSION_MODE="per-client") as served:
        opened = await served.post(INITIALIZE, {**SSE, **bearer(provider.token())})
        session = {"Mcp-Session-Id": opened.headers["Mcp-Session-Id"], "MCP-Protocol-Version": "2025-11-25"}
        refreshed = await served.post(PING, {**session, **bearer(provider.token(jti="2", exp=int(time.time()) + 900))})
        others = await served.post(PING, {**session, **bearer(provider.token(sub="bob"))})
    assert (opened.status, refreshed.status, others.status) == (200, 200, 404)


@pytest.mark.parametrize(
    ("mode", "listen"),
    [("shared", listen_in_a_session), ("shared", listen_without_a_session), ("per-client", listen_in_a_session)],
)
async def test_an_expired_oauth_token_ends_only_the_streams_that_it_opened(
    upstream: ScriptedUpstream,
    provider: IdentityProvider,
    mode: str,
    listen: Callable[[Bridge, str], Awaitable[aiohttp.ClientResponse]],
) -> None:
    async def stay_open(received: Any) -> web.StreamResponse:
        response: web.StreamResponse = await received.events()
        await asyncio.sleep(30)
        return response

    upstream.on("GET", stay_open)
    async with oauth_bridge(upstream, provider, SESSION_MODE=mode) as served:
        short = provider.token(exp=int(time.time()) + GONE_IN_TWO_SECONDS)
        streams = [await listen(served, token) for token in (short, provider.token(), provider.token(sub="bob"))]
        assert [stream.status for stream in streams] == [200, 200, 200]
        await until(lambda: served.metric("streams_open") == 3)
        async with asyncio.timeout(10):
            await streams[0].read()
        assert served.metric("streams_open") == 2
        assert await status(served, short) == 401
        assert served.metric("auth_failures_total", reason="expired_token") == 1
        for stream in streams[1:]:
            stream.close()


async def test_a_call_in_flight_outlives_its_token(upstream: ScriptedUpstream, provider: IdentityProvider) -> None:
    async def take_time(received: Any) -> web.StreamResponse:
        await asyncio.sleep(3)
        result: web.StreamResponse = received.result({"content": []})
        return result

    upstream.on("tools/call", take_time)
    async with oauth_bridge(upstream, provider) as served:
        short = provider.token(exp=int(time.time()) + GONE_IN_TWO_SECONDS)
        answer = await served.call("write", headers=bearer(short))
        assert (answer.status, answer.json["result"]) == (200, {"content": []})
        assert await status(served, short) == 401


@pytest.mark.usefixtures("impatient")
async def test_a_removed_signing_key_invalidates_its_tokens_and_closes_their_streams(
    protected: Bridge, provider: IdentityProvider
) -> None:
    old = provider.token()
    stream = await listen_in_a_session(protected, old)
    assert stream.status == 200
    provider.rotate("two")
    await asyncio.sleep(0.1)
    assert await status(protected, provider.token()) == 200
    async with asyncio.timeout(5):
        await stream.read()
    assert await status(protected, old) == 401


@pytest.mark.usefixtures("impatient")
async def test_without_the_provider_known_keys_verify_and_unknown_ones_answer_401(
    protected: Bridge, provider: IdentityProvider
) -> None:
    provider.away = 503
    assert await status(protected, provider.token(sub="bob")) == 200
    provider.signs_with = key("two")

    async def the_provider_was_asked_in_vain() -> bool:
        assert await status(protected, provider.token()) == 401
        return protected.metric("oauth_key_fetches_failed_total") > 0

    await until(the_provider_was_asked_in_vain)
    assert protected.metric("oauth_keys_age_seconds") > 0
    provider.away = 0
    provider.rotate("one", "two")
    await until(lambda: is_served(protected, provider))


async def is_served(served: Bridge, provider: IdentityProvider) -> bool:
    return await status(served, provider.token()) == 200


@pytest.mark.usefixtures("impatient")
async def test_without_any_key_the_bridge_starts_and_answers_503_until_it_has_one(
    upstream: ScriptedUpstream, provider: IdentityProvider
) -> None:
    provider.away = 500
    async with bridge(upstream.url, **provider.variables()) as served:
        await until(served.ready)
        answer = await served.post(PING, bearer(provider.token()))
        assert (answer.status, answer.error["code"]) == (503, -32013)
        assert answer.error["data"] == {"outcome": "not_sent", "retryable": True}
        assert answer.headers["Retry-After"]
        assert "WWW-Authenticate" not in answer.headers
        assert served.metric("auth_failures_total", reason="no_keys") == 1
        assert await status(served, unsigned(provider)) == 401
        assert (await served.get(METADATA)).status == 200
        provider.away = 0
        await until(lambda: is_served(served, provider))


@pytest.mark.parametrize("fault", ["redirect", "too long", "slow", "no keys", "http elsewhere"])
async def test_an_invalid_or_slow_provider_response_gives_no_keys(
    upstream: ScriptedUpstream, provider: IdentityProvider, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if fault == "redirect":
        provider.away = 302
    elif fault == "too long":
        provider.jwks = b" " * provider_client.MAX_DOCUMENT_BYTES + json.dumps(public(key("one"))).encode()
    elif fault == "slow":
        monkeypatch.setattr(provider_client, "TIMEOUT_SECONDS", 0.000_1)
    elif fault == "no keys":
        provider.jwks = b'{"keys": []}'
    else:
        provider.metadata = {"jwks_uri": f"http://localhost.evil.example:{provider.url.rpartition(':')[2]}/jwks"}
    async with bridge(upstream.url, **provider.variables()) as served:
        await until(lambda: served.metric("oauth_key_fetches_failed_total") > 0)
        assert await status(served, provider.token()) == 503
    assert fault != "redirect" or "/jwks" not in provider.asked


async def test_a_provider_with_an_untrusted_certificate_gives_no_keys(
    upstream: ScriptedUpstream, provider: IdentityProvider, tmp_path: Path
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority = trustme.CA()
    authority.issue_cert("localhost").configure_cert(context)
    runner = web.AppRunner(provider.app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
    await site.start()
    provider.url = provider.issuer = f"https://localhost:{runner.addresses[0][1]}"
    try:
        async with bridge(upstream.url, **provider.variables()) as served:
            await until(lambda: served.metric("oauth_key_fetches_failed_total") > 0)
            assert await status(served, provider.token()) == 503
        authority.cert_pem.write_to_path(tmp_path / "ca.pem")
        environ = provider.environment(upstream.url) | {"SSL_CERT_FILE": str(tmp_path / "ca.pem")}
        async with BridgeProcess(environ).serving() as trusting:
            await until(lambda: is_served(trusting, provider))
    finally:
        await runner.cleanup()


@pytest.mark.usefixtures("impatient")
async def test_keys_are_rotated_under_32_callers_and_no_valid_token_is_refused(
    protected: Bridge, provider: IdentityProvider
) -> None:
    stopping, statuses, removed = asyncio.Event(), Counter[int](), Counter[int]()
    current = [provider.token()]

    async def call(number: int) -> None:
        while not stopping.is_set():
            answer = await protected.call("write", {"caller": number}, headers=bearer(current[0]))
            statuses[answer.status] += 1

    async with asyncio.timeout(60), asyncio.TaskGroup() as callers:
        for number in range(32):
            callers.create_task(call(number))
        for generation in range(4):
            old, new, token = str(generation), str(generation + 1), current[0]
            provider.rotate(provider.keys[-1].kid or old, new)
            await asyncio.sleep(0.2)
            current[0] = provider.token(jti=new)
            await until(lambda: is_served(protected, provider))
            provider.rotate(new)
            await asyncio.sleep(0.2)
            assert await status(protected, provider.token({"kid": "unknown"})) == 401
            removed[await status(protected, token)] += 1
        stopping.set()
    assert statuses.keys() == {200}
    assert statuses[200] > 100
    assert removed == {401: 4}


async def test_the_users_of_a_provider_share_one_label_in_the_metrics(
    upstream: ScriptedUpstream, provider: IdentityProvider
) -> None:
    async with oauth_bridge(upstream, provider, UPSTREAM_CONCURRENCY="1") as served:
        tokens = [provider.token(sub=f"user-{number}", scope="vestige.write") for number in range(20)]
        await asyncio.gather(*(served.call("write", headers=bearer(token)) for token in tokens))
        await served.call("write", headers=bearer(provider.token(scope="vestige.read")))
        assert served.metrics is not None
        families = list(served.metrics.registry.collect())
        principals = {sample.labels.get("principal") for family in families for sample in family.samples}
        assert principals == {None, "oauth"}
        assert served.metric("turn_wait_seconds_count", principal="oauth") > 0
        assert served.metric("token_last_used_timestamp_seconds", principal="oauth") > time.time() - 60


async def test_neither_a_token_nor_a_subject_gets_into_the_log_or_the_audit_log(
    upstream: ScriptedUpstream, provider: IdentityProvider, tmp_path: Path
) -> None:
    audit = tmp_path / "audit"
    process = BridgeProcess(provider.environment(upstream.url, LOG_LEVEL="debug", AUDIT_LOG=str(audit)))
    token, forged = provider.token(sub="carol@example.com"), provider.token(sub="carol@example.com", aud="other")
    async with process.serving() as served:
        await until(served.ready)
        await until(lambda: is_served(served, provider))
        await served.call("write", headers=bearer(token))
        await served.call("write", headers=bearer(forged))
        await served.get(f"{METADATA}/mcp")
        process.terminate()
        exit_status, log = await process.ended()
    principal = principal_of(provider.issuer, "carol@example.com")
    assert exit_status == 0
    assert f"tool=write principal={principal}" in log
    assert f"http=GET path={METADATA} request_id" in log
    assert json.loads(audit.read_text().splitlines()[-1])["principal"] == principal
    for said in (log, audit.read_text()):
        assert "carol" not in said
        assert token.split(".")[1] not in said
        assert forged.split(".")[2] not in said


async def test_oauth_alone_counts_as_configured_authentication(
    protected: Bridge, caplog: pytest.LogCaptureFixture
) -> None:
    assert [(await protected.get(path)).status for path in ("/health", "/readyz", "/livez")] == [200, 200, 200]
    assert await status(protected, TOKEN) == 401
    assert "not configured" not in caplog.text
