"""Texts that were cut in the middle of a character, sent to a server whose parser is as strict as Vestige's."""

from __future__ import annotations

from chaos.account import Figures
from chaos.stack import Run, stack
from harness import until


async def halves(run: Run) -> Figures:
    """F9: every call is answered in time, and no slot is lost."""
    requests = run.times(20_000)
    done = "half characters (unpaired surrogates) in all requests of 32 clients, to a server that rejects them"
    async with stack(run, "F9 halves", done, UPSTREAM_CONCURRENCY="8", REQUEST_TIMEOUT_SECONDS="5") as it:
        async with it.load(kinds=("cutter",)):
            await until(lambda: len(it.account.calls) >= requests, 3600)
        for call in it.account.calls.values():
            if call.got != "answer":
                it.figures.blame("failed", f"{call.key} with half a character: {call.got} {call.error}")
        await it.good_request()
    return it.figures
