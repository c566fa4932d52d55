from __future__ import annotations

import dataclasses
import logging
from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vestige_bridge.errors import SettingsError
from vestige_bridge.settings import Settings, describe, has_jwt_form, unknown_settings

DEFAULTS = {
    "mcp_url": "http://localhost:3100/mcp",
    "auth_token": "",
    "auth_token_file": "",
    "allow_anonymous": False,
    "public_url": "",
    "oauth_issuer": "",
    "oauth_audience": "",
    "oauth_scopes": (),
    "oauth_jwks_url": "",
    "host": "127.0.0.1",
    "port": 8000,
    "metrics_port": 9464,
    "session_mode": "shared",
    "max_client_sessions": 64,
    "client_session_idle_seconds": 1800,
    "request_timeout_seconds": 120,
    "connect_timeout_seconds": 5,
    "check_interval_seconds": 10,
    "check_timeout_seconds": 5,
    "heartbeat_seconds": 15,
    "drain_seconds": 20,
    "keep_alive_seconds": 650,
    "send_timeout_seconds": 60,
    "unsent_bytes": 67_108_864,
    "max_body_bytes": 1_048_576,
    "max_answer_bytes": 67_108_864,
    "max_in_flight": 512,
    "upstream_concurrency": 64,
    "allowed_origins": frozenset(),
    "trusted_proxies": (),
    "upstream_token": "",
    "upstream_token_file": "",
    "audit_log": "",
    "audit_required": False,
    "backup_status_file": "",
    "state_dir": "",
    "log_level": "info",
    "log_format": "text",
}

