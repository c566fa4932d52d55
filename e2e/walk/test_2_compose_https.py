"""Tests of the profile https of docker/compose.yaml, with Debian's Caddy instead of the image from a registry."""

import http.client
import json
import os
import ssl
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from test_2_compose import free_port
from walking import ROOT, Images, attempt, eventually, run, saw

TOKEN = "a-token-for-https-of-32-letters-or-more"
CADDY = "localhost/caddy:e2e"
# The same layout as in the image of the Caddy project.
DOCKERFILE = """
FROM debian:trixie-slim
RUN apt-get update && apt-get install --yes --no-install-recommends caddy
ENV XDG_CONFIG_HOME=/config XDG_DATA_HOME=/data
CMD ["caddy", "run", "--config", "/etc/caddy/Caddyfile", "--adapter", "caddyfile"]
"""


@pytest.fixture(scope="module")
def caddy(tool: str, build_flags: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("caddy")
    (folder / "Dockerfile").write_text(DOCKERFILE)
    run(tool, "build", *build_flags.split(), "--tag", CADDY, str(folder), timeout=600)
    return CADDY


@pytest.fixture(scope="module")
def compose(tool: str) -> list[str]:
    command = ["docker", "compose"] if tool == "docker" else ["podman-compose"]
    return [*command, "-f", str(ROOT / "docker" / "compose.yaml"), "--profile", "https"]


@pytest.fixture(scope="module")
def port(compose: list[str], images: Images, caddy: str) -> Iterator[int]:
    """Starts the containers; yields the port of HTTPS."""
    port = free_port()
    variables = {
        "VESTIGE_AUTH_TOKEN": TOKEN,
        "VESTIGE_BRIDGE_PUBLISH": f"127.0.0.1:{free_port()}",
        "VESTIGE_HTTP_PUBLISH": f"127.0.0.1:{free_port()}",
        "VESTIGE_HTTPS_PUBLISH": f"127.0.0.1:{port}",
        "VESTIGE_IMAGE": f"{images.vestige}:{images.tag}",
        "BRIDGE_IMAGE": f"{images.bridge}:{images.tag}",
        "CADDY_IMAGE": caddy,
    }
    os.environ.update(variables)
    run(*compose, "up", "--detach", "--no-build", timeout=300)
    try:
        yield port
    finally:
        attempt(*compose, "down", "--volumes", timeout=300)
        for name in variables:
            del os.environ[name]


@pytest.fixture(scope="module")
def trust(port: int, compose: list[str], tmp_path_factory: pytest.TempPathFactory) -> ssl.SSLContext:
    """Returns a TLS context that trusts only the CA that Caddy has made for localhost."""
    root: Path = tmp_path_factory.mktemp("ca") / "root.crt"

    def made() -> bool:
        done = attempt(*compose, "exec", "-T", "https", "cat", "/data/caddy/pki/authorities/local/root.crt")
        root.write_text(done.stdout)
        return done.returncode == 0 and "BEGIN CERTIFICATE" in done.stdout

    eventually("Caddy's CA", made)
    return ssl.create_default_context(cafile=str(root))


def post(port: int, trust: ssl.SSLContext, method: str) -> tuple[int, str]:
    headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
    with closing(http.client.HTTPSConnection("localhost", port, context=trust, timeout=30)) as connection:
        connection.request("POST", "/mcp", json.dumps({"jsonrpc": "2.0", "id": 1, "method": method}), headers)
        response = connection.getresponse()
        return response.status, response.read().decode()


def test_calls_over_https_reach_the_memory(port: int, trust: ssl.SSLContext) -> None:
    def answers() -> bool:
        try:
            return post(port, trust, "tools/list")[0] == 200
        except OSError:
            return False

    eventually("the bridge behind Caddy", answers)
    status, body = post(port, trust, "tools/list")
    assert (status, bool(json.loads(body)["result"]["tools"])) == (200, True)
    saw(f"HTTP {status} through Caddy, with {len(json.loads(body)['result']['tools'])} tools")


def test_caddy_cannot_reach_vestige(port: int, compose: list[str]) -> None:
    lookup = ("exec", "-T", "https", "getent", "hosts")
    assert attempt(*compose, *lookup, "bridge").returncode == 0
    assert attempt(*compose, *lookup, "vestige-mcp").returncode != 0
    saw("the name of Vestige's container does not resolve in Caddy's")
