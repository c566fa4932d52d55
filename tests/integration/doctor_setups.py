"""Set-ups in which one layer between the user and Vestige is broken, made of real parts where they exist."""

from __future__ import annotations

import asyncio
import hashlib
import json
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trustme
from aiohttp import web
from aiohttp.test_utils import TestServer

from harness import (
    SERVER_EVERYTHING,
    SERVER_MEMORY,
    SUPERGATEWAY,
    SUPERGATEWAY_3,
    Bridge,
    Gateway,
    Received,
    ScriptedUpstream,
    bridge,
    environment,
    free_port,
    until,
)
from identity_provider import IdentityProvider, key, public


@dataclass(frozen=True)
class Patient:
    """The arguments with which the doctor runs."""

    environ: Mapping[str, str]
    url: str | None = None
    token_env: str | None = None

    @property
    def provider(self) -> str:
        """The URL of the identity provider; empty if the set-up has none."""
        return self.environ.get("VESTIGE_BRIDGE_OAUTH_ISSUER", "") or self.environ.get("PROVIDER", "")


@dataclass(frozen=True)
class Setup:
    """A set-up and its broken layer."""

    name: str
    layer: str
    make: Callable[[Path], AbstractAsyncContextManager[Patient]]


SETUPS: list[Setup] = []

HASHED = "a-token-that-a-file-knows-by-its-hash"


def entry(name: str, token: str, *lines: str) -> str:
    """Returns the entry of a token in a ``tokens.toml``."""
    digest = hashlib.sha256(token.encode()).hexdigest()
    return "\n".join(["[[token]]", f'name = "{name}"', f'sha256 = "{digest}"', *lines, ""])


def broken(layer: str, name: str) -> Callable[[Callable[[Path], AsyncIterator[Patient]]], None]:
    """Returns a decorator that adds a set-up to the list."""

    def add(make: Callable[[Path], AsyncIterator[Patient]]) -> None:
        SETUPS.append(Setup(name, layer, asynccontextmanager(make)))

    return add


def near(upstream: str, served: Bridge | None = None, **variables: str) -> Patient:
    """Returns the arguments for a doctor on the machine of the bridge, or on one that should run a bridge."""
    port = served.origin.rpartition(":")[2] if served else str(free_port())
    return Patient(environment(upstream, PORT=port, **variables))


def far(url: str, token: str | None = None) -> Patient:
    """Returns the arguments for a doctor on another machine, with only an address and a token."""
    return Patient({} if token is None else {"VESTIGE_AUTH_TOKEN": token}, url)


@asynccontextmanager
async def scripted_upstream() -> AsyncIterator[ScriptedUpstream]:
    upstream = ScriptedUpstream()
    async with TestServer(upstream.app, host="127.0.0.1") as server:
        upstream.url = str(server.make_url("/mcp"))
        yield upstream


@asynccontextmanager
async def listening(
    serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]], tls: ssl.SSLContext | None = None
) -> AsyncIterator[str]:
    """Serves TCP connections with ``serve``; yields the host and the port."""

    async def serve_one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await serve(reader, writer)
        finally:
            writer.close()

    server = await asyncio.start_server(serve_one, "127.0.0.1", 0, ssl=tls)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


def tls_context() -> ssl.SSLContext:
    """Returns a TLS context whose certificate no system trusts."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    return context


async def hang(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
    """Reads until the client closes and sends nothing."""
    while await reader.read(65536):
        pass


async def answer_html(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers with an HTML page, as a web server that does not implement MCP does."""
    await reader.readuntil(b"\r\n\r\n")
    page = b"<html>Welcome!</html>"
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: %d\r\n\r\n%s" % (len(page), page))
    await writer.drain()


async def redirect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Redirects every request to a login page."""
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 302 Found\r\nLocation: https://login.example.com/\r\nContent-Length: 0\r\n\r\n")
    await writer.drain()


async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Sends first, and not HTTP."""
    writer.write(b"220 mail.example.com ESMTP\r\n")
    await hang(reader, writer)


def nobody() -> str:
    """Returns the URL of an upstream on a port on which nothing listens."""
    return f"http://127.0.0.1:{free_port()}/mcp"


@broken("settings", "a setting has a value that is not allowed")
async def _(tmp: Path) -> AsyncIterator[Patient]:
    yield Patient(environment("localhost:3100"))


@broken("settings", "neither a token nor anonymous access is set")
async def _(tmp: Path) -> AsyncIterator[Patient]:
    async with scripted_upstream() as upstream, bridge(upstream.url) as served:
        await until(served.ready)
        yield near(upstream.url, served, VESTIGE_AUTH_TOKEN="")


