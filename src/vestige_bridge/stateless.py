"""Modern clients (2026-07-28) on the held session of a legacy upstream.

The law of this room: each request stands for itself. It is checked, told to upstream in legacy words, and answered in
modern ones; a client that closes the stream has cancelled the request.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Final

from starlette.responses import Response as HttpResponse

from vestige_bridge import sse
from vestige_bridge.errors import InvalidMessage, InvalidParams, MethodNotFound, Overloaded
from vestige_bridge.exchange import Exchange
from vestige_bridge.hub import RESOURCE_UPDATED, TOO_MANY_RESOURCES, Listener
from vestige_bridge.lifecycle import HeldSession
from vestige_bridge.messages import AnyMessage, Notification, Request, Response
from vestige_bridge.modern import (
    DISCOVER,
    LISTEN,
    MODERN_VERSION,
    Subscription,
    discover,
    require_valid,
    server_info,
    to_legacy,
    to_modern,
)
from vestige_bridge.multiplexer import Caller
from vestige_bridge.session import Session
from vestige_bridge.visit import Visit

_NO_SESSION: Final = f" {MODERN_VERSION}"
"""A session that no header can name, as no value begins with a space: no cancellation of another era can mean it."""


class StatelessRequests:
    """What ``/mcp`` does for modern clients (MCP 2026-07-28, basic/transports).

    Parameters:
        session: the held session.
    """

    def __init__(self, session: Session) -> None:
        self._session = session

    async def serve(self, visit: Visit, message: AnyMessage) -> None:
        """Answers one message."""
        if isinstance(message, Response):
            raise InvalidMessage("Nobody waits for this response: the bridge asks its clients nothing.")
        if isinstance(message, Notification):
            # The modern era has no notification that a client could send over HTTP; there is nothing to pass on.
            return await visit.respond(HttpResponse(status_code=202))
        require_valid(message, visit.headers)
        if message.method.startswith("notifications/"):
            raise MethodNotFound("A notification is not a method to be called.")
        with self._session.admit() as admission:
            held = await self._session.connected()
            if message.method == DISCOVER:
                return await visit.relay.answer(discover(message, held.initialize_result))
            if message.method != LISTEN:
                caller = Caller(visit.principal, _NO_SESSION, visit.caller.read_only)
                exchange = self._session.request(to_legacy(message), caller, visit.header_lines, admission)
                return await self._relay(visit, message, held, exchange)
        if self._session.draining:
            raise Overloaded("The bridge is shutting down.")
        await self._listen(visit, message, held)

    async def _relay(self, visit: Visit, message: Request, held: HeldSession, exchange: Exchange) -> None:
        watching = asyncio.create_task(self._cancel_when_client_leaves(visit, exchange))
        try:
            shape = partial(to_modern, request=message, server_info=server_info(held.initialize_result))
            await visit.relay.exchange(exchange, shape)
        finally:
            watching.cancel()

    async def _cancel_when_client_leaves(self, visit: Visit, exchange: Exchange) -> None:
        await visit.until_client_leaves()
        self._session.abandon(exchange, "The client closed the stream.")

    async def _listen(self, visit: Visit, request: Request, held: HeldSession) -> None:
        """Streams notifications until the client closes the stream or the bridge stops."""
        subscription = Subscription(request, held.capabilities)
        if not visit.accepted.event_stream:
            raise InvalidMessage("Notifications come as an event stream; send `Accept: text/event-stream`, too.")

        def wants(notification: Notification) -> bool:
            uri = notification.params.get("uri")
            updated = notification.method == RESOURCE_UPDATED and uri is not None and uri.value in subscription.uris
            return updated or notification.method in subscription.methods

        listener, hub = Listener(wants), self._session.hub
        if not hub.has_room(subscription.uris):
            raise InvalidParams(TOO_MANY_RESOURCES)
        fresh = subscription.uris - hub.uris
        hub.add(listener, subscription.uris)
        watching = asyncio.create_task(self._close_when_client_leaves(visit, listener))
        try:
            await self._session.subscribe(fresh)
            await visit.relay.notifications(
                listener,
                first=sse.encode_event(subscription.acknowledgement()),
                tag=subscription.tagged,
                last=sse.encode_event(subscription.result()),
            )
        finally:
            watching.cancel()
            hub.remove(None, listener)
            self._session.unsubscribe_unwanted(subscription.uris)

    async def _close_when_client_leaves(self, visit: Visit, listener: Listener) -> None:
        await visit.until_client_leaves()
        listener.close()
