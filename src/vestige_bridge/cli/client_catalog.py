"""How each MCP client is connected: the data behind ``vestige-bridge connect`` and ``docs/clients.md``.

Invariant: no text holds a token. It names the environment variable that holds one, or has the client ask for it.
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
"""What the bridge is called in the configuration of a client."""

_TOKEN_FILE: Final = "~/.config/vestige-bridge/token"  # noqa: S105


PROXIES: Final = ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY")
"""The variables from which curl takes a proxy for http."""


@dataclass(frozen=True, slots=True)
class Target:
    """What is filled into the texts.

    Attributes:
        url: the endpoint of the bridge, with its path.
        token_variable: the environment variable that holds the token.
        command: the path of ``vestige-bridge``, for clients that start it.
        home: the home directory, for files that a client finds only by a whole path.
        past_proxy: curl's option that keeps a request from a proxy, with a space behind it; empty for none.
    """

    url: str
    token_variable: str
    command: str
    home: str
    past_proxy: str = ""

    def filled(self, text: str) -> str:
        """The text with these values."""
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
    """Curl's option for an address of this machine where the environment names a proxy; empty where none is needed.

    Parameters:
        url: the address.
        environ: the environment.
    """
    local = urlsplit(url).hostname in {"127.0.0.1", "::1", "localhost"}
    return "--noproxy '*' " if local and any(environ.get(name) for name in PROXIES) else ""


@dataclass(frozen=True, slots=True)
class Step:
    """Something to do.

    Attributes:
        says: what it is for, a sentence.
        text: what is run, or put into a file.
        language: the language of the text.
        files: where the file is, by platform; none if the text is to be run.
        needs_release: whether it installs a published package, so that it is left out until there is one.
    """

    says: str
    text: str
    language: str = "sh"
    files: Mapping[str, str] | None = None
    needs_release: bool = False


@dataclass(frozen=True, slots=True)
class McpClient:
    """A client, and how it is connected.

    Attributes:
        key: the name by which the command knows it.
        title: its own name.
        steps: what to do, in order.
        tried: by which part of the tests this text is tried, a sentence; empty if it is not.
        source: the address of the page that the text comes from, where it is not tried.
        in_command: whether ``vestige-bridge connect`` names it.
        needs_variable: whether it reads the environment variable of the token when it starts.
    """

    key: str
    title: str
    steps: tuple[Step, ...]
    tried: str = ""
    source: str = ""
    in_command: bool = True
    needs_variable: bool = True

    def steps_for(self, owner: str) -> list[Step]:
        """The steps that can be taken.

        Parameters:
            owner: who publishes the releases; empty while there is none.
        """
        return [step for step in self.steps if owner or not step.needs_release]


def claude_code(url: str, token: str) -> str:
    """The command that connects Claude Code.

    Parameters:
        url: the endpoint of the bridge.
        token: what stands for the token, such as ``${VESTIGE_AUTH_TOKEN}``; empty where none is needed.
    """
    header = ["--header", f"Authorization: Bearer {token}"] if token else []
    return shlex.join(["claude", "mcp", "add", "--scope", "user", "--transport", "http", NAME, url, *header])


_CLAUDE_CODE = McpClient(
    "claude-code",
    "Claude Code",
    (
        Step(
            "Get it by `npm install -g @anthropic-ai/claude-code` where it is missing, and add the bridge for all your "
            "projects. Claude Code stores the variable's name, and reads it at each start. Where it says that the name "
            "exists, run `claude mcp remove vestige --scope user` first.",
            claude_code("%url%", "${%token%}"),
        ),
        Step("Check it; the line ends in `Connected`.", "claude mcp list"),
    ),
    tried="`make interop-all` runs both commands.",
)

_CODEX = McpClient(
    "codex",
    "Codex CLI",
    (
        Step("Add it.", "codex mcp add vestige --url %url% --bearer-token-env-var %token%"),
        Step("Check what was stored.", "codex mcp get vestige"),
    ),
    tried="`make interop-all` runs the first command and reads the configuration back.",
)

_CURSOR = McpClient(
    "cursor",
    "Cursor",
    (
        Step(
            "Put this into the file and restart Cursor from a shell that has the variable.",
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
            "Put this into the file; *MCP: Open User Configuration* opens the one for all projects. "
            "VS Code asks for the token once and keeps it in its secret storage.",
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
            {"in the project": ".vscode/mcp.json"},
        ),
    ),
    source="https://code.visualstudio.com/docs/copilot/chat/mcp-servers",
    needs_variable=False,
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
            "Its configuration takes commands only, and it sees no variable of your shell: keep the token in a file.",
            f"""\
