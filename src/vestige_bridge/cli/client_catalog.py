"""How to connect each MCP client: the data of ``vestige-bridge connect`` and ``docs/clients.md``.

Invariant: no text contains a token. It names the environment variable of the token, or the client asks for the token.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

import vestige_bridge

TOKEN_VARIABLE: Final = "VESTIGE_AUTH_TOKEN"  # noqa: S105
NAME: Final = "vestige"
"""The name of the bridge in the configuration of a client."""

ENVIRONMENT: Final = "environment variable"
"""Where most clients read the token."""

_TOKEN_FILE: Final = "~/.config/vestige-bridge/token"  # noqa: S105


PROXIES: Final = ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY")
"""The environment variables in which curl looks for an HTTP proxy."""


@dataclass(frozen=True, slots=True)
class Target:
    """The values of the placeholders in the texts.

    Attributes:
        url: the endpoint of the bridge, with its path.
        token_variable: the environment variable that holds the token.
        command: the path of ``vestige-bridge``, for clients that start it as a stdio server.
        home: the home directory, for clients that need absolute paths.
        past_proxy: the option with which curl uses no proxy, followed by a space; empty if it is not needed.
    """

    url: str
    token_variable: str
    command: str
    home: str
    past_proxy: str = ""

    def filled(self, text: str) -> str:
        """The text with the placeholders replaced."""
        origin = self.url.removesuffix("/mcp")
        values = {"%url%": self.url, "%origin%": origin, "%token%": self.token_variable}
        values |= {"%command%": self.command, "%token-file%": _TOKEN_FILE.replace("~", self.home)}
        values["%past-proxy%"] = self.past_proxy
        if "%version%" in text:
            values["%version%"] = vestige_bridge.__version__
        for placeholder, value in values.items():
            text = text.replace(placeholder, value)
        return text


def past_proxy(url: str, environ: Mapping[str, str]) -> str:
    """The option with which curl uses no proxy for a loopback address; empty if the environment names no proxy.

    Parameters:
        url: the address.
        environ: the environment.
    """
    local = urlsplit(url).hostname in {"127.0.0.1", "::1", "localhost"}
    return "--noproxy '*' " if local and any(environ.get(name) for name in PROXIES) else ""


@dataclass(frozen=True, slots=True)
class Step:
    """One instruction.

    Attributes:
        says: the instruction, in sentences.
        text: the commands to run, or the text of a file.
        language: the language of the text.
        files: the path of the file, by platform; none if the text is to be run.
        needs_release: whether it installs a published package; it is left out until there is one.
    """

    says: str
    text: str
    language: str = "sh"
    files: Mapping[str, str] | None = None
    needs_release: bool = False


@dataclass(frozen=True, slots=True)
class McpClient:
    """A client, and how to connect it.

    Attributes:
        key: its name on the command line.
        title: its name in texts.
        steps: the instructions, in order.
        tested: how the tests use these instructions, a sentence that begins with ``Tested`` or ``Partly tested``; empty
            if they do not.
        source: the address of the vendor's page, for instructions that are not, or only partly, tested.
        in_command: whether ``vestige-bridge connect`` has it.
        reads_from: where the client reads the token.
    """

    key: str
    title: str
    steps: tuple[Step, ...]
    tested: str = ""
    source: str = ""
    in_command: bool = True
    reads_from: str = ENVIRONMENT

    def steps_for(self, owner: str) -> list[Step]:
        """The instructions that can be followed.

        Parameters:
            owner: who publishes the releases; empty while there is none.
        """
        return [step for step in self.steps if owner or not step.needs_release]


def claude_code(url: str, token: str) -> str:
    """The command that connects Claude Code.

    Parameters:
        url: the endpoint of the bridge.
        token: the token, or its placeholder, such as ``${VESTIGE_AUTH_TOKEN}``; empty if none is needed.
    """
    header = ["--header", f"Authorization: Bearer {token}"] if token else []
    return shlex.join(["claude", "mcp", "add", "--scope", "user", "--transport", "http", NAME, url, *header])


_CLAUDE_CODE = McpClient(
    "claude-code",
    "Claude Code",
    (
        Step(
            "If Claude Code is not installed, run `npm install -g @anthropic-ai/claude-code`. Then add the bridge for "
            "all your projects. Claude Code stores the name of the variable and reads its value at each start. "
            "Therefore start Claude Code from a shell in which the variable is set. If the command below reports that "
            "a "
            "server named `vestige` exists, run `claude mcp remove vestige --scope user`, then the command again.",
            claude_code("%url%", "${%token%}"),
        ),
        Step("Check the connection. The line of `vestige` ends with `Connected`.", "claude mcp list"),
    ),
    tested="Tested: `make interop-all` runs `claude mcp add` and `claude mcp list`.",
)

_CODEX = McpClient(
    "codex",
    "Codex CLI",
    (
        Step(
            "If Codex is not installed, run `npm install -g @openai/codex`. Then add the bridge. Codex stores the "
            "name of the variable, so start Codex from a shell in which the variable is set.",
            "codex mcp add vestige --url %url% --bearer-token-env-var %token%",
        ),
        Step("Check the stored entry.", "codex mcp get vestige"),
    ),
    tested="Partly tested: `make interop-all` runs both commands. It does not test the connection of "
    "Codex to the bridge.",
)

_CURSOR = McpClient(
    "cursor",
    "Cursor",
    (
        Step(
            "Add this to the configuration file of Cursor. Then quit Cursor and start it from a shell in which the "
            "variable is set.",
            """\
{
  "mcpServers": {
    "vestige": {
      "url": "%url%",
      "headers": { "Authorization": "Bearer ${env:%token%}" }
    }
  }
}""",
            "json",
            {"macOS, Linux": "~/.cursor/mcp.json", "Windows": r"%USERPROFILE%\.cursor\mcp.json"},
        ),
    ),
    source="https://cursor.com/docs/mcp",
)

_VS_CODE = McpClient(
    "vscode",
    "VS Code",
    (
        Step(
            "For one project, add this to the file below. For all projects, run *MCP: Open User Configuration* from "
            "the Command Palette and add it to the file that opens. VS Code asks for the token once and keeps it in "
            "its secret storage.",
            """\
{
  "inputs": [
    { "type": "promptString", "id": "vestige-token", "description": "Token of vestige-bridge", "password": true }
  ],
  "servers": {
    "vestige": {
      "type": "http",
      "url": "%url%",
      "headers": { "Authorization": "Bearer ${input:vestige-token}" }
    }
  }
}""",
            "json",
            {"one project": ".vscode/mcp.json"},
        ),
    ),
    source="https://code.visualstudio.com/docs/copilot/chat/mcp-servers",
    reads_from="prompt of VS Code",
)

_CLAUDE_DESKTOP_FILES: Final = {
    "macOS": "~/Library/Application Support/Claude/claude_desktop_config.json",
    "Linux": "~/.config/Claude/claude_desktop_config.json",
    "Windows": r"%APPDATA%\Claude\claude_desktop_config.json",
}

_CLAUDE_DESKTOP = McpClient(
    "claude-desktop",
    "Claude Desktop",
    (
        Step(
            "The configuration file of Claude Desktop takes only stdio servers, and Claude Desktop usually starts "
            "from a menu, without the variables of your shell. Therefore store the token in a file. This command is "
            "for "
            "macOS and Linux; on Windows, save the token as the only line of a text file. `VESTIGE_AUTH_TOKEN` must "
            "not "
            "be set for Claude Desktop.",
            f"""\
