"""JSON-RPC 2.0 messages: parsed, spliced, built.

The law of this room: a message is never parsed and printed again. It is parsed to learn where its id and its
progress token stand, those few characters are replaced, and everything else stays as its author wrote it.

Offsets are those of the decoded text. Decoding and encoding UTF-8 strictly is the identity, so what holds for the
characters holds for the bytes.

Nearly every message is read by one call of the JSON decoder, which is C, and one regular expression that finds the
place of the id (``_scan``). It gives up whenever it is not certain, and then the members are walked through one by one.
"""

from __future__ import annotations

import codecs
import json
import re
import sys
from collections.abc import Callable, Collection, Mapping
from functools import lru_cache
from typing import Final, NamedTuple, NoReturn

from vestige_bridge.errors import RENDERINGS, BridgeError, InvalidMessage, ParseError

READ_IN_PARAMS: Final = frozenset(
    {
        "_meta",
        "inputResponses",
        "level",
        "name",
        "notifications",
        "progressToken",
        "protocolVersion",
        "requestId",
        "requestState",
        "uri",
    }
)
READ_IN_META: Final = frozenset(
    {
        "progressToken",
        "io.modelcontextprotocol/clientCapabilities",
        "io.modelcontextprotocol/clientInfo",
        "io.modelcontextprotocol/logLevel",
        "io.modelcontextprotocol/protocolVersion",
    }
)

_DECIDING: Final = frozenset({"error", "id", "jsonrpc", "method", "params", "result"})
_DECIDING_IN_PARAMS: Final = frozenset({"_meta", "name", "progressToken", "requestId"})
_DECIDING_IN_META: Final = frozenset({"progressToken"})
"""The keys by which a message is told from others and given to somebody, at the three levels."""

_USUAL_IN_PARAMS: Final = READ_IN_PARAMS | {"arguments", "cursor"}
_DECIDING_FOLDED: Final = frozenset(key.casefold() for key in _DECIDING | _DECIDING_IN_PARAMS)

BATCH_LIMIT: Final = 1_024
"""How many messages a batch may hold."""

MEMBERS_LIMIT: Final = 4_096
"""How many members an object may have where the bridge reads; all others wait while it does."""

LARGE_BYTES: Final = 4_194_304
"""From this length on an answer is read in a way that spares memory; the usual one is faster."""

LARGE_DEPTH: Final = 4
"""How deep the result of such an answer may be nested to be read so."""

_SLICE_BYTES: Final = 65_536

_CAN_READ_LARGE: Final = sys.version_info >= (3, 11, 5)
"""Earlier releases of Python match some expressions that try nothing twice wrongly."""

# What stands round the members of a response.
_opening = re.compile(rb"[ \t\n\r]*\{").match
_response_key = re.compile(rb'[ \t\n\r]*("(?:jsonrpc|id|result|error)")[ \t\n\r]*:[ \t\n\r]*').match
_closing = re.compile(rb"[ \t\n\r]*([,}])").match
_end = re.compile(rb"[ \t\n\r]*\Z").match

_skip_space = re.compile(r"[ \t\n\r]*").match


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


# `float` for integers: CPython refuses to read an int of more than 4,300 digits, and no number is printed again here.
_decode = json.JSONDecoder(parse_int=float, parse_constant=_refuse_constant).raw_decode
# An object becomes a tuple of its members, so that a key that is there twice is seen.
_decode_members = json.JSONDecoder(parse_int=float, parse_constant=_refuse_constant, object_pairs_hook=tuple).raw_decode

# In a text that is known to be JSON: the id among the first members of the message, and as its last one.
_id_among_first = re.compile(
    r'\{\s*(?:"(?:jsonrpc|method)"\s*:\s*"[^"\\]*"\s*,\s*)*("id")\s*:\s*(-?[0-9]+|"[^"\\]*")\s*[,}]'
).match
_id_as_last = re.compile(r'("id")\s*:\s*(-?[0-9]+|"[^"\\]*")\s*\}\s*\Z').match
_progress_token = re.compile(r'("progressToken")\s*:\s*(-?[0-9]+|"[^"\\]*")\s*[,}]').search


