"""Tests of `helm upgrade` with changed objects in the cluster, some of which it rejects. They run no pod."""

import base64
import json
import re
import shlex
from collections.abc import Iterator

import pytest
from walking import CHART, HELM, Done, attempt, run, saw

SPACE = "20260728"  # a name that YAML parses as a number unless it is quoted
A, B = "token-a-of-16-letters-or-more", "token-b-of-16-letters-or-more"
TOKENS = f'auth.tokens=[{{"name": "agents", "token": "{A}", "tools": ["search"]}}]'
MINE = f"[[token]]\nname = 'mine'\ntoken = '{B}'"


def helm(*arguments: str) -> Done:
    return attempt(HELM, *arguments, "--namespace", SPACE)


def kubectl(*arguments: str) -> str:
    return run("kubectl", "-n", SPACE, *arguments).stdout


def secret(name: str, key: str = "token") -> str:
    encoded = json.loads(kubectl("get", "secret", name, "-o", "json"))["data"][key]
    return base64.b64decode(encoded).decode()


def exists(kind: str, name: str) -> bool:
    return bool(kubectl("get", kind, name, "--ignore-not-found", "-o", "name"))


@pytest.fixture(autouse=True)
def release() -> Iterator[None]:
    """Installs a release named vestige with the token A, in its own namespace."""
    run("kubectl", "create", "namespace", SPACE)
    installed = helm("install", "vestige", CHART, "--set", f"auth.token={A}")
    assert installed.returncode == 0, installed.stderr
    yield
    run("kubectl", "delete", "namespace", SPACE, timeout=180)


def upgrade(*values: str) -> Done:
    return helm("upgrade", "vestige", CHART, "--reset-then-reuse-values", *values)


def refused(*values: str) -> str:
    done = upgrade(*values)
    assert done.returncode != 0, done.stdout
    assert json.loads(helm("status", "vestige", "-o", "json").stdout)["info"]["status"] == "deployed"
    saw(done.stderr.strip())
    return done.stderr


def accepted(*values: str) -> None:
    done = upgrade(*values)
    assert done.returncode == 0, done.stderr


def test_a_token_changed_by_hand_is_never_overwritten() -> None:
    kubectl("patch", "secret", "vestige-token", "-p", json.dumps({"stringData": {"token": B}}))
    assert "set auth.existingSecret" in refused("--set", "vestigeImage.tag=v9")
    assert secret("vestige-token") == B
    kubectl("create", "secret", "generic", "my-tokens", f"--from-literal=token={B}")
    accepted("--set", "auth.existingSecret=my-tokens")
    assert not exists("secret", "vestige-token")


def test_token_entries_changed_by_hand_are_never_overwritten() -> None:
    accepted("--set", "auth.token=", "--set-json", TOKENS)
    assert '"agents"' in secret("vestige-token", "tokens.toml")
    accepted("--set", "vestigeImage.tag=v9")
    kubectl("patch", "secret", "vestige-token", "-p", json.dumps({"stringData": {"tokens.toml": MINE}}))
    assert "set auth.existingSecret" in refused("--set", "vestigeImage.tag=v8")
    assert secret("vestige-token", "tokens.toml") == MINE
    kubectl("create", "secret", "generic", "my-tokens", f"--from-literal=tokens.toml={MINE}")
    moved = ("--set", "auth.existingSecret=my-tokens,auth.secretKey=tokens.toml")
    said = refused(*moved)
    [way_out] = re.findall("--set-json '(auth.tokens=[^']*)'", said)
    accepted(*moved, "--set-json", way_out)
    assert not exists("secret", "vestige-token")
    assert secret("my-tokens", "tokens.toml") == MINE


def test_values_replace_token_entries_that_nobody_changed() -> None:
    assert "add --set auth.token=" in refused("--set-json", TOKENS)
    accepted("--set", "auth.token=", "--set-json", TOKENS)
    accepted("--set-json", TOKENS.replace("agents", "assistant"))
    assert '"assistant"' in secret("vestige-token", "tokens.toml")
    accepted("--set", f"auth.token={B}", "--set-json", "auth.tokens=[]")
    assert secret("vestige-token") == B


