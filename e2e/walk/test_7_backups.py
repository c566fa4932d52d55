"""Tests of backups in the pod, of the restore drill after the loss of a volume, and of teams with own releases."""

import hashlib
import http.server
import json
import re
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from test_3_guide import guide_blocks, rolled_out, typed
from walking import (
    CHART,
    NAMESPACE,
    ROOT,
    Callers,
    Client,
    Done,
    Images,
    attempt,
    eventually,
    helm,
    in_vestige,
    kubectl,
    log,
    pod,
    run,
    saw,
    service,
)

TOKEN = "a-token-for-the-drill-of-32-letters"
TEAMS = ("red", "blue")
SENTENCE = "The lighthouse at Cape Egmont is white."
MEMORIES = """
WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 50000)
INSERT INTO knowledge_nodes (content, created_at) SELECT hex(randomblob(400)), '' FROM n;
"""
UPLOAD = """
import os, urllib.request
with open(os.environ["BACKUP"], "rb") as file:
    url = f"http://{os.environ['HOST']}:{os.environ['PORT']}/{os.path.basename(file.name)}"
    urllib.request.urlopen(urllib.request.Request(url, file.read(), method="PUT"), timeout=10)
"""


class UploadServer(http.server.ThreadingHTTPServer):
    """The server for uploads, on the node's address; it rejects uploads while ``full`` is set."""

    full = False

    def __init__(self, address: str) -> None:
        super().__init__((address, 0), Put)
        self.files: dict[str, bytes] = {}


class Put(http.server.BaseHTTPRequestHandler):
    server: UploadServer

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        if not self.server.full:
            self.server.files[self.path.removeprefix("/")] = content
        self.send_response(507 if self.server.full else 201)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Logs nothing; the output of the tests is the log."""


@dataclass
class TimedCallers(Callers):
    """Callers that record when the last call was answered, and the longest duration of a call since the last query."""

    slowest: float = field(default=0, init=False)
    answered_at: float = field(default=0, init=False)

    def _outcome(self, content: str) -> str:
        began = time.monotonic()
        outcome = super()._outcome(content)
        if outcome == "answered":
            self.answered_at = time.monotonic()
            self.slowest = max(self.slowest, self.answered_at - began)
        return outcome

    def slowest_since(self) -> float:
        slowest, self.slowest = self.slowest, 0
        return slowest


@pytest.fixture(scope="module")
def upload_server(loaded: Images) -> Iterator[UploadServer]:
    [node] = json.loads(run("kubectl", "get", "nodes", "-o", "json").stdout)["items"]
    [address] = [it["address"] for it in node["status"]["addresses"] if it["type"] == "InternalIP"]
    with UploadServer(address) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def install(images: Images, upload_server: UploadServer, folder: Path) -> None:
    """Installs the chart with backups; their upload runs in the bridge's image in place of a custom image."""
    values = {
        "vestigeImage": {"repository": images.vestige, "tag": images.native_tag},
        "bridgeImage": {"repository": images.bridge, "tag": images.tag},
        "vestige": {"gateway": "none"},
        "auth": {"token": TOKEN},
        "metrics": {"enabled": True},
        "backup": {
            "enabled": True,
            "keep": 2,
            "upload": {
                "image": f"{images.bridge}:{images.tag}",
                "command": ["python3", "-c", UPLOAD],
                "timeoutSeconds": 60,
                "env": [
                    {"name": "HOST", "valueFrom": {"fieldRef": {"fieldPath": "status.hostIP"}}},
                    {"name": "PORT", "value": str(upload_server.server_port)},
                ],
            },
        },
    }
    (folder / "values.json").write_text(json.dumps(values))
    assert 'Backups run at "0 3 * * *" (UTC)' in helm("install", "vestige", CHART, "-f", str(folder / "values.json"))


