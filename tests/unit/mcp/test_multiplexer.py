from __future__ import annotations

import json
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unit import json_texts
from unit.json_texts import ID, TOKEN
from vestige_bridge.errors import InvalidMessage, ParseError
from vestige_bridge.jsonrpc.messages import Notification, Request
from vestige_bridge.jsonrpc.parser import parse_message
from vestige_bridge.mcp.multiplexer import Answer, Call, Caller, Multiplexer, Progress, Reply, Unattributed

ALICE = Caller("alice")


def new_call(text: str, caller: Caller = ALICE) -> Call:
    request = parse_message(text)
    assert isinstance(request, Request)
    return Call(request, caller)


def call_with(spelled_id: str, caller: Caller = ALICE, params: str = "{}") -> Call:
    return new_call(f'{{"jsonrpc":"2.0","id":{spelled_id},"method":"tools/call","params":{params}}}', caller)


def is_unattributed_progress(routed: object) -> bool:
    """Returns whether the result is a progress notification that belongs to no call."""
    notification = routed.notification if isinstance(routed, Unattributed) else None
    return notification is not None and notification.method == "notifications/progress"


def cancellation(request_id: str) -> Notification:
    text = f'{{"jsonrpc":"2.0","method":"notifications/cancelled","params":{{"requestId":{request_id}}}}}'
    notification = parse_message(text)
    assert isinstance(notification, Notification)
    return notification


def sent(multiplexer: Multiplexer[Call], call: Call) -> dict[str, object]:
    """Returns the message that upstream receives for the call."""
    multiplexer.open(call)
    message: dict[str, object] = json.loads(multiplexer.assign(call), parse_float=str)
    return message


def result_for(upstream_id: object) -> bytes:
    return b'{"jsonrpc":"2.0","id":%s,"result":{}}' % str(upstream_id).encode()


def progress_for(upstream_id: object, more: str = "") -> bytes:
    params = f'{{"progressToken":{upstream_id}{more}}}'
    return f'{{"jsonrpc":"2.0","method":"notifications/progress","params":{params}}}'.encode()


@given(json_texts.requests, json_texts.responses, json_texts.progress, json_texts.ids, json_texts.ids)
def test_answer_and_progress_have_the_id_and_the_token_of_the_client(
    request: str, response: str, progress: str, spelled_id: str, token: str
) -> None:
    multiplexer: Multiplexer[Call] = Multiplexer()
    call = new_call(request.replace(ID, spelled_id).replace(TOKEN, token))
    multiplexer.open(call)
    assert multiplexer.assign(call) == request.replace(ID, "1").replace(TOKEN, "1").encode()
    step = multiplexer.route(progress.replace(TOKEN, "1").encode())
    assert step == Progress(call, progress.replace(TOKEN, token).encode())
    answer = multiplexer.route(response.replace(ID, "1").encode())
    assert isinstance(answer, Answer)
    assert answer.call is call
    assert answer.data == response.replace(ID, spelled_id).encode()


@given(st.randoms(), st.lists(st.sampled_from(["1", "1.0", '"1"', "0"]), min_size=1, max_size=12))
def test_callers_with_the_same_ids_each_get_their_own_answer_in_any_order(random: Random, spelled: list[str]) -> None:
    multiplexer: Multiplexer[Call] = Multiplexer()
    calls = [call_with(spelled_id, params='{"_meta":{"progressToken":1}}') for spelled_id in spelled]
    upstream_ids = {call: sent(multiplexer, call)["id"] for call in calls}
    assert len(set(upstream_ids.values())) == len(calls)
    for call in random.sample(calls, len(calls)):
        step = multiplexer.route(progress_for(upstream_ids[call]))
        answer = multiplexer.route(result_for(upstream_ids[call]))
        assert isinstance(step, Progress)
        assert isinstance(answer, Answer)
        assert step.call is answer.call is call
        assert answer.data == result_for(call.request.spelled_id)
        multiplexer.close(call)
        assert multiplexer.route(result_for(upstream_ids[call])) == Unattributed(None)
        assert is_unattributed_progress(multiplexer.route(progress_for(upstream_ids[call])))


