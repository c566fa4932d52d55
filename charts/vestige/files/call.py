"""Asks something that changes nothing through the Service and prints its answer; an error ends it with status 1."""

import json
import os
import urllib.error
import urllib.request
from typing import Any

METHOD_NOT_FOUND = -32601
# The Service is in the cluster: no proxy stands in between, whatever the environment says.
OPEN = urllib.request.build_opener(urllib.request.ProxyHandler({})).open

Members = dict[str, Any]


def ask(method: str, params: Members) -> Members:
    token = open("/etc/vestige/auth/token").readline().split()[-1]
    body = json.dumps({"jsonrpc": "2.0", "id": "helm-test", "method": method, "params": params}).encode()
    headers = {"Authorization": "Bearer " + token, "Content-Type": "application/json"}
    try:
        with OPEN(urllib.request.Request(os.environ["URL"], body, headers), timeout=60) as response:
            answer: Members = json.load(response)
    except urllib.error.HTTPError as error:
        raise SystemExit(f"{method}: HTTP {error.code}: {error.read().decode(errors='replace')[:500]}") from error
    return answer


def reads_without_arguments(tool: Members) -> bool:
    return bool(tool.get("annotations", {}).get("readOnlyHint") and not tool["inputSchema"].get("required"))


def questions(tools: list[Members]) -> list[tuple[str, str, Members]]:
    """What to ask, each with its name; the next one where a server does not know the method."""
    name = os.environ["TOOL"] or next((tool["name"] for tool in tools if reads_without_arguments(tool)), None)
    if name:
        return [(name, "tools/call", {"name": name, "arguments": json.loads(os.environ["ARGUMENTS"])})]
    print("No tool says that it only reads and needs no argument (test.tool can name one).")
    return [("resources/list", "resources/list", {}), ("ping", "ping", {})]


listed = ask("tools/list", {})
if "result" not in listed:
    raise SystemExit(f"tools/list: {listed}")
tools = listed["result"]["tools"]
print(f"{len(tools)} tools: {', '.join(tool['name'] for tool in tools)}")
for name, method, params in questions(tools):
    asked, answer = name, ask(method, params)
    if answer.get("error", {}).get("code") != METHOD_NOT_FOUND or method == "tools/call":
        break
if "result" not in answer:
    raise SystemExit(f"{asked}: {answer}")
print(f"{asked}: {json.dumps(answer['result'])[:500]}")
if answer["result"].get("isError"):
    raise SystemExit(f"{asked} answered with an error.")
