"""The command ``connect``: how a client is connected, printed for a person; it writes nothing.

The page ``docs/clients.md`` is made from the same data.
"""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from pathlib import Path
from typing import Final

from vestige_bridge.cli.client_catalog import BY_KEY, CLIENTS, TOKEN_VARIABLE, McpClient, Step, Target, past_proxy
from vestige_bridge.cli.published import OWNER

_WIDTH: Final = 100
_DOCUMENTED: Final = Target("http://127.0.0.1:8000/mcp", TOKEN_VARIABLE, "/path/to/vestige-bridge", "/home/you")

_PREAMBLE: Final = """\
# Connect a client

`vestige-bridge connect CLIENT` prints what stands here with the address of your bridge filled in; without `CLIENT` it
lists the clients. This page is made from the same data, by `make generated`.

Each example has the address that `make dev` serves, `http://127.0.0.1:8000/mcp`. The token comes from the environment
variable `VESTIGE_AUTH_TOKEN`; `--token-env NAME` names another. After `make dev` it is in `.env` of the
checkout; run this in its folder:

```sh
export VESTIGE_AUTH_TOKEN="$(sed -n 's/^VESTIGE_AUTH_TOKEN=//p' .env)"
```

A client that is started from a menu or a dock does not see what a shell exports: start it from that shell, or set the
variable for your desktop. Where `HTTP_PROXY` is set, set `NO_PROXY=127.0.0.1,localhost` as well; otherwise a client
asks the proxy for this machine.

[compatibility.md](compatibility.md) shows what was measured with the SDKs and the Inspector.
"""

_UNTRIED: Final = """\
# Clients that were not tried

These cannot be installed where the tests run. What stands here comes from the page that each names.
"""


def print_clients() -> None:
    """Prints the clients that the command names."""
    width = max(map(len, BY_KEY))
    for client in BY_KEY.values():
        print(f"{client.key:{width}}  {client.title}")
    print("\n`vestige-bridge connect CLIENT` says how it is connected; docs/clients.md has these and more.")


def print_client(key: str, url: str, token_variable: str) -> None:
    """Prints how a client is connected.

    Parameters:
        key: the client.
        url: where the bridge answers, without the path of its endpoint.
        token_variable: the environment variable that holds the token.
    """
    direct = past_proxy(url, os.environ)
    target = Target(f"{url}/mcp", token_variable, _command(), str(Path.home()), direct)
    print(described(BY_KEY[key], target, has_token=bool(os.environ.get(token_variable)), owner=OWNER))


def described(client: McpClient, target: Target, *, owner: str, has_token: bool = False) -> str:
    """How a client is connected, for a terminal.

    Parameters:
        client: the client.
        target: what is filled in.
        owner: who publishes the releases; empty while there is none.
        has_token: whether the variable that holds the token is set already.
    """
    parts = [client.title]
    if client.needs_variable and not has_token:
        parts.append(
            f"The token is in an environment variable, which the client needs when it starts:\n\n"
            f"export {target.token_variable}=…"
        )
    parts += [_step_for_terminal(step, target) for step in client.steps_for(owner)]
    if not client.tried:
        parts.append(_filled_paragraph(f"Not tried here; from {client.source}"))
    return "\n\n".join(parts)


def page(owner: str = OWNER) -> str:
    """The page ``docs/clients.md``.

    Parameters:
        owner: who publishes the releases; empty while there is none.
    """
    named = [_section(client, owner) for client in CLIENTS if client.in_command]
    others = [_section(client, owner) for client in CLIENTS if not client.in_command]
    return "\n".join([_PREAMBLE, *named, _UNTRIED, *others])


def _step_for_terminal(step: Step, target: Target) -> str:
    lines = [_filled_paragraph(target.filled(step.says))]
    files = step.files or {}
    width = max(map(len, files), default=0)
    lines += [f"  {platform + ':':{width + 1}} {path}" for platform, path in files.items()]
    return "\n".join(lines) + "\n\n" + target.filled(step.text)


def _section(client: McpClient, owner: str) -> str:
    parts = [f"## {client.title}", *(_step_for_page(step) for step in client.steps_for(owner))]
    if client.tried:
        parts.append(f"Tried: {client.tried}")
    if client.source:
        parts.append(f"{'See' if client.tried else 'Not tried;'} {'' if client.tried else 'from '}<{client.source}>.")
    return "\n\n".join(parts) + "\n"


def _step_for_page(step: Step) -> str:
    files = "".join(f"- {platform}: `{path}`\n" for platform, path in (step.files or {}).items())
    text = f"```{step.language}\n{_DOCUMENTED.filled(step.text)}\n```"
    return f"{step.says}\n\n{files}\n{text}" if files else f"{step.says}\n\n{text}"


def _filled_paragraph(text: str) -> str:
    return textwrap.fill(text, _WIDTH, break_long_words=False, break_on_hyphens=False)


def _command() -> str:
    """The path of the command, beside the Python that runs it."""
    return shutil.which("vestige-bridge", path=str(Path(sys.executable).parent)) or "vestige-bridge"