class Value(NamedTuple):
    """The value of a member, and the places where it and its key are spelled.

    Attributes:
        key_start: where the key begins.
        start: where the value begins.
        end: where the value ends.
        value: the value itself; ``None`` for an object whose members are kept apart.
    """

    key_start: int
    start: int
    end: int
    value: object


Visit = Callable[[str, int, int], int]
"""Told of a member's key, where the key begins and where the value begins; returns where the value ends."""


class _Places(NamedTuple):
    """Where the members stand at the three levels at which the bridge reads, and which keys stand there twice."""

    members: Mapping[str, Value]
    params: Mapping[str, Value]
    meta: Mapping[str, Value]
    repeated: frozenset[str]


class Message:
    """One JSON-RPC message as its author wrote it.

    Parameters:
        text: the whole message.
        meta_keys: the keys of an object ``params._meta``.
        places: where its members stand, if that is known already.

    Attributes:
        text: the whole message.
        meta_keys: the keys of an object ``params._meta``.
    """

    __slots__ = ("_places", "meta_keys", "text")

    text: str

    def __init__(self, text: str, meta_keys: Collection[str], places: _Places | None) -> None:
        self.text = text
        self.meta_keys = meta_keys
        self._places = places

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
        """The characters of ``value`` as they stand in the text."""
        return self.text[value.start : value.end]

    def spliced(self, *replacements: tuple[Value, str]) -> bytes:
        """The bytes of the message with each given value replaced by other characters."""
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
    def _found(self) -> _Places:
        if self._places is None:
            self._places = _find_places(self.text)
        return self._places


class Request(Message):
    """A message with a method and an id: it wants an answer (JSON-RPC 2.0, section 4).

    Attributes:
        method: its method.
        id: its id.
        name: ``params.name``: the tool or prompt that is asked for.
        progress_token: ``params._meta.progressToken`` (MCP 2025-11-25, basic/utilities/progress).
    """

    __slots__ = ("id", "method", "name", "progress_token")

    def __init__(
        self,
        text: str,
        method: str,
        *,
        id: Value,  # noqa: A002
        name: str | None,
        progress_token: Value | None,
        meta_keys: Collection[str],
        places: _Places | None,
    ) -> None:
        super().__init__(text, meta_keys, places)
        self.method = method
        self.id = id
        self.name = name
        self.progress_token = progress_token

    @property
    def spelled_id(self) -> str:
        """The id as the client spelled it."""
        return self.spelled(self.id)


class Notification(Message):
    """A message with a method and no id: it wants no answer (JSON-RPC 2.0, section 4.1)."""

    __slots__ = ("method",)

    def __init__(self, text: str, method: str, *, meta_keys: Collection[str], places: _Places | None) -> None:
        super().__init__(text, meta_keys, places)
        self.method = method


class Response(Message):
    """A result or an error object for a request (JSON-RPC 2.0, section 5).

    Attributes:
        id: the id of the request; ``None`` when unknown.
        failed: whether it is an error object.
    """

    __slots__ = ("failed", "id")

    def __init__(self, text: str, *, id: Value | None, failed: bool, places: _Places | None) -> None:  # noqa: A002
        super().__init__(text, (), places)
        self.id = id
        self.failed = failed

    @property
    def error(self) -> Mapping[str, object] | None:
        """The members of the error object, when the response is one."""
        error = self.members.get("error")
        return error.value if error is not None and isinstance(error.value, dict) else None

    @property
    def result(self) -> object:
        """The result; ``None`` when the response is an error object."""
        result = self.members.get("result")
        return None if result is None else result.value


class LargeResponse(Response):
    """A response that is held once, as the bytes that came, and decoded only for who asks for its text.

    Parameters:
        data: the whole message.
        id: the id of the request; its places are those of the bytes.
        failed: whether it is an error object.
    """

    __slots__ = ("_bytes",)

    def __init__(self, data: bytes, *, id: Value, failed: bool) -> None:  # noqa: A002
        self._bytes = data
        self._places = None
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
    """What two spellings of one id share: a string's characters, a number's digits as they are spelled."""
    return f'"{value.value}' if isinstance(value.value, str) else message.spelled(value)


