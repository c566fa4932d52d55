"""The parser of JSON-RPC 2.0 messages.

Invariant: an accepted message has only one meaning for every JSON parser.
"""

from __future__ import annotations

from typing import NoReturn

from vestige_bridge.errors import InvalidMessage, ParseError
from vestige_bridge.jsonrpc.fast_parser import scan
from vestige_bridge.jsonrpc.messages import (
    CANCELLED,
    INITIALIZED,
    AnyMessage,
    Notification,
    Request,
    Response,
    is_token,
)
from vestige_bridge.jsonrpc.spans import Value, after_space, elements, find_spans, without_member
from vestige_bridge.jsonrpc.strict import NESTING_LIMIT, is_too_deep, replace_unpaired_surrogates, shallow


def parse_body(body: bytes) -> AnyMessage | list[AnyMessage | InvalidMessage]:
    """The message in a body, or the members of a batch in order, each a message or its error.

    Parameters:
        body: the bytes of an HTTP body, JSON in UTF-8 (RFC 8259), with or without a byte order mark.

    Errors:
        ParseError: the bytes are not JSON, or a message is nested too deeply.
        InvalidMessage: they are JSON but not a JSON-RPC 2.0 message, or an empty batch (JSON-RPC 2.0, section 6).
    """
    text = _decoded(body)
    if text[:1] == "{":
        return _parse_from_client(text)
    start = after_space(text, 0)
    if start == len(text):
        raise ParseError("The body is empty; send one JSON-RPC request.")
    if text[start] != "[":
        return _parse_from_client(text)
    return [_parse_member(text[begin:end]) for begin, end in elements(text, start)]


def parse_message(text: str) -> AnyMessage:
    """The one message in the text.

    Errors:
        ParseError: the text is not JSON.
        InvalidMessage: it is JSON but not a JSON-RPC 2.0 message.
    """
    return scan(text) or _parse(text)


def _decoded(body: bytes) -> str:
    """The text of a body (RFC 8259, section 8.1: a parser may ignore a byte order mark)."""
    try:
        return body.decode().removeprefix("\ufeff")
    except UnicodeDecodeError:
        raise ParseError("The body is not valid UTF-8.") from None


def _parse_from_client(text: str) -> AnyMessage:
    """A client's message in the form that every upstream accepts."""
    if is_too_deep(text):
        raise ParseError(f"The message is nested deeper than {NESTING_LIMIT} levels.", request_id=_find_id(text))
    message = scan(text) or _with_params_of_use(_parse(text))
    if isinstance(message, Request) and message.method == INITIALIZED:
        # Some clients give it an id, but expect no response.
        message = parse_message(without_member(message.text, message.id))
    return _with_whole_characters(message)


def _with_params_of_use(message: AnyMessage) -> AnyMessage:
    """The message without ``params`` that are ``null``.

    Errors:
        InvalidMessage: its ``params`` are neither an object nor an array (JSON-RPC 2.0, section 4.2).
    """
    params = message.members.get("params")
    if isinstance(message, Response) or params is None or message.text[params.start] in "{[":
        return message
    if message.spelled(params) != "null":
        request_id = message.spelled_id if isinstance(message, Request) else None
        raise InvalidMessage('"params" must be an object or an array.', request_id=request_id)
    return parse_message(without_member(message.text, params))


def _with_whole_characters(message: AnyMessage) -> AnyMessage:
    """The message without unpaired surrogates, except in an id or a token: those are never sent upstream."""
    text = message.text
    whole = replace_unpaired_surrogates(text)
    if whole == text:
        return message
    for value in _mapped_values(message):
        whole = whole[: value.start] + text[value.start : value.end] + whole[value.end :]
    return parse_message(whole)


def _mapped_values(message: AnyMessage) -> list[Value]:
    """The values that the multiplexer replaces upstream, and restores in the reply."""
    if isinstance(message, Request):
        return [message.id] if message.progress_token is None else [message.id, message.progress_token]
    if isinstance(message, Notification) and message.method == CANCELLED and "requestId" in message.params:
        return [message.params["requestId"]]
    return []


def _find_id(text: str) -> str | None:
    """The id of a message that is nested too deeply to be parsed, in its spelling."""
    text = shallow(text)
    try:
        members, _, _, repeated = find_spans(text)
    except InvalidMessage:
        return None
    request_id = members.get("id")
    if request_id is None or "id" in repeated or not is_token(request_id):
        return None
    return text[request_id.start : request_id.end]


def _parse(text: str) -> AnyMessage:
    """The message, parsed member by member."""
    spans = find_spans(text)
    members, params, meta, repeated = spans
    request_id = members.get("id")
    has_id = request_id is not None and is_token(request_id)
    spelled_id = text[request_id.start : request_id.end] if request_id is not None and has_id else None

    def refuse(message: str) -> NoReturn:
        raise InvalidMessage(message, request_id=None if "id" in repeated else spelled_id)

    if repeated:
        refuse(
            f"The key {min(repeated)!r} is repeated, or differs only in case from a key with a meaning, "
            "so the message is ambiguous."
        )
    version = members.get("jsonrpc")
    if version is None or version.value != "2.0":
        refuse('Not a JSON-RPC 2.0 message: "jsonrpc" must be "2.0".')
    token = meta.get("progressToken")
    if token is not None and not is_token(token):
        refuse('"progressToken" must be a string or a number.')
    method = members.get("method")
    if method is None:
        if ("result" in members) == ("error" in members):
            refuse('Not a JSON-RPC 2.0 message: "method" is missing.')
        if request_id is not None and not has_id and request_id.value is not None:
            refuse('"id" must be a string or a number.')
        return Response(text, id=request_id if has_id else None, failed="error" in members, spans=spans)
    if not isinstance(method.value, str):
        refuse('"method" must be a string.')
    if request_id is None:
        return Notification(text, method.value, meta_keys=meta.keys(), spans=spans)
    if not has_id:
        refuse('"id" must be a string or a number.')
    name = params.get("name")
    return Request(
        text,
        method.value,
        id=request_id,
        name=name.value if name is not None and isinstance(name.value, str) else None,
        progress_token=token,
        task=params.get("task"),
        meta_keys=meta.keys(),
        spans=spans,
    )


def _parse_member(text: str) -> AnyMessage | InvalidMessage:
    try:
        return _parse_from_client(text)
    except InvalidMessage as error:
        return error
