"""Legacy clients and plain posters on the held session.

Invariant: a client sees a session of its own and shares one with all. What it says about itself stays here;
what it asks of upstream is merged with what the others ask.
"""

from __future__ import annotations

import secrets
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Final

from starlette.responses import Response as HttpResponse

from vestige_bridge.endpoint.request import EndpointRequest
from vestige_bridge.errors import BridgeError, InvalidMessage, InvalidParams, NotFound, Overloaded
from vestige_bridge.http import headers
from vestige_bridge.jsonrpc.builders import build_error, build_method_not_found, build_result
from vestige_bridge.jsonrpc.messages import CANCELLED, AnyMessage, Notification, Request, Response
from vestige_bridge.jsonrpc.spans import replace_member
from vestige_bridge.mcp.methods import INITIALIZE, NOTIFICATION_PREFIX, NOTIFICATIONS_ABOUT_CLIENT
from vestige_bridge.mcp.multiplexer import Caller
from vestige_bridge.mcp.tasks import is_about_tasks, without_task
from vestige_bridge.mcp.versions import LATEST_LEGACY_VERSION, LEGACY_VERSIONS
from vestige_bridge.session.dispatcher import Admission, Dispatcher
from vestige_bridge.session.exchange import Exchange
from vestige_bridge.session.listeners import TOO_MANY_RESOURCES
from vestige_bridge.session.session import Session
from vestige_bridge.session.subscriptions import Interest, interest_of

MAX_ENDED_SESSIONS: Final = 65_536
"""How many sessions that were ended by their clients are remembered."""


