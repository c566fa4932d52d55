"""Tests of the guide's sections on tokens with permissions in a Secret, their rotation, and the audit log."""

import json
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from test_3_guide import guide_blocks, rolled_out, typed
from walking import (
    CHART,
    HELM,
    NAMESPACE,
    Client,
    Images,
    Json,
    attempt,
    eventually,
    helm,
    in_bridge,
    kubectl,
    log,
    pod,
    restarts,
    run,
    saw,
    service,
)

CHECKER = "a-token-for-helm-test-of-32-letters"
SENTENCE = "The lighthouse at Cape Reinga is lit."
Entry = tuple[str, str]


@pytest.fixture(scope="module", autouse=True)
def installed(loaded: Images, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Installs the chart with a token in its values, which the chart stores in its own Secret."""
    attempt("kubectl", "delete", "namespace", NAMESPACE, "--ignore-not-found", timeout=180)
    run("kubectl", "create", "namespace", NAMESPACE)
    run("kubectl", "label", "namespace", NAMESPACE, "pod-security.kubernetes.io/enforce=restricted")
    values = tmp_path_factory.mktemp("values") / "values.json"
    entry = {"name": "checker", "token": CHECKER, "expires": "2099-01-01T00:00:00Z"}
    values.write_text(json.dumps({"auth": {"tokens": [entry]}}))
    helm("install", "vestige", CHART, "-f", str(values),
         "--set", f"vestigeImage.repository={loaded.vestige},vestigeImage.tag={loaded.tag}",
         "--set", f"bridgeImage.repository={loaded.bridge},bridgeImage.tag={loaded.tag}")  # fmt: skip
    rolled_out()


@pytest.fixture(scope="module")
def client() -> Callable[[str], Client]:
    host, port = service()
    return lambda token: Client(host, port, token)


def answered(client: Client) -> bool:
    return client.is_answered()


def refused(client: Client) -> bool:
    return client.ask("tools/list").status == 401


def new_token(command: str) -> Entry:
    """Runs the guide's command for a new token; returns the token and its entry."""
    printed = run("sh", "-c", command).stdout
    found = re.search(r"^([0-9a-f]{64})$.*^(\[\[token\]\]\n.*)", printed, re.MULTILINE | re.DOTALL)
    assert found, printed
    assert found[1] not in found[2]
    return found[1], found[2]


@pytest.fixture(scope="module")
def entries() -> dict[str, Entry]:
    """Returns the tokens and entries that the guide's commands make for its two agents."""
    commands = guide_blocks("Tokens with rights")[0].splitlines()
    made = {command.partition("token new ")[2].split()[0]: new_token(command) for command in commands}
    assert made.keys() == {"assistant", "nightly-job"}
    return made


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("secret") / "tokens.toml"


def in_secret(file: Path, *written: str) -> str:
    """Writes entries into the file; returns the guide's command that updates the Secret from it."""
    file.write_text("\n".join(written))
    line = guide_blocks("Tokens with rights")[1].splitlines()[0]
    assert line.count("--from-file=tokens.toml") == 1
    return line.replace("--from-file=tokens.toml", f"--from-file=tokens.toml={file}")


def audit_lines() -> list[Json]:
    lines = [line for line in log("bridge").splitlines() if '"audit":' in line]
    return [json.loads(line) for line in lines]


def test_the_charts_own_secret_holds_a_token_with_rights(client: Callable[[str], Client]) -> None:
    eventually("an answer", client(CHECKER).is_answered)
    assert client(CHECKER).remember(SENTENCE).content["id"]
    assert refused(client("another-token-of-16-letters"))
    assert "TOKEN=…" in helm("get", "notes", "vestige")
    printed = helm("test", "vestige", "--logs")
    assert re.search(r"Phase:\s+Succeeded", printed)
    saw(next(line for line in printed.splitlines() if line.startswith("system_status:")))


def test_the_guides_commands_move_the_release_to_a_secret_of_ones_own(
    client: Callable[[str], Client], entries: dict[str, Entry], file: Path
) -> None:
    _, move, *_ = guide_blocks("Tokens with rights")
    script = move.replace(move.splitlines()[0], in_secret(file, *(entry for _, entry in entries.values())))
    saw(typed(script.replace("--set audit.enabled=true", "--set audit.enabled=true --set-json 'auth.tokens=[]'")))
    for name, (token, _) in entries.items():
        eventually(name, client(token).is_answered)
    assert refused(client(CHECKER))
    assert "secret/vestige-token" not in kubectl("get", "secrets", "-o", "name").splitlines()
    assert in_bridge("ls", "/etc/vestige/auth").stdout == "tokens.toml\n"
    started = kubectl("get", "pod", pod()["metadata"]["name"], "-o", "yaml") + log("bridge")
    assert all(token not in started for token, _ in entries.values())


def test_an_allow_list_is_enforced(client: Callable[[str], Client], entries: dict[str, Entry]) -> None:
    assistant, job = (client(entries[name][0]) for name in ("assistant", "nightly-job"))
    tools = {it: [tool["name"] for tool in it.ask("tools/list").result["tools"]] for it in (assistant, job)}
    assert tools[job] == ["search"]
    assert {"search", "smart_ingest", "system_status"} <= set(tools[assistant])
    assert assistant.remember("The assistant wrote this.").content["id"]
    assert job.search("Cape Reinga") == [SENTENCE]
    for answer in (job.remember("The job wrote this."), job.call("system_status")):
        assert (answer.status, answer.body["error"]["code"]) == (403, -32016)
    assert assistant.search("The job wrote") == []
    saw(f"nightly-job sees {tools[job]} of {tools[assistant]}, and gets 403 for the others")


def test_the_audit_log_on_standard_output_names_principal_and_tool() -> None:
    [_, _, _, grep] = guide_blocks("Tokens with rights")
    lines = [json.loads(line) for line in run("sh", "-c", grep).stdout.splitlines()]
    told = [(it["audit"], it["principal"], it["tool"], it["outcome"]) for it in lines]
    assert told == [
        ("call", "assistant", "smart_ingest", "answered"),
        ("call", "nightly-job", "search", "answered"),
        ("refusal", "nightly-job", "smart_ingest", "refused"),
        ("refusal", "nightly-job", "system_status", "refused"),
        ("call", "assistant", "search", "answered"),
    ]
    text = json.dumps(lines)
    assert "Cape Reinga" not in text and "wrote this" not in text
    saw("\n".join(json.dumps(line) for line in lines))


def test_a_rotated_secret_changes_the_valid_tokens_without_a_restart(
    client: Callable[[str], Client], entries: dict[str, Entry], file: Path
) -> None:
    name, job = pod()["metadata"]["name"], entries["nightly-job"][1]
    old_token, old = entries["assistant"]
    token, new = new_token(guide_blocks("Tokens with rights")[0].splitlines()[0])
    assert refused(client(token))
    began = time.monotonic()
    typed(in_secret(file, old, new, job))
    eventually("the new token", client(token).is_answered, 150)
    assert answered(client(old_token))
    saw(f"the new token was taken after {time.monotonic() - began:.0f} s, the old one goes on")
    began = time.monotonic()
    typed(in_secret(file, new, job))
    eventually("the end of the old token", lambda: refused(client(old_token)), 150)
    assert answered(client(token)) and answered(client(entries["nightly-job"][0]))
    saw(f"the old token was refused after {time.monotonic() - began:.0f} s, the others go on")
    assert client(token).search("Cape Reinga") == [SENTENCE]
    assert {it["principal"] for it in audit_lines()} == {"assistant", "nightly-job"}
    assert (pod()["metadata"]["name"], restarts("bridge"), restarts("vestige-mcp")) == (name, 0, 0)
    entries["assistant"] = token, new


def test_helm_test_requires_a_token_if_the_file_has_only_hashes(entries: dict[str, Entry]) -> None:
    failed = attempt(HELM, "test", "vestige", "--logs", "--namespace", NAMESPACE)
    assert failed.returncode != 0
    assert "let test.existingSecret name a Secret that holds one" in kubectl("logs", "vestige-test-call")
    kubectl("create", "secret", "generic", "vestige-test", f"--from-literal=token={entries['nightly-job'][0]}")
    arguments = ("--set-json", 'test.arguments={"query":"Cape"}')
    helm("upgrade", "vestige", CHART, "--reset-then-reuse-values",
         "--set", "test.existingSecret=vestige-test,test.tool=search", *arguments)  # fmt: skip
    printed = helm("test", "vestige", "--logs")
    assert re.search(r"Phase:\s+Succeeded", printed)
    saw(next(line for line in printed.splitlines() if line.startswith("search:")))


def test_the_doctor_reads_a_token_from_standard_input(entries: dict[str, Entry]) -> None:
    [_, _, doctor, _] = guide_blocks("Tokens with rights")
    said = typed(doctor, TOKEN=entries["assistant"][0])
    assert "✓ token" in said and "✓ read" in said
    saw(said)
