"""Which connection is closed to free capacity for a new one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from vestige_bridge.server.connections import Connections, Limits
from vestige_bridge.upstream.answer_budget import AnswerBudget

LIMIT = 5


class Client:
    """A connection that is busy if ``idle_since`` is ``None``."""

    def __init__(self, principal: str | None, idle_since: float | None) -> None:
        self.principal = principal
        self.idle_since = idle_since
        self.closed = False

    def watch(self, now: float) -> None:
        """Does nothing."""

    def close_idle(self) -> None:
        self.closed = True


@pytest.fixture
async def connections() -> Iterator[Connections]:  # type: ignore[misc]
    it = Connections(Limits(connections=LIMIT, keep_alive_seconds=650, send_seconds=60), AnswerBudget(100))
    yield it
    for client in list(it._all):
        it.forget(client)


def filled(connections: Connections, *clients: Client) -> list[Client]:
    """Fills the connections up to their limit, and returns them."""
    assert len(clients) == LIMIT
    for client in clients:
        assert connections.admit(client)
        if client.principal is None and client.idle_since is not None:
            connections.unauthenticated_idle(client)
    return [*clients]


async def test_the_longest_idle_unauthenticated_connection_is_closed_before_those_of_principals(
    connections: Connections,
) -> None:
    clients = filled(
        connections, Client("ann", 1.0), Client(None, 2.0), Client(None, 3.0), Client("ann", 4.0), Client(None, None)
    )
    assert connections.admit(Client(None, None))
    assert [client.closed for client in clients] == [False, True, False, False, False]
    assert (connections.open, connections.closed_for_room, connections.refused) == (LIMIT, 1, 0)


async def test_otherwise_the_principal_with_the_most_idle_connections_loses_its_longest_idle_one(
    connections: Connections,
) -> None:
    clients = filled(
        connections, Client("bob", 1.0), Client("ann", 3.0), Client("ann", 2.0), Client("ann", 4.0), Client("bob", None)
    )
    assert connections.admit(Client(None, None))
    assert [client.closed for client in clients] == [False, False, True, False, False]


async def test_an_unauthenticated_connection_with_a_request_in_flight_is_not_closed(connections: Connections) -> None:
    clients = filled(connections, *(Client(None, None) for _ in range(LIMIT)))
    connections.unauthenticated_idle(clients[0])
    connections.unauthenticated_busy(clients[0])
    assert not connections.admit(Client(None, None))
    assert not any(client.closed for client in clients)
    assert (connections.closed_for_room, connections.refused) == (0, 1)


@pytest.mark.parametrize("newcomers", [2, 40])
async def test_rejected_connections_that_are_not_closed_yet_do_not_raise_the_limit(
    connections: Connections, newcomers: int
) -> None:
    clients = filled(connections, *(Client(None, None) for _ in range(LIMIT)))
    for number in range(newcomers):
        rejected = Client(None, float(number))
        assert not connections.admit(rejected)
        # It reads for a while, so that a reset does not lose its answer.
        connections.unauthenticated_idle(rejected)
    assert not any(client.closed for client in clients)
    assert (connections.open, connections.refused) == (LIMIT + 1, newcomers)
