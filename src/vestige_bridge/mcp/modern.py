"""The modern era of MCP (2026-07-28) on a legacy upstream: translates requests and responses.

Invariant: a modern request is self-contained, and its headers repeat parts of its body. The request to upstream is the
same without the members of the modern era; the response is the same with the members that the modern era requires.
This module has no list of tools, and of the methods it interprets only the lifecycle.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from vestige_bridge.errors import (
    HeaderMismatch,
    InvalidParams,
    MethodNotFound,
    UnsupportedProtocolVersion,
)
from vestige_bridge.http import headers
from vestige_bridge.jsonrpc.builders import build_notification, build_result
from vestige_bridge.jsonrpc.messages import AnyMessage, Request
from vestige_bridge.jsonrpc.parser import parse_message
from vestige_bridge.jsonrpc.spans import add_members, dump, members_of
from vestige_bridge.mcp.methods import (
    CACHEABLE_METHODS,
    DISCOVER,
    LEGACY_ONLY_METHODS,
    NAMED_BY,
    PROMPTS_CHANGED,
    READ_RESOURCE,
    RESOURCES_CHANGED,
    SUBSCRIPTION_ACKNOWLEDGED,
    TOOLS_CHANGED,
)
from vestige_bridge.mcp.versions import MODERN_VERSIONS, SUPPORTED_VERSIONS

_VERSION: Final = "io.modelcontextprotocol/protocolVersion"
_CAPABILITIES: Final = "io.modelcontextprotocol/clientCapabilities"
_SERVER_INFO: Final = "io.modelcontextprotocol/serverInfo"
_SUBSCRIPTION_ID: Final = "io.modelcontextprotocol/subscriptionId"
_ENVELOPE: Final = frozenset(
    {_VERSION, _CAPABILITIES, "io.modelcontextprotocol/clientInfo", "io.modelcontextprotocol/logLevel"}
)
"""The keys of ``_meta`` that describe a modern request."""

_NOT_CACHED: Final[Mapping[str, str]] = {"ttlMs": "0", "cacheScope": '"private"'}
"""The only safe hint if upstream gives none: the result may change at once, and is only for this caller."""

_STATUSES: Final[Mapping[float, int]] = {-32601: 404, -32602: 400, -32600: 400, -32700: 400, -32021: 400}
_LEGACY_RESOURCE_NOT_FOUND: Final = -32002
_INVALID_PARAMS: Final = -32602
_LIST_CHANGED: Final[Mapping[str, tuple[str, str]]] = {
    "toolsListChanged": ("tools", TOOLS_CHANGED),
    "promptsListChanged": ("prompts", PROMPTS_CHANGED),
    "resourcesListChanged": ("resources", RESOURCES_CHANGED),
}


def is_modern(message: AnyMessage, header: str | None) -> bool:
    """Whether the message declares the modern era.

    Parameters:
        message: the client's message; a modern one declares its version in ``params._meta``.
        header: the value of ``MCP-Protocol-Version``, if it was sent.

    Errors:
        UnsupportedProtocolVersion: the version is not supported; with ``supported`` and ``requested``.
    """
    if _VERSION in message.meta_keys:
        return True
    require_supported(header, message)
    return header in MODERN_VERSIONS


def require_supported(header: str | None, message: AnyMessage | None = None) -> None:
    """Rejects an unsupported version (MCP 2025-11-25, basic/transports, protocol version header).

    Parameters:
        header: the value of ``MCP-Protocol-Version``, if it was sent.
        message: the client's message, if there is one.

    Errors:
        UnsupportedProtocolVersion: with ``supported`` and ``requested``.
    """
    if header is not None and header not in SUPPORTED_VERSIONS:
        raise _unsupported(header, message)


def require_valid(request: Request, http_headers: headers.Headers) -> None:
    """Rejects a modern request that violates the specification (MCP 2026-07-28, basic and transports).

    Errors:
        InvalidParams: its description is missing, or it answers a question that upstream did not ask.
        HeaderMismatch: a header is missing or differs from the body.
        UnsupportedProtocolVersion: the version is not supported.
        MethodNotFound: the method exists only in the legacy era.
    """
    spelled_id = request.spelled_id
    version, capabilities = request.meta.get(_VERSION), request.meta.get(_CAPABILITIES)
    if version is None or not isinstance(version.value, str):
        raise InvalidParams(f'"params._meta" must contain "{_VERSION}".', request_id=spelled_id)
    if capabilities is None or not isinstance(capabilities.value, dict):
        raise InvalidParams(f'"params._meta" must contain "{_CAPABILITIES}", an object.', request_id=spelled_id)
    if not headers.mirrors(http_headers, headers.PROTOCOL_VERSION, version.value):
        raise HeaderMismatch("The header MCP-Protocol-Version differs from the body.", request_id=spelled_id)
    if version.value not in MODERN_VERSIONS:
        raise _unsupported(version.value, request)
    if not headers.mirrors(http_headers, headers.METHOD, request.method):
        raise HeaderMismatch("The header Mcp-Method differs from the body.", request_id=spelled_id)
    named_by = NAMED_BY.get(request.method)
    named = None if named_by is None else request.params.get(named_by)
    if named is not None and not headers.mirrors(http_headers, headers.NAME, named.value):
        raise HeaderMismatch("The header Mcp-Name differs from the body.", request_id=spelled_id)
    if request.method in LEGACY_ONLY_METHODS:
        raise MethodNotFound(f"{request.method} is not a method of {version.value}.", request_id=spelled_id)
    if "inputResponses" in request.params or "requestState" in request.params:
        raise InvalidParams(
            "`inputResponses` and `requestState` are not supported: Vestige's MCP version has no input requests.",
            request_id=spelled_id,
        )


def http_headers(request: Request) -> dict[str, str]:
    """The HTTP headers of a modern request, which repeat parts of its body (MCP 2026-07-28, transports)."""
    version = request.meta.get(_VERSION)
    named_by = NAMED_BY.get(request.method)
    named = None if named_by is None else request.params.get(named_by)
    values = {headers.PROTOCOL_VERSION: version and version.value, headers.METHOD: request.method}
    values[headers.NAME] = named and named.value
    return {name.decode(): headers.spelled_in_header(value) for name, value in values.items() if isinstance(value, str)}


def to_legacy(request: Request) -> Request:
    """The request for a legacy upstream: without the keys that describe it."""
    meta = request.params["_meta"]
    kept = [request.text[it.key_start : it.end] for key, it in request.meta.items() if key not in _ENVELOPE]
    text = f"{request.text[: meta.start]}{{{','.join(kept)}}}{request.text[meta.end :]}"
    legacy = parse_message(text)
    if not isinstance(legacy, Request):
        raise TypeError("the result is not a request")
    return legacy


def to_modern(data: bytes, request: Request, server_info: str) -> tuple[int, bytes]:
    """Translates the response of a legacy upstream for a modern client.

    Parameters:
        data: the response, with the client's id.
        request: the request.
        server_info: upstream's name and version, as JSON.

    Returns:
        The HTTP status and the response.
    """
    text = data.decode()
    members = members_of(text)
    if "error" in members:
        return _modern_error(text, members["error"].start, request)
    return 200, _complete(text, members["result"].start, request.method, server_info).encode()


def discover(request: Request, initialize_result: str) -> bytes:
    """The DiscoverResult for an InitializeResult (MCP 2026-07-28, server/discover)."""
    members = members_of(initialize_result)
    taken = {
        key: initialize_result[members[key].start : members[key].end]
        for key in ("capabilities", "instructions")
        if key in members
    }
    result = add_members("{}", 0, {"supportedVersions": dump(SUPPORTED_VERSIONS)} | taken)
    text = build_result(request.spelled_id, result).decode()
    return _complete(text, text.rindex(result), DISCOVER, server_info(initialize_result)).encode()


def server_info(initialize_result: str) -> str:
    """Upstream's name and version, in the spelling of its InitializeResult."""
    member = members_of(initialize_result)["serverInfo"]
    return initialize_result[member.start : member.end]


