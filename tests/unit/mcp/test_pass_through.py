"""A client's own session: ids and server requests pass through, and no request gets messages of another one."""

from __future__ import annotations

import json

import pytest
from hypothesis import given

from unit import json_texts
from unit.json_texts import ID, TOKEN
from unit.mcp.test_multiplexer import cancellation, new_call
from vestige_bridge.errors import InvalidMessage
from vestige_bridge.jsonrpc.messages import Notification, Request
from vestige_bridge.jsonrpc.parser import parse_message
from vestige_bridge.mcp.multiplexer import Answer, Call, Caller, Progress, Unattributed
from vestige_bridge.mcp.pass_through import MAX_CUT, PassThrough

QUESTION = b'{"jsonrpc":"2.0", "id":1, "method":"sampling/createMessage", "params":{}}'
LOG = b'{"jsonrpc":"2.0","method":"notifications/message","params":{"level":"info","data":"x"}}'


class RecordingRouter:
    """A router with a list of the messages that belong to no request."""

    def __init__(self) -> None:
        self.messages: list[bytes] = []
        self.router: PassThrough[Call] = PassThrough(self._take)

    def _take(self, message: Notification | Request) -> None:
        self.messages.append(message.encoded())

    def sent(self, text: str, *, accepts_stream: bool = True) -> tuple[Call, bytes]:
        """Returns a call and the bytes that are sent upstream for it."""
        call = new_call(text)
        self.router.open(call)
        if accepts_stream:
            self.router.accept_stream(call)
        return call, self.router.assign(call)


def call_text(spelled_id: str, token: str = "") -> str:
    params = f'{{"_meta":{{"progressToken":{token}}}}}' if token else "{}"
    return f'{{"jsonrpc":"2.0","id":{spelled_id},"method":"tools/call","params":{params}}}'


def progress(token: str) -> bytes:
    params = f'{{"progressToken":{token},"progress":1}}'
    return f'{{"jsonrpc":"2.0","method":"notifications/progress","params":{params}}}'.encode()


@given(json_texts.requests, json_texts.responses, json_texts.ids, json_texts.ids)
def test_request_and_answer_are_passed_through_unchanged(
    request: str, response: str, spelled_id: str, token: str
) -> None:
    it = RecordingRouter()
    text = request.replace(ID, spelled_id).replace(TOKEN, token)
    call, data = it.sent(text)
    assert data == text.encode()
    answer = response.replace(ID, spelled_id).encode()
    routed = it.router.route(answer)
    assert isinstance(routed, Answer)
    assert (routed.call, routed.data) == (call, answer)


@pytest.mark.parametrize("spelled", ["1", "1.0", '"1"', "-7", "9007199254740993", '"\\u0069"', '""'])
def test_an_answer_is_passed_through_unchanged(spelled: str) -> None:
    it = RecordingRouter()
    call, _ = it.sent(call_text(spelled))
    data = f'{{ "id":{spelled}, "jsonrpc":"2.0", "result":{{"n":1.0}} }}'.encode()
    routed = it.router.route(data)
    assert isinstance(routed, Answer)
    assert (routed.call, routed.data) == (call, data)


def test_two_requests_under_one_id_each_get_their_own_answer() -> None:
    it = RecordingRouter()
    (first, one), (second, two) = it.sent(call_text("1")), it.sent(call_text("1.0"))
    assert json.loads(one)["id"] != json.loads(two)["id"]
    for call, data in ((second, two), (first, one)):
        answer = json.dumps({"jsonrpc": "2.0", "id": json.loads(data)["id"], "result": {}}).encode()
        routed = it.router.route(answer)
        assert isinstance(routed, Answer)
        assert routed.call is call
        assert parse_message(routed.data.decode()).members["id"].value == 1.0


def test_an_id_can_be_reused_once_upstream_has_finished_with_it() -> None:
    it = RecordingRouter()
    call, _ = it.sent(call_text("1"))
    it.router.hold(call)
    it.router.close(call)
    it.router.release(call)
    assert json.loads(it.sent(call_text("1"))[1])["id"] != 1
    late = it.router.route(b'{"jsonrpc":"2.0","id":1,"result":{"late":true}}')
    assert late == Unattributed(None)
    it.router.release(call)
    assert json.loads(it.sent(call_text("1"))[1])["id"] == 1


def test_upstream_messages_are_sent_on_the_stream_of_their_request() -> None:
    it = RecordingRouter()
    it.sent(call_text("1"))
    call, _ = it.sent(call_text("2"))
    for data in (QUESTION, LOG):
        assert it.router.route(data, call) == Progress(call, data)
    assert not it.messages


def test_upstream_messages_of_a_request_without_a_stream_are_sent_on_another_one() -> None:
    it = RecordingRouter()
    without_stream, _ = it.sent(call_text("1"), accepts_stream=False)
    assert it.router.route(QUESTION, without_stream) == Unattributed(None)
    with_stream, _ = it.sent(call_text("2"))
    assert it.router.route(LOG, without_stream) == Progress(with_stream, LOG)
    it.router.close(with_stream)
    assert it.router.route(LOG, with_stream) == Unattributed(None)
    assert it.messages == [QUESTION, LOG]