(umask 077 && mkdir -p {_TOKEN_FILE.rpartition("/")[0]} && printf '%s\\n' "$%token%" > {_TOKEN_FILE})""",
        ),
        Step(
            "With uv: add this to the configuration file of Claude Desktop and restart Claude Desktop. The path of the "
            "token's file must be absolute. If Claude Desktop does not find `uvx`, write its absolute path.",
            """\
{
  "mcpServers": {
    "vestige": {
      "command": "uvx",
      "args": ["vestige-bridge", "stdio", "--url", "%origin%"],
      "env": { "VESTIGE_AUTH_TOKEN_FILE": "%token-file%" }
    }
  }
}""",
            "json",
            _CLAUDE_DESKTOP_FILES,
            needs_release=True,
        ),
        Step(
            "Add this to the configuration file of Claude Desktop and restart Claude Desktop. Both paths must be "
            "absolute; `command -v vestige-bridge` (on Windows, `where.exe vestige-bridge`) prints the first.",
            """\
{
  "mcpServers": {
    "vestige": {
      "command": "%command%",
      "args": ["stdio", "--url", "%origin%"],
      "env": { "VESTIGE_AUTH_TOKEN_FILE": "%token-file%" }
    }
  }
}""",
            "json",
            _CLAUDE_DESKTOP_FILES,
        ),
    ),
    tested="Partly tested: `make interop` starts this command from the SDKs, not from Claude Desktop.",
    source="https://modelcontextprotocol.io/docs/develop/connect-local-servers",
    reads_from="file",
)

_INSPECTOR = McpClient(
    "inspector",
    "MCP Inspector",
    (
        Step(
            "This command lists the tools. It needs Node.",
            "npx -y @modelcontextprotocol/inspector --cli %url% --transport http "
            '--header "Authorization: Bearer $%token%" --method tools/list',
        ),
    ),
    tested="Tested: `make interop` runs this command with the version of the Inspector that is pinned in the checkout.",
)

_OPENCLAW_PLUGIN = McpClient(
    "openclaw-plugin",
    "OpenClaw with the plugin",
    (
        Step(
            "Install the plugin from npm, or build it as the next step describes. You need OpenClaw 2026.9.6 or newer. "
            "With `--force --accept-capabilities`, OpenClaw accepts the plugin's capabilities without a question.",
            "openclaw plugins install npm:openclaw-plugin-vestige --force --accept-capabilities",
            needs_release=True,
        ),
        Step(
            "You need OpenClaw 2026.9.6 or newer (`npm install -g openclaw`) and Node 24.16 or newer. Do not use the "
            "Node that `make dev` installed in `.venv/bin`: OpenClaw cannot use the npm that belongs to it. In a "
            "checkout "
            "of vestige-bridge, build the plugin and install it. With `--force --accept-capabilities`, OpenClaw "
            "accepts "
            "the plugin's capabilities without a question.",
            """\
