from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vestige_bridge.cli.terminal import ProgressLine, shown, shown_lines, table


@given(st.text())
def test_terminal_output_has_no_control_characters_but_newlines_and_tabs(text: str) -> None:
    assert shown(text).isprintable()
    assert len(shown(text)) == len(text)
    assert shown_lines(text).replace("\n", "").replace("\t", "").isprintable()


def test_printable_text_is_shown_unchanged() -> None:
    assert shown("día 日 🎉") == "día 日 🎉"
    assert shown_lines("a\n\tb") == "a\n\tb"


def test_a_table_is_aligned_and_cut_to_the_width_of_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "14")
    assert table(("A", "LONG", "C"), [("alpha", "b", "what it does"), ("a\x1bb", "", "c")]).splitlines() == [
        "A      LONG  C",
        "alpha  b     …",
        "a\ufffdb          c",
    ]


def test_without_a_terminal_no_progress_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressLine("search") as line:
        line.say("1 of 2")
    assert capsys.readouterr() == ("", "")
