"""The tools that upstream announces: pages of ``tools/list``, and annotations (MCP 2025-11-25, server/tools).

Invariant: of a tool only its name and its annotations are read, and what it does not say is not assumed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from vestige_bridge.jsonrpc.messages import Response

_METHOD_NOT_FOUND: Final = -32601


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
