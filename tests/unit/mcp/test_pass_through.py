"""A client's own session: ids and server requests pass through, and nobody gets what belongs to another request."""

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


class Overheard:
    """A router, and what it could give to no request."""

    def __init__(self) -> None:
        self.messages: list[bytes] = []
        self.router: PassThrough[Call] = PassThrough(self._take)

    def _take(self, message: Notification | Request) -> None:
        self.messages.append(message.encoded())

    def sent(self, text: str, *, hears: bool = True) -> tuple[Call, bytes]:
        """A call, and the bytes that carry it to upstream."""
        call = new_call(text)
        self.router.open(call)
        if hears:
            self.router.accept_stream(call)
        return call, self.router.assign(call)


def call_text(spelled_id: str, token: str = "") -> str:
    params = f'{{"_meta":{{"progressToken":{token}}}}}' if token else "{}"
    return f'{{"jsonrpc":"2.0","id":{spelled_id},"method":"tools/call","params":{params}}}'


def progress(token: str) -> bytes:
    params = f'{{"progressToken":{token},"progress":1}}'
    return f'{{"jsonrpc":"2.0","method":"notifications/progress","params":{params}}}'.encode()


@given(json_texts.requests, json_texts.responses, json_texts.ids, json_texts.ids)
def test_request_and_answer_go_on_as_they_were_written(
    request: str, response: str, spelled_id: str, token: str
) -> None:
    it = Overheard()
    text = request.replace(ID, spelled_id).replace(TOKEN, token)
    call, data = it.sent(text)
    assert data == text.encode()
    answer = response.replace(ID, spelled_id).encode()
    routed = it.router.route(answer)
    assert isinstance(routed, Answer)
    assert (routed.call, routed.data) == (call, answer)


@pytest.mark.parametrize("spelled", ["1", "1.0", '"1"', "-7", "9007199254740993", '"\\u0069"', '""'])
def test_an_answer_goes_on_as_it_was_written(spelled: str) -> None:
    it = Overheard()
    call, _ = it.sent(call_text(spelled))
    data = f'{{ "id":{spelled}, "jsonrpc":"2.0", "result":{{"n":1.0}} }}'.encode()
    routed = it.router.route(data)
    assert isinstance(routed, Answer)
    assert (routed.call, routed.data) == (call, data)


def test_two_requests_under_one_id_each_get_their_own_answer() -> None:
    it = Overheard()
    (first, one), (second, two) = it.sent(call_text("1")), it.sent(call_text("1.0"))
    assert json.loads(one)["id"] != json.loads(two)["id"]
    for call, data in ((second, two), (first, one)):
        answer = json.dumps({"jsonrpc": "2.0", "id": json.loads(data)["id"], "result": {}}).encode()
        routed = it.router.route(answer)
        assert isinstance(routed, Answer)
        assert routed.call is call
        assert parse_message(routed.data.decode()).members["id"].value == 1.0


def test_an_id_is_its_clients_again_once_upstream_has_done_with_it() -> None:
    it = Overheard()
    call, _ = it.sent(call_text("1"))
    it.router.hold(call)
    it.router.close(call)
    it.router.release(call)
    assert json.loads(it.sent(call_text("1"))[1])["id"] != 1
    late = it.router.route(b'{"jsonrpc":"2.0","id":1,"result":{"late":true}}')
    assert late == Unattributed(None)
    it.router.release(call)
    assert json.loads(it.sent(call_text("1"))[1])["id"] == 1


def test_what_upstream_asks_goes_on_the_stream_that_it_came_on() -> None:
    it = Overheard()
    it.sent(call_text("1"))
    call, _ = it.sent(call_text("2"))
    for data in (QUESTION, LOG):
        assert it.router.route(data, call) == Progress(call, data)
    assert not it.messages


def test_what_the_client_does_not_read_there_goes_on_another_stream() -> None:
    it = Overheard()
    deaf, _ = it.sent(call_text("1"), hears=False)
    assert it.router.route(QUESTION, deaf) == Unattributed(None)
    hearing, _ = it.sent(call_text("2"))
    assert it.router.route(LOG, deaf) == Progress(hearing, LOG)
    it.router.close(hearing)
    assert it.router.route(LOG, hearing) == Unattributed(None)
    assert it.messages == [QUESTION, LOG]


def test_what_comes_on_the_sessions_own_stream_stays_there() -> None:
    it = Overheard()
    it.sent(call_text("1"))
    assert it.router.route(QUESTION) == Unattributed(None)
    assert it.messages == [QUESTION]


def test_progress_goes_to_its_token_whichever_stream_it_came_on() -> None:
    it = Overheard()
    first, _ = it.sent(call_text("1", '"a"'))
    second, _ = it.sent(call_text("2", "1.0"))
    assert it.router.route(progress('"a"'), second) == Progress(first, progress('"a"'))
    # A server that reads numbers prints them in its own way.
    assert it.router.route(progress("1"), first) == Progress(second, progress("1.0"))
    for nobodys in ('"c"', "[]", "null"):
        assert it.router.route(progress(nobodys), first) == Unattributed(None)
    it.router.close(first)
    assert it.router.route(progress('"a"'), first) == Unattributed(None)


def test_two_requests_with_one_progress_token_each_get_their_own_progress() -> None:
    it = Overheard()
    calls = [it.sent(call_text(spelled, "7")) for spelled in ("1", "2", "1")]
    tokens = [json.dumps(json.loads(data)["params"]["_meta"]["progressToken"]) for _, data in calls]
    assert len(set(tokens)) == 3
    for (call, _), token in zip(calls, tokens, strict=True):
        assert it.router.route(progress(token)) == Progress(call, progress("7"))
    for call, _ in calls:
        it.router.close(call)
        it.router.release(call)
    assert it.sent(call_text("1", "7"))[1] == call_text("1", "7").encode()


def test_what_comes_late_for_an_attempt_that_was_cut_is_not_taken_for_the_next_ones() -> None:
    it = Overheard()
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
    it = Overheard()
    call, _ = it.sent(call_text('"x"'))
    assert it.router.find(Caller("alice"), cancellation('"x"')) is call
    assert it.router.find(Caller("bob"), cancellation('"x"')) is None


def test_it_is_idle_when_no_request_is_in_flight() -> None:
    it = Overheard()
    assert it.router.idle
    call, _ = it.sent(call_text("1"))
    assert not it.router.idle
    it.router.close(call)
    assert it.router.idle


@pytest.mark.parametrize("data", [b"no json", b"\xff", b"[]"])
def test_what_is_no_message_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidMessage):
        Overheard().router.route(data)


def test_what_a_server_goes_on_telling_after_a_cut_is_not_taken_for_a_later_request_of_the_same_id_or_token() -> None:
    it = Overheard()
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


def test_a_token_is_its_clients_again_once_upstream_has_done_with_the_request() -> None:
    it = Overheard()
    left, _ = it.sent(call_text("1", '"t"'))
    it.router.close(left)
    _, data = it.sent(call_text("2", '"t"'))
    assert json.loads(data)["params"]["_meta"]["progressToken"] != "t"
    it.router.release(left)
    assert it.sent(call_text("3", '"t"'))[1] == call_text("3", '"t"').encode()


def test_only_so_many_cuts_of_a_session_are_remembered() -> None:
    it = Overheard()
    for number in range(MAX_CUT + 1):
        call, _ = it.sent(call_text(str(number)))
        it.router.release(call, settled=False)
        it.router.close(call)
    assert it.sent(call_text("0"))[1] == call_text("0").encode()
    assert it.sent(call_text("1"))[1] != call_text("1").encode()