cd openclaw-plugin
npm ci --ignore-scripts
npm pack
openclaw plugins install npm-pack:./openclaw-plugin-vestige-%version%.tgz --force --accept-capabilities""",
        ),
        Step(
            "The installation added the entry `vestige` to the configuration file. Add `config` to that entry and "
            "keep the other entries. `serverUrl` may end with `/mcp` or not. Instead of editing the file, you can run "
            "`openclaw config set plugins.entries.vestige.config` with the value of `config` as JSON in single "
            "quotes, so that "
            "the shell does not replace the variable. Start OpenClaw from a shell in which the variable is set.",
            """\
{
  "plugins": {
    "entries": {
      "vestige": {
        "enabled": true,
        "config": { "serverUrl": "%origin%", "authToken": "${%token%}" }
      }
    }
  }
}""",
            "json",
            {"all platforms": "~/.openclaw/openclaw.json"},
        ),
        Step(
            "Check the connection. OpenClaw takes a few seconds to start. `openclaw vestige search WORD` searches the "
            "shared memory, which includes what other clients stored.",
            "openclaw vestige status",
        ),
    ),
    tested="Tested: `make e2e-openclaw` installs and uses the plugin in OpenClaw.",
)

_OPENCLAW = McpClient(
    "openclaw",
    "OpenClaw without the plugin",
    (
        Step(
            "Without the plugin, agents get the tools of Vestige under the names that Vestige gives them, and all "
            "agents "
            "use one token; the plugin can use one for each agent. Add this to the configuration file and keep its "
            "other entries.",
            """\
{
  "mcp": {
    "servers": {
      "vestige": {
        "url": "%url%",
        "transport": "streamable-http",
        "headers": { "Authorization": "Bearer ${%token%}" }
      }
    }
  }
}""",
            "json",
            {"all platforms": "~/.openclaw/openclaw.json"},
        ),
        Step("Check the connection. The command prints the number of tools.", "openclaw mcp probe vestige"),
    ),
    tested="Tested: `make interop-all` writes this to a new configuration file and runs `openclaw mcp probe vestige`.",
)

_PYTHON_2 = McpClient(
    "python",
    "Python, mcp 2.x",
    (
        Step(
            "Make a virtual environment: `python3 -m venv ~/mcp2 && ~/mcp2/bin/pip install 'mcp>=2,<3'` (this also "
            "installs httpx2). Save the script as `tools.py` and run it with `~/mcp2/bin/python tools.py`. It lists "
            "the tools.",
            """\
