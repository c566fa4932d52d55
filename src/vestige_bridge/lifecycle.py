"""The lifecycle of a legacy MCP session: what opens it, and what upstream says of itself (MCP 2025-11-25).

The law of this room: messages in, facts out. Of a tool only its name is read, and what harm it says that it cannot do.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from vestige_bridge import __version__
from vestige_bridge.errors import UpstreamProtocolError
from vestige_bridge.headers import PROTOCOL_VERSION, SESSION_ID, header_lines
from vestige_bridge.jsonrpc import build_request, parse_message
from vestige_bridge.messages import Request, Response
from vestige_bridge.modern import LEGACY_VERSIONS
from vestige_bridge.places import members_of, without_member

REPEATABLE_METHODS: Final = frozenset(
    {
        "ping",
        "completion/complete",
        "prompts/get",
        "prompts/list",
        "resources/list",
        "resources/read",
        "resources/templates/list",
        "tools/list",
    }
)
"""The methods that change nothing, so that running one twice is as good as once."""

INITIALIZE: Final = "initialize"
_TASK_METHODS: Final = ("tasks/", "notifications/tasks/")

_METHOD_NOT_FOUND: Final = -32601
_SESSION_REFUSAL: Final = {
    "jsonrpc": "2.0",
    "error": {"code": -32000, "message": "Bad Request: No valid session ID provided"},
    "id": None,
}
_MAX_REFUSAL_BYTES: Final = 1_024


@dataclass(frozen=True, slots=True)
class Tool:
    """What a tool announces of itself (MCP 2025-11-25, ToolAnnotations).

    Attributes:
        read_only: whether calling it changes nothing.
        repeatable: whether calling it twice is as good as once.
    """

    read_only: bool = False
    repeatable: bool = False


@dataclass(frozen=True, slots=True)
class HeldSession:
    """One upstream session, from its handshake on.

    Attributes:
        session_id: as upstream minted it; ``None`` for an upstream that keeps no sessions.
        protocol_version: the version negotiated with upstream.
        capabilities: what upstream offers, from its InitializeResult.
        initialize_result: upstream's InitializeResult, as it is spelled.
        server_name: upstream's name, from the same.
        server_version: upstream's version, from the same.
        header_lines: the headers that every message on this session carries, as they stand in its head.
    """

    session_id: str | None = None
    protocol_version: str | None = None
    capabilities: Mapping[str, object] = field(default_factory=dict)
    initialize_result: str = ""
    server_name: str = ""
    server_version: str = ""
    header_lines: str = field(init=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "header_lines", header_lines(self.headers))

    @property
    def headers(self) -> dict[str, str]:
        """The headers that every message on this session carries (MCP 2025-11-25, basic/transports)."""
        named = {SESSION_ID.decode(): self.session_id, PROTOCOL_VERSION.decode(): self.protocol_version}
        return {name: value for name, value in named.items() if value is not None}


def build_initialize() -> Request:
    """The request that opens a session: our latest legacy version, and nothing that upstream could ask of us."""
    return build_request(
        INITIALIZE,
        {
            "protocolVersion": LEGACY_VERSIONS[0],
            "capabilities": {},
            "clientInfo": {"name": "vestige-bridge", "version": __version__},
        },
    )


def read_initialize(response: Response, session_id: str | None) -> HeldSession:
    """The session that an InitializeResult opens.

    Errors:
        UpstreamProtocolError: upstream refused, or speaks no version that is known here.
    """
    result = response.result
    if not isinstance(result, dict):
        raise UpstreamProtocolError(
            "Vestige refused the handshake.", detail=f"error {(response.error or {}).get('code')}"
        )
    version, server, capabilities = (result.get(key) for key in ("protocolVersion", "serverInfo", "capabilities"))
    if version not in LEGACY_VERSIONS or not isinstance(server, dict):
        raise UpstreamProtocolError("Vestige speaks no protocol version known here.", detail=f"version {version!r}")
    capabilities = capabilities if isinstance(capabilities, dict) else {}
    return HeldSession(
        session_id=session_id,
        protocol_version=version,
        capabilities={key: value for key, value in capabilities.items() if key != "tasks"},
        initialize_result=_without_tasks(response.spelled(response.members["result"])),
        server_name=str(server.get("name", "")),
        server_version=str(server.get("version", "")),
    )


def refuses_session(body: bytes) -> bool:
    """Whether a body with HTTP status 400 is the one by which supergateway 3 refuses an unknown session."""
    if len(body) > _MAX_REFUSAL_BYTES:
        return False
    try:
        return bool(json.loads(body) == _SESSION_REFUSAL)
    except (ValueError, RecursionError):
        return False


def is_about_tasks(method: str) -> bool:
    """Whether a request or a notification is about tasks.

    A task belongs to a session, and whoever is on it may list, read and cancel it (MCP 2025-11-25,
    basic/utilities/tasks): on a session that principals share there can be none.
    """
    return method.startswith(_TASK_METHODS)


def without_task(request: Request) -> Request:
    """The request without ``params.task``, which a server without tasks has to ignore (same section)."""
    if request.task is None:
        return request
    plain = parse_message(without_member(request.text, request.task))
    if not isinstance(plain, Request):
        raise TypeError("a request stays a request")
    return plain


def _without_tasks(initialize_result: str) -> str:
    """The InitializeResult of an upstream whose tasks are not offered."""
    capabilities = members_of(initialize_result).get("capabilities")
    if capabilities is None or not isinstance(capabilities.value, dict):
        return initialize_result
    tasks = members_of(initialize_result, capabilities.start).get("tasks")
    return initialize_result if tasks is None else without_member(initialize_result, tasks)


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