def subscribes_to_resources(request: Request) -> bool:
    """Whether a ``subscriptions/listen`` names resources (MCP 2026-07-28, basic/patterns/subscriptions)."""
    wanted = request.params.get("notifications")
    return wanted is not None and isinstance(wanted.value, dict) and bool(wanted.value.get("resourceSubscriptions"))


class Subscription:
    """The state of a ``subscriptions/listen`` (MCP 2026-07-28, basic/patterns/subscriptions).

    Parameters:
        request: the request.
        capabilities: upstream's capabilities, from its InitializeResult.

    Attributes:
        methods: the requested list-changed notifications that upstream supports.
        uris: the requested resources whose updates upstream supports.

    Errors:
        InvalidParams: the request names no notifications.
    """

    def __init__(self, request: Request, capabilities: Mapping[str, object]) -> None:
        wanted = request.params.get("notifications")
        if wanted is None or not isinstance(wanted.value, dict):
            raise InvalidParams('"params.notifications" must be an object.', request_id=request.spelled_id)
        self._request = request
        honoured = {
            key: method
            for key, (feature, method) in _LIST_CHANGED.items()
            if wanted.value.get(key) is True and _can(capabilities, feature, "listChanged")
        }
        self.methods = frozenset(honoured.values())
        self.uris: frozenset[str] = frozenset()
        self._filter: dict[str, object] = dict.fromkeys(honoured, True)
        uris = wanted.value.get("resourceSubscriptions")
        if isinstance(uris, list) and _can(capabilities, "resources", "subscribe"):
            self.uris = frozenset(uri for uri in uris if isinstance(uri, str))
            self._filter["resourceSubscriptions"] = sorted(self.uris)

    def narrow(self, uris: frozenset[str]) -> None:
        """Keeps only these resources, whose subscription upstream accepted."""
        if "resourceSubscriptions" in self._filter:
            self.uris &= uris
            self._filter["resourceSubscriptions"] = sorted(self.uris)

    def acknowledgement(self) -> bytes:
        """The first message of the stream: the accepted notifications; not tagged yet."""
        return build_notification(SUBSCRIPTION_ACKNOWLEDGED, dump({"notifications": self._filter}))

    def tagged(self, data: bytes) -> bytes:
        """A notification with the id of this subscription."""
        text = data.decode()
        params = members_of(text).get("params")
        if params is None or text[params.start] != "{":
            return add_members(text, text.index("{"), {"params": f'{{"_meta":{self._meta}}}'}).encode()
        meta = members_of(text, params.start).get("_meta")
        if meta is None or text[meta.start] != "{":
            return add_members(text, params.start, {"_meta": self._meta}).encode()
        return add_members(text, meta.start, {_SUBSCRIPTION_ID: self._request.spelled_id}).encode()

    def result(self) -> bytes:
        """The answer with which the bridge ends the stream."""
        return build_result(self._request.spelled_id, f'{{"resultType":"complete","_meta":{self._meta}}}')

    @property
    def _meta(self) -> str:
        return f'{{"{_SUBSCRIPTION_ID}":{self._request.spelled_id}}}'


