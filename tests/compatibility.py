"""Writes the results of compatibility tests into a page of ``docs/``."""

from __future__ import annotations

import datetime as dt
import json
import re
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

from harness import ROOT

BRIDGE_VERSION = f"vestige-bridge {version('vestige-bridge')}"
PAGE = ROOT / "docs/compatibility.md"


def package_version(folder: Path) -> str:
    """Returns the name and the version of an installed npm package."""
    package = json.loads((folder / "package.json").read_text())
    return f"{package['name']} {package['version']}"


def write_section(name: str, report: str, versions: Iterable[str], page: Path = PAGE) -> None:
    """Writes a report, with today's date and the tested versions, between the two markers of that name in the page."""
    today = dt.datetime.now(tz=dt.UTC).date()
    text = f"Measured on {today} with {', '.join(versions)}.\n\n{report}"
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    text_before = page.read_text()
    written, count = re.subn(
        f"{re.escape(begin)}.*?{re.escape(end)}", lambda _: f"{begin}\n\n{text}\n\n{end}", text_before, flags=re.DOTALL
    )
    if count != 1:
        raise ValueError(f"{page} has no place for {name}")
    page.write_text(written)
