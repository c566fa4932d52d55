"""Tests of the commands in docs/deployment.md that need AWS, a registry or a new cluster, without running these."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_chart import CHART, HELM, ROOT, pod, render

TEXT = (ROOT / "docs" / "deployment.md").read_text()
ECR = "123456789.dkr.ecr.us-west-2.amazonaws.com"
ENVIRONMENT = {
    "ECR_VESTIGE": f"{ECR}/vestige-mcp",
    "ECR_BRIDGE": f"{ECR}/vestige-bridge",
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "TEAM": "red",
    "DRY_RUN": "1",
    "ALLOW_DIRTY": "1",
}
COMMANDS = [
    line
    for block in re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
    if line
]
HELM_COMMANDS = [command for command in COMMANDS if re.match("helm (install|upgrade|template) ", command)]
MAKE_COMMANDS = [
    command
    for command in [*COMMANDS, *re.findall(r"`(make [^`]+)`", TEXT)]
    if re.match("make (?!dev|e2e|chart-lint|deploy-lint|audit|sbom|https)", command)
]


def shell(command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", command], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=60, check=False
    )


def test_every_command_has_a_test() -> None:
    known = ("export ", "make ", "docker ", "helm ", "kubectl ", "curl ", "printf ", "sudo ")
    assert [command for command in COMMANDS if not command.startswith(known)] == []


@pytest.mark.parametrize("command", HELM_COMMANDS)
def test_helm_renders_what_the_guide_installs(command: str, tmp_path: Path) -> None:
    values = re.search(r"```yaml\n# values-prod.yaml\n(.*?)```", TEXT, re.DOTALL)
    assert values
    (tmp_path / "values-prod.yaml").write_text(values[1])
    rendered = re.sub(
        "^helm (install|upgrade|template)", f"{shlex.quote(HELM)} template --kube-version 1.35.0", command
    )
    rendered = rendered.replace("values-prod.yaml", str(tmp_path / "values-prod.yaml"))
    if "--reset-then-reuse-values" in command:
        rendered = rendered.replace(
            "--reset-then-reuse-values", "--is-upgrade --set auth.token=a-token-of-an-earlier-install"
        )
    done = shell(rendered)
    assert done.returncode == 0, done.stderr
    assert "kind: Deployment" in done.stdout


def test_helm_renders_the_tokens_that_the_guide_gives_as_values(tmp_path: Path) -> None:
    values = re.search(r"```yaml\n(auth:\n  tokens:.*?)```", TEXT, re.DOTALL)
    assert values
    (tmp_path / "values.yaml").write_text(values[1])
    done = shell(f"{shlex.quote(HELM)} template v charts/vestige --kube-version 1.35.0 -f {tmp_path}/values.yaml")
    assert done.returncode == 0, done.stderr
    assert "tokens.toml: " in done.stdout


@pytest.mark.parametrize("page", ["deployment", "doctor", "operations", "troubleshooting"])
def test_the_commands_for_kubectl_name_objects_of_the_chart(page: str) -> None:
    objects = render("--set", "metrics.enabled=true,backup.enabled=true")
    lines = (ROOT / f"docs/{page}.md").read_text().replace("\\\n", " ").splitlines()
    known = "kubectl (exec|logs|port-forward|get|top|describe) "
    commands = [re.split(r" (?:--|\|) ", line)[0] for line in lines if re.match(known, line)]
    kinds = {"deploy": "Deployment", "deployment": "Deployment", "svc": "Service", "service": "Service"}
    containers = {it["name"]: it for it in (*pod(objects)["initContainers"], *pod(objects)["containers"])}
    labels = objects["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert commands
    for command in commands:
        assert re.search(r" (-n|--namespace) \S", command), command
        for kind, name in re.findall(r" (deploy|deployment|svc|service)/(\S+)", command):
            assert objects[kinds[kind]]["metadata"]["name"] == name, command
        for container in re.findall(r" -c (\S+)", command):
            assert container in containers, command
        for label, value in re.findall(r" -l (\S+?)=(\S+)", command):
            assert labels[label] == value, command
        for port in re.findall(r"port-forward .* \d+:(\d+)", command):
            assert int(port) in [it["containerPort"] for it in containers["bridge"]["ports"]], command


def test_helm_renders_the_route_that_the_guide_gives_as_values(tmp_path: Path) -> None:
    values = re.search(r"```yaml\n(httpRoute:.*?)```", TEXT, re.DOTALL)
    assert values
    (tmp_path / "values.yaml").write_text(values[1])
    route = render("-f", str(tmp_path / "values.yaml"))["HTTPRoute"]
    assert route["spec"]["hostnames"] == ["vestige.example.com"]


@pytest.mark.parametrize("release", ["vestige", "memory", "vestige-red"])
def test_make_names_the_objects_of_every_release(release: str) -> None:
    rendered = shell(
        f"{shlex.quote(HELM)} template {release} charts/vestige --kube-version 1.35.0 --set auth.token={'a' * 16}"
    )
    [name] = re.findall(r"^kind: Service\n.*?\n  name: (\S+)$", rendered.stdout, re.DOTALL | re.MULTILINE)
    printed = shell(f"make port-forward RELEASE={release} CONTAINER_TOOL=docker").stdout
    assert f" svc/{name.strip(chr(34))} 8000:8000" in printed


@pytest.mark.parametrize("command", MAKE_COMMANDS)
def test_make_prints_the_commands_that_it_would_run(command: str) -> None:
    done = shell(f"HELM={shlex.quote(shutil.which(HELM) or HELM)} {command} CONTAINER_TOOL=docker")
    assert done.returncode == 0, done.stderr
    assert re.search("docker|helm", done.stdout)


def test_the_login_is_for_the_registry_of_the_image() -> None:
    said = shell("make login CONTAINER_TOOL=docker").stdout.strip()
    assert said == (
        f"aws ecr get-login-password --region us-west-2 | docker login --username AWS --password-stdin {ECR}"
    )


@pytest.mark.parametrize("goal", ["push", "upgrade"])
def test_an_empty_tag_is_refused(goal: str) -> None:
    done = shell(f"HELM={shlex.quote(shutil.which(HELM) or HELM)} make {goal}")
    assert done.returncode != 0
    assert "TAG is empty" in done.stderr


def test_a_push_of_uncommitted_changes_is_refused(tmp_path: Path) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path)
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    environment = {"PATH": ENVIRONMENT["PATH"], "DRY_RUN": "1"}
    done = subprocess.run(
        ["make", "push", "TAG=v1", "CONTAINER_TOOL=docker"], cwd=tmp_path, env=environment,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert "uncommitted changes" in done.stderr


def test_the_alerts_of_a_release_link_to_the_page_of_that_release(tmp_path: Path) -> None:
    workflow = (ROOT / ".github/workflows/release.yml").read_text()
    page = '"$GITHUB_SERVER_URL/$GITHUB_REPOSITORY/blob/$GITHUB_REF_NAME/docs/operations.md"'
    assert f"make release-check RUNBOOK_URL={page}" in workflow
    shutil.copy(ROOT / "Makefile", tmp_path)
    shutil.copytree(CHART, tmp_path / "charts/vestige")
    page = "https://git.example.com/memory/vestige-bridge/blob/v0.2.0/docs/operations.md"
    helm = shutil.which(HELM) or HELM
    for given, expected in ((f"RUNBOOK_URL={page}", page), ("RUNBOOK_URL=", "docs/operations.md")):
        subprocess.run(["make", "chart-package", given, f"HELM={helm}"], cwd=tmp_path, capture_output=True, check=True)
        [package] = (tmp_path / "dist").glob("vestige-*.tgz")
        values = subprocess.run([helm, "show", "values", package], capture_output=True, text=True, check=True).stdout
        assert yaml.safe_load(values)["metrics"]["alerts"]["runbookUrl"] == expected
    assert "runbookUrl: docs/operations.md\n" in (tmp_path / "charts/vestige/values.yaml").read_text()


def test_compose_images_are_the_dockerfiles_of_this_repository() -> None:
    text = (ROOT / "docker" / "compose.base.yaml").read_text()
    names = re.findall("dockerfile: (.*)", text)
    assert len(names) == 2
    for name in names:
        assert (ROOT / name).is_file()


def compose_service(service: str, file: str = "compose.yaml") -> dict[str, Any]:
    """Returns a service of a compose file, merged with the service that it extends."""
    described: dict[str, Any] = yaml.safe_load((ROOT / "docker" / file).read_text())["services"][service]
    if "extends" not in described:
        return described
    extended = described.pop("extends")
    base = compose_service(extended["service"], extended["file"])
    environment = base["environment"] | described.get("environment", {})
    volumes = [*base["volumes"], *described.get("volumes", [])]
    return base | described | {"environment": environment, "volumes": volumes}


def compose_environment(service: str, file: str = "compose.yaml", **variables: str) -> dict[str, str]:
    """Returns the environment of a service's container; the shell expands ${…} as compose does."""
    environment = compose_service(service, file)["environment"]
    written = "\n".join(f"{name}={value}" for name, value in environment.items())
    script = f"cat <<END\n{written}\nEND"
    done = subprocess.run(["bash", "-c", script], env=variables, capture_output=True, text=True, check=True)
    return dict(line.split("=", 1) for line in done.stdout.splitlines())


