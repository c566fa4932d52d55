"""The bridge reads HTTP/1.1 as h11 does, but for the differences that RFC 9112 explains."""

from __future__ import annotations

import random

import pytest

from http_fuzz import EXPECTED, build_stream, run


@pytest.mark.parametrize("seed", range(4))
async def test_random_and_mutated_streams_are_read_as_h11_reads_them(seed: int) -> None:
    report = await run(5_000, seed)
    assert report.failures == []
    assert report.accepted > 1_000
    assert report.refused > 1_000


@pytest.mark.parametrize("difference", EXPECTED, ids=lambda it: it.what)
def test_each_expected_difference_occurs(difference: object) -> None:
    chance = random.Random(1)
    assert any(difference.shows(build_stream(chance)) for _ in range(200_000))  # type: ignore[attr-defined]
