"""A reconciler for the subscriptions and the log level that the bridge sets upstream for all clients.

Invariants: `Listeners` keeps what clients want, this module keeps what was requested upstream, and no other module
requests it. For each resource, and for the level, one request is with upstream at a time. Wanted and requested state
are compared again after its answer, so they become equal however fast clients change. A new session has no
subscriptions, so all are requested again.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, NamedTuple

from vestige_bridge.concurrency import Tasks
from vestige_bridge.errors import BridgeError
from vestige_bridge.jsonrpc.builders import build_result
from vestige_bridge.jsonrpc.messages import Request, Response
from vestige_bridge.mcp.lifecycle import HeldSession
from vestige_bridge.mcp.methods import MERGED_REQUESTS, SET_LEVEL, SUBSCRIBE, UNSUBSCRIBE
from vestige_bridge.session.exchange import Answered, Exchange
from vestige_bridge.session.listeners import LEVELS, Listeners

log = logging.getLogger(__name__)

MAX_ASKED_AT_ONCE: Final = 8
"""Maximum number of these requests with upstream at a time."""

FIRST_RETRY_SECONDS: Final = 1.0
LAST_RETRY_SECONDS: Final = 60.0
"""The longest wait before an unanswered request is sent again; the wait doubles each time."""

Ask = Callable[[HeldSession, str, Mapping[str, object]], Awaitable[Answered]]
Connect = Callable[[], Awaitable[object]]
Outcome = Response | BridgeError | None
"""A refusal by upstream, a failure, or ``None`` if the wanted state is reached."""


class Interest(NamedTuple):
    """The notifications that a client's request asks for.

    Attributes:
        uri: the resource; ``None`` for the log level.
        value: the level, or whether the client subscribes to the resource.
    """

    uri: str | None
    value: str | bool


class _Waiting(NamedTuple):
    """A client that waits until upstream has the wanted state."""

    wants: str | bool
    settle: Callable[[Outcome], None]
    over: Callable[[], bool]


def interest_of(request: Request) -> Interest | None:
    """The interest of a request; ``None`` for other requests, and for invalid ones, which upstream answers."""
    if request.method not in MERGED_REQUESTS:
        return None
    uri, level = request.params.get("uri"), request.params.get("level")
    if request.method == SET_LEVEL and level is not None and level.value in LEVELS:
        return Interest(None, str(level.value))
    if request.method != SET_LEVEL and uri is not None and isinstance(uri.value, str):
        return Interest(uri.value, request.method == SUBSCRIBE)
    return None


class Subscriptions:
    """Keeps the subscriptions upstream equal to those of the clients.

    Parameters:
        listeners: the clients' subscriptions.
        tasks: owner of the requests.
        connect: opens an upstream session if there is none, and calls ``begin`` with it.
        ask: sends a request of the bridge's own, once.
    """

    def __init__(self, listeners: Listeners, tasks: Tasks, connect: Connect, ask: Ask) -> None:
        self._listeners = listeners
        self._tasks = tasks
        self._connect = connect
        self._ask = ask
        self._held: HeldSession | None = None
        self._asked: set[str] = set()
        self._asked_level: str | None = None
        self._asking: set[str | None] = set()
        self._due: OrderedDict[str | None, None] = OrderedDict()
        self._waiting: dict[str | None, list[_Waiting]] = {}
        self._unanswered: set[str | None] = set()
        self._retry_seconds = FIRST_RETRY_SECONDS
        self._connecting = False
        listeners.changed = self._changed

    def begin(self, held: HeldSession) -> None:
        """Requests all subscriptions on a new session."""
        self._forget_session()
        self._held = held
        self._due = OrderedDict.fromkeys([*self._waiting, None, *self._listeners.uris])
        self._reconcile()

    def end(self) -> None:
        """Records that the session was lost; another is opened only if a client waits for it."""
        self._forget_session()
        if self._waiting:
            self._need_session()

    def serve(self, exchange: Exchange, interest: Interest) -> None:
        """Answers a client's request when upstream has the wanted state, or has refused it.

        Parameters:
            exchange: the request; its interest is already in the listeners, if the client can get notifications.
            interest: what it asks for.
        """

        def settle(outcome: Outcome) -> None:
            if isinstance(outcome, BridgeError):
                return exchange.fail(type(outcome)(outcome.message, detail=outcome.detail))
            if isinstance(outcome, Response) and outcome.id is not None:
                return exchange.answer(outcome.spliced((outcome.id, exchange.request.spelled_id)))
            exchange.answer(build_result(exchange.request.spelled_id, "{}"))

        self._wait(interest.uri, _Waiting(interest.value, settle, lambda: exchange.ended))

    async def confirmed(self, uris: frozenset[str]) -> frozenset[str]:
        """Waits until upstream has answered for each of these resources; returns those that it accepted.

        Parameters:
            uris: resources whose subscription is already in the listeners.
        """
        loop = asyncio.get_running_loop()
        outcomes: dict[str, asyncio.Future[Outcome]] = {uri: loop.create_future() for uri in sorted(uris)}
        for uri, outcome in outcomes.items():
            self._wait(uri, _Waiting(True, _set_once(outcome), outcome.done))
        try:
            return frozenset([uri for uri, outcome in outcomes.items() if await outcome is None])
        finally:
            for outcome in outcomes.values():
                outcome.cancel()

    def _wait(self, key: str | None, waiting: _Waiting) -> None:
        if self._held is None and waiting.wants is False:
            return waiting.settle(None)
        self._waiting.setdefault(key, []).append(waiting)
        if self._held is None:
            return self._need_session()
        if key not in self._asking and self._difference(key) is None:
            self._settle(key)
        else:
            self._due[key] = None
            # A client waits, so this is sent before subscriptions that are only restored.
            self._due.move_to_end(key, last=False)
        self._reconcile()

    def _changed(self, key: str | None) -> None:
        # A new session gets all requests.
        if self._held is not None:
            self._due[key] = None
            self._reconcile()

    def _reconcile(self) -> None:
        """Sends the requests for all differences, up to the limit."""
        held = self._held
        while held is not None and self._due and len(self._asking) < MAX_ASKED_AT_ONCE:
            key, _ = self._due.popitem(last=False)
            if key in self._asking:
                continue
            difference = self._difference(key)
            if difference is None:
                self._settle(key)
            else:
                self._asking.add(key)
                self._tasks.start(self._ask_for(held, key, *difference))

    def _difference(self, key: str | None) -> tuple[str, Mapping[str, str]] | None:
        """The request that makes upstream's state equal to the wanted one; ``None`` if they are equal."""
        if key is None:
            level = self._wanted_level()
            return None if level in (None, self._asked_level) else (SET_LEVEL, {"level": str(level)})
        wanted = key in self._listeners.uris or any(
            it.wants is True and not it.over() for it in self._waiting.get(key, ())
        )
        if wanted == (key in self._asked):
            return None
        return SUBSCRIBE if wanted else UNSUBSCRIBE, {"uri": key}

    def _wanted_level(self) -> str | None:
        levels = [self._listeners.level, *(str(it.wants) for it in self._waiting.get(None, ()) if not it.over())]
        wanted = [level for level in levels if level is not None]
        # MCP has no request that removes a level: the most severe one sends the fewest messages.
        silence = None if self._asked_level is None else LEVELS[-1]
        return min(wanted, key=LEVELS.index, default=silence)

    async def _ask_for(self, held: HeldSession, key: str | None, method: str, params: Mapping[str, str]) -> None:
        outcome: Outcome = None
        try:
            response = (await self._ask(held, method, params)).response
            outcome = response if response.failed else None
        except BridgeError as error:
            outcome = error
        if held is not self._held:
            return
        self._asking.discard(key)
        if isinstance(outcome, BridgeError):
            self._ask_again_later(key, outcome)
        else:
            self._note(key, method, params, outcome)
            self._due[key] = None
        self._reconcile()

    def _note(self, key: str | None, method: str, params: Mapping[str, str], refusal: Response | None) -> None:
        """Stores what upstream accepted, or removes the interest that it refused from all clients."""
        self._retry_seconds = FIRST_RETRY_SECONDS
        if key is None:
            level = params["level"]
            if refusal is None:
                self._asked_level = level
            elif self._listeners.level is None and not self._waiting.get(None):
                self._asked_level = None
            else:
                self._answer(key, level, refusal)
                self._listeners.drop_level(level)
        elif method == UNSUBSCRIBE:
            self._asked.discard(key)
        elif refusal is None:
            self._asked.add(key)
        else:
            self._answer(key, True, refusal)
            self._listeners.drop(key)

    def _ask_again_later(self, key: str | None, error: BridgeError) -> None:
        log.debug("Upstream did not answer a request for notifications: %s", error)
        for waiting in self._waiting.pop(key, ()):
            waiting.settle(None if waiting.wants is False else error)
        if not self._unanswered:
            asyncio.get_running_loop().call_later(self._retry_seconds, self._ask_again)
            self._retry_seconds = min(2 * self._retry_seconds, LAST_RETRY_SECONDS)
        self._unanswered.add(key)

    def _ask_again(self) -> None:
        unanswered, self._unanswered = self._unanswered, set()
        self._due |= OrderedDict.fromkeys(unanswered)
        self._reconcile()

    def _settle(self, key: str | None) -> None:
        """Answers the clients that wait for a resource or the level, if upstream has the wanted state."""
        for waiting in self._waiting.pop(key, ()):
            waiting.settle(None)
        # A client without a stream cannot get notifications, so its interest ends here.
        if self._difference(key) is not None:
            self._due[key] = None

    def _answer(self, key: str | None, wants: str | bool, refusal: Response) -> None:
        """Answers the clients that wait for a request that upstream refused."""
        waiting = self._waiting.pop(key, [])
        rest = [it for it in waiting if it.wants != wants]
        if rest:
            self._waiting[key] = rest
        for it in waiting:
            if it.wants == wants:
                it.settle(refusal)

    def _need_session(self) -> None:
        if not self._connecting:
            self._connecting = True
            self._tasks.start(self._open_session())

    async def _open_session(self) -> None:
        try:
            while self._held is None and self._waiting:
                await self._connect()
        except BridgeError as error:
            waiting, self._waiting = self._waiting, {}
            for it in (it for those in waiting.values() for it in those):
                it.settle(error)
        finally:
            self._connecting = False

    def _forget_session(self) -> None:
        self._held = None
        self._asked, self._asked_level, self._asking = set(), None, set()
        self._due.clear()
        self._unanswered.clear()


def _set_once(future: asyncio.Future[Outcome]) -> Callable[[Outcome], None]:
    def settle(outcome: Outcome) -> None:
        if not future.done():
            future.set_result(outcome)

    return settle
