"""The layers from the settings to Vestige, and the check of each.

Invariants: while a bridge runs, every check goes through it, except the two pings to upstream, for which a supergateway
that keeps sessions starts no Vestige. No check changes anything.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, Literal

from vestige_bridge.cli.access_token import first_misfit, scopes_in
from vestige_bridge.cli.bridge_client import Client, NoTokenInPlainText
from vestige_bridge.cli.http_client import ClientError, HttpReply, Members, NoAnswer, Refused, connect
from vestige_bridge.cli.provider_probe import Provider
from vestige_bridge.cli.upstream_probe import SUPERGATEWAY, Fault, TokenRefused, ask_endpoint, shake_hands
from vestige_bridge.errors import EXPIRED, RENDERINGS, BridgeError, Forbidden, SettingsError, UpstreamConnectError
from vestige_bridge.jsonrpc.messages import INITIALIZED, PING
from vestige_bridge.mcp.methods import CALL_TOOL, LIST_RESOURCES, LIST_TOOLS
from vestige_bridge.session.session_file import SessionFile
from vestige_bridge.settings import Settings, has_jwt_form, is_bearer_token

_TOKEN: Final = "VESTIGE_AUTH_TOKEN or VESTIGE_AUTH_TOKEN_FILE"  # noqa: S105
_START: Final = f"Correct VESTIGE_MCP_URL, or start supergateway with Vestige behind it: {SUPERGATEWAY}"
_HANGS: Final = (
    "Read the log of upstream. Restart it if it does not respond. If another program listens there, correct "
    "VESTIGE_MCP_URL."
)
_ONLY_HASHES: Final = (
    "the token file contains only hashes; to check a token, run the doctor with VESTIGE_AUTH_TOKEN set to it and "
    "VESTIGE_AUTH_TOKEN_FILE empty"
)
_GIVE_TOKEN: Final = f"Set {_TOKEN} so that the doctor has a token that the bridge accepts."
_METHOD_NOT_FOUND: Final = -32601
_FORBIDDEN: Final = RENDERINGS[Forbidden].code
_CONNECTING: Final = (
    "the bridge is still waiting for Vestige to answer its handshake",
    "Wait: a first start may load models. If it takes minutes, read the log of Vestige.",
)

_REASONS: Final = {
    "connect": (
        "the bridge cannot connect to upstream",
        "Start upstream: supergateway with Vestige, or `vestige serve`.",
    ),
    "disconnected": (
        "upstream closes the connection without an answer; probably the process of Vestige exits",
        "Read the log of upstream (with supergateway, its log), and check that Vestige is installed there and starts.",
    ),
    "protocol": (
        "the answers of upstream are not MCP",
        "Read the log of upstream, and correct VESTIGE_MCP_URL in the settings of the bridge.",
    ),
    "session_lost": ("the bridge lost its session with Vestige", "Wait a moment; the bridge opens another."),
    "timeout": (
        "Vestige does not answer the bridge in time",
        "Read the log of Vestige. Restart it if it does not respond.",
    ),
}


class NotAsked(Exception):
    """A layer that is not checked; the text is the reason."""


class Layers:
    """The checks of one run; each returns what it found, and uses the results of those before it.

    Parameters:
        environ: environment variables.
        url: the address of a bridge that does not have the settings of this machine.
        timeout_seconds: how long a connection may take, and then each answer.
        token_env: the variable with the token to check, instead of the one from the settings.
    """

    def __init__(
        self, environ: Mapping[str, str], url: str | None, timeout_seconds: float, token_env: str | None = None
    ) -> None:
        self._environ = environ
        self._token_env = token_env
        self._provider: Provider | None = None
        self._url = url
        self._timeout_seconds = timeout_seconds
        self._settings: Settings | None = None
        self._client: Client | None = None
        self._bridge: Literal["unknown", "absent", "serves"] = "unknown"
        self._connected = False
        self._only_hashes = False
        self._passed: set[str] = set()

    def in_order(self) -> list[tuple[str, Callable[[], str]]]:
        """The name and the check of each layer.

        Upstream is left out for a remote bridge, where it cannot be reached. The identity provider is a layer if the
        settings name it, or if the token is a JWT.
        """
        token = self._environ.get(self._token_env or "VESTIGE_AUTH_TOKEN", "").strip()
        named = self._url is None and self._environ.get("VESTIGE_BRIDGE_OAUTH_ISSUER", "").strip()
        provider = [("provider", self._examine_provider)] if named or has_jwt_form(token.encode()) else []
        endpoint = [("upstream", self._examine_endpoint)] if self._url is None else []
        return [
            ("settings", self._examine_settings),
            ("address", self._examine_address),
            ("bridge", self._examine_bridge),
            *provider,
            ("token", self._examine_token),
            *endpoint,
            ("Vestige", self._examine_vestige),
            ("read", self._examine_read),
        ]

    def _examine_settings(self) -> str:
        try:
            if self._url is None:
                self._settings = settings = Settings.from_environ(self._environ)
                SessionFile.from_settings(settings)
            self._client = client = self._make_client()
        except SettingsError as error:
            raise Fault(" ".join(error.problems), "Correct it in the environment or in .env.") from error
        if self._url is not None or self._settings is None:
            return f"the bridge is {client.url}, {'with a token' if client.token else 'without a token'}"
        oauth = self._settings.oauth_issuer
        if not client.token and not self._only_hashes and not self._settings.allow_anonymous and not oauth:
            raise Fault("neither a token nor anonymous access is set", f"Set {_TOKEN}.")
        return f"the bridge is {client.url}, upstream is {self._settings.mcp_url}"

    def _make_client(self) -> Client:
        if self._token_env is not None:
            client = Client.without_token(self._environ, self._url, self._timeout_seconds)
            client.token = self._environ.get(self._token_env, "").strip()
            if not client.token or not is_bearer_token(client.token):
                raise SettingsError([f"{self._token_env}: it contains no token."])
            return client
        try:
            return Client.from_environ(self._environ, self._url, self._timeout_seconds)
        except NoTokenInPlainText:
            self._only_hashes = True
            return Client.without_token(self._environ, self._url, self._timeout_seconds)

    def _examine_address(self) -> str:
        client = self._require_client()
        if self._settings is not None and self._settings.port == 0:
            raise Fault(
                "VESTIGE_BRIDGE_PORT is 0, so the system chose a free port; the log of the bridge names it",
                "Give the address with --url.",
            )
        try:
            connect(client.url, self._timeout_seconds)
        except NoAnswer as error:
            self._bridge = "absent" if error.kind == "refused" else "unknown"
            remedy = _kind_remedy(error, self._where) or f"Start the bridge, or correct {self._where}."
            raise Fault(f"{client.url}: {error}", remedy) from error
        self._passed.add("address")
        return f"{client.url} accepts connections"

    def _examine_bridge(self) -> str:
        client = self._require_client("address")
        try:
            alive, ready = client.get("/livez"), client.get("/readyz")
        except NoAnswer as error:
            raise Fault(f"{client.url}: {error}", self._remedy(error)) from error
        if alive.json().get("status") != "alive":
            self._bridge = "absent"
            raise Fault(f"{client.url} is not the bridge: {alive}", f"Correct {self._where}.")
        state = ready.json().get("state")
        if state == "draining":
            raise Fault("the bridge is shutting down and accepts no requests", "Wait until it has started again.")
        self._passed.add("bridge")
        if ready.status == 500:
            return "the bridge runs"
        self._bridge, self._connected = "serves", state == "ready"
        return f"the bridge runs, and its connection to Vestige is {state}"

    def _examine_provider(self) -> str:
        client = self._require_client("bridge")
        self._provider = provider = Provider.of(self._settings, client.url, self._timeout_seconds)
        return f"{provider.issuer} has {len(provider.kids)} signing keys"

    def _examine_token(self) -> str:
        client = self._require_client("bridge")
        if self._only_hashes:
            raise NotAsked(_ONLY_HASHES)
        if not client.token and self._settings is not None and self._settings.oauth_issuer:
            raise NotAsked("the doctor has no token; --token-env NAME names the variable that holds one")
        reply = client.notify(INITIALIZED)
        if reply.status == 202:
            self._passed.add("token")
            return "the bridge accepts the token" if client.token else "the bridge requires no token"
        if reply.status == 500:
            raise Fault(
                "the bridge has no authentication configured and rejects all requests",
                f"Set {_TOKEN} in the settings of the bridge.",
            )
        if reply.status == 401 and not client.token:
            raise Fault("the bridge requires a token, and the doctor has none", _GIVE_TOKEN)
        if reply.status in (401, 403, 503) and has_jwt_form(client.token.encode()):
            raise self._fault_of_access_token(reply, client.token)
        if reply.status == 401 and _says_expired(reply):
            raise Fault(
                "the token has expired",
                "Make a new one with vestige-bridge token new, and add its entry to the token file of the bridge.",
            )
        if reply.status == 401:
            raise Fault("the bridge does not accept the token", _GIVE_TOKEN)
        raise Fault(f"{client.url}/mcp answers {reply}", "Check the proxies in front of the bridge, and its log.")

    def _fault_of_access_token(self, reply: HttpReply, token: str) -> Fault:
        """Why the bridge does not accept an OAuth access token."""
        provider = self._provider
        if reply.status == 503:
            return Fault("the bridge has no signing keys of the provider", "Read the log of the bridge.")
        if provider is None:
            return Fault(f"the bridge does not accept the token: {_message(reply)}", "Correct the provider first.")
        if reply.status == 403:
            scopes = ", ".join(scopes_in(token)) or "none"
            remedy = f"Request one of these scopes from the provider: {', '.join(provider.scopes)}."
            return Fault(f"no scope of the token is mapped (its scopes: {scopes})", remedy)
        misfit = first_misfit(token, provider.issuer, provider.audience, provider.kids)
        if misfit:
            return Fault(misfit, "Get another token from the provider, or correct the settings of the bridge.")
        return Fault(
            f"the claims fit, but the bridge rejects the token: {_message(reply)}", "Read the log of the bridge."
        )

    def _examine_endpoint(self) -> str:
        if self._settings is None:
            raise NotAsked(_after("settings"))
        url, token = self._settings.mcp_url, ""
        elsewhere = NotAsked("VESTIGE_MCP_URL is not set here; the bridge is connected to another address")
        unknown = self._connected and "VESTIGE_MCP_URL" not in self._environ
        try:
            # The token may come from a file, which only the modules of a running bridge can read.
            from vestige_bridge.upstream.token import UpstreamToken  # noqa: PLC0415

            token = UpstreamToken.from_settings(self._settings).current()
            ask_endpoint(url, token, self._timeout_seconds)
        except UpstreamConnectError as error:
            raise Fault(str(error), "Start Vestige, which writes the file with the token.") from error
        except TokenRefused as error:
            if self._connected and not token:
                raise NotAsked(
                    "upstream requires a token that the doctor does not have; the bridge is connected"
                ) from error
            raise
        except NoAnswer as error:
            if unknown:
                raise elsewhere from error
            remedy = _kind_remedy(error, "VESTIGE_MCP_URL") or (_HANGS if error.kind == "late" else _START)
            raise Fault(f"{url}: {error}", remedy) from error
        except Fault as error:
            if unknown:
                raise elsewhere from error
            raise
        self._passed.add("upstream")
        return f"{url} is an MCP server that keeps sessions"

    def _examine_vestige(self) -> str:
        client = self._require_client()
        if self._bridge == "absent" and self._settings is not None:
            if "upstream" not in self._passed:
                raise NotAsked(_after("upstream"))
            return self._examine_vestige_alone(self._settings)
        if self._bridge != "serves":
            raise NotAsked("no bridge that answers requests was found")
        reply = client.get("/health")
        health = reply.json()
        if reply.status != 200:
            found, remedy = _REASONS.get(str(health.get("reason")), _CONNECTING)
            raise Fault(found, remedy)
        vestige = health.get("vestige") or {}
        server = f"{vestige.get('name')} {vestige.get('version')}"
        if not health.get("tools"):
            raise Fault(*_no_tools(server))
        self._passed.add("Vestige")
        return f"{server} lists {health['tools']} tools"

    def _examine_vestige_alone(self, settings: Settings) -> str:
        try:
            server, tools = shake_hands(settings)
        except BridgeError as error:
            raise Fault(str(error).rstrip("."), "Read the logs of supergateway and Vestige.") from error
        if not tools:
            raise Fault(*_no_tools(server))
        return f"{server} lists {tools} tools in a session without the bridge"

    def _examine_read(self) -> str:
        client = self._require_client("token", "Vestige")
        asked, result = LIST_TOOLS, None
        try:
            questions = _reads(client.tools())
            while result is None:
                asked, method, params = questions.pop(0)
                try:
                    result = client.ask(method, params, timeout_seconds=self._timeout_seconds)
                except Refused as error:
                    if error.code not in (_METHOD_NOT_FOUND, _FORBIDDEN) or not questions:
                        raise
        except ClientError as error:
            raise Fault(f"{asked} was answered with an error: {error}", "Read the log of Vestige.") from error
        if result.get("isError") is True:
            raise Fault(f"{asked} was answered with an error: {_first_text(result)}", "Read the log of Vestige.")
        return f"{asked} was answered"

    def _require_client(self, *layers: str) -> Client:
        """The client, if the address of the bridge is known and these layers passed."""
        if self._client is None:
            raise NotAsked(_after("settings"))
        for layer in layers:
            if layer not in self._passed:
                raise NotAsked(_after(layer))
        return self._client

    def _remedy(self, error: NoAnswer) -> str:
        """The remedy if something listens at the address of the bridge and does not answer as the bridge does."""
        if error.kind == "late":
            return "Read the log of the bridge. Restart it if it does not respond."
        return _kind_remedy(error, "--url") or f"Correct {self._where}: another program listens there."

    @property
    def _where(self) -> str:
        return "VESTIGE_BRIDGE_HOST and VESTIGE_BRIDGE_PORT" if self._url is None else "--url"


def _after(layer: str) -> str:
    """Why a layer is not checked: it depends on one that did not pass."""
    return f"{layer} did not pass"


def _kind_remedy(error: NoAnswer, where: str) -> str:
    """The remedy if this setting or option has the wrong name or scheme, packets are lost or TLS fails; else empty."""
    if error.kind == "unresolved":
        return f"Correct the name in {where}, or add it to DNS."
    if error.kind == "unreached":
        return f"Correct {where}, or check the firewalls and network policies between here and there."
    if error.kind == "certificate":
        return "Set SSL_CERT_FILE to a file with the certificate of the issuer."
    if error.kind == "refused_tls":
        return "Read the log of the server that uses TLS."
    return f"Use {error.kind}:// in {where}." if error.kind in ("http", "https") else ""


def _reads(tools: list[Members]) -> list[tuple[str, str, Members]]:
    """Requests that change nothing: the name, the method and the params of each, in the order in which they are tried.

    It is a call of a tool with ``readOnlyHint`` that requires no arguments (MCP 2025-11-25, ToolAnnotations). Without
    such a tool it is ``resources/list``, and ``ping`` if the server does not have that or the token may not use it.
    """
    for tool in tools:
        annotations, schema = tool.get("annotations"), tool.get("inputSchema")
        only_reads = isinstance(annotations, dict) and annotations.get("readOnlyHint") is True
        if only_reads and isinstance(schema, dict) and not schema.get("required"):
            return [(str(tool["name"]), CALL_TOOL, {"name": tool["name"], "arguments": {}})]
    return [(LIST_RESOURCES, LIST_RESOURCES, {}), (PING, PING, {})]


def _says_expired(reply: HttpReply) -> bool:
    return _message(reply) == EXPIRED


def _message(reply: HttpReply) -> str:
    """The message of the error object in an answer."""
    error = reply.json().get("error")
    return str(error.get("message")) if isinstance(error, dict) else str(reply)


def _first_text(result: Members) -> str:
    """The first text in the result of a tool (MCP 2025-11-25, server/tools)."""
    texts = [block.get("text") for block in result.get("content", []) if isinstance(block, dict)]
    return next((str(text) for text in texts if text), "no text")


def _no_tools(server: str) -> tuple[str, str]:
    return f"{server} lists no tools", "Read the log of Vestige: clients have nothing to call."