@pytest.fixture(scope="module", autouse=True)
def installed(loaded: Images, upload_server: UploadServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Installs a release with backups and, by the guide's commands, one for each of two teams."""
    for namespace in (NAMESPACE, *TEAMS):
        attempt("kubectl", "delete", "namespace", namespace, "--ignore-not-found", timeout=180)
    run("kubectl", "create", "namespace", NAMESPACE)
    run("kubectl", "label", "namespace", NAMESPACE, "pod-security.kubernetes.io/enforce=restricted")
    install(loaded, upload_server, tmp_path_factory.mktemp("values"))
    [block, _] = guide_blocks("Several teams")
    assert block.startswith("export TEAM=red\n")
    for team in TEAMS:
        typed(block.replace("TEAM=red", f"TEAM={team}"), ECR_VESTIGE=loaded.vestige, ECR_BRIDGE=loaded.bridge)
    rolled_out()
    yield
    for team in TEAMS:
        run("kubectl", "delete", "namespace", team, "--wait=false")


@pytest.fixture
def client() -> Client:
    return Client(*service(), TOKEN)


def operations_blocks(heading: str) -> list[str]:
    """Returns the shell blocks of docs/operations.md below a heading, unchanged."""
    text = (ROOT / "docs" / "operations.md").read_text()
    return re.findall(r"```bash\n(.*?)```", text.partition(f"\n## {heading}\n")[2].partition("\n## ")[0], re.DOTALL)


def in_backup(*command: str) -> Done:
    return attempt("kubectl", "-n", NAMESPACE, "exec", pod()["metadata"]["name"], "-c", "backup", "--", *command)


def metrics() -> dict[str, float]:
    """Returns the samples about backups from the metrics."""
    host, _ = service()
    with urllib.request.urlopen(f"http://{host}:9464/metrics", timeout=10) as response:
        samples = [line.split() for line in response.read().decode().splitlines() if "_backup_" in line]
    return {
        sample[0].removeprefix("vestige_bridge_backup_"): float(sample[1]) for sample in samples if sample[0] != "#"
    }


def test_the_containers_of_backups_have_no_more_rights_than_the_others(client: Client) -> None:
    ready = kubectl("get", "pods", "-l", "app.kubernetes.io/name=vestige", "--no-headers").split()[1]
    assert ready == "4/4"
    look = "cat /proc/1/status; touch /probe 2>&1; touch /data/x 2>&1; ls /var/run/secrets 2>&1; rm -f /data/x"
    name = pod()["metadata"]["name"]
    told = {it: kubectl("exec", name, "-c", it, "--", "sh", "-c", look) for it in ("backup", "upload")}
    for container, status in told.items():
        assert re.search(r"^Uid:\s+10001\s", status, re.MULTILINE)
        assert re.search(r"^CapEff:\s+0+$", status, re.MULTILINE)
        assert re.search(r"^NoNewPrivs:\s+1$", status, re.MULTILINE)
        assert "'/probe': Read-only file system" in status and "No such file" in status
        assert ("'/data/x': Read-only file system" in status) is (container == "upload")
    saw("user 10001, no capability, read-only root, no token of the cluster; /data read-only in upload")


def test_a_scheduled_backup_is_uploaded_and_reported_in_the_metrics(
    client: Client, upload_server: UploadServer
) -> None:
    # A Service reaches a new pod some moments after the pod is ready.
    eventually("an answer", client.is_answered)
    assert client.remember(SENTENCE).content["id"]
    # snooze runs the backup now, as if its time had come.
    assert in_backup("sh", "-c", "kill -ALRM $(pidof snooze)").returncode == 0
    eventually("an upload", lambda: len(upload_server.files))
    [(name, content)] = upload_server.files.items()
    assert in_backup("sha256sum", f"/data/backups/{name}").stdout.split()[0] == hashlib.sha256(content).hexdigest()
    eventually("its metric", lambda: "last_success_timestamp_seconds" in metrics())
    told = metrics()
    assert told["failing"] == 0
    assert abs(told["last_success_timestamp_seconds"] - time.time()) < 60
    assert 0 < told["due_timestamp_seconds"] - time.time() <= 86400
    saw(f"{name}: {len(content)} bytes; {told}")


def test_a_failed_backup_is_logged_and_in_the_metrics_until_one_succeeds(
    client: Client, upload_server: UploadServer
) -> None:
    upload_server.full = True
    assert in_backup("sh", "-c", "kill -ALRM $(pidof snooze)").returncode == 0
    eventually("the metric", lambda: metrics()["failing"] == 1)
    [line] = [line for line in log("backup").splitlines() if "FAILED" in line]
    assert "the upload of /data/backups/vestige-backup-" in line
    assert "HTTP Error 507" in log("upload")
    saw(line)
    upload_server.full = False
    look, make_one, _ = operations_blocks("Backups")
    typed(make_one)
    assert metrics()["failing"] == 0
    said = typed(look)
    assert "FAILED: the upload of" in said and '"failing": false' in said
    assert len(re.findall(r" vestige-backup-\S+\.db$", said, re.MULTILINE)) == 2
    saw(said)


def test_the_drill_restores_what_was_acknowledged_before_the_backup(
    client: Client, loaded: Images, upload_server: UploadServer, tmp_path: Path
) -> None:
    """Runs the drill under load: every write that was acknowledged before the backup is in the restored memory."""
    file = tmp_path / "drill.db"
    [make, restore, *_] = guide_blocks("Back up and restore")
    assert make == "make backup\n"
    assert in_vestige("sqlite3", "-cmd", ".timeout 5000", "/data/vestige.db", MEMORIES).returncode == 0
    with TimedCallers(client, 8, "drill") as callers:
        eventually("some memories", lambda: len(callers.acknowledged) > 200)
        without = callers.slowest_since()
        acknowledged, began = set(callers.acknowledged), time.monotonic()
        saw(run("make", "backup", f"BACKUP={file}", cwd=ROOT).stderr.strip())
        took, beside = time.monotonic() - began, callers.slowest_since()
        callers.goes_on()
        helm("uninstall", "vestige", "--wait", "--timeout", "90s")
        kubectl("delete", "pvc", "vestige")
    assert kubectl("get", "pods,pvc", "-o", "name") == ""
    noticed = time.monotonic()
    install(loaded, upload_server, tmp_path)
    rolled_out()
    ready = time.monotonic()
    saw(typed(re.sub(r"<\S+", f"<{file}", restore)).strip())
    again = Client(*service(), TOKEN)
    eventually("an answer", again.is_answered)
    kept = set(again.search("drill"))
    restored = time.monotonic()
    assert acknowledged <= kept, f"{len(acknowledged - kept)} memories acknowledged before the backup are lost"
    assert SENTENCE in again.search("Cape Egmont")
    lost = callers.acknowledged - kept
    assert beside < 5, f"a call took {beside:.1f} s beside the backup"
    count = in_vestige("sqlite3", "-readonly", "/data/vestige.db", "SELECT count(*) FROM knowledge_nodes").stdout
    assert int(count) >= 50000 + len(acknowledged)
    saw(f"{len(acknowledged)} memories acknowledged before the backup: all there")
    saw(f"backup of {file.stat().st_size} bytes with 8 writers: {took:.1f} s; their slowest call took "
        f"{beside * 1000:.0f} ms beside it, {without * 1000:.0f} ms without")  # fmt: skip
    saw(f"RPO: {len(lost)} of {len(callers.acknowledged)} acknowledged memories are gone, those of the "
        f"{callers.answered_at - began:.1f} s from the beginning of the backup to the last one")  # fmt: skip
    saw(f"RTO: {restored - noticed:.1f} s from no release to the first answer with the memory, "
        f"{ready - noticed:.1f} s of them until the new release was ready")  # fmt: skip


def test_two_teams_see_only_their_own_memory(loaded: Images) -> None:
    clients = {}
    for team in TEAMS:
        run("kubectl", "-n", team, "rollout", "status", "deployment/vestige", "--timeout=5m", timeout=330)
        spec = json.loads(run("kubectl", "-n", team, "get", "service", "vestige", "-o", "json").stdout)["spec"]
        secret = "go-template={{ .data.token | base64decode }}"
        token = run("kubectl", "-n", team, "get", "secret", "vestige-auth", "-o", secret).stdout
        clients[team] = Client(spec["clusterIP"], spec["ports"][0]["port"], token)
    for team, client in clients.items():
        eventually("an answer", client.is_answered)
        assert client.remember(f"A secret of team {team}.").content["id"]
    for team, client in clients.items():
        assert client.search("A secret of team") == [f"A secret of team {team}."]
    red, blue = clients.values()
    assert red.token != blue.token
    assert Client(red.host, red.port, blue.token).ask("tools/list").status == 401
    assert Client(blue.host, blue.port, red.token).ask("tools/list").status == 401
    hosts = run(
        "kubectl", "get", "ingresses", "--all-namespaces", "-o", "jsonpath={.items[*].spec.rules[*].host}"
    ).stdout
    assert set(hosts.split()) == {f"{team}.memory.example.com" for team in TEAMS}
    saw("each Service answers with its team's memory alone, and refuses the other's token")


def test_a_team_is_upgraded_alone(loaded: Images) -> None:
    [_, block] = guide_blocks("Several teams")
    before = run("kubectl", "-n", "blue", "get", "pods", "-o", "jsonpath={.items[*].metadata.uid}").stdout
    saw(typed(f"export TEAM=red\n{block}").splitlines()[0])
    image = "jsonpath={.spec.template.spec.containers[0].image}"
    images = [run("kubectl", "-n", team, "get", "deployment", "vestige", "-o", image).stdout for team in TEAMS]
    assert [it.rpartition(":")[2] for it in images] == [loaded.next_tag, loaded.tag]
    assert before == run("kubectl", "-n", "blue", "get", "pods", "-o", "jsonpath={.items[*].metadata.uid}").stdout
