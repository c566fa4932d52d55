"""A server with tasks, and two principals: neither may create tasks, nor list or cancel tasks of the other."""

from __future__ import annotations

import asyncio
import json
from random import Random
from typing import Any

import aiohttp

from chaos.account import Figures
from chaos.callers import MODERN, MODERN_META
from chaos.stack import BridgeProcess, Run
from harness import JSON, SERVER_EVERYTHING, Gateway

TASK_METHODS = ("tasks/list", "tasks/get", "tasks/result", "tasks/cancel")
KEYS = ('"task"', r'"t\u0061sk"', r'"\u0074\u0061\u0073\u006b"')


async def tasks(run: Run) -> Figures:
    """F10: ann requests tasks in every spelling and era, and bob tries to find them."""
    times = run.times(1_000)
    figures = Figures("F10 tasks", f"{times} tasks asked for by one principal and looked for by another")
    tokens = {name: run.secret(f"token-of-{name}") for name in ("ann", "bob")}
    file = run.folder / "tokens"
    file.write_text("".join(f"{name} {token}\n" for name, token in tokens.items()))
    gateway = Gateway(SERVER_EVERYTHING)
    await asyncio.to_thread(gateway.start)
    bridge = BridgeProcess(run, gateway.url, {"VESTIGE_AUTH_TOKEN": "", "VESTIGE_AUTH_TOKEN_FILE": str(file)})
    try:
        async with aiohttp.ClientSession() as http:
            await bridge.ready(http)
            for number in range(times):
                await _round(_Asker(http, bridge.url, tokens, figures), run.random(f"F10 {number}"), f"topic-{number}")
    finally:
        if (status := await bridge.stop()) != 0:
            figures.blame("failed", f"the bridge ended with status {status}")
        await asyncio.to_thread(gateway.stop)
    bridge.check_log(figures)
    return figures


async def _round(asker: _Asker, random: Random, topic: str) -> None:
    """Requests one task as ann, and lists and reads tasks as bob."""
    call = {"name": "simulate-research-query", "arguments": {"topic": topic}, "@": {"ttl": 60_000}}
    made = await asker.ask("ann", "tools/call", call, random)
    if "taskId" in made:
        asker.figures.blame("wrong", f"a task was made: {made}")
    task_id = made.partition('"taskId":"')[2].partition('"')[0] or "unknown"
    for method in TASK_METHODS:
        seen = await asker.ask("bob", method, {"taskId": task_id}, random)
        if "-32601" not in seen or topic in seen:
            asker.figures.blame("wrong", f"{method} told bob of a task: {seen}")
        asker.figures.told += 1
    pinged = await asker.ask("bob", "tools/call", {"name": "echo", "arguments": {"message": topic}, "@": {}}, random)
    if f"Echo: {topic}" not in pinged:
        asker.figures.blame("failed", f"a call beside the tasks: {pinged}")
    asker.figures.answered += 1


class _Asker:
    """Both principals.

    Parameters:
        http: their HTTP client.
        url: the endpoint.
        tokens: their tokens, by their names.
        figures: the counts of calls.
    """

    def __init__(self, http: aiohttp.ClientSession, url: str, tokens: dict[str, str], figures: Figures) -> None:
        self.figures = figures
        self._http = http
        self._url = url
        self._tokens = tokens

    async def ask(self, who: str, method: str, params: dict[str, Any], random: Random) -> str:
        """Sends a request in a random form; the key ``@`` becomes a spelling of ``task``. Returns the answer."""
        headers = {**JSON, "Authorization": f"Bearer {self._tokens[who]}"}
        form = random.choice(("plain", "batch", "session", "modern"))
        if form == "modern":
            params = {**params, "_meta": MODERN_META}
            headers |= {"MCP-Protocol-Version": MODERN, "Mcp-Method": method, "Mcp-Name": params.get("name", "")}
        elif form == "session":
            headers["Mcp-Session-Id"] = "one-for-both"
        body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params})
        body = body.replace('"@"', random.choice(KEYS))
        body = f"[{body}]" if form == "batch" else body
        self.figures.calls += 1
        async with asyncio.timeout(30), self._http.post(self._url, data=body.encode(), headers=headers) as response:
            return await response.text()