@broken("settings", "the token file is missing")
async def _(tmp: Path) -> AsyncIterator[Patient]:
    yield near(nobody(), VESTIGE_AUTH_TOKEN="", VESTIGE_AUTH_TOKEN_FILE=str(tmp / "token"))


@broken("settings", "the token file is empty")
async def _(tmp: Path) -> AsyncIterator[Patient]:
    (tmp / "token").write_text("\n")
    yield near(nobody(), VESTIGE_AUTH_TOKEN="", VESTIGE_AUTH_TOKEN_FILE=str(tmp / "token"))


@broken("settings", "the state directory does not exist")
async def _(tmp: Path) -> AsyncIterator[Patient]:
    yield near(nobody(), STATE_DIR=str(tmp / "state"))


@broken("address", "no bridge runs, or it listens on another port")
async def _(tmp: Path) -> AsyncIterator[Patient]:
    async with scripted_upstream() as upstream:
        yield near(upstream.url)


@broken("address", "the name does not resolve")
async def _(tmp: Path) -> AsyncIterator[Patient]:
    yield far("http://vestige.invalid:8000")


@broken("address", "packets to the address are lost")
async def _(tmp: Path) -> AsyncIterator[Patient]:
    # Once the queue is full, the kernel drops new connection requests.
    with ExitStack() as sockets:
        listener = sockets.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        while True:
            waiting = sockets.enter_context(socket.socket())
            waiting.settimeout(0.2)
            try:
                waiting.connect(listener.getsockname())
            except TimeoutError:
                break
        yield far(f"http://127.0.0.1:{listener.getsockname()[1]}")


@broken("address", "VESTIGE_BRIDGE_PORT is 0")
async def _(tmp: Path) -> AsyncIterator[Patient]:
    yield Patient(environment(nobody(), PORT="0"))


@broken("bridge", "a web server has the port")
async def _(tmp: Path) -> AsyncIterator[Patient]:
    async with scripted_upstream() as upstream, listening(answer_html) as authority:
        yield Patient(environment(upstream.url, PORT=authority.rpartition(":")[2]))


@broken("bridge", "a mail server has the port")
async def _(tmp: Path) -> AsyncIterator[Patient]:
    async with listening(greet) as authority:
        yield far(f"http://{authority}")


@broken("bridge", "a login page is in front of the bridge")
async def _(tmp: Path) -> AsyncIterator[Patient]:
    async with listening(redirect) as authority:
        yield far(f"http://{authority}")


@broken("bridge", "the URL has https, but the server uses plain HTTP")
async def _(tmp: Path) -> AsyncIterator[Patient]:
    async with bridge(nobody()) as served:
        yield far(served.origin.replace("http:", "https:"))


@broken("bridge", "the URL has http, but the server uses TLS")
async def _(tmp: Path) -> AsyncIterator[Patient]:
    async with listening(hang, tls_context()) as authority:
        yield far(f"http://{authority}")


@broken("bridge", "this machine does not trust the certificate")
async def _(tmp: Path) -> AsyncIterator[Patient]:
    async with listening(hang, tls_context()) as authority:
        yield far(f"https://{authority}")


@broken("bridge", "the bridge does not respond")
async def _(tmp: Path) -> AsyncIterator[Patient]:
    async with listening(hang) as authority:
        yield far(f"http://{authority}")


@broken("bridge", "the bridge is shutting down")
async def _(tmp: Path) -> AsyncIterator[Patient]:
    async with scripted_upstream() as upstream, bridge(upstream.url) as served:
        assert served.drain is not None
        await served.drain()
        yield near(upstream.url, served)


@broken("token", "the token is wrong")
async def _(tmp: Path) -> AsyncIterator[Patient]:
    async with scripted_upstream() as upstream, bridge(upstream.url) as served:
        await until(served.ready)
        yield near(upstream.url, served, VESTIGE_AUTH_TOKEN="another")


@broken("token", "the token has expired")
async def _(tmp: Path) -> AsyncIterator[Patient]:
    (tmp / "tokens.toml").write_text(entry("agents", HASHED, "expires = 2001-01-31T00:00:00Z"))
    file = {"VESTIGE_AUTH_TOKEN": "", "VESTIGE_AUTH_TOKEN_FILE": str(tmp / "tokens.toml")}
    async with scripted_upstream() as upstream, bridge(upstream.url, **file) as served:
        yield near(upstream.url, served, VESTIGE_AUTH_TOKEN=HASHED)


