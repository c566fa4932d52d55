"""Calls one tool through the Service and prints its answer; any error ends it with a status other than 0."""

import json
import os
import urllib.request
from typing import Any


def ask(method: str, params: dict[str, Any]) -> dict[str, Any]:
    token = open("/etc/vestige/auth/token").readline().split()[-1]
    body = json.dumps({"jsonrpc": "2.0", "id": "helm-test", "method": method, "params": params}).encode()
    headers = {"Authorization": "Bearer " + token, "Content-Type": "application/json"}
    with urllib.request.urlopen(urllib.request.Request(os.environ["URL"], body, headers), timeout=60) as response:
        answer = json.load(response)
    if "result" not in answer:
        raise SystemExit(f"{method}: {answer}")
    result: dict[str, Any] = answer["result"]
    return result


def reads_without_arguments(tool: dict[str, Any]) -> bool:
    return bool(tool.get("annotations", {}).get("readOnlyHint") and not tool["inputSchema"].get("required"))


tools = ask("tools/list", {})["tools"]
names = [tool["name"] for tool in tools]
print(f"{len(names)} tools: {', '.join(names)}")
name = os.environ["TOOL"] or next((tool["name"] for tool in tools if reads_without_arguments(tool)), None)
if name is None:
    raise SystemExit("No tool says that it only reads and needs no argument: name one in test.tool and test.arguments.")
result = ask("tools/call", {"name": name, "arguments": json.loads(os.environ["ARGUMENTS"])})
print(f"{name}: {json.dumps(result)[:500]}")
if result.get("isError"):
    raise SystemExit(f"{name} answered with an error.")
