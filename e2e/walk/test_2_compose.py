"""Tests of docker/compose.yaml, which runs the containers without Kubernetes."""

import os
import socket
from collections.abc import Iterator

import pytest
from walking import ROOT, Client, Images, attempt, eventually, run, saw

TOKEN = "a-token-for-compose-of-32-letters"


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def compose(tool: str) -> list[str]:
    command = ["docker", "compose"] if tool == "docker" else ["podman-compose"]
    return [*command, "-f", str(ROOT / "docker" / "compose.yaml")]


@pytest.fixture(scope="module", params=["", "supergateway", "none"], ids=["unset", "supergateway", "none"])
def client(request: pytest.FixtureRequest, compose: list[str], images: Images) -> Iterator[Client]:
    """Starts the containers with each value of GATEWAY; yields a client of the bridge."""
    port = free_port()
    variables = {
        "GATEWAY": request.param,
        "VESTIGE_AUTH_TOKEN": TOKEN,
        "VESTIGE_BRIDGE_PUBLISH": f"127.0.0.1:{port}",
        "VESTIGE_IMAGE": f"{images.vestige}:{images.native_tag if request.param == 'none' else images.tag}",
        "BRIDGE_IMAGE": f"{images.bridge}:{images.tag}",
    }
    os.environ.update(variables)
    run(*compose, "up", "--detach", "--no-build", timeout=300)
    try:
        yield Client("127.0.0.1", port, TOKEN)
    finally:
        attempt(*compose, "down", "--volumes", timeout=300)
        for name in variables:
            del os.environ[name]


def test_without_a_token_compose_fails(compose: list[str], images: Images) -> None:
    done = attempt(*compose, "config", env={"VESTIGE_AUTH_TOKEN": ""})
    assert done.returncode != 0 and "VESTIGE_AUTH_TOKEN" in done.stdout + done.stderr
    saw((done.stdout + done.stderr).strip().splitlines()[-1])


def test_one_command_starts_a_working_memory(client: Client) -> None:
    eventually("the bridge", client.is_answered)
    assert client.remember("compose keeps this").content["id"]
    assert client.search("compose keeps") == ["compose keeps this"]
    saw("a memory was written and read")


def test_only_the_bridge_is_published_and_on_loopback(client: Client, tool: str) -> None:
    published = (
        run(tool, "ps", "--filter", "name=vestige", "--format", "{{.Names}} {{.Ports}}").stdout.strip().splitlines()
    )
    saw("; ".join(published))
    assert len(published) == 2
    assert [line for line in published if "->" in line] == [line for line in published if "bridge" in line]
    assert all("127.0.0.1:" in line for line in published if "->" in line)


def test_the_autopilot_is_off_in_the_process_that_all_share(client: Client, compose: list[str]) -> None:
    printed = run(*compose, "exec", "-T", "vestige-mcp", "printenv", "VESTIGE_AUTOPILOT_ENABLED").stdout
    assert printed.strip() == "0"


@pytest.mark.parametrize("service", ["vestige-mcp", "bridge"])
def test_either_container_is_restarted_alone(service: str, client: Client, compose: list[str]) -> None:
    run(*compose, "restart", service, timeout=120)
    eventually("the bridge", client.is_answered)
    assert client.search("compose keeps") == ["compose keeps this"]
    saw(f"{service} was restarted; the memory is there")