@broken("token", "no token is set")
async def _(tmp: Path) -> AsyncIterator[Patient]:
    async with scripted_upstream() as upstream, bridge(upstream.url) as served:
        await until(served.ready)
        yield far(served.origin)


@broken("token", "the bridge was started with neither a token nor anonymous access")
async def _(tmp: Path) -> AsyncIterator[Patient]:
    async with scripted_upstream() as upstream, bridge(upstream.url, VESTIGE_AUTH_TOKEN="") as served:
        yield near(upstream.url, served)


@asynccontextmanager
async def signing(**token: Any) -> AsyncIterator[tuple[IdentityProvider, Bridge, Patient]]:
    """Yields a provider, a bridge that accepts its tokens, and a doctor on the same machine with such a token."""
    async with IdentityProvider().serving() as provider, scripted_upstream() as upstream:
        variables = provider.variables()
        async with bridge(upstream.url, **variables) as served:
            await until(served.ready)
            await until(lambda: served.metric("oauth_keys") > 0)
            there = near(upstream.url, served, **variables)
            yield (
                provider,
                served,
                Patient({**there.environ, "ACCESS_TOKEN": provider.token(**token)}, None, "ACCESS_TOKEN"),
            )


@broken("provider", "nobody listens at its address")
async def _(tmp: Path) -> AsyncIterator[Patient]:
    async with signing() as (_provider, _served, patient):
        nowhere = f"http://127.0.0.1:{free_port()}"
        yield Patient({**patient.environ, "VESTIGE_BRIDGE_OAUTH_ISSUER": nowhere}, None, "ACCESS_TOKEN")


@broken("provider", "it has no metadata")
async def _(tmp: Path) -> AsyncIterator[Patient]:
    async with signing() as (provider, _served, patient):
        provider.serves = ""
        yield patient


@broken("provider", "its metadata name an issuer that is spelled otherwise")
async def _(tmp: Path) -> AsyncIterator[Patient]:
    async with signing() as (provider, _served, patient):
        provider.metadata = {"issuer": "https://login.example.com/"}
        yield patient


@broken("provider", "the issuer is spelled otherwise, and the URL of the keys is configured")
async def _(tmp: Path) -> AsyncIterator[Patient]:
    async with signing() as (provider, _served, patient):
        provider.metadata = {"issuer": "https://login.example.com/"}
        yield Patient(
            {**patient.environ, "VESTIGE_BRIDGE_OAUTH_JWKS_URL": f"{provider.url}/jwks"}, None, "ACCESS_TOKEN"
        )


@broken("provider", "none of its keys is a signing key")
async def _(tmp: Path) -> AsyncIterator[Patient]:
    async with signing() as (provider, _served, patient):
        keys = [{"kty": "oct", "kid": "one", "k": "AAAA"}, {**public(key("two"))["keys"][0], "use": "enc"}]
        provider.jwks = json.dumps({"keys": keys}).encode()
        yield patient


@broken("provider", "it has no keys")
async def _(tmp: Path) -> AsyncIterator[Patient]:
    async with signing() as (provider, _served, patient):
        provider.jwks = b'{"keys": []}'
        yield patient


@broken("provider", "the bridge on another machine accepts no OAuth tokens")
async def _(tmp: Path) -> AsyncIterator[Patient]:
    async with IdentityProvider().serving() as provider, bridge(nobody()) as served:
        yield Patient({"VESTIGE_AUTH_TOKEN": provider.token(), "PROVIDER": provider.url}, served.origin)


@broken("token", "an OAuth token is for another audience")
async def _(tmp: Path) -> AsyncIterator[Patient]:
    async with signing(aud="https://other.example.com/mcp") as (_provider, _served, patient):
        yield patient


@broken("token", "an OAuth token has expired")
async def _(tmp: Path) -> AsyncIterator[Patient]:
    async with signing(exp=1_000_000_000) as (_provider, _served, patient):
        yield patient


@broken("token", "an OAuth token has expired, seen from another machine")
async def _(tmp: Path) -> AsyncIterator[Patient]:
    async with (
        IdentityProvider().serving() as provider,
        scripted_upstream() as upstream,
        bridge(upstream.url, **provider.variables(OAUTH_AUDIENCE="api://vestige")) as served,
    ):
        await until(served.ready)
        await until(lambda: served.metric("oauth_keys") > 0)
        expired = provider.token(aud="api://vestige", exp=1_000_000_000)
        yield Patient({"VESTIGE_AUTH_TOKEN": expired, "PROVIDER": provider.url}, served.origin)


