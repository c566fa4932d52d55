"""Modern clients (2026-07-28) on the shared session of a legacy upstream.

Invariant: each request is self-contained. It is validated, translated to the legacy era for upstream, and answered in
the modern era; a client that closes the stream cancels the request.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Final

from starlette.responses import Response as HttpResponse

from vestige_bridge.endpoint.request import EndpointRequest
from vestige_bridge.errors import InvalidMessage, InvalidParams, MethodNotFound, Overloaded
from vestige_bridge.http import sse
from vestige_bridge.jsonrpc.messages import AnyMessage, Notification, Request, Response
from vestige_bridge.mcp.lifecycle import HeldSession
from vestige_bridge.mcp.methods import DISCOVER, LISTEN, RESOURCE_UPDATED, is_notification
from vestige_bridge.mcp.modern import Subscription, discover, require_valid, server_info, to_legacy, to_modern
from vestige_bridge.mcp.multiplexer import Caller
from vestige_bridge.mcp.tasks import is_about_tasks, without_task
from vestige_bridge.mcp.versions import LATEST_MODERN_VERSION
from vestige_bridge.session.dispatcher import Dispatcher
from vestige_bridge.session.exchange import Exchange
from vestige_bridge.session.listeners import TOO_MANY_RESOURCES, Listener, concerns
from vestige_bridge.session.session import Session

_NO_SESSION: Final = f" {LATEST_MODERN_VERSION}"
"""A session id that no header can contain, since values do not begin with a space: legacy cancellations never match."""


class ModernClients:
    """Serves ``/mcp`` to modern clients (MCP 2026-07-28, basic/transports).

    Parameters:
        session: the shared session.
        dispatcher: sends the messages of clients.
    """

    def __init__(self, session: Session, dispatcher: Dispatcher) -> None:
        self._session = session
        self._dispatcher = dispatcher

    async def serve(self, incoming: EndpointRequest, message: AnyMessage) -> None:
        """Answers one message."""
        if isinstance(message, Response):
            raise InvalidMessage("The bridge sends its clients no requests, so it expects no responses.")
        if isinstance(message, Notification):
            # The modern era has no client notifications over HTTP, so there is nothing to forward.
            return await incoming.respond(HttpResponse(status_code=202))
        require_valid(message, incoming.headers)
        if is_notification(message.method):
            raise MethodNotFound("This method is a notification, not a request.")
        if is_about_tasks(message.method):
            raise MethodNotFound("Tasks are not available on a shared session.")
        caller = Caller(incoming.principal, _NO_SESSION)
        held = await self._dispatcher.connected(incoming.record, caller)
        if message.method == DISCOVER:
            return await incoming.writer.answer(discover(message, held.initialize_result))
        if message.method != LISTEN:
            legacy = without_task(to_legacy(message))
            exchange = self._dispatcher.request(legacy, caller, incoming.header_lines, incoming.record)
            return await self._relay(incoming, message, held, exchange)
        if self._dispatcher.draining:
            raise Overloaded("The bridge is shutting down.")
        await self._listen(incoming, message, held)

    async def _relay(self, incoming: EndpointRequest, message: Request, held: HeldSession, exchange: Exchange) -> None:
        async with incoming.watched(lambda: self._dispatcher.abandon(exchange, "The client closed the stream.")):
            shape = partial(to_modern, request=message, server_info=server_info(held.initialize_result))
            await incoming.writer.exchange(exchange, shape)

    async def _listen(self, incoming: EndpointRequest, request: Request, held: HeldSession) -> None:
        """Streams notifications until the client closes the stream or the bridge stops."""
        subscription = Subscription(request, held.capabilities)
        if not incoming.accepted.event_stream:
            raise InvalidMessage("Notifications need an event stream; add `text/event-stream` to the header Accept.")

        def wants(notification: Notification) -> bool:
            uri = notification.params.get("uri")
            if notification.method == RESOURCE_UPDATED and uri is not None and isinstance(uri.value, str):
                return concerns(uri.value, subscription.uris)
            return notification.method in subscription.methods

        listener, listeners = Listener(wants, opened=False), self._session.listeners
        if not listeners.free_quota(incoming.principal, subscription.uris):
            raise InvalidParams(TOO_MANY_RESOURCES)
        listeners.add(listener, incoming.principal, subscription.uris)
        acknowledging = asyncio.create_task(self._acknowledge(subscription, listener))
        try:
            # The stream opens with a comment: its first message waits until upstream has answered the subscriptions.
            async with incoming.listening(listener.close):
                await incoming.writer.notifications(
                    listener, tag=subscription.tagged, last=sse.encode_event(subscription.result())
                )
        finally:
            acknowledging.cancel()
            listeners.remove(None, listener)

    async def _acknowledge(self, subscription: Subscription, listener: Listener) -> None:
        """Sends the client its accepted subscriptions, once they are known."""
        subscription.narrow(await self._session.subscriptions.confirmed(subscription.uris))
        self._session.listeners.narrow(listener, subscription.uris)
        listener.open(subscription.acknowledgement())
