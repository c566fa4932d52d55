"""Tests that the fault injection finds each defect that is planted in the bridge."""

from __future__ import annotations

from pathlib import Path

import pytest

from chaos.__main__ import FAULTS
from chaos.launch import DEFECTS
from chaos.stack import Run

CAUGHT_BY = {
    "replay_always": ("F1", 0.05, "misreported"),
    "no_drain": ("F2", 0.05, "unanswered"),
    "ids_as_they_are": ("F3", 0.001, "wrong"),
    "duplicates_as_they_are": ("fuzz-per-client", 0.01, "wrong"),
    "renewed_on_garbage": ("F4", 0.01, "failed"),
    "tokens_by_prefix": ("F5", 0.01, "wrong"),
    "a_task_is_left": ("F6", 0.01, "grown"),
    "no_answer_limit": ("F7", 0.01, "grown"),
    "bodies_are_rewritten": ("strangers", 0.01, "wrong"),
    "bodies_in_the_log": ("F8", 0.01, "leaked"),
    "halves_pass": ("F9", 0.001, "failed"),
    "tasks_pass": ("F10", 0.01, "wrong"),
    "lines_twice": ("F1", 0.05, "misreported"),
    "no_line_for_a_replay": ("F1", 0.05, "misreported"),
    "first_come_first_served": ("F11", 0.01, "unanswered"),
}


def test_every_planted_defect_is_tried() -> None:
    assert CAUGHT_BY.keys() == DEFECTS.keys()


@pytest.mark.parametrize("defect", CAUGHT_BY)
async def test_a_planted_defect_is_caught(defect: str, tmp_path: Path) -> None:
    fault, scale, column = CAUGHT_BY[defect]
    figures = await FAULTS[fault](Run(1, scale, tmp_path, defect, soak_seconds=12))
    assert figures.zeros[column] > 0, figures