SWITCH = {"true": True, "1": True, "Yes": True, "ON": True, "False": False, "0": False, "no": False, "oFF": False}
SECONDS = {"0.5": 0.5, "86400": 86400, "1e2": 100}
COUNT = {"1": 1, "007": 7, "1099511627776": 2**40}
GOOD: dict[str, tuple[str, dict[str, object]]] = {
    "VESTIGE_MCP_URL": (
        "mcp_url",
        {url: url for url in ("https://vestige.example.com", "http://[::1]:3928/mcp", "HTTP://h:1/a?b=c")},
    ),
    "VESTIGE_AUTH_TOKEN": ("auth_token", {" secret\n": "secret", "!~": "!~"}),
    "VESTIGE_AUTH_TOKEN_FILE": ("auth_token_file", {"/run/secrets/my tokens": "/run/secrets/my tokens"}),
    "VESTIGE_ALLOW_ANONYMOUS": ("allow_anonymous", dict(SWITCH)),
    "VESTIGE_BRIDGE_PUBLIC_URL": (
        "public_url",
        {
            "https://vestige.example.com": "https://vestige.example.com",
            "https://example.com/memory/mcp/": "https://example.com/memory",
            "http://[::1]:8000/": "http://[::1]:8000",
        },
    ),
    "VESTIGE_BRIDGE_OAUTH_ISSUER": (
        "oauth_issuer",
        {
            it: it
            for it in ("https://a.example/", "https://a.example/realms/x", "http://127.0.0.1:9", "http://[::1]:9/x")
        },
    ),
    "VESTIGE_BRIDGE_OAUTH_AUDIENCE": ("oauth_audience", {"api://vestige": "api://vestige"}),
    "VESTIGE_BRIDGE_OAUTH_SCOPES": (
        "oauth_scopes",
        {
            "vestige=all": (("vestige", "all"),),
            " api://x/a=b=read-only ; c = tools: recall , memory*;": (
                ("api://x/a=b", "read-only"),
                ("c", "tools:recall,memory*"),
            ),
        },
    ),
    "VESTIGE_BRIDGE_OAUTH_JWKS_URL": (
        "oauth_jwks_url",
        {it: it for it in ("https://a.example/keys?x=1", "http://localhost:9/keys")},
    ),
    "VESTIGE_BRIDGE_HOST": ("host", {"0.0.0.0": "0.0.0.0", "::": "::", "bridge.internal": "bridge.internal"}),
    "VESTIGE_BRIDGE_PORT": ("port", {"0": 0, "65535": 65535}),
    "VESTIGE_BRIDGE_METRICS_PORT": ("metrics_port", {"0": 0, "9100": 9100, "Off": None}),
    "VESTIGE_BRIDGE_SESSION_MODE": ("session_mode", {"shared": "shared", "Per-Client": "per-client"}),
    "VESTIGE_BRIDGE_MAX_CLIENT_SESSIONS": ("max_client_sessions", dict(COUNT)),
    "VESTIGE_BRIDGE_CLIENT_SESSION_IDLE_SECONDS": ("client_session_idle_seconds", dict(SECONDS)),
    "VESTIGE_BRIDGE_REQUEST_TIMEOUT_SECONDS": ("request_timeout_seconds", dict(SECONDS)),
    "VESTIGE_BRIDGE_CONNECT_TIMEOUT_SECONDS": ("connect_timeout_seconds", dict(SECONDS)),
    "VESTIGE_BRIDGE_CHECK_INTERVAL_SECONDS": ("check_interval_seconds", dict(SECONDS)),
    "VESTIGE_BRIDGE_CHECK_TIMEOUT_SECONDS": ("check_timeout_seconds", dict(SECONDS)),
    "VESTIGE_BRIDGE_HEARTBEAT_SECONDS": ("heartbeat_seconds", dict(SECONDS)),
    "VESTIGE_BRIDGE_DRAIN_SECONDS": ("drain_seconds", dict(SECONDS)),
    "VESTIGE_BRIDGE_KEEP_ALIVE_SECONDS": ("keep_alive_seconds", dict(SECONDS)),
    "VESTIGE_BRIDGE_SEND_TIMEOUT_SECONDS": ("send_timeout_seconds", dict(SECONDS)),
    "VESTIGE_BRIDGE_UNSENT_BYTES": ("unsent_bytes", dict(COUNT)),
    "VESTIGE_BRIDGE_MAX_BODY_BYTES": ("max_body_bytes", dict(COUNT)),
    "VESTIGE_BRIDGE_MAX_ANSWER_BYTES": ("max_answer_bytes", dict(COUNT)),
    "VESTIGE_BRIDGE_MAX_IN_FLIGHT": ("max_in_flight", dict(COUNT)),
    "VESTIGE_BRIDGE_UPSTREAM_CONCURRENCY": ("upstream_concurrency", dict(COUNT)),
    "VESTIGE_BRIDGE_ALLOWED_ORIGINS": (
        "allowed_origins",
        {
            "https://a.example": frozenset({"https://a.example"}),
            " HTTPS://A.example/ ,, http://b.example:8443 ": frozenset({"https://a.example", "http://b.example:8443"}),
        },
    ),
    "VESTIGE_BRIDGE_TRUSTED_PROXIES": (
        "trusted_proxies",
        {
            "10.0.0.0/8, 192.0.2.1": (ip_network("10.0.0.0/8"), ip_network("192.0.2.1/32")),
            "fd00::/8,": (ip_network("fd00::/8"),),
        },
    ),
    "VESTIGE_BRIDGE_UPSTREAM_TOKEN": ("upstream_token", {"secret\n": "secret"}),
    "VESTIGE_BRIDGE_UPSTREAM_TOKEN_FILE": ("upstream_token_file", {"/run/upstream/token": "/run/upstream/token"}),
    "VESTIGE_BRIDGE_AUDIT_LOG": ("audit_log", {"/var/log/my audit": "/var/log/my audit", " - ": "-"}),
    "VESTIGE_BRIDGE_AUDIT_REQUIRED": ("audit_required", dict(SWITCH)),
    "VESTIGE_BRIDGE_BACKUP_STATUS_FILE": ("backup_status_file", {"/run/backup/status.json": "/run/backup/status.json"}),
    "VESTIGE_BRIDGE_STATE_DIR": ("state_dir", {"/var/lib/my state": "/var/lib/my state"}),
    "VESTIGE_BRIDGE_LOG_LEVEL": ("log_level", {"DEBUG": "debug", "warning": "warning", "Error": "error"}),
    "VESTIGE_BRIDGE_LOG_FORMAT": ("log_format", {"JSON": "json", "text": "text"}),
}

