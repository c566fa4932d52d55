"""The command ``connect``: prints how to connect a client. It changes no file.

The page ``docs/clients.md`` is generated from the same data.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import textwrap
from pathlib import Path
from typing import Final

from vestige_bridge.cli.client_catalog import (
    BY_KEY,
    CLIENTS,
    ENVIRONMENT,
    TOKEN_VARIABLE,
    McpClient,
    Step,
    Target,
    past_proxy,
)
from vestige_bridge.cli.published import OWNER

_WIDTH: Final = 100
_DOCUMENTED: Final = Target("http://127.0.0.1:8000/mcp", TOKEN_VARIABLE, "/path/to/vestige-bridge", "/home/you")

_PREAMBLE: Final = """\
<!-- Generated from src/vestige_bridge/cli/client_catalog.py by `make generated`; do not edit. -->

# Connect a client

`vestige-bridge connect CLIENT` prints the section for one client, with the address of your bridge and the paths of
your machine. `vestige-bridge connect` lists the clients. The command is in `.venv/bin` of the checkout.

The examples use `http://127.0.0.1:8000/mcp`, the address of `make dev`. Replace it with the address of your bridge.

## Set the token

Most examples read the token from the environment variable `VESTIGE_AUTH_TOKEN`. `connect CLIENT --token-env NAME` uses
another variable. `make dev` writes the token to `.env` in the checkout. Run this in the checkout:

```sh
export VESTIGE_AUTH_TOKEN="$(sed -n 's/^VESTIGE_AUTH_TOKEN=//p' .env)"
```

- A client that you start from a menu or a dock does not get the variables of your shell. Start it from the shell. Or
  set the variable for your desktop session: with `launchctl setenv` on macOS, in `~/.config/environment.d/` on Linux
  with systemd, or as a user variable on Windows.
- If `HTTP_PROXY` is set, also add `127.0.0.1,localhost` to `NO_PROXY`. Otherwise clients send requests for the local
  bridge to the proxy.
- The `npm` and `pip` in `.venv/bin` install into the checkout. Install clients in a terminal without `.venv/bin` on
  `PATH`.
- If a configuration file exists, add the entry to it and keep its other entries.

## Which clients are tested

[compatibility.md](compatibility.md) has the test results of the SDKs and the Inspector. Instructions that are not
tested come from the page of the vendor that each section names.
"""

_OTHERS: Final = """\
## Other clients

`vestige-bridge connect` does not have these clients. They cannot be installed in the test environment.
"""


def print_clients() -> None:
    """Prints the clients of the command."""
    width = max(map(len, BY_KEY))
    for client in BY_KEY.values():
        print(f"{client.key:{width}}  {client.title}")
    print("\n`vestige-bridge connect CLIENT` prints how to connect it. docs/clients.md has more clients.")


def print_client(key: str, url: str, token_variable: str) -> None:
    """Prints how to connect a client.

    Parameters:
        key: the client.
        url: the address of the bridge, without the path of its endpoint.
        token_variable: the environment variable that holds the token.
    """
    direct = past_proxy(url, os.environ)
    target = Target(f"{url}/mcp", token_variable, _command(), str(Path.home()), direct)
    print(described(BY_KEY[key], target, has_token=bool(os.environ.get(token_variable)), owner=OWNER))


def described(client: McpClient, target: Target, *, owner: str, has_token: bool = False) -> str:
    """How to connect a client, for a terminal.

    Parameters:
        client: the client.
        target: the values of the placeholders.
        owner: who publishes the releases; empty while there is none.
        has_token: whether the variable that holds the token is set.
    """
    parts = [client.title]
    if client.reads_from == ENVIRONMENT and not has_token:
        parts.append(f"Set the token before you start the client:\n\nexport {target.token_variable}=…")
    parts += [_step_for_terminal(step, target) for step in client.steps_for(owner)]
    if not client.tested:
        parts.append(_filled_paragraph(f"Not tested. Source: {client.source}"))
    return "\n\n".join(parts)


def page(owner: str = OWNER) -> str:
    """The page ``docs/clients.md``.

    Parameters:
        owner: who publishes the releases; empty while there is none.
    """
    named = [_section(client, owner) for client in CLIENTS if client.in_command]
    others = [f"#{_section(client, owner)}" for client in CLIENTS if not client.in_command]
    return "\n".join([_PREAMBLE, _overview(), *named, _OTHERS, *others])


def _overview() -> str:
    rows = ["| client | tested | reads the token from |", "|---|---|---|"]
    for client in CLIENTS:
        tested = {"Tested": "yes", "Partly tested": "partly"}.get(client.tested.partition(":")[0], "no")
        rows.append(f"| [{client.title}](#{_anchor(client.title)}) | {tested} | {client.reads_from} |")
    return "\n".join(rows) + "\n"


def _step_for_terminal(step: Step, target: Target) -> str:
    lines = [_filled_paragraph(target.filled(step.says))]
    files = step.files or {}
    width = max(map(len, files), default=0)
    lines += [f"  {platform + ':':{width + 1}} {path}" for platform, path in files.items()]
    return "\n".join(lines) + "\n\n" + target.filled(step.text)


def _section(client: McpClient, owner: str) -> str:
    parts = [f"## {client.title}", *(_step_for_page(step) for step in client.steps_for(owner))]
    if client.tested:
        parts.append(client.tested)
    if client.source:
        parts.append(f"{'See also' if client.tested else 'Not tested. Source:'} <{client.source}>.")
    return "\n\n".join(parts) + "\n"


def _step_for_page(step: Step) -> str:
    files = "".join(f"- {platform}: `{path}`\n" for platform, path in (step.files or {}).items())
    text = f"```{step.language}\n{_DOCUMENTED.filled(step.text)}\n```"
    return f"{step.says}\n\n{files}\n{text}" if files else f"{step.says}\n\n{text}"


def _anchor(title: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^a-z0-9 _-]", "", title.lower()).replace(" ", "-")


def _filled_paragraph(text: str) -> str:
    return textwrap.fill(text, _WIDTH, break_long_words=False, break_on_hyphens=False)


def _command() -> str:
    """The path of the command, beside the Python that runs it."""
    return shutil.which("vestige-bridge", path=str(Path(sys.executable).parent)) or "vestige-bridge"
