"""The settings: read once from a mapping, checked, and frozen.

Each mistake is one line that names the variable, the problem, and the allowed values. An empty value
means that the variable is not set, because compose files and charts turn unset variables into empty ones.
"""

from __future__ import annotations

import dataclasses
import difflib
import ipaddress
import logging
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, Final
from urllib.parse import urlsplit

from vestige_bridge.errors import SettingsError

_TRUE: Final = frozenset({"true", "1", "yes", "on"})
_FALSE: Final = frozenset({"false", "0", "no", "off"})
_LOG_LEVELS: Final = ("debug", "info", "warning", "error")
_LOG_FORMATS: Final = ("text", "json")
_host_name = re.compile(r"[A-Za-z0-9_-]{1,63}(?:\.[A-Za-z0-9_-]{1,63})*\.?").fullmatch
_scope = re.compile(r"[\x21\x23-\x3a\x3c-\x5b\x5d-\x7e]{1,256}").fullmatch
_tool_pattern = re.compile(r"[A-Za-z0-9._/*-]{1,128}").fullmatch
_SESSION_MODES: Final = ("shared", "per-client")

_LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})

READ_ONLY: Final = "read-only"
ALL: Final = "all"
TOOLS: Final = "tools:"
"""What an OAuth scope may be mapped to; after ``TOOLS`` comes a list of tools."""

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

PREFIX: Final = "VESTIGE_BRIDGE_"
_of_kubernetes = re.compile(
    r".*_SERVICE_(?:HOST|PORT(?:_.+)?)|.*_PORT_\d+_(?:TCP|UDP|SCTP)(?:_PROTO|_PORT|_ADDR)?"
).fullmatch
"""Matches the variables that Kubernetes sets for a Service; the Service may be named vestige-bridge."""


def _setting(variable: str, default: str, parse: Callable[[str], Any], help_text: str) -> Any:  # noqa: ANN401
    return dataclasses.field(metadata={"variable": variable, "default": default, "parse": parse, "help": help_text})


def _text(value: str) -> str:
    return value


def _host(value: str) -> str:
    if not _host_name(value):
        ipaddress.ip_address(value)
    return value


def parse_url(value: str) -> str:
    """The URL of an HTTP server, unchanged.

    Errors:
        ValueError: it is not such a URL, or contains a user name, a password or a fragment.
    """
    # urlsplit ignores line breaks, and a request to a URL with spaces would fail.
    if not value.isprintable() or " " in value:
        raise ValueError
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0:
        raise ValueError
    if parts.username or parts.password or parts.fragment:
        raise ValueError
    return value


def parse_bridge_url(value: str) -> str:
    """The URL of a bridge without the path of its endpoint; users may give it with that path.

    Errors:
        ValueError: it is not such a URL.
    """
    url = parse_url(value)
    if urlsplit(url).query:
        raise ValueError
    return url.rstrip("/").removesuffix("/mcp").rstrip("/")


def parse_secure_url(value: str) -> str:
    """A URL that is safe from eavesdropping: ``https``, or ``http`` on loopback.

    Errors:
        ValueError: it is not such a URL.
    """
    parts = urlsplit(_quotable(parse_url(value)))
    if parts.scheme != "https" and parts.hostname not in _LOOPBACK:
        raise ValueError
    return value


def _issuer(value: str) -> str:
    """An issuer identifier (RFC 8414, section 2); it is compared as a string."""
    if "?" in parse_secure_url(value):
        raise ValueError
    return value


def _public_url(value: str) -> str:
    return _quotable(parse_bridge_url(value))


def _quotable(url: str) -> str:
    # WWW-Authenticate contains the URL as a quoted string.
    if not url.isascii() or '"' in url or "\\" in url:
        raise ValueError
    return url


def _optional(parse: Callable[[str], str]) -> Callable[[str], str]:
    return lambda value: parse(value) if value else ""


_optional_issuer = _optional(_issuer)
_optional_secure_url = _optional(parse_secure_url)
_optional_public_url = _optional(_public_url)