NO_SECONDS = ["0", "-1", "nan", "inf", "86401", "5s", "1,5"]
NO_COUNT = ["0", "-1", "1.0", "1e3", "+1", "1099511627777", "٣", "1_000", "9" * 5000]
BAD = {
    "VESTIGE_MCP_URL": [
        *("localhost:3100", "/mcp", "ftp://h/mcp", "http://", "http://:3100", "http://h:0/mcp", "http://h:99999/mcp"),
        *("http://[/mcp", "http://name:password@h/mcp", "http://h/mcp#x", "http://my host/mcp", "http://h/m\ncp"),
    ],
    "VESTIGE_AUTH_TOKEN": ["se cret", "se\ncret", "sécret", "se\x7fcret"],
    "VESTIGE_ALLOW_ANONYMOUS": ["maybe", "2", "truee", "y"],
    "VESTIGE_BRIDGE_PUBLIC_URL": [
        "vestige.example.com",
        "https://h/?x",
        "https://h/#x",
        'https://h/"',
        "https://h/\\",
        "https://hö",
    ],
    "VESTIGE_BRIDGE_OAUTH_ISSUER": [
        *("login.example.com", "http://login.example.com", "https://h/?x", "https://h/#x", "https://a:b@h", "ftp://h"),
        *('https://h/"x', "http://127.0.0.1.evil.example", "http://localhost@evil.example"),
    ],
    "VESTIGE_BRIDGE_OAUTH_SCOPES": [
        *("vestige", "vestige=", "=all", "vestige=some", "vestige=tools:", "vestige=tools:a,,b", "a=all;a=read-only"),
        *(
            "two words=all",
            'a"=all',
            "a\\=all",
            "ä=all",
            "vestige=tools:a b",
            "vestige=read-only,all",
            "x" * 257 + "=all",
        ),
    ],
    "VESTIGE_BRIDGE_OAUTH_JWKS_URL": ["http://login.example.com/keys", "/keys", "https://h/keys#x"],
    "VESTIGE_BRIDGE_HOST": ["my host", "a..b", "127.0.0.1:8000"],
    "VESTIGE_BRIDGE_PORT": ["-1", "65536", "http", "80.0", "٣"],
    "VESTIGE_BRIDGE_METRICS_PORT": ["-1", "none"],
    "VESTIGE_BRIDGE_SESSION_MODE": ["stateless", "per_client"],
    "VESTIGE_BRIDGE_MAX_CLIENT_SESSIONS": NO_COUNT,
    "VESTIGE_BRIDGE_CLIENT_SESSION_IDLE_SECONDS": NO_SECONDS,
    "VESTIGE_BRIDGE_REQUEST_TIMEOUT_SECONDS": NO_SECONDS,
    "VESTIGE_BRIDGE_CONNECT_TIMEOUT_SECONDS": NO_SECONDS,
    "VESTIGE_BRIDGE_CHECK_INTERVAL_SECONDS": NO_SECONDS,
    "VESTIGE_BRIDGE_CHECK_TIMEOUT_SECONDS": NO_SECONDS,
    "VESTIGE_BRIDGE_HEARTBEAT_SECONDS": NO_SECONDS,
    "VESTIGE_BRIDGE_DRAIN_SECONDS": NO_SECONDS,
    "VESTIGE_BRIDGE_KEEP_ALIVE_SECONDS": NO_SECONDS,
    "VESTIGE_BRIDGE_SEND_TIMEOUT_SECONDS": NO_SECONDS,
    "VESTIGE_BRIDGE_UNSENT_BYTES": NO_COUNT,
    "VESTIGE_BRIDGE_MAX_BODY_BYTES": NO_COUNT,
    "VESTIGE_BRIDGE_MAX_ANSWER_BYTES": NO_COUNT,
    "VESTIGE_BRIDGE_MAX_IN_FLIGHT": NO_COUNT,
    "VESTIGE_BRIDGE_UPSTREAM_CONCURRENCY": NO_COUNT,
    "VESTIGE_BRIDGE_ALLOWED_ORIGINS": [
        "*",
        "app.example",
        "https://a.example/page",
        "https://a.example?x",
        "https://[",
    ],
    "VESTIGE_BRIDGE_TRUSTED_PROXIES": ["*", "proxy.example", "10.0.0.1/8", "10.0.0.0/33", "10.0.0.1:80"],
    "VESTIGE_BRIDGE_UPSTREAM_TOKEN": ["se cret", "sécret"],
    "VESTIGE_BRIDGE_AUDIT_REQUIRED": ["maybe", "true"],
    "VESTIGE_BRIDGE_LOG_LEVEL": ["trace", "20", "critical"],
    "VESTIGE_BRIDGE_LOG_FORMAT": ["xml"],
}


