"""Undocumented interfaces of dependencies that the bridge uses: these tests fail if a release changes them."""

from __future__ import annotations

import configparser
import inspect
import re

import aiohttp
import pytest
import uvicorn
from uvicorn.server import Server, ServerState

from harness import ROOT


def test_uvicorn_constructs_protocols_and_keeps_server_state_as_the_bridge_expects() -> None:
    assert vars(ServerState()).keys() >= {"total_requests", "connections", "tasks", "default_headers"}
    made = re.search(r"http_protocol_class\((?P<arguments>.*?)\n\s*\)", inspect.getsource(Server.startup), re.DOTALL)
    assert made is not None
    assert re.findall(r"(\w+)=", made["arguments"]) == ["config", "server_state", "app_state", "_loop"]
    assert "connection.shutdown()" in inspect.getsource(Server.shutdown)


def test_aiohttps_connector_has_the_signature_that_the_bridge_expects() -> None:
    assert list(inspect.signature(aiohttp.BaseConnector.connect).parameters) == ["self", "req", "traces", "timeout"]
    assert list(inspect.signature(aiohttp.ClientRequest.__init__).parameters)[:3] == ["self", "method", "url"]


@pytest.mark.parametrize("package", [uvicorn, aiohttp])
def test_a_package_used_beyond_its_documentation_is_capped_at_the_tested_minor_release(package: object) -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    name: str = package.__name__  # type: ignore[attr-defined]
    found = re.search(rf"{name} >=[\d.]+,<(\d+)\.(\d+)", config["options"]["install_requires"])
    assert found is not None
    major, minor = (int(part) for part in package.__version__.split(".")[:2])  # type: ignore[attr-defined]
    assert (major, minor + 1) == (int(found[1]), int(found[2]))
