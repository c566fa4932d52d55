"""JSON-RPC 2.0 messages in their original text.

Invariant: a message is its text. Its id and its progress token can be replaced in it; rarely used members are searched
for only on access.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

from vestige_bridge.jsonrpc.spans import Spans, Value, find_spans

PING: Final = "ping"
INITIALIZED: Final = "notifications/initialized"
CANCELLED: Final = "notifications/cancelled"
"""The notification with the id of a request in its parameters (MCP 2025-11-25, basic/utilities/cancellation)."""


class Message:
    """One JSON-RPC message in its original text.

    Parameters:
        text: the whole message.
        meta_keys: the keys of an object ``params._meta``.
        spans: the spans of its members, if they are known.

    Attributes:
        text: the whole message.
        meta_keys: the keys of an object ``params._meta``.
    """

    __slots__ = ("_spans", "meta_keys", "text")

    text: str

    def __init__(self, text: str, meta_keys: Collection[str], spans: Spans | None) -> None:
        self.text = text
        self.meta_keys = meta_keys
        self._spans = spans

    @property
    def members(self) -> Mapping[str, Value]:
        """Its top-level members."""
        return self._found.members

    @property
    def params(self) -> Mapping[str, Value]:
        """The members of an object ``params``."""
        return self._found.params

    @property
    def meta(self) -> Mapping[str, Value]:
        """The members of an object ``params._meta``."""
        return self._found.meta

    def spelled(self, value: Value) -> str:
        """The characters of ``value`` in the text."""
        return self.text[value.start : value.end]

    def spliced(self, *replacements: tuple[Value, str]) -> bytes:
        """The bytes of the message with each given value replaced."""
        if len(replacements) == 1:
            ((value, characters),) = replacements
            return (self.text[: value.start] + characters + self.text[value.end :]).encode()
        pieces = []
        position = 0
        for value, characters in sorted(replacements):
            pieces += [self.text[position : value.start], characters]
            position = value.end
        pieces.append(self.text[position:])
        return "".join(pieces).encode()

    def encoded(self) -> bytes:
        """The bytes of the message, unchanged."""
        return self.text.encode()

    @property
    def _found(self) -> Spans:
        if self._spans is None:
            self._spans = find_spans(self.text)
        return self._spans


class Request(Message):
    """A message with a method and an id, which expects a response (JSON-RPC 2.0, section 4).

    Attributes:
        method: its method.
        id: its id.
        name: ``params.name``: the name of the tool or prompt.
        progress_token: ``params._meta.progressToken`` (MCP 2025-11-25, basic/utilities/progress).
        task: ``params.task``, which requests a task instead of a result (MCP 2025-11-25, basic/utilities/tasks).
    """

    __slots__ = ("id", "method", "name", "progress_token", "task")

    def __init__(
        self,
        text: str,
        method: str,
        *,
        id: Value,  # noqa: A002
        name: str | None,
        progress_token: Value | None,
        task: Value | None,
        meta_keys: Collection[str],
        spans: Spans | None,
    ) -> None:
        self.text = text
        self.meta_keys = meta_keys
        self._spans = spans
        self.method = method
        self.id = id
        self.name = name
        self.progress_token = progress_token
        self.task = task

    @property
    def spelled_id(self) -> str:
        """The id in the client's spelling."""
        return self.spelled(self.id)


class Notification(Message):
    """A message with a method and no id, which expects no response (JSON-RPC 2.0, section 4.1)."""

    __slots__ = ("method",)

    def __init__(self, text: str, method: str, *, meta_keys: Collection[str], spans: Spans | None) -> None:
        super().__init__(text, meta_keys, spans)
        self.method = method


class Response(Message):
    """A result or an error object for a request (JSON-RPC 2.0, section 5).

    Attributes:
        id: the id of the request; ``None`` if unknown.
        failed: whether it is an error object.
    """

    __slots__ = ("failed", "id")

    def __init__(self, text: str, *, id: Value | None, failed: bool, spans: Spans | None) -> None:  # noqa: A002
        self.text = text
        self.meta_keys = ()
        self._spans = spans
        self.id = id
        self.failed = failed

    @property
    def error(self) -> Mapping[str, object] | None:
        """The members of the error object, if the response is one."""
        error = self.members.get("error")
        return error.value if error is not None and isinstance(error.value, dict) else None

    @property
    def result(self) -> object:
        """The result; ``None`` if the response is an error object."""
        result = self.members.get("result")
        return None if result is None else result.value


class LargeResponse(Response):
    """A response that is stored once, as bytes, and decoded only on access to its text.

    Parameters:
        data: the whole message.
        id: the id of the request; its spans are those of the bytes.
        failed: whether it is an error object.
    """

    __slots__ = ("_bytes",)

    def __init__(self, data: bytes, *, id: Value, failed: bool) -> None:  # noqa: A002
        self._bytes = data
        self._spans = None
        self.meta_keys = ()
        self.id = id
        self.failed = failed

    @property
    def text(self) -> str:  # type: ignore[override]
        """The whole message."""
        return self._bytes.decode()

    def spliced(self, *replacements: tuple[Value, str]) -> bytes:
        """The bytes of the message with the id replaced."""
        ((value, characters),) = replacements
        with memoryview(self._bytes) as view:
            return b"".join([view[: value.start], characters.encode(), view[value.end :]])

    def encoded(self) -> bytes:
        """The bytes of the message, unchanged."""
        return self._bytes


AnyMessage = Request | Notification | Response


def token_key(message: Message, value: Value) -> str:
    """A key that spellings of one id share: a string's characters, a number's digits in their spelling."""
    return f'"{value.value}' if isinstance(value.value, str) else message.spelled(value)


def is_token(value: Value) -> bool:
    """Whether the value may be an id or a progress token: a string or a number."""
    return isinstance(value.value, str | float) and not isinstance(value.value, bool)