def _can(capabilities: Mapping[str, object], feature: str, what: str) -> bool:
    features = capabilities.get(feature)
    return isinstance(features, dict) and features.get(what) is True


def _unsupported(version: str, message: AnyMessage | None) -> UnsupportedProtocolVersion:
    return UnsupportedProtocolVersion(
        "This protocol version is not supported.",
        data={"supported": list(SUPPORTED_VERSIONS), "requested": version[:64]},
        request_id=message.spelled_id if isinstance(message, Request) else None,
    )


def _complete(text: str, start: int, method: str, server_info: str) -> str:
    """The response with all required members of a modern result; upstream's own members are kept."""
    if text[start] != "{":
        return text
    members = members_of(text, start)
    meta = members.get("_meta")
    if meta is not None and isinstance(meta.value, dict) and _SERVER_INFO not in meta.value:
        text = add_members(text, meta.start, {_SERVER_INFO: server_info})
    wanted = {"resultType": '"complete"', **(_NOT_CACHED if method in CACHEABLE_METHODS else {})}
    if meta is None:
        wanted["_meta"] = f'{{"{_SERVER_INFO}":{server_info}}}'
    # Members are added from the end to the start, so that the offsets in the text stay valid.
    return add_members(text, start, {key: value for key, value in wanted.items() if key not in members})


def _modern_error(text: str, start: int, request: Request) -> tuple[int, bytes]:
    members = members_of(text, start)
    code = members.get("code")
    if code is None or not isinstance(code.value, float):
        return 200, text.encode()
    if code.value == _LEGACY_RESOURCE_NOT_FOUND and request.method == READ_RESOURCE:
        text = text[: code.start] + str(_INVALID_PARAMS) + text[code.end :]
        return 400, text.encode()
    return _STATUSES.get(code.value, 200), text.encode()
