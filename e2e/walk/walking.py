"""Helpers of the deployment test: commands, the pod, and callers that record the result of every call."""

import http.client
import json
import os
import re
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

ROOT = Path(__file__).resolve().parents[2]
E2E = ROOT / "e2e"
CHART = str(ROOT / "charts" / "vestige")
NAMESPACE = "openclaw"
HELM = os.environ.get("HELM", "helm")

Json = dict[str, Any]
Done = subprocess.CompletedProcess[str]


@dataclass(frozen=True)
class Release:
    url: str
    sha256: str


@dataclass(frozen=True)
class Images:
    vestige: str
    bridge: str
    tag: str
    next_tag: str
    native_tag: str


def saw(what: str) -> None:
    print(what, flush=True)


def attempt(*command: str, cwd: Path | None = None, env: dict[str, str] | None = None, timeout: float = 120) -> Done:
    return subprocess.run(command, cwd=cwd, env={**os.environ, **(env or {})}, capture_output=True, text=True,
                          timeout=timeout, check=False)  # fmt: skip


def run(*command: str, cwd: Path | None = None, env: dict[str, str] | None = None, timeout: float = 120) -> Done:
    done = attempt(*command, cwd=cwd, env=env, timeout=timeout)
    assert done.returncode == 0, (
        f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    )
    return done


def kubectl(*arguments: str, timeout: float = 120) -> str:
    return run("kubectl", "-n", NAMESPACE, *arguments, timeout=timeout).stdout


def helm(*arguments: str, timeout: float = 400) -> str:
    return run(HELM, *arguments, "--namespace", NAMESPACE, timeout=timeout).stdout


T = TypeVar("T")


def eventually(what: str, look: Callable[[], T | Literal[False]], timeout: float = 60) -> T:
    """Waits until ``look`` returns a true value; returns this value."""
    end = time.monotonic() + timeout
    while True:
        answer = look()
        if answer:
            return answer
        assert time.monotonic() < end, f"gave up waiting for {what}"
        time.sleep(0.25)


def running_pods() -> list[Json]:
    pods: list[Json] = json.loads(kubectl("get", "pods", "-l", "app.kubernetes.io/name=vestige", "-o", "json"))["items"]
    return [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]


def pod() -> Json:
    [only] = running_pods()
    return only


def restarts(container: str) -> int:
    status = pod()["status"]
    found = [*status.get("containerStatuses", []), *status.get("initContainerStatuses", [])]
    return next(int(entry["restartCount"]) for entry in found if entry["name"] == container)


def in_vestige(*command: str, timeout: float = 120) -> Done:
    return attempt(
        "kubectl",
        "-n",
        NAMESPACE,
        "exec",
        pod()["metadata"]["name"],
        "-c",
        "vestige-mcp",
        "--",
        *command,
        timeout=timeout,
    )


def in_bridge(*command: str, timeout: float = 120) -> Done:
    return attempt(
        "kubectl", "-n", NAMESPACE, "exec", pod()["metadata"]["name"], "-c", "bridge", "--", *command, timeout=timeout
    )


def log(container: str) -> str:
    return kubectl("logs", pod()["metadata"]["name"], "-c", container)


@dataclass(frozen=True)
class Answer:
    status: int
    body: Json

    @property
    def result(self) -> Json:
        assert "result" in self.body, self
        result: Json = self.body["result"]
        return result

    @property
    def content(self) -> Json:
        content: Json = self.result["structuredContent"]
        return content


class Refused(Exception):
    """The connection failed, so the request was not sent."""


class Broken(Exception):
    """The connection ended after the request was sent and before its response."""