@broken("token", "an OAuth token was signed with a key that the provider does not show")
async def _(tmp: Path) -> AsyncIterator[Patient]:
    async with signing(header={"kid": "two"}) as (_provider, _served, patient):
        yield patient


@broken("token", "an OAuth token is not an access token")
async def _(tmp: Path) -> AsyncIterator[Patient]:
    async with signing(header={"typ": "logout+jwt"}) as (_provider, _served, patient):
        yield patient


@broken("token", "the signature of an OAuth token is wrong")
async def _(tmp: Path) -> AsyncIterator[Patient]:
    async with signing(header={"kid": "one"}, by=key("two")) as (_provider, _served, patient):
        yield patient


@broken("token", "an OAuth token has no scope that permits anything")
async def _(tmp: Path) -> AsyncIterator[Patient]:
    async with signing(scope="openid profile") as (_provider, _served, patient):
        yield patient


@broken("token", "the bridge has no signing keys of the provider yet")
async def _(tmp: Path) -> AsyncIterator[Patient]:
    async with IdentityProvider().serving() as provider, scripted_upstream() as upstream:
        provider.away = 503
        async with bridge(upstream.url, **provider.variables()) as served:
            await until(served.ready)
            await until(lambda: served.metric("oauth_key_fetches_failed_total") > 0)
            provider.away = 0
            there = near(upstream.url, served, **provider.variables())
            yield Patient({**there.environ, "ACCESS_TOKEN": provider.token()}, None, "ACCESS_TOKEN")


@asynccontextmanager
async def gateway(
    server: Path,
    *,
    supergateway: Path = SUPERGATEWAY,
    stateful: bool = True,
    transport: str = "streamableHttp",
) -> AsyncIterator[Gateway]:
    running = Gateway(server, supergateway=supergateway, stateful=stateful, transport=transport)
    running.start()
    try:
        yield running
    finally:
        assert running.servers is not None
        running.stop()


@broken("upstream", "supergateway does not run, or listens on another port")
async def _(tmp: Path) -> AsyncIterator[Patient]:
    upstream = nobody()
    async with bridge(upstream) as served:
        yield near(upstream, served)


@broken("upstream", "the name of upstream does not resolve")
async def _(tmp: Path) -> AsyncIterator[Patient]:
    upstream = "http://vestige-mcp.invalid:3100/mcp"
    async with bridge(upstream) as served:
        yield near(upstream, served)


@broken("upstream", "the path is wrong")
async def _(tmp: Path) -> AsyncIterator[Patient]:
    async with gateway(SERVER_MEMORY) as running:
        upstream = running.url.replace("/mcp", "/message")
        async with bridge(upstream) as served:
            yield near(upstream, served)


@broken("upstream", "supergateway runs in its default mode, SSE")
async def _(tmp: Path) -> AsyncIterator[Patient]:
    async with gateway(SERVER_MEMORY, stateful=False, transport="sse") as running, bridge(running.url) as served:
        yield near(running.url, served)


@broken("upstream", "supergateway 3 runs in its default mode, SSE")
async def _(tmp: Path) -> AsyncIterator[Patient]:
    old = gateway(SERVER_MEMORY, supergateway=SUPERGATEWAY_3, stateful=False, transport="sse")
    async with old as running, bridge(running.url) as served:
        yield near(running.url, served)


