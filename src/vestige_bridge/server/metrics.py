"""The metrics: counted in plain numbers while requests pass, and told in Prometheus's words when somebody asks.

Invariant: a request costs it a few additions. What other objects count is read from them when a scrape asks for it,
and label values come from lists that the bridge knows.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Final

from prometheus_client import CollectorRegistry, Metric, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    SummaryMetricFamily,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from vestige_bridge import __version__
from vestige_bridge.access.audit import AuditLog
from vestige_bridge.access.record import ENDPOINT_PATHS, OAUTH_PREFIX, AccessRecord, metrics_label
from vestige_bridge.access.responses import error_response
from vestige_bridge.access.tokens import Tokens
from vestige_bridge.endpoint.gate import Gate
from vestige_bridge.endpoint.per_client_mode import ClientSessions
from vestige_bridge.endpoint.response_writer import EventStreams
from vestige_bridge.errors import MethodNotAllowed, NotFound
from vestige_bridge.mcp.methods import LISTEN
from vestige_bridge.server.backup_status import read_backup_status
from vestige_bridge.server.connections import Connections
from vestige_bridge.session.dispatcher import Dispatcher
from vestige_bridge.session.durations import BUCKETS, Durations
from vestige_bridge.session.monitor import Monitor, State
from vestige_bridge.session.session import Session
from vestige_bridge.session.window import MAX_PRINCIPALS_TOLD, Waits
from vestige_bridge.settings import Settings

if TYPE_CHECKING:
    from vestige_bridge.access.oauth_tokens import OAuthTokens

_PREFIX: Final = "vestige_bridge_"
_UNREAD: Final = "none"
_ENDLESS: Final = frozenset({_UNREAD, LISTEN})
"""What has no duration that says anything: messages that were not read, and streams that end with their client."""


class Metrics(Collector):
    """The requests of clients that are over, and the numbers that the bridge's other objects keep.

    Parameters:
        settings: the limits.
        session: the held session.
        dispatcher: sees the messages of clients through.
        client_sessions: the clients' own sessions.
        streams: the event streams of all clients.
        monitor: what is known of the connection.
        tokens: the valid tokens.
        oauth: the access tokens of an identity provider; ``None`` for none.
        refusals: how many requests were rejected before authentication succeeded, by reason.
        connections: the connections of clients.
        gate: judges the messages of clients.
        audit: the audit log; ``None`` for none.

    Attributes:
        registry: these metrics and those of the process.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        session: Session,
        dispatcher: Dispatcher,
        client_sessions: ClientSessions,
        streams: EventStreams,
        monitor: Monitor,
        tokens: Tokens,
        oauth: OAuthTokens | None,
        refusals: Mapping[str, int],
        connections: Connections,
        gate: Gate,
        audit: AuditLog | None,
    ) -> None:
        self._connections = connections
        self._gate = gate
        self._audit = audit
        self._settings = settings
        self._session = session
        self._dispatcher = dispatcher
        self._client_sessions = client_sessions
        self._streams = streams
        self._monitor = monitor
        self._tokens = tokens
        self._oauth = oauth
        self._refusals = refusals
        self._requests: defaultdict[tuple[str, str, int], int] = defaultdict(int)
        self._durations: defaultdict[tuple[str, str], Durations] = defaultdict(Durations)
        self._sent_bytes = 0
        self.registry = CollectorRegistry()
        self.registry.register(self)
        ProcessCollector(registry=self.registry)

    def observe(self, path: str, record: AccessRecord, status: int, sent_bytes: int, seconds: float) -> None:
        """Counts a request to the endpoint that is over.

        Parameters:
            path: where it went.
            record: what was learnt of it.
            status: the HTTP status, as the access log says it.
            sent_bytes: the length of the answer's body.
            seconds: how long it took.
        """
        if path not in ENDPOINT_PATHS:
            return
        method, tool = record.method or _UNREAD, record.tool or ""
        self._requests[method, tool, status] += 1
        self._sent_bytes += sent_bytes
        if method not in _ENDLESS:
            self._durations[method, tool].observe(seconds)

    def collect(self) -> Iterator[Metric]:
        """Every metric with its values of this moment."""
        yield from self._traffic()
        yield from self._upstream()
        yield from self._sharing()
        yield from self._authentication()
        yield from self._clients()
        if self._settings.backup_status_file:
            yield from self._backups()
        yield _info("build_info", "The bridge itself; always 1.", {"version": __version__})

    def _traffic(self) -> Iterator[Metric]:
        requests = CounterMetricFamily(
            f"{_PREFIX}requests", "Requests to the endpoint that are over.", labels=("method", "tool", "status")
        )
        for (method, tool, status), count in self._requests.items():
            requests.add_metric((method, tool, str(status)), count)
        yield requests
        duration = HistogramMetricFamily(
            f"{_PREFIX}request_duration_seconds",
            "Time from a request's arrival to the end of its answer.",
            labels=("method", "tool"),
        )
        for labels, durations in self._durations.items():
            _add_histogram(duration, labels, durations)
        yield duration
        dispatcher, own = self._dispatcher, self._client_sessions
        yield _counter("response_bytes", "Bytes of the bodies that clients were sent.", self._sent_bytes)
        yield _counters(
            "requests_failed",
            "Requests that ended without Vestige's answer, whatever their HTTP status.",
            "reason",
            dispatcher.failures,
        )
        yield _gauge("requests_in_flight", "Requests in flight.", dispatcher.in_flight)
        yield _gauge("requests_in_flight_limit", "How many may be.", self._settings.max_in_flight)
        yield _gauge("streams_open", "Open streams of notifications.", self._streams.open)
        yield _gauge("client_sessions_open", "Upstream sessions of clients in per-client mode.", own.sessions_open)
        yield _gauge("draining", "1 while the bridge takes no more requests.", dispatcher.draining)

    def _upstream(self) -> Iterator[Metric]:
        session, dispatcher, monitor = self._session, self._dispatcher, self._monitor
        state = GaugeMetricFamily(
            f"{_PREFIX}upstream_state", "1 for the state of the connection to Vestige.", labels=("state",)
        )
        for it in State:
            state.add_metric((it.value,), it is monitor.health.state)
        yield state
        if (age := monitor.answer_age_seconds) is not None:
            yield _gauge("upstream_last_answer_age_seconds", "Age of Vestige's last answer.", age)
        if session.held is not None:
            labels = {"name": session.held.server_name, "version": session.held.server_version}
            yield _info("upstream_info", "What Vestige calls itself; always 1.", labels)
        yield _counter("upstream_sessions_opened", "Sessions opened for all.", session.sessions_opened)
        yield _counter("upstream_reconnects", "Connections that came back after a failure.", monitor.reconnects)
        yield _counters("upstream_failures", "Failures of the connection to Vestige.", "reason", monitor.failures)
        yield _counter(
            "upstream_stream_failures",
            "Times that the session's own event stream was refused or cut.",
            session.stream_failures,
        )
        yield _gauge(
            "upstream_stateless", "1 while upstream keeps no sessions: a process a request.", session.stateless
        )
        duration = HistogramMetricFamily(
            f"{_PREFIX}upstream_call_duration_seconds",
            "Time from the sending of a tools/call to Vestige until its answer, without the wait for a place.",
            labels=(),
        )
        _add_histogram(duration, (), dispatcher.call_durations)
        yield duration
        yield _counter("replays", "Requests that were sent again after a failure.", dispatcher.replays)
        yield _gauge("tools_known", "Tools that Vestige announced.", len(session.catalog.tools))
        yield _gauge("upstream_requests_in_flight", "Requests that are with Vestige.", dispatcher.window.taken)
        yield _gauge(
            "upstream_requests_forgetting", "Ended requests that Vestige is to forget.", session.attempts.forgetting
        )
        yield _gauge("upstream_requests_in_flight_limit", "How many may be.", self._settings.upstream_concurrency)

    def _sharing(self) -> Iterator[Metric]:
        window = self._dispatcher.window
        waiting = GaugeMetricFamily(
            f"{_PREFIX}requests_waiting", "Requests that wait for a place with Vestige.", labels=("principal",)
        )
        # Who never waited has zeros, so that the first wait is an increase.
        others = [principal for principal in self._last_used() if principal not in window.waits]
        never = dict.fromkeys(others[: max(0, MAX_PRINCIPALS_TOLD - len(window.waits))], Waits())
        for principal, count in {**dict.fromkeys(never, 0), **window.waiting_told}.items():
            waiting.add_metric((principal,), count)
        yield waiting
        waits = SummaryMetricFamily(
            f"{_PREFIX}turn_wait_seconds",
            "Time for which requests waited for a place with Vestige; those that found one are not counted.",
            labels=("principal",),
        )
        made_way = CounterMetricFamily(
            f"{_PREFIX}requests_made_way",
            "Waiting requests that were refused so that another principal had room.",
            labels=("principal",),
        )
        for principal, it in {**never, **window.waits}.items():
            waits.add_metric((principal,), count_value=it.count, sum_value=it.seconds)
            made_way.add_metric((principal,), it.made_way)
        yield waits
        yield made_way
        refused = CounterMetricFamily(
            f"{_PREFIX}requests_refused",
            "Messages that a principal's rights or limits did not allow.",
            labels=("principal", "reason"),
        )
        for labels, count in self._gate.refusals.items():
            refused.add_metric(labels, count)
        yield refused
        # Without an audit log they are there, too, so that an alert about it needs no other rule.
        writer = None if self._audit is None else self._audit.writer
        counts = (0, 0, 0) if writer is None else (writer.written, writer.lost, writer.queued)
        yield _counter("audit_lines_written", "Lines written to the audit log.", counts[0])
        yield _counter("audit_lines_lost", "Lines that were not written to the audit log.", counts[1])
        yield _gauge("audit_lines_waiting", "Lines that wait to be written.", counts[2])
        yield _gauge("audit_failing", "1 while the audit log takes no lines.", 0 if writer is None else writer.failing)

    def _clients(self) -> Iterator[Metric]:
        connections = self._connections
        yield _gauge("client_connections", "Open connections of clients.", connections.open)
        yield _gauge("client_connections_limit", "How many there may be.", connections.limits.connections)
        yield _counter(
            "client_connections_closed_for_room", "Idle connections closed for new ones.", connections.closed_for_room
        )
        yield _counter(
            "client_connections_refused", "Connections refused because all others were busy.", connections.refused
        )
        yield _gauge("incomplete_head_bytes", "Bytes held of incomplete heads of requests.", connections.head_bytes)
        yield _gauge("unsent_bytes", "Bytes held of large answers.", connections.held.total_bytes)
        yield _gauge("unsent_bytes_limit", "How many may be.", connections.held.limit_bytes)
        yield _counters(
            "unread_answers_ended", "Answers ended because their client did not read.", "reason", connections.ended
        )

    def _backups(self) -> Iterator[Metric]:
        status = read_backup_status(self._settings.backup_status_file)
        yield _gauge("backup_failing", "1 while the last backup is one that failed.", status.failing)
        if status.succeeded_at is not None:
            yield _gauge(
                "backup_last_success_timestamp_seconds", "When the newest backup was complete.", status.succeeded_at
            )
        if status.due_at is not None:
            yield _gauge("backup_due_timestamp_seconds", "When the next backup is to begin.", status.due_at)

    def _authentication(self) -> Iterator[Metric]:
        yield _counters("auth_failures", "Requests that did not get in.", "reason", self._refusals)
        used = GaugeMetricFamily(
            f"{_PREFIX}token_last_used_timestamp_seconds",
            "When each principal last got in; 0 before its first time.",
            labels=("principal",),
        )
        for principal, used_at in self._last_used().items():
            used.add_metric((principal,), used_at)
        yield used
        expires = GaugeMetricFamily(
            f"{_PREFIX}token_expires_timestamp_seconds",
            "When the last token of a principal expires; those that never do are left out.",
            labels=("principal",),
        )
        for principal, expires_at in self._tokens.expires_at.items():
            expires.add_metric((principal,), expires_at)
        yield expires
        yield _gauge("token_file_valid", "0 when the token file last changed to the worse.", self._tokens.file_valid)
        if self._oauth is not None:
            yield from self._provider(self._oauth)

    def _provider(self, oauth: OAuthTokens) -> Iterator[Metric]:
        if (age := oauth.keys.age_seconds) is not None:
            yield _gauge("oauth_keys_age_seconds", "Time since the provider's signing keys were fetched.", age)
        yield _gauge("oauth_keys", "Signing keys of the provider that are known.", len(oauth.keys.known))
        yield _counter(
            "oauth_key_fetches_failed",
            "Attempts to fetch the provider's signing keys that failed.",
            oauth.keys.failures,
        )
        yield _gauge("oauth_tokens_kept", "Verified OAuth tokens that are kept.", oauth.kept)

    def _last_used(self) -> dict[str, float]:
        """When each principal last got in; all principals of the provider are one."""
        last_used = self._tokens.last_used
        if self._oauth is not None:
            label = metrics_label(OAUTH_PREFIX)
            last_used[label] = max(last_used.get(label, 0.0), self._oauth.last_used)
        return last_used