def test_progress_that_a_newer_one_overtook_on_another_stream_is_dropped() -> None:
    multiplexer: Multiplexer[Call] = Multiplexer()
    call = call_with("1", params='{"_meta":{"progressToken":1}}')
    upstream_id = sent(multiplexer, call)["id"]

    def passed_on(*steps: float) -> list[bool]:
        routed = (multiplexer.route(progress_for(upstream_id, f',"progress":{step}')) for step in steps)
        return [isinstance(it, Progress) for it in routed]

    assert passed_on(1, 3, 2, 3, 4) == [True, True, False, True, True]
    upstream_id = json.loads(multiplexer.assign(call))["id"]
    assert passed_on(1, 2) == [True, True]


@pytest.mark.parametrize("spelling", ["1", "1.0", "1e0", "10E-1"])
def test_upstream_may_spell_the_id_as_any_equal_number(spelling: str) -> None:
    multiplexer: Multiplexer[Call] = Multiplexer()
    assert sent(multiplexer, call_with('"mine"'))["id"] == 1
    answer = multiplexer.route(result_for(spelling))
    assert isinstance(answer, Answer)
    assert answer.data == result_for('"mine"')


@pytest.mark.parametrize("spelling", ['"1"', "2", "0", "-1", "1.5", "1e400", "null", '"mine"'])
def test_a_response_with_an_unknown_id_belongs_to_no_request(spelling: str) -> None:
    multiplexer: Multiplexer[Call] = Multiplexer()
    assert sent(multiplexer, call_with('"mine"'))["id"] == 1
    assert multiplexer.route(result_for(spelling)) == Unattributed(None)


def test_an_answer_without_an_id_belongs_to_no_call() -> None:
    multiplexer: Multiplexer[Call] = Multiplexer()
    sent(multiplexer, call_with("1"))
    assert multiplexer.route(b'{"jsonrpc":"2.0","error":{"code":-32700}}') == Unattributed(None)


def test_progress_for_a_call_without_a_progress_token_belongs_to_no_call() -> None:
    multiplexer: Multiplexer[Call] = Multiplexer()
    sent(multiplexer, call_with("1"))
    assert is_unattributed_progress(multiplexer.route(progress_for(1)))


@pytest.mark.parametrize(
    "notification",
    [
        b'{"jsonrpc":"2.0","method":"notifications/tools/list_changed"}',
        b'{"jsonrpc":"2.0","method":"notifications/message","params":{"progressToken":1}}',
        b'{"jsonrpc":"2.0","method":"notifications/progress"}',
    ],
)
def test_a_notification_without_a_known_progress_token_belongs_to_no_call(notification: bytes) -> None:
    multiplexer: Multiplexer[Call] = Multiplexer()
    sent(multiplexer, call_with("1", params='{"_meta":{"progressToken":1}}'))
    routed = multiplexer.route(notification)
    assert isinstance(routed, Unattributed)
    assert routed.notification is not None
    assert routed.notification.encoded() == notification


def test_a_late_response_to_an_earlier_attempt_belongs_to_no_request() -> None:
    multiplexer: Multiplexer[Call] = Multiplexer()
    call = call_with("1")
    first = sent(multiplexer, call)["id"]
    second = json.loads(multiplexer.assign(call))["id"]
    assert multiplexer.route(result_for(first)) == Unattributed(None)
    assert isinstance(multiplexer.route(result_for(second)), Answer)


def test_a_withdrawn_attempt_gets_no_answer_and_can_still_be_cancelled() -> None:
    multiplexer: Multiplexer[Call] = Multiplexer()
    call = call_with("1")
    upstream_id = sent(multiplexer, call)["id"]
    multiplexer.withdraw(call)
    assert multiplexer.route(result_for(upstream_id)) == Unattributed(None)
    assert multiplexer.find(ALICE, cancellation("1")) is call


