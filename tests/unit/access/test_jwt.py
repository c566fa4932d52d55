"""Attacks on the signature of a token and on the keys that verify it."""

from __future__ import annotations

import base64
import hmac
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from joserfc.jwe import encrypt_compact
from joserfc.jwk import ECKey, OctKey, RSAKey

from identity_provider import key, public, sign
from vestige_bridge.access.jwt import MAX_KEYS, MAX_TOKEN_BYTES, Key, Signed, read_keys
from vestige_bridge.access.oauth import InvalidToken, check_header
from vestige_bridge.settings import has_jwt_form

CLAIMS = {"sub": "alice"}
EC, RSA = key("one"), key("rsa", "RSA", 2048)


def keys_of(*keys: Any, **members: str) -> dict[str, Key]:
    return read_keys(json.dumps(public(*keys, **members)).encode(), {})


def verdict(token: str | bytes, keys: dict[str, Key]) -> str:
    token = token if isinstance(token, bytes) else token.encode()
    try:
        signed = Signed(token)
    except InvalidToken as error:
        return error.reason
    found = keys.get(signed.kid)
    return "unknown_key" if found is None else "taken" if found.verifies(signed) else "signature"


def b64(data: Any) -> str:
    raw = data if isinstance(data, bytes) else json.dumps(data).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


@pytest.mark.parametrize(
    ("algorithm", "by"),
    [
        *[(algorithm, RSA) for algorithm in ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")],
        ("ES256", EC),
        ("ES384", key("p-384", size="P-384")),
        ("ES512", key("p-521", size="P-521")),
        ("Ed25519", key("ed", "OKP")),
    ],
)
def test_a_token_of_each_algorithm_verifies_with_its_key_and_with_no_other(algorithm: str, by: Any) -> None:
    token = sign({"alg": algorithm, "kid": by.kid}, CLAIMS, by)
    assert verdict(token, keys_of(by)) == "taken"
    assert verdict(token, keys_of(by, alg=algorithm)) == "taken"
    assert verdict(token, keys_of(by, alg="RS256" if algorithm != "RS256" else "RS384")) in ("signature", "unknown_key")
    size = {"RSA": 2048, "EC": by.get("crv")}.get(by.key_type, "")
    other = keys_of(key(f"other-{by.kid}", by.key_type, size))[f"other-{by.kid}"]
    assert verdict(token, {by.kid: other}) == "signature"
    assert Signed(token.encode()).claims == CLAIMS


@pytest.mark.filterwarnings("ignore:EdDSA is deprecated")
def test_a_token_with_the_older_name_of_its_algorithm_is_accepted() -> None:
    by = key("ed", "OKP")
    assert verdict(sign({"alg": "EdDSA", "kid": "ed"}, CLAIMS, by), keys_of(by)) == "taken"


@pytest.mark.parametrize("algorithm", ["none", "None", "NONE", "nOnE", ""])
@pytest.mark.parametrize("signature", ["", "AA"])
def test_a_token_without_a_signature_is_refused(algorithm: str, signature: str) -> None:
    token = f"{b64({'alg': algorithm, 'kid': 'one'})}.{b64(CLAIMS)}.{signature}"
    assert verdict(token, keys_of(EC)) in ("malformed", "algorithm")


@pytest.mark.parametrize("algorithm", [None, 7, ["ES256"], {"ES256": 1}])
def test_an_algorithm_that_is_no_text_is_refused(algorithm: Any) -> None:
    with pytest.raises(InvalidToken):
        check_header({"alg": algorithm, "kid": "one"})
    assert verdict(f"{b64({'alg': algorithm, 'kid': 'one'})}.{b64(CLAIMS)}.{b64(bytes(64))}", keys_of(EC)) in (
        "algorithm",
        "malformed",
    )


@pytest.mark.parametrize("header", ["alg", ["alg"], 7, None])
def test_a_header_that_is_no_object_is_refused(header: Any) -> None:
    assert verdict(f"{b64(header)}.{b64(CLAIMS)}.{b64(bytes(64))}", keys_of(EC)) == "malformed"


@pytest.mark.parametrize("algorithm", ["HS256", "HS384", "HS512"])
@pytest.mark.parametrize("form", ["pem", "der", "jwk"])
def test_a_token_signed_with_the_public_key_as_a_secret_is_refused(algorithm: str, form: str) -> None:
    assert isinstance(RSA, RSAKey)
    secret = {
        "pem": RSA.as_pem(private=False),
        "der": RSA.as_der(private=False),
        "jwk": json.dumps(RSA.as_dict(private=False)).encode(),
    }[form]
    signed = f"{b64({'alg': algorithm, 'kid': 'rsa'})}.{b64(CLAIMS)}"
    token = f"{signed}.{b64(hmac.digest(secret, signed.encode(), 'sha' + algorithm[2:]))}"
    assert verdict(token, keys_of(RSA)) == "algorithm"


def test_a_shared_secret_in_the_key_set_is_ignored() -> None:
    secret = OctKey.import_key({"kty": "oct", "k": b64(b"a secret of thirty-two bytes ....."), "kid": "shared"})
    document = json.dumps({"keys": [secret.as_dict(), *public(EC)["keys"]]}).encode()
    assert list(read_keys(document, {})) == ["one"]
    assert verdict(sign({"alg": "HS256", "kid": "shared"}, CLAIMS, secret), read_keys(document, {})) == "algorithm"


@pytest.mark.parametrize("member", ["jwk", "jku", "x5u", "x5c"])
def test_keys_and_key_addresses_in_the_token_are_ignored(member: str) -> None:
    mine = key("mine")
    assert isinstance(mine, ECKey)
    brought: dict[str, Any] = {
        "jwk": mine.as_dict(private=False),
        "jku": "https://evil.example/keys",
        "x5u": "https://evil.example/certificate",
        "x5c": [base64.b64encode(mine.as_der(private=False)).decode()],
    }
    token = sign({"alg": "ES256", "kid": "one", member: brought[member]}, CLAIMS, mine)
    assert verdict(token, keys_of(EC)) == "signature"
    assert verdict(sign({"alg": "ES256", member: brought[member]}, CLAIMS, mine), keys_of(EC)) == "unknown_key"


@pytest.mark.parametrize("kid", [None, 7, ["one"], {"one": 1}, "", "One", "one\x00", "../one", "two"])
def test_a_token_that_names_no_known_key_is_refused(kid: Any) -> None:
    header = {"alg": "ES256"} if kid is None else {"alg": "ES256", "kid": kid}
    token = f"{b64(header)}.{b64(CLAIMS)}.{b64(bytes(64))}"
    assert verdict(token, keys_of(EC)) in ("unknown_key", "malformed")


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        *[(kind, "taken") for kind in (None, "at+jwt", "AT+JWT", "application/at+jwt", "JWT", "jwt")],
        *[(kind, "type") for kind in ("dpop+jwt", "logout+jwt", "secevent+jwt", "at", "", "application/jose")],
    ],
)
def test_a_token_whose_typ_is_not_an_access_token_is_rejected(kind: str | None, expected: str) -> None:
    header = {"alg": "ES256", "kid": "one"} | ({} if kind is None else {"typ": kind})
    assert verdict(sign(header, CLAIMS, EC), keys_of(EC)) == expected