OAUTH = {
    "VESTIGE_BRIDGE_OAUTH_ISSUER": "https://login.example.com",
    "VESTIGE_BRIDGE_PUBLIC_URL": "https://vestige.example.com",
    "VESTIGE_BRIDGE_OAUTH_SCOPES": "vestige=all",
}
"""The settings that OAuth requires."""

OAUTH_VALUES: dict[str, object] = {
    "oauth_issuer": "https://login.example.com",
    "public_url": "https://vestige.example.com",
    "oauth_scopes": (("vestige", "all"),),
}


def cases(values: dict[str, list[str]]) -> list[tuple[str, str]]:
    return [(variable, value) for variable, texts in values.items() for value in texts]


def problems(environ: dict[str, str]) -> list[str]:
    with pytest.raises(SettingsError) as refusal:
        Settings.from_environ(environ)
    return refusal.value.problems


def test_without_variables_every_setting_has_its_default() -> None:
    assert dataclasses.asdict(Settings.from_environ({})) == DEFAULTS


def test_every_variable_is_described_and_tested() -> None:
    described = [variable for variable, _, _ in describe()]
    assert len(described) == len(dataclasses.fields(Settings))
    assert set(described) == set(GOOD)
    assert set(described) == {
        *BAD,
        *("VESTIGE_AUTH_TOKEN_FILE", "VESTIGE_BRIDGE_UPSTREAM_TOKEN_FILE", "VESTIGE_BRIDGE_STATE_DIR"),
        "VESTIGE_BRIDGE_AUDIT_LOG",
        "VESTIGE_BRIDGE_OAUTH_AUDIENCE",
        "VESTIGE_BRIDGE_BACKUP_STATUS_FILE",
    }
    assert all(help_text.endswith(".") for _, _, help_text in describe())


@pytest.mark.parametrize(
    ("variable", "value"), cases({variable: list(values) for variable, (_, values) in GOOD.items()}), ids=repr
)
def test_a_variable_sets_its_setting_and_no_other(variable: str, value: str) -> None:
    name, values = GOOD[variable]
    needed: dict[str, str] = {}
    also: dict[str, object] = {}
    if name == "audit_required":
        # A required audit log needs a destination.
        needed, also = {"VESTIGE_BRIDGE_AUDIT_LOG": "-"}, {"audit_log": "-"}
    elif name.startswith("oauth_"):
        needed, also = OAUTH, OAUTH_VALUES
    settings = Settings.from_environ({**needed, variable: value})
    assert dataclasses.asdict(settings) == DEFAULTS | also | {name: values[value]}


@pytest.mark.parametrize(("variable", "value"), cases(BAD), ids=lambda value: repr(value[:40]))
def test_a_mistake_is_one_line_that_names_the_variable(variable: str, value: str) -> None:
    (problem,) = problems({variable: value})
    assert problem.startswith(f"{variable}: ")
    assert problem.endswith(".")
    assert problem.isprintable()


@pytest.mark.parametrize("variable", list(GOOD))
@pytest.mark.parametrize("value", ["", " ", "\n"])
def test_an_empty_value_counts_as_none(variable: str, value: str) -> None:
    assert dataclasses.asdict(Settings.from_environ({variable: value})) == DEFAULTS


