"""A client's own upstream session: its requests keep their ids, and upstream's requests are sent to the client.

Invariant: messages are forwarded unchanged, with one exception. A request gets another id and progress token if it is
sent again, or if the client reuses them while upstream may still send something for the first request (MCP forbids
that, but some clients do it); replies then carry the client's own again. Nothing here waits or does I/O.
"""

from __future__ import annotations

import itertools
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from vestige_bridge.jsonrpc.messages import Notification, Request, Response, is_token
from vestige_bridge.jsonrpc.spans import Value, decode
from vestige_bridge.mcp.lifecycle import HeldSession
from vestige_bridge.mcp.methods import PROGRESS
from vestige_bridge.mcp.multiplexer import Answer, Call, Multiplexer, Progress, Reply, Unattributed, read_message

C = TypeVar("C", bound=Call)
Inspect = Callable[[Notification | Request], None]
"""Called with messages from upstream that belong on the session's own stream."""


MAX_CUT: Final = 1_024
"""How many ids and tokens of a session are remembered for which upstream may still send something after a cut."""


class PassThrough(Multiplexer[C]):
    """The calls in flight on one client's own session, with the client's own ids.

    Parameters:
        inspect: called with messages that belong on the session's own stream.
    """

    def __init__(self, inspect: Inspect) -> None:
        super().__init__()
        self._inspect = inspect
        self._by_id: dict[object, C] = {}
        self._by_token: dict[object, C] = {}
        self._busy: Counter[object] = Counter()
        self._busy_tokens: Counter[object] = Counter()
        # The hashes of ids and tokens, which may be long; two with the same hash are only renamed unnecessarily.
        self._cut: OrderedDict[int, None] = OrderedDict()
        self._hearing: dict[C, None] = {}
        self._numbers = itertools.count(1)

    @property
    def idle(self) -> bool:
        """Whether no request of the client is in flight."""
        return not self._open

    def accept_stream(self, call: C) -> None:
        """Records that the client accepts an event stream for the call, which may carry other messages, too."""
        self._hearing[call] = None

    def assign(self, call: C) -> bytes:
        """The bytes of the call: unchanged, unless it was sent before or its id is in use."""
        self.withdraw(call)
        request, token = call.request, call.request.progress_token
        # Late messages of an interrupted attempt must not be taken for those of the next one.
        sent_before = bool(call.spelled_upstream_id)
        call.upstream_id = next(self._numbers)
        in_use = self._in_use(self._busy, request.id) or (token is not None and self._in_use(self._busy_tokens, token))
        again = sent_before or in_use
        call.spelled_upstream_id = f'"vestige-bridge-again-{call.upstream_id}"' if again else request.spelled_id
        self._by_id[_upstream_id(call)] = call
        self.hold(call)
        if token is not None:
            self._by_token[_upstream_id(call) if again else token.value] = call
        if not again:
            return request.encoded()
        changed = [value for value in (request.id, token) if value is not None]
        return request.spliced(*((value, call.spelled_upstream_id) for value in changed))

    def withdraw(self, call: C) -> None:
        """Ends an attempt: later messages for its id are dropped."""
        token = call.request.progress_token
        if call.spelled_upstream_id:
            _drop(self._by_id, _upstream_id(call), call)
            _drop(self._by_token, _upstream_id(call), call)
        if token is not None:
            _drop(self._by_token, token.value, call)

    def close(self, call: C) -> None:
        """Removes a call."""
        super().close(call)
        self._hearing.pop(call, None)

    def hold(self, call: C) -> None:
        """Prevents reuse of a call's id: upstream may still send something for it."""
        self._busy[_upstream_id(call)] += 1
        if (token := _upstream_token(call)) is not None:
            self._busy_tokens[token] += 1

    def release(self, call: C, *, settled: bool = True) -> None:
        """Ends ``hold`` or ``assign``.

        Parameters:
            call: the call.
            settled: whether upstream will send nothing more for it.
        """
        for busy, key in ((self._busy, _upstream_id(call)), (self._busy_tokens, _upstream_token(call))):
            if key is None:
                continue
            busy[key] -= 1
            if not busy[key]:
                del busy[key]
            if not settled:
                self._cut[hash(key)] = None
        while len(self._cut) > MAX_CUT:
            self._cut.popitem(last=False)

    def _in_use(self, busy: Counter[object], value: Value) -> bool:
        """Whether upstream may still send something for an id or a token that the client has used."""
        return busy[value.value] > 0 or (bool(self._cut) and hash(value.value) in self._cut)

    def route(self, data: bytes, arrived_on: C | None = None) -> Answer[C] | Progress[C] | Reply | Unattributed:
        """Chooses the client's stream for a message from upstream.

        A response is routed by its id and progress by its token, whichever stream they came on. Other messages stay on
        the stream that they came on. If the client does not read that stream, or its request has ended, they go to
        another open stream, or to ``inspect``.

        Parameters:
            data: the bytes of one message.
            arrived_on: the call on whose stream they came; ``None`` on the session's own stream.

        Errors:
            InvalidMessage: the bytes are not a JSON-RPC message.
        """
        message = read_message(data)
        if isinstance(message, Response):
            return self._route_response(message)
        token = message.params.get("progressToken")
        if message.method == PROGRESS and token is not None:
            call = self._by_token.get(token.value) if is_token(token) else None
            spelled = None if call is None else call.request.progress_token
            if call is None or spelled is None:
                return Unattributed(None)
            return Progress(call, message.spliced((token, call.request.spelled(spelled))))
        stream = arrived_on
        if arrived_on is not None and arrived_on not in self._hearing:
            stream = next(iter(self._hearing), None)
        if stream is not None:
            return Progress(stream, data)
        self._inspect(message)
        return Unattributed(None)

    def _known(self, token: Value) -> C | None:
        """The call with this id; upstream may spell a number differently."""
        return self._by_id.get(token.value)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientHeldSession(HeldSession):
    """An upstream session that one client opened and uses alone.

    Attributes:
        router: routes messages to the client's requests.
    """

    router: PassThrough[Any]


def _drop(calls: dict[object, C], key: object, call: C) -> None:
    """Removes a call, if it is the one with this key."""
    if calls.get(key) is call:
        del calls[key]


def _upstream_id(call: Call) -> object:
    """The call's id upstream."""
    return decode(call.spelled_upstream_id, 0)[0]


def _upstream_token(call: Call) -> object:
    """The call's progress token upstream; ``None`` without one."""
    token = call.request.progress_token
    if token is None:
        return None
    return token.value if call.spelled_upstream_id == call.request.spelled_id else _upstream_id(call)
