"""Asks something that changes nothing through the Service and prints its answer; an error ends it with status 1."""

import json
import os
import tomllib
import urllib.error
import urllib.request
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

METHOD_NOT_FOUND, FORBIDDEN = -32601, -32016
# The Service is in the cluster: no proxy stands in between, whatever the environment says.
OPEN = urllib.request.build_opener(urllib.request.ProxyHandler({})).open

Members = dict[str, Any]


def first_token(file: Path) -> str:
    """The first token of a file that is valid, and that the file does not know by its hash alone."""
    if file.suffix != ".toml":
        return next(line.split()[-1] for line in file.read_text().splitlines() if line.split())
    now = datetime.now(UTC)
    for entry in tomllib.loads(file.read_text())["token"]:
        if "token" in entry and entry.get("expires", now) >= now:
            return str(entry["token"])
    raise SystemExit(
        "The tokens are known by their hashes alone: let test.existingSecret name a Secret that holds one."
    )


def ask(method: str, params: Members) -> Members:
    token = first_token(Path(os.environ["TOKEN_FILE"]))
    body = json.dumps({"jsonrpc": "2.0", "id": "helm-test", "method": method, "params": params}).encode()
    headers = {"Authorization": "Bearer " + token, "Content-Type": "application/json"}
    try:
        with OPEN(urllib.request.Request(os.environ["URL"], body, headers), timeout=60) as response:
            answer: Members = json.load(response)
    except urllib.error.HTTPError as error:
        said = error.read().decode(errors="replace")
        if error.code == 403:
            return {"error": {"code": FORBIDDEN, "message": said[:500]}}
        raise SystemExit(f"{method}: HTTP {error.code}: {said[:500]}") from error
    return answer


def reads_without_arguments(tool: Members) -> bool:
    return bool(tool.get("annotations", {}).get("readOnlyHint") and not tool["inputSchema"].get("required"))


def questions(tools: list[Members]) -> list[tuple[str, str, Members]]:
    """What to ask, each with its name; the next one where the method is not known or not allowed."""
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
    if answer.get("error", {}).get("code") not in (METHOD_NOT_FOUND, FORBIDDEN) or method == "tools/call":
        break
if "result" not in answer:
    raise SystemExit(f"{asked}: {answer}")
print(f"{asked}: {json.dumps(answer['result'])[:500]}")
if answer["result"].get("isError"):
    raise SystemExit(f"{asked} answered with an error.")
