"""Tests of the objects that the chart renders with `helm template`."""

import base64
import hashlib
import itertools
import json
import os
import re
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml
from headings import anchors

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "charts" / "vestige"
VALUES_PROD = Path(__file__).with_name("values-prod.yaml")
HELM = os.environ.get("HELM") or shutil.which("helm") or "helm"
OLDEST, NEWEST = "1.29", "1.37"
TOKEN = "a-token-of-32-characters-or-more"
TOKENS = ("--set-json", f'auth.tokens=[{{"name": "agents", "token": "{TOKEN}", "tools": ["search"]}}]')

Manifest = dict[str, Any]


def helm(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([HELM, *arguments], capture_output=True, text=True, timeout=60, check=False)


def template(*arguments: str, release: str = "vestige", version: str = "1.35") -> subprocess.CompletedProcess[str]:
    return helm("template", release, str(CHART), "-n", "openclaw", "--kube-version", f"{version}.0", *arguments)


def render(*arguments: str, token: str | None = TOKEN, **options: str) -> dict[str, Manifest]:
    """Returns the rendered objects by kind; the chart has one of each, except its test pod."""
    auth = [] if token is None else ["--set-string", f"auth.token={token}"]
    result = template(*auth, *arguments, **options)
    assert result.returncode == 0, result.stderr
    return {document["kind"]: document for document in yaml.safe_load_all(result.stdout) if document}


def refusal(*arguments: str) -> str:
    result = template(*arguments)
    assert result.returncode != 0, result.stdout
    return result.stderr


def pod(objects: dict[str, Manifest]) -> Manifest:
    spec: Manifest = objects["Deployment"]["spec"]["template"]["spec"]
    return spec


def containers(objects: dict[str, Manifest]) -> tuple[Manifest, Manifest]:
    [vestige], [bridge] = pod(objects)["initContainers"], pod(objects)["containers"]
    return vestige, bridge


def environment(container: Manifest) -> dict[str, str]:
    return {entry["name"]: entry.get("value", "") for entry in container.get("env", [])}


@pytest.fixture(scope="module")
def default() -> dict[str, Manifest]:
    return render()


def test_lint_finds_nothing_even_when_strict() -> None:
    result = helm("lint", "--strict", "--kube-version", "1.35.0", str(CHART), "--set", f"auth.token={TOKEN}")
    assert result.returncode == 0, result.stdout + result.stderr


def test_one_pod_runs_both_containers_and_is_replaced_as_a_whole(default: dict[str, Manifest]) -> None:
    spec = default["Deployment"]["spec"]
    vestige, bridge = containers(default)
    assert (spec["replicas"], spec["strategy"]) == (1, {"type": "Recreate"})
    assert (vestige["name"], bridge["name"]) == ("vestige-mcp", "bridge")


def test_vestige_is_a_sidecar_that_starts_first_and_ends_last(default: dict[str, Manifest]) -> None:
    vestige, _ = containers(default)
    assert vestige["restartPolicy"] == "Always"
    assert yaml.safe_load((CHART / "Chart.yaml").read_text())["kubeVersion"] == ">=1.29.0-0"


@pytest.mark.parametrize("count", ["0", "2"])
def test_another_number_of_replicas_is_rejected_with_the_reason(count: str) -> None:
    assert "only one Vestige process may use the SQLite file" in refusal(
        "--set", f"auth.token={TOKEN}", "--set", f"replicaCount={count}"
    )


def test_the_volume_is_at_data_in_both_and_read_only_in_the_bridge(default: dict[str, Manifest]) -> None:
    vestige, bridge = containers(default)
    assert {"name": "data", "mountPath": "/data"} in vestige["volumeMounts"]
    assert {"name": "data", "mountPath": "/data", "readOnly": True} in bridge["volumeMounts"]
    assert {"name": "data", "persistentVolumeClaim": {"claimName": "vestige"}} in pod(default)["volumes"]


def test_the_claim_outlives_the_release(default: dict[str, Manifest]) -> None:
    claim = default["PersistentVolumeClaim"]
    assert claim["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    assert claim["spec"]["accessModes"] == ["ReadWriteOnce"]


def test_the_claim_follows_its_values() -> None:
    claim = render(
        "--set", "persistence.size=9Gi,persistence.storageClass=fast,persistence.accessMode=ReadWriteOncePod",
        "--set", "persistence.annotations.team=memory",
    )["PersistentVolumeClaim"]  # fmt: skip
    assert claim["spec"] == {
        "accessModes": ["ReadWriteOncePod"],
        "storageClassName": "fast",
        "resources": {"requests": {"storage": "9Gi"}},
    }
    assert claim["metadata"]["annotations"]["team"] == "memory"


def test_a_dash_requests_a_volume_without_a_storage_class() -> None:
    claim = render("--set", "persistence.storageClass=-")["PersistentVolumeClaim"]
    assert claim["spec"]["storageClassName"] == ""


def test_an_existing_claim_is_used_and_none_is_created() -> None:
    objects = render("--set", "persistence.existingClaim=mine")
    assert "PersistentVolumeClaim" not in objects
    assert {"name": "data", "persistentVolumeClaim": {"claimName": "mine"}} in pod(objects)["volumes"]


def test_the_service_forwards_port_8000_to_the_bridge(default: dict[str, Manifest]) -> None:
    service = default["Service"]["spec"]
    assert service["ports"] == [{"name": "http", "port": 8000, "targetPort": "http"}]
    assert containers(default)[1]["ports"] == [{"name": "http", "containerPort": 8000}]
    assert service["selector"].items() <= default["Deployment"]["spec"]["template"]["metadata"]["labels"].items()


def test_release_vestige_gives_objects_named_vestige(default: dict[str, Manifest]) -> None:
    for kind in ("Deployment", "Service", "PersistentVolumeClaim", "NetworkPolicy"):
        assert default[kind]["metadata"]["name"] == "vestige"
    assert render(release="memory")["Deployment"]["metadata"]["name"] == "memory-vestige"
    assert render("--set", "fullnameOverride=m")["Deployment"]["metadata"]["name"] == "m"
    assert render("--set", "nameOverride=m", release="r")["Deployment"]["metadata"]["name"] == "r-m"


def test_labels_are_the_recommended_ones_and_no_others(default: dict[str, Manifest]) -> None:
    for manifest in default.values():
        assert all(label.startswith("app.kubernetes.io/") for label in manifest["metadata"]["labels"])


def test_the_values_file_of_the_guide_is_accepted_unchanged() -> None:
    objects = render("-f", str(VALUES_PROD))
    vestige, bridge = containers(objects)
    tag = yaml.safe_load(VALUES_PROD.read_text())["vestigeImage"]["tag"]
    assert vestige["image"] == f"123456789.dkr.ecr.us-west-2.amazonaws.com/vestige-mcp:{tag}"
    assert bridge["image"] == f"123456789.dkr.ecr.us-west-2.amazonaws.com/vestige-bridge:{tag}"
    assert vestige["resources"]["limits"] == {"cpu": "500m", "memory": "512Mi"}
    assert bridge["resources"]["limits"] == {"cpu": "250m", "memory": "256Mi"}
    assert objects["PersistentVolumeClaim"]["spec"]["resources"]["requests"]["storage"] == "10Gi"
    [rule] = objects["Ingress"]["spec"]["rules"]
    assert rule["host"] == "vestige.internal.yourcompany.com"


def test_there_is_no_ingress_without_hosts(default: dict[str, Manifest]) -> None:
    assert "Ingress" not in default


def test_an_ingress_without_certificate_is_plain() -> None:
    ingress = render("--set", "ingress.hosts[0].host=a.example,ingress.hosts[0].paths[0].path=/",
                     "--set", "ingress.hosts[0].paths[0].pathType=Prefix,ingress.className=nginx",
                     "--set", "ingress.tls[0].secretName=tls,ingress.tls[0].hosts[0]=a.example")["Ingress"]  # fmt: skip
    assert "annotations" not in ingress["metadata"]
    assert ingress["spec"]["ingressClassName"] == "nginx"
    assert ingress["spec"]["tls"] == [{"secretName": "tls", "hosts": ["a.example"]}]


def test_an_ingress_with_certificate_is_an_internal_https_load_balancer() -> None:
    ingress = render("-f", str(VALUES_PROD), "--set", "ingress.idleTimeoutSeconds=90")["Ingress"]
    annotations = {key.rpartition("/")[2]: value for key, value in ingress["metadata"]["annotations"].items()}
    assert annotations["scheme"] == "internal"
    assert annotations["listen-ports"] == '[{"HTTPS":443}]'
    assert annotations["certificate-arn"] == "arn:aws:acm:us-west-2:123456789:certificate/your-cert-id"
    assert annotations["healthcheck-path"] == "/readyz"
    assert annotations["load-balancer-attributes"] == "idle_timeout.timeout_seconds=90"
    assert ingress["spec"]["ingressClassName"] == "alb"


def test_own_ingress_annotations_win() -> None:
    ingress = render("-f", str(VALUES_PROD), "--set-string",
                     r"ingress.annotations.alb\.ingress\.kubernetes\.io/scheme=internet-facing")["Ingress"]  # fmt: skip
    assert ingress["metadata"]["annotations"]["alb.ingress.kubernetes.io/scheme"] == "internet-facing"


ROUTE = ("--set", "httpRoute.parentRefs[0].name=public,httpRoute.parentRefs[0].namespace=gateways")


def test_there_is_no_route_without_a_gateway(default: dict[str, Manifest]) -> None:
    assert "HTTPRoute" not in default


def test_a_route_leads_from_the_gateway_to_the_service_and_its_open_port() -> None:
    objects = render(
        *ROUTE, "--set", "httpRoute.hostnames[0]=a.example,httpRoute.annotations.note=outer,service.port=80",
        "--set", "httpRoute.parentRefs[0].sectionName=https",
        "--set", "networkPolicy.from[0].namespaceSelector.matchLabels.team=gateways",
    )  # fmt: skip
    route, service, policy = objects["HTTPRoute"], objects["Service"], objects["NetworkPolicy"]["spec"]["ingress"]
    assert route["metadata"]["annotations"] == {"note": "outer"}
    assert route["spec"]["parentRefs"] == [{"name": "public", "namespace": "gateways", "sectionName": "https"}]
    assert route["spec"]["hostnames"] == ["a.example"]
    [rule] = route["spec"]["rules"]
    assert rule["backendRefs"] == [{"name": service["metadata"]["name"], "port": service["spec"]["ports"][0]["port"]}]
    assert policy[0]["ports"] == [{"protocol": "TCP", "port": containers(objects)[1]["ports"][0]["containerPort"]}]
    assert policy[0]["from"][0] == {"namespaceSelector": {"matchLabels": {"team": "gateways"}}}


def test_a_route_limits_the_time_of_a_stream_only_if_configured() -> None:
    def timeouts(*values: str) -> object:
        return render(*ROUTE, *values)["HTTPRoute"]["spec"]["rules"][0].get("timeouts")

    assert timeouts() == {"request": "0s", "backendRequest": "0s"}
    assert timeouts("--set", "httpRoute.timeouts.request=1h") == {"request": "1h", "backendRequest": "0s"}
    assert timeouts("--set", "httpRoute.timeouts=null") is None


def closed(schema: Any) -> Any:
    """Returns the schema of a CRD without unknown fields, which the API server rejects with strict validation."""
    if isinstance(schema, list):
        return [closed(it) for it in schema]
    if not isinstance(schema, dict):
        return schema
    open_map = "additionalProperties" in schema or schema.get("x-kubernetes-preserve-unknown-fields")
    named = isinstance(schema.get("properties"), dict) and schema.get("type") == "object"
    inner = {key: closed(value) for key, value in schema.items()}
    return inner | {"additionalProperties": False} if named and not open_map else inner


@pytest.fixture(scope="module")
def route_schema() -> jsonschema.Draft7Validator:
    """Returns the schema of HTTPRoute in the newest release of the Gateway API."""
    crd = yaml.safe_load((ROOT / ".tools/httproutes.yaml").read_text())
    [version] = [it for it in crd["spec"]["versions"] if it["name"] == "v1"]
    schema = closed(version["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}
    return jsonschema.Draft7Validator(schema)


FULL_ROUTE = {
    "parentRefs": [
        {"group": "gateway.networking.k8s.io", "kind": "Gateway", "namespace": "gateways", "name": "public"},
        {"name": "internal", "sectionName": "https", "port": 443},
    ],
    "hostnames": ["vestige.example.com", "*.example.org"],
    "timeouts": {"request": "1h30m", "backendRequest": "500ms"},
    "annotations": {"note": "outer"},
}


@pytest.mark.parametrize(
    "values", [ROUTE, ("--set-json", f"httpRoute={json.dumps(FULL_ROUTE)}")], ids=["default", "full"]
)
def test_a_route_satisfies_the_schema_of_the_gateway_api(
    values: tuple[str, ...], route_schema: jsonschema.Draft7Validator
) -> None:
    route = render(*values)["HTTPRoute"]
    assert [error.message for error in route_schema.iter_errors(route)] == []
    route["spec"]["rules"][0]["timeout"] = "1s"
    route["spec"]["hostnames"] = ["a host"]
    wrong = {".".join(map(str, error.absolute_path)) for error in route_schema.iter_errors(route)}
    assert wrong == {"spec.rules.0", "spec.hostnames.0"}


def test_a_missing_token_is_rejected_with_the_remedies() -> None:
    sentence = refusal()
    assert all(way in sentence for way in ("set auth.token to", "auth.tokens to", "auth.existingSecret to"))


def test_an_upgrade_without_token_says_how_to_keep_the_values() -> None:
    assert "--reset-then-reuse-values" in refusal("--is-upgrade", "--set", "vestigeImage.tag=v0.2.0")


@pytest.mark.parametrize("token", ["fifteen-letters", "   \n", "short"])
def test_a_token_below_16_characters_refuses(token: str) -> None:
    assert "shorter than 16 characters" in refusal("--set-string", f"auth.token={token}")


def test_the_token_is_a_file_from_the_charts_secret(default: dict[str, Manifest]) -> None:
    _, bridge = containers(default)
    assert base64.b64decode(default["Secret"]["data"]["token"]).decode() == TOKEN
    assert environment(bridge)["VESTIGE_AUTH_TOKEN_FILE"] == "/etc/vestige/auth/token"
    assert {"name": "auth", "mountPath": "/etc/vestige/auth", "readOnly": True} in bridge["volumeMounts"]
    [auth] = [volume["secret"] for volume in pod(default)["volumes"] if volume["name"] == "auth"]
    assert auth == {"secretName": "vestige-token", "defaultMode": 0o440, "items": [{"key": "token", "path": "token"}]}


def test_an_existing_secret_is_used_with_its_key_and_none_is_created() -> None:
    objects = render("--set", "auth.existingSecret=mine,auth.secretKey=bearer", token=None)
    assert "Secret" not in objects
    [auth] = [volume["secret"] for volume in pod(objects)["volumes"] if volume["name"] == "auth"]
    assert (auth["secretName"], auth["items"]) == ("mine", [{"key": "bearer", "path": "token"}])


@pytest.mark.parametrize("arguments", [["--set-string", f"auth.token={TOKEN}"], [*TOKENS]], ids=["token", "tokens"])
def test_the_token_appears_only_in_the_secret(arguments: list[str]) -> None:
    objects = render(*arguments, token=None)
    del objects["Secret"]
    text = json.dumps(objects)
    assert TOKEN not in text and base64.b64encode(TOKEN.encode()).decode() not in text


def file_of_tokens(objects: dict[str, Manifest]) -> str:
    return base64.b64decode(objects["Secret"]["data"]["tokens.toml"]).decode()


def understood(toml: str) -> list[Manifest]:
    """Returns the bridge's parsed entries of a tokens.toml."""
    script = """
import dataclasses, json, sys
from vestige_bridge.access.token_file import parse_toml
for token in parse_toml(sys.stdin.read()):
    # What no entry says follows from what all of them say.
    said = [it.name for it in dataclasses.fields(token.permissions) if it.compare and it.name != "also_tools"]
    rights = {name: getattr(token.permissions, name) for name in said}
    print(json.dumps({"name": token.name, "sha256": token.digest.hex(), "expires": token.expires_at, **rights}))
"""
    command = [str(ROOT / ".venv/bin/python"), "-c", script]
    done = subprocess.run(command, input=toml, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_tokens_with_rights_are_a_toml_file_from_the_charts_secret() -> None:
    objects = render(*TOKENS, token=None)
    _, bridge = containers(objects)
    assert list(objects["Secret"]["data"]) == ["tokens.toml"]
    assert environment(bridge)["VESTIGE_AUTH_TOKEN_FILE"] == "/etc/vestige/auth/tokens.toml"
    for spec in (pod(objects), objects["Pod"]["spec"]):
        [auth] = [volume["secret"] for volume in spec["volumes"] if volume["name"] == "auth"]
        assert auth["secretName"] == "vestige-token"
        assert auth["items"] == [{"key": "tokens.toml", "path": "tokens.toml"}]


def test_the_bridge_parses_the_tokens_of_the_values(tmp_path: Path) -> None:
    values = tmp_path / "values.yaml"
    values.write_text(r"""
auth:
  tokens:
    - name: agents
      token: " a-token-that-&-is-<odd>-\\"
    - name: nightly-job
      sha256: 9F86D081884C7D659A2FEAA0C55AD015A3BF4F1B2B0B822CD15D6C15B0F00A08
      expires: 2027-01-31T00:00:00Z
      read_only: true
      tools: [recall, "memory_*", "with \"quotes\" and <b>"]
      resources: false
      max_in_flight: 32
      rate: 1000000
    - {name: nobody, sha256: "3100000000000000000000000000000000000000000000000000000000000000", tools: []}
""")
    toml = file_of_tokens(render("-f", str(values), token=None))
    agents, job, nobody = understood(toml)
    assert agents == {
        "name": "agents",
        "sha256": hashlib.sha256(b"a-token-that-&-is-<odd>-\\").hexdigest(),
        "expires": None,
        "read_only": False,
        "tools": None,
        "resources": True,
        "max_in_flight": None,
        "rate": None,
    }
    assert job == {
        "name": "nightly-job",
        "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        "expires": datetime(2027, 1, 31, tzinfo=UTC).timestamp(),
        "read_only": True,
        "tools": ["memory_*", "recall", 'with "quotes" and <b>'],
        "resources": False,
        "max_in_flight": 32,
        "rate": 1000000,
    }
    assert (nobody["name"], nobody["tools"]) == ("nobody", [])


def test_a_key_that_ends_in_toml_gives_a_file_that_ends_in_toml() -> None:
    objects = render("--set-string", r"auth.existingSecret=mine,auth.secretKey=agents\.v2.toml", token=None)
    assert "Secret" not in objects
    assert environment(containers(objects)[1])["VESTIGE_AUTH_TOKEN_FILE"] == "/etc/vestige/auth/tokens.toml"
    for spec in (pod(objects), objects["Pod"]["spec"]):
        [auth] = [volume["secret"] for volume in spec["volumes"] if volume["name"] == "auth"]
        assert auth["secretName"] == "mine"
        assert auth["items"] == [{"key": "agents.v2.toml", "path": "tokens.toml"}]


@pytest.mark.parametrize(
    ("other", "way_out"),
    [(f"auth.token={TOKEN}", "--set auth.token="), ("auth.existingSecret=mine", "--set auth.existingSecret=")],
)
def test_tokens_beside_another_token_setting_are_rejected_with_both_remedies(other: str, way_out: str) -> None:
    sentence = refusal(*TOKENS, "--set-string", other)
    assert "are both set" in sentence and way_out in sentence and "--set-json 'auth.tokens=[]'" in sentence
    assert render(*TOKENS, "--set-string", other, "--set-json", "auth.tokens=[]", token=None)


def test_the_bridges_environment_cannot_configure_authentication_beside_auth() -> None:
    variable = "bridge.extraEnv[0].name={},bridge.extraEnv[0].value={}"
    for name, value in (("VESTIGE_AUTH_TOKEN", TOKEN), ("VESTIGE_ALLOW_ANONYMOUS", "yes")):
        sentence = refusal(*TOKENS, "--set-string", variable.format(name, value))
        assert f"bridge.extraEnv must not set {name}" in sentence and TOKEN not in sentence
    assert render(*TOKENS, "--set-string", variable.format("VESTIGE_ALLOW_ANONYMOUS", "False"), token=None)


def entry(**members: object) -> dict[str, object]:
    return {"name": "agents", "token": TOKEN} | members


HASH = hashlib.sha256(TOKEN.encode()).hexdigest()


@pytest.mark.parametrize(
    ("entries", "sentence"),
    [
        ([{"name": "agents"}], "auth.tokens[0] (agents) needs either token or sha256"),
        ([entry(sha256=HASH)], "auth.tokens[0] (agents) needs either token or sha256"),
        ([entry(token="an-open secret-of-enough-letters")], "token of auth.tokens[0] (agents) must be visible ASCII"),
        ([entry(token="hunter2")], "token of auth.tokens[0] (agents) is shorter than 16 characters"),
        ([{"name": "agents", "sha256": "hunter2"}], "sha256 of auth.tokens[0] (agents) must be the 64 hexadecimal"),
        ([entry(expires="2027-01-31")], "expires of auth.tokens[0] (agents) must be a date and time with an offset"),
        ([entry(expires="2027-02-31T00:00:00Z")], "expires of auth.tokens[0] (agents) must be a date and time"),
        ([entry(), entry(name="job")], "The token of auth.tokens[1] (job) is already in auth.tokens"),
        (
            [entry(), {"name": "job", "sha256": HASH.upper()}],
            "The token of auth.tokens[1] (job) is already in auth.tokens",
        ),
        (
            [entry(), entry(expires="2027-01-31T00:00:00Z")],
            "The token of auth.tokens[1] (agents) is already in auth.tokens",
        ),
        (
            [entry(), entry(token=TOKEN[::-1], tools=[])],
            "auth.tokens[1] (agents) has other permissions than an earlier entry",
        ),
        (
            [entry(rate=5), entry(token=TOKEN[::-1], rate=6)],
            "auth.tokens[1] (agents) has other permissions than an earlier entry",
        ),
    ],
)
def test_an_entry_that_the_bridge_would_reject_is_rejected_by_the_chart(entries: list[Any], sentence: str) -> None:
    said = refusal("--set-json", f"auth.tokens={json.dumps(entries)}")
    assert sentence in said
    assert "hunter2" not in said and TOKEN not in said and "open secret" not in said


def test_several_tokens_of_one_name_overlap_while_they_are_rotated() -> None:
    # The second entry states the defaults that the first omits, so both have the same permissions.
    entries = [
        entry(rate=5),
        entry(token=TOKEN[::-1], rate=5, read_only=False, resources=True, expires="2027-01-31T01:00:00.5+01:00"),
    ]
    objects = render("--set-json", f"auth.tokens={json.dumps(entries)}", token=None)
    assert [it["name"] for it in understood(file_of_tokens(objects))] == ["agents", "agents"]


OAUTH = "auth.oauth.issuer=https://login.example.com/,auth.oauth.publicUrl=https://vestige.example.com"
SCOPES = "auth.oauth.scopes=vestige.read=read-only;vestige.notes=tools:recall\\,memory*"


def test_an_identity_provider_without_tokens_needs_no_secret() -> None:
    objects = render("--set", OAUTH, "--set-string", SCOPES, token=None)
    assert "Secret" not in objects
    bridge = containers(objects)[1]
    variables = environment(bridge)
    assert "VESTIGE_AUTH_TOKEN_FILE" not in variables
    assert [mount["name"] for mount in bridge["volumeMounts"]] == ["data", "state"]
    assert {name: value for name, value in variables.items() if "OAUTH" in name or "PUBLIC" in name} == {
        "VESTIGE_BRIDGE_OAUTH_ISSUER": "https://login.example.com/",
        "VESTIGE_BRIDGE_PUBLIC_URL": "https://vestige.example.com",
        "VESTIGE_BRIDGE_OAUTH_SCOPES": "vestige.read=read-only;vestige.notes=tools:recall,memory*",
        "VESTIGE_BRIDGE_OAUTH_AUDIENCE": "",
        "VESTIGE_BRIDGE_OAUTH_JWKS_URL": "",
    }


def test_an_identity_provider_can_be_combined_with_tokens() -> None:
    more = "auth.oauth.audience=api://vestige,auth.oauth.jwksUrl=https://login.example.com/keys"
    variables = environment(containers(render("--set", f"{OAUTH},{more}", "--set-string", SCOPES))[1])
    assert variables["VESTIGE_AUTH_TOKEN_FILE"] == "/etc/vestige/auth/token"
    assert variables["VESTIGE_BRIDGE_OAUTH_AUDIENCE"] == "api://vestige"
    assert variables["VESTIGE_BRIDGE_OAUTH_JWKS_URL"] == "https://login.example.com/keys"
    assert not [name for name in environment(containers(render())[1]) if "OAUTH" in name]


@pytest.mark.parametrize(
    "values",
    ["auth.oauth.issuer=https://[2001:db8::1]:8443/realms/a%20b/", "auth.oauth.jwksUrl=https://login.example.com/keys?v=2",
     "auth.oauth.scopes=api://vestige/read=read-only;read=read-only; write = all ;"],
)  # fmt: skip
def test_valid_oauth_settings_are_accepted(values: str) -> None:
    render("--set", f"{OAUTH},auth.oauth.scopes=a=all,{values}")


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ("auth.oauth.issuer=https://login.example.com", "auth.oauth.issuer needs auth.oauth.publicUrl"),
        (OAUTH, "auth.oauth.issuer needs auth.oauth.scopes"),
        ("auth.oauth.scopes=vestige=all", "auth.oauth.scopes is set without auth.oauth.issuer"),
        ("auth.oauth.publicUrl=https://vestige.example.com", "auth.oauth.publicUrl is set without auth.oauth.issuer"),
        (f"{OAUTH},auth.oauth.scopes=vestige", "does not match pattern"),
        (f"{OAUTH},auth.oauth.scopes=vestige=write", "does not match pattern"),
        ("auth.oauth.issuer=http://login.example.com", "does not match pattern"),
        ("auth.oauth.issuer=https://user:password@login.example.com", "does not match pattern"),
        ("auth.oauth.issuer=https://münchen.example", "does not match pattern"),
        ("auth.oauth.issuer=https://login.example.com:0", "does not match pattern"),
        ("auth.oauth.issuer=https://login.example.com/?a", "does not match pattern"),
        (f"{OAUTH},auth.oauth.scopes={'a' * 257}=all", "does not match pattern"),
        (f"{OAUTH},auth.oauth.scopes=a=tools:{'b' * 129}", "does not match pattern"),
        (f"{OAUTH},auth.oauth.scopes=a=all; a =read-only;", "auth.oauth.scopes has the scope a twice."),
        (f"{OAUTH},auth.oauth.scopes=vestige=all,auth.token=eyJhbGciOiJub25lIn0.e30.x", "has the form of a JWT"),
    ],
)
def test_incomplete_oauth_settings_are_rejected(values: str, sentence: str) -> None:
    said = refusal("--set", f"auth.token={TOKEN}", "--set", values)
    assert sentence in said and "eyJhbGci" not in said


def test_the_audit_log_goes_to_standard_output_if_it_is_enabled(default: dict[str, Manifest]) -> None:
    def audit(*values: str) -> dict[str, str]:
        variables = environment(containers(render(*values))[1])
        return {name: value for name, value in variables.items() if name.startswith("VESTIGE_BRIDGE_AUDIT")}

    assert audit() == {}
    log = {"VESTIGE_BRIDGE_AUDIT_LOG": "-"}
    assert audit("--set", "audit.enabled=true") == log | {"VESTIGE_BRIDGE_AUDIT_REQUIRED": "false"}
    required = "audit.enabled=true,audit.required=true"
    assert audit("--set", required) == log | {"VESTIGE_BRIDGE_AUDIT_REQUIRED": "true"}
    assert "audit.required needs audit.enabled" in refusal("--set", f"auth.token={TOKEN},audit.required=true")


def test_vestiges_container_never_has_the_token() -> None:
    vestige, _ = containers(render())
    assert "VESTIGE_AUTH_TOKEN" not in environment(vestige)
    assert [mount["name"] for mount in vestige["volumeMounts"]] == ["data"]
    assert "must not set VESTIGE_AUTH_TOKEN" in refusal(
        "--set", f"auth.token={TOKEN}", "--set", "vestige.extraEnv[0].name=VESTIGE_AUTH_TOKEN"
    )


def test_with_supergateway_the_containers_share_no_token(default: dict[str, Manifest]) -> None:
    vestige, bridge = containers(default)
    assert environment(vestige)["GATEWAY"] == "supergateway"
    assert "VESTIGE_BRIDGE_UPSTREAM_TOKEN_FILE" not in environment(bridge)
    assert "upstream-token" not in json.dumps(default)


def test_with_the_native_server_only_both_containers_share_a_token_in_memory() -> None:
    objects = render("--set", "vestige.gateway=none")
    vestige, bridge = containers(objects)
    assert environment(vestige)["GATEWAY"] == "none"
    assert environment(vestige)["GATEWAY_TOKEN_FILE"] == environment(bridge)["VESTIGE_BRIDGE_UPSTREAM_TOKEN_FILE"]
    [volume] = [volume for volume in pod(objects)["volumes"] if volume["name"] == "upstream-token"]
    assert volume["emptyDir"] == {"medium": "Memory", "sizeLimit": "1Mi"}
    assert {"name": "upstream-token", "mountPath": "/run/vestige"} in vestige["volumeMounts"]
    assert {"name": "upstream-token", "mountPath": "/run/vestige", "readOnly": True} in bridge["volumeMounts"]
    assert "VESTIGE_AUTH_TOKEN" not in environment(vestige)
    assert [mount["name"] for mount in vestige["volumeMounts"]] == ["data", "upstream-token"]
    assert list(objects["Secret"]["data"]) == ["token"]


def test_with_the_native_server_a_clients_token_for_vestige_is_rejected_too() -> None:
    assert "a client's token is never given to Vestige" in refusal(
        "--set", f"auth.token={TOKEN},vestige.gateway=none", "--set", "vestige.extraEnv[0].name=VESTIGE_AUTH_TOKEN"
    )


def test_with_the_native_server_probes_hardening_and_policies_are_the_same(default: dict[str, Manifest]) -> None:
    native = render("--set", "vestige.gateway=none")
    assert native.keys() == default.keys()
    for kind in native.keys() - {"Deployment"}:
        assert native[kind] == default[kind]
    for theirs, ours in zip(containers(native), containers(default), strict=True):
        for part in ("securityContext", "resources", "startupProbe", "livenessProbe", "readinessProbe"):
            assert theirs[part] == ours[part]


def test_the_autopilot_is_off_because_the_process_is_shared(default: dict[str, Manifest]) -> None:
    assert environment(containers(default)[0])["VESTIGE_AUTOPILOT_ENABLED"] == "0"
    assert environment(containers(render("--set", "vestige.autopilot=true"))[0])["VESTIGE_AUTOPILOT_ENABLED"] == "1"


def test_the_probes_have_the_guides_numbers(default: dict[str, Manifest]) -> None:
    vestige, bridge = containers(default)
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert vestige[probe]["exec"] == {"command": ["vestige-probe"]}
    assert (vestige["startupProbe"]["failureThreshold"], vestige["startupProbe"]["periodSeconds"]) == (30, 10)
    assert bridge["startupProbe"]["httpGet"] == {"path": "/health", "port": "http"}
    assert (bridge["startupProbe"]["failureThreshold"], bridge["startupProbe"]["periodSeconds"]) == (12, 5)
    assert bridge["livenessProbe"]["httpGet"] == {"path": "/health", "port": "http"}
    assert (bridge["livenessProbe"]["failureThreshold"], bridge["livenessProbe"]["periodSeconds"]) == (18, 20)
    assert bridge["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "http"}


def test_probe_paths_and_numbers_are_values() -> None:
    _, bridge = containers(render("--set", "bridgeProbes.liveness.path=/livez,bridgeProbes.liveness.periodSeconds=7"))
    assert bridge["livenessProbe"]["httpGet"]["path"] == "/livez"
    assert bridge["livenessProbe"]["periodSeconds"] == 7


def test_the_pod_is_hardened(default: dict[str, Manifest]) -> None:
    spec = pod(default)
    assert spec["automountServiceAccountToken"] is False
    assert spec["enableServiceLinks"] is False
    security = spec["securityContext"]
    assert security["runAsNonRoot"] is True
    assert security["runAsUser"] == security["runAsGroup"] == security["fsGroup"] == 10001
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in containers(default):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }


def test_the_bridge_keeps_its_session_where_a_restart_of_the_container_finds_it(default: dict[str, Manifest]) -> None:
    vestige, bridge = containers(default)
    [volume] = [volume for volume in pod(default)["volumes"] if volume["name"] == "state"]
    [mount] = [mount for mount in bridge["volumeMounts"] if mount["name"] == volume["name"]]
    assert mount == {"name": "state", "mountPath": environment(bridge)["VESTIGE_BRIDGE_STATE_DIR"]}
    assert "state" not in [mount["name"] for mount in vestige["volumeMounts"]]


def test_the_network_policy_allows_only_port_8000(default: dict[str, Manifest]) -> None:
    policy = default["NetworkPolicy"]["spec"]
    assert policy["policyTypes"] == ["Ingress"]
    assert policy["ingress"] == [{"ports": [{"protocol": "TCP", "port": 8000}]}]
    assert "NetworkPolicy" not in render("--set", "networkPolicy.enabled=false")


def test_a_narrowed_network_policy_still_lets_the_test_pod_in() -> None:
    objects = render("--set", "networkPolicy.from[0].namespaceSelector.matchLabels.team=agents")
    agents, test = objects["NetworkPolicy"]["spec"]["ingress"][0]["from"]
    assert agents == {"namespaceSelector": {"matchLabels": {"team": "agents"}}}
    assert test["podSelector"]["matchLabels"].items() <= objects["Pod"]["metadata"]["labels"].items()


def test_metrics_are_disabled_by_default(default: dict[str, Manifest]) -> None:
    assert "9464" not in json.dumps(default)
    assert {"name": "VESTIGE_BRIDGE_METRICS_PORT", "value": "off"} in containers(default)[1]["env"]
    assert not {"PodMonitor", "PrometheusRule", "ConfigMap"} & default.keys()


def test_metrics_open_their_port_in_the_pod_the_service_and_the_network_policy() -> None:
    objects = render("--set", "metrics.enabled=true")
    assert {"name": "metrics", "containerPort": 9464} in containers(objects)[1]["ports"]
    assert "VESTIGE_BRIDGE_METRICS_PORT" not in json.dumps(objects)
    assert {"name": "metrics", "port": 9464, "targetPort": "metrics"} in objects["Service"]["spec"]["ports"]
    http, metrics = objects["NetworkPolicy"]["spec"]["ingress"]
    assert http == {"ports": [{"protocol": "TCP", "port": 8000}]}
    assert metrics == {"ports": [{"protocol": "TCP", "port": 9464}]}
    assert not {"PodMonitor", "PrometheusRule", "ConfigMap"} & objects.keys()


def test_the_metrics_port_has_its_own_list_of_allowed_sources() -> None:
    objects = render(
        "--set", "metrics.enabled=true,metrics.from[0].namespaceSelector.matchLabels.team=watch",
        "--set", "networkPolicy.from[0].namespaceSelector.matchLabels.team=agents",
    )  # fmt: skip
    http, metrics = objects["NetworkPolicy"]["spec"]["ingress"]
    assert http["from"][0] == {"namespaceSelector": {"matchLabels": {"team": "agents"}}}
    assert metrics["from"] == [{"namespaceSelector": {"matchLabels": {"team": "watch"}}}]


@pytest.mark.parametrize("kind", ["NodePort", "LoadBalancer"])
def test_a_service_reachable_from_outside_the_cluster_has_no_metrics(kind: str) -> None:
    service = render("--set", f"metrics.enabled=true,service.type={kind}")["Service"]["spec"]
    assert [port["name"] for port in service["ports"]] == ["http"]


def test_a_pod_monitor_finds_the_pod_by_the_port_and_the_labels_that_it_has() -> None:
    objects = render(
        "--set", "metrics.enabled=true,metrics.podMonitor.enabled=true",
        "--set", "metrics.podMonitor.interval=1m,metrics.podMonitor.labels.release=prometheus",
    )  # fmt: skip
    monitor = objects["PodMonitor"]
    labels = objects["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert monitor["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert monitor["spec"]["podMetricsEndpoints"] == [{"port": "metrics", "interval": "1m"}]
    assert "metrics" in [port["name"] for port in containers(objects)[1]["ports"]]
    assert monitor["metadata"]["labels"]["release"] == "prometheus"


RUNBOOKS = "https://wiki.example.com/vestige/operations"


@pytest.mark.parametrize("where", ["docs/operations.md", RUNBOOKS])
def test_every_alert_links_to_a_heading_with_commands(where: str) -> None:
    chosen = [] if where == "docs/operations.md" else ["--set", f"metrics.alerts.runbookUrl={where}"]
    rule = render("--set", "metrics.enabled=true,metrics.alerts.enabled=true", *chosen)["PrometheusRule"]
    alerts = [it for group in rule["spec"]["groups"] for it in group["rules"] if "alert" in it]
    page = ROOT / "docs/operations.md"
    assert alerts
    for alert in alerts:
        address, _, anchor = alert["annotations"]["runbook_url"].partition("#")
        assert (address, anchor) == (where, alert["alert"].lower())
        assert anchor in anchors(page.read_text())
        runbook = page.read_text().partition(f"\n### {alert['alert']}\n")[2].partition("\n#")[0]
        assert re.search(r"^```(bash|promql)$", runbook, re.MULTILINE), alert["alert"]


@pytest.mark.parametrize("url", ["", "wiki.example.com", "https://a.example/#top", "https://a.example/{{ 1 }}"])
def test_an_invalid_runbook_url_is_rejected(url: str) -> None:
    assert "runbookUrl" in refusal("--set", f"auth.token={TOKEN}", "--set-string", f"metrics.alerts.runbookUrl={url}")


def test_the_prometheus_rule_contains_the_alerts_file_unchanged() -> None:
    rule = render("--set", "metrics.enabled=true,metrics.alerts.enabled=true",
                  "--set", "metrics.alerts.labels.release=prometheus")["PrometheusRule"]  # fmt: skip
    assert rule["spec"] == yaml.safe_load((CHART / "files" / "alerts.yaml").read_text())
    assert rule["metadata"]["labels"]["release"] == "prometheus"


def test_the_config_map_contains_the_dashboard_file_unchanged() -> None:
    chosen = render("--set", "metrics.enabled=true,metrics.dashboard.enabled=true",
                    "--set", "metrics.dashboard.annotations.grafana_folder=Memory")["ConfigMap"]  # fmt: skip
    assert json.loads(chosen["data"]["vestige.json"]) == json.loads((CHART / "files" / "dashboard.json").read_text())
    assert chosen["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert chosen["metadata"]["annotations"] == {"grafana_folder": "Memory"}


@pytest.mark.parametrize("which", ["podMonitor", "alerts", "dashboard"])
def test_monitoring_objects_are_rejected_without_metrics(which: str) -> None:
    assert f"metrics.{which}.enabled needs metrics.enabled" in refusal(
        "--set", f"auth.token={TOKEN}", "--set", f"metrics.{which}.enabled=true"
    )


def test_vestige_outlives_the_bridges_drain(default: dict[str, Manifest]) -> None:
    drain = int(environment(containers(default)[1])["VESTIGE_BRIDGE_DRAIN_SECONDS"])
    assert pod(default)["terminationGracePeriodSeconds"] > drain
    assert "larger than bridge.drainSeconds" in refusal(
        "--set", f"auth.token={TOKEN},bridge.drainSeconds=60,terminationGracePeriodSeconds=60"
    )


def test_a_digest_wins_over_the_tag() -> None:
    digest = "sha256:" + "0" * 64
    vestige, _ = containers(render("--set", f"vestigeImage.digest={digest},vestigeImage.tag=v9"))
    assert vestige["image"] == f"vestige-mcp@{digest}"


def test_the_git_tag_of_the_version_is_the_default_tag() -> None:
    version = yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"]
    assert [container["image"].rpartition(":")[2] for container in containers(render())] == [f"v{version}"] * 2


@pytest.mark.parametrize("group", ["vestigeImage", "bridgeImage"])
def test_a_digest_as_a_tag_is_rejected_with_the_name_of_its_setting(group: str) -> None:
    sentence = refusal("--set", f"auth.token={TOKEN},{group}.tag=sha256:{'0' * 64}")
    assert f"set a digest as {group}.digest" in sentence


def test_options_of_scheduling_and_environment_reach_the_pod() -> None:
    objects = render(
        "--set", "imagePullSecrets[0].name=registry,nodeSelector.disk=ssd,priorityClassName=high",
        "--set", "tolerations[0].key=memory,tolerations[0].operator=Exists",
        "--set-json", 'affinity={"nodeAffinity":{}}',
        "--set", "podAnnotations.note=yes-please,podLabels.team=memory",
        "--set", "service.type=NodePort,service.port=80,service.annotations.note=outer",
        "--set", "vestige.extraEnv[0].name=RUST_LOG,vestige.extraEnv[0].value=warn",
        "--set", "bridge.extraEnv[0].name=VESTIGE_BRIDGE_LOG_LEVEL,bridge.extraEnv[0].value=debug",
        "--set", "bridge.logFormat=text",
    )  # fmt: skip
    spec = pod(objects)
    vestige, bridge = containers(objects)
    metadata = objects["Deployment"]["spec"]["template"]["metadata"]
    assert spec["imagePullSecrets"] == [{"name": "registry"}]
    assert spec["nodeSelector"] == {"disk": "ssd"}
    assert spec["priorityClassName"] == "high"
    assert spec["tolerations"] == [{"key": "memory", "operator": "Exists"}]
    assert spec["affinity"] == {"nodeAffinity": {}}
    assert metadata["annotations"]["note"] == "yes-please" and metadata["labels"]["team"] == "memory"
    assert objects["Service"]["spec"]["type"] == "NodePort"
    assert objects["Service"]["spec"]["ports"][0]["port"] == 80
    assert objects["Service"]["metadata"]["annotations"] == {"note": "outer"}
    assert environment(vestige)["RUST_LOG"] == "warn"
    assert environment(bridge)["VESTIGE_BRIDGE_LOG_LEVEL"] == "debug"
    assert environment(bridge)["VESTIGE_BRIDGE_LOG_FORMAT"] == "text"


UPLOAD = ("--set", "backup.enabled=true,backup.upload.image=aws-cli:2,backup.upload.command={aws,s3}")


def backup_containers(*arguments: str) -> list[Manifest]:
    others: list[Manifest]
    bridge, *others = pod(render(*arguments))["containers"]
    assert bridge["name"] == "bridge"
    return others


def test_enabled_backups_run_in_a_hardened_container_of_vestiges_image(
    default: dict[str, Manifest],
) -> None:
    assert "backup" not in json.dumps(default).lower()
    objects = render("--set", "backup.enabled=true,backup.schedule=*/30 8-18 * * 1-5,backup.keep=48",
                     "--set", "backup.resources.limits.memory=1Gi,vestigeImage.tag=v9")  # fmt: skip
    assert objects.keys() == default.keys()
    [vestige] = pod(objects)["initContainers"]
    bridge, backup = pod(objects)["containers"]
    assert (backup["name"], backup["image"]) == ("backup", vestige["image"])
    assert backup["command"][-2:] == ["vestige-backup", "--schedule"]
    assert backup["securityContext"] == vestige["securityContext"] == containers(default)[0]["securityContext"]
    assert environment(backup) == {"BACKUP_SCHEDULE": "*/30 8-18 * * 1-5", "BACKUP_KEEP": "48"}
    assert backup["resources"]["limits"] == {"cpu": "500m", "memory": "1Gi"}
    assert backup["volumeMounts"] == [
        {"name": "data", "mountPath": "/data"},
        {"name": "backup-status", "mountPath": "/run/vestige-backup"},
    ]
    assert {"name": "backup-status", "mountPath": "/run/vestige-backup", "readOnly": True} in bridge["volumeMounts"]
    assert environment(bridge)["VESTIGE_BRIDGE_BACKUP_STATUS_FILE"] == "/run/vestige-backup/status.json"
    assert {"name": "backup-status", "emptyDir": {"sizeLimit": "1Mi"}} in pod(objects)["volumes"]
    for kind in objects.keys() - {"Deployment"}:
        assert objects[kind] == default[kind]


def test_an_upload_runs_in_the_configured_image_with_the_volume_read_only() -> None:
    backup, upload = backup_containers(*UPLOAD, "--set", "backup.upload.timeoutSeconds=60",
                                       "--set", "backup.upload.env[0].name=AWS_REGION",
                                       "--set", "backup.upload.env[0].value=us-west-2",
                                       "--set", "backup.upload.resources.limits.memory=1Gi")  # fmt: skip
    assert environment(backup)["BACKUP_UPLOAD_SECONDS"] == "60"
    assert (upload["name"], upload["image"], upload["args"]) == ("upload", "aws-cli:2", ["aws", "s3"])
    shell, flag, script, name = upload["command"]
    assert (shell, flag, name) == ("sh", "-c", "upload")
    assert script == (CHART / "files" / "upload.sh").read_text()
    assert environment(upload) == {"HOME": "/tmp", "AWS_REGION": "us-west-2"}
    assert upload["securityContext"] == backup["securityContext"]
    assert upload["resources"]["limits"]["memory"] == "1Gi"
    assert {"name": "data", "mountPath": "/data", "readOnly": True} in upload["volumeMounts"]
    assert {"name": "auth"} not in [{"name": mount["name"]} for mount in upload["volumeMounts"]]

    [place] = [volume for volume in pod(render(*UPLOAD))["volumes"] if volume["name"] == "upload-tmp"]
    assert {"name": "upload-tmp", "mountPath": "/tmp"} in upload["volumeMounts"] and "emptyDir" in place


def test_both_containers_have_their_pull_policy_probes_and_security_context() -> None:
    values = "vestigeImage.pullPolicy=Always,bridgeImage.pullPolicy=Never,vestigeProbes.startup.failureThreshold=99"
    vestige, bridge = containers(render("--set", f"{values},containerSecurityContext.runAsUser=20002"))
    assert (vestige["imagePullPolicy"], bridge["imagePullPolicy"]) == ("Always", "Never")
    assert vestige["startupProbe"]["failureThreshold"] == 99
    assert vestige["securityContext"]["runAsUser"] == bridge["securityContext"]["runAsUser"] == 20002


def test_an_upload_with_missing_settings_is_rejected() -> None:
    assert "backup.upload.image requires backup.enabled" in refusal(
        "--set", f"auth.token={TOKEN},backup.upload.image=x,backup.upload.command[0]=y"
    )
    for half in ("image=x", "command[0]=x"):
        assert "backup.upload.image and backup.upload.command must be set together" in refusal(
            "--set", f"auth.token={TOKEN},backup.enabled=true,backup.upload.{half}"
        )


@pytest.mark.parametrize(
    "schedule",
    ["* * * * *", "0 3 * * *", "*/5 */2 * * *", "00 08-18 1,15,28-31 1-6 *", "59 23 31 12 *", "0 0 * * 1-5,7"],
)
def test_a_schedule_of_five_fields_is_taken(schedule: str) -> None:
    [backup] = backup_containers("--set-json", f"backup.enabled=true,backup.schedule={json.dumps(schedule)}")
    assert environment(backup)["BACKUP_SCHEDULE"] == schedule


@pytest.mark.parametrize(
    "schedule",
    ["", "@daily", "0 3 * *", "0 3 * * * *", "60 3 * * *", "0 24 * * *", "0 3 0 * *", "0 3 32 * *", "0 3 * 13 *",
     "0 3 * * 8", "0 3 * * MON", "0 3 1 * 1", "0 3 */2 * *", "1-9/2 3 * * *", "*/0 * * * *", "0  3 * * *",
     "0 3 * * *\n"],
)  # fmt: skip
def test_another_schedule_is_refused_by_the_schema(schedule: str) -> None:
    assert "schedule" in refusal(
        "--set", f"auth.token={TOKEN}", "--set-json", f"backup.schedule={json.dumps(schedule)}"
    )


def test_a_range_that_ends_before_it_begins_is_refused() -> None:
    for schedule in ("0 18-08 * * *", "30-5 * * * *"):
        assert "ends before it begins" in refusal("--set", f"auth.token={TOKEN},backup.schedule={schedule}")


def strings_only(node: object, path: str = "") -> list[str]:
    """Returns the paths of names, labels and annotations that YAML does not parse as strings."""
    if isinstance(node, dict):
        names = {"name", "namespace", "claimName", "secretName", "key"}
        wrong = [f"{path}.{key}" for key, value in node.items() if key in names and not isinstance(value, str)]
        maps = [
            node[key] for key in ("labels", "annotations", "matchLabels", "selector") if isinstance(node.get(key), dict)
        ]
        wrong += [
            f"{path}: {key}" for entries in maps for key, value in entries.items() if not isinstance(value, str | dict)
        ]
        return wrong + [it for key, value in node.items() for it in strings_only(value, f"{path}.{key}")]
    if isinstance(node, list):
        return [it for index, value in enumerate(node) for it in strings_only(value, f"{path}[{index}]")]
    return []


@pytest.mark.parametrize("word", ["20260728", "3240286e-210077", "on", "456", "null", "1.5"])
def test_names_that_look_like_other_types_stay_strings(word: str) -> None:
    monitored = "metrics.enabled=true,metrics.podMonitor.enabled=true,metrics.alerts.enabled=true"
    result = helm(
        "template", word, str(CHART), "-n", word, "--kube-version", "1.35.0", "--set-string",
        f"auth.existingSecret={word},auth.secretKey={word},persistence.existingClaim={word},fullnameOverride={word}",
        "--set-string", f"nameOverride={word},priorityClassName={word},ingress.className={word}",
        "--set-string", f"ingress.hosts[0].host={word}",
        "--set-string", f"httpRoute.hostnames[0]={word},httpRoute.parentRefs[0].name={word}",
        "--set", f"ingress.hosts[0].paths[0].path=/,ingress.hosts[0].paths[0].pathType=Prefix,{monitored}",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    objects = [document for document in yaml.safe_load_all(result.stdout) if document]
    kinds = {"Deployment", "Service", "Ingress", "HTTPRoute", "NetworkPolicy", "Pod", "PodMonitor", "PrometheusRule"}
    assert {manifest["kind"] for manifest in objects} == kinds
    for manifest in objects:
        assert strings_only(manifest, manifest["kind"]) == []
        assert manifest["metadata"]["namespace"] == word


class OnceOnly(yaml.SafeLoader):
    """A YAML loader that rejects a mapping with a repeated key, as Flux does."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        assert len(keys) == len(set(keys)), f"a key stands twice: {keys}"
        return super().construct_mapping(node, deep)


def test_own_labels_annotations_and_variables_override_without_duplicates() -> None:
    part_of = r"app\.kubernetes\.io/part-of=agents"
    result = template(
        "--set-string", f"auth.token={TOKEN}", "--set", "metrics.enabled=true,metrics.podMonitor.enabled=true",
        "--set", "metrics.alerts.enabled=true,metrics.dashboard.enabled=true",
        "--set-string", rf"podAnnotations.kubectl\.kubernetes\.io/default-container=vestige-mcp,podLabels.{part_of}",
        "--set-string", r"persistence.annotations.helm\.sh/resource-policy=delete",
        "--set-string", f"metrics.podMonitor.labels.{part_of},metrics.alerts.labels.{part_of}",
        "--set-string", f"metrics.dashboard.labels.{part_of}",
        "--set", "bridge.extraEnv[0].name=VESTIGE_BRIDGE_DRAIN_SECONDS,bridge.extraEnv[0].value=7s",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    objects = {it["kind"]: it for it in yaml.load_all(result.stdout, OnceOnly) if it}
    metadata = objects["Deployment"]["spec"]["template"]["metadata"]
    assert metadata["annotations"] == {"kubectl.kubernetes.io/default-container": "vestige-mcp"}
    assert metadata["labels"]["app.kubernetes.io/part-of"] == "agents"
    assert objects["PersistentVolumeClaim"]["metadata"]["annotations"] == {"helm.sh/resource-policy": "delete"}
    for kind in ("PodMonitor", "PrometheusRule", "ConfigMap"):
        assert objects[kind]["metadata"]["labels"]["app.kubernetes.io/part-of"] == "agents"
    drain = [it["value"] for it in containers(objects)[1]["env"] if it["name"] == "VESTIGE_BRIDGE_DRAIN_SECONDS"]
    assert drain == ["7s"]


@pytest.mark.parametrize("label", ["name", "instance"])
def test_pod_labels_that_select_the_pod_are_refused(label: str) -> None:
    assert f"podLabels must not set app.kubernetes.io/{label}" in refusal(
        "--set", f"auth.token={TOKEN}", "--set", rf"podLabels.app\.kubernetes\.io/{label}=mine"
    )


def test_ids_that_the_platform_chooses_can_be_omitted() -> None:
    objects = render("--set", "podSecurityContext.runAsUser=null,podSecurityContext.runAsGroup=null",
                     "--set", "podSecurityContext.fsGroup=null")  # fmt: skip
    for spec in (pod(objects), objects["Pod"]["spec"]):
        assert spec["securityContext"] == {
            "fsGroupChangePolicy": "OnRootMismatch",
            "runAsNonRoot": True,
            "seccompProfile": {"type": "RuntimeDefault"},
        }


def test_the_chart_renders_byte_for_byte_the_same_twice() -> None:
    arguments = ["--set-string", f"auth.token={TOKEN}", "-f", str(VALUES_PROD), "--set", "metrics.enabled=true"]
    for version in (OLDEST, NEWEST):
        assert template(*arguments, version=version).stdout == template(*arguments, version=version).stdout


@pytest.mark.parametrize("arguments", [["--set-string", f"auth.token={TOKEN}"], [*TOKENS]], ids=["token", "tokens"])
def test_the_secret_carries_a_hash_of_what_was_rendered(arguments: list[str]) -> None:
    secret = render(*arguments, token=None)["Secret"]
    data = json.dumps(secret["data"], separators=(",", ":"))
    [value] = secret["metadata"]["annotations"].values()
    assert value == hashlib.sha256(data.encode()).hexdigest()


def test_the_test_hook_calls_a_tool_through_the_service(default: dict[str, Manifest]) -> None:
    hook = default["Pod"]
    [container] = hook["spec"]["containers"]
    assert hook["metadata"]["annotations"]["helm.sh/hook"] == "test"
    assert environment(container)["URL"] == "http://vestige.openclaw.svc:8000/mcp"
    compile(container["args"][0], "call.py", "exec")
    chosen = render("--set", "test.tool=search", "--set-json", 'test.arguments={"query":"x"}')["Pod"]
    asked = environment(chosen["spec"]["containers"][0])
    assert (asked["TOOL"], asked["ARGUMENTS"]) == ("search", '{"query":"x"}')


def test_the_test_hook_sends_the_token_of_another_secret_if_one_is_set() -> None:
    objects = render(*TOKENS, "--set", "test.existingSecret=checker", token=None)
    spec = objects["Pod"]["spec"]
    [auth] = [volume["secret"] for volume in spec["volumes"]]
    assert (auth["secretName"], auth["items"]) == ("checker", [{"key": "token", "path": "token"}])
    assert environment(spec["containers"][0])["TOKEN_FILE"] == "/etc/vestige/auth/token"
    keyed = render("--set", r"test.existingSecret=checker,test.secretKey=a\.toml")["Pod"]["spec"]
    assert keyed["volumes"][0]["secret"]["items"] == [{"key": "a.toml", "path": "tokens.toml"}]
    assert environment(keyed["containers"][0])["TOKEN_FILE"] == "/etc/vestige/auth/tokens.toml"


def test_the_test_pod_is_not_behind_the_service(default: dict[str, Manifest]) -> None:
    labels = default["Pod"]["metadata"]["labels"]
    assert not default["Service"]["spec"]["selector"].items() <= labels.items()


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("vestigeImag.tag=v1", "vestigeImag"),
        ("bridge.portt=1", "portt"),
        ("service.port=eight", "port"),
        ("persistence.size=big", "size"),
        ("persistence.accessMode=Sometimes", "accessMode"),
        ("ingress.certificateArn=my-cert", "certificateArn"),
        ("ingress.idleTimeoutSeconds=601", "idleTimeoutSeconds"),
        ("auth.token=1234567890123456", "token"),
        ("metrics.podMonitor.interval=often", "interval"),
        ("metrics.alert.enabled=true", "alert"),
        ("httpRoute.parentRefs[0].namespace=gateways", "name"),
        ("httpRoute.parentRefs[0].section=https", "section"),
        ("httpRoute.timeouts.request=60", "request"),
        ("vestige.gateway=nginx", "gateway"),
        ("persistence.size=5gi", "size"),
        ("auth.tokens[0].name=a b", "name"),
        ("auth.tokens[0].name=agents,auth.tokens[0].tokn=x", "tokn"),
        ("auth.tokens[0].token=x", "name"),
        ("auth.tokens[0].name=agents,auth.tokens[0].rate=0", "rate"),
        ("auth.tokens[0].name=agents,auth.tokens[0].tools=search", "tools"),
        ("auth.tokens[0].name=agents,auth.tokens[0].read_only=perhaps", "read_only"),
        ("audit.enabled=perhaps", "enabled"),
        ("audit.file=/data/audit.log", "file"),
        ("backup.keep=0", "keep"),
        ("backup.upload.timeoutSeconds=0", "timeoutSeconds"),
        ("backup.upload.imag=x", "imag"),
    ],
)
def test_the_schema_names_the_setting_that_it_rejects(setting: str, named: str) -> None:
    assert named in refusal("--set", f"auth.token={TOKEN}", "--set", setting)


def test_every_value_has_a_sentence_of_its_own_or_of_its_group() -> None:
    lines = (CHART / "values.yaml").read_text().splitlines()
    group_has_sentence = False
    for above, line in itertools.pairwise(["", *lines]):
        key = re.match(r"( {0,2})[a-zA-Z]+:(.*)", line)
        if key is None:
            continue
        commented = above.lstrip().startswith("#")
        if not key[1]:
            group_has_sentence = commented
            assert commented or not key[2], line
        else:
            assert commented or group_has_sentence, line


def test_the_schema_contains_every_value() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    schema = json.loads((CHART / "values.schema.json").read_text())
    assert set(values) == set(schema["properties"]) - {"global"}
    assert schema["additionalProperties"] is False


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
@pytest.mark.parametrize(
    "values",
    [
        [],
        ["-f", str(VALUES_PROD)],
        ["--set", "metrics.enabled=true,metrics.dashboard.enabled=true"],
        ["--set", "vestige.gateway=none"],
        [*UPLOAD],
    ],
    ids=["default", "guide", "metrics", "native", "backup"],
)
def test_objects_satisfy_the_schemas_of_kubernetes(version: str, values: list[str]) -> None:
    for manifest in render(*values, version=version).values():
        kubernetes_validate.validate(manifest, version, strict=True)


def test_an_older_kubernetes_is_refused() -> None:
    assert "kubeVersion" in template("--set", f"auth.token={TOKEN}", version="1.28").stderr
