"""When the keys of a provider are fetched, how long they are kept, and which verified tokens are dropped with them."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from harness import until
from identity_provider import AUDIENCE, PUBLIC_URL, SCOPES, key, public, sign
from vestige_bridge.access import oauth_tokens, provider_keys
from vestige_bridge.access.oauth import InvalidToken, NotFetched, ResourceServer
from vestige_bridge.access.oauth_tokens import OAuthTokens
from vestige_bridge.access.provider_keys import KEPT_SECONDS, LEAST_SECONDS, MAX_WAITING, ProviderKeys
from vestige_bridge.errors import KeysUnavailable
from vestige_bridge.settings import Settings

ISSUER = "https://login.example.com"
METADATA = f"{ISSUER}/.well-known/oauth-authorization-server"
OPENID = f"{ISSUER}/.well-known/openid-configuration"


class Documents:
    """The documents of a provider by URL, the requested URLs, and a clock that only tests advance."""

    def __init__(self, *kids: str) -> None:
        self.now = 1000.0
        self.asked: list[str] = []
        self.at: dict[str, bytes] = {}
        self.slow = asyncio.Event()
        self.slow.set()
        self.at[METADATA] = json.dumps({"issuer": ISSUER, "jwks_uri": f"{ISSUER}/keys"}).encode()
        self.show(*kids)

    def show(self, *kids: str) -> None:
        self.at[f"{ISSUER}/keys"] = json.dumps(public(*map(key, kids))).encode()

    async def fetch(self, url: str) -> bytes:
        self.asked.append(url)
        await self.slow.wait()
        if url not in self.at:
            raise NotFetched("HTTP 404")
        return self.at[url]

    def keys(self, jwks_url: str = "") -> ProviderKeys:
        return ProviderKeys(ISSUER, jwks_url, self.fetch, lambda: self.now)

    async def until_due(self, keys: ProviderKeys, kid: str = "unknown") -> bool:
        """Advances the clock until the keys may be fetched again, and returns whether a key is found."""
        self.now += LEAST_SECONDS
        return await keys.find(kid) is not None


def token(kid: str = "one", by: str = "one", **claims: object) -> bytes:
    good = {"iss": ISSUER, "aud": AUDIENCE, "sub": "alice", "exp": time.time() + 600, "scope": "vestige.write"}
    return sign({"alg": "ES256", "kid": kid}, good | claims, key(by)).encode()


def tokens_of(keys: ProviderKeys, removals: list[None] | None = None) -> OAuthTokens:
    environ = {"PUBLIC_URL": PUBLIC_URL, "OAUTH_ISSUER": ISSUER, "OAUTH_SCOPES": SCOPES}
    settings = Settings.from_environ({f"VESTIGE_BRIDGE_{name}": value for name, value in environ.items()})
    return OAuthTokens(ResourceServer(settings), keys, lambda: None if removals is None else removals.append(None))


@pytest.fixture
async def documents() -> Documents:
    return Documents("one")


async def test_unauthenticated_requests_that_wait_for_keys_are_limited(documents: Documents) -> None:
    keys = documents.keys()
    tokens = tokens_of(keys)
    documents.slow.clear()
    unauthenticated = [asyncio.create_task(tokens.verify(token(f"unknown-{n}"))) for n in range(MAX_WAITING + 20)]
    await until(lambda: sum(it.done() for it in unauthenticated) == 20)
    refused = [it.exception() for it in unauthenticated if it.done()]
    assert all(isinstance(error, KeysUnavailable) for error in refused)
    documents.slow.set()
    ended = await asyncio.gather(*unauthenticated, return_exceptions=True)
    assert sum(isinstance(error, InvalidToken) for error in ended) == MAX_WAITING
    valid = token()
    await tokens.verify(valid)
    assert tokens.find(valid) is not None
    with pytest.raises(InvalidToken):
        await tokens.verify(token("unknown"))


@asynccontextmanager
async def refreshing(keys: ProviderKeys) -> AsyncIterator[None]:
    async with asyncio.timeout(30), keys.refreshing():
        await until(lambda: keys.age_seconds is not None)
        yield


async def test_keys_are_fetched_at_the_start_from_where_the_metadata_say(documents: Documents) -> None:
    keys = documents.keys()
    assert keys.age_seconds is None
    async with refreshing(keys):
        assert await keys.find("one") is not None
        documents.now += 5
        assert keys.age_seconds == 5
    assert documents.asked == [METADATA, f"{ISSUER}/keys"]


async def test_a_jwks_url_in_the_settings_needs_no_metadata(documents: Documents) -> None:
    documents.at[f"{ISSUER}/other"] = documents.at[f"{ISSUER}/keys"]
    async with refreshing(documents.keys(f"{ISSUER}/other")):
        assert documents.asked == [f"{ISSUER}/other"]


async def test_a_provider_with_only_openid_metadata_is_found(documents: Documents) -> None:
    documents.at[OPENID] = documents.at.pop(METADATA)
    async with refreshing(documents.keys()):
        assert documents.asked == [METADATA, OPENID, f"{ISSUER}/keys"]


async def test_metadata_of_another_issuer_give_no_keys(documents: Documents, caplog: pytest.LogCaptureFixture) -> None:
    documents.at[METADATA] = json.dumps({"issuer": f"{ISSUER}/", "jwks_uri": f"{ISSUER}/keys"}).encode()
    keys = documents.keys()
    assert await keys.find("one") is None
    assert documents.asked == [METADATA, OPENID]
    assert "its metadata do not name it as the issuer; its metadata at" in caplog.text
    assert "no OAuth token can be verified" in caplog.text


async def test_ten_thousand_unknown_keys_cause_one_fetch_in_ten_seconds(documents: Documents) -> None:
    keys = documents.keys()
    async with refreshing(keys):
        asked = len(documents.asked)
        for round_ in range(3):
            documents.now += LEAST_SECONDS
            asking = (keys.find(f"{round_}-{number}") for number in range(10_000))
            found = await asyncio.gather(*asking, return_exceptions=True)
            assert Counter(type(it) for it in found) == {type(None): MAX_WAITING, KeysUnavailable: 10_000 - MAX_WAITING}
            assert len(documents.asked) == asked + 2 * (round_ + 1)
        documents.now += LEAST_SECONDS - 0.1
        assert await keys.find("another") is None
        assert len(documents.asked) == asked + 6


async def test_a_new_key_is_found_by_the_first_token_that_names_it(documents: Documents) -> None:
    keys = documents.keys()
    async with refreshing(keys):
        documents.show("one", "two")
        assert await keys.find("two") is None
        assert await documents.until_due(keys, "two")


async def test_a_cancelled_request_does_not_cancel_the_fetch_that_others_wait_for(documents: Documents) -> None:
    documents.slow.clear()
    keys = documents.keys()
    leaves, stays = asyncio.create_task(keys.find("one")), asyncio.create_task(keys.find("one"))
    await until(lambda: bool(documents.asked))
    leaves.cancel()
    await asyncio.sleep(0)
    documents.slow.set()
    assert await stays is not None
    assert documents.asked == [METADATA, f"{ISSUER}/keys"]


async def test_a_fetch_from_a_hanging_provider_times_out(documents: Documents, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provider_keys, "ATTEMPT_SECONDS", 0.05)
    documents.slow.clear()
    keys = documents.keys()
    async with asyncio.timeout(5):
        assert await keys.find("one") is None
    assert keys.failures == 1


@pytest.mark.parametrize("bad", [None, b"", b"<html>", b"{}", b'{"keys": 1}'])
async def test_keys_stay_in_use_for_a_day_without_the_provider(
    documents: Documents, caplog: pytest.LogCaptureFixture, bad: bytes | None
) -> None:
    caplog.set_level(logging.INFO)
    keys = documents.keys()
    removals: list[None] = []
    tokens = tokens_of(keys, removals)
    async with refreshing(keys):
        verified = await tokens.verify(token())
        good = documents.at.pop(f"{ISSUER}/keys")
        if bad is not None:
            documents.at[f"{ISSUER}/keys"] = bad
        for _ in range(3):
            assert not await documents.until_due(keys)
        documents.now = 1000 + KEPT_SECONDS - LEAST_SECONDS - 1
        assert not await documents.until_due(keys)
        verified_bytes = token(jti="another")
        assert tokens.find(verified_bytes) is None
        assert (await tokens.verify(verified_bytes)).name == verified.name
        assert tokens.find(verified_bytes) is not None
        assert caplog.text.count("could not be fetched") == 1
        assert not removals
        assert not await documents.until_due(keys)
        assert tokens.find(verified_bytes) is None
        assert keys.age_seconds is None
        assert len(removals) == 1
        assert "are a day old and are not used any more" in caplog.text
        with pytest.raises(KeysUnavailable):
            await tokens.verify(verified_bytes)
        documents.at[f"{ISSUER}/keys"] = good
        assert await documents.until_due(keys, "one")
        assert "1 signing keys of" in caplog.text
    assert keys.failures == 5


@pytest.mark.parametrize("still_there", [False, True])
async def test_keys_that_moved_are_found_again(documents: Documents, *, still_there: bool) -> None:
    keys = documents.keys()
    async with refreshing(keys):
        documents.at[f"{ISSUER}/moved"] = json.dumps(public(key("two"))).encode()
        documents.at[METADATA] = json.dumps({"issuer": ISSUER, "jwks_uri": f"{ISSUER}/moved"}).encode()
        if not still_there:
            del documents.at[f"{ISSUER}/keys"]
        assert await documents.until_due(keys, "two")


async def test_only_the_tokens_of_a_removed_key_are_dropped(documents: Documents) -> None:
    documents.show("one", "two")
    keys = documents.keys()
    removals: list[None] = []
    tokens = tokens_of(keys, removals)
    first, second = token(), token("two", "two")
    async with refreshing(keys):
        for it in (first, second):
            await tokens.verify(it)
        documents.show("two")
        assert tokens.find(first) is not None
        await documents.until_due(keys)
        assert tokens.find(first) is None
        assert tokens.find(second) is not None
        assert tokens.kept == 1
        assert len(removals) == 1
        with pytest.raises(InvalidToken) as refused:
            await tokens.verify(first)
    assert refused.value.reason == "unknown_key"


@pytest.mark.parametrize(
    "left", [[], [{"kty": "oct", "kid": "one", "k": "AAAA"}], [{**public(key("one"))["keys"][0], "use": "enc"}]]
)
async def test_without_a_usable_key_all_tokens_are_dropped(
    documents: Documents, caplog: pytest.LogCaptureFixture, left: list[dict[str, str]]
) -> None:
    keys = documents.keys()
    removals: list[None] = []
    tokens = tokens_of(keys, removals)
    async with refreshing(keys):
        await tokens.verify(first := token())
        documents.at[f"{ISSUER}/keys"] = json.dumps({"keys": left}).encode()
        await documents.until_due(keys)
        assert tokens.find(first) is None
        assert (tokens.kept, len(removals), keys.age_seconds) == (0, 1, None)
        with pytest.raises(KeysUnavailable):
            await tokens.verify(first)
        await documents.until_due(keys)
        documents.show("one")
        assert await documents.until_due(keys, "one")
        assert (await tokens.verify(first)).name
    assert caplog.text.count("publishes no key that can verify a token") == 1


async def test_a_key_whose_id_is_reused_by_another_key_is_dropped(documents: Documents) -> None:
    keys = documents.keys()
    tokens = tokens_of(keys)
    async with refreshing(keys):
        await tokens.verify(first := token())
        members = {**public(key("two"))["keys"][0], "kid": "one"}
        documents.at[f"{ISSUER}/keys"] = json.dumps({"keys": [members]}).encode()
        await documents.until_due(keys)
        assert tokens.find(first) is None
        with pytest.raises(InvalidToken) as refused:
            await tokens.verify(first)
        assert refused.value.reason == "signature"
        assert (await tokens.verify(token("one", "two"))).name


async def test_a_verified_token_is_found_by_its_bytes_until_it_expires(
    documents: Documents, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = documents.keys()
    tokens = tokens_of(keys)
    async with refreshing(keys):
        short = token(exp=time.time() - 59)
        assert tokens.find(short) is None
        verified = await tokens.verify(short)
        assert tokens.find(short) is verified
        assert tokens.find(short + b"x") is None
        assert tokens.last_used >= time.time() - 5
        monkeypatch.setattr(time, "time", lambda: verified.expires_at)
        assert tokens.find(short) is None
        assert tokens.kept == 0
        with pytest.raises(InvalidToken) as refused:
            await tokens.verify(short)
    assert refused.value.reason == "expired_token"


async def test_only_verified_tokens_are_kept_up_to_a_limit(
    documents: Documents, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oauth_tokens, "MAX_TOKENS", 3)
    keys = documents.keys()
    tokens = tokens_of(keys)
    async with refreshing(keys):
        for number in range(5):
            await tokens.verify(token(jti=str(number)))
            with pytest.raises(InvalidToken):
                await tokens.verify(token(aud="another", jti=str(number)))
            with pytest.raises(InvalidToken):
                await tokens.verify(token(by="two", jti=str(number)))
    assert tokens.kept == 3


async def test_the_length_of_all_cached_tokens_is_limited(
    documents: Documents, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oauth_tokens, "MAX_TOKENS_BYTES", 10_000)
    tokens = tokens_of(documents.keys())
    async with refreshing(tokens.keys):
        shown = [token(jti=str(number) + "x" * 2_000) for number in range(10)]
        for it in [*shown, *shown]:
            await tokens.verify(it)
        found = [it for it in shown if tokens.find(it) is not None]
        assert found == shown[-len(found) :]
        assert 10_000 - len(shown[0]) <= sum(map(len, found)) <= 10_000
        documents.show("two")
        await documents.until_due(tokens.keys)
        await tokens.verify(token("two", "two"))
    assert tokens.kept == 1


async def test_without_keys_no_token_can_be_verified_and_an_invalid_one_is_rejected(
    documents: Documents,
) -> None:
    documents.at.clear()
    tokens = tokens_of(documents.keys())
    with pytest.raises(KeysUnavailable):
        await tokens.verify(token())
    with pytest.raises(InvalidToken):
        await tokens.verify(b"eyJhbGciOiJub25lIn0.e30.")
