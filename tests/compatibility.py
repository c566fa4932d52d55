"""Writes what was measured into ``docs/compatibility.md``."""

from __future__ import annotations

import datetime as dt
import json
import re
from collections.abc import Iterable
from pathlib import Path

from harness import ROOT

PAGE = ROOT / "docs/compatibility.md"


def package_version(folder: Path) -> str:
    """The name and the version of an installed npm package."""
    package = json.loads((folder / "package.json").read_text())
    return f"{package['name']} {package['version']}"


def write_section(name: str, report: str, versions: Iterable[str]) -> None:
    """Puts a report, with today's date and the versions it is about, between the page's two marks of that name."""
    today = dt.datetime.now(tz=dt.UTC).date()
    text = f"Measured on {today} with {', '.join(versions)}.\n\n{report}"
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    page = PAGE.read_text()
    written, count = re.subn(
        f"{re.escape(begin)}.*?{re.escape(end)}", lambda _: f"{begin}\n\n{text}\n\n{end}", page, flags=re.DOTALL
    )
    if count != 1:
        raise ValueError(f"{PAGE} has no place for {name}")
    PAGE.write_text(written)