@pytest.mark.parametrize("gateway", [{}, {"GATEWAY": ""}, {"GATEWAY": "supergateway"}, {"GATEWAY": "none"}])
def test_with_compose_the_bridge_reads_the_token_that_vestiges_container_writes(gateway: dict[str, str]) -> None:
    vestige = compose_environment("vestige-mcp", **gateway)
    bridge = compose_environment("bridge", VESTIGE_AUTH_TOKEN="a-token", **gateway)
    assert vestige["GATEWAY"] == (gateway.get("GATEWAY") or "supergateway")
    assert "GATEWAY_TOKEN_FILE" not in vestige
    assert bridge["VESTIGE_BRIDGE_UPSTREAM_TOKEN_FILE"] == "/run/vestige/token"


def test_with_compose_a_folder_with_tokens_replaces_the_token() -> None:
    bridge = compose_environment("bridge", "compose.tokens.yaml", VESTIGE_AUTH_TOKEN="a-token-of-the-shell")
    assert "VESTIGE_AUTH_TOKEN" not in bridge
    [mount] = [it for it in compose_service("bridge", "compose.tokens.yaml")["volumes"] if isinstance(it, dict)]
    assert bridge["VESTIGE_AUTH_TOKEN_FILE"] == f"{mount['target']}/tokens.toml"
    assert mount["source"].startswith("${VESTIGE_AUTH_FOLDER:?")
    assert (mount["read_only"], mount["bind"]) == (True, {"create_host_path": False})