def is_token(value: Value) -> bool:
    """Whether the value may be an id or a progress token: a string or a number."""
    return isinstance(value.value, str | float) and not isinstance(value.value, bool)


def parse_body(body: bytes) -> AnyMessage | list[AnyMessage | InvalidMessage]:
    """The message in a body, or the members of a batch in their order, each a message or what is wrong with it.

    Parameters:
        body: the bytes of an HTTP body, JSON in UTF-8 (RFC 8259).

    Errors:
        ParseError: the bytes are not JSON.
        InvalidMessage: they are JSON and no JSON-RPC 2.0 message, or an empty batch (JSON-RPC 2.0, section 6).
    """
    try:
        text = body.decode()
    except UnicodeDecodeError:
        raise ParseError("The body is not valid UTF-8.") from None
    if text[:1] == "{":
        return parse_message(text)
    start = _after_space(text, 0)
    if start == len(text):
        raise ParseError("The body is empty; send one JSON-RPC request.")
    if text[start] != "[":
        return parse_message(text)
    return [_parse_member(text[begin:end]) for begin, end in _elements(text, start)]


def parse_message(text: str) -> AnyMessage:
    """The one message that the text holds.

    Errors:
        ParseError: the text is not JSON.
        InvalidMessage: it is JSON and no JSON-RPC 2.0 message.
    """
    return _scan(text) or _parse(text)


def read_response(data: bytes) -> Response | None:
    """A large response of usual shape, checked to its end without being decoded; ``None`` for anything else.

    Reading it as usual would hold it three times more at once.

    Parameters:
        data: the bytes of one message from upstream.
    """
    if len(data) < LARGE_BYTES or not _CAN_READ_LARGE or not _is_utf8(data):
        return None
    opening = _opening(data)
    members: dict[bytes, Value] = {}
    index, closing = (0, b"") if opening is None else (opening.end(), b",")
    while closing == b",":
        key = _response_key(data, index)
        value = None if key is None else _value_grammar().match(data, key.end())
        close = None if value is None else _closing(data, value.end())
        if key is None or value is None or close is None or key[1] in members:
            return None
        members[key[1]] = Value(key.start(1), value.start(), value.end(), None)
        index, closing = close.end(), close[1]
    version, place, result, error = (members.get(key) for key in (b'"jsonrpc"', b'"id"', b'"result"', b'"error"'))
    if version is None or data[version.start : version.end] != b'"2.0"' or (result is None) == (error is None):
        return None
    if place is None or not _end(data, index):
        return None
    message_id = _decode(data[place.start : place.end].decode(), 0)[0]
    if not isinstance(message_id, str | float):
        return None
    return LargeResponse(data, id=place._replace(value=message_id), failed=error is not None)


def _is_utf8(data: bytes) -> bool:
    if data.isascii():
        return True
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        with memoryview(data) as view:
            for start in range(0, len(view), _SLICE_BYTES):
                decoder.decode(view[start : start + _SLICE_BYTES])
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    return True


@lru_cache(maxsize=1)
def _value_grammar() -> re.Pattern[bytes]:
    """A JSON value (RFC 8259), nested as deep as answers are, as one expression that never tries anything twice."""
    space = rb"[ \t\n\r]*+"
    string = rb'"[^"\\\x00-\x1f]*+(?:\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})[^"\\\x00-\x1f]*+)*+"'
    number = rb"-?+(?:0|[1-9][0-9]*+)(?:\.[0-9]++)?+(?:[eE][+-]?+[0-9]++)?+"
    value = atom = b"|".join([string, number, b"true", b"false", b"null"])
    for _ in range(LARGE_DEPTH):
        parts = {b"s": space, b"member": b"%b%b:%b(?:%b)%b" % (string, space, space, value, space), b"value": value}
        members = rb"(?:%(member)b(?:,%(s)b(?=\")|(?=\})))*+" % parts
        elements = rb"(?:(?:%(value)b)%(s)b(?:,%(s)b(?!\])|(?=\])))*+" % parts
        value = rb"\{%b%b\}|\[%b%b\]|%b" % (space, members, space, elements, atom)
    return re.compile(value)


