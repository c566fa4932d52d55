"""Tests of the chart with Vestige's own HTTP server: the differences from supergateway."""

import re
import socket
import time

import pytest
from test_3_guide import ended_in_order, gone, rolled_out, watched
from walking import (
    CHART,
    NAMESPACE,
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
    restarts,
    run,
    running_pods,
    saw,
    service,
)

TOKEN = "a-token-of-the-clients-of-32-letters"
__all__ = ["watched"]  # a fixture, used only as a parameter
SENTENCE = "The lighthouse at Cape Egmont is white."


@pytest.fixture(scope="module", autouse=True)
def installed(loaded: Images) -> None:
    attempt("kubectl", "delete", "namespace", NAMESPACE, "--ignore-not-found", timeout=180)
    run("kubectl", "create", "namespace", NAMESPACE)
    run("kubectl", "label", "namespace", NAMESPACE, "pod-security.kubernetes.io/enforce=restricted")
    kubectl("create", "secret", "generic", "vestige-auth", f"--from-literal=token={TOKEN}")
    helm("install", "vestige", CHART, "--set", "auth.existingSecret=vestige-auth,vestige.gateway=none",
         "--set", f"vestigeImage.repository={loaded.vestige},vestigeImage.tag={loaded.native_tag}",
         "--set", f"bridgeImage.repository={loaded.bridge},bridgeImage.tag={loaded.tag}")  # fmt: skip
    rolled_out()


@pytest.fixture(scope="module")
def client() -> Client:
    return Client(*service(), TOKEN)


def upstream_token() -> str:
    return in_vestige("cat", "/run/vestige/token").stdout.strip()


def test_a_memory_is_written_and_read_without_supergateway(client: Client) -> None:
    assert client.remember(SENTENCE).content["id"]
    assert client.search("Cape Egmont") == [SENTENCE]
    [line] = [line for line in log("vestige-mcp").splitlines() if "itself on 127.0.0.1 port 3100" in line]
    programs = in_vestige("sh", "-c", "for p in /proc/[0-9]*; do readlink $p/exe; done | sort -u").stdout
    assert "node" not in programs
    saw(line)
    saw(programs.replace("\n", " "))


def test_the_upstream_token_is_in_the_pods_memory_and_nowhere_else() -> None:
    token = upstream_token()
    assert re.fullmatch("[0-9a-f]{64}", token)
    assert in_bridge("cat", "/run/vestige/token").stdout.strip() == token
    assert in_bridge("sh", "-c", "echo x >/run/vestige/token").returncode != 0
    known = kubectl("get", "all,secrets,configmaps,persistentvolumeclaims,events", "-o", "yaml")
    assert token not in known + log("vestige-mcp") + log("bridge") + helm("get", "all", "vestige")
    assert in_vestige("grep", "-rl", token, "/data").stdout == ""
    assert in_vestige("sh", "-c", "df --output=fstype /run/vestige | tail -n 1").stdout.strip() == "tmpfs"
    saw(in_vestige("ls", "-l", "/run/vestige").stdout)


def test_a_clients_token_never_reaches_vestiges_container() -> None:
    environments = in_vestige("sh", "-c", "cat /proc/[0-9]*/environ | tr '\\0' '\\n' | grep TOKEN").stdout
    assert TOKEN not in environments
    assert in_vestige("sh", "-c", f"grep -rl {TOKEN} /data /run /etc").stdout == ""


def test_port_3100_is_refused_from_outside_and_asks_for_the_token_inside() -> None:
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((pod()["status"]["podIP"], 3100), timeout=5)
    ask = "curl -s -o /dev/null -w '%{http_code}' -X POST http://127.0.0.1:3100/mcp"
    assert in_vestige("sh", "-c", ask).stdout == "401"


def test_the_probe_needs_no_token_and_leaks_nothing() -> None:
    def left() -> tuple[list[str], int]:
        *files, processes = in_vestige("sh", "-c", "ls -A /data /tmp; ls -d /proc/[0-9]* | wc -l").stdout.splitlines()
        return files, int(processes)

    def nothing_is_left() -> bool:
        # The probes of the kubelet run beside this.
        now = left()
        return now[0] == before[0] and now[1] <= before[1]

    before = left()
    began = time.monotonic()
    probe = "for i in $(seq 20); do http_proxy=http://127.0.0.1:9 vestige-probe || exit 1; done"
    assert in_vestige("sh", "-c", probe).returncode == 0
    saw(f"{(time.monotonic() - began) / 20 * 1000:.0f} ms each")
    eventually("the same files, and no more processes", nothing_is_left)


def test_the_processes_have_no_more_rights_than_they_need() -> None:
    for container in (in_vestige, in_bridge):
        status = container("sh", "-c", "cat /proc/1/status; touch /probe 2>&1 || true").stdout
        assert re.search(r"^Uid:\s+10001\s", status, re.MULTILINE)
        assert re.search(r"^CapEff:\s+0+$", status, re.MULTILINE)
        assert "Read-only file system" in status


def test_the_doctor_and_helm_test_pass() -> None:
    done = in_bridge("vestige-bridge", "doctor")
    assert done.returncode == 0, done.stdout + done.stderr
    saw(done.stdout)
    assert re.search(r"Phase:\s+Succeeded", helm("test", "vestige"))


def test_a_killed_vestige_restarts_with_another_token_and_nothing_is_lost(client: Client) -> None:
    token = upstream_token()
    with Callers(client, 8, "vestige-killed") as callers:
        assert in_vestige("sh", "-c", "kill -9 $(pidof vestige)").returncode == 0
        eventually("the restart", lambda: restarts("vestige-mcp") == 1, 90)
        callers.goes_on()
    callers.nothing_is_lost()
    assert restarts("bridge") == 0
    assert upstream_token() != token


def test_a_restore_under_callers_restarts_vestige_and_not_its_container(client: Client) -> None:
    path = client.call("backup").content["path"]
    client.remember("written after the backup")
    before = restarts("vestige-mcp")
    with Callers(client, 8, "restored-under") as callers:
        done = in_vestige("vestige-restore", path)
        assert done.returncode == 0, done.stderr
        callers.goes_on()
    assert not callers.faults, callers.faults
    assert client.search("written after the backup") == []
    assert SENTENCE in client.search("Cape Egmont")
    assert (restarts("vestige-mcp"), restarts("bridge")) == (before, 0)
    saw(done.stdout)


def test_a_deleted_pod_answers_what_it_accepted(client: Client, watched: tuple[str, object]) -> None:
    name, seen = watched
    with Callers(client, 16, "pod-deleted") as callers:
        kubectl("delete", "pod", name, "--wait=false")
        ended_in_order(seen)  # type: ignore[arg-type]
        eventually("another pod", lambda: gone(name) and running_pods())
        rolled_out()
        callers.goes_on()
    callers.everything_accepted_was_answered()
    callers.nothing_is_lost()


def test_one_value_switches_back_to_supergateway(client: Client, loaded: Images) -> None:
    helm("upgrade", "vestige", CHART, "--reset-then-reuse-values",
         "--set", f"vestige.gateway=supergateway,vestigeImage.tag={loaded.tag}")  # fmt: skip
    rolled_out()
    eventually("an answer", client.is_answered)
    assert SENTENCE in client.search("Cape Egmont")
    assert in_vestige("sh", "-c", "ls /run/vestige").stdout == ""