@broken("upstream", "nothing exists at the usual path")
async def _(tmp: Path) -> AsyncIterator[Patient]:
    async def answer_404(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        await writer.drain()

    async with listening(answer_404) as authority, bridge(f"http://{authority}/mcp") as served:
        yield near(f"http://{authority}/mcp", served)


@broken("upstream", "a web server has the port")
async def _(tmp: Path) -> AsyncIterator[Patient]:
    async with listening(answer_html) as authority, bridge(f"http://{authority}/mcp") as served:
        yield near(f"http://{authority}/mcp", served)


@broken("upstream", "the URL has https, but the server uses plain HTTP")
async def _(tmp: Path) -> AsyncIterator[Patient]:
    async with gateway(SERVER_MEMORY) as running:
        upstream = running.url.replace("http:", "https:")
        async with bridge(upstream) as served:
            yield near(upstream, served)


@broken("upstream", "the URL has http, but the server uses TLS")
async def _(tmp: Path) -> AsyncIterator[Patient]:
    async with listening(hang, tls_context()) as authority, bridge(f"http://{authority}/mcp") as served:
        yield near(f"http://{authority}/mcp", served)


@broken("upstream", "upstream does not respond")
async def _(tmp: Path) -> AsyncIterator[Patient]:
    async with listening(hang) as authority, bridge(f"http://{authority}/mcp") as served:
        yield near(f"http://{authority}/mcp", served)


def answering(status: int) -> Callable[[Received], Awaitable[web.StreamResponse]]:
    """Returns a script that answers with this status and no JSON."""

    async def answer(_received: Received) -> web.StreamResponse:
        return web.Response(status=status, text="No.")

    return answer


@broken("upstream", "upstream requires a token")
async def _(tmp: Path) -> AsyncIterator[Patient]:
    async with scripted_upstream() as upstream:
        upstream.on("ping", answering(401))
        upstream.on("initialize", answering(401))
        async with bridge(upstream.url) as served:
            yield near(upstream.url, served)


@broken("upstream", "upstream answers 500")
async def _(tmp: Path) -> AsyncIterator[Patient]:
    async with scripted_upstream() as upstream:
        upstream.on("ping", answering(500))
        upstream.on("initialize", answering(500))
        async with bridge(upstream.url) as served:
            yield near(upstream.url, served)


@broken("upstream", "supergateway has version 3")
async def _(tmp: Path) -> AsyncIterator[Patient]:
    async with gateway(SERVER_MEMORY, supergateway=SUPERGATEWAY_3) as running, bridge(running.url) as served:
        await until(served.ready)
        yield near(running.url, served)


@broken("upstream", "supergateway runs without --stateful")
async def _(tmp: Path) -> AsyncIterator[Patient]:
    async with gateway(SERVER_MEMORY, stateful=False) as running, bridge(running.url) as served:
        await until(served.ready)
        yield near(running.url, served)


async def reason(served: Bridge) -> bool:
    """Returns whether the bridge reports why it does not reach Vestige."""
    return (await served.get("/readyz")).json["reason"] is not None


@broken("Vestige", "supergateway runs, and Vestige is not installed there")
async def _(tmp: Path) -> AsyncIterator[Patient]:
    async with gateway(tmp / "vestige-mcp") as running, bridge(running.url) as served:
        await until(lambda: reason(served))
        yield near(running.url, served)


@broken("Vestige", "Vestige does not respond")
async def _(tmp: Path) -> AsyncIterator[Patient]:
    async with gateway(SERVER_EVERYTHING) as running, bridge(running.url, CHECK_TIMEOUT_SECONDS="0.5") as served:
        await until(served.ready)
        [server] = running.servers
        server.suspend()
        yield near(running.url, served)
        server.resume()


@broken("Vestige", "Vestige lists no tools")
async def _(tmp: Path) -> AsyncIterator[Patient]:
    async def list_none(received: Received) -> web.StreamResponse:
        return received.result({"tools": []})

    async with scripted_upstream() as upstream:
        upstream.on("tools/list", list_none)
        async with bridge(upstream.url) as served:
            await until(served.ready)
            yield near(upstream.url, served)


@broken("Vestige", "a remote bridge does not reach supergateway")
async def _(tmp: Path) -> AsyncIterator[Patient]:
    async with bridge(nobody()) as served:
        await until(lambda: reason(served))
        yield far(served.origin, served.token)


@broken("read", "Vestige answers a read with an error of its tool")
async def _(tmp: Path) -> AsyncIterator[Patient]:
    async def fail(received: Received) -> web.StreamResponse:
        return received.result({"isError": True, "content": [{"type": "text", "text": "The database is locked."}]})

    async with scripted_upstream() as upstream, bridge(upstream.url) as served:
        upstream.on("tools/call", fail)
        await until(served.ready)
        yield near(upstream.url, served)


@broken("read", "Vestige answers a read with an error of the protocol")
async def _(tmp: Path) -> AsyncIterator[Patient]:
    async def fail(received: Received) -> web.StreamResponse:
        error = {"code": -32603, "message": "Internal error."}
        return web.json_response({"jsonrpc": "2.0", "id": received.message["id"], "error": error})

    async with scripted_upstream() as upstream, bridge(upstream.url) as served:
        upstream.on("tools/call", fail)
        await until(served.ready)
        yield near(upstream.url, served)


@broken("read", "Vestige takes too long for a read")
async def _(tmp: Path) -> AsyncIterator[Patient]:
    async def take_long(received: Received) -> web.StreamResponse:
        await asyncio.sleep(60)
        return received.result({})

    async with scripted_upstream() as upstream, bridge(upstream.url, REQUEST_TIMEOUT_SECONDS="0.5") as served:
        upstream.on("tools/call", take_long)
        await until(served.ready)
        yield near(upstream.url, served)
