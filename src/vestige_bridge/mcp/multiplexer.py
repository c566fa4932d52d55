"""Many callers on one upstream session: routes each message to its caller.

Invariant: upstream gets only ids and progress tokens that are made here. A message from upstream is routed to the
caller by its id or token, whichever stream it came on; a message with an unknown one is dropped. Nothing here waits or
does I/O.
"""

from __future__ import annotations

import itertools
import math
from typing import Generic, NamedTuple, TypeVar

from vestige_bridge.jsonrpc.builders import build_method_not_found, build_result
from vestige_bridge.jsonrpc.fast_parser import read_response
from vestige_bridge.jsonrpc.messages import PING, AnyMessage, Notification, Request, Response, is_token, token_key
from vestige_bridge.jsonrpc.parser import parse_message
from vestige_bridge.jsonrpc.spans import Value
from vestige_bridge.mcp.methods import PROGRESS


class Caller(NamedTuple):
    """The client of a request: its principal and its session id, which is valid only for that principal."""

    principal: str
    session_id: str | None = None


class Call:
    """A request in flight.

    Parameters:
        request: the request as its client wrote it.
        caller: its client.

    Attributes:
        upstream_id: its id upstream; ``None`` before the first attempt and after the last.
        spelled_upstream_id: the same in the spelling of a message; empty before the first attempt.
        newest_step: the most progress that came for that id.
    """

    __slots__ = ("caller", "newest_step", "request", "spelled_upstream_id", "upstream_id")

    def __init__(self, request: Request, caller: Caller) -> None:
        self.request = request
        self.caller = caller
        self.upstream_id: int | None = None
        self.spelled_upstream_id = ""
        self.newest_step = -math.inf


C = TypeVar("C", bound=Call)


class Answer(NamedTuple, Generic[C]):
    """The response to a call: parsed, and as bytes with the client's id."""

    call: C
    response: Response
    data: bytes


class Progress(NamedTuple, Generic[C]):
    """A progress notification for a call: the bytes with the client's token."""

    call: C
    data: bytes


class Reply(NamedTuple):
    """The bridge's response to a request from upstream."""

    data: bytes


class Unattributed(NamedTuple):
    """A message without a call in flight: a notification, or a late message (``None``)."""

    notification: Notification | None


class Multiplexer(Generic[C]):
    """The calls in flight on one session, and their ids upstream."""

    def __init__(self) -> None:
        self._upstream_ids = itertools.count(1)
        self._by_upstream_id: dict[int, C] = {}
        self._open: set[C] = set()

    def open(self, call: C) -> None:
        """Registers a call, so that its client can cancel it; nothing is sent."""
        self._open.add(call)

    def assign(self, call: C) -> bytes:
        """Gives the call a new id for one attempt, and returns the bytes for upstream.

        Each attempt gets another id, so that late messages for an earlier one are dropped.
        """
        self.withdraw(call)
        call.upstream_id, call.newest_step = next(self._upstream_ids), -math.inf
        self._by_upstream_id[call.upstream_id] = call
        request, upstream_id = call.request, str(call.upstream_id)
        call.spelled_upstream_id = upstream_id
        token = request.progress_token
        if token is None:
            return request.spliced((request.id, upstream_id))
        return request.spliced((request.id, upstream_id), (token, upstream_id))

    def withdraw(self, call: C) -> None:
        """Ends an attempt: later messages for its id are dropped."""
        if call.upstream_id is not None:
            self._by_upstream_id.pop(call.upstream_id, None)

    def close(self, call: C) -> None:
        """Removes a call."""
        self.withdraw(call)
        self._open.discard(call)

    def hold(self, call: C) -> None:
        """Prevents reuse of a call's id: upstream may still send something for it."""

    def release(self, call: C, *, settled: bool = True) -> None:
        """Ends ``hold`` or ``assign``; does nothing here, since no id is used twice."""

    def find(self, caller: Caller, notification: Notification) -> C | None:
        """The call that a caller's ``notifications/cancelled`` refers to, if it is exactly one.

        See MCP 2025-11-25, basic/utilities/cancellation.
        """
        request_id = notification.params.get("requestId")
        if request_id is None or not is_token(request_id):
            return None
        key = token_key(notification, request_id)
        calls = [it for it in self._open if it.caller == caller and token_key(it.request, it.request.id) == key]
        return calls[0] if len(calls) == 1 else None

    def route(self, data: bytes, arrived_on: C | None = None) -> Answer[C] | Progress[C] | Reply | Unattributed:
        """Routes a message from upstream.

        Parameters:
            data: the bytes of one message, as they came on any stream of the session.
            arrived_on: the call on whose stream they came; not used here.

        Errors:
            InvalidMessage: the bytes are not a JSON-RPC message.
        """
        message = read_message(data)
        if isinstance(message, Response):
            return self._route_response(message)
        if isinstance(message, Request):
            return Reply(_refuse(message))
        token = message.params.get("progressToken")
        if message.method == PROGRESS and token is not None:
            call = self._known(token)
            client_token = None if call is None else call.request.progress_token
            if call is not None and client_token is not None:
                if _overtaken(message, call):
                    return Unattributed(None)
                return Progress(call, message.spliced((token, call.request.spelled(client_token))))
        return Unattributed(message)

    def _route_response(self, response: Response) -> Answer[C] | Unattributed:
        call = None if response.id is None else self._known(response.id)
        if call is None or response.id is None:
            return Unattributed(None)
        return Answer(call, response, response.spliced((response.id, call.request.spelled_id)))

    def _known(self, token: Value) -> C | None:
        """The call with this id; upstream may spell the number differently."""
        # A float equals the integer key.
        return self._by_upstream_id.get(token.value) if isinstance(token.value, float) else None  # type: ignore[call-overload]


def read_message(data: bytes) -> AnyMessage:
    """Parses a message from upstream.

    Errors:
        InvalidMessage: the bytes are not a JSON-RPC message.
    """
    try:
        return read_response(data) or parse_message(data.decode())
    except UnicodeDecodeError:
        return parse_message("")


def _overtaken(progress: Notification, call: Call) -> bool:
    """Whether a newer step came first, on another stream: progress must increase (MCP 2025-11-25, basic/utilities)."""
    step = progress.params.get("progress")
    if step is None or not isinstance(step.value, float):
        return False
    overtaken = step.value < call.newest_step
    call.newest_step = max(step.value, call.newest_step)
    return overtaken


def _refuse(request: Request) -> bytes:
    """The response to upstream's own request: a ping is answered, a request for one client is refused."""
    if request.method == PING:
        return build_result(request.spelled_id, "{}")
    return build_method_not_found(request.spelled_id)
