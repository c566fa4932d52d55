"""Unauthenticated clients beside authenticated ones: they must not get the others' answers, nor delay the others.

Invariant: the checks use only answers, ends of connections, memory and descriptors, so that they apply to any client
and any proxy. They use no name from the bridge's modules.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import re
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, suppress

import aiohttp

from chaos.account import Call, Figures
from chaos.fronts import FRONTS, fronts
from chaos.slowness import LATE_SECONDS, all_the_time, peak, probe
from chaos.smuggling import ENDPOINT, HOST, NOWHERE, PROBE, SMUGGLED_KEY, Attack, attacks
from chaos.stack import Run, Stack, stack
from harness import SSE, until

ATTACKERS = 6
VICTIMS = 10
ROUNDS = 8
"""The number of times that each attack is sent through each proxy in ``make chaos``."""

AT_ONCE = 32
PAUSE_SECONDS = 0.05
QUIET_SECONDS = 0.2
CLOSED_WITHIN_SECONDS = 5
"""Longer than the two seconds for which the bridge may drop the rest of a body before it closes."""

FLOOD_CONNECTIONS = 64
FLOOD_SECONDS = 6
FLOOD_BYTES = 131_072
LEAST_FLOOD_SECONDS = 1.5
NO_HOST = b"GET / HTTP/1.1\r\n\r\n"
GROWTH_MEGABYTES = 16

DESCRIPTORS = 400
HOLDERS = 400
HELD_SECONDS = 120
LEAST_HELD_SECONDS = 6
LEAST_HELD_DESCRIPTORS = 64
"""With fewer open descriptors no connection was held, so that the test would have no meaning."""


class RawClient(asyncio.Protocol):
    """A connection that sends any bytes and stores the answer or the reset.

    Attributes:
        received: the bytes of the answers.
        closed: set once the connection has ended.
    """

    def __init__(self) -> None:
        self.received = bytearray()
        self.closed = asyncio.Event()
        self.transport: asyncio.Transport

    @classmethod
    @asynccontextmanager
    async def connected(cls, port: int) -> AsyncIterator[RawClient]:
        """Yields a client on a new connection, which is aborted at the end."""
        _, client = await asyncio.get_running_loop().create_connection(cls, "127.0.0.1", port)
        try:
            yield client
        finally:
            client.transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.received += data

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed.set()

    async def send(self, pieces: Iterable[bytes], pause_seconds: float = PAUSE_SECONDS) -> None:
        """Sends the pieces in order, while the connection is open."""
        for number, piece in enumerate(pieces):
            if number:
                await asyncio.sleep(pause_seconds)
            if self.closed.is_set():
                return
            self.transport.write(piece)

    async def wait(self, fact: Callable[[], bool] = bool, seconds: float = CLOSED_WITHIN_SECONDS) -> None:
        """Waits until the condition is true or the connection has ended, with a time limit."""
        try:
            await until(lambda: self.closed.is_set() or fact(), seconds)
        except TimeoutError:
            return

    def answers(self) -> list[tuple[int, bytes, bytes]]:
        """Returns the status, header lines and body of each complete answer (RFC 9112, section 6.3)."""
        return list(_answers(bytes(self.received)))


def _answers(data: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    while head := re.match(rb"HTTP/1\.1 (\d{3})[^\r]*\r\n((?:[^\r]+\r\n)*)\r\n", data):
        status, lines, data = int(head[1]), head[2].lower(), data[head.end() :]
        if status < 200:
            continue
        found = re.search(rb"^content-length: (\d+)\r", lines, re.MULTILINE)
        length = int(found[1]) if found else len(data)
        if len(data) < length:
            return
        yield status, lines, data[:length]
        data = data[length:]


async def strangers(run: Run) -> Figures:
    """Unauthenticated clients hide requests in others, directly and behind proxies that share connections."""
    table = attacks()
    done = (
        f"{len(table)} requests that hide others on a connection that a client with a token uses next, and "
        f"{run.times(ROUNDS * len(table)):,} through each of {', '.join(FRONTS)}, beside {VICTIMS} such clients each"
    )
    async with stack(run, "Strangers", done) as it, fronts(run.folder, it.bridge.port) as ports:
        await it.good_request()
        gate = asyncio.Semaphore(AT_ONCE)
        await asyncio.gather(*(_then_a_victim(it, gate, attack) for attack in table))
        await asyncio.gather(*(_behind_a_front(it, name, port, table) for name, port in ports.items()))
        await it.good_request()
        for key, runs in it.account.runs().items():
            if key.startswith(SMUGGLED_KEY) and runs:
                it.figures.blame("wrong", f"{key} was let in without a token")
    return it.figures


async def _then_a_victim(it: Stack, gate: asyncio.Semaphore, attack: Attack) -> None:
    """Sends an attack, and then, as a proxy would, another client's call if the connection is still open."""
    it.figures.calls += 1
    async with gate, RawClient.connected(it.bridge.port) as client:
        await client.send(attack.pieces)
        await client.wait(lambda: bool(client.answers()))
        if not (answers := client.answers()) and attack.valid:
            it.figures.blame("unanswered", f"{attack.name}: {bytes(client.received)!r}")
        kept = attack.valid and answers and b"connection: close\r" not in answers[0][1]
        if kept:
            # If the connection is closed during this pause, a proxy would use another one.
            await client.wait(seconds=PAUSE_SECONDS)
            kept = not client.closed.is_set()
        if kept:
            await _share(it, client, attack)
        else:
            await client.wait()
            if not client.closed.is_set():
                it.figures.blame("failed", f"{attack.name}: the connection was left open: {bytes(client.received)!r}")
        if len(client.answers()) > 1 + bool(kept):
            it.figures.blame("wrong", f"{attack.name}: an answer too many: {bytes(client.received)!r}")


