"""The layers between a person and Vestige, each of them examined by itself.

Invariant: while a bridge runs, everything goes through it but one question to upstream that starts
no Vestige; and nothing is asked that could change anything.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, Literal

from vestige_bridge.cli.access_token import first_misfit, scopes_in
from vestige_bridge.cli.bridge_client import Client
from vestige_bridge.cli.http_client import ClientError, HttpReply, Members, NoAnswer, Refused, connect
from vestige_bridge.cli.provider_probe import Provider
from vestige_bridge.cli.upstream_probe import SUPERGATEWAY, Fault, ask_endpoint, shake_hands
from vestige_bridge.errors import EXPIRED, RENDERINGS, BridgeError, Forbidden, SettingsError, UpstreamConnectError
from vestige_bridge.jsonrpc.messages import INITIALIZED, PING
from vestige_bridge.mcp.methods import CALL_TOOL, LIST_RESOURCES, LIST_TOOLS
from vestige_bridge.session.session_file import SessionFile
from vestige_bridge.settings import Settings, has_jwt_form, is_bearer_token

_TOKEN: Final = "VESTIGE_AUTH_TOKEN or VESTIGE_AUTH_TOKEN_FILE"  # noqa: S105
_START: Final = f"Correct VESTIGE_MCP_URL, or start supergateway with Vestige behind it: {SUPERGATEWAY}"
_METHOD_NOT_FOUND: Final = -32601
_FORBIDDEN: Final = RENDERINGS[Forbidden].code
_CONNECTING: Final = (
    "the bridge is still waiting for Vestige to answer its handshake",
    "Wait: a first start may load models. If it takes minutes, look at the log of Vestige.",
)

_REASONS: Final = {
    "connect": ("the bridge cannot connect to upstream", "Start supergateway with Vestige behind it."),
    "disconnected": (
        "upstream hangs up on the bridge: the process of Vestige ends",
        "Look at the log of supergateway: is Vestige installed there, and does it start?",
    ),
    "protocol": (
        "what the bridge gets from upstream is not MCP",
        "Look at the log of supergateway, and correct VESTIGE_MCP_URL where the bridge runs.",
    ),
    "session_lost": ("the bridge lost its session with Vestige", "Wait a moment; the bridge opens another."),
    "timeout": ("Vestige does not answer the bridge in time", "Look at the log of Vestige; restart it if it hangs."),
}


class NotAsked(Exception):
    """A layer that is not examined; the text says why."""


class Layers:
    """The layers of one walk; each examination says what it found, and builds on what those before it found.

    Parameters:
        environ: environment variables.
        url: where a bridge answers whose settings are not those of this machine.
        timeout_seconds: how long a connection, and then each answer, may take.
        token_env: the variable that holds the token to show, in place of the one that the settings give.
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
        self._passed: set[str] = set()

    def in_order(self) -> list[tuple[str, Callable[[], str]]]:
        """Each layer's name and examination.

        Upstream of a bridge elsewhere cannot be reached from here. The provider is a layer if the settings name it, or
        if the token to show comes from one.
        """
        shown = self._environ.get(self._token_env or "VESTIGE_AUTH_TOKEN", "").strip()
        named = self._url is None and self._environ.get("VESTIGE_BRIDGE_OAUTH_ISSUER", "").strip()
        provider = [("provider", self._examine_provider)] if named or has_jwt_form(shown.encode()) else []
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
            self._client = client = self._client_to_be()
        except SettingsError as error:
            raise Fault(" ".join(error.problems), "Correct it in the environment or in .env.") from error
        if self._url is not None or self._settings is None:
            return f"the bridge on {client.url}, {'with a token' if client.token else 'without a token'}"
        if not client.token and not self._settings.allow_anonymous and not self._settings.oauth_issuer:
            raise Fault("neither a token nor anonymous access is set", f"Set {_TOKEN}.")
        return f"the bridge on {client.url}, upstream {self._settings.mcp_url}"

    def _client_to_be(self) -> Client:
        if self._token_env is None:
            return Client.from_environ(self._environ, self._url, self._timeout_seconds)
        client = Client.without_token(self._environ, self._url, self._timeout_seconds)
        client.token = self._environ.get(self._token_env, "").strip()
        if not is_bearer_token(client.token) or not client.token:
            raise SettingsError([f"{self._token_env}: it holds no token, or something else than one."])
        return client

    def _examine_address(self) -> str:
        client = self._require_client()
        if self._settings is not None and self._settings.port == 0:
            raise Fault("VESTIGE_BRIDGE_PORT is 0, and which port that became stands in the log", "Say it with --url.")
        try:
            connect(client.url, self._timeout_seconds)
        except NoAnswer as error:
            self._bridge = "absent" if error.kind == "refused" else "unknown"
            raise Fault(f"{client.url}: {error}", f"Start the bridge, or correct {self._where}.") from error
        self._passed.add("address")
        return f"{client.url} takes connections"

    def _examine_bridge(self) -> str:
        client = self._require_client("address")
        try:
            alive, ready = client.get("/livez"), client.get("/readyz")
        except NoAnswer as error:
            raise Fault(f"{client.url}: {error}", self._remedy(error)) from error
        if alive.json().get("status") != "alive":
            self._bridge = "absent"
            raise Fault(f"{client.url} is something else than the bridge: {alive}", f"Correct {self._where}.")
        state = ready.json().get("state")
        if state == "draining":
            raise Fault("it is shutting down and takes no more requests", "Wait until it was started again.")
        self._passed.add("bridge")
        if ready.status == 500:
            return "it runs"
        self._bridge, self._connected = "serves", state == "ready"
        return f"it runs, and its connection to Vestige is {state}"

    def _examine_provider(self) -> str:
        client = self._require_client("bridge")
        self._provider = provider = Provider.of(self._settings, client.url, self._timeout_seconds)
        return f"{provider.issuer} shows {len(provider.kids)} signing keys"

    def _examine_token(self) -> str:
        client = self._require_client("bridge")
        if not client.token and self._settings is not None and self._settings.oauth_issuer:
            raise NotAsked("there is none to show; --token-env NAME names the variable that holds one")
        reply = client.notify(INITIALIZED)
        if reply.status == 202:
            self._passed.add("token")
            return "the bridge takes it" if client.token else "the bridge needs none"
        if reply.status == 500:
            raise Fault("the bridge has no authentication configured and serves nobody", f"Set {_TOKEN} where it runs.")
        if reply.status == 401 and not client.token:
            raise Fault("the bridge wants one, and there is none", f"Set {_TOKEN} to what the bridge has.")
        if reply.status in (401, 403, 503) and has_jwt_form(client.token.encode()):
            raise self._fault_of_access_token(reply, client.token)
        if reply.status == 401 and _says_expired(reply):
            raise Fault(
                "it has expired", "Make another with vestige-bridge token new, and put its entry into the file."
            )
        if reply.status == 401:
            raise Fault("the bridge does not know it", f"Set {_TOKEN} to what the bridge has.")
        raise Fault(f"{client.url}/mcp answers {reply}", "Look at what stands before the bridge, and at its log.")

    def _fault_of_access_token(self, reply: HttpReply, token: str) -> Fault:
        """Why the bridge does not take an OAuth access token."""
        provider = self._provider
        if reply.status == 503:
            return Fault("the bridge has no signing keys of the provider", "Look at its log: it says why.")
        if provider is None:
            return Fault(f"the bridge refuses it: {_message(reply)}", "Mend the provider first.")
        if reply.status == 403:
            scopes = ", ".join(scopes_in(token)) or "none"
            remedy = f"Ask the provider for one of these: {', '.join(provider.scopes)}."
            return Fault(f"it has no scope that permits anything (its scopes: {scopes})", remedy)
        misfit = first_misfit(token, provider.issuer, provider.audience, provider.kids)
        if misfit:
            return Fault(misfit, "Get another from the provider, or correct the settings of the bridge.")
        return Fault(f"all that it says fits, and the bridge refuses it: {_message(reply)}", "Look at its log.")

    def _examine_endpoint(self) -> str:
        if self._settings is None:
            raise NotAsked("the settings come first")
        url = self._settings.mcp_url
        try:
            # The token may come from a file, which only the modules below a running bridge know how to read.
            from vestige_bridge.upstream.token import UpstreamToken  # noqa: PLC0415

            token = UpstreamToken.from_settings(self._settings).current()
            ask_endpoint(url, token, self._timeout_seconds)
        except UpstreamConnectError as error:
            raise Fault(str(error), "Start Vestige, which writes it.") from error
        except NoAnswer as error:
            if self._connected and "VESTIGE_MCP_URL" not in self._environ:
                raise NotAsked(
                    "the bridge uses another address than the default, which VESTIGE_MCP_URL would name"
                ) from error
            remedy = _scheme_remedy(error, "VESTIGE_MCP_URL")
            raise Fault(f"{url}: {error}", remedy or _START) from error
        self._passed.add("upstream")
        return f"{url} speaks MCP and keeps sessions"

    def _examine_vestige(self) -> str:
        client = self._require_client()
        if self._bridge == "absent" and self._settings is not None:
            if "upstream" not in self._passed:
                raise NotAsked("upstream comes first")
            return self._examine_vestige_alone(self._settings)
        if self._bridge != "serves":
            raise NotAsked("the bridge comes first")
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
            raise Fault(str(error).rstrip("."), "Look at the log of supergateway and Vestige.") from error
        if not tools:
            raise Fault(*_no_tools(server))
        return f"{server} lists {tools} tools to a handshake without the bridge"

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
            raise Fault(f"{asked} was answered with an error: {error}", "Look at the log of Vestige.") from error
        if result.get("isError") is True:
            raise Fault(f"{asked} was answered with an error: {_first_text(result)}", "Look at the log of Vestige.")
        return f"{asked} was answered"

    def _require_client(self, *layers: str) -> Client:
        """The client, once it is known where the bridge is and these layers have passed."""
        if self._client is None:
            raise NotAsked("the settings come first")
        for layer in layers:
            if layer not in self._passed:
                raise NotAsked(f"the {layer} comes first")
        return self._client

    def _remedy(self, error: NoAnswer) -> str:
        """What to do when something listens at the bridge's address and does not answer as it should."""
        if error.kind == "late":
            return "Look at the log of the bridge; restart it if it hangs."
        return _scheme_remedy(error, "--url") or f"Correct {self._where}: something else listens there."

    @property
    def _where(self) -> str:
        return "VESTIGE_BRIDGE_HOST and VESTIGE_BRIDGE_PORT" if self._url is None else "--url"