def _scopes(value: str) -> tuple[tuple[str, str], ...]:
    """Scopes (RFC 6749, section 3.3), each with its permissions."""
    scopes: dict[str, str] = {}
    for entry in filter(None, map(str.strip, value.split(";"))):
        scope, _, rights = (part.strip() for part in entry.rpartition("="))
        tools = rights.removeprefix(TOOLS).split(",") if rights.startswith(TOOLS) else []
        if not _scope(scope) or scope in scopes or not (rights in (READ_ONLY, ALL) or tools):
            raise ValueError
        if not all(_tool_pattern(tool.strip()) for tool in tools):
            raise ValueError
        scopes[scope] = TOOLS + ",".join(tool.strip() for tool in tools) if tools else rights
    return tuple(scopes.items())


def has_jwt_form(token: bytes) -> bool:
    """Whether a token looks like a JWT: three parts or, encrypted, five, and the first could be a JSON object.

    In base64url, a brace and the characters that may follow it begin with one of these; the rest is not checked.
    """
    return token[:2] in (b"ey", b"ew") and token.count(b".") in (2, 4)


def is_bearer_token(value: str) -> bool:
    """Whether the text is a valid bearer token: visible ASCII without spaces."""
    return value.isascii() and value.isprintable() and " " not in value


def _switch(value: str) -> bool:
    if value.lower() not in _TRUE | _FALSE:
        raise ValueError
    return value.lower() in _TRUE


def _port(value: str) -> int:
    return _whole(value, 0, 65535)


def _port_or_off(value: str) -> int | None:
    return None if value.lower() == "off" else _port(value)


def _count(value: str) -> int:
    return _whole(value, 1, 2**40)


def _whole(value: str, least: int, most: int) -> int:
    if not (value.isascii() and value.isdigit()) or not least <= int(value) <= most:
        raise ValueError
    return int(value)


def _seconds(value: str) -> float:
    seconds = float(value)
    if not math.isfinite(seconds) or not 0 < seconds <= 86400:
        raise ValueError
    return seconds


def _origins(value: str) -> frozenset[str]:
    # Browsers send the scheme and the host in lower case (RFC 6454, section 6.2); origins are compared as strings.
    origins = frozenset(part.strip().rstrip("/").lower() for part in value.split(",") if part.strip())
    for origin in origins:
        parts = urlsplit(origin)
        if not parts.netloc or f"{parts.scheme}://{parts.netloc}" != origin:
            raise ValueError
    return origins


def _networks(value: str) -> tuple[Network, ...]:
    return tuple(ipaddress.ip_network(part.strip()) for part in value.split(",") if part.strip())


def _one_of(choices: tuple[str, ...]) -> Callable[[str], str]:
    def parse(value: str) -> str:
        if value.lower() not in choices:
            raise ValueError
        return value.lower()

    return parse


_log_level = _one_of(_LOG_LEVELS)
_log_format = _one_of(_LOG_FORMATS)
_session_mode = _one_of(_SESSION_MODES)

