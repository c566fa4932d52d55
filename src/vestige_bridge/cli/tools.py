"""The commands ``tools`` and ``call``: list and call the tools of Vestige.

Invariants: a terminal gets text, a pipe gets JSON. Errors go to standard error. Wrong arguments are found before the
call is sent, if the schema shows them.
"""

from __future__ import annotations

import json
import re
import sys
import textwrap
from typing import Any

from vestige_bridge.cli.bridge_client import Client
from vestige_bridge.cli.http_client import Members
from vestige_bridge.cli.terminal import ProgressLine, shown, shown_lines, table, width
from vestige_bridge.cli.tool_arguments import (
    UsageError,
    arguments_of,
    closest,
    parse_json,
    parse_words,
    required_arguments,
)
from vestige_bridge.mcp.methods import CALL_TOOL

_control = re.compile("[\x7f-\x9f]")
"""The control characters that ``json.dumps`` does not escape."""


def print_tools(client: Client, *, as_json: bool) -> None:
    """Prints each tool: a table on a terminal, otherwise JSON as Vestige lists them.

    Errors:
        ClientError: the tools could not be listed.
    """
    tools = client.tools()
    if as_json or not sys.stdout.isatty():
        return _print_json(tools)
    rows = [(str(tool["name"]), ", ".join(required_arguments(_schema(tool))), _summary(tool)) for tool in tools]
    print(table(("TOOL", "REQUIRED", "DESCRIPTION"), rows))


def print_tool(client: Client, name: str, *, as_json: bool) -> None:
    """Prints one tool: its description and arguments as text, or JSON as Vestige lists it.

    Errors:
        UsageError: there is no such tool.
        ClientError: the tools could not be listed.
    """
    tool = _named(client, name)
    if as_json:
        _print_json(tool)
    else:
        _print_help(tool)


def _print_help(tool: Members) -> None:
    """Prints the description of a tool, and its arguments with their types and descriptions."""
    arguments = arguments_of(_schema(tool))
    needed = [f"{argument.name}=…" for argument in arguments if argument.required]
    optional = " [key=value …]" if len(needed) < len(arguments) else ""
    print(shown(f"vestige-bridge call {' '.join([str(tool['name']), *needed])}{optional}"))
    if description := str(tool.get("description") or tool.get("title") or "").strip():
        print(f"\n{shown_lines(description)}")
    print()
    for name, kind, required, said in arguments:
        print(shown(f"  {name}  {kind}{', required' if required else ''}"))
        if said:
            print(textwrap.fill(shown(said), width(), initial_indent="      ", subsequent_indent="      "))
    if not arguments:
        print("  The schema names no arguments.")


def call(client: Client, name: str, words: list[str], as_json: str | None) -> bool:
    """Calls a tool and prints its result: readable on a terminal, otherwise as JSON.

    Parameters:
        client: the client of the bridge.
        name: the tool.
        words: its arguments, as ``key=value``.
        as_json: its arguments in one JSON object instead; ``-`` for one on standard input.

    Returns:
        Whether the tool succeeded.

    Errors:
        UsageError: there is no such tool, or the arguments are wrong for it; nothing was sent.
        ClientError: there is no result.
    """
    schema = _schema(_named(client, name))
    if as_json is None:
        arguments = parse_words(words, schema, _read_stdin)
    elif words:
        raise UsageError("Give the arguments either as key=value or by --json, not both.")
    else:
        arguments = parse_json(_read_stdin() if as_json == "-" else as_json, schema)
    with ProgressLine(name) as line:
        result = client.ask(
            CALL_TOOL, {"name": name, "arguments": arguments}, on_progress=lambda params: line.say(_progress(params))
        )
    if sys.stdout.isatty():
        print(_readable(result))
    else:
        _print_json(result)
    failed = result.get("isError") is True
    if failed:
        print(f"{name} returned an error.", file=sys.stderr)
    return not failed


def _read_stdin() -> str:
    """The text on standard input.

    Errors:
        UsageError: it is not UTF-8, as JSON requires (RFC 8259, section 8.1).
    """
    data = sys.stdin.buffer.read()
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise UsageError(
            f"Standard input is not UTF-8: byte {error.start + 1} is 0x{data[error.start]:02x}. "
            "Convert it first, for example with `iconv -f latin1 -t utf-8`."
        ) from None


def _named(client: Client, name: str) -> Members:
    """The tool with this name.

    Errors:
        UsageError: there is none.
        ClientError: the tools could not be listed.
    """
    tools = {str(tool["name"]): tool for tool in client.tools()}
    if name not in tools:
        raise UsageError(f"There is no tool {shown(name)!r}.{closest(name, list(tools))}")
    return tools[name]


def _print_json(value: object) -> None:
    print(_control.sub(lambda found: f"\\u{ord(found[0]):04x}", json.dumps(value, ensure_ascii=False)))


def _schema(tool: Members) -> Members:
    schema = tool.get("inputSchema")
    return schema if isinstance(schema, dict) else {}


def _summary(tool: Members) -> str:
    """The first line of the description of the tool."""
    lines = str(tool.get("description") or tool.get("title") or "").strip().splitlines()
    return lines[0] if lines else ""


def _progress(params: Members) -> str:
    """The text of a progress notification (MCP 2025-11-25, basic/utilities/progress)."""
    progress, total, message = (params.get(name) for name in ("progress", "total", "message"))
    share = f"{progress}" if total is None else f"{progress} of {total}"
    return f"{share}: {message}" if message else share


def _readable(result: Members) -> str:
    """The result of a tool as text (MCP 2025-11-25, server/tools)."""
    content = result.get("content")
    blocks = [block for block in content if isinstance(block, dict)] if isinstance(content, list) else []
    texts = [_readable_block(block) for block in blocks]
    if not texts and "structuredContent" in result:
        texts = [json.dumps(result["structuredContent"], ensure_ascii=False, indent=2)]
    return "\n".join(shown_lines(text) for text in texts)


def _readable_block(block: dict[str, Any]) -> str:
    resource = block.get("resource")
    if isinstance(resource, dict):
        return str(resource.get("text") or f"[resource {resource.get('uri')}]")
    if "text" in block:
        return _indented(str(block["text"]))
    if "data" in block:
        return f"[{block.get('type')}, {block.get('mimeType')}; the data is in the JSON output]"
    return f"[{block.get('type')} {block.get('uri', '')}]"


def _indented(text: str) -> str:
    """The text; indented if it is JSON."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return json.dumps(value, ensure_ascii=False, indent=2) if isinstance(value, dict | list) else text
