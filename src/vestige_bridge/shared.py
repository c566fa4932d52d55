"""Legacy clients and plain posters on the held session.

The law of this room: a client sees a session of its own and shares one with all. What it says about itself stays here;
what it asks of upstream is merged with what the others ask.
"""

from __future__ import annotations

import secrets
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Final

from starlette.responses import Response as HttpResponse

from vestige_bridge import headers
from vestige_bridge.errors import BridgeError, InvalidMessage, InvalidParams, NotFound, Overloaded
from vestige_bridge.exchange import Exchange
from vestige_bridge.hub import TOO_MANY_RESOURCES
from vestige_bridge.jsonrpc import build_error, build_method_not_found, build_result
from vestige_bridge.lifecycle import is_about_tasks, without_task
from vestige_bridge.messages import AnyMessage, Notification, Request, Response
from vestige_bridge.modern import LEGACY_VERSIONS
from vestige_bridge.multiplexer import Caller
from vestige_bridge.places import replace_member
from vestige_bridge.session import Admission, Session
from vestige_bridge.settings import Settings
from vestige_bridge.subscriptions import Wish, wish_of
from vestige_bridge.visit import Visit

MAX_ENDED_SESSIONS: Final = 65_536
"""How many sessions that were ended by their clients are remembered."""

CANCELLED: Final = "notifications/cancelled"
"""The notification that needs no place and never waits."""

_KEPT_NOTIFICATIONS: Final = frozenset(
    {"notifications/initialized", "notifications/progress", "notifications/roots/list_changed"}
)
"""What a client says about itself, which upstream would take for something said about the session of all."""