@pytest.mark.parametrize("file", ["compose.tokens.yaml", "compose.oauth.yaml"])
def test_with_compose_the_files_differ_only_in_authentication(file: str) -> None:
    one, other = (yaml.safe_load((ROOT / "docker" / name).read_text()) for name in ("compose.yaml", file))
    assert one["services"].keys() == other["services"].keys()
    assert one | {"services": {}} == other | {"services": {}}
    assert one["services"]["vestige-mcp"] == other["services"]["vestige-mcp"]


@pytest.mark.parametrize("file", ["compose.yaml", "compose.tokens.yaml", "compose.oauth.yaml"])
def test_with_compose_an_identity_provider_is_configured_by_the_shell(file: str) -> None:
    names = ("PUBLIC_URL", "OAUTH_ISSUER", "OAUTH_SCOPES", "OAUTH_AUDIENCE", "OAUTH_JWKS_URL")
    given = {f"VESTIGE_BRIDGE_{name}": f"the {name}" for name in names}
    bridge = compose_environment("bridge", file, VESTIGE_AUTH_TOKEN="a-token", **given)
    assert given.items() <= bridge.items()
    assert ("VESTIGE_AUTH_TOKEN" in bridge or "VESTIGE_AUTH_TOKEN_FILE" in bridge) is (file != "compose.oauth.yaml")


