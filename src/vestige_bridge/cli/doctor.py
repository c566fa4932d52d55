"""The command ``doctor``: checks each layer from the settings to Vestige, and prints which one fails and the remedy.

Invariant: the lines for people and the JSON document contain the same sentences.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Literal

from vestige_bridge.cli.checks import Layers, NotAsked
from vestige_bridge.cli.http_client import ClientError
from vestige_bridge.cli.terminal import shown
from vestige_bridge.cli.upstream_probe import Fault


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check.

    Attributes:
        layer: the name of the layer.
        status: the result.
        found: what was found, or why the layer was not checked.
        remedy: what to do, in a sentence; empty if there is nothing to do.
        milliseconds: how long the check took.
    """

    layer: str
    status: Literal["ok", "failed", "not_asked"]
    found: str
    remedy: str
    milliseconds: float

    def __str__(self) -> str:
        """The line for people."""
        mark = {"ok": "✓", "failed": "✗", "not_asked": "-"}[self.status]
        took = "" if self.status == "not_asked" else f" ({self.milliseconds:.0f} ms)"
        return shown(f"{mark} {self.layer:13} {self.found}{took}{'. ' if self.remedy else ''}{self.remedy}")


def run(
    environ: Mapping[str, str], *, url: str | None, timeout_seconds: float, as_json: bool, token_env: str | None = None
) -> int:
    """Checks the layers in order, and prints a line for each, or one JSON document.

    Parameters:
        environ: environment variables.
        url: the address of the bridge, if it does not have the settings of this machine.
        timeout_seconds: how long a connection may take, and then each answer.
        as_json: whether to print JSON.
        token_env: the variable with the token to check, instead of the one from the settings.

    Returns:
        The exit status: 0 if no layer fails, otherwise 1.
    """
    findings = []
    for finding in _walk(Layers(environ, url, timeout_seconds, token_env)):
        findings.append(finding)
        if not as_json:
            print(finding, flush=True)
    failed = [finding.layer for finding in findings if finding.status == "failed"]
    if as_json:
        print(json.dumps({"ok": not failed, "failed": failed, "layers": [asdict(it) for it in findings]}, indent=2))
    return 1 if failed else 0


def _walk(layers: Layers) -> Iterator[Finding]:
    for layer, examination in layers.in_order():
        yield _examine(layer, examination)


def _examine(layer: str, examination: Callable[[], str]) -> Finding:
    started_at = time.perf_counter()
    status: Literal["ok", "failed", "not_asked"] = "ok"
    remedy = ""
    try:
        found = examination()
    except NotAsked as error:
        status, found = "not_asked", f"not checked: {error}"
    except Fault as fault:
        status, found, remedy = "failed", str(fault), fault.remedy
    except ClientError as error:
        status, found, remedy = "failed", str(error), "Read the log of the bridge."
    return Finding(layer, status, found.rstrip("."), remedy, round((time.perf_counter() - started_at) * 1000, 1))
