"""The documents say what is true: every setting, every target, every room, one version."""

from __future__ import annotations

import logging
import re
import subprocess
from configparser import ConfigParser
from pathlib import Path

import pytest

from harness import ROOT, Bridge, until
from vestige_bridge import __version__
from vestige_bridge.auth import REFUSALS
from vestige_bridge.errors import REASONS
from vestige_bridge.logs import FIELDS
from vestige_bridge.monitor import State
from vestige_bridge.settings import describe

DOCUMENTS = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]
VARIABLES = {variable: default for variable, default, _ in describe()}
DOCKER = "\n".join(path.read_text() for path in [*ROOT.glob("docker/Dockerfile.*"), ROOT / "docker/compose.yaml"])


def test_every_setting_is_documented_with_its_default() -> None:
    table = re.findall(
        r"^\| `(VESTIGE_\w+)` \| (?:`(.*?)`|none) \|", (ROOT / "docs/settings.md").read_text(), re.MULTILINE
    )
    assert len(table) == len(dict(table))
    assert dict(table) == VARIABLES | {"VESTIGE_MCP_PORT": "3100"}


def test_every_setting_stands_in_the_example_with_its_default() -> None:
    example = re.findall(r"^#(VESTIGE_\w+)=(.*)$", (ROOT / ".env.example").read_text(), re.MULTILINE)
    assert len(example) == len(dict(example))
    assert dict(example) == VARIABLES | {"VESTIGE_MCP_PORT": "3100"}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_a_document_names_only_settings_that_exist(document: Path) -> None:
    named = set(re.findall(r"\bVESTIGE_[A-Z0-9_]*[A-Z0-9]\b", document.read_text()))
    docker = set(re.findall(r"(?:ARG |\$\{)(VESTIGE_[A-Z0-9_]+)", DOCKER))
    assert named <= VARIABLES.keys() | {"VESTIGE_MCP_PORT"} | docker


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_the_links_of_a_document_lead_somewhere(document: Path) -> None:
    links = re.findall(r"\]\((?!https?://|#)([^)#]+)", document.read_text())
    assert [link for link in links if not (document.parent / link).exists()] == []


def test_every_make_target_that_is_named_exists() -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE))
    text = "\n".join(document.read_text() for document in DOCUMENTS)
    named = set(re.findall(r"(?:^|`)make ([a-z0-9-]+)", text, re.MULTILINE))
    assert named
    assert named <= targets


def test_make_alone_lists_the_targets_by_section() -> None:
    said = subprocess.run(["make"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert re.search(r"^Run$", said, re.MULTILINE)
    for target in ("dev", "test", "lint", "format", "coverage", "clean", "help"):
        assert re.search(rf"^  make {target} +\S.*\.$", said, re.MULTILINE)


def test_the_architecture_draws_every_room_and_no_other() -> None:
    text = (ROOT / "docs/architecture.md").read_text()
    drawn = {room for cell in re.findall(r"^\| (`.*?) \|", text, re.MULTILINE) for room in re.findall(r"`(\w+)`", cell)}
    rooms = {path.stem for path in (ROOT / "src/vestige_bridge").glob("*.py")} - {"__init__"}
    assert drawn == rooms


async def test_every_metric_is_documented_with_its_type_and_its_labels(scripted: Bridge) -> None:
    await until(scripted.ready)
    await scripted.call("read")
    table = re.findall(
        r"^\| `(vestige_bridge_\w+)` \| (\w+) \| ([\w, ]*) ?\|",
        (ROOT / "docs/operations.md").read_text(),
        re.MULTILINE,
    )
    assert len(table) == len({name for name, _, _ in table})
    assert scripted.metrics is not None
    families = {family.name: family for family in scripted.metrics.collect()}
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
    assert {*REASONS.values(), *REFUSALS, *State} <= named


def test_every_alert_is_documented_and_no_other() -> None:
    alerts = re.findall(r"- alert: (\w+)", (ROOT / "charts/vestige/files/alerts.yaml").read_text())
    assert re.findall(r"^\*\*(Vestige\w+)\.\*\*", (ROOT / "docs/operations.md").read_text(), re.MULTILINE) == alerts


@pytest.mark.parametrize("file", ["docs/operations.md", "charts/vestige/files/alerts.yaml"])
async def test_every_metric_that_is_named_exists(scripted: Bridge, file: str) -> None:
    await until(scripted.ready)
    await scripted.call("read")
    assert scripted.metrics is not None
    told = {sample.name for family in scripted.metrics.collect() for sample in family.samples}
    told |= {family.name for family in scripted.metrics.collect()}
    named = set(re.findall(r"\bvestige_bridge_\w+", (ROOT / file).read_text()))
    assert named
    assert named <= told


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
    rows = re.findall(r"^\| (?!they|it|---)(.*) \|$", text, re.MULTILINE)
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


def test_the_version_is_one_everywhere() -> None:
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    released = re.findall(r"^## \[(\d.*?)\] - \d{4}-\d\d-\d\d$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert setup["metadata"]["version"] == __version__ == released[0]


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_lockfiles_hold_no_registry_addresses() -> None:
    lockfiles = [ROOT / "docker/gateway/package-lock.json", ROOT / "tests/package-lock.json"]
    assert [path for path in lockfiles if "resolved" in path.read_text()] == []