def test_a_secret_of_this_release_is_kept_before_its_tokens_are_taken_as_ones_own() -> None:
    accepted("--set", "auth.token=", "--set-json", TOKENS)
    own = ("--set", "auth.existingSecret=vestige-token,auth.secretKey=tokens.toml", "--set-json", "auth.tokens=[]")
    [command] = [line.partition("own first: ")[2] for line in refused(*own).splitlines() if "kubectl annotate" in line]
    run(*shlex.split(command))
    accepted(*own)
    assert '"agents"' in secret("vestige-token", "tokens.toml")


def test_values_replace_a_token_that_nobody_changed() -> None:
    accepted("--set", "vestigeImage.tag=v9")
    assert secret("vestige-token") == A
    accepted("--set", f"auth.token={B}")
    assert secret("vestige-token") == B


def test_a_secret_of_an_earlier_chart_that_was_changed_by_hand_is_not_undone() -> None:
    kubectl("delete", "secret", "vestige-token")
    kubectl("create", "secret", "generic", "vestige-auth", f"--from-literal=token={B}")
    owner = ("meta.helm.sh/release-name=vestige", f"meta.helm.sh/release-namespace={SPACE}")
    kubectl("annotate", "secret", "vestige-auth", *owner)
    assert "set auth.existingSecret" in refused()
    kubectl("patch", "secret", "vestige-auth", "-p", json.dumps({"stringData": {"token": A}}))
    accepted()


def test_a_secret_of_this_release_is_kept_before_it_is_taken_as_ones_own() -> None:
    said = refused("--set", "auth.existingSecret=vestige-token")
    [command] = [line.partition("own first: ")[2] for line in said.splitlines() if "kubectl annotate" in line]
    run(*shlex.split(command))
    accepted("--set", "auth.existingSecret=vestige-token")
    assert secret("vestige-token") == A


def test_the_guides_secret_survives_the_move_to_it() -> None:
    kubectl("create", "secret", "generic", "vestige-auth", f"--from-literal=token={B}")
    accepted("--set", "auth.existingSecret=vestige-auth")
    assert secret("vestige-auth") == B
    assert not exists("secret", "vestige-token")


def test_a_claim_of_another_size_mode_or_class_stops_before_anything_is_applied() -> None:
    said = refused("--set", "persistence.size=10Gi")
    assert "set persistence.size=5Gi" in said and "kubectl patch pvc" in said
    said = refused("--set", "persistence.accessMode=ReadWriteOncePod")
    assert (
        "has the access mode ReadWriteOnce, which cannot be changed: set persistence.accessMode=ReadWriteOnce" in said
    )
    assert "which cannot be changed: set persistence.storageClass=" in refused(
        "--set", "persistence.storageClass=other"
    )
    accepted("--set", "persistence.size=5120Mi")
    assert helm("uninstall", "vestige").returncode == 0
    again = helm("install", "vestige", CHART, "--set", f"auth.token={A},persistence.size=10Gi")
    assert again.returncode != 0 and "set persistence.size=5Gi" in again.stderr
    assert helm("install", "vestige", CHART, "--set", f"auth.token={A}").returncode == 0


def test_ones_own_key_never_stands_beside_the_charts() -> None:
    accepted("--set", r"podAnnotations.kubectl\.kubernetes\.io/default-container=vestige-mcp",
             "--set", "bridge.extraEnv[0].name=VESTIGE_BRIDGE_LOG_FORMAT,bridge.extraEnv[0].value=text")  # fmt: skip
    live = json.loads(kubectl("get", "deployment", "vestige", "-o", "json"))["spec"]["template"]
    assert live["metadata"]["annotations"]["kubectl.kubernetes.io/default-container"] == "vestige-mcp"
    formats = [it["value"] for it in live["spec"]["containers"][0]["env"] if it["name"] == "VESTIGE_BRIDGE_LOG_FORMAT"]
    assert formats == ["text"]