_ALLOWED: Final[Mapping[Callable[[str], Any], str]] = {
    _text: "any text",
    _host: "a host name or an IP address, without a port",
    parse_url: "a URL such as http://localhost:3100/mcp, without user name and fragment",
    _switch: "true/false, 1/0, yes/no or on/off",
    _port: "a whole number from 0 to 65535",
    _port_or_off: "a whole number from 0 to 65535, or off",
    _count: "a whole number of at least 1",
    _seconds: "a number of seconds greater than 0 and at most 86400",
    _networks: "addresses or networks such as 10.0.0.0/8, separated by commas",
    _origins: "origins such as https://app.example.com, separated by commas",
    _log_level: " or ".join(_LOG_LEVELS),
    _log_format: " or ".join(_LOG_FORMATS),
    _session_mode: " or ".join(_SESSION_MODES),
    _optional_public_url: "an address such as https://vestige.example.com, without user name, query and fragment",
    _optional_issuer: "an https address such as https://login.example.com, without user name, query and fragment; "
    "http on loopback",
    _optional_secure_url: "an https address, without user name and fragment; http on loopback",
    _scopes: "scopes with their permissions, separated by semicolons, such as "
    "vestige.read=read-only;vestige.write=all;vestige.notes=tools:recall,memory*",
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The settings of the bridge: one attribute for each environment variable."""

    mcp_url: str = _setting(
        "VESTIGE_MCP_URL",
        "http://localhost:3100/mcp",
        parse_url,
        "The URL of upstream: supergateway with Vestige behind it, or Vestige's own HTTP server.",
    )
    auth_token: str = _setting(
        "VESTIGE_AUTH_TOKEN", "", _text, "The token that clients send as `Authorization: Bearer …`."
    )
    auth_token_file: str = _setting(
        "VESTIGE_AUTH_TOKEN_FILE",
        "",
        _text,
        "A file of tokens instead; set only one of the two. Each line has a token, or `name token`. If the name of "
        "the file ends in .toml, it "
        "is TOML and has the permissions of each token. The bridge reads it again when it changes.",
    )
    allow_anonymous: bool = _setting(
        "VESTIGE_ALLOW_ANONYMOUS", "false", _switch, "Admits everybody without a token. Not for production."
    )
    public_url: str = _setting(
        "VESTIGE_BRIDGE_PUBLIC_URL",
        "",
        _optional_public_url,
        "The URL of the bridge for clients, such as https://vestige.example.com; required with OAuth.",
    )
    oauth_issuer: str = _setting(
        "VESTIGE_BRIDGE_OAUTH_ISSUER",
        "",
        _optional_issuer,
        "The issuer identifier of the identity provider whose access tokens (JWTs) the bridge accepts.",
    )
    oauth_audience: str = _setting(
        "VESTIGE_BRIDGE_OAUTH_AUDIENCE",
        "",
        _text,
        "The audience that these tokens must have; the public URL and /mcp if it is not set.",
    )
    oauth_scopes: tuple[tuple[str, str], ...] = _setting(
        "VESTIGE_BRIDGE_OAUTH_SCOPES",
        "",
        _scopes,
        "The permissions of each scope: scope=read-only, scope=all or scope=tools:recall,memory*, separated "
        "by semicolons.",
    )
    oauth_jwks_url: str = _setting(
        "VESTIGE_BRIDGE_OAUTH_JWKS_URL",
        "",
        _optional_secure_url,
        "The URL of the provider's signing keys; if it is not set, the bridge reads it from the provider's metadata.",
    )
    host: str = _setting("VESTIGE_BRIDGE_HOST", "127.0.0.1", _host, "The address to listen on.")
    port: int = _setting("VESTIGE_BRIDGE_PORT", "8000", _port, "The port to listen on; 0 chooses a free one.")
    metrics_port: int | None = _setting(
        "VESTIGE_BRIDGE_METRICS_PORT",
        "9464",
        _port_or_off,
        "The port of GET /metrics; 0 chooses a free one, off turns metrics off.",
    )
    session_mode: str = _setting(
        "VESTIGE_BRIDGE_SESSION_MODE",
        "shared",
        _session_mode,
        "shared: one upstream session for all clients. per-client: one for each client that uses sessions; only for an "
        "upstream that serves many sessions in one process.",
    )
    max_client_sessions: int = _setting(
        "VESTIGE_BRIDGE_MAX_CLIENT_SESSIONS", "64", _count, "How many client sessions may be open in per-client mode."
    )
    client_session_idle_seconds: float = _setting(
        "VESTIGE_BRIDGE_CLIENT_SESSION_IDLE_SECONDS",
        "1800",
        _seconds,
        "How long a client session may be idle in per-client mode before the bridge ends it.",
    )
    request_timeout_seconds: float = _setting(
        "VESTIGE_BRIDGE_REQUEST_TIMEOUT_SECONDS",
        "120",
        _seconds,
        "How long a request may take, including the wait for a slot; each progress notification starts the time again.",
    )
    connect_timeout_seconds: float = _setting(
        "VESTIGE_BRIDGE_CONNECT_TIMEOUT_SECONDS",
        "5",
        _seconds,
        "How long a request waits for a session with Vestige.",
    )
    check_interval_seconds: float = _setting(
        "VESTIGE_BRIDGE_CHECK_INTERVAL_SECONDS",
        "10",
        _seconds,
        "The time between two checks of the session with Vestige.",
    )
    check_timeout_seconds: float = _setting(
        "VESTIGE_BRIDGE_CHECK_TIMEOUT_SECONDS", "5", _seconds, "How long a check may take."
    )
    heartbeat_seconds: float = _setting(
        "VESTIGE_BRIDGE_HEARTBEAT_SECONDS",
        "15",
        _seconds,
        "How long an event stream may be silent before the bridge sends a comment to keep it open.",
    )
    drain_seconds: float = _setting(
        "VESTIGE_BRIDGE_DRAIN_SECONDS",
        "20",
        _seconds,
        "After SIGTERM, how long the bridge waits for requests in flight.",
    )
    keep_alive_seconds: float = _setting(
        "VESTIGE_BRIDGE_KEEP_ALIVE_SECONDS",
        "650",
        _seconds,
        "How long a connection may be idle after an authenticated request. Set it higher than the idle timeout of the "
        "load balancer.",
    )
    send_timeout_seconds: float = _setting(
        "VESTIGE_BRIDGE_SEND_TIMEOUT_SECONDS",
        "60",
        _seconds,
        "How long a client may read nothing of a waiting answer before the bridge resets the connection.",
    )
    unsent_bytes: int = _setting(
        "VESTIGE_BRIDGE_UNSENT_BYTES",
        "67108864",
        _count,
        "How many bytes of large answers (over 64 KiB) the bridge holds at a time for all clients together.",
    )
    max_body_bytes: int = _setting(
        "VESTIGE_BRIDGE_MAX_BODY_BYTES", "1048576", _count, "The largest request body; a larger one gets 413."
    )
    max_answer_bytes: int = _setting(
        "VESTIGE_BRIDGE_MAX_ANSWER_BYTES",
        "67108864",
        _count,
        "The largest answer from upstream; a larger one gets 502.",
    )
    max_in_flight: int = _setting(
        "VESTIGE_BRIDGE_MAX_IN_FLIGHT",
        "512",
        _count,
        "How many requests and notifications may be in flight; more get 503.",
    )
    upstream_concurrency: int = _setting(
        "VESTIGE_BRIDGE_UPSTREAM_CONCURRENCY",
        "64",
        _count,
        "How many requests may be at upstream at a time. The others wait for a free slot; principals take turns. Use 1 "
        "for a server that loses overlapping writes.",
    )
    allowed_origins: frozenset[str] = _setting(
        "VESTIGE_BRIDGE_ALLOWED_ORIGINS",
        "",
        _origins,
        "Origins of web pages that may call the bridge, separated by commas.",
    )
    trusted_proxies: tuple[Network, ...] = _setting(
        "VESTIGE_BRIDGE_TRUSTED_PROXIES",
        "",
        _networks,
        "Addresses or networks of reverse proxies, separated by commas. Their X-Forwarded-For names the client in the "
        "log line of a rejected token.",
    )
    upstream_token: str = _setting(
        "VESTIGE_BRIDGE_UPSTREAM_TOKEN", "", _text, "The token that the bridge sends to upstream."
    )
    upstream_token_file: str = _setting(
        "VESTIGE_BRIDGE_UPSTREAM_TOKEN_FILE",
        "",
        _text,
        "A file with that token instead. The bridge reads it again when it changes. It may be created after the start.",
    )
    audit_log: str = _setting(
        "VESTIGE_BRIDGE_AUDIT_LOG",
        "",
        _text,
        "A file that gets a JSON line for each tool call and each rejection; - for standard output.",
    )
    audit_required: bool = _setting(
        "VESTIGE_BRIDGE_AUDIT_REQUIRED",
        "false",
        _switch,
        "true rejects tool calls while the audit log cannot be written, and sends an answer only after its line.",
    )
    state_dir: str = _setting(
        "VESTIGE_BRIDGE_STATE_DIR",
        "",
        _text,
        "A directory for the id of the upstream session. If the bridge was killed, it ends that session at the next "
        "start.",
    )
    backup_status_file: str = _setting(
        "VESTIGE_BRIDGE_BACKUP_STATUS_FILE",
        "",
        _text,
        "The file to which the backup container writes the result of its backups, for the metrics.",
    )
    log_level: str = _setting("VESTIGE_BRIDGE_LOG_LEVEL", "info", _log_level, "The lowest level to log.")
    log_format: str = _setting(
        "VESTIGE_BRIDGE_LOG_FORMAT", "text", _log_format, "text for people, or json with one object in each line."
    )

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> Settings:
        """The settings in the variables.

        Parameters:
            environ: environment variables; those that are not settings are ignored.

        Errors:
            SettingsError: with a line for each mistake.
        """
        values: dict[str, Any] = {}
        problems = []
        for field in dataclasses.fields(cls):
            variable, default, parse = (field.metadata[key] for key in ("variable", "default", "parse"))
            value = environ.get(variable, "").strip()
            try:
                values[field.name] = parse(value or default)
            except ValueError:
                problems.append(f"{variable}: {_shown(variable, value)} is not allowed; it takes {_ALLOWED[parse]}.")
        for name in ("auth_token", "upstream_token"):
            if values[name] and not is_bearer_token(values[name]):
                variable = "VESTIGE_AUTH_TOKEN" if name == "auth_token" else "VESTIGE_BRIDGE_UPSTREAM_TOKEN"
                problems.append(
                    f"{variable}: a token is visible ASCII without spaces; this one contains other characters."
                )
        if values["upstream_token"] and values["upstream_token_file"]:
            problems.append(
                "VESTIGE_BRIDGE_UPSTREAM_TOKEN: set together with VESTIGE_BRIDGE_UPSTREAM_TOKEN_FILE; "
                "only one of them is allowed."
            )
        if values.get("audit_required") and not values["audit_log"]:
            problems.append(
                "VESTIGE_BRIDGE_AUDIT_REQUIRED: true without VESTIGE_BRIDGE_AUDIT_LOG; set both, or neither."
            )
        problems += _oauth_problems(values)
        ways = [
            variable
            for variable, is_set in (
                ("VESTIGE_AUTH_TOKEN", values["auth_token"]),
                ("VESTIGE_AUTH_TOKEN_FILE", values["auth_token_file"]),
                ("VESTIGE_ALLOW_ANONYMOUS=true", values.get("allow_anonymous")),
            )
            if is_set
        ]
        if len(ways) > 1:
            problems.append(f"{ways[0]}: set together with {' and '.join(ways[1:])}; only one of them is allowed.")
        if problems:
            raise SettingsError(problems)
        return cls(**values)

    @property
    def oauth_resource(self) -> str:
        """The identifier of the endpoint as a protected resource (RFC 9728, section 1.2)."""
        return f"{self.public_url}/mcp"

    @property
    def maps_tools(self) -> bool:
        """Whether an OAuth scope is mapped to tools, so that not all principals see the same ones."""
        return any(rights.startswith(TOOLS) for _, rights in self.oauth_scopes)

    @property
    def logging_level(self) -> int:
        """The level as a number of the logging module."""
        return logging.getLevelNamesMapping()[self.log_level.upper()]


def _oauth_problems(values: Mapping[str, Any]) -> list[str]:
    """A sentence for each OAuth setting that is missing or contradicts another; invalid values have their own lines."""
    issuer = "VESTIGE_BRIDGE_OAUTH_ISSUER"
    if not values.get("oauth_issuer"):
        return [
            f"VESTIGE_BRIDGE_{name.upper()}: set without {issuer}; set both, or neither."
            for name in ("oauth_audience", "oauth_scopes", "oauth_jwks_url")
            if values.get(name) and "oauth_issuer" in values
        ]
    problems = []
    if values.get("public_url") == "":
        problems.append(f"{issuer}: set without VESTIGE_BRIDGE_PUBLIC_URL, the URL of the bridge for clients.")
    if values.get("oauth_scopes") == ():
        problems.append(
            f"{issuer}: set without VESTIGE_BRIDGE_OAUTH_SCOPES, the permissions of each scope, such as vestige=all."
        )
    if values.get("allow_anonymous"):
        problems.append(f"{issuer}: set together with VESTIGE_ALLOW_ANONYMOUS=true; only one of them is allowed.")
    if has_jwt_form(values["auth_token"].encode()):
        problems.append(f"VESTIGE_AUTH_TOKEN: this one has the form of a JWT; only tokens from {issuer} may have it.")
    return problems


def describe() -> list[tuple[str, str, str]]:
    """Each variable with its default and its description, in the order of ``--help``."""
    return [
        (field.metadata["variable"], field.metadata["default"], field.metadata["help"])
        for field in dataclasses.fields(Settings)
    ]


def unknown_settings(environ: Mapping[str, str]) -> list[str]:
    """A sentence for each variable that looks like a setting and is not one, with the most similar name.

    Parameters:
        environ: environment variables; those that Kubernetes sets for a Service are ignored.
    """
    names = [variable for variable, _, _ in describe()]
    sentences = []
    for variable in sorted(environ):
        if variable.startswith(PREFIX) and variable not in names and not _of_kubernetes(variable):
            close = difflib.get_close_matches(variable, names, n=1)
            sentences.append(
                f"{variable} is not a setting and is ignored.{f' Did you mean {close[0]}?' if close else ''}"
            )
    return sentences


def _shown(variable: str, value: str) -> str:
    # The part before an "@" in a URL may contain a password.
    return "the value" if "TOKEN" in variable or "@" in value else repr(value)
