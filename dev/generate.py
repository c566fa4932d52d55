"""Generates files from other files: pages, parts of pages, and the completion for each shell.

`make generated` runs it; a test checks that the files are up to date. A generated part of a page is between the marks
`<!-- made: NAME -->` and `<!-- end -->`; the rest of that page is written by hand.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import shtab
import yaml
from version import version

from vestige_bridge.cli.connect import page
from vestige_bridge.cli.parser import SHELLS, build_parser
from vestige_bridge.cli.published import OWNER

ROOT = Path(__file__).resolve().parent.parent
VALUES = ROOT / "charts/vestige/values.yaml"
PAGES = ("README.md", "charts/vestige/README.md", "docs/deployment.md", "openclaw-plugin/README.md")
"""The pages with generated parts."""

_MADE = re.compile(r"<!-- made: ([\w-]+) -->.*?<!-- end -->", re.DOTALL)


def generated(owner: str = OWNER) -> Iterator[tuple[Path, str]]:
    """Yields each generated file and its text.

    Parameters:
        owner: the GitHub account that publishes the releases; empty if there is none.
    """
    yield ROOT / "docs/clients.md", page(owner)
    for shell in SHELLS:
        yield ROOT / "src/vestige_bridge/cli/completions" / shell, f"{shtab.complete(build_parser(), shell).rstrip()}\n"
    parts = {"values": values_table(VALUES.read_text())} | published(owner, version())
    for name in PAGES:
        yield ROOT / name, filled((ROOT / name).read_text(), parts)


def filled(text: str, parts: dict[str, str]) -> str:
    """Returns the page with its generated parts replaced; an empty part is a single line."""

    def part(match: re.Match[str]) -> str:
        made = parts[match[1]]
        between = f"\n{made}\n" if made else ""
        return f"<!-- made: {match[1]} -->{between}<!-- end -->"

    return _MADE.sub(part, text)


def published(owner: str, release: str) -> dict[str, str]:
    """Returns the parts that name published packages and images; each is empty until there is a release.

    Parameters:
        owner: the GitHub account that publishes the releases.
        release: the version of the package.
    """
    registry = f"ghcr.io/{owner.lower()}"
    install = f"""\
helm install vestige oci://{registry}/charts/vestige --version {release} --namespace openclaw \\
  --set vestigeImage.repository={registry}/vestige-mcp \\
  --set bridgeImage.repository={registry}/vestige-bridge \\
  --set auth.existingSecret=vestige-auth"""
    owned = f"<!-- mcp-name: io.github.{owner}/vestige-bridge -->"
    run = "docker run --rm --publish 127.0.0.1:8000:8000 --env VESTIGE_MCP_URL --env VESTIGE_AUTH_TOKEN"
    parts = {
        "published-bridge": f"""\
A release needs no checkout: install it, run it once with `uvx vestige-bridge`, or run it in a container: {owned}

```sh
pipx install vestige-bridge
{run} {registry}/vestige-bridge:v{release}
```""",
        "published-deployment": f"""\
## Install a release

The images and the chart of a release need no checkout and no build. Make the namespace and the Secret as in
[section 2](#2-make-the-token), then install:

```sh
{install}
```

Every image and the chart are signed by the workflow that built them. [cosign](https://docs.sigstore.dev) checks it:

```sh
cosign verify {registry}/vestige-bridge:v{release} \\
  --certificate-identity-regexp '^https://github.com/{owner}/' \\
  --certificate-oidc-issuer https://token.actions.githubusercontent.com
```

The sections that follow build the same images and install the same chart from a checkout.""",
        "published-chart": f"""\
```sh
{install}
```

From a checkout:""",
        "published-plugin": """\
The released plugin:

```sh
openclaw plugins install npm:openclaw-plugin-vestige
```

From a checkout:""",
    }
    return parts if owner else dict.fromkeys(parts, "")


def values_table(text: str) -> str:
    """Returns the table of the chart's values, with their defaults and the comments above them.

    Parameters:
        text: the text of ``values.yaml``, in which the comment of a value begins with ``# --``.

    Raises:
        ValueError: neither a value nor a mapping that contains it has such a comment.
        TypeError: there are no values.
    """
    root = yaml.compose(text, yaml.SafeLoader)
    if not isinstance(root, yaml.MappingNode):
        raise TypeError("the values are no mapping")
    rows = ["| value | default | meaning |", "|---|---|---|"]
    for name, default, meaning in _values(root.value, text):
        cell = meaning.replace("|", "\\|").replace("<", "\\<")
        rows.append(f"| `{name}` | {f'`{default}`' if default else ''} | {cell} |")
    return "\n".join(rows)


def _values(
    pairs: Iterable[tuple[yaml.Node, yaml.Node]], text: str, parent: str = ""
) -> Iterator[tuple[str, str, str]]:
    for key, value in pairs:
        name, meaning = f"{parent}{key.value}", _comment(text, key.start_mark.line)
        inside = value.value if isinstance(value, yaml.MappingNode) else []
        is_described_inside = any(_comment(text, it.start_mark.line) for it, _ in inside)
        if meaning:
            yield name, "" if is_described_inside else _written(value, text), meaning
        elif not is_described_inside:
            raise ValueError(f"{name} has no comment that begins with # --")
        if is_described_inside:
            yield from _values(inside, text, f"{name}.")


def _comment(text: str, line: int) -> str:
    """Returns the comment above a line; empty if there is none, or if it does not describe a value."""
    lines = text.splitlines()
    above: list[str] = []
    while line and lines[line - 1].lstrip().startswith("#"):
        line -= 1
        above.insert(0, lines[line].strip().removeprefix("#").strip())
    return " ".join(above)[2:].strip() if above and above[0].startswith("--") else ""


def _written(node: yaml.Node, text: str) -> str:
    """Returns the value on one line, with scalars as in the file."""
    if isinstance(node, yaml.ScalarNode):
        return text[node.start_mark.index : node.end_mark.index].strip()
    if isinstance(node, yaml.MappingNode):
        return "{" + ", ".join(f"{_written(key, text)}: {_written(value, text)}" for key, value in node.value) + "}"
    return "[" + ", ".join(_written(value, text) for value in node.value) + "]"


if __name__ == "__main__":
    for file, text in generated():
        file.write_text(text)