(umask 077 && mkdir -p {_TOKEN_FILE.rpartition("/")[0]} && printf '%s\\n' "$%token%" > {_TOKEN_FILE})""",
        ),
        Step(
            "Put this into the file and restart Claude Desktop. It needs uv; if Claude Desktop does not find `uvx`, "
            "write its whole path.",
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
            "Put this into the file and restart Claude Desktop.",
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
    tried="`make interop` starts the command as the file says, with the SDKs' stdio clients; the app is not tried.",
    source="https://modelcontextprotocol.io/docs/develop/connect-local-servers",
    needs_variable=False,
)

_INSPECTOR = McpClient(
    "inspector",
    "MCP Inspector",
    (
        Step(
            "List the tools from the command line; it needs Node.",
            "npx -y @modelcontextprotocol/inspector --cli %url% --transport http "
            '--header "Authorization: Bearer $%token%" --method tools/list',
        ),
    ),
    tried="`make interop` runs it, from the checkout's own packages.",
)

_OPENCLAW_PLUGIN = McpClient(
    "openclaw-plugin",
    "OpenClaw, by the plugin",
    (
        Step(
            "Install the plugin, or build it as the next step says. You need OpenClaw 2026.9.6 or newer.",
            "openclaw plugins install npm:openclaw-plugin-vestige --force --accept-capabilities",
            needs_release=True,
        ),
        Step(
            "You need OpenClaw 2026.9.6 or newer (`npm install -g openclaw`) on a Node 24.16 or newer of your own: the "
            "one in `.venv/bin` has no npm that OpenClaw can use. Build the plugin in a checkout of vestige-bridge and "
            "install it.",
            """\
cd openclaw-plugin
npm ci --ignore-scripts
npm pack
openclaw plugins install npm-pack:./openclaw-plugin-vestige-%version%.tgz --force --accept-capabilities""",
        ),
        Step(
            "Give the entry that the install made in the file its `config`; keep the other entries. Or run "
            "`openclaw config set plugins.entries.vestige.config` with the object as JSON.",
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
            "Check it; OpenClaw takes some seconds to start. `openclaw vestige search WORD` reads what others wrote.",
            "openclaw vestige status",
        ),
    ),
    tried="`make e2e-openclaw` installs and uses the plugin on a real OpenClaw.",
)

_OPENCLAW = McpClient(
    "openclaw",
    "OpenClaw, without the plugin",
    (
        Step(
            "Add this to the file; keep its other entries.",
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
        Step("Check it.", "openclaw mcp probe vestige"),
    ),
    tried="`make interop-all` puts it into a new configuration and runs the probe.",
)

_PYTHON_2 = McpClient(
    "python",
    "Python, mcp 2.x",
    (
        Step(
            "In an environment of its own (`python3 -m venv ~/mcp && ~/mcp/bin/pip install mcp`), run:",
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
    tried="`make interop` runs it.",
)

_PYTHON_1 = McpClient(
    "python-1",
    "Python, mcp 1.x",
    (
        Step(
            "In an environment of its own (`python3 -m venv ~/mcp && ~/mcp/bin/pip install 'mcp<2'`), run:",
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
    tried="`make interop` runs it.",
)

_FASTMCP = McpClient(
    "fastmcp",
    "Python, FastMCP",
    (
        Step(
            "In an environment of its own (`python3 -m venv ~/mcp && ~/mcp/bin/pip install fastmcp`), run:",
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
    tried="`make interop` runs it.",
)

_TYPESCRIPT = McpClient(
    "typescript",
    "TypeScript",
    (
        Step(
            "`npm install @modelcontextprotocol/client`, then, in a module (`tools.mjs`):",
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
    tried="`make interop` runs it.",
)

_CURL = McpClient(
    "curl",
    "curl",
    (
        Step(
            "One request, one answer; no handshake is needed.",
            """\
curl -sS %past-proxy%%url% \\
  -H "Authorization: Bearer $%token%" -H 'Content-Type: application/json' \\
  -d '{"jsonrpc": "2.0", "id": 1, "method": "tools/list"}'""",
        ),
    ),
    tried="`make test` sends it.",
)

_ZED = McpClient(
    "zed",
    "Zed",
    (
        Step(
            "Add this to the file.",
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
)

_WINDSURF = McpClient(
    "windsurf",
    "Windsurf",
    (
        Step(
            "Put this into the file.",
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
            "Put this into the file. `httpUrl` is Streamable HTTP; `url` would be SSE.",
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
            "The bridge must be reachable from the internet by https. Add a custom connector in the settings, with the "
            "bridge's address and a request header of this form.",
            "Authorization: Bearer YOUR-TOKEN",
            "text",
        ),
    ),
    source="https://support.claude.com/en/articles/11175166-getting-started-with-custom-connectors-using-remote-mcp",
    in_command=False,
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
"""Every client, in the order in which they are shown."""

BY_KEY: Final = {client.key: client for client in CLIENTS if client.in_command}
"""Those that the command names."""
