"""Tests of the deployment guide on a real cluster, in its order, from installation to uninstallation."""

import asyncio
import base64
import functools
import json
import os
import re
import socket
import subprocess
import textwrap
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from mcp import ClientSession
from mcp.client.streamable_http import streamable_http_client
from walking import (
    CHART,
    E2E,
    HELM,
    NAMESPACE,
    ROOT,
    Callers,
    Client,
    Images,
    attempt,
    eventually,
    helm,
    in_bridge,
    in_vestige,
    kubectl,
    log,
    pod,
    port_forward,
    restarts,
    run,
    running_pods,
    saw,
    service,
)

TRIAL = "your-secure-token-here"
SENTENCE = "The lighthouse at Cape Farewell is green."


@functools.cache
def token() -> str:
    """Returns the token that the guide's commands made."""
    secret = json.loads(kubectl("get", "secret", "vestige-auth", "-o", "json"))
    return base64.b64decode(secret["data"]["token"]).decode()


@pytest.fixture(scope="module")
def client() -> Client:
    return Client(*service(), token())


def rolled_out() -> None:
    kubectl("rollout", "status", "deployment/vestige", "--timeout=5m", timeout=330)


def gone(name: str) -> bool:
    return name not in kubectl("get", "pods", "-o", "name")


@pytest.fixture(scope="module", autouse=True)
def no_namespace() -> None:
    """Deletes the namespace, which the guide's commands create."""
    attempt("kubectl", "delete", "namespace", NAMESPACE, "--ignore-not-found", timeout=180)


GUIDE = (ROOT / "docs" / "deployment.md").read_text()
LAST_SECTION = "7. Upgrade, roll back, uninstall"


