"""The documents agree with the code: settings, make targets, modules, metrics and the version."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import shlex
import subprocess
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import generate
import pytest
from aiohttp import web
from headings import anchors

from harness import (
    NODE,
    ROOT,
    SERVER_MEMORY,
    TOKEN,
    Bridge,
    Gateway,
    Received,
    ScriptedUpstream,
    bridge,
    free_port,
    until,
)
from harness import SUPERGATEWAY as INSTALLED_SUPERGATEWAY
from identity_provider import IdentityProvider
from vestige_bridge.access.authentication import OAUTH_REFUSALS, REFUSALS
from vestige_bridge.access.oauth import principal_of
from vestige_bridge.cli.http_client import NoAnswer
from vestige_bridge.cli.published import OWNER
from vestige_bridge.cli.upstream_probe import SUPERGATEWAY, ask_endpoint
from vestige_bridge.errors import REASONS
from vestige_bridge.logs import FIELDS
from vestige_bridge.server.app import build_app
from vestige_bridge.session.monitor import State
from vestige_bridge.settings import Settings, describe

DOCUMENTS = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "charts/vestige/README.md"]
PLUGIN = ROOT / "openclaw-plugin/README.md"
VARIABLES = {variable: default for variable, default, _ in describe()}
DOCKER = "\n".join(path.read_text() for path in [*ROOT.glob("docker/Dockerfile.*"), *ROOT.glob("docker/compose*.yaml")])


def test_every_setting_is_documented_with_its_default() -> None:
    table = re.findall(
        r"^\| `(VESTIGE_\w+)` \| (?:`(.*?)`|none) \|", (ROOT / "docs/settings.md").read_text(), re.MULTILINE
    )
    assert len(table) == len(dict(table))
    assert dict(table) == VARIABLES | {"VESTIGE_MCP_PORT": "3100"}


def test_every_setting_is_in_the_example_with_its_default() -> None:
    example = re.findall(r"^#(VESTIGE_\w+)=(.*)$", (ROOT / ".env.example").read_text(), re.MULTILINE)
    assert len(example) == len(dict(example))
    assert dict(example) == VARIABLES | {"VESTIGE_MCP_PORT": "3100"}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: str(document.relative_to(ROOT)))
def test_a_document_names_only_settings_that_exist(document: Path) -> None:
    named = set(re.findall(r"\bVESTIGE_[A-Z0-9_]*[A-Z0-9]\b", document.read_text()))
    docker = set(re.findall(r"(?:ARG |\$\{)(VESTIGE_[A-Z0-9_]+)", DOCKER))
    assert named <= VARIABLES.keys() | {"VESTIGE_MCP_PORT"} | docker


@pytest.mark.parametrize("document", [*DOCUMENTS, PLUGIN], ids=lambda document: str(document.relative_to(ROOT)))
def test_the_links_of_a_document_lead_somewhere(document: Path) -> None:
    links = re.findall(r"\]\((?!https?://|#)([^)#]+)", document.read_text())
    assert [link for link in links if not (document.parent / link).exists()] == []


@pytest.mark.parametrize("document", [*DOCUMENTS, PLUGIN], ids=lambda document: str(document.relative_to(ROOT)))
def test_the_fragments_of_links_are_headings(document: Path) -> None:
    links = re.findall(r"\]\((?!https?://)([^)#]*)#([^)]+)\)", document.read_text())
    pages = [(document.parent / page if page else document, fragment) for page, fragment in links]
    assert [(page, it) for page, it in pages if page.suffix == ".md" and it not in anchors(page.read_text())] == []


def test_every_make_target_that_is_named_exists() -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE))
    text = "\n".join(document.read_text() for document in DOCUMENTS)
    named = set(re.findall(r"(?:^|`)make ([a-z0-9-]+)", text, re.MULTILINE))
    assert named
    assert named <= targets


COMMANDS = {
    "README.md": {
        "git clone REPOSITORY vestige-bridge": "not run: the address is that of the page",
        "cd vestige-bridge": "not run: it follows the clone",
        "make dev": "test_a_first_start_makes_a_token_once_and_memory_survives_a_restart",
        "curl -sS": "test_the_readmes_line_for_curl_gets_an_answer",
        'export PATH="$PWD/.venv/bin:$PATH"': "test_the_commands_that_follow_make_dev_work_as_they_stand",
        "export VESTIGE_AUTH_TOKEN=": "test_the_commands_that_follow_make_dev_work_as_they_stand",
        "vestige-bridge connect": "test_the_commands_that_follow_make_dev_work_as_they_stand",
        "python3 -m venv": "test_the_wheel_serves_outside_the_checkout",
        "~/.local/share/vestige-bridge/bin/pip install .": "test_the_wheel_serves_outside_the_checkout",
        'export PATH="$HOME/.local/share/vestige-bridge/bin:$PATH"': "not run: the shell's own",
        "npx -y supergateway@4": "test_the_command_for_supergateway_is_one_that_the_bridge_can_use",
        "VESTIGE_MCP_URL=": "test_the_wheel_serves_outside_the_checkout",
        "vestige-bridge tools": "test_the_commands_that_follow_make_dev_work_as_they_stand",
        "vestige-bridge call create_entities": "test_the_commands_that_follow_make_dev_work_as_they_stand",
        "vestige-bridge call search_nodes": "test_the_commands_that_follow_make_dev_work_as_they_stand",
        "make test": "make test",
    },
    "docs/clients.md": {
        "export VESTIGE_AUTH_TOKEN=": "test_the_commands_that_follow_make_dev_work_as_they_stand",
        "claude mcp ": "make interop-all",
        "codex mcp ": "make interop-all",
        "(umask 077 &&": "make interop",
        "npx -y @modelcontextprotocol/inspector": "make interop",
        "cd openclaw-plugin": "make e2e-openclaw",
        "npm ci --ignore-scripts": "make e2e-openclaw",
        "npm pack": "make e2e-openclaw",
        "openclaw plugins install": "make e2e-openclaw",
        "openclaw vestige status": "make e2e-openclaw",
        "openclaw mcp probe": "make interop-all",
        "curl -sS": "test_the_line_for_curl_gets_an_answer",
    },
    "docs/command-line.md": {
        "vestige-bridge tools": "test_one_tool_is_shown_with_its_arguments",
        "vestige-bridge call recall --help": "test_one_tool_is_shown_with_its_arguments",
        "vestige-bridge call recall query=": "test_a_call_writes_and_another_reads_what_was_written",
        "git log -1": "test_arguments_come_as_words_as_json_or_on_standard_input",
        "VESTIGE_AUTH_TOKEN=… VESTIGE_AUTH_TOKEN_FILE=": "test_a_bridge_elsewhere_is_named_by_its_address",
        "vestige-bridge stdio": "test_a_session_is_opened_used_and_ended_with_its_client",
        "vestige-bridge token new": "test_its_entry_in_a_file_admits_its_token_with_those_rights",
        "mkdir -p ~/": "test_the_completions_are_put_where_the_page_says",
        "vestige-bridge completion bash": "test_the_completions_are_put_where_the_page_says",
        "vestige-bridge completion fish": "test_the_completions_are_put_where_the_page_says",
        "vestige-bridge completion zsh": "test_the_completion_of_a_shell_is_printed",
        "vestige-bridge call search_nodes": "test_the_commands_that_follow_make_dev_work_as_they_stand",
        "vestige-bridge call create_entities": "test_a_call_writes_and_another_reads_what_was_written",
    },
    "docs/sign-in.md": {
        "pip install '.[oauth]'": "not run: the tests have what it installs, from the extra of that name",
        "export VESTIGE_BRIDGE_": "test_the_settings_of_the_page_about_signing_in_start_a_bridge",
        "vestige-bridge": "test_the_settings_of_the_page_about_signing_in_start_a_bridge",
        "ACCESS_TOKEN=… vestige-bridge doctor": "test_an_oauth_token_is_examined_here_and_from_elsewhere",
        "VESTIGE_AUTH_TOKEN=… vestige-bridge doctor": "test_an_oauth_token_is_examined_here_and_from_elsewhere",
        "printf ": "test_the_line_that_says_who_a_principal_is_says_it",
    },
}
"""How the commands on the pages are run, by the beginning of their lines: a test, a target, or why they are not."""

OF_A_RELEASE = {
    "README.md": dict.fromkeys(("pipx install", "docker run"), "not run: it needs a registry"),
    "docs/clients.md": {"openclaw plugins install npm:": "not run: it needs a registry"},
}
"""The other commands that pages show once there is a release."""


def commands(document: str, owner: str = OWNER) -> list[str]:
    """Returns the shell commands that a page shows with an owner of the releases, or without one."""
    made = {str(file.relative_to(ROOT)): text for file, text in generate.generated(owner)}
    page = made.get(document) or (ROOT / document).read_text()
    blocks = re.findall(r"^```sh\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.replace("\\\n", "").splitlines()]


@pytest.mark.parametrize("owner", ["", "Example"])
@pytest.mark.parametrize("document", COMMANDS)
def test_every_command_of_a_page_is_tested_or_has_a_reason_why_not(document: str, owner: str) -> None:
    lines, known = commands(document, owner), COMMANDS[document] | (OF_A_RELEASE.get(document, {}) if owner else {})
    assert [line for line in lines if not line.startswith(tuple(known))] == []
    assert [beginning for beginning in known if not any(line.startswith(beginning) for line in lines)] == []
    exist = {
        name for module in ROOT.glob("tests/**/test_*.py") for name in re.findall(r"def (test_\w+)", module.read_text())
    }
    exist |= {
        f"make {name}" for name in re.findall(r"^([a-z0-9-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE)
    }
    assert [by for by in known.values() if by not in exist and not by.startswith("not run: ")] == []


def test_the_settings_of_the_page_about_signing_in_start_a_bridge() -> None:
    lines = [line for line in commands("docs/sign-in.md") if line.startswith("export ")]
    exported = [shlex.split(line)[1].partition("=") for line in lines]
    settings = Settings.from_environ({name: value for name, _, value in exported})
    assert [scope for scope, _ in settings.oauth_scopes] == ["vestige.read", "vestige.write"]
    build_app(settings)


def test_the_line_that_says_who_a_principal_is_says_it() -> None:
    (line,) = [line for line in commands("docs/sign-in.md") if line.startswith("printf ")]
    said = subprocess.run(["bash", "-euc", line], capture_output=True, text=True, check=True).stdout.strip()
    assert f"oauth:{said}" == principal_of("https://login.example.com/", "alice")


async def test_the_commands_that_follow_make_dev_work_as_they_stand(memory_gateway: Gateway, tmp_path: Path) -> None:
    lines = commands("README.md")
    first, last = lines.index('export PATH="$PWD/.venv/bin:$PATH"'), lines.index("vestige-bridge connect claude-code")
    asked = [line for line in lines if line.startswith(("vestige-bridge tools", "vestige-bridge call"))]
    (tmp_path / ".venv").symlink_to(ROOT / ".venv")
    async with bridge(memory_gateway.url) as served:
        await until(served.ready)
        port = served.origin.rpartition(":")[2]
        (tmp_path / ".env").write_text(f"VESTIGE_BRIDGE_PORT={port}\nVESTIGE_AUTH_TOKEN={TOKEN}\n")
        process = await asyncio.create_subprocess_exec(
            *("bash", "-euc", "\n".join([*lines[first : last + 1], *asked])),
            cwd=tmp_path,
            env={name: value for name, value in os.environ.items() if not name.startswith("VESTIGE_")},
            stdout=asyncio.subprocess.PIPE,
        )
        said = (await process.communicate())[0].decode()
    assert process.returncode == 0
    assert f"claude mcp add --scope user --transport http vestige http://127.0.0.1:{port}/mcp" in said
    [found] = json.loads(said.splitlines()[-1])["structuredContent"]["entities"]
    assert (found["name"], found["observations"]) == ("sky", ["blue"])


async def test_the_readmes_line_for_curl_gets_an_answer(everything: Bridge) -> None:
    """The request is sent without curl, which may not be installed."""
    await until(everything.ready)
    [line] = [line for line in commands("README.md") if line.startswith("curl -sS")]
    _curl, _silent, url, *pairs = shlex.split(line.replace("YOUR-TOKEN", TOKEN))
    headers = dict(value.split(": ", 1) for flag, value in zip(pairs[::2], pairs[1::2], strict=True) if flag == "-H")
    answer = await everything.ask("POST", url.partition(":8000")[2], pairs[pairs.index("-d") + 1].encode(), headers)
    assert url == "http://127.0.0.1:8000/mcp"
    assert answer.json["result"]["tools"]


@pytest.mark.parametrize("document", ["README.md", *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))])
def test_every_path_that_a_page_names_exists(document: str) -> None:
    folders = "bench|charts|dev|docker|docs|e2e|openclaw-plugin|src|tests"
    named = set(re.findall(rf"`((?:{folders})/[\w./-]+)`", (ROOT / document).read_text()))
    made = {path for path in named if path.startswith("openclaw-plugin/dist")}
    assert [path for path in sorted(named - made) if not (ROOT / path).exists()] == []


def test_the_completions_are_put_where_the_page_says(tmp_path: Path) -> None:
    lines = [
        line for line in commands("docs/command-line.md") if line.startswith(("mkdir", "vestige-bridge completion"))
    ]
    environ = {**os.environ, "HOME": str(tmp_path), "PATH": f"{ROOT / '.venv/bin'}:{os.environ['PATH']}"}
    subprocess.run(["bash", "-euc", "\n".join(lines[:-1])], env=environ, cwd=tmp_path, check=True)
    for path in (
        ".local/share/bash-completion/completions/vestige-bridge",
        ".config/fish/completions/vestige-bridge.fish",
    ):
        assert "vestige-bridge" in (tmp_path / path).read_text()


def test_the_command_for_supergateway_is_one_that_the_bridge_can_use(tmp_path: Path) -> None:
    assert SUPERGATEWAY in commands("README.md")
    port = free_port()
    memory = f"{shlex.quote(str(NODE))} {shlex.quote(str(SERVER_MEMORY))}"
    words = [
        memory if word == "vestige-mcp" else str(port) if word == "3100" else word for word in shlex.split(SUPERGATEWAY)
    ]
    assert words[:3] == ["npx", "-y", "supergateway@4"]
    command = [str(NODE), "--import", str(ROOT / "docker/gateway/bind.js"), str(INSTALLED_SUPERGATEWAY), *words[3:]]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, env={**os.environ, "HOME": str(tmp_path)}) as gateway:
        try:
            while gateway.poll() is None:
                with suppress(NoAnswer):
                    ask_endpoint(f"http://127.0.0.1:{port}/mcp", "", 10)
                    break
            assert gateway.poll() is None
        finally:
            gateway.terminate()


def test_make_alone_lists_the_targets_by_section() -> None:
    said = subprocess.run(["make"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert re.search(r"^Run$", said, re.MULTILINE)
    for target in ("dev", "test", "lint", "format", "coverage", "clean", "help"):
        assert re.search(rf"^  make {target} +\S.*\.$", said, re.MULTILINE)


def test_the_architecture_has_a_row_for_every_module_and_package_and_no_other() -> None:
    text = (ROOT / "docs/architecture.md").read_text()
    package = ROOT / "src/vestige_bridge"
    modules = {str(path.relative_to(package).with_suffix("")) for path in package.rglob("*.py")}
    packages = {path.removesuffix("/__init__") for path in modules if path.endswith("/__init__")}
    assert _first_column(text, "## Modules") == {path for path in modules if not path.endswith("__init__")}
    assert _first_column(text, "## Packages") == packages


def test_the_modules_and_functions_named_for_changes_exist() -> None:
    text = (ROOT / "docs/architecture.md").read_text()
    table = text.partition("## To change something")[2].partition("\n## ")[0]
    named = set(re.findall(r"`([a-z_]+(?:/[a-z_]+)?)`", table))
    package = ROOT / "src/vestige_bridge"
    for name in named - {"connect"}:
        parent, _, leaf = name.rpartition("/")
        text = "".join(path.read_text() for path in package.rglob("*.py")) if not parent else ""
        assert (package / f"{name}.py").exists() or re.search(rf"\bdef {leaf}\(", text), name


def _first_column(text: str, heading: str) -> set[str]:
    section = text.partition(heading)[2].partition("\n## ")[0]
    cells = re.findall(r"^\| (`.*?) \|", section, re.MULTILINE)
    return {name for cell in cells for name in re.findall(r"`([\w/]+)`", cell)}


@pytest.fixture
async def eventful(upstream: ScriptedUpstream, tmp_path: Path) -> AsyncIterator[Bridge]:
    """A bridge that has had requests, so that each metric has a value."""
    file = tmp_path / "tokens.toml"
    file.write_text(f'[[token]]\nname = "agent"\ntoken = "{TOKEN}"\ntools = ["read"]\nexpires = 2999-01-31T00:00:00Z\n')
    backups = tmp_path / "status.json"
    backups.write_text('{"failing": false, "succeeded_at": 1795689412, "due_at": 1795748400}')
    files = {"VESTIGE_AUTH_TOKEN_FILE": str(file), "VESTIGE_BRIDGE_BACKUP_STATUS_FILE": str(backups)}
    async with (
        IdentityProvider().serving() as provider,
        bridge(upstream.url, **provider.variables(**files)) as served,
    ):
        await until(served.ready)
        await until(lambda: served.metric("oauth_keys") > 0)
        served.token = TOKEN
        assert [(await served.call(tool)).status for tool in ("read", "write")] == [200, 403]
        yield served


async def test_every_metric_is_documented_with_its_type_and_its_labels(eventful: Bridge) -> None:
    table = re.findall(
        r"^\| `(vestige_bridge_\w+)` \| (\w+) \| ([\w, ]*) ?\|",
        (ROOT / "docs/operations.md").read_text(),
        re.MULTILINE,
    )
    assert len(table) == len({name for name, _, _ in table})
    assert eventful.metrics is not None
    families = {family.name: family for family in eventful.metrics.collect()}
    assert {name.removesuffix("_total"): kind for name, kind, _ in table} == {
        family.name: family.type for family in families.values()
    }
    for name, kind, labels in table:
        assert name.endswith("_total") is (kind == "counter")
        told = [set(sample.labels) - {"le"} for sample in families[name.removesuffix("_total")].samples]
        assert told, name
        assert all(it == set(labels.strip().split(", ")) - {""} for it in told), name


def test_every_reason_that_a_metric_may_name_is_documented() -> None:
    named = set(re.findall(r"`([a-z_]+)`", (ROOT / "docs/operations.md").read_text()))
    assert {*REASONS.values(), *REFUSALS, *OAUTH_REFUSALS, *State} <= named


def test_every_alert_is_documented_and_no_other() -> None:
    alerts = re.findall(r"- alert: (\w+)", (ROOT / "charts/vestige/files/alerts.yaml").read_text())
    assert re.findall(r"^### (Vestige\w+)$", (ROOT / "docs/operations.md").read_text(), re.MULTILINE) == alerts


@pytest.mark.parametrize("file", ["docs/operations.md", "charts/vestige/files/alerts.yaml"])
async def test_every_metric_that_is_named_exists(eventful: Bridge, file: str) -> None:
    assert eventful.metrics is not None
    told = {sample.name for family in eventful.metrics.collect() for sample in family.samples}
    told |= {family.name for family in eventful.metrics.collect()}
    named = set(re.findall(r"\bvestige_bridge_\w+", (ROOT / file).read_text()))
    assert named
    assert named <= told


def test_each_problem_of_the_troubleshooting_page_has_a_command() -> None:
    text = (ROOT / "docs/troubleshooting.md").read_text()
    sections = re.split(r"^### ", text, flags=re.MULTILINE)[1:]
    assert len(sections) > 20
    assert [section.splitlines()[0] for section in sections if "```bash\n" not in section] == []


async def test_the_errors_of_the_troubleshooting_page_are_those_of_the_bridge(
    upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    text = (ROOT / "docs/troubleshooting.md").read_text()
    file = tmp_path / "tokens.toml"
    entries = ('tools = ["re*"]\nrate = 1', "read_only = true", "expires = 2020-01-01T00:00:00Z", "")
    file.write_text("".join(f'[[token]]\nname = "n{n}"\ntoken = "{TOKEN}-{n}"\n{it}\n' for n, it in enumerate(entries)))
    ended = asyncio.Event()

    async def hang(_received: Received) -> web.StreamResponse:
        await ended.wait()
        return web.Response()

    async with bridge(
        upstream.url,
        VESTIGE_AUTH_TOKEN="",
        VESTIGE_AUTH_TOKEN_FILE=str(file),
        REQUEST_TIMEOUT_SECONDS="0.5",
        MAX_IN_FLIGHT="1",
    ) as served:
        await until(served.ready)

        async def call(token: str, tool: str = "read", **headers: str) -> str:
            served.token = token
            return str((await served.call(tool, headers=headers)).error["message"])

        refused = [await call(""), await call("wrong"), await call(f"{TOKEN}-2")]
        served.token = f"{TOKEN}-0"
        assert (await served.call("read")).status == 200
        refused += [await call(f"{TOKEN}-0"), await call(f"{TOKEN}-0", "write"), await call(f"{TOKEN}-1", "write")]
        refused += [
            await call(f"{TOKEN}-3", Origin="https://app.example.com"),
            (await served.get("/")).error["message"],
        ]
        upstream.on("tools/call", hang)
        refused += await asyncio.gather(call(f"{TOKEN}-3"), call(f"{TOKEN}-3"))
        ended.set()
        assert served.drain is not None
        await served.drain()
        refused.append(await call(f"{TOKEN}-3"))
    async with bridge(upstream.url, VESTIGE_AUTH_TOKEN="") as served:
        refused.append((await served.call("read")).error["message"])
    async with bridge(f"http://127.0.0.1:{free_port()}/mcp", CONNECT_TIMEOUT_SECONDS="0.5") as served:
        served.token = TOKEN
        refused.append((await served.call("read")).error["message"])
    assert len(set(refused)) == 13
    assert [message for message in refused if message not in text and message.partition(":")[0] not in text] == []


async def test_every_field_of_the_access_line_is_documented(scripted: Bridge, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    await scripted.call("read")
    (line,) = [record for record in caplog.records if record.getMessage() == "request"]
    cells = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \|", (ROOT / "docs/operations.md").read_text(), re.MULTILINE)
    documented = {field for cell in cells for field in re.findall(r"`(\w+)`", cell)}
    assert getattr(line, FIELDS).keys() <= documented


def test_each_defence_of_the_threat_model_is_shown_by_tests_that_exist() -> None:
    text = (ROOT / "docs/threat-model.md").read_text()
    modules = [*ROOT.glob("tests/**/test_*.py"), *ROOT.glob("e2e/**/test_*.py")]
    exist = {name for module in modules for name in re.findall(r"def (test_\w+)", module.read_text())}
    rows = re.findall(r"^\| (?!attack|---)(.*) \|$", text, re.MULTILINE)
    assert len(rows) > 30
    for row in rows:
        _, _, shown_by = row.split(" | ")
        named = re.findall(r"`(test_\w+)`", shown_by)
        assert named, row
        assert [name for name in named if name not in exist] == []


def test_the_charts_load_balancer_closes_an_idle_connection_before_the_bridge_does() -> None:
    (balancer,) = re.findall(r"idleTimeoutSeconds: (\d+)", (ROOT / "charts/vestige/values.yaml").read_text())
    keep_alive = {variable: default for variable, default, _ in describe()}["VESTIGE_BRIDGE_KEEP_ALIVE_SECONDS"]
    assert int(balancer) < int(keep_alive)


def test_every_page_is_in_the_list_of_who_reads_what() -> None:
    listed = re.findall(r"^\| \[[^]]+\]\(([^)]+)\) \| \S", (ROOT / "docs/README.md").read_text(), re.MULTILINE)
    assert len(listed) == len(set(listed))
    pages = {os.path.relpath(page, ROOT / "docs") for page in [*DOCUMENTS, PLUGIN]}
    assert pages - {"README.md", "../README.md"} == set(listed)


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_lockfiles_hold_no_registry_addresses() -> None:
    lockfiles = [ROOT / "docker/gateway/package-lock.json", ROOT / "tests/package-lock.json"]
    assert [path for path in lockfiles if "resolved" in path.read_text()] == []