def _scan(text: str) -> AnyMessage | None:
    """The message, when one look is enough to be certain of it; ``None`` for all that is unusual or wrong."""
    try:
        pairs, end = _decode_members(text, 0)
    except (ValueError, RecursionError):
        return None
    if not isinstance(pairs, tuple) or (end != len(text) and _after_space(text, end) != len(text)):
        return None
    members = _object(pairs)
    if members is None or members.get("jsonrpc") != "2.0" or not members.keys() <= _DECIDING:
        return None
    message_id = members.get("id")
    place = None
    if message_id is not None and (place := _scan_id(text, message_id)) is None:
        return None
    method = members.get("method")
    if method is None:
        if ("result" in members) == ("error" in members) or not members.keys().isdisjoint({"method", "params"}):
            return None
        return Response(text, id=place, failed="error" in members, places=None)
    if not isinstance(method, str) or (place is None and "id" in members):
        return None
    params = _object(members.get("params"))
    meta = _object(params.get("_meta")) if params else params
    if params is None or meta is None or _have_twins(params, meta):
        return None
    token = None
    if "progressToken" in meta and (token := _scan_token(text, meta["progressToken"])) is None:
        return None
    if place is None:
        return Notification(text, method, meta_keys=meta.keys(), places=None)
    name = params.get("name")
    return Request(
        text,
        method,
        id=place,
        name=name if isinstance(name, str) else None,
        progress_token=token,
        meta_keys=meta.keys(),
        places=None,
    )


def _object(members: object) -> dict[str, object] | None:
    """The members by their keys; empty for what is no object, ``None`` when a key is there twice, or too many are."""
    if not isinstance(members, tuple):
        return {}
    found = dict(members)
    return found if len(found) == len(members) <= MEMBERS_LIMIT else None


def _have_twins(params: Mapping[str, object], meta: Mapping[str, object]) -> bool:
    usual = params.keys() <= _USUAL_IN_PARAMS and meta.keys() <= READ_IN_META
    return not usual and (
        any(_is_twin(key, _DECIDING_IN_PARAMS) for key in params)
        or any(_is_twin(key, _DECIDING_IN_META) for key in meta)
    )


def _is_twin(key: str, deciding: frozenset[str]) -> bool:
    """Whether the key is not one of those, and some readers of JSON, such as Go's, take it for one nevertheless."""
    return (
        key not in deciding and (folded := key.casefold()) in _DECIDING_FOLDED and folded in map(str.casefold, deciding)
    )


def _scan_id(text: str, value: object) -> Value | None:
    """The place of the id, where it can only be that of the message itself.

    Among the first members nothing but strings stands before it. As the last member it ends where the message does;
    the quote that opens its key is one, because no backslash stands before it.
    """
    found = _id_among_first(text)
    if found is None:
        start = text.rfind('"id"')
        found = _id_as_last(text, start) if start > 0 and text[start - 1] != "\\" else None
    return None if found is None else Value(found.start(1), found.start(2), found.end(2), value)


def _scan_token(text: str, value: object) -> Value | None:
    """The place of the progress token, where its key stands only once and no key can be spelled in another way."""
    if "\\" in text or text.count('"progressToken"') != 1:
        return None
    found = _progress_token(text)
    return None if found is None else Value(found.start(1), found.start(2), found.end(2), value)