@pytest.mark.parametrize(
    ("method", "answer"),
    [
        ("ping", {"result": {}}),
        ("sampling/createMessage", {"error": {"code": -32601, "message": "Method not found"}}),
    ],
)
def test_a_request_of_upstream_is_answered_with_its_own_id(method: str, answer: dict[str, object]) -> None:
    multiplexer: Multiplexer[Call] = Multiplexer()
    sent(multiplexer, call_with("1"))
    reply = multiplexer.route(b'{"jsonrpc":"2.0","id":1,"method":"%s"}' % method.encode())
    assert isinstance(reply, Reply)
    assert json.loads(reply.data) == {"jsonrpc": "2.0", "id": 1, **answer}


@pytest.mark.parametrize(
    ("data", "kind"), [(b"", ParseError), (b"<html>", ParseError), (b"\xff", ParseError), (b"[]", InvalidMessage)]
)
def test_data_that_is_not_a_message_is_rejected(data: bytes, kind: type[InvalidMessage]) -> None:
    with pytest.raises(kind):
        Multiplexer[Call]().route(data)


@pytest.mark.parametrize(("spelled_id", "request_id"), [("1", "1"), ('"a"', r'"\u0061"'), ("1e400", "1e400")])
def test_a_cancellation_finds_the_call_with_its_id(spelled_id: str, request_id: str) -> None:
    multiplexer: Multiplexer[Call] = Multiplexer()
    call, other = call_with(spelled_id), call_with('"other"')
    multiplexer.open(call)
    multiplexer.open(other)
    assert multiplexer.find(ALICE, cancellation(request_id)) is call
    multiplexer.close(call)
    assert multiplexer.find(ALICE, cancellation(request_id)) is None


@pytest.mark.parametrize("request_id", ['"1"', "2", "null", "true", "{}", "[1]"])
def test_a_cancellation_of_another_id_finds_no_call(request_id: str) -> None:
    multiplexer: Multiplexer[Call] = Multiplexer()
    multiplexer.open(call_with("1"))
    assert multiplexer.find(ALICE, cancellation(request_id)) is None


def test_a_cancellation_without_a_request_id_finds_no_call() -> None:
    multiplexer: Multiplexer[Call] = Multiplexer()
    multiplexer.open(call_with("1"))
    notification = parse_message('{"jsonrpc":"2.0","method":"notifications/cancelled"}')
    assert isinstance(notification, Notification)
    assert multiplexer.find(ALICE, notification) is None


@pytest.mark.parametrize("caller", [Caller("bob"), Caller("alice", "a session"), Caller("bob", "a session")])
def test_a_call_of_another_principal_or_session_cannot_be_cancelled(caller: Caller) -> None:
    multiplexer: Multiplexer[Call] = Multiplexer()
    multiplexer.open(call_with("1"))
    assert multiplexer.find(caller, cancellation("1")) is None


def test_a_cancellation_that_fits_two_calls_finds_neither() -> None:
    multiplexer: Multiplexer[Call] = Multiplexer()
    first, second = call_with("1"), call_with("1")
    multiplexer.open(first)
    multiplexer.open(second)
    assert multiplexer.find(ALICE, cancellation("1")) is None
    multiplexer.close(first)
    assert multiplexer.find(ALICE, cancellation("1")) is second


def test_closing_a_call_twice_does_not_affect_another() -> None:
    multiplexer: Multiplexer[Call] = Multiplexer()
    first, second = call_with("1"), call_with("1")
    sent(multiplexer, first)
    upstream_id = sent(multiplexer, second)["id"]
    multiplexer.close(first)
    multiplexer.close(first)
    assert multiplexer.find(ALICE, cancellation("1")) is second
    assert isinstance(multiplexer.route(result_for(upstream_id)), Answer)
