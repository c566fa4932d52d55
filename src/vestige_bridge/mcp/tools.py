"""The tools that upstream lists: pages of ``tools/list``, and annotations (MCP 2025-11-25, server/tools).

Invariant: only the name and the annotations of a tool are read, and missing annotations are not assumed. Filtering a
page removes the hidden tools from its list, and changes no other byte.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from vestige_bridge.jsonrpc.fast_parser import walk_members
from vestige_bridge.jsonrpc.messages import Response
from vestige_bridge.jsonrpc.spans import Value, items_of, members_of, occurrences

_METHOD_NOT_FOUND: Final = -32601

# As the last member of a result, followed only by the version and the id of the message; as the first member.
_is_error_at_end = re.compile(
    rb'"isError"\s*:\s*(true|false)\s*\}\s*'
    rb'(?:,\s*"(?:jsonrpc|id)"\s*:\s*(?:"[^"\\]*"|-?[0-9]+(?:\.[0-9]+)?)\s*)*\}\s*\Z'
).match
_is_error_at_start = re.compile(rb'\{\s*("isError")\s*:\s*(true|false)\s*[,}]').match


@dataclass(frozen=True, slots=True)
class Tool:
    """The annotations of a tool (MCP 2025-11-25, ToolAnnotations).

    Attributes:
        read_only: whether a call changes nothing.
        repeatable: whether a call may run twice without harm.
    """

    read_only: bool = False
    repeatable: bool = False


class ToolPage(NamedTuple):
    """A page of ``tools/list`` (MCP 2025-11-25, server/tools).

    Attributes:
        tools: the tools that have a name.
        next_cursor: the cursor of the next page; ``None`` on the last page.
        problem: what is wrong with the page, a sentence for the log; empty if nothing is.
    """

    tools: Sequence[Mapping[str, Any]]
    next_cursor: str | None = None
    problem: str = ""


def read_tool_page(response: Response) -> ToolPage:
    """Parses a page; it is empty if upstream has no tools, and items that are not tools are left out."""
    page = response.result
    if not isinstance(page, dict) or not isinstance(page.get("tools"), list):
        code = (response.error or {}).get("code")
        return ToolPage(
            [], problem="" if code == _METHOD_NOT_FOUND else f"Vestige did not list its tools (code {code})"
        )
    tools = [tool for tool in page["tools"] if isinstance(tool, dict) and isinstance(tool.get("name"), str)]
    left_out = len(page["tools"]) - len(tools)
    cursor = page.get("nextCursor")
    return ToolPage(
        tools,
        cursor if isinstance(cursor, str) else None,
        f"Vestige listed {left_out} tools without a name; they are left out" if left_out else "",
    )


def read_tool(tool: Mapping[str, Any]) -> Tool:
    """The annotations of one tool of such a page; missing ones are false."""
    annotations = tool.get("annotations")
    if not isinstance(annotations, dict):
        return Tool()
    read_only = annotations.get("readOnlyHint") is True
    return Tool(read_only=read_only, repeatable=read_only or annotations.get("idempotentHint") is True)


def without_tools(data: bytes, visible: Callable[[object], bool] | None) -> bytes:
    """A page of ``tools/list`` without the tools that are hidden from its reader (MCP 2025-11-25, server/tools).

    A filtered page must not be in a shared cache: a ``cacheScope`` of the modern era becomes ``private``. If nothing is
    hidden, every byte stays.

    Parameters:
        data: the response, known to be JSON.
        visible: whether the reader may see the tool with this name; ``None`` if it may see all tools.

    Errors:
        ValueError, RecursionError, InvalidMessage: it cannot be parsed.
    """
    text = data.decode()
    result = members_of(text).get("result")
    if result is None or text[result.start] != "{":
        return data
    for key, value in reversed(occurrences(text, result.start)):
        # A reader that ignores the case of a key, or uses the first of two, must not see more than others.
        if visible is not None and key.casefold() == "tools" and text[value.start] == "[":
            text = _without_items(text, value, visible)
        elif key.casefold() == "cachescope" and value.value == "public":
            text = f'{text[: value.start]}"private"{text[value.end :]}'
    return text.encode()


def _without_items(text: str, array: Value, visible: Callable[[object], bool]) -> str:
    """The text without the hidden tools of an array, and without one comma for each."""
    spans = items_of(text, array.start)
    if not spans:
        return text
    pieces = [text[: spans[0][0]]]
    kept = False
    ended = spans[0][0]
    for start, end in spans:
        if _is_visible(text, start, visible):
            pieces.append(text[ended if kept else start : end])
            kept = True
        ended = end
    return "".join([*pieces, text[ended:]])


def _is_visible(text: str, start: int, visible: Callable[[object], bool]) -> bool:
    if text[start] != "{":
        return False
    names = [value.value for key, value in occurrences(text, start) if key.casefold() == "name"]
    return bool(names) and all(visible(name) for name in names)


def reports_error(data: bytes) -> bool:
    """Whether the response to a ``tools/call`` reports that the call failed (MCP 2025-11-25, server/tools).

    The content is not decoded, and usually not scanned: servers put ``isError`` at one end of the result, or omit it.

    Parameters:
        data: the response, known to be JSON.
    """
    for key, start in walk_members(data):
        if key == "result":
            return data.startswith(b"{", start) and _reports_error(data, start)
        if key == "error":
            return True
    return False


def _reports_error(data: bytes, start: int) -> bool:
    """Whether the result at an offset reports an error; of a repeated member the last one counts."""
    last = data.rfind(b'"isError"')
    if last >= 0 and (at_end := _is_error_at_end(data, last)) and data[last - 1 : last] != b"\\":
        return at_end[1] == b"true"
    # A key without escapes contains the name literally.
    if b"\\u00" not in data:
        if last < 0:
            return False
        at_start = _is_error_at_start(data, start)
        if at_start and at_start.start(1) == last:
            return at_start[2] == b"true"
    failed = False
    for name, value in walk_members(data, start):
        if name == "isError":
            failed = data.startswith(b"true", value)
    return failed
