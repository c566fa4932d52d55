"""An access token and its provider, to measure the cost of a request whose token is already verified."""

from __future__ import annotations

import http.server
import json
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Final

from bench.contenders import BRIDGE, Contender
from bench.processes import ROOT

NAME: Final = "bridge, OAuth"

_ISSUER: Final = "https://login.example.com/"
_PUBLIC_URL: Final = "https://vestige.example.com"
_SIGN: Final = f"""
import json, time
from joserfc import jwk, jwt
key = jwk.RSAKey.generate_key(2048, {{"kid": "bench", "use": "sig"}})
claims = {{
    "iss": {_ISSUER!r}, "aud": [{_PUBLIC_URL + "/mcp"!r}], "sub": "0" * 36, "client_id": "1" * 36, "jti": "2" * 36,
    "iat": int(time.time()), "exp": int(time.time()) + 86400, "scope": "openid offline_access vestige.write",
    "preferred_username": "alice@example.com", "groups": ["memory-writers", "engineering", "everybody"],
}}
token = jwt.encode({{"alg": "RS256", "kid": "bench", "typ": "at+jwt"}}, claims, key)
print(json.dumps({{"token": token, "keys": [key.as_dict(private=False)]}}))
"""
"""A script for the Python that can sign: it prints a token of a usual length, and the key that verifies it."""


@contextmanager
def contender() -> Iterator[Contender]:
    """Yields the bridge as a contender whose clients send an access token; its provider runs within the context."""
    made = subprocess.run([ROOT / ".venv/bin/python", "-c", _SIGN], capture_output=True, text=True, check=True)
    signed = json.loads(made.stdout)
    document = json.dumps({"keys": signed["keys"]}).encode()

    class Keys(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(document)))
            self.end_headers()
            self.wfile.write(document)

        def log_message(self, *arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Keys) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        settings = {
            "VESTIGE_BRIDGE_OAUTH_ISSUER": _ISSUER,
            "VESTIGE_BRIDGE_PUBLIC_URL": _PUBLIC_URL,
            "VESTIGE_BRIDGE_OAUTH_SCOPES": "vestige.write=all",
            "VESTIGE_BRIDGE_OAUTH_JWKS_URL": f"http://127.0.0.1:{server.server_port}/keys",
        }
        try:
            yield replace(
                BRIDGE,
                name=NAME,
                environ=lambda *place: BRIDGE.environ(*place) | settings,
                headers=(f"Authorization: Bearer {signed['token']}",),
            )
        finally:
            server.shutdown()
