"""The HTTP client for the identity provider's metadata and keys.

Invariant: an answer is bounded in bytes and time, and redirects are not followed.
"""

from __future__ import annotations

import asyncio
from typing import Final

import aiohttp

from vestige_bridge.access.oauth import NotFetched
from vestige_bridge.http.headers import JSON

TIMEOUT_SECONDS: Final = 5.0
MAX_DOCUMENT_BYTES: Final = 262_144


async def fetch(url: str) -> bytes:
    """GETs a document.

    Certificates are verified with the system's trusted ones, or with those in the file that ``SSL_CERT_FILE`` names.

    Errors:
        NotFetched: it could not be fetched.
    """
    sent = {
        "Accept": f"{JSON}, application/jwk-set+json",
        "Accept-Encoding": "identity",
        "User-Agent": "vestige-bridge",
    }
    try:
        async with (
            asyncio.timeout(TIMEOUT_SECONDS),
            aiohttp.ClientSession(auto_decompress=False, headers=sent) as session,
            session.get(url, allow_redirects=False) as response,
        ):
            if response.status != 200:
                raise NotFetched(f"HTTP {response.status}")
            document = bytearray()
            async for chunk in response.content.iter_any():
                document += chunk
                if len(document) > MAX_DOCUMENT_BYTES:
                    raise NotFetched(f"more than {MAX_DOCUMENT_BYTES} bytes")
            return bytes(document)
    except TimeoutError:
        raise NotFetched(f"no answer within {TIMEOUT_SECONDS:g} s") from None
    except (aiohttp.ClientError, OSError) as error:
        raise NotFetched(str(error) or type(error).__name__) from error