class SharedMode:
    """What ``/mcp`` does for those who share the held session (MCP 2025-11-25, basic/transports).

    Parameters:
        session: the held session.
        dispatcher: sees the messages of clients through.
    """

    def __init__(self, session: Session, dispatcher: Dispatcher) -> None:
        self._session = session
        self._dispatcher = dispatcher
        self._ended: OrderedDict[Caller, None] = OrderedDict()

    def require_not_ended(self, caller: Caller) -> None:
        """Refuses what comes for a session that its client has ended.

        Errors:
            NotFound: it has.
        """
        if self._ended and caller in self._ended:
            raise NotFound("This session was ended by its client; send initialize to begin another.")

    async def serve(self, incoming: EndpointRequest, message: AnyMessage) -> None:
        """Answers one message."""
        message = _servable(message)
        if isinstance(message, Notification):
            await self._take(incoming, message)
            return await incoming.respond(HttpResponse(status_code=202))
        if message.method == INITIALIZE:
            version = _negotiated_version(message)
            minted = (headers.SESSION_ID, secrets.token_hex(16).encode())
            with self._dispatcher.admit(incoming.record):
                answer = await self._initialize(message, version)
            return await incoming.writer.answer(answer, headers=[minted])
        opened = self._open(incoming, message)
        if isinstance(opened, bytes):
            return await incoming.writer.answer(opened)
        await incoming.writer.exchange(opened)

    async def serve_batch(self, incoming: EndpointRequest, members: Sequence[AnyMessage | BridgeError]) -> None:
        """Answers a batch (MCP 2025-03-26, basic/transports; JSON-RPC 2.0, section 6)."""
        incoming.record.method = "batch"
        places = sum(_takes_place(member) for member in members)
        answers: list[Exchange | bytes] = []
        with self._dispatcher.admit(incoming.record, places) as admission:
            for member in members:
                try:
                    if isinstance(member, BridgeError):
                        raise member
                    message = _servable(member)
                    if isinstance(message, Notification):
                        await self._take(incoming, message, admission)
                    elif message.method == INITIALIZE:
                        raise InvalidMessage("initialize cannot be part of a batch.", request_id=message.spelled_id)
                    else:
                        answers.append(self._open(incoming, message, admission))
                except BridgeError as error:
                    answers.append(build_error(error, error.request_id))
        if not answers:
            return await incoming.respond(HttpResponse(status_code=202))
        await incoming.writer.batch(answers)

    async def listen(self, incoming: EndpointRequest) -> None:
        """Gives a client its stream of notifications (MCP 2025-11-25, basic/transports, listening for messages)."""
        if incoming.caller.session_id is None:
            raise InvalidMessage("Name your session in the header Mcp-Session-Id; initialize gives you one.")
        if self._dispatcher.draining:
            raise Overloaded("The bridge is shutting down.")
        if not incoming.record.permissions.resources:
            # It may have subscribed when it still might.
            self._session.listeners.unsubscribe_from_all(incoming.caller)
        listener = self._session.listeners.listen(incoming.caller)
        try:
            async with incoming.listening(listener.close):
                await incoming.writer.notifications(listener)
        finally:
            self._session.listeners.remove(incoming.caller, listener)

    async def end(self, incoming: EndpointRequest) -> None:
        """Ends the client's own session; the shared one stays (MCP 2025-11-25, basic/transports)."""
        caller = incoming.caller
        if caller.session_id is None:
            raise InvalidMessage("Name the session to end in the header Mcp-Session-Id.")
        self._ended[caller] = None
        if len(self._ended) > MAX_ENDED_SESSIONS:
            self._ended.popitem(last=False)
        self._session.listeners.forget(caller)
        await incoming.respond(HttpResponse(status_code=204))

    async def _initialize(self, request: Request, version: str) -> bytes:
        """Upstream's own InitializeResult, with the version negotiated for this client."""
        held = await self._session.connected()
        return build_result(request.spelled_id, replace_member(held.initialize_result, "protocolVersion", version))

    async def _take(
        self, incoming: EndpointRequest, notification: Notification, admission: Admission | None = None
    ) -> None:
        """Takes a notification; one that goes upstream has a place, held for a batch or taken now."""
        if notification.method == CANCELLED:
            self._dispatcher.cancel(incoming.caller, notification)
        elif notification.method not in NOTIFICATIONS_ABOUT_CLIENT and not is_about_tasks(notification.method):
            taken = self._dispatcher.admit(incoming.record) if admission is None else nullcontext(admission)
            with taken as held:
                await self._dispatcher.notify(notification, incoming.caller, incoming.header_lines, held)

    def _open(
        self, incoming: EndpointRequest, request: Request, admission: Admission | None = None
    ) -> Exchange | bytes:
        """The exchange that a request becomes, or the answer of one that upstream has no part in."""
        if is_about_tasks(request.method):
            return build_method_not_found(request.spelled_id)
        request = without_task(request)
        interest = interest_of(request)
        if interest is None:
            return self._dispatcher.request(request, incoming.caller, incoming.header_lines, incoming.record, admission)
        self._note(incoming.caller, request, interest)
        return self._dispatcher.request_to_hear(request, incoming.caller, interest, incoming.record, admission)

    def _note(self, caller: Caller, request: Request, interest: Interest) -> None:
        """Keeps what a client wants to hear; a plain poster has no stream to hear anything on.

        Errors:
            InvalidParams: there is no room for it.
        """
        listeners, listens = self._session.listeners, caller.session_id is not None
        if interest.uri is None and listens:
            listeners.set_level(caller, str(interest.value))
        elif interest.uri is not None and interest.value:
            if not listeners.make_room(caller.principal, frozenset({interest.uri}), caller):
                raise InvalidParams(TOO_MANY_RESOURCES, request_id=request.spelled_id)
            if listens:
                listeners.subscribe(caller, interest.uri)
        elif interest.uri is not None and listens:
            listeners.unsubscribe(caller, interest.uri)


def _takes_place(member: AnyMessage | BridgeError) -> bool:
    """Whether a member of a batch goes upstream, as far as is known before it is looked at."""
    if isinstance(member, Notification):
        return member.method != CANCELLED and member.method not in NOTIFICATIONS_ABOUT_CLIENT
    return isinstance(member, Request)


def _servable(message: AnyMessage) -> Request | Notification:
    """The message, unless it must not or cannot go upstream."""
    if isinstance(message, Response):
        raise InvalidMessage("Nobody waits for this response: the bridge asks its clients nothing.")
    named_as_notification = message.method.startswith(NOTIFICATION_PREFIX)
    if isinstance(message, Notification) and not named_as_notification:
        raise InvalidMessage('A request needs an "id"; a notification has a method that begins "notifications/".')
    if isinstance(message, Request) and named_as_notification:
        raise InvalidMessage('A notification has no "id".', request_id=message.spelled_id)
    return message


def _negotiated_version(request: Request) -> str:
    """The version that the client asked for if it is spoken here, otherwise the latest (MCP 2025-11-25, lifecycle)."""
    asked = request.params.get("protocolVersion")
    return asked.value if asked is not None and asked.value in LEGACY_VERSIONS else LATEST_LEGACY_VERSION