class SharedSession:
    """What ``/mcp`` does for those who share the held session (MCP 2025-11-25, basic/transports).

    Parameters:
        session: the held session.
        settings: limits and timeouts.
    """

    def __init__(self, session: Session, settings: Settings) -> None:
        self._session = session
        self._settings = settings
        self._ended: OrderedDict[Caller, None] = OrderedDict()

    def require_not_ended(self, caller: Caller) -> None:
        """Refuses what comes for a session that its client has ended.

        Errors:
            NotFound: it has.
        """
        if self._ended and caller in self._ended:
            raise NotFound("This session was ended by its client; send initialize to begin another.")

    async def serve(self, visit: Visit, message: AnyMessage) -> None:
        """Answers one message."""
        message = _servable(message)
        if isinstance(message, Notification):
            await self._take(visit, message)
            return await visit.respond(HttpResponse(status_code=202))
        if message.method == "initialize":
            version = _negotiated_version(message)
            minted = (headers.SESSION_ID, f"{version}.{secrets.token_hex(16)}".encode())
            with self._session.admit():
                answer = await self._initialize(message, version)
            return await visit.relay.answer(answer, headers=[minted])
        opened = self._open(visit, message)
        if isinstance(opened, bytes):
            return await visit.relay.answer(opened)
        await visit.relay.exchange(opened)

    async def serve_batch(self, visit: Visit, members: Sequence[AnyMessage | BridgeError]) -> None:
        """Answers a batch (MCP 2025-03-26, basic/transports; JSON-RPC 2.0, section 6)."""
        visit.record.method = "batch"
        places = sum(_takes_place(member) for member in members)
        if places > self._settings.max_in_flight:
            raise InvalidMessage(f"A batch may hold {self._settings.max_in_flight} requests and notifications.")
        answers: list[Exchange | bytes] = []
        with self._session.admit(places) as admission:
            for member in members:
                try:
                    if isinstance(member, BridgeError):
                        raise member
                    message = _servable(member)
                    if isinstance(message, Notification):
                        await self._take(visit, message, admission)
                    elif message.method == "initialize":
                        raise InvalidMessage("initialize cannot be part of a batch.", request_id=message.spelled_id)
                    else:
                        answers.append(self._open(visit, message, admission))
                except BridgeError as error:
                    answers.append(build_error(error, error.request_id))
        if not answers:
            return await visit.respond(HttpResponse(status_code=202))
        await visit.relay.batch(answers)

    async def listen(self, visit: Visit) -> None:
        """Gives a client its stream of notifications (MCP 2025-11-25, basic/transports, listening for messages)."""
        if visit.caller.session_id is None:
            raise InvalidMessage("Name your session in the header Mcp-Session-Id; initialize gives you one.")
        if self._session.draining:
            raise Overloaded("The bridge is shutting down.")
        listener = self._session.hub.listen(visit.caller)
        try:
            await visit.relay.notifications(listener)
        finally:
            self._session.hub.remove(visit.caller, listener)

    async def end(self, visit: Visit) -> None:
        """Ends the client's own session; the shared one stays (MCP 2025-11-25, basic/transports)."""
        caller = visit.caller
        if caller.session_id is None:
            raise InvalidMessage("Name the session to end in the header Mcp-Session-Id.")
        self._ended[caller] = None
        if len(self._ended) > MAX_ENDED_SESSIONS:
            self._ended.popitem(last=False)
        self._session.hub.forget(caller)
        await visit.respond(HttpResponse(status_code=204))

    async def _initialize(self, request: Request, version: str) -> bytes:
        """Upstream's own InitializeResult, with the version negotiated for this client."""
        held = await self._session.connected()
        return build_result(request.spelled_id, replace_member(held.initialize_result, "protocolVersion", version))

    async def _take(self, visit: Visit, notification: Notification, admission: Admission | None = None) -> None:
        """Takes a notification; one that goes upstream has a place, held for a batch or taken now."""
        if notification.method == CANCELLED:
            self._session.cancel(visit.caller, notification)
        elif notification.method not in _KEPT_NOTIFICATIONS and not is_about_tasks(notification.method):
            with self._session.admit() if admission is None else nullcontext():
                await self._session.notify(notification, visit.header_lines)

    def _open(self, visit: Visit, request: Request, admission: Admission | None = None) -> Exchange | bytes:
        """The exchange that a request becomes, or the answer of one that upstream has no part in."""
        if is_about_tasks(request.method):
            return build_method_not_found(request.spelled_id)
        request = without_task(request)
        wish = wish_of(request)
        if wish is None:
            return self._session.request(request, visit.caller, visit.header_lines, admission)
        self._note(visit.caller, request, wish)
        return self._session.request_to_hear(request, visit.caller, wish, admission)

    def _note(self, caller: Caller, request: Request, wish: Wish) -> None:
        """Keeps what a client wants to hear; a plain poster has no stream to hear anything on.

        Errors:
            InvalidParams: there is no room for it.
        """
        hub, listens = self._session.hub, caller.session_id is not None
        if wish.uri is None and listens:
            hub.set_level(caller, str(wish.value))
        elif wish.uri is not None and wish.value:
            if not hub.make_room(caller.principal, frozenset({wish.uri}), caller):
                raise InvalidParams(TOO_MANY_RESOURCES, request_id=request.spelled_id)
            if listens:
                hub.subscribe(caller, wish.uri)
        elif wish.uri is not None and listens:
            hub.unsubscribe(caller, wish.uri)


def _takes_place(member: AnyMessage | BridgeError) -> bool:
    """Whether a member of a batch goes upstream, as far as is known before it is looked at."""
    if isinstance(member, Notification):
        return member.method != CANCELLED and member.method not in _KEPT_NOTIFICATIONS
    return isinstance(member, Request)


def _servable(message: AnyMessage) -> Request | Notification:
    """The message, unless it must not or cannot go upstream."""
    if isinstance(message, Response):
        raise InvalidMessage("Nobody waits for this response: the bridge asks its clients nothing.")
    named_as_notification = message.method.startswith("notifications/")
    if isinstance(message, Notification) and not named_as_notification:
        raise InvalidMessage('A request needs an "id"; a notification has a method that begins "notifications/".')
    if isinstance(message, Request) and named_as_notification:
        raise InvalidMessage('A notification has no "id".', request_id=message.spelled_id)
    return message


def _negotiated_version(request: Request) -> str:
    """The version that the client asked for if it is spoken here, otherwise the latest (MCP 2025-11-25, lifecycle)."""
    asked = request.params.get("protocolVersion")
    return asked.value if asked is not None and asked.value in LEGACY_VERSIONS else LEGACY_VERSIONS[0]
