"""The pass criteria of `make interop`: a client with a wrong result fails the run."""

from __future__ import annotations

from aiohttp import web
from aiohttp.test_utils import TestServer

from harness import TOKEN, Gateway, bridge
from interop.__main__ import BEHAVIOURS, BRIDGE_RESTARTED, UPSTREAM_RESTARTED, judge
from interop.clients import CLIENTS

SOUND = dict.fromkeys([*BEHAVIOURS, BRIDGE_RESTARTED, UPSTREAM_RESTARTED], "ok")


def test_a_client_that_passes_each_check_passes() -> None:
    table, failures = judge({"sound": SOUND})
    assert failures == []
    assert "| sound | ✓ |" in table


def test_a_client_that_fails_or_does_not_answer_fails_the_run() -> None:
    silent = {behaviour: word for behaviour, word in SOUND.items() if behaviour != "call"}
    _, failures = judge({"failing": SOUND | {"cancel": "failed it ran on"}, "silent": silent})
    assert failures == ["failing, cancel: it ran on", "silent, call: it did not answer"]


def test_a_check_that_does_not_apply_to_a_client_is_reported_and_does_not_fail_the_run() -> None:
    table, failures = judge({"bare": SOUND | {"progress": "n/a no option for it"}})
    assert failures == []
    assert "*progress*: n/a for bare: no option for it" in table


async def test_a_bridge_that_changes_tool_results_fails_a_real_client(features_gateway: Gateway) -> None:
    async def relay(request: web.Request) -> web.Response:
        """Relays like the bridge, but changes the texts."""
        headers = {name: value for name, value in request.headers.items() if name != "Accept"}
        async with served.http.request(
            request.method, served.url, data=await request.read(), headers=headers | {"Accept": "application/json"}
        ) as response:
            body = (await response.read()).replace(b'"text":"', b'"text":"not ')
            kept = {"Content-Type": response.headers.get("Content-Type", "application/json")}
            if "Mcp-Session-Id" in response.headers:
                kept["Mcp-Session-Id"] = response.headers["Mcp-Session-Id"]
            return web.Response(status=response.status, body=body, headers=kept)

    defect = web.Application()
    defect.router.add_route("*", "/mcp", relay)
    kind = next(kind for kind in CLIENTS if kind.name.startswith("Python mcp 1."))
    async with bridge(features_gateway.url) as served, TestServer(defect, host="127.0.0.1") as server:
        async with kind.connect(served.url, TOKEN) as client:
            assert await client.show("call") == "ok"
        async with kind.connect(str(server.make_url("/mcp")), TOKEN) as client:
            assert (await client.show("call")).startswith("failed")