async def _share(it: Stack, client: RawClient, attack: Attack) -> None:
    """Sends the call of an authenticated client; if it gets no answer, the end of the test counts it as such."""
    call = it.account.open("read", _id(it))
    body = it.caller().body(call)
    head = ENDPOINT + f"Authorization: Bearer {it.run.token}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    await client.send((head + body,))
    await client.wait(lambda: len(client.answers()) > 1)
    for status, _, data in client.answers()[1:2]:
        try:
            call.take(status, data)
        except (ValueError, KeyError, TypeError, AttributeError):
            call.complain(f"HTTP {status} {data[:100]!r}")
        if call.complaint:
            call.complaint = f"after {attack.name}: {call.complaint}"


async def _behind_a_front(it: Stack, front: str, port: int, table: list[Attack]) -> None:
    inputs = iter(it.random.sample(table * ROUNDS, it.run.times(ROUNDS * len(table))))
    attacked = asyncio.Event()

    async def attack() -> None:
        for one in inputs:
            it.figures.calls += 1
            async with RawClient.connected(port) as client:
                await client.send(one.pieces)
                await client.wait(lambda: bool(client.answers()), QUIET_SECONDS)

    async with asyncio.TaskGroup() as group:
        victims = [group.create_task(_victim(it, front, port, attacked)) for _ in range(VICTIMS)]
        await asyncio.gather(*(attack() for _ in range(ATTACKERS)))
        attacked.set()
    calls, took = [], []
    for victim in victims:
        for call, seconds in victim.result():
            calls.append(call)
            took.append(seconds)
    own = sum(call.got == "answer" and not call.complaint for call in calls)
    late = statistics.quantiles(took, n=100)[-1]
    it.figures.notes.append(
        f"{front}: {own:,} of {len(calls):,} calls of clients with a token got their own answer, "
        f"p99 {late * 1000:.0f} ms"
    )


async def _victim(it: Stack, front: str, port: int, attacked: asyncio.Event) -> list[tuple[Call, float]]:
    """Makes calls with unique ids through a proxy, as an authenticated client, until the attack is over.

    Returns:
        Each call and the seconds that it took.
    """
    calls = []
    caller = it.caller(url=f"http://127.0.0.1:{port}/mcp")
    while not attacked.is_set():
        call = it.account.open(it.random.choice(("read", "write")), _id(it))
        body, began = caller.body(call), time.monotonic()
        if it.random.random() < 0.5:
            await caller.post_json([call], body, {})
        else:
            await caller.post_stream(call, body, SSE)
        seconds = time.monotonic() - began
        if seconds > LATE_SECONDS or (call.got != "answer" and not call.complaint):
            it.figures.blame("unanswered", f"through {front}, after {seconds:.1f} s: {call}")
        calls.append((call, seconds))
        await asyncio.sleep(it.random.uniform(0, 0.03))
    return calls


def _id(it: Stack) -> str:
    """Returns an id that no other call has."""
    return str(it.random.getrandbits(52))


async def floods(run: Run) -> Figures:
    """Unauthenticated clients send as much data, or as slowly, as possible on many connections."""
    seconds = max(LEAST_FLOOD_SECONDS, FLOOD_SECONDS * run.scale)
    done = f"floods on {FLOOD_CONNECTIONS} connections without a token, {seconds:.1f} s each, beside 4 clients"
    async with stack(run, "Floods", done) as it:
        await probe(it, 1)
        it.figures.notes.append(f"alone: {await probe(it, seconds)}")
        for name, forms in FLOODS.items():
            before = it.bridge.megabytes
            async with peak(it) as most, all_the_time(functools.partial(_flood, it, forms), FLOOD_CONNECTIONS):
                probed = await probe(it, seconds)
            grown = most[0] - before
            it.figures.notes.append(f"with {FLOOD_CONNECTIONS} of *{name}*: {probed}, memory +{grown:.0f} MB")
            if grown > GROWTH_MEGABYTES:
                it.figures.blame("grown", f"{name}: {grown:.0f} MB more, {GROWTH_MEGABYTES} allowed")
        await it.good_request()
    return it.figures


async def _flood(it: Stack, forms: tuple[Callable[[RawClient], Awaitable[None]], ...]) -> None:
    it.figures.calls += 1
    async with RawClient.connected(it.bridge.port) as client:
        await it.random.choice(forms)(client)
    # The pause: if clients are rejected at once, their reconnections must not use up the driver's CPU time.
    await asyncio.sleep(PAUSE_SECONDS)