def _parse(text: str) -> AnyMessage:
    """The message, by walking through its members one by one."""
    places = _find_places(text)
    members, params, meta, repeated = places
    request_id = members.get("id")
    has_id = request_id is not None and is_token(request_id)
    spelled_id = text[request_id.start : request_id.end] if request_id is not None and has_id else None

    def refuse(message: str) -> NoReturn:
        raise InvalidMessage(message, request_id=None if "id" in repeated else spelled_id)

    if repeated:
        refuse(
            f"The key {min(repeated)!r} is there twice, or differs from one that counts in case alone, "
            "so two readers could read two different messages."
        )
    version = members.get("jsonrpc")
    if version is None or version.value != "2.0":
        refuse('Not a JSON-RPC 2.0 message: "jsonrpc" has to be "2.0".')
    token = meta.get("progressToken")
    if token is not None and not is_token(token):
        refuse('"progressToken" has to be a string or a number.')
    method = members.get("method")
    if method is None:
        if ("result" in members) == ("error" in members):
            refuse('Not a JSON-RPC 2.0 message: "method" is missing.')
        if request_id is not None and not has_id and request_id.value is not None:
            refuse('"id" has to be a string or a number.')
        return Response(text, id=request_id if has_id else None, failed="error" in members, places=places)
    if not isinstance(method.value, str):
        refuse('"method" has to be a string.')
    if request_id is None:
        return Notification(text, method.value, meta_keys=meta.keys(), places=places)
    if not has_id:
        refuse('"id" has to be a string or a number.')
    name = params.get("name")
    return Request(
        text,
        method.value,
        id=request_id,
        name=name.value if name is not None and isinstance(name.value, str) else None,
        progress_token=token,
        meta_keys=meta.keys(),
        places=places,
    )


def build_request(method: str, params: Mapping[str, object] | None = None, *, request_id: int = 0) -> Request:
    """A request of the bridge's own; the multiplexer gives it the id it travels under."""
    message: dict[str, object] = {"jsonrpc": "2.0", "id": request_id, "method": method}
    if params is not None:
        message["params"] = params
    request = parse_message(dump(message))
    if not isinstance(request, Request):
        raise TypeError("a message with a method and an id is a request")
    return request


def build_notification(method: str, params: Mapping[str, object] | None = None) -> bytes:
    """A notification of the bridge's own."""
    message: dict[str, object] = {"jsonrpc": "2.0", "method": method}
    if params is not None:
        message["params"] = params
    return dump(message).encode()


def build_result(spelled_id: str, spelled_result: str) -> bytes:
    """A response with a result that is JSON already, for an id as it was spelled."""
    return f'{{"jsonrpc":"2.0","id":{spelled_id},"result":{spelled_result}}}'.encode()


def build_error(error: BridgeError, spelled_id: str | None) -> bytes:
    """The error object for an error of the bridge (JSON-RPC 2.0, section 5.1).

    Parameters:
        error: what went wrong.
        spelled_id: the id of the request as it was spelled; ``None`` becomes ``null``.
    """
    members: dict[str, object] = {"code": RENDERINGS[type(error)].code, "message": error.message}
    if error.data:
        members["data"] = error.data
    return f'{{"jsonrpc":"2.0","id":{spelled_id or "null"},"error":{dump(members)}}}'.encode()


def build_method_not_found(spelled_id: str) -> bytes:
    """The error object for a request that asks for what is not offered (JSON-RPC 2.0, section 5.1)."""
    return f'{{"jsonrpc":"2.0","id":{spelled_id},"error":{{"code":-32601,"message":"Method not found"}}}}'.encode()


def members_of(text: str, start: int = 0) -> dict[str, Value]:
    """The members of the object that opens at ``start`` of a text that is known to be JSON."""
    found: dict[str, Value] = {}

    def visit(key: str, key_start: int, value_start: int) -> int:
        value, end = _decode(text, value_start)
        found[key] = Value(key_start, value_start, end, value)
        return end

    _members(text, _after_space(text, start), visit)
    return found


def replace_member(text: str, key: str, value: object) -> str:
    """The JSON object in ``text`` with the value of one member, if it is there, replaced; all else as it was."""
    member = members_of(text).get(key)
    return text if member is None else text[: member.start] + dump(value) + text[member.end :]


def add_members(text: str, start: int, members: Mapping[str, str]) -> str:
    """The text with members, given as JSON, put first into the object that opens at ``start``."""
    if not members:
        return text
    rest = _after_space(text, start + 1)
    spelled = ",".join(f"{dump(key)}:{value}" for key, value in members.items())
    return f"{text[: start + 1]}{spelled}{'' if text[rest] == '}' else ','}{text[start + 1 :]}"


