"""One id for everybody."""

from __future__ import annotations

from chaos.account import Figures
from chaos.stack import Run, stack
from harness import until

KINDS = ("json_poster", "sse_poster", "batcher", "legacy_client", "modern_client", "batcher")


async def one_id(run: Run) -> Figures:
    """F3: every request of every caller has the id 1."""
    requests = run.times(100_000)
    async with stack(run, "F3 one id", "one id for all requests of 32 clients on one session", ids=("1",)) as it:
        async with it.load(kinds=KINDS):
            await until(lambda: len(it.account.calls) >= requests, 3600)
        if (handshakes := it.account.handshakes()) != 1:
            it.figures.blame("failed", f"{handshakes} handshakes")
    return it.figures