@dataclass(frozen=True)
class Client:
    """A sessionless client: it sends each JSON-RPC request on a new connection."""

    host: str
    port: int
    token: str

    def request(self, method: str, path: str, body: Json | None = None, timeout: float = 60) -> Answer:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=timeout)
        try:
            try:
                connection.connect()
            except OSError as error:
                raise Refused(str(error)) from error
            headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self.token}"}
            try:
                connection.request(method, path, json.dumps(body) if body else None, headers)
                response = connection.getresponse()
                return Answer(response.status, json.loads(response.read()))
            except (OSError, http.client.HTTPException, ValueError) as error:
                raise Broken(repr(error)) from error
        finally:
            connection.close()

    def ask(self, method: str, params: Json | None = None, identifier: object = 1) -> Answer:
        return self.request(
            "POST", "/mcp", {"jsonrpc": "2.0", "id": identifier, "method": method, "params": params or {}}
        )

    def is_answered(self) -> bool:
        """Whether calls reach Vestige now; a Service accepts no connection while the bridge is not ready."""
        try:
            return self.ask("tools/list").status == 200
        except Refused:
            return False

    def call(self, tool: str, **arguments: object) -> Answer:
        return self.ask("tools/call", {"name": tool, "arguments": arguments})

    def remember(self, content: str) -> Answer:
        return self.call("smart_ingest", content=content)

    def search(self, query: str, limit: int = 1000000) -> list[str]:
        """Returns the memories that match; retries, because after a rollout a Service may still select the old pod."""
        deadline = time.monotonic() + 30
        while True:
            try:
                memories: list[str] = self.call("search", query=query, limit=limit).content["memories"]
            except Refused:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)
            else:
                return memories


@dataclass
class Callers:
    """Callers that write one memory after another, and record the result of each write."""

    client: Client
    count: int
    label: str
    outcomes: Counter[str] = field(default_factory=Counter)
    acknowledged: set[str] = field(default_factory=set)
    faults: dict[str, str] = field(default_factory=dict)

    def __enter__(self) -> Self:
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._write, args=(number,)) for number in range(self.count)]
        for thread in self._threads:
            thread.start()
        eventually("a first answer", lambda: self.acknowledged, 30)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        saw(f"{self.count} callers: {dict(self.outcomes)}")

    def _write(self, number: int) -> None:
        step = 0
        while not self._stop.is_set():
            step += 1
            content = f"{self.label} {number}/{step}."
            outcome = self._outcome(content)
            with self._lock:
                self.outcomes[outcome] += 1
            self._stop.wait(0.05 if outcome == "answered" else 0.3)

    def _outcome(self, content: str) -> str:
        try:
            answer = self.client.remember(content)
        except Refused:
            return "not connected"
        except Broken as error:
            with self._lock:
                self.faults[content] = str(error)
            return "broken"
        if answer.status == 200 and "result" in answer.body and not answer.body["result"].get("isError"):
            with self._lock:
                self.acknowledged.add(content)
            return "answered"
        refusal = answer.body.get("error", {})
        return f"{answer.status} {refusal.get('code')} {refusal.get('data', {}).get('outcome')}"

    def goes_on(self, timeout: float = 120) -> None:
        """Waits until there are enough new answers for every caller to have been answered again."""
        before = len(self.acknowledged)
        eventually(
            "the callers to be answered again", lambda: len(self.acknowledged) > before + 2 * self.count, timeout
        )

    def everything_accepted_was_answered(self) -> None:
        """Checks that no call ran whose connection was reset: the kernel resets those that were not yet accepted."""
        ran = set(self.client.search(self.label)) & set(self.faults)
        assert not ran, {content: self.faults[content] for content in ran}
        saw(f"{len(self.faults)} connections were reset before they were accepted; none of their calls ran")

    def nothing_is_lost(self) -> None:
        kept = set(self.client.search(self.label))
        assert self.acknowledged <= kept, f"{len(self.acknowledged - kept)} acknowledged memories are lost"
        saw(f"{len(self.acknowledged)} acknowledged memories, all kept")


def service() -> tuple[str, int]:
    spec = json.loads(kubectl("get", "service", "vestige", "-o", "json"))["spec"]
    return spec["clusterIP"], spec["ports"][0]["port"]


@contextmanager
def port_forward(target: str, remote: int) -> Iterator[int]:
    command = ["kubectl", "port-forward", "-n", NAMESPACE, target, f":{remote}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout
            found = re.search(r"127\.0\.0\.1:(\d+)", process.stdout.readline())
            assert found, "kubectl port-forward said no port"
            yield int(found[1])
        finally:
            process.terminate()
