"""The bridge reads HTTP/1.1 as h11 does, except for the differences that RFC 9112 explains."""

from __future__ import annotations

import pytest

from http_fuzz import EXPECTED, Difference, Reader, read_by_h11, run


@pytest.mark.parametrize("seed", range(4))
async def test_random_and_mutated_streams_are_read_as_h11_reads_them(seed: int) -> None:
    report = await run(5_000, seed)
    assert report.failures == []
    assert report.accepted > 1_000
    assert report.refused > 1_000


@pytest.mark.parametrize("difference", EXPECTED, ids=lambda it: it.what)
async def test_each_example_shows_its_expected_difference(difference: Difference) -> None:
    ours, theirs = await Reader().read([difference.example]), read_by_h11([difference.example])
    assert (ours is not None, theirs is not None) == (difference.bridge_accepts, not difference.bridge_accepts)
    assert difference.shows(difference.example)
