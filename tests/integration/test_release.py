"""Releases: one version everywhere, complete archives without other files, and documents that name what exists."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import generate
import pytest
import release_check
import version
import yaml
from headings import anchors

from harness import ROOT, TOKEN, Bridge, until
from vestige_bridge.cli.client_catalog import BY_KEY, Target
from vestige_bridge.cli.connect import described
from vestige_bridge.cli.published import OWNER

HOME = Target("http://127.0.0.1:8000/mcp", "VESTIGE_AUTH_TOKEN", "/opt/vestige-bridge", "/home/you")
PUBLISHED = {
    "a run from PyPI": r"\buvx\b",
    "a command from PyPI": r"\bpipx\b"
    r"|\b(?:pip3?|uv(?: tool| pip)?) (?:install|download|add)\b[^\n`]*[\s'\"]vestige-bridge\b",
    "an image": r"\bghcr\.io/|\b(?:docker|podman) (?:run|pull)\b[^\n`]*\s(?:[\w.-]+/)*vestige-(?:bridge|mcp)\b",
    "a chart": r"\boci://|\bhelm repo\b",
    "the plugin": r"\bnpm:openclaw-plugin-vestige\b"
    r"|\b(?:np[mx]|openclaw plugins install)\s(?:[^\n`]*\s)?openclaw-plugin-vestige(?:@|\b(?!-))",
}
"""The forms of delivery that need a release, each with a regular expression that finds it."""


@pytest.fixture
def versioned(tmp_path: Path) -> Path:
    """A copy of the files that contain the version, and of the program that compares them."""
    for name in [*version.PLACES, "CHANGELOG.md", "dev/version.py", "dev/release_check.py"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def test_every_file_has_the_version_of_the_package() -> None:
    assert version.faults() == []


@pytest.mark.parametrize("name", [*version.PLACES, "CHANGELOG.md"])
def test_another_version_in_one_place_is_found(name: str, versioned: Path) -> None:
    file, old = versioned / name, version.version()
    pattern = version.PLACES.get(name, r"^## \[(\d[\d.]*)\] - ")
    found = re.search(pattern, file.read_text(), re.MULTILINE)
    assert found is not None
    assert found[1] == old
    file.write_text(file.read_text()[: found.start(1)] + "9.8.7" + file.read_text()[found.end(1) :])
    done = subprocess.run(
        [sys.executable, str(versioned / "dev/release_check.py")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "9.8.7" in done.stdout
    assert ("CHANGELOG.md" if name == "setup.cfg" else name) in done.stdout
    assert not (versioned / "dist").exists()


def test_a_new_version_is_written_everywhere_but_into_the_changelog(versioned: Path) -> None:
    command = ["make", "--silent", "--file", str(ROOT / "Makefile"), "version", "NEW=9.8.7", f"PYTHON={sys.executable}"]
    said = subprocess.run(command, cwd=versioned, capture_output=True, text=True, check=True).stdout
    assert said == "9.8.7\n"
    assert [fault.partition(" ")[0] for fault in version.faults(versioned)] == ["CHANGELOG.md"]
    for name in version.PLACES:
        assert (versioned / name).read_text().replace("9.8.7", version.version()) == (ROOT / name).read_text()


def test_every_tag_of_the_deployment_guide_has_the_version_but_for_one_example() -> None:
    page = dict(generate.generated(owner=""))[ROOT / "docs/deployment.md"]
    rest = re.sub(version.PLACES["docs/deployment.md"], "", page, flags=re.MULTILINE)
    assert len(set(re.findall(r"\bv(\d+\.\d+\.\d+)\b", rest))) == 1


def test_another_file_among_the_built_ones_is_a_fault() -> None:
    built = [Path("server.json"), *(Path(f"{number}.whl") for number in range(5))]
    (fault,) = release_check._look(built)
    assert fault.startswith("dist/ holds server.json, 0.whl, 1.whl, 2.whl, 3.whl, 4.whl instead of ")


def test_unexpected_and_missing_files_of_an_archive_are_found() -> None:
    files = {"bridge/a.py": b"", "bridge/test_a.py": b"", "made/RECORD": b"", ".env": b""}
    found = list(release_check.unexpected_files("it.whl", files, {"bridge/a.py", "bridge/b.py"}, r"made/.*"))
    assert found == [
        "it.whl lacks bridge/b.py.",
        "it.whl holds .env, which does not belong in it.",
        "it.whl holds bridge/test_a.py, which does not belong in it.",
    ]


@pytest.mark.parametrize(
    ("content", "is_secret"),
    [
        ("-----BEGIN OPENSSH PRIVATE " + "KEY-----", True),
        ("token = ghp_" + "a" * 36, True),
        ("//registry.npmjs.org/:_authToken=npm_" + "A" * 36, True),
        ("VESTIGE_AUTH_TOKEN=the-token-of-this-checkout", True),
        ("VESTIGE_AUTH_TOKEN=YOUR-TOKEN", False),
    ],
)
def test_a_secret_in_an_archive_is_found(content: str, *, is_secret: bool) -> None:
    found = list(release_check.secrets("it.whl", {"a": content.encode()}, {b"the-token-of-this-checkout"}))
    assert found == (["it.whl holds what looks like a secret in a."] if is_secret else [])


@pytest.mark.parametrize(
    ("key", "value"), [("name", "no-namespace"), ("version", 1), ("description", "x" * 101), ("packages", [{}])]
)
def test_violations_of_the_registrys_schema_are_found(key: str, value: object) -> None:
    """Checks with the parts of the schema that are needed here; `make release-check` uses the registry's own schema."""
    package = {"type": "object", "required": ["registryType", "identifier", "transport"]}
    schema: dict[str, Any] = {
        "required": ["name", "description", "version"],
        "properties": {
            "name": {"type": "string", "pattern": "^[a-zA-Z0-9.-]+/[a-zA-Z0-9._-]+$"},
            "description": {"type": "string", "maxLength": 100},
            "version": {"type": "string"},
            "packages": {"type": "array", "items": package},
        },
    }
    document = release_check.server_json("example", "1.2.3")
    assert list(release_check.invalid(document, schema)) == []
    assert list(release_check.invalid(document | {key: value}, schema))