import asyncio
import os

import httpx2
from mcp.client import Client
from mcp.client.streamable_http import streamable_http_client

HEADERS = {"Authorization": f"Bearer {os.environ['%token%']}"}


async def main():
    async with (
        httpx2.AsyncClient(headers=HEADERS, timeout=60) as http,
        Client(streamable_http_client("%url%", http_client=http)) as client,
    ):
        for tool in (await client.list_tools()).tools:
            print(tool.name)


asyncio.run(main())""",
            "python",
        ),
    ),
    tested="Tested: `make interop` runs this script.",
)

_PYTHON_1 = McpClient(
    "python-1",
    "Python, mcp 1.x",
    (
        Step(
            "Make a virtual environment: `python3 -m venv ~/mcp1 && ~/mcp1/bin/pip install 'mcp<2'`. Save the script "
            "as `tools.py` and run it with `~/mcp1/bin/python tools.py`. It lists the tools.",
            """\
import asyncio
import os

from mcp import ClientSession
from mcp.client.streamable_http import streamablehttp_client

HEADERS = {"Authorization": f"Bearer {os.environ['%token%']}"}


async def main():
    async with (
        streamablehttp_client("%url%", headers=HEADERS) as (read, write, _),
        ClientSession(read, write) as session,
    ):
        await session.initialize()
        for tool in (await session.list_tools()).tools:
            print(tool.name)


asyncio.run(main())""",
            "python",
        ),
    ),
    tested="Tested: `make interop` runs this script.",
)

_FASTMCP = McpClient(
    "fastmcp",
    "Python, FastMCP",
    (
        Step(
            "Make a virtual environment: `python3 -m venv ~/fastmcp && ~/fastmcp/bin/pip install fastmcp`. Save the "
            "script as `tools.py` and run it with `~/fastmcp/bin/python tools.py`. It lists the tools.",
            """\
import asyncio
import os

from fastmcp import Client


async def main():
    async with Client("%url%", auth=os.environ["%token%"]) as client:
        for tool in await client.list_tools():
            print(tool.name)


asyncio.run(main())""",
            "python",
        ),
    ),
    tested="Tested: `make interop` runs this script.",
)

_TYPESCRIPT = McpClient(
    "typescript",
    "TypeScript",
    (
        Step(
            "Run `npm install @modelcontextprotocol/client`. Save the script as `tools.mjs` and run it with `node "
            "tools.mjs`. It lists the tools. In the mode `auto`, the client uses the newest protocol version that the "
            "bridge supports.",
            """\
import { Client, StreamableHTTPClientTransport } from '@modelcontextprotocol/client'