def test_with_compose_the_file_for_an_identity_provider_requires_one() -> None:
    issuer = compose_service("bridge", "compose.oauth.yaml")["environment"]["VESTIGE_BRIDGE_OAUTH_ISSUER"]
    assert issuer.startswith("${VESTIGE_BRIDGE_OAUTH_ISSUER:?")


@pytest.mark.parametrize("file", ["compose.yaml", "compose.tokens.yaml", "compose.oauth.yaml"])
def test_with_compose_https_is_a_profile_that_cannot_reach_vestige(file: str) -> None:
    https, bridge, vestige = (compose_service(name, file) for name in ("https", "bridge", "vestige-mcp"))
    assert https["profiles"] == ["https"]
    assert set(https["networks"]) & set(bridge["networks"])
    assert not set(https["networks"]) & set(vestige["networks"])
    assert (https["read_only"], https["cap_drop"], https["cap_add"]) == (True, ["ALL"], ["NET_BIND_SERVICE"])
    assert "./Caddyfile:/etc/caddy/Caddyfile:ro" in https["volumes"]
    assert compose_environment("https", file)["VESTIGE_HTTPS_HOST"] == "localhost"
    assert "VESTIGE_AUTH_TOKEN" not in https["environment"]


@pytest.mark.parametrize("file", ["compose.yaml", "compose.tokens.yaml", "compose.oauth.yaml"])
def test_with_compose_the_audit_log_is_configured_by_the_shell(file: str) -> None:
    audit = ("VESTIGE_BRIDGE_AUDIT_LOG", "VESTIGE_BRIDGE_AUDIT_REQUIRED")
    for given in (("", ""), ("-", "true")):
        variables = dict(zip(audit, given, strict=True)) | {"VESTIGE_AUTH_TOKEN": "a-token"}
        variables |= {"VESTIGE_BRIDGE_OAUTH_ISSUER": "https://login.example.com"}
        bridge = compose_environment("bridge", file, **variables)
        assert tuple(bridge[name] for name in audit) == given


def test_with_compose_the_autopilot_is_off_by_default() -> None:
    assert compose_environment("vestige-mcp")["VESTIGE_AUTOPILOT_ENABLED"] == "0"
    assert compose_environment("vestige-mcp", VESTIGE_AUTOPILOT_ENABLED="1")["VESTIGE_AUTOPILOT_ENABLED"] == "1"


def test_with_compose_backups_are_made_by_a_container_as_hardened_as_the_others() -> None:
    backup, bridge = (compose_service(name, "compose.backup.yaml") for name in ("backup", "bridge"))
    vestige = compose_service("vestige-mcp")
    for key in ("image", "restart", "read_only", "cap_drop", "security_opt"):
        assert backup[key] == vestige[key]
    assert backup["network_mode"] == "none"
    assert backup["volumes"][0] == vestige["volumes"][0] == "data:/data"
    mount = "backup-status:/run/vestige-backup"
    assert backup["volumes"][1:] == [mount] and bridge["volumes"] == [f"{mount}:ro"]
    assert bridge["environment"] == {"VESTIGE_BRIDGE_BACKUP_STATUS_FILE": "/run/vestige-backup/status.json"}
    told = compose_environment("backup", "compose.backup.yaml")
    assert told == {"BACKUP_SCHEDULE": "0 3 * * *", "BACKUP_KEEP": "7"}
    told = compose_environment("backup", "compose.backup.yaml", BACKUP_SCHEDULE="0 * * * *", BACKUP_KEEP="24")
    assert told == {"BACKUP_SCHEDULE": "0 * * * *", "BACKUP_KEEP": "24"}


def test_there_is_one_version() -> None:
    [package] = re.findall(r"^version = (.+)$", (ROOT / "setup.cfg").read_text(), re.MULTILINE)
    chart = (ROOT / "charts" / "vestige" / "Chart.yaml").read_text()
    assert re.findall(r"^(?:version|appVersion): \"?([^\"\n]+)", chart, re.MULTILINE) == [package, package]