async def test_the_command_in_the_registry_entry_reaches_a_bridge(everything: Bridge) -> None:
    await until(everything.ready)
    [package] = release_check.server_json("example", "1.2.3")["packages"]
    command, url = package["packageArguments"]
    [token] = package["environmentVariables"]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "vestige_bridge", command["value"], url["name"], everything.origin),
        env=os.environ | {token["name"]: TOKEN},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(b'{"jsonrpc": "2.0", "id": 7, "method": "tools/list"}\n')
    async with asyncio.timeout(20):
        answer = json.loads(await process.stdout.readline())
        process.stdin.close()
        await process.wait()
    assert answer["id"] == 7
    assert answer["result"]["tools"]


@pytest.mark.parametrize(
    ("form", "text"),
    [
        ("a command from PyPI", "pip install vestige-bridge"),
        ("a command from PyPI", "pip install 'vestige-bridge[oauth]'"),
        ("a command from PyPI", 'pip3 install --user "vestige-bridge"'),
        ("a command from PyPI", "pip download vestige-bridge"),
        ("a command from PyPI", "uv add vestige-bridge"),
        ("the plugin", "npx openclaw-plugin-vestige"),
        ("the plugin", "npm install --global openclaw-plugin-vestige"),
        ("the plugin", "openclaw plugins install openclaw-plugin-vestige"),
    ],
)
def test_a_form_of_delivery_is_found_in_every_spelling(form: str, text: str) -> None:
    assert re.search(PUBLISHED[form], text)


OF_THE_OWNER = {
    ".github/workflows/release.yml",
    "dev/generate.py",
    "dev/release_check.py",
    "src/vestige_bridge/cli/client_catalog.py",
    "src/vestige_bridge/cli/published.py",
}
"""The files that only a release runs, or whose texts depend on the owner of the releases."""


def tracked_texts() -> dict[str, str]:
    """Returns the text files of git, without tests, without what names packages by design."""
    names = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    texts = {}
    for name in names:
        if name in OF_THE_OWNER or name.startswith(("tests/", "e2e/")) or name.endswith("package-lock.json"):
            continue
        content = (ROOT / name).read_bytes() if (ROOT / name).is_file() else b""
        if b"\0" not in content:
            texts[name] = content.decode()
    return texts