def build_metrics_app(metrics: Metrics) -> Starlette:
    """What answers on the listener of the metrics: ``GET /metrics``, and nothing else."""

    async def scrape(request: Request) -> Response:
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(metrics.registry), headers={"content-type": content_type})

    async def refuse(request: Request, refusal: Exception) -> Response:
        if isinstance(refusal, HTTPException) and refusal.status_code == 405:
            return error_response(MethodNotAllowed("This path takes GET.", headers=refusal.headers))
        return error_response(NotFound("There is nothing here but GET /metrics."))

    app = Starlette(routes=[Route("/metrics", scrape)], exception_handlers={HTTPException: refuse})
    app.router.redirect_slashes = False
    return app


def _gauge(name: str, says: str, value: float) -> Metric:
    return GaugeMetricFamily(_PREFIX + name, says, value=value)


def _add_histogram(family: HistogramMetricFamily, labels: Sequence[str], durations: Durations) -> None:
    bounds = [*map(str, BUCKETS), "+Inf"]
    cumulated = list(zip(bounds, accumulate(durations.buckets), strict=True))
    family.add_metric(labels, cumulated, durations.sum_seconds)


def _counter(name: str, says: str, value: float) -> Metric:
    return CounterMetricFamily(_PREFIX + name, says, value=value)


def _counters(name: str, says: str, label: str, values: Mapping[str, int]) -> Metric:
    family = CounterMetricFamily(_PREFIX + name, says, labels=(label,))
    for word, count in values.items():
        family.add_metric((word,), count)
    return family


def _info(name: str, says: str, labels: Mapping[str, str]) -> Metric:
    family = GaugeMetricFamily(_PREFIX + name, says, labels=tuple(labels))
    family.add_metric(tuple(labels.values()), 1)
    return family
