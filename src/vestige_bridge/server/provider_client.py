"""Documents of the identity provider over HTTP: its metadata and its keys.

Invariant: whatever answers there, an answer is bounded in bytes and time, and leads nowhere else.
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

    Certificates are verified by those that the system trusts, or the file that ``SSL_CERT_FILE`` names.

    Errors:
        NotFetched: there is none.
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
