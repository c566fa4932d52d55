"""The tools that upstream announces: pages of ``tools/list``, and annotations (MCP 2025-11-25, server/tools).

Invariant: of a tool only its name and its annotations are read, and what it does not say is not assumed. A page that
some may not see whole loses the members of its list that they may not see, and every other byte stays.
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

# As the last member of a result behind which the message has nothing but its version and its id; as the first member.
_is_error_at_end = re.compile(
    rb'"isError"\s*:\s*(true|false)\s*\}\s*'
    rb'(?:,\s*"(?:jsonrpc|id)"\s*:\s*(?:"[^"\\]*"|-?[0-9]+(?:\.[0-9]+)?)\s*)*\}\s*\Z'
).match
_is_error_at_start = re.compile(rb'\{\s*("isError")\s*:\s*(true|false)\s*[,}]').match


@dataclass(frozen=True, slots=True)
class Tool:
    """What a tool announces of itself (MCP 2025-11-25, ToolAnnotations).

    Attributes:
        read_only: whether calling it changes nothing.
        repeatable: whether calling it twice is as good as once.
    """

    read_only: bool = False
    repeatable: bool = False


class ToolPage(NamedTuple):
    """A page of ``tools/list`` (MCP 2025-11-25, server/tools).

    Attributes:
        tools: the tools that have a name.
        next_cursor: where the list goes on; ``None`` at its end.
        problem: what is wrong with the page, a sentence for the log; empty if nothing is.
    """

    tools: Sequence[Mapping[str, Any]]
    next_cursor: str | None = None
    problem: str = ""


def read_tool_page(response: Response) -> ToolPage:
    """Reads a page; an upstream that knows no tools has an empty one, and what is no tool is left out."""
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
    """What one tool of such a page announces; what it does not say is not taken for granted."""
    annotations = tool.get("annotations")
    if not isinstance(annotations, dict):
        return Tool()
    read_only = annotations.get("readOnlyHint") is True
    return Tool(read_only=read_only, repeatable=read_only or annotations.get("idempotentHint") is True)


def without_tools(data: bytes, visible: Callable[[object], bool] | None) -> bytes:
    """A page of ``tools/list`` without the tools that its reader may not see (MCP 2025-11-25, server/tools).

    What is for one reader is for no shared cache: a ``cacheScope`` of the modern era becomes ``private``. Where nothing
    has to go, every byte stays.

    Parameters:
        data: the response, known to be JSON.
        visible: whether the reader may see the tool of a name; ``None`` if it may see all of them.

    Errors:
        ValueError, RecursionError, InvalidMessage: it cannot be read.
    """
    text = data.decode()
    result = members_of(text).get("result")
    if result is None or text[result.start] != "{":
        return data
    for key, value in reversed(occurrences(text, result.start)):
        # A reader that does not mind the case of a key, or takes the first of two, must not see more than others.
        if visible is not None and key.casefold() == "tools" and text[value.start] == "[":
            text = _without_items(text, value, visible)
        elif key.casefold() == "cachescope" and value.value == "public":
            text = f'{text[: value.start]}"private"{text[value.end :]}'
    return text.encode()


def _without_items(text: str, array: Value, visible: Callable[[object], bool]) -> str:
    """The text without the tools of an array that are not visible, and without one comma for each."""
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
    """Whether the response to a ``tools/call`` says that the call failed (MCP 2025-11-25, server/tools).

    Of the content nothing is decoded, and mostly nothing is looked at: ``isError`` is where servers put it, at one end
    of the result, or nowhere.

    Parameters:
        data: the response, known to be JSON.
    """
    for key, start in walk_members(data):
        if key == "result":
            return data.startswith(b"{", start) and _says_error(data, start)
        if key == "error":
            return True
    return False


def _says_error(data: bytes, start: int) -> bool:
    """Whether the result that begins at an offset says so; of a member that is there twice the last one counts."""
    last = data.rfind(b'"isError"')
    if last >= 0 and (at_end := _is_error_at_end(data, last)) and data[last - 1 : last] != b"\\":
        return at_end[1] == b"true"
    # Unless a key is spelled with escapes, the name stands as it is wherever it is a key.
    if b"\\u00" not in data:
        if last < 0:
            return False
        at_start = _is_error_at_start(data, start)
        if at_start and at_start.start(1) == last:
            return at_start[2] == b"true"
    says = False
    for name, value in walk_members(data, start):
        if name == "isError":
            says = data.startswith(b"true", value)
    return says
