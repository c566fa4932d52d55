"""A client of a running bridge, for the commands.

Invariants: it imports nothing from the server. A token is sent only to the bridge: no redirect is followed, and no
error contains a token.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Final, Self

from vestige_bridge.cli.http_client import (
    TIMEOUT_SECONDS,
    ClientError,
    HttpReply,
    Members,
    NoAnswer,
    NotMcp,
    Refused,
    converse,
    fetch,
)
from vestige_bridge.errors import SettingsError
from vestige_bridge.jsonrpc.messages import CANCELLED
from vestige_bridge.mcp.methods import CALL_TOOL, LIST_TOOLS, PROGRESS
from vestige_bridge.settings import Settings

_EVERYWHERE: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104
_MAX_TOOL_PAGES: Final = 100

_ONLY_HASHES: Final = (
    "contains no valid token in plain text. For this command only, and not in .env, set VESTIGE_AUTH_TOKEN to your "
    "token and VESTIGE_AUTH_TOKEN_FILE to an empty value."
)


class NoTokenInPlainText(SettingsError):
    """The token file contains no valid token in plain text."""


class Client:
    """A client of one bridge.

    Parameters:
        url: the address of the bridge, without the path of an endpoint.
        token: the token to send; empty for none.
        timeout_seconds: how long a connection, or an answer that needs no call of a tool, may take.

    Attributes:
        url: as given.
        token: as given.
    """

    def __init__(self, url: str, token: str, timeout_seconds: float = TIMEOUT_SECONDS) -> None:
        self.url = url
        self.token = token
        self._timeout_seconds = timeout_seconds

    @classmethod
    def from_environ(
        cls, environ: Mapping[str, str], url: str | None = None, timeout_seconds: float = TIMEOUT_SECONDS
    ) -> Self:
        """The client of the bridge in the settings; only the settings of the address and the token are read.

        Parameters:
            environ: environment variables.
            url: the address of the bridge instead of the one in the settings.
            timeout_seconds: as for the client.

        Errors:
            NoTokenInPlainText: the token file contains no valid token in plain text.
            SettingsError: one of these settings has a mistake.
        """
        # This imports asyncio, which a health check, run every few seconds, does not need.
        from vestige_bridge.access.tokens import Tokens  # noqa: PLC0415

        matter = ["VESTIGE_AUTH_TOKEN", "VESTIGE_AUTH_TOKEN_FILE"]
        matter += ["VESTIGE_BRIDGE_HOST", "VESTIGE_BRIDGE_PORT"] if url is None else []
        settings = Settings.from_environ({name: environ[name] for name in matter if name in environ})
        tokens = Tokens.from_settings(settings)
        token = tokens.first
        if tokens and not token:
            raise NoTokenInPlainText([f"VESTIGE_AUTH_TOKEN_FILE: {settings.auth_token_file} {_ONLY_HASHES}"])
        return cls(local_url(settings) if url is None else url, token, timeout_seconds)

    @classmethod
    def without_token(cls, environ: Mapping[str, str], url: str | None, timeout_seconds: float) -> Self:
        """The same client without a token, for the paths that require none.

        Errors:
            SettingsError: a setting of the address has a mistake.
        """
        where = {name: environ[name] for name in ("VESTIGE_BRIDGE_HOST", "VESTIGE_BRIDGE_PORT") if name in environ}
        return cls(local_url(Settings.from_environ(where)) if url is None else url, "", timeout_seconds)

    def get(self, path: str) -> HttpReply:
        """Sends GET to a path that requires no token.

        Errors:
            NoAnswer: no HTTP server answers.
        """
        return fetch("GET", self.url + path, timeout_seconds=self._timeout_seconds)

    def healthy(self) -> bool:
        """Whether the bridge reaches Vestige; one GET /health."""
        try:
            return self.get("/health").status == 200
        except NoAnswer:
            return False

    def notify(self, method: str, params: Members | None = None) -> HttpReply:
        """Sends a notification.

        Errors:
            NoAnswer: no HTTP server answers.
        """
        notification = {"jsonrpc": "2.0", "method": method, **({} if params is None else {"params": params})}
        return fetch("POST", f"{self.url}/mcp", notification, token=self.token, timeout_seconds=self._timeout_seconds)

    def tools(self) -> list[Members]:
        """Every tool as Vestige lists it, from all pages of the list.

        Errors:
            ClientError: they could not be listed.
        """
        tools: list[Members] = []
        params: Members = {}
        for _ in range(_MAX_TOOL_PAGES):
            page = self.ask(LIST_TOOLS, params, timeout_seconds=self._timeout_seconds)
            listed = page.get("tools")
            if not isinstance(listed, list) or not all(isinstance(tool, dict) and "name" in tool for tool in listed):
                raise NotMcp("the answer to tools/list is not a list of tools")
            tools += listed
            params = {"cursor": page.get("nextCursor")}
            if not isinstance(params["cursor"], str):
                break
        return tools

    def ask(
        self,
        method: str,
        params: Members,
        *,
        timeout_seconds: float | None = None,
        on_progress: Callable[[Members], None] = lambda _: None,
    ) -> Members:
        """Sends a request and waits for its result; Ctrl-C cancels the request.

        Parameters:
            method: the method.
            params: its parameters.
            timeout_seconds: how long the bridge may send nothing; ``None`` for no limit but that of the bridge.
            on_progress: called with the params of each progress notification.

        Errors:
            ClientError: there is no result.
        """
        request_id = f"vestige-bridge-{secrets.token_hex(8)}"
        if method == CALL_TOOL:
            params = {**params, "_meta": {"progressToken": request_id}}
        request = {"jsonrpc": "2.0", "id": request_id, "method": method, "params": params}
        try:
            for status, message in converse(
                f"{self.url}/mcp",
                request,
                token=self.token,
                timeout_seconds=self._timeout_seconds,
                silence_seconds=timeout_seconds,
            ):
                if isinstance(message.get("error"), dict):
                    raise Refused(status, message["error"])
                if isinstance(message.get("result"), dict):
                    result: Members = message["result"]
                    return result
                if message.get("method") == PROGRESS and isinstance(message.get("params"), dict):
                    on_progress(message["params"])
        except ClientError as error:
            error.may_have_run &= method == CALL_TOOL  # Nothing else that a command sends has an effect.
            raise
        except KeyboardInterrupt:
            with suppress(ClientError):
                self.notify(CANCELLED, {"requestId": request_id, "reason": "The user cancelled the call."})
            raise
        failure = NoAnswer("the stream ended before the answer", "cut")
        failure.may_have_run = method == CALL_TOOL
        raise failure


def local_url(settings: Settings) -> str:
    """The address at which a process on this machine reaches the bridge with these settings."""
    host = _EVERYWHERE.get(settings.host, settings.host)
    return f"http://[{host}]:{settings.port}" if ":" in host else f"http://{host}:{settings.port}"
