"""The window: no slot is free while requests wait, and principals and their sessions take turns."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from vestige_bridge.mcp.multiplexer import Caller
from vestige_bridge.session import window
from vestige_bridge.session.window import Rounds, Window

FEW_JOINING = 2
"""A limit low enough that these tests also reach rounds that are closed to newcomers."""


class Model(RuleBasedStateMachine):
    """A window and a model of it: the list of waiting things, in the order of arrival.

    ``turns`` counts for each waiting principal the turns that the other principals had meanwhile, and for each waiting
    session those of the other sessions of its principal.
    """

    def __init__(self) -> None:
        super().__init__()
        self.begun: list[int] = []
        self.taken: list[int] = []
        self.waiting: list[tuple[int, Caller]] = []
        self.turns: dict[str | Caller, Counter[str | Caller]] = {}
        self.counts: Counter[str] = Counter()
        self.numbers = itertools.count()

    @initialize(slots=st.integers(1, 3))
    def open(self, slots: int) -> None:
        self.slots = slots
        self.it: Window[int] = Window(slots, self.begun.append)

    @rule(principal=st.sampled_from("abcdef"), session=st.sampled_from([None, *"rstuvw"]))
    def enter(self, principal: str, session: str | None) -> None:
        thing, caller = next(self.numbers), Caller(principal, session)
        at_once = self.it.enter(thing, caller)
        assert at_once == (len(self.taken) < self.slots)
        if at_once:
            self.taken.append(thing)
            return
        self.waiting.append((thing, caller))
        for key in (principal, caller):
            self.turns.setdefault(key, Counter())

    @precondition(lambda self: self.taken)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        thing = data.draw(st.sampled_from(self.taken))
        self.taken.remove(thing)
        self.it.leave(thing)
        begun, self.begun[:] = list(self.begun), []
        assert len(begun) == min(1, len(self.waiting))
        if begun:
            self._had_its_turn(*begun)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        thing, caller = data.draw(st.sampled_from(self.waiting))
        self.it.leave(thing)
        self._waits_no_more(thing, caller)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def reject_newest_of_principal(self, data: st.DataObject) -> None:
        _, (principal, _) = data.draw(st.sampled_from(self.waiting))
        newest = [pair for pair in self.waiting if pair[1].principal == principal][-1]
        assert self.it.reject_newest(principal) == newest[0]
        self._waits_no_more(*newest)

    @rule()
    def leave_without_a_slot(self) -> None:
        self.it.leave(-1)

    @invariant()
    def nothing_waits_while_a_slot_is_free(self) -> None:
        assert self.it.taken == len(self.taken) <= self.slots
        assert self.it.taken == self.slots or not self.waiting
        assert self.it.waiting == Counter(caller.principal for _, caller in self.waiting)
        assert not self.begun

    def _had_its_turn(self, thing: int) -> None:
        caller = dict(self.waiting)[thing]
        assert thing == next(it for it, whose in self.waiting if whose == caller), "the order of arrival in a session"
        for other, turns in self.turns.items():
            rivals = isinstance(other, str) or other.principal == caller.principal
            key = caller.principal if isinstance(other, str) else caller
            if rivals and other != key:
                turns[key] += 1
                assert turns[key] == 1, f"{key} had two turns while {other} waited"
        self.taken.append(thing)
        self.counts[caller.principal] += 1
        self._waits_no_more(thing, caller)
        for key in (caller.principal, caller):
            if key in self.turns:
                self.turns[key] = Counter()

    def _waits_no_more(self, thing: int, caller: Caller) -> None:
        self.waiting.remove((thing, caller))
        if all(whose != caller for _, whose in self.waiting):
            del self.turns[caller]
        if all(whose.principal != caller.principal for _, whose in self.waiting):
            del self.turns[caller.principal]

    def teardown(self) -> None:
        """Checks that all that still wait get a slot once the others are freed."""
        for _ in range(len(self.waiting)):
            self.it.leave(self.taken.pop())
            self._had_its_turn(self.begun.pop())
        assert not self.waiting
        if hasattr(self, "it"):
            assert {name: it.count for name, it in self.it.waits.items() if it.count} == self.counts


@pytest.mark.parametrize("joining", [FEW_JOINING, window.LEAST_JOINING])
def test_slots_are_assigned_fairly_in_any_sequence_of_events(joining: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(window, "LEAST_JOINING", joining)
    run_state_machine_as_test(Model, settings=hypothesis_settings(max_examples=150, stateful_step_count=60))


def order_of(callers: Iterable[tuple[str, str | None]]) -> list[str]:
    """Returns the order in which waiting things get the only slot, each named after its caller and its number there."""
    begun: list[str] = []
    it: Window[str] = Window(1, begun.append)
    it.enter("first", Caller("first"))
    numbers: Counter[tuple[str, str | None]] = Counter()
    for principal, session in callers:
        numbers[principal, session] += 1
        it.enter(f"{principal}{session or ''}{numbers[principal, session]}", Caller(principal, session))
    it.leave("first")
    for name in begun:
        it.leave(name)
    return begun


def test_a_batch_delays_another_by_one_turn() -> None:
    assert order_of([("a", None)] * 500 + [("b", None)])[:3] == ["a1", "b1", "a2"]


def test_each_principal_has_one_turn_in_a_round() -> None:
    callers = [("a", None)] * 3 + [("b", None)] * 2 + [("c", None)]
    assert order_of(callers) == ["a1", "b1", "c1", "a2", "b2", "a3"]


def test_within_a_principal_its_sessions_take_turns_and_sessionless_requests_count_as_one() -> None:
    callers = [("a", None)] * 4 + [("a", "s")] * 2 + [("a", "t")]
    assert order_of(callers) == ["a1", "as1", "at1", "a2", "as2", "a3", "a4"]


def test_sessions_give_a_principal_no_additional_slots() -> None:
    callers = [("a", str(number)) for number in range(4)] + [("b", None)] * 2
    assert order_of(callers) == ["a01", "b1", "a11", "b2", "a21", "a31"]


def test_a_repeated_caller_waits_for_one_turn_of_each_other_principal() -> None:
    begun: list[str] = []
    it: Window[str] = Window(1, begun.append)
    it.enter("first", Caller("first"))
    for name, number in itertools.product("ab", range(20)):
        it.enter(f"{name}{number}", Caller(name))
    it.enter("c0", Caller("c"))
    it.leave("first")
    waited: list[int] = []
    since = 0
    for number in range(1, 10):
        while begun[-1] != f"c{number - 1}":
            it.leave(begun[-1])
        waited.append(len(begun) - 1 - since)
        since = len(begun)
        it.leave(begun[-1])
        it.enter(f"c{number}", Caller("c"))
    assert max(waited) <= 2 + 1, waited  # one turn each of a and b, and the one in flight


def test_new_sessions_cannot_delay_a_waiting_session_indefinitely() -> None:
    begun: list[str] = []
    it: Window[str] = Window(1, begun.append)
    it.enter("first", Caller("a"))
    it.enter("patient 1", Caller("a", "patient"))
    it.enter("patient 2", Caller("a", "patient"))
    it.leave("first")
    assert begun == ["patient 1"]
    for number in itertools.count():
        it.enter(f"new {number}", Caller("a", f"new {number}"))
        it.enter(f"newer {number}", Caller("a", f"newer {number}"))
        it.leave(begun[-1])
        if begun[-1] == "patient 2":
            break
        assert len(begun) <= window.LEAST_JOINING + 2
    assert len(begun) > 2


def test_a_round_ends_when_none_of_its_members_waits() -> None:
    it: Rounds[str] = Rounds()
    for name in "ab":
        it.join(name)
    assert it.first() == "a"
    it.leave("b")
    for name in "ac":
        it.join(name)
    assert [it.first(), it.first()] == ["a", "c"]


def test_a_session_or_principal_that_rejoins_after_its_slot_waits_for_the_next_round() -> None:
    it: Rounds[str] = Rounds()
    for name in "ab":
        it.join(name)
    assert it.first() == "a"
    it.join("a")
    it.leave("a")
    it.join("c")
    it.join("a")
    assert [it.first(), it.first(), it.first()] == ["b", "c", "a"]


def test_a_session_or_principal_that_leaves_and_rejoins_is_last_in_the_round() -> None:
    it: Rounds[str] = Rounds()
    for name in "abc":
        it.join(name)
    it.leave("a")
    it.join("a")
    assert [it.first(), it.first(), it.first()] == ["b", "c", "a"]


def test_entries_that_no_longer_wait_are_not_kept() -> None:
    it: Window[str] = Window(1, lambda _: None)
    it.enter("first", Caller("a"))
    for name in ("second", "third"):
        it.enter(name, Caller("b", name))
    it.leave("third")
    assert it.waiting == {"b": 1}
    it.leave("second")
    assert (it.waiting, it.taken) == ({}, 1)
    it.leave("first")
    it.leave("first")
    assert (it.waiting, it.taken) == ({}, 0)
    assert it.enter("fourth", Caller("a"))


def test_waits_are_counted_by_principal() -> None:
    it: Window[str] = Window(1, lambda _: None)
    it.enter("first", Caller("a"))
    assert not it.waits
    it.enter("second", Caller("b"))
    it.enter("third", Caller("b", "s"))
    assert it.waiting_by_label == {"b": 2}
    assert it.reject_newest("b") == "third"
    it.leave("first")
    assert it.waiting_by_label == {"b": 0}
    told = it.waits["b"]
    assert (told.count, told.made_way) == (1, 1)
    assert 0 < told.seconds < 60


def test_principals_over_the_label_limit_share_one_metric_label() -> None:
    it: Window[int] = Window(1, lambda _: None)
    principals = window.MAX_PRINCIPAL_LABELS + 10
    it.enter(0, Caller("first"))
    for number in range(1, principals + 1):
        it.enter(number, Caller(f"principal-{number}"))
    assert len(it.waits) == window.MAX_PRINCIPAL_LABELS + 1
    assert it.waiting_by_label == {
        **{f"principal-{n}": 1 for n in range(1, window.MAX_PRINCIPAL_LABELS + 1)},
        "other": 10,
    }
    it.reject_newest(f"principal-{principals}")
    for number in range(principals):
        it.leave(number)
    by_name: defaultdict[str, int] = defaultdict(int, {name: waits.count for name, waits in it.waits.items()})
    assert (by_name["principal-1"], by_name["other"], it.waits["other"].made_way) == (1, 9, 1)
    assert set(it.waiting_by_label.values()) == {0}
