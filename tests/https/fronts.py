"""The proxies of docs/https.md, with the configurations from that page: only ports and paths are replaced."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import trustme
from aiohttp.abc import AbstractResolver, ResolveResult

from harness import ROOT, free_port, until

HOST = "vestige.example.com"
NGINX = "/usr/sbin/nginx"
CADDY = ROOT / ".tools/bin/caddy"


@dataclass
class Front:
    """A proxy that serves HTTPS.

    Attributes:
        url: the URL of the bridge's endpoint for clients.
        port: its port on 127.0.0.1.
        authority: the file with the certificate of its CA.
    """

    port: int
    authority: Path

    @property
    def url(self) -> str:
        """The URL of the bridge's endpoint for clients."""
        return f"https://{HOST}:{self.port}/mcp"

    def client(self, **options: Any) -> aiohttp.ClientSession:
        """Creates a client that trusts the CA."""
        trust = ssl.create_default_context(cafile=str(self.authority))
        connector = aiohttp.TCPConnector(limit=0, resolver=_Here(), ssl=trust, **options)
        return aiohttp.ClientSession(connector=connector)


class _Here(AbstractResolver):
    """A resolver that resolves every name to 127.0.0.1."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Returns 127.0.0.1."""
        flags = socket.AI_NUMERICHOST
        return [ResolveResult(hostname=host, host="127.0.0.1", port=port, family=family, proto=0, flags=flags)]

    async def close(self) -> None:
        """Does nothing; there is nothing to close."""


def documented(language: str) -> str:
    """Returns the configuration in docs/https.md."""
    blocks = re.findall(rf"^```{language}\n(.*?)^```$", (ROOT / "docs/https.md").read_text(), re.MULTILINE | re.DOTALL)
    (block,) = blocks
    return str(block)


def replaced(text: str, replacements: Mapping[str, str]) -> str:
    """Returns the text with each replacement made; each text to replace must occur exactly once."""
    for old, new in replacements.items():
        assert text.count(old) == 1, f"{old!r} does not stand once in:\n{text}"
        text = text.replace(old, new)
    return text


@asynccontextmanager
async def nginx(folder: Path, bridge: int) -> AsyncIterator[Front]:
    """Runs nginx with the configuration in docs/https.md."""
    port, authority = free_port(), trustme.CA()
    certificate = authority.issue_cert(HOST)
    certificate.cert_chain_pems[0].write_to_path(folder / "fullchain.pem")
    certificate.private_key_pem.write_to_path(folder / "privkey.pem")
    authority.cert_pem.write_to_path(folder / "root.crt")
    site = replaced(
        documented("nginx"),
        {
            "127.0.0.1:8000": f"127.0.0.1:{bridge}",
            "listen 443": f"listen 127.0.0.1:{port}",
            "listen [::]:443": f"listen 127.0.0.1:{free_port()}",
            "/etc/ssl/vestige/fullchain.pem": f"{folder}/fullchain.pem",
            "/etc/ssl/vestige/privkey.pem": f"{folder}/privkey.pem",
        },
    )
    temporary = "".join(f"{name}_temp_path {name};\n" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    process = "daemon off;\nmaster_process off;\npid nginx.pid;\nevents {}\n"
    (folder / "nginx.conf").write_text(f"{process}http {{\naccess_log off;\n{temporary}{site}}}\n")
    command = [NGINX, "-p", str(folder), "-e", "stderr", "-c", str(folder / "nginx.conf")]
    async with _running(folder, command, Front(port, folder / "root.crt")) as front:
        yield front


@asynccontextmanager
async def caddy(folder: Path, bridge: int) -> AsyncIterator[Front]:
    """Runs Caddy with the configuration in docs/https.md."""
    site = replaced(documented("caddyfile"), {"127.0.0.1:8000": f"127.0.0.1:{bridge}"})
    async with _caddy(folder, f"{{\n\tadmin off\n}}\n{site}") as front:
        yield front


@asynccontextmanager
async def compose(folder: Path, bridge: int) -> AsyncIterator[Front]:
    """Runs Caddy with docker/Caddyfile, the configuration for compose."""
    config = replaced((ROOT / "docker/Caddyfile").read_text(), {"bridge:8000": f"127.0.0.1:{bridge}"})
    async with _caddy(folder, config) as front:
        yield front


@asynccontextmanager
async def _caddy(folder: Path, config: str) -> AsyncIterator[Front]:
    port = free_port()
    # Caddy's own CA issues the certificate instead of Let's Encrypt.
    options = f"""
    default_bind 127.0.0.1
    http_port {free_port()}
    https_port {port}
    local_certs
    skip_install_trust
    storage file_system {folder}/storage"""
    (folder / "Caddyfile").write_text(config.replace("admin off", f"admin off{options}", 1))
    command = [str(CADDY), "run", "--config", str(folder / "Caddyfile"), "--adapter", "caddyfile"]
    front = Front(port, folder / "storage/pki/authorities/local/root.crt")
    async with _running(folder, command, front, VESTIGE_HTTPS_HOST=HOST, XDG_CONFIG_HOME=str(folder)):
        yield front


@asynccontextmanager
async def _running(folder: Path, command: list[str], front: Front, **environ: str) -> AsyncIterator[Front]:
    with (folder / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *command, stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log, env={**os.environ, **environ}
        )

    async def serves() -> bool:
        """Checks a request, not only the port: Caddy listens before it has its certificate and that of its CA."""
        assert process.returncode is None, (folder / "log").read_text()
        try:
            async with front.client() as client, client.get(f"https://{HOST}:{front.port}/livez") as response:
                return response.status == 200
        except (aiohttp.ClientConnectionError, FileNotFoundError, ssl.SSLError):
            return False

    try:
        await until(serves, 30)
        yield front
    finally:
        if process.returncode is None:
            process.terminate()
        try:
            async with asyncio.timeout(15):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


FRONTS: dict[str, Callable[[Path, int], Any]] = {"nginx": nginx, "Caddy": caddy, "Caddy of compose": compose}
