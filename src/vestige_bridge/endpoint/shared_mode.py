"""Legacy and sessionless clients on the shared session.

Invariant: each client has a session of its own with the bridge; all use one upstream session. The bridge answers what
concerns only the client, and merges the clients' subscriptions.
"""

from __future__ import annotations

import secrets
from collections import OrderedDict
from collections.abc import Sequence
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
"""Maximum number of sessions that are remembered as ended by their clients."""


class SharedMode:
    """Serves ``/mcp`` to clients on the shared session (MCP 2025-11-25, basic/transports).

    Parameters:
        session: the shared session.
        dispatcher: sends the messages of clients.
    """

    def __init__(self, session: Session, dispatcher: Dispatcher) -> None:
        self._session = session
        self._dispatcher = dispatcher
        self._ended: OrderedDict[Caller, None] = OrderedDict()

    def require_not_ended(self, caller: Caller) -> None:
        """Rejects a message for a session that its client has ended.

        Errors:
            NotFound: the session has ended.
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
            held = await self._dispatcher.connected(incoming.record, incoming.caller)
            result = replace_member(held.initialize_result, "protocolVersion", version)
            return await incoming.writer.answer(build_result(message.spelled_id, result), headers=[minted])
        opened = self._open(incoming, message)
        if isinstance(opened, bytes):
            return await incoming.writer.answer(opened)
        await incoming.writer.exchange(opened)

    async def serve_batch(self, incoming: EndpointRequest, members: Sequence[AnyMessage | BridgeError]) -> None:
        """Answers a batch (MCP 2025-03-26, basic/transports; JSON-RPC 2.0, section 6)."""
        incoming.record.method = "batch"
        requests = sum(isinstance(member, Request) for member in members)
        answers: list[Exchange | bytes] = []
        forwarded: list[Notification] = []
        # All requests take their slots before the first wait; each notification takes one when it is its turn.
        with self._dispatcher.admit(incoming.record, requests) as admission:
            for member in members:
                try:
                    if isinstance(member, BridgeError):
                        raise member
                    message = _servable(member)
                    if isinstance(message, Request):
                        answers.append(self._open_member(incoming, message, admission))
                    elif message.method == CANCELLED:
                        self._dispatcher.cancel(incoming.caller, message)
                    else:
                        forwarded.append(message)
                except BridgeError as error:
                    answers.append(build_error(error, error.request_id))
        for notification in forwarded:
            try:
                await self._take(incoming, notification)
            except BridgeError as error:
                answers.append(build_error(error, error.request_id))
        if not answers:
            return await incoming.respond(HttpResponse(status_code=202))
        await incoming.writer.batch(answers)

    async def listen(self, incoming: EndpointRequest) -> None:
        """Opens a client's stream of notifications (MCP 2025-11-25, basic/transports, listening for messages)."""
        if incoming.caller.session_id is None:
            raise InvalidMessage("Send the session id in the header Mcp-Session-Id; initialize returns one.")
        if self._dispatcher.draining:
            raise Overloaded("The bridge is shutting down.")
        if not incoming.record.permissions.resources:
            # It may have subscribed before its permission was removed.
            self._session.listeners.unsubscribe_from_all(incoming.caller)
        listener = self._session.listeners.listen(incoming.caller)
        try:
            async with incoming.listening(listener.close):
                await incoming.writer.notifications(listener)
        finally:
            self._session.listeners.remove(incoming.caller, listener)

    async def end(self, incoming: EndpointRequest) -> None:
        """Ends the client's session; the shared one stays open (MCP 2025-11-25, basic/transports)."""
        caller = incoming.caller
        if caller.session_id is None:
            raise InvalidMessage("Send the id of the session to end in the header Mcp-Session-Id.")
        self._ended[caller] = None
        if len(self._ended) > MAX_ENDED_SESSIONS:
            self._ended.popitem(last=False)
        self._session.listeners.forget(caller)
        await incoming.respond(HttpResponse(status_code=204))

    async def _take(self, incoming: EndpointRequest, notification: Notification) -> None:
        """Accepts a notification; one for upstream takes a slot."""
        if notification.method == CANCELLED:
            self._dispatcher.cancel(incoming.caller, notification)
        elif notification.method not in NOTIFICATIONS_ABOUT_CLIENT and not is_about_tasks(notification.method):
            with self._dispatcher.admit(incoming.record) as admission:
                await self._dispatcher.notify(notification, incoming.caller, incoming.header_lines, admission)

    def _open_member(self, incoming: EndpointRequest, request: Request, admission: Admission) -> Exchange | bytes:
        """The same as ``_open`` for a member of a batch."""
        if request.method == INITIALIZE:
            raise InvalidMessage("initialize cannot be part of a batch.", request_id=request.spelled_id)
        return self._open(incoming, request, admission)

    def _open(
        self, incoming: EndpointRequest, request: Request, admission: Admission | None = None
    ) -> Exchange | bytes:
        """The exchange of a request, or the answer if the bridge answers it."""
        if is_about_tasks(request.method):
            return build_method_not_found(request.spelled_id)
        request = without_task(request)
        interest = interest_of(request)
        if interest is None:
            return self._dispatcher.request(request, incoming.caller, incoming.header_lines, incoming.record, admission)
        self._note(incoming.caller, request, interest)
        return self._dispatcher.request_notifications(request, incoming.caller, interest, incoming.record, admission)

    def _note(self, caller: Caller, request: Request, interest: Interest) -> None:
        """Stores a client's subscription; a sessionless client has no stream for notifications.

        Errors:
            InvalidParams: a limit on subscriptions is reached.
        """
        listeners, listens = self._session.listeners, caller.session_id is not None
        if interest.uri is None and listens:
            listeners.set_level(caller, str(interest.value))
        elif interest.uri is not None and interest.value:
            if not listeners.free_quota(caller.principal, frozenset({interest.uri}), caller):
                raise InvalidParams(TOO_MANY_RESOURCES, request_id=request.spelled_id)
            if listens:
                listeners.subscribe(caller, interest.uri)
        elif interest.uri is not None and listens:
            listeners.unsubscribe(caller, interest.uri)


def _servable(message: AnyMessage) -> Request | Notification:
    """The message, if it may be sent upstream."""
    if isinstance(message, Response):
        raise InvalidMessage("The bridge sends its clients no requests, so it expects no responses.")
    named_as_notification = message.method.startswith(NOTIFICATION_PREFIX)
    if isinstance(message, Notification) and not named_as_notification:
        raise InvalidMessage('A request needs an "id"; a notification has a method that begins "notifications/".')
    if isinstance(message, Request) and named_as_notification:
        raise InvalidMessage('A notification has no "id".', request_id=message.spelled_id)
    return message


def _negotiated_version(request: Request) -> str:
    """The version that the client asked for if it is supported, otherwise the latest (MCP 2025-11-25, lifecycle)."""
    asked = request.params.get("protocolVersion")
    return asked.value if asked is not None and asked.value in LEGACY_VERSIONS else LATEST_LEGACY_VERSION
