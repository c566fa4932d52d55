"""A simulated browser whose user agrees to every consent page: it follows the provider's redirects to the client."""

from __future__ import annotations

import asyncio
import urllib.error
import urllib.request
from http.cookiejar import CookieJar
from typing import Any
from urllib.parse import parse_qs, urlsplit

REDIRECT_URL = "http://127.0.0.1:9/callback"
SIGN_IN = "sign in"
"""Replaces the token on a client's command line if the client has to get one from the provider."""

METADATA: dict[str, Any] = {
    "client_name": "interop",
    "redirect_uris": [REDIRECT_URL],
    "grant_types": ["authorization_code", "refresh_token"],
    "response_types": ["code"],
    "token_endpoint_auth_method": "none",
}


class _UntilTheClient(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *arguments: Any) -> urllib.request.Request | None:
        return None if arguments[-1].startswith(REDIRECT_URL) else super().redirect_request(*arguments)


def _agree(authorization_url: str) -> dict[str, str]:
    browser = urllib.request.build_opener(
        urllib.request.ProxyHandler({}), _UntilTheClient, urllib.request.HTTPCookieProcessor(CookieJar())
    )
    try:
        browser.open(authorization_url, timeout=20)
    except urllib.error.HTTPError as answer:
        location = answer.headers.get("Location", "")
        if not location.startswith(REDIRECT_URL):
            raise RuntimeError(f"{answer.code} {answer.read().decode()[:300]}") from None
        return {name: values[0] for name, values in parse_qs(urlsplit(location).query).items()}
    raise RuntimeError("the provider did not lead back")


class Consent:
    """The callbacks with which a client signs its user in."""

    def __init__(self) -> None:
        self.answer: dict[str, str] = {}

    async def redirect(self, url: str) -> None:
        """Opens the provider's sign-in page, and stores the parameters of the redirect to the client."""
        self.answer = await asyncio.to_thread(_agree, url)


class Storage:
    """Stores a client's tokens and registration in memory."""

    def __init__(self) -> None:
        self._tokens: Any = None
        self._client: Any = None

    async def get_tokens(self) -> Any:
        return self._tokens

    async def set_tokens(self, tokens: Any) -> None:
        self._tokens = tokens

    async def get_client_info(self) -> Any:
        return self._client

    async def set_client_info(self, client_info: Any) -> None:
        self._client = client_info