def test_before_the_first_release_no_page_and_no_command_names_a_published_package() -> None:
    texts = tracked_texts()
    texts |= {str(file.relative_to(ROOT)): text for file, text in generate.generated(owner="")}
    texts |= {f"connect {key}": described(client, HOME, owner="") for key, client in BY_KEY.items()}
    assert {
        (name, form, found[0])
        for name, text in texts.items()
        for form, pattern in PUBLISHED.items()
        if (found := re.search(pattern, text))
    } == set()


def test_with_a_release_every_form_is_documented_before_the_build_from_source() -> None:
    made = {str(file.relative_to(ROOT)): text for file, text in generate.generated("Example")}
    connect = {key: described(BY_KEY[key], HOME, owner="Example") for key in ("claude-desktop", "openclaw-plugin")}
    before = {
        ("a run from PyPI", made["README.md"]): "pip install .",
        ("a command from PyPI", made["README.md"]): "pip install .",
        ("an image", made["README.md"]): "pip install .",
        ("a chart", made["docs/deployment.md"]): "make images",
        ("an image", made["docs/deployment.md"]): "make images",
        ("a chart", made["charts/vestige/README.md"]): "helm install vestige charts/vestige",
        ("the plugin", made["openclaw-plugin/README.md"]): "npm-pack:",
        ("the plugin", made["docs/clients.md"]): "npm-pack:",
        ("a run from PyPI", made["docs/clients.md"]): "/path/to/vestige-bridge",
        ("a run from PyPI", connect["claude-desktop"]): "/opt/vestige-bridge",
        ("the plugin", connect["openclaw-plugin"]): "npm-pack:",
    }
    for (form, text), source in before.items():
        found = re.search(PUBLISHED[form], text)
        assert found is not None, form
        assert found.start() < text.index(source)
    assert {form for form, _ in before} == PUBLISHED.keys()
    assert "ghcr.io/example/" in made["README.md"], "names of images are in lower case"
    assert f"<!-- mcp-name: {release_check.server_json('Example', '1')['name']} -->" in made["README.md"]
    assert len(made["README.md"].splitlines()) <= 150
    # The section of the page that explains how to install the released chart.
    heading = re.search(r"\]\(#([\w-]+)\)", generate.published("Example", "1.2.3")["published-deployment"])
    assert heading is not None
    assert heading[1] in anchors(made["docs/deployment.md"])


def test_the_parts_of_a_page_can_be_filled_and_emptied_again() -> None:
    parts = {"values": generate.values_table(generate.VALUES.read_text())}
    for name in generate.PAGES:
        text = (ROOT / name).read_text()
        with_release = generate.filled(text, parts | generate.published("example", "1.2.3"))
        without = generate.filled(with_release, parts | generate.published("", "1.2.3"))
        assert len(with_release) > len(without)
        assert generate.filled(without, parts | generate.published(OWNER, version.version())) == text


def test_the_table_of_values_has_every_value_of_the_chart() -> None:
    def leaves(values: dict[str, Any], parent: str = "") -> set[str]:
        found = {f"{parent}{key}": value for key, value in values.items()}
        return set().union(
            *(leaves(it, f"{name}.") if isinstance(it, dict) and it else {name} for name, it in found.items())
        )

    rows = dict(
        re.findall(r"^\| `([\w.]+)` \| (.*?) \| \S", generate.values_table(generate.VALUES.read_text()), re.MULTILINE)
    )
    assert rows["auth.secretKey"] == "`token`"
    assert rows["metrics.podMonitor"] == ""
    assert rows["bridgeResources"] == "`{requests: {cpu: 100m, memory: 96Mi}, limits: {cpu: 500m, memory: 256Mi}}`"
    described_by = {
        leaf: [name for name in rows if f"{leaf}.".startswith(f"{name}.")]
        for leaf in leaves(yaml.safe_load(generate.VALUES.read_text()))
    }
    assert [leaf for leaf, names in described_by.items() if not names] == []


def test_a_value_without_a_comment_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^a\.c has no comment"):
        generate.values_table("a:\n  # -- A value.\n  b: 1\n\n  c: 2\n")