def test_a_token_with_an_unknown_critical_header_is_rejected() -> None:
    header = {"alg": "ES256", "kid": "one", "crit": ["urn:x"], "urn:x": 1}
    assert verdict(f"{b64(header)}.{b64(CLAIMS)}.{b64(bytes(64))}", keys_of(EC)) == "malformed"
    unencoded = {"alg": "ES256", "kid": "one", "crit": ["b64"], "b64": False}
    assert verdict(f"{b64(unencoded)}.{b64(CLAIMS)}.{b64(bytes(64))}", keys_of(EC)) in ("malformed", "signature")


def test_an_encrypted_token_is_refused() -> None:
    encrypting = RSAKey.import_key(RSA.as_dict(private=False, use="enc"))
    token = encrypt_compact({"alg": "RSA-OAEP", "enc": "A128GCM", "kid": "rsa"}, b"{}", encrypting)
    assert has_jwt_form(token.encode())
    assert verdict(token, keys_of(RSA)) == "malformed"


def test_a_token_over_the_length_limit_is_rejected() -> None:
    def of(length: int) -> str:
        return sign({"alg": "ES256", "kid": "one"}, {"groups": "x" * length}, EC)

    fits = next(of(length) for length in range(12_300, 0, -1) if len(of(length)) <= MAX_TOKEN_BYTES)
    assert verdict(fits, keys_of(EC)) == "taken"
    assert verdict(of(12_300), keys_of(EC)) == "malformed"


@pytest.mark.parametrize(
    "token",
    [
        *("..", "a.b.c", "eyJ.eyJ.eyJ", "e30.e30.e30", f"{b64(b'[]')}.e30.e30", f"{b64(b'null')}.e30.e30"),
        *(f"{b64({'alg': 7, 'kid': 'one'})}.e30.e30", f"{b64({'alg': ['ES256'], 'kid': 'one'})}.e30.e30"),
        *(f"{b64(b'{' * 5000)}.e30.e30", f"{b64(b'[' * 5000)}.e30.e30", f"{b64({'kid': 'one'})}.e30.e30"),
        f"{b64({'alg': 'ES256', 'kid': 'one'})}.e30.e3 0",
    ],
)
def test_a_malformed_token_is_rejected(token: str) -> None:
    assert verdict(token, keys_of(EC)) in ("malformed", "algorithm", "unknown_key")