def test_all_mistakes_are_reported_at_once() -> None:
    told = problems({"VESTIGE_BRIDGE_PORT": "x", "VESTIGE_MCP_URL": "x", "VESTIGE_BRIDGE_UPSTREAM_TOKEN": "x y"})
    assert [problem.partition(":")[0] for problem in told] == [
        "VESTIGE_MCP_URL",
        "VESTIGE_BRIDGE_PORT",
        "VESTIGE_BRIDGE_UPSTREAM_TOKEN",
    ]


@pytest.mark.parametrize(
    "environ",
    [
        {"VESTIGE_AUTH_TOKEN": "hidden value"},
        {"VESTIGE_BRIDGE_UPSTREAM_TOKEN": "hidden\x00"},
        {"VESTIGE_MCP_URL": "http://name:hidden@h/mcp"},
        {"VESTIGE_AUTH_TOKEN": "hidden", "VESTIGE_ALLOW_ANONYMOUS": "true"},
    ],
)
def test_no_settings_error_shows_a_secret(environ: dict[str, str]) -> None:
    assert "hidden" not in str(problems(environ))


@pytest.mark.parametrize(
    ("environ", "names"),
    [
        ({"VESTIGE_AUTH_TOKEN": "a", "VESTIGE_ALLOW_ANONYMOUS": "true"}, 2),
        ({"VESTIGE_AUTH_TOKEN": "a", "VESTIGE_AUTH_TOKEN_FILE": "/f"}, 2),
        ({"VESTIGE_AUTH_TOKEN_FILE": "/f", "VESTIGE_ALLOW_ANONYMOUS": "1"}, 2),
        ({"VESTIGE_AUTH_TOKEN": "a", "VESTIGE_AUTH_TOKEN_FILE": "/f", "VESTIGE_ALLOW_ANONYMOUS": "on"}, 3),
    ],
)
def test_conflicting_authentication_settings_are_one_mistake_that_names_them(
    environ: dict[str, str], names: int
) -> None:
    (problem,) = problems(environ)
    assert (
        sum(
            variable in problem.replace("VESTIGE_AUTH_TOKEN_FILE", "FILE")
            for variable in ("VESTIGE_AUTH_TOKEN", "FILE", "VESTIGE_ALLOW_ANONYMOUS")
        )
        == names
    )


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        (
            OAUTH | {"VESTIGE_BRIDGE_PUBLIC_URL": ""},
            "VESTIGE_BRIDGE_OAUTH_ISSUER: set without VESTIGE_BRIDGE_PUBLIC_URL",
        ),
        (
            OAUTH | {"VESTIGE_BRIDGE_OAUTH_SCOPES": ""},
            "VESTIGE_BRIDGE_OAUTH_ISSUER: set without VESTIGE_BRIDGE_OAUTH_SC",
        ),
        (
            OAUTH | {"VESTIGE_BRIDGE_OAUTH_ISSUER": ""},
            "VESTIGE_BRIDGE_OAUTH_SCOPES: set without VESTIGE_BRIDGE_OAUTH_IS",
        ),
        ({"VESTIGE_BRIDGE_OAUTH_AUDIENCE": "x"}, "VESTIGE_BRIDGE_OAUTH_AUDIENCE: set without VESTIGE_BRIDGE_OAUTH_IS"),
        (
            {"VESTIGE_BRIDGE_OAUTH_JWKS_URL": "https://h"},
            "VESTIGE_BRIDGE_OAUTH_JWKS_URL: set without VESTIGE_BRIDGE_OA",
        ),
        (
            OAUTH | {"VESTIGE_ALLOW_ANONYMOUS": "true"},
            "VESTIGE_BRIDGE_OAUTH_ISSUER: set together with VESTIGE_ALLOW_AN",
        ),
        (OAUTH | {"VESTIGE_AUTH_TOKEN": "eyJhbGciOi.hidden.x"}, "VESTIGE_AUTH_TOKEN: this one has the form of a JWT"),
    ],
)
def test_oauth_needs_an_issuer_a_public_url_and_scopes_and_no_other_way_for_jwts(
    environ: dict[str, str], said: str
) -> None:
    (problem,) = problems(environ)
    assert problem.startswith(said)
    assert "hidden" not in problem