async def _pipelined(client: RawClient) -> None:
    client.transport.write(PROBE * (FLOOD_BYTES // len(PROBE)))
    await client.wait(seconds=1)


async def _pipelined_without_host(client: RawClient) -> None:
    client.transport.write(NO_HOST * (FLOOD_BYTES // len(NO_HOST)))
    await client.wait(seconds=1)


async def _never_reading(client: RawClient) -> None:
    client.transport.pause_reading()
    await client.send((PROBE * 1000,) * 20)


async def _never_reading_one_by_one(client: RawClient) -> None:
    client.transport.pause_reading()
    await client.send((PROBE,) * 100, 0.01)


async def _slow_head(client: RawClient) -> None:
    await client.send(tuple(bytes([byte]) for byte in NOWHERE[:20]))


async def _large_head(client: RawClient) -> None:
    await client.send((NOWHERE, *(b"X-Large: " + b"x" * 6000 + b"\r\n",) * 10))
    await client.wait(seconds=0.5)


async def _slow_body(client: RawClient) -> None:
    await client.send((ENDPOINT + b"Content-Length: 1000000\r\n\r\n", *(b"x",) * 20))


async def _large_body(client: RawClient) -> None:
    await client.send((NOWHERE + b"Content-Length: 1000000\r\n\r\n", *(b"x" * 30_000,) * 20))


FLOODS: dict[str, tuple[Callable[[RawClient], Awaitable[None]], ...]] = {
    "pipelined requests": (_pipelined, _pipelined_without_host),
    "requests that never read": (_never_reading, _never_reading_one_by_one),
    "slow heads": (_slow_head, _large_head),
    "slow bodies": (_slow_body, _large_body),
}


async def held(run: Run) -> Figures:
    """Unauthenticated clients hold more connections than the bridge has descriptors; all others must be served."""
    seconds = max(LEAST_HELD_SECONDS, HELD_SECONDS * run.scale)
    done = (
        f"{HOLDERS} connections held without a token for {seconds:.0f} s on a bridge with {DESCRIPTORS} descriptors, "
        "beside probes and a client with a token on new connections"
    )
    async with stack(run, "Held connections", done, descriptors=DESCRIPTORS) as it:
        await it.good_request()
        async with asyncio.TaskGroup() as group:
            holders = [
                group.create_task(_hold(it, HOLDS[number % len(HOLDS)], 0.5 + number / HOLDERS))
                for number in range(HOLDERS)
            ]
            try:
                await asyncio.sleep(1)
                most, served = await _serve(it, time.monotonic() + seconds)
            finally:
                for holder in holders:
                    holder.cancel()
        it.figures.notes.append(f"{served:,} probes; {most} of {DESCRIPTORS} descriptors open at most")
        if most < LEAST_HELD_DESCRIPTORS:
            it.figures.blame("failed", f"only {most} descriptors were open: nothing was held")
        await it.good_request()
    return it.figures


HOLDS: tuple[tuple[bytes, ...], ...] = (
    (),
    (PROBE,),
    (b"GET /livez HTTP/1.1\r\n" + HOST,),
    (ENDPOINT + b"Content-Length: 1000\r\n\r\n", b"x"),
)
"""The bytes on a held connection: none, a complete request, half a head, a rejected head without its body."""


async def _hold(it: Stack, pieces: tuple[bytes, ...], pause_seconds: float) -> None:
    """Holds one connection after another, with a pause after each that the bridge ends, until it is cancelled."""
    while True:
        with suppress(ConnectionError):
            async with RawClient.connected(it.bridge.port) as client:
                it.figures.calls += 1
                await client.send(pieces)
                await client.closed.wait()
        # The pauses differ: in a burst beyond the descriptors, connections of authenticated clients would be lost, too.
        await asyncio.sleep(pause_seconds)


async def _serve(it: Stack, end: float) -> tuple[int, int]:
    """Makes probes and calls on new connections; returns the maximum of open descriptors, and the number of probes."""
    most, served = 0, 0
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, force_close=True)) as http:
        client = dataclasses.replace(it, http=http)
        while time.monotonic() < end:
            most = max(most, it.bridge.descriptors)
            began = time.monotonic()
            await asyncio.gather(_probed(client, "/livez"), _probed(client, "/readyz"), client.good_request())
            served += 2
            if (late := time.monotonic() - began) > LATE_SECONDS:
                it.figures.blame("unanswered", f"a probe or a call on a new connection took {late:.1f} s")
            await asyncio.sleep(PAUSE_SECONDS)
    return most, served


async def _probed(it: Stack, path: str) -> None:
    try:
        async with (
            asyncio.timeout(CLOSED_WITHIN_SECONDS),
            it.http.get(it.bridge.url.replace("/mcp", path)) as response,
        ):
            if response.status != 200:
                it.figures.blame("failed", f"{path} was answered {response.status}")
    except (aiohttp.ClientError, TimeoutError) as error:
        it.figures.blame("unanswered", f"{path}: {error!r}")