@pytest.mark.parametrize("payload", [b"", b"[]", b"null", b"{", b"\xff", b"[" * 5000])
def test_claims_that_are_no_object_are_refused(payload: bytes) -> None:
    token = sign({"alg": "ES256", "kid": "one"}, payload or b" ", EC)
    with pytest.raises(InvalidToken):
        _ = Signed(token.encode()).claims


@given(st.data())
def test_a_token_with_one_changed_byte_is_rejected(data: st.DataObject) -> None:
    token = bytearray(sign({"alg": "ES256", "kid": "one"}, CLAIMS, EC), "ascii")
    # The last character has unused bits.
    position = data.draw(st.integers(0, len(token) - 2))
    before = token[position]
    token[position] = data.draw(st.integers(0, 255).filter(lambda value: value != before))
    assert verdict(bytes(token), keys_of(EC)) != "taken"


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_rejected_with_a_reason(token: bytes) -> None:
    assert verdict(token, keys_of(EC)) != "taken"


GOOD_KEY = public(EC)["keys"][0]


@pytest.mark.parametrize(
    "jwk",
    [
        {**GOOD_KEY, "use": "enc"},
        {**GOOD_KEY, "key_ops": ["sign"]},
        {**GOOD_KEY, "key_ops": "verify"},
        {**GOOD_KEY, "kid": None},
        {**GOOD_KEY, "kid": 7},
        {**GOOD_KEY, "crv": "secp256k1"},
        {**GOOD_KEY, "kty": "RSA"},
        {**GOOD_KEY, "x": GOOD_KEY["y"], "y": GOOD_KEY["x"]},
        {**GOOD_KEY, "x": "!"},
        {"kty": "RSA", "kid": "short", "n": b64(bytes([255] * 128)), "e": "AQAB"},
        {"kty": "RSA", "kid": "even", "n": b64(bytes([254] * 256)), "e": "AA"},
        {"kty": "OKP", "kid": "x", "crv": "X25519", "x": b64(bytes(32))},
        {"kty": "unknown", "kid": "x"},
        {},
        [],
        "one",
        None,
    ],
)
def test_a_key_that_cannot_verify_a_token_is_ignored(jwk: Any) -> None:
    document = json.dumps({"keys": [jwk, public(key("two"))["keys"][0]]}).encode()
    assert list(read_keys(document, {})) == ["two"]


@pytest.mark.parametrize(
    "document",
    [b"", b"<html>", b"[]", b"null", b'{"keys":{}}', b'{"keys":null}', b'{"keys":"one"}', b"[" * 100_000, b"\xff"],
)
def test_a_document_that_is_not_a_jwk_set_is_rejected(document: bytes) -> None:
    with pytest.raises(ValueError, match=r"^its keys are not a JWK Set$"):
        read_keys(document, {})


@given(st.recursive(st.none() | st.integers() | st.text(), lambda it: st.lists(it) | st.dictionaries(st.text(), it)))
def test_a_key_with_any_member_value_is_read_or_ignored(value: Any) -> None:
    names = ("kty", "kid", "alg", "use", "key_ops", "n", "e", "crv", "x", "y")
    for name in names:
        document = json.dumps({"keys": [{**GOOD_KEY, name: value}, public(key("two"))["keys"][0]]}).encode()
        assert "two" in read_keys(document, {})


def test_the_first_key_of_an_id_is_used_and_the_number_of_keys_is_bounded() -> None:
    other = {**public(key("two"))["keys"][0], "kid": "one"}
    keys = read_keys(json.dumps({"keys": [GOOD_KEY, other]}).encode(), {})
    assert verdict(sign({"alg": "ES256", "kid": "one"}, CLAIMS, EC), keys) == "taken"
    many = [{**GOOD_KEY, "kid": str(number)} for number in range(MAX_KEYS + 1)]
    assert len(read_keys(json.dumps({"keys": many}).encode(), {})) == MAX_KEYS


def test_an_unchanged_key_stays_the_same_object_and_a_changed_key_does_not() -> None:
    before = keys_of(EC, key("two"))
    changed = {**public(key("three"))["keys"][0], "kid": "two"}
    after = read_keys(json.dumps({"keys": [GOOD_KEY, changed]}).encode(), before)
    assert after["one"] is before["one"]
    assert after["two"] is not before["two"]


def test_private_members_of_a_key_are_not_kept() -> None:
    document = json.dumps({"keys": [EC.as_dict(private=True)]}).encode()
    assert "d" not in read_keys(document, {})["one"].members