def test_a_token_or_a_token_file_may_be_combined_with_oauth() -> None:
    for more in ({}, {"VESTIGE_AUTH_TOKEN": "a"}, {"VESTIGE_AUTH_TOKEN_FILE": "/f"}):
        assert Settings.from_environ(OAUTH | more).oauth_resource == "https://vestige.example.com/mcp"
    assert Settings.from_environ({"VESTIGE_AUTH_TOKEN": "eyJhbGciOi.a.b"}).auth_token
    assert Settings.from_environ({"VESTIGE_BRIDGE_PUBLIC_URL": "https://vestige.example.com"}).public_url


@pytest.mark.parametrize(
    ("token", "looks"),
    [
        *((it, True) for it in (b"eyJhbGciOiJub25lIn0.e30.", b"ewoiYWxnIn0.e30.x", b"eyJ.a.b.c.d", b"eyIK..")),
        *((it, False) for it in (b"", b"eyJ", b"eyJ.a", b"eyJ.a.b.c", b"a.b.c", b"Bearer eyJ.a.b", b"eyJ.a.b.c.d.e")),
    ],
)
def test_tokens_with_the_form_of_a_jwt_are_recognized(token: bytes, looks: bool) -> None:
    assert has_jwt_form(token) is looks


def test_a_token_may_be_combined_with_anonymous_access_switched_off() -> None:
    settings = Settings.from_environ({"VESTIGE_AUTH_TOKEN": "a", "VESTIGE_ALLOW_ANONYMOUS": "false"})
    assert settings.auth_token == "a"


@given(st.dictionaries(st.sampled_from(list(GOOD)), st.text(max_size=12), max_size=6))
def test_any_environment_gives_settings_or_printable_mistakes(environ: dict[str, str]) -> None:
    told = []
    try:
        Settings.from_environ(environ)
    except SettingsError as error:
        told = error.problems
    assert all(problem.isprintable() for problem in told)


def test_settings_are_immutable() -> None:
    settings = Settings.from_environ({})
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.port = 1  # type: ignore[misc]


@pytest.mark.parametrize("level", ["debug", "info", "warning", "error"])
def test_a_log_level_is_numbered_as_the_logging_module_does(level: str) -> None:
    settings = Settings.from_environ({"VESTIGE_BRIDGE_LOG_LEVEL": level})
    assert settings.logging_level == getattr(logging, level.upper())


@pytest.mark.parametrize(
    ("variable", "sentence"),
    [
        (
            "VESTIGE_BRIDGE_PROT",
            "VESTIGE_BRIDGE_PROT is not a setting and is ignored. Did you mean VESTIGE_BRIDGE_PORT?",
        ),
        ("VESTIGE_BRIDGE_", "VESTIGE_BRIDGE_ is not a setting and is ignored."),
    ],
)
def test_an_unknown_variable_is_reported_with_the_nearest_setting(variable: str, sentence: str) -> None:
    said = unknown_settings({variable: "1", "VESTIGE_BRIDGE_PORT": "1", "VESTIGE_DATA_DIR": "x"})
    assert len(said) == 1
    assert said[0].startswith(sentence)


@pytest.mark.parametrize(
    "variable",
    [
        "VESTIGE_BRIDGE_SERVICE_HOST",
        "VESTIGE_BRIDGE_SERVICE_PORT",
        "VESTIGE_BRIDGE_SERVICE_PORT_HTTP",
        "VESTIGE_BRIDGE_PORT_8000_TCP",
        "VESTIGE_BRIDGE_PORT_8000_TCP_ADDR",
        "VESTIGE_BRIDGE_PORT_8000_TCP_PORT",
        "VESTIGE_BRIDGE_PORT_8000_TCP_PROTO",
        "VESTIGE_BRIDGE_METRICS_PORT_9464_UDP",
    ],
)
def test_variables_that_kubernetes_sets_for_a_service_are_ignored(variable: str) -> None:
    assert unknown_settings({variable: "1"}) == []