def _scheme_remedy(error: NoAnswer, where: str) -> str:
    """What to do about TLS, where the address stands; nothing when TLS is not at fault."""
    if error.kind == "certificate":
        return "Let SSL_CERT_FILE name a file with the certificate of its issuer."
    if error.kind == "refused_tls":
        return "Look at the log of what speaks TLS there."
    return f"Write {error.kind}:// in {where}." if error.kind in ("http", "https") else ""


def _reads(tools: list[Members]) -> list[tuple[str, str, Members]]:
    """Questions that change nothing, each with its name, its method and its params.

    That is a tool that says so and needs no arguments (MCP 2025-11-25, ToolAnnotations); without such a tool the
    resources, and where a server knows none of these, or the token may not use them, just a sign of life.
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
    """What the error object of an answer says."""
    error = reply.json().get("error")
    return str(error.get("message")) if isinstance(error, dict) else str(reply)


def _first_text(result: Members) -> str:
    """What a tool's result says first (MCP 2025-11-25, server/tools)."""
    texts = [block.get("text") for block in result.get("content", []) if isinstance(block, dict)]
    return next((str(text) for text in texts if text), "without a word")


def _no_tools(server: str) -> tuple[str, str]:
    return f"{server} lists no tools", "Look at the log of Vestige: it offers nothing that could be called."