const requestInit = { headers: { Authorization: `Bearer ${process.env.%token%}` } }
const client = new Client({ name: 'my-client', version: '1.0.0' }, { versionNegotiation: { mode: 'auto' } })
await client.connect(new StreamableHTTPClientTransport(new URL('%url%'), { requestInit }))
for (const tool of (await client.listTools()).tools) console.log(tool.name)
await client.close()""",
            "js",
        ),
    ),
    tested="Tested: `make interop` runs this script.",
)

_CURL = McpClient(
    "curl",
    "curl",
    (
        Step(
            "Send one POST request. You need no `initialize` and no session id.",
            """\
curl -sS %past-proxy%%url% \\
  -H "Authorization: Bearer $%token%" -H 'Content-Type: application/json' \\
  -d '{"jsonrpc": "2.0", "id": 1, "method": "tools/list"}'""",
        ),
    ),
    tested="Tested: `make test` sends this request.",
)

_ZED = McpClient(
    "zed",
    "Zed",
    (
        Step(
            "Add this to the settings file. It contains the token in plain text: do not commit or share the file.",
            """\
{
  "context_servers": {
    "vestige": {
      "url": "%url%",
      "headers": { "Authorization": "Bearer YOUR-TOKEN" }
    }
  }
}""",
            "json",
            {"macOS, Linux": "~/.config/zed/settings.json"},
        ),
    ),
    source="https://zed.dev/docs/ai/mcp",
    in_command=False,
    reads_from="settings file, in plain text",
)

_WINDSURF = McpClient(
    "windsurf",
    "Windsurf",
    (
        Step(
            "Add this to the configuration file. Then quit Windsurf and start it from a shell in which the variable "
            "is set.",
            """\
{
  "mcpServers": {
    "vestige": {
      "serverUrl": "%url%",
      "headers": { "Authorization": "Bearer ${env:%token%}" }
    }
  }
}""",
            "json",
            {
                "macOS, Linux": "~/.codeium/windsurf/mcp_config.json",
                "Windows": r"%USERPROFILE%\.codeium\windsurf\mcp_config.json",
            },
        ),
    ),
    source="https://docs.windsurf.com/windsurf/cascade/mcp",
    in_command=False,
)

_GEMINI = McpClient(
    "gemini",
    "Gemini CLI",
    (
        Step(
            "Add this to the settings file. Use `httpUrl` (Streamable HTTP), not `url` (SSE).",
            """\
{
  "mcpServers": {
    "vestige": {
      "httpUrl": "%url%",
      "headers": { "Authorization": "Bearer $%token%" }
    }
  }
}""",
            "json",
            {"all platforms": "~/.gemini/settings.json"},
        ),
    ),
    source="https://geminicli.com/docs/tools/mcp-server/",
    in_command=False,
)

_CLAUDE_AI = McpClient(
    "claude-ai",
    "claude.ai",
    (
        Step(
            "claude.ai must reach the bridge over HTTPS from the internet, through an ingress or a reverse proxy that "
            "terminates TLS. In the settings of claude.ai, add a custom connector. Enter the URL of the bridge with "
            "the path `/mcp`, and this request header:",
            "Authorization: Bearer YOUR-TOKEN",
            "text",
        ),
    ),
    source="https://support.claude.com/en/articles/11175166-getting-started-with-custom-connectors-using-remote-mcp",
    in_command=False,
    reads_from="settings of claude.ai",
)

CLIENTS: Final = (
    _CLAUDE_CODE,
    _CODEX,
    _CURSOR,
    _VS_CODE,
    _CLAUDE_DESKTOP,
    _INSPECTOR,
    _OPENCLAW_PLUGIN,
    _OPENCLAW,
    _PYTHON_2,
    _PYTHON_1,
    _FASTMCP,
    _TYPESCRIPT,
    _CURL,
    _ZED,
    _WINDSURF,
    _GEMINI,
    _CLAUDE_AI,
)
"""Every client, in the order of the page."""

BY_KEY: Final = {client.key: client for client in CLIENTS if client.in_command}
"""The clients of ``vestige-bridge connect``."""
