"""What upstream is asked to tell: one reconciler for the resources and the log level that clients want to hear.

Invariants: what clients want is kept by `Listeners`, what upstream was asked for is kept here, and nobody else asks.
For each resource, and for the level, one request is with upstream at a time, and the two are compared again when it is
answered: however fast clients change their minds, upstream ends where they do. A new session was asked for nothing, so
everything is asked again.
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
"""How many of these requests may be with upstream at a time."""

FIRST_RETRY_SECONDS: Final = 1.0
LAST_RETRY_SECONDS: Final = 60.0
"""How long to wait before upstream is asked again for what it did not answer; the time doubles."""

Ask = Callable[[HeldSession, str, Mapping[str, object]], Awaitable[Answered]]
Connect = Callable[[], Awaitable[object]]
Outcome = Response | BridgeError | None
"""Upstream refused, upstream did not answer, or what is wanted is so."""


class Interest(NamedTuple):
    """What a client's request asks upstream to tell.

    Attributes:
        uri: the resource; ``None`` when it is about the log level.
        value: the level, or whether the client wants to hear of the resource.
    """

    uri: str | None
    value: str | bool


class _Waiting(NamedTuple):
    """Somebody who waits for upstream to be where they want it."""

    wants: str | bool
    settle: Callable[[Outcome], None]
    over: Callable[[], bool]


def interest_of(request: Request) -> Interest | None:
    """What the request asks to hear; ``None`` for any other, and where upstream has to say what is wrong with it."""
    if request.method not in MERGED_REQUESTS:
        return None
    uri, level = request.params.get("uri"), request.params.get("level")
    if request.method == SET_LEVEL and level is not None and level.value in LEVELS:
        return Interest(None, str(level.value))
    if request.method != SET_LEVEL and uri is not None and isinstance(uri.value, str):
        return Interest(uri.value, request.method == SUBSCRIBE)
    return None


class Subscriptions:
    """Keeps what upstream was asked to tell equal to what clients want to hear.

    Parameters:
        listeners: what clients want.
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
        """Asks a new session for all that is wanted."""
        self._forget_session()
        self._held = held
        self._due = OrderedDict.fromkeys([*self._waiting, None, *self._listeners.uris])
        self._reconcile()

    def end(self) -> None:
        """Takes note that the session was lost; another is opened only where a client waits for it."""
        self._forget_session()
        if self._waiting:
            self._need_session()

    def serve(self, exchange: Exchange, interest: Interest) -> None:
        """Answers a client's request once upstream is where the client wants it, or has refused.

        Parameters:
            exchange: the request; the listeners knows its interest, if the client can hear anything.
            interest: what it asks for.
        """

        def settle(outcome: Outcome) -> None:
            if isinstance(outcome, BridgeError):
                return exchange.fail(type(outcome)(outcome.message, detail=outcome.detail))
            if isinstance(outcome, Response) and outcome.id is not None:
                return exchange.answer(outcome.spliced((outcome.id, exchange.request.spelled_id)))
            exchange.answer(build_result(exchange.request.spelled_id, "{}"))

        self._wait(interest.uri, _Waiting(interest.value, settle, lambda: exchange.ended))

    async def told(self, uris: frozenset[str]) -> frozenset[str]:
        """Those of these resources of which upstream tells; waits until it has said so of each.

        Parameters:
            uris: resources that the listeners knows to be wanted.
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
            # Somebody waits, so this goes before what is only restored.
            self._due.move_to_end(key, last=False)
        self._reconcile()

    def _changed(self, key: str | None) -> None:
        # A session that is still to come is asked for everything.
        if self._held is not None:
            self._due[key] = None
            self._reconcile()

    def _reconcile(self) -> None:
        """Asks for what differs, as much at once as may be."""
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
        """The request that brings upstream where clients want it; ``None`` when it is there."""
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
        # Nobody can be un-asked for a level: the most severe one is the nearest to silence.
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
        """Keeps what upstream was asked for, or takes the interest for what it refused from all who have it."""
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
        log.debug("Upstream did not answer what it is to tell: %s", error)
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
        """Answers who waits for a resource or the level, now that upstream is where it was wanted."""
        for waiting in self._waiting.pop(key, ()):
            waiting.settle(None)
        # Whoever only asked, and has no stream to hear anything on, wants it no more.
        if self._difference(key) is not None:
            self._due[key] = None

    def _answer(self, key: str | None, wants: str | bool, refusal: Response) -> None:
        """Answers who waits for what upstream refused."""
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
