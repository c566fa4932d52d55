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
from vestige_bridge.hub import RESOURCE_UPDATED, TOO_MANY_RESOURCES, Listener, concerns
from vestige_bridge.lifecycle import HeldSession, is_about_tasks, without_task
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
        if is_about_tasks(message.method):
            raise MethodNotFound("There are no tasks on a session that is shared.")
        with self._session.admit() as admission:
            held = await self._session.connected()
            if message.method == DISCOVER:
                return await visit.relay.answer(discover(message, held.initialize_result))
            if message.method != LISTEN:
                caller = Caller(visit.principal, _NO_SESSION, visit.caller.read_only)
                legacy = without_task(to_legacy(message))
                exchange = self._session.request(legacy, caller, visit.header_lines, admission)
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
            if notification.method == RESOURCE_UPDATED and uri is not None and isinstance(uri.value, str):
                return concerns(uri.value, subscription.uris)
            return notification.method in subscription.methods

        listener, hub = Listener(wants, opened=False), self._session.hub
        if not hub.make_room(visit.principal, subscription.uris):
            raise InvalidParams(TOO_MANY_RESOURCES)
        hub.add(listener, visit.principal, subscription.uris)
        watching = asyncio.create_task(self._close_when_client_leaves(visit, listener))
        acknowledging = asyncio.create_task(self._acknowledge(subscription, listener))
        try:
            # The stream opens with a comment: its first message waits until upstream has said what it will tell.
            await visit.relay.notifications(
                listener, tag=subscription.tagged, last=sse.encode_event(subscription.result())
            )
        finally:
            watching.cancel()
            acknowledging.cancel()
            hub.remove(None, listener)

    async def _acknowledge(self, subscription: Subscription, listener: Listener) -> None:
        """Tells the client what it will hear, once that is known."""
        subscription.narrow(await self._session.subscriptions.told(subscription.uris))
        self._session.hub.narrow(listener, subscription.uris)
        listener.open(subscription.acknowledgement())

    async def _close_when_client_leaves(self, visit: Visit, listener: Listener) -> None:
        await visit.until_client_leaves()
        listener.close()
