"""The metrics: plain counters that requests update, converted to the Prometheus format at each scrape.

Invariants: a request costs a few additions. The numbers of other objects are read only at a scrape. Label values come
from bounded sets.
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
from vestige_bridge.session.window import MAX_PRINCIPAL_LABELS, Waits
from vestige_bridge.settings import Settings

if TYPE_CHECKING:
    from vestige_bridge.access.oauth_tokens import OAuthTokens

_PREFIX: Final = "vestige_bridge_"
_UNREAD: Final = "none"
_ENDLESS: Final = frozenset({_UNREAD, LISTEN})
"""Methods without a useful duration: requests without a message, and streams that end with their client."""


class Metrics(Collector):
    """Counts the finished requests of clients, and reads the numbers of the other objects.

    Parameters:
        settings: the limits.
        session: the shared session.
        dispatcher: dispatches the messages of clients.
        client_sessions: the clients' own sessions.
        streams: the event streams of all clients.
        monitor: the monitor of the connection to upstream.
        tokens: the valid tokens.
        oauth: the access tokens of an identity provider; ``None`` for none.
        refusals: how many requests were rejected before authentication succeeded, by reason.
        connections: the connections of clients.
        gate: checks the messages of clients.
        audit: the audit log; ``None`` for none.

    Attributes:
        registry: contains these metrics and those of the process.
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
        """Counts a finished request to the endpoint.

        Parameters:
            path: its path.
            record: its access record.
            status: the HTTP status in the access log.
            sent_bytes: the length of the answer's body.
            seconds: its duration.
        """
        if path not in ENDPOINT_PATHS:
            return
        method, tool = record.method or _UNREAD, record.tool or ""
        self._requests[method, tool, status] += 1
        self._sent_bytes += sent_bytes
        if method not in _ENDLESS:
            self._durations[method, tool].observe(seconds)

    def collect(self) -> Iterator[Metric]:
        """All metrics with their current values."""
        yield from self._traffic()
        yield from self._upstream()
        yield from self._sharing()
        yield from self._authentication()
        yield from self._clients()
        if self._settings.backup_status_file:
            yield from self._backups()
        yield _info("build_info", "Always 1; the version of the bridge.", {"version": __version__})

    def _traffic(self) -> Iterator[Metric]:
        requests = CounterMetricFamily(
            f"{_PREFIX}requests", "Finished requests to the endpoint.", labels=("method", "tool", "status")
        )
        for (method, tool, status), count in self._requests.items():
            requests.add_metric((method, tool, str(status)), count)
        yield requests
        duration = HistogramMetricFamily(
            f"{_PREFIX}request_duration_seconds",
            "Time from the arrival of a request to the end of its answer.",
            labels=("method", "tool"),
        )
        for labels, durations in self._durations.items():
            _add_histogram(duration, labels, durations)
        yield duration
        dispatcher, own = self._dispatcher, self._client_sessions
        yield _counter("response_bytes", "Body bytes sent to clients.", self._sent_bytes)
        yield _counters(
            "requests_failed",
            "Requests that ended without an answer from Vestige, whatever their HTTP status.",
            "reason",
            dispatcher.failures,
        )
        yield _gauge("requests_in_flight", "Requests in flight.", dispatcher.in_flight)
        yield _gauge("requests_in_flight_limit", "Limit of requests in flight.", self._settings.max_in_flight)
        yield _gauge("streams_open", "Open notification streams.", self._streams.open)
        yield _gauge("client_sessions_open", "Upstream sessions of clients in per-client mode.", own.sessions_open)
        yield _gauge("draining", "1 while the bridge shuts down and accepts no requests.", dispatcher.draining)

    def _upstream(self) -> Iterator[Metric]:
        session, dispatcher, monitor = self._session, self._dispatcher, self._monitor
        state = GaugeMetricFamily(
            f"{_PREFIX}upstream_state", "1 for the current state of the connection to Vestige.", labels=("state",)
        )
        for it in State:
            state.add_metric((it.value,), it is monitor.health.state)
        yield state
        if (age := monitor.answer_age_seconds) is not None:
            yield _gauge("upstream_last_answer_age_seconds", "Age of Vestige's last answer.", age)
        if session.held is not None:
            labels = {"name": session.held.server_name, "version": session.held.server_version}
            yield _info("upstream_info", "Always 1; the name and version that Vestige reports.", labels)
        yield _counter("upstream_sessions_opened", "Shared sessions opened.", session.sessions_opened)
        yield _counter("upstream_reconnects", "Successful reconnections after a failure.", monitor.reconnects)
        yield _counters("upstream_failures", "Failed upstream operations.", "reason", monitor.failures)
        yield _counter(
            "upstream_stream_failures",
            "Times that upstream rejected or interrupted the session's own event stream.",
            session.stream_failures,
        )
        yield _gauge("upstream_stateless", "1 while upstream assigns no session id.", session.stateless)
        duration = HistogramMetricFamily(
            f"{_PREFIX}upstream_call_duration_seconds",
            "Time from sending a tools/call to Vestige until its answer, without the wait for a slot.",
            labels=(),
        )
        _add_histogram(duration, (), dispatcher.call_durations)
        yield duration
        yield _counter("replays", "Requests that the bridge sent again after a failure.", dispatcher.replays)
        yield _gauge("tools_known", "Tools that Vestige lists.", len(session.catalog.tools))
        yield _gauge("upstream_requests_in_flight", "Used slots of the upstream window.", dispatcher.window.taken)
        yield _gauge(
            "upstream_requests_forgetting", "Ended requests that upstream is releasing.", session.attempts.forgetting
        )
        yield _gauge("upstream_requests_in_flight_limit", "Number of slots.", self._settings.upstream_concurrency)

    def _sharing(self) -> Iterator[Metric]:
        window = self._dispatcher.window
        waiting = GaugeMetricFamily(
            f"{_PREFIX}requests_waiting", "Requests that wait for a slot of the upstream window.", labels=("principal",)
        )
        # Principals that never waited have zeros, so that the first wait is an increase.
        others = [principal for principal in self._last_used() if principal not in window.waits]
        never = dict.fromkeys(others[: max(0, MAX_PRINCIPAL_LABELS - len(window.waits))], Waits())
        for principal, count in {**dict.fromkeys(never, 0), **window.waiting_by_label}.items():
            waiting.add_metric((principal,), count)
        yield waiting
        waits = SummaryMetricFamily(
            f"{_PREFIX}turn_wait_seconds",
            "Time for which requests waited for a slot; requests that found a free slot are not counted.",
            labels=("principal",),
        )
        made_way = CounterMetricFamily(
            f"{_PREFIX}requests_made_way",
            "Waiting requests that were rejected so that a request of another principal could wait.",
            labels=("principal",),
        )
        for principal, it in {**never, **window.waits}.items():
            waits.add_metric((principal,), count_value=it.count, sum_value=it.seconds)
            made_way.add_metric((principal,), it.made_way)
        yield waits
        yield made_way
        refused = CounterMetricFamily(
            f"{_PREFIX}requests_refused",
            "Messages rejected because of the principal's permissions or limits.",
            labels=("principal", "reason"),
        )
        for labels, count in self._gate.refusals.items():
            refused.add_metric(labels, count)
        yield refused
        # These metrics exist without an audit log, too, so that alerts need no extra condition.
        writer = None if self._audit is None else self._audit.writer
        counts = (0, 0, 0) if writer is None else (writer.written, writer.lost, writer.queued)
        yield _counter("audit_lines_written", "Lines written to the audit log.", counts[0])
        yield _counter("audit_lines_lost", "Lines of the audit log that were dropped.", counts[1])
        yield _gauge("audit_lines_waiting", "Lines in the queue of the audit log.", counts[2])
        yield _gauge("audit_failing", "1 while audit lines cannot be written.", 0 if writer is None else writer.failing)

    def _clients(self) -> Iterator[Metric]:
        connections = self._connections
        yield _gauge("client_connections", "Open connections of clients.", connections.open)
        yield _gauge("client_connections_limit", "Limit of client connections.", connections.limits.connections)
        yield _counter(
            "client_connections_closed_for_room", "Idle connections closed for new ones.", connections.closed_for_room
        )
        yield _counter(
            "client_connections_refused", "Connections rejected because all others were busy.", connections.refused
        )
        yield _gauge("incomplete_head_bytes", "Buffered bytes of incomplete request headers.", connections.head_bytes)
        yield _gauge("unsent_bytes", "Buffered bytes of large answers.", connections.held.total_bytes)
        yield _gauge("unsent_bytes_limit", "Limit of buffered bytes of large answers.", connections.held.limit_bytes)
        yield _counters(
            "unread_answers_ended", "Answers aborted because the client did not read.", "reason", connections.ended
        )

    def _backups(self) -> Iterator[Metric]:
        status = read_backup_status(self._settings.backup_status_file)
        yield _gauge("backup_failing", "1 if the last backup failed.", status.failing)
        if status.succeeded_at is not None:
            yield _gauge(
                "backup_last_success_timestamp_seconds", "When the newest backup was complete.", status.succeeded_at
            )
        if status.due_at is not None:
            yield _gauge("backup_due_timestamp_seconds", "Time of the next scheduled backup.", status.due_at)

    def _authentication(self) -> Iterator[Metric]:
        yield _counters("auth_failures", "Requests that failed authentication.", "reason", self._refusals)
        used = GaugeMetricFamily(
            f"{_PREFIX}token_last_used_timestamp_seconds",
            "Time of each principal's last successful authentication; 0 before the first.",
            labels=("principal",),
        )
        for principal, used_at in self._last_used().items():
            used.add_metric((principal,), used_at)
        yield used
        expires = GaugeMetricFamily(
            f"{_PREFIX}token_expires_timestamp_seconds",
            "Time at which the last token of a principal expires; absent if one does not expire.",
            labels=("principal",),
        )
        for principal, expires_at in self._tokens.expires_at.items():
            expires.add_metric((principal,), expires_at)
        yield expires
        yield _gauge("token_file_valid", "0 if the last change of the token file was invalid.", self._tokens.file_valid)
        if self._oauth is not None:
            yield from self._provider(self._oauth)

    def _provider(self, oauth: OAuthTokens) -> Iterator[Metric]:
        if (age := oauth.keys.age_seconds) is not None:
            yield _gauge("oauth_keys_age_seconds", "Time since the provider's signing keys were fetched.", age)
        yield _gauge("oauth_keys", "Signing keys of the provider.", len(oauth.keys.known))
        yield _counter(
            "oauth_key_fetches_failed",
            "Failed attempts to fetch the provider's signing keys.",
            oauth.keys.failures,
        )
        yield _gauge("oauth_tokens_kept", "Verified OAuth tokens in memory.", oauth.kept)

    def _last_used(self) -> dict[str, float]:
        """When each principal last authenticated; all principals of the provider count as one."""
        last_used = self._tokens.last_used
        if self._oauth is not None:
            label = metrics_label(OAUTH_PREFIX)
            last_used[label] = max(last_used.get(label, 0.0), self._oauth.last_used)
        return last_used


def build_metrics_app(metrics: Metrics) -> Starlette:
    """The application for the listener of the metrics: ``GET /metrics``."""

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