def guide_commands(pattern: str) -> list[str]:
    """Returns the guide's commands that match, unchanged."""
    blocks = re.findall(r"```bash\n(.*?)```", GUIDE, re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [line for line in lines if re.fullmatch(pattern, line)]


def guide_blocks(heading: str) -> list[str]:
    """Returns the guide's shell blocks below a heading, unchanged."""
    section = GUIDE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    blocks = re.findall(r"```bash\n(.*?)```", section, re.DOTALL)
    assert blocks, heading
    return blocks


def typed(script: str, **environment: str) -> str:
    """Runs a shell block of the guide with our Helm, and ends its background processes afterwards."""
    path = f"{Path(HELM).resolve().parent}:{os.environ['PATH']}"
    ended = "trap 'jobs -p | xargs -r kill || true; wait || true' EXIT\nset -e\n"
    return run("bash", "-c", ended + script, cwd=ROOT, env={"PATH": path, **environment}, timeout=700).stdout


def test_the_guides_token_is_made_in_a_restricted_namespace(loaded: Images) -> None:
    [block] = guide_blocks("2. Make the token")
    saw(typed(block))
    run("kubectl", "label", "namespace", NAMESPACE, "pod-security.kubernetes.io/enforce=restricted")
    assert len(token()) == 64


def test_the_api_server_accepts_every_object(loaded: Images) -> None:
    metrics = ["--set", "metrics.enabled=true,metrics.dashboard.enabled=true"]
    for values in ([], ["-f", str(E2E / "chart" / "values-prod.yaml")], metrics):
        rendered = run(HELM, "template", "vestige", CHART, "--namespace", NAMESPACE, "--kube-version", "1.35.0",
                       *values, "--set", f"auth.token={TRIAL}").stdout  # fmt: skip
        taken = subprocess.run(["kubectl", "apply", "--dry-run=server", "-f", "-"], input=rendered,
                               capture_output=True, text=True, check=True)  # fmt: skip
        assert "Warning" not in taken.stderr, taken.stderr
        saw(", ".join(line.split()[0] for line in taken.stdout.splitlines()))


def test_installing_as_the_guide_says_gives_two_ready_containers(loaded: Images) -> None:
    install, render = guide_blocks("3. Install")
    ours = {"ECR_VESTIGE": loaded.vestige, "ECR_BRIDGE": loaded.bridge}
    assert "kubectl port-forward" in typed(install, **ours)
    assert "kind: Deployment" in typed(render)
    line = kubectl("get", "pods", "-l", "app.kubernetes.io/name=vestige", "--no-headers").strip()
    assert line.split()[1] == "2/2"
    saw(line)


def test_both_logs_contain_the_start_messages() -> None:
    start = next(line for line in log("vestige-mcp").splitlines() if "supergateway" in line)
    tools = next(line for line in log("bridge").splitlines() if "Vestige tools discovered" in line)
    assert "vestige-mcp 3.1.0" in start and "127.0.0.1 port 3100" in start
    saw(start)
    saw(json.loads(tools)["message"])


def test_health_and_readyz_answer_through_a_port_forward() -> None:
    with port_forward("svc/vestige", 8000) as port:
        for path in ("/health", "/readyz"):
            answer = Client("127.0.0.1", port, "").request("GET", path)
            assert answer.status == 200
            saw(f"{path}: {answer.body}")


def test_the_guides_first_calls_work_as_written() -> None:
    looks, calls = guide_blocks("6. Verify the installation")
    saw(typed(looks.replace("helm test vestige -n openclaw --logs\n", "")).splitlines()[-1][:100])
    answers = typed(calls, TOKEN=token())
    assert '"status"' in answers and '"smart_ingest"' in answers
    saw(answers.replace("\n", " ")[:200])


def test_the_first_call_of_the_notes_works_as_printed() -> None:
    notes = helm("get", "notes", "vestige")
    block = textwrap.dedent(notes.partition("Make a first call:\n")[2].partition("\nInside the cluster")[0])
    script = block.replace("&\n", "&\nforward=$!; trap 'kill $forward' EXIT\n", 1)
    done = run("bash", "-c", script)
    answer = json.loads(done.stdout[done.stdout.index('{"jsonrpc"') :])
    names = [tool["name"] for tool in answer["result"]["tools"]]
    assert "search" in names
    saw(f"tools: {', '.join(names)}")


def test_an_sdk_client_writes_and_reads_a_memory(client: Client) -> None:
    async def talk() -> str:
        url = f"http://{client.host}:{client.port}/mcp"
        async with (
            httpx.AsyncClient(headers={"Authorization": f"Bearer {token()}"}, timeout=60) as http,
            streamable_http_client(url, http_client=http) as (receive, send, _),
            ClientSession(receive, send) as session,
        ):
            await session.initialize()
            await session.call_tool("smart_ingest", {"content": SENTENCE})
            found = await session.call_tool("search", {"query": "Cape Farewell"})
            return json.dumps(found.structuredContent)

    found = asyncio.run(talk())
    assert SENTENCE in found
    saw(found)


def test_no_message_body_is_in_the_logs() -> None:
    for container in ("vestige-mcp", "bridge"):
        text = log(container)
        assert "Cape Farewell" not in text and token() not in text
        saw(f"{container}: {len(text.splitlines())} lines, no word of what was said")


def test_a_wrong_token_and_a_missing_one_are_rejected(client: Client) -> None:
    for wrong in ("another-token-of-16-letters", ""):
        answer = Client(client.host, client.port, wrong).ask("tools/list")
        assert (answer.status, answer.body["error"]["code"]) == (401, -32015)
    saw("401, -32015 for a wrong token and for an empty one")


def test_port_3100_is_refused_from_outside_the_pod() -> None:
    address = pod()["status"]["podIP"]
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((address, 3100), timeout=5)
    with socket.create_connection((address, 8000), timeout=5):
        saw(f"{address}: 3100 is refused, 8000 is open")


def test_inside_the_pod_port_3100_listens_on_loopback_alone() -> None:
    lines = in_vestige("sh", "-c", "cat /proc/net/tcp /proc/net/tcp6").stdout.splitlines()
    listening = {line.split()[1] for line in lines if len(line.split()) > 3 and line.split()[3] == "0A"}
    assert {address for address in listening if address.endswith(":0C1C")} == {"0100007F:0C1C"}
    saw(f"listening: {sorted(listening)}")


def test_the_processes_have_no_more_rights_than_they_need() -> None:
    for container in (in_vestige, in_bridge):
        status = container("sh", "-c", "cat /proc/1/status; touch /probe 2>&1 || true").stdout
        assert re.search(r"^Uid:\s+10001\s", status, re.MULTILINE)
        assert re.search(r"^Gid:\s+10001\s", status, re.MULTILINE)
        assert re.search(r"^CapEff:\s+0+$", status, re.MULTILINE)
        assert re.search(r"^NoNewPrivs:\s+1$", status, re.MULTILINE)
        assert "Read-only file system" in status
    assert in_bridge("sh", "-c", "touch /data/x").returncode != 0
    assert "VESTIGE_AUTH_TOKEN" not in in_vestige("sh", "-c", "tr '\\0' '\\n' </proc/1/environ").stdout
    saw("user 10001, no capability, no new privileges, read-only root, /data read-only in the bridge")


def test_the_probe_is_fast_and_leaks_nothing() -> None:
    node = "for p in /proc/[0-9]*; do case $(readlink $p/exe) in *node*) echo ${p#/proc/};; esac; done"
    [process] = in_vestige("sh", "-c", node).stdout.split()

    def held() -> tuple[list[str], int, int]:
        look = f"ls -A /data /tmp; ls -d /proc/[0-9]* | wc -l; ls /proc/{process}/fd | wc -l"
        *files, processes, descriptors = in_vestige("sh", "-c", look).stdout.splitlines()
        return files, int(processes), int(descriptors)

    def nothing_is_left() -> bool:
        # The probes of the kubelet run beside this.
        now = held()
        return now[0] == before[0] and now[1] <= before[1] and now[2] <= before[2]

    memory = f"awk '/VmRSS/ {{ print $2 }}' /proc/{process}/status"
    before = held()
    resident = int(in_vestige("sh", "-c", memory).stdout)
    began = time.monotonic()
    assert (
        in_vestige(
            "sh", "-c", "for i in $(seq 20); do http_proxy=http://127.0.0.1:9 vestige-probe || exit 1; done"
        ).returncode
        == 0
    )
    each = (time.monotonic() - began) / 20
    # The request of the probe, 10,000 times in total.
    requests = """
        import http.client
        connection = http.client.HTTPConnection("127.0.0.1", 3100)
        for _ in range(9980):
            connection.request("POST", "/mcp", '{"jsonrpc":"2.0","id":"probe","method":"ping"}',
                               {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"})
            response = connection.getresponse()
            assert response.status == 400 and b"-32000" in response.read()
        """
    done = in_bridge("python3", "-c", textwrap.dedent(requests), timeout=400)
    assert done.returncode == 0, done.stderr
    assert each < 1
    eventually("the same files, and no more processes and descriptors", nothing_is_left)
    grown = int(in_vestige("sh", "-c", memory).stdout) - resident
    assert grown < 100 * 1024, f"{grown} kB more"
    saw(f"{each * 1000:.0f} ms each; after 10,000: no more processes and descriptors, {grown} kB more")


def test_a_rotated_secret_takes_effect_without_a_restart(client: Client) -> None:
    other = Client(client.host, client.port, "the-next-token-of-this-memory")
    assert other.ask("tools/list").status == 401
    both = json.dumps({"stringData": {"token": f"old {token()}\nnew {other.token}\n"}})
    kubectl("patch", "secret", "vestige-auth", "-p", both)
    began = time.monotonic()
    eventually("the new token", lambda: other.ask("tools/list").status == 200, 150)
    assert client.ask("tools/list").status == 200
    assert restarts("bridge") == 0
    saw(f"the new token was taken after {time.monotonic() - began:.0f} s, the old one goes on, nothing was restarted")


def test_helm_test_calls_a_tool_through_the_service() -> None:
    printed = helm("test", "vestige", "--logs")
    assert re.search(r"Phase:\s+Succeeded", printed)
    saw(next(line for line in printed.splitlines() if line.startswith("system_status:")))


def test_the_doctor_checks_every_layer() -> None:
    done = in_bridge("vestige-bridge", "doctor")
    assert done.returncode == 0, done.stdout + done.stderr
    saw(done.stdout)
    assert in_bridge("vestige-bridge", "doctor", "--quiet").returncode == 0


def test_a_killed_vestige_is_replaced_by_the_next_call(client: Client) -> None:
    assert in_vestige("sh", "-c", "kill -9 $(pidof vestige-mcp)").returncode == 0
    assert SENTENCE in client.search("Cape Farewell")
    died = eventually(
        "the death in the log",
        lambda: [line for line in log("vestige-mcp").splitlines() if "killed by signal 9" in line],
    )
    assert (restarts("vestige-mcp"), restarts("bridge")) == (0, 0)
    saw(died[-1])


def test_a_killed_supergateway_is_restarted_and_calls_go_on(client: Client) -> None:
    with Callers(client, 8, "gateway-killed") as callers:
        in_vestige(
            "sh", "-c", "for p in /proc/[0-9]*; do case $(readlink $p/exe) in *node*) kill -9 ${p#/proc/};; esac; done"
        )
        eventually("the restart", lambda: restarts("vestige-mcp") == 1, 90)
        callers.goes_on()
    callers.nothing_is_lost()
    assert restarts("bridge") == 0
    saw("the Vestige container was restarted once, the bridge not at all")


def test_the_guides_commands_for_troubleshooting_work_as_written(client: Client) -> None:
    # Logs of a previous container exist only after a restart; supergateway was killed in the test before.
    in_bridge("python3", "-c", "import os, signal; os.kill(1, signal.SIGTERM)")
    eventually("the bridge's restart", lambda: restarts("bridge") == 1, 90)
    eventually("an answer", client.is_answered)
    commands = guide_commands(r"kubectl logs .* --previous")
    assert len(commands) == 2
    for command in commands:
        saw(f"{command}: {run('sh', '-c', command).stdout.strip().splitlines()[-1][:100]}")
    [ask] = re.findall(r"`(kubectl exec [^`]+ python3 -c [^`]+)`", GUIDE)
    [refused] = [line for line in attempt("sh", "-c", ask).stderr.splitlines() if "HTTP Error" in line]
    assert "HTTP Error 400" in refused
    saw(f"{ask}: {refused}")


def test_a_full_volume_fails_writes_and_nothing_else(client: Client) -> None:
    free = int(in_vestige("sh", "-c", "df --output=avail -B1 /data | tail -n 1").stdout)
    in_vestige("sh", "-c", f"fallocate -l {free} /data/filler; dd if=/dev/zero of=/data/filler-2 bs=4k 2>/dev/null")
    try:
        answer = eventually(
            "a write to fail", lambda: (a := client.remember("x" * 50_000)).result.get("isError", False) and a
        )
        saw(f"a write: {json.dumps(answer.result['content'])[:160]}")
        assert SENTENCE in client.search("Cape Farewell")
        assert client.request("GET", "/health").status == client.request("GET", "/readyz").status == 200
    finally:
        in_vestige("sh", "-c", "rm /data/filler /data/filler-2")
    assert client.remember("there is room again").content["id"]
    saw("reads, /health and /readyz went on; with room again, so did writes")


@pytest.fixture(scope="module")
def backup(client: Client) -> str:
    path: str = client.call("backup").content["path"]
    return path


@pytest.fixture(scope="module")
def backups(backup: str) -> None:
    rows = [[{"type": "Text", "value": "x"}, {"type": "Text", "value": "from an archive"}]]
    table = {"name": "knowledge_nodes", "columns": ["id", "content"], "rows": rows}
    memories = {
        "list": [{"type": "text", "text": json.dumps({"results": [{"content": "from a list"}]})}],
        "export": [{"content": "from an export", "nodeType": "fact"}],
        "archive": {"archiveFormat": "vestige.portable.v1", "tables": [table]},
    }
    written = "\n".join(f"printf '%s' '{json.dumps(it)}' > /data/{name}.json" for name, it in memories.items())
    script = f"""
        cp {backup} /data/backup.db
        echo 'just a text' > /data/note.txt
        {written}
        sqlite3 /data/foreign.db 'CREATE TABLE customers (name TEXT)'
        size=$(stat -c %s {backup})
        cp {backup} /data/damaged.db
        dd if=/dev/urandom of=/data/damaged.db bs=1 seek=4200 count=$((size - 4300)) conv=notrunc 2>/dev/null
    """
    assert in_vestige("sh", "-ec", script).returncode == 0


@pytest.mark.parametrize(
    ("argument", "reason"),
    [
        ("/data/note.txt", "neither an SQLite database nor JSON"),
        ("/data/foreign.db", "not one of Vestige's"),
        ("/data/damaged.db", "is damaged"),
        ("/data/nothing.db", "there is no file"),
        ("/data", "not a file that can be read"),
        ("/data/vestige.db", "is the current database"),
        ("", "usage: vestige-restore FILE"),
    ],
)
@pytest.mark.usefixtures("backups")
def test_a_restore_of_another_file_changes_nothing_and_reports_the_reason(
    argument: str, reason: str, client: Client
) -> None:
    client.remember(f"before {argument or 'no argument'}")
    before = client.search("")
    started = log("vestige-mcp").count("Vestige started")
    done = in_vestige("vestige-restore", *([argument] if argument else []))
    assert done.returncode != 0
    assert reason in done.stderr
    assert client.search("") == before
    assert log("vestige-mcp").count("Vestige started") == started
    saw(done.stderr.splitlines()[0])


@pytest.mark.usefixtures("backups")
def test_a_restore_of_an_sqlite_backup_under_callers(client: Client) -> None:
    client.remember("written after the backup")
    with Callers(client, 8, "restored-under") as callers:
        done = in_vestige("vestige-restore", "/data/backup.db")
        assert done.returncode == 0, done.stderr
        callers.goes_on()
    assert not callers.faults, callers.faults
    assert client.search("written after the backup") == []
    assert SENTENCE in client.search("Cape Farewell")
    kept = done.stdout.split()[-1]
    assert (
        in_vestige(
            "sqlite3", kept, "SELECT count(*) FROM knowledge_nodes WHERE content = 'written after the backup'"
        ).stdout
        == "1\n"
    )
    saw(done.stdout)


@pytest.mark.usefixtures("backups")
@pytest.mark.parametrize("kind", ["list", "archive"])
def test_a_restore_of_json_runs_vestiges_own_program(kind: str, client: Client) -> None:
    before = client.search("")
    done = in_vestige("vestige-restore", f"/data/{kind}.json")
    assert done.returncode == 0, done.stderr
    assert set(client.search("")) == {*before, f"from {'a' if kind == 'list' else 'an'} {kind}"}
    saw(done.stdout)


@pytest.mark.usefixtures("backups")
def test_a_restore_of_an_export_replaces_the_current_memory(client: Client) -> None:
    done = in_vestige("vestige-restore", "/data/export.json")
    assert done.returncode == 0, done.stderr
    assert client.search("") == ["from an export"]
    saw(done.stdout)
    assert in_vestige("vestige-restore", "/data/backup.db").returncode == 0
    assert SENTENCE in client.search("Cape Farewell")


@pytest.mark.usefixtures("backups")
def test_a_restore_killed_at_any_point_leaves_one_complete_database(client: Client) -> None:
    script = r"""
        for ms in $(seq 0 15 600); do
          vestige-restore /data/backup.db >/dev/null 2>&1 &
          sleep "$(awk "BEGIN { print $ms / 1000 }")"
          kill -9 $! 2>/dev/null && killed=$((killed + 1))
          wait $! 2>/dev/null
          sqlite3 -cmd '.timeout 10000' 'file:/data/vestige.db?mode=ro' \
            'PRAGMA integrity_check; SELECT count(*) > 0 FROM knowledge_nodes' |
            tr '\n' ' ' | grep -qx 'ok 1 ' || exit 1
        done
        echo "$killed"
        """
    with Callers(client, 8, "restore-killed") as callers:
        done = in_vestige("bash", "-c", textwrap.dedent(script), timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        callers.goes_on()
    assert not callers.faults, callers.faults
    assert SENTENCE in client.search("Cape Farewell")
    assert in_vestige("vestige-restore", "/data/backup.db").returncode == 0
    assert in_vestige("sh", "-c", "ls -d /data/.restore").returncode != 0
    saw(f"killed {done.stdout.strip()} times at 41 points; a whole database each time")


def watch_the_end(name: str, seen: Path) -> subprocess.Popen[bytes]:
    """Starts to write every state of a pod to a file, until the pod is deleted."""
    with seen.open("wb") as out:
        return subprocess.Popen(
            ["kubectl", "get", "pod", "-n", NAMESPACE, name, "--watch", "-o", "json"],
            stdout=out,
            stderr=subprocess.DEVNULL,
        )


def ends(seen: Path) -> dict[str, dict[str, object]]:
    """Returns how each container of the watched pod ended."""
    text, decoder, found = seen.read_text(), json.JSONDecoder(), {}
    at = 0
    while at < len(text.rstrip()):
        state, at = decoder.raw_decode(text, at)
        at += len(text[at:]) - len(text[at:].lstrip())
        for status in [
            *state["status"].get("containerStatuses", []),
            *state["status"].get("initContainerStatuses", []),
        ]:
            if "terminated" in status["state"]:
                found[status["name"]] = status["state"]["terminated"]
    return found


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    name, seen = pod()["metadata"]["name"], tmp_path / "states"
    process = watch_the_end(name, seen)
    yield name, seen
    process.terminate()
    process.wait()


def ended_in_order(seen: Path) -> None:
    both = eventually("the end of both containers", lambda: len(found := ends(seen)) == 2 and found, 90)
    assert {name: end["exitCode"] for name, end in both.items()} == {"bridge": 0, "vestige-mcp": 0}
    assert str(both["bridge"]["finishedAt"]) <= str(both["vestige-mcp"]["finishedAt"])
    saw(", ".join(f"{name} ended with {end['exitCode']} at {end['finishedAt']}" for name, end in both.items()))


def test_a_deleted_pod_answers_what_it_accepted_and_loses_nothing(client: Client, watched: tuple[str, Path]) -> None:
    name, seen = watched
    with Callers(client, 32, "pod-deleted") as callers:
        kubectl("delete", "pod", name, "--wait=false")
        ended_in_order(seen)
        eventually("another pod", lambda: gone(name) and running_pods())
        rolled_out()
        callers.goes_on()
    callers.everything_accepted_was_answered()
    callers.nothing_is_lost()
    assert SENTENCE in client.search("Cape Farewell")


def test_every_command_of_the_guide_for_a_running_release_works_as_written(client: Client) -> None:
    commands = guide_commands(r"kubectl (get|logs|exec) (?!.*(--previous|token new|audit|restore -)).*")
    in_vestige("sh", "-c", "cp $(ls /data/home/.local/share/backups/*.db | tail -n 1) /data/backup.db")
    assert len(commands) == 5
    for command in commands:
        eventually("an answer", client.is_answered)
        saw(f"{command}: {run('sh', '-c', command).stdout.strip().splitlines()[-1][:100]}")


def test_an_upgrade_without_the_old_values_reports_the_missing_options(loaded: Images) -> None:
    tags = ["--set", f"vestigeImage.tag={loaded.next_tag}", "--set", f"bridgeImage.tag={loaded.next_tag}"]
    done = attempt(HELM, "upgrade", "vestige", CHART, "--namespace", NAMESPACE, *tags)
    assert done.returncode != 0 and "--reset-then-reuse-values" in done.stderr
    saw(done.stderr.strip())


def test_an_upgrade_by_tag_answers_what_it_accepted(loaded: Images, client: Client, watched: tuple[str, Path]) -> None:
    _, seen = watched
    upgrade, _ = guide_blocks(LAST_SECTION)
    built, upgrade = upgrade.split("\n", 1)
    assert built == f"make images push TAG={loaded.next_tag}"
    with Callers(client, 32, "upgraded") as callers:
        saw(typed(upgrade).splitlines()[0])
        rolled_out()
        callers.goes_on()
    ended_in_order(seen)
    callers.everything_accepted_was_answered()
    callers.nothing_is_lost()
    tags = [
        container["image"].rpartition(":")[2]
        for kind in ("containers", "initContainers")
        for container in pod()["spec"][kind]
    ]
    assert tags == [loaded.next_tag] * 2
    saw(f"both containers run {loaded.next_tag}")
    before = pod()["metadata"]["uid"]
    run("make", "upgrade", f"TAG={loaded.next_tag}", cwd=ROOT)
    rolled_out()
    assert pod()["metadata"]["uid"] == before


def test_more_memory_is_configured_without_losing_the_other_values(loaded: Images, client: Client) -> None:
    [command] = [block for block in guide_blocks("Trouble") if "limits.memory" in block]
    typed(command)
    rolled_out()
    limits = [pod()["spec"][kind][0]["resources"]["limits"]["memory"] for kind in ("initContainers", "containers")]
    assert limits == ["1536Mi", "384Mi"]
    assert SENTENCE in client.search("Cape Farewell")
    saw(f"limits are {limits}")


def test_enabled_metrics_are_served_through_the_service(client: Client) -> None:
    page = (ROOT / "docs" / "operations.md").read_text()
    [command] = re.findall(r"^helm (upgrade .* metrics\.enabled=true)$", page, re.MULTILINE)
    run(HELM, *command.split(), "--set", "metrics.dashboard.enabled=true", cwd=ROOT)
    rolled_out()
    assert SENTENCE in client.search("Cape Farewell")
    with urllib.request.urlopen(f"http://{client.host}:9464/metrics", timeout=10) as response:
        told = response.read().decode().splitlines()
    for sample in (
        'vestige_bridge_requests_total{method="tools/call",status="200",tool="search"} 1.0',
        "vestige_bridge_upstream_sessions_opened_total 1.0",
        'vestige_bridge_upstream_state{state="ready"} 1.0',
    ):
        assert sample in told
        saw(sample)
    assert client.request("GET", "/metrics").status == 404
    saw(kubectl("get", "configmap", "-l", "grafana_dashboard=1", "--no-headers").strip())


def test_a_rollback_restores_the_release_and_keeps_the_memory(loaded: Images, client: Client) -> None:
    [command] = guide_commands(r"helm rollback .*")
    saw(typed(command))
    rolled_out()
    assert pod()["spec"]["containers"][0]["image"].endswith(loaded.tag)
    assert SENTENCE in client.search("Cape Farewell")
    saw(f"back on {loaded.tag}, the memory is there")


@pytest.mark.parametrize("way", ["as the guide says", "by make"])
def test_an_uninstallation_keeps_the_memory_for_the_next_installation(loaded: Images, way: str) -> None:
    if way == "by make":
        assert "The memory is kept" in run("make", "uninstall", cwd=ROOT).stdout
    else:
        [command] = guide_commands(r"helm uninstall .*")
        saw(typed(command))
    eventually("no pod", lambda: not kubectl("get", "pods", "-l", "app.kubernetes.io/name=vestige", "-o", "name"), 90)
    saw(kubectl("get", "pvc", "vestige", "--no-headers").strip())
    run("make", "install", f"TAG={loaded.tag}", "HELM_ARGS=--set auth.existingSecret=vestige-auth", cwd=ROOT)
    rolled_out()
    assert SENTENCE in Client(*service(), token()).search("Cape Farewell")
    saw("installed again: the memory is there")