def test_messages_on_the_sessions_own_stream_stay_on_it() -> None:
    it = RecordingRouter()
    it.sent(call_text("1"))
    assert it.router.route(QUESTION) == Unattributed(None)
    assert it.messages == [QUESTION]


def test_progress_is_routed_by_its_token_on_any_stream() -> None:
    it = RecordingRouter()
    first, _ = it.sent(call_text("1", '"a"'))
    second, _ = it.sent(call_text("2", "1.0"))
    assert it.router.route(progress('"a"'), second) == Progress(first, progress('"a"'))
    # A server may print a number in another spelling than it read.
    assert it.router.route(progress("1"), first) == Progress(second, progress("1.0"))
    for unknown in ('"c"', "[]", "null"):
        assert it.router.route(progress(unknown), first) == Unattributed(None)
    it.router.close(first)
    assert it.router.route(progress('"a"'), first) == Unattributed(None)


def test_two_requests_with_one_progress_token_each_get_their_own_progress() -> None:
    it = RecordingRouter()
    calls = [it.sent(call_text(spelled, "7")) for spelled in ("1", "2", "1")]
    tokens = [json.dumps(json.loads(data)["params"]["_meta"]["progressToken"]) for _, data in calls]
    assert len(set(tokens)) == 3
    for (call, _), token in zip(calls, tokens, strict=True):
        assert it.router.route(progress(token)) == Progress(call, progress("7"))
    for call, _ in calls:
        it.router.close(call)
        it.router.release(call)
    assert it.sent(call_text("1", "7"))[1] == call_text("1", "7").encode()


def test_late_messages_of_a_withdrawn_attempt_do_not_reach_the_next_attempt() -> None:
    it = RecordingRouter()
    call, first = it.sent(call_text("7", '"t"'))
    assert first == call_text("7", '"t"').encode()
    it.router.withdraw(call)
    it.router.release(call)
    second = json.loads(it.router.assign(call))
    assert second["id"] not in (7, "t")
    assert second["params"]["_meta"]["progressToken"] == second["id"]
    assert it.router.route(progress('"t"')) == Unattributed(None)
    assert it.router.route(b'{"jsonrpc":"2.0","id":7,"result":{}}') == Unattributed(None)
    assert it.router.route(progress(json.dumps(second["id"]))) == Progress(call, progress('"t"'))
    routed = it.router.route(b'{"jsonrpc":"2.0","id":%s,"result":{}}' % json.dumps(second["id"]).encode())
    assert isinstance(routed, Answer)
    assert routed.data == b'{"jsonrpc":"2.0","id":7,"result":{}}'


def test_a_cancellation_finds_its_own_clients_request() -> None:
    it = RecordingRouter()
    call, _ = it.sent(call_text('"x"'))
    assert it.router.find(Caller("alice"), cancellation('"x"')) is call
    assert it.router.find(Caller("bob"), cancellation('"x"')) is None


def test_a_router_is_idle_when_no_request_is_in_flight() -> None:
    it = RecordingRouter()
    assert it.router.idle
    call, _ = it.sent(call_text("1"))
    assert not it.router.idle
    it.router.close(call)
    assert it.router.idle


@pytest.mark.parametrize("data", [b"no json", b"\xff", b"[]"])
def test_data_that_is_not_a_message_is_rejected(data: bytes) -> None:
    with pytest.raises(InvalidMessage):
        RecordingRouter().router.route(data)


def test_late_progress_of_a_cut_request_does_not_reach_a_later_request_with_its_id_or_token() -> None:
    it = RecordingRouter()
    call, _ = it.sent(call_text("7", '"t"'))
    it.router.release(call, settled=False)
    it.router.close(call)
    for spelled in ("7", "8"):
        later, data = it.sent(call_text(spelled, '"t"'))
        sent = json.loads(data)
        assert sent["params"]["_meta"]["progressToken"] == sent["id"] not in (7, 8, "t")
        assert it.router.route(progress('"t"')) == Unattributed(None)
        assert it.router.route(progress(json.dumps(sent["id"]))) == Progress(later, progress('"t"'))
    assert it.sent(call_text("9", '"u"'))[1] == call_text("9", '"u"').encode()


def test_a_token_can_be_reused_once_upstream_has_finished_with_the_request() -> None:
    it = RecordingRouter()
    left, _ = it.sent(call_text("1", '"t"'))
    it.router.close(left)
    _, data = it.sent(call_text("2", '"t"'))
    assert json.loads(data)["params"]["_meta"]["progressToken"] != "t"
    it.router.release(left)
    assert it.sent(call_text("3", '"t"'))[1] == call_text("3", '"t"').encode()


def test_the_number_of_remembered_cut_requests_is_limited() -> None:
    it = RecordingRouter()
    for number in range(MAX_CUT + 1):
        call, _ = it.sent(call_text(str(number)))
        it.router.release(call, settled=False)
        it.router.close(call)
    assert it.sent(call_text("0"))[1] == call_text("0").encode()
    assert it.sent(call_text("1"))[1] != call_text("1").encode()