def dump(value: object) -> str:
    """JSON without spaces."""
    return json.dumps(value, separators=(",", ":"))


def _parse_member(text: str) -> AnyMessage | InvalidMessage:
    try:
        return parse_message(text)
    except InvalidMessage as error:
        return error


def _find_places(text: str) -> _Places:
    """Walks through the members of the message, of its ``params`` and of their ``_meta``."""
    members: dict[str, Value] = {}
    params: dict[str, Value] = {}
    meta: dict[str, Value] = {}
    repeated: set[str] = set()

    def visitor(
        found: dict[str, Value],
        read: frozenset[str] | None,
        deciding: frozenset[str],
        nested: str = "",
        inner: Visit | None = None,
    ) -> Visit:
        def visit(key: str, key_start: int, start: int) -> int:
            if inner is not None and key == nested and text[start : start + 1] == "{":
                value, end = None, _members(text, start, inner)
            else:
                value, end = _decode(text, start)
            if (key in found and (read is None or key in read)) or _is_twin(key, deciding):
                repeated.add(key)
            found[key] = Value(key_start, start, end, value)
            return end

        return visit

    visit_meta = visitor(meta, READ_IN_META, _DECIDING_IN_META)
    visit_params = visitor(params, READ_IN_PARAMS, _DECIDING_IN_PARAMS, "_meta", visit_meta)
    visit_message = visitor(members, None, _DECIDING, "params", visit_params)
    try:
        start = _after_space(text, 0)
        end = _members(text, start, visit_message) if text[start : start + 1] == "{" else _decode(text, start)[1]
    except RecursionError:
        raise ParseError("The body is nested too deeply.") from None
    except ValueError:
        raise ParseError("The body is not JSON.") from None
    if _after_space(text, end) != len(text):
        raise ParseError("The body is not JSON: something follows the message.")
    if not members and text[start] != "{":
        raise InvalidMessage("Not a JSON-RPC 2.0 message: an object is wanted.")
    return _Places(members, params, meta, frozenset(repeated))


def _members(text: str, start: int, visit: Visit) -> int:
    """Calls ``visit(key, value_start)``, which returns the value's end, for each member; returns the object's end."""
    index = _after_space(text, start + 1)
    if text[index : index + 1] == "}":
        return index + 1
    for _ in range(MEMBERS_LIMIT):
        if text[index : index + 1] != '"':
            raise ValueError("a key is wanted")
        key_start = index
        key, index = _decode(text, index)
        index = _after_space(text, index)
        if text[index : index + 1] != ":":
            raise ValueError("a colon is wanted")
        index = _after_space(text, visit(key, key_start, _after_space(text, index + 1)))
        if text[index : index + 1] == "}":
            return index + 1
        if text[index : index + 1] != ",":
            raise ValueError("a comma is wanted")
        index = _after_space(text, index + 1)
    raise InvalidMessage(f"An object of this message has more than {MEMBERS_LIMIT} members.")


def _elements(text: str, start: int) -> list[tuple[int, int]]:
    """The places of the elements of the array that opens at ``start`` and is the whole text."""
    places: list[tuple[int, int]] = []
    try:
        index = _after_space(text, start + 1)
        if text[index : index + 1] == "]" and _after_space(text, index + 1) == len(text):
            raise InvalidMessage("The batch is empty; send at least one request.")
        while True:
            if len(places) == BATCH_LIMIT:
                raise InvalidMessage(f"A batch may hold {BATCH_LIMIT} messages.")
            end = _decode(text, index)[1]
            places.append((index, end))
            index = _after_space(text, end)
            closing = text[index : index + 1]
            if closing not in (",", "]"):
                raise ValueError("a comma is wanted")
            index = _after_space(text, index + 1)
            if closing == "]":
                break
    except RecursionError:
        raise ParseError("The body is nested too deeply.") from None
    except ValueError:
        raise ParseError("The body is not JSON.") from None
    if index != len(text):
        raise ParseError("The body is not JSON: something follows the batch.")
    return places


def _after_space(text: str, index: int) -> int:
    match = _skip_space(text, index)
    return index if match is None else match.end()
